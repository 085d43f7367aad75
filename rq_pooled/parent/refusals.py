"""What a worker does while the server refuses its claims, and its looks at the queues."""

from __future__ import annotations

from redis.exceptions import ResponseError

from ..config.secrets import message_of
from ..connection.away import NEEDED_RIGHTS, is_forbidden
from ..errors import TRY_AGAIN, USAGE
from .complaint import Complaint
from .context import Context
from .events import Events

#: Seconds until the server is asked again after it refused (out of memory).
REFUSED_RETRY = 1.0
#: Longest such pause in seconds where the user lacks a right, and seconds between two lines about one reason.
FORBIDDEN_RETRY, SAY_AGAIN = 30.0, 60.0


class Refusals:
    """Counts refusals, says why they come, and how long to wait; ends the worker where waiting is no use.

    Args:
        context, events: as the names say.
        burst: end instead of trying again for longer than GUARD_WAIT.
    """

    def __init__(self, context: Context, events: Events, *, burst: bool) -> None:
        self._context = context
        self._events = events
        self._burst = burst
        self._complaint = Complaint(SAY_AGAIN)
        #: A claim has been answered: the user had every right.
        self._worked = False

    def add(self, error: ResponseError) -> float | None:
        """Return after how many seconds to try again, None if the worker ends."""
        context, complaint, text = self._context, self._complaint, message_of(error).rstrip(".")
        forbidden, is_news = is_forbidden(error), complaint.add(text)
        if forbidden and (self._burst or not self._worked):
            reason = f"the server's access control refuses what a worker does: {text}; {NEEDED_RIGHTS}"
            self._events.work_refused(reason, USAGE)
            return None
        if self._burst and complaint.seconds > context.settings.guard_wait:
            tried = f"tried {complaint.count} times in {complaint.seconds:.0f} s (GUARD_WAIT)"
            self._events.work_refused(f"cannot claim jobs: {text}; {tried}", TRY_AGAIN)
            return None
        if is_news:
            pace = "more and more rarely" if forbidden else "every second"
            hint = f"; {NEEDED_RIGHTS}" if forbidden else ""
            context.log.error("cannot claim jobs: %s; trying again %s%s", text, pace, hint)
        return complaint.pause(REFUSED_RETRY, FORBIDDEN_RETRY) if forbidden else REFUSED_RETRY

    def end(self) -> None:
        """Note that a claim was answered."""
        self._worked = True
        if self._complaint.end():
            self._context.log.info("claiming jobs again")
