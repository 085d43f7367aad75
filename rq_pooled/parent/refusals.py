"""What a worker does while the server refuses its claims, and its looks at the queues."""

from __future__ import annotations

import time

from redis.exceptions import ResponseError

from ..config.secrets import message_of
from ..connection.away import NEEDED_RIGHTS, is_forbidden
from ..errors import TRY_AGAIN, USAGE
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
        #: Refusals in a row, when the first came, and when which reason was logged last.
        self._refusals = 0
        self._since = 0.0
        self._said: tuple[str, float] | None = None
        #: A claim has been answered: the user had every right.
        self._worked = False

    def add(self, error: ResponseError) -> float | None:
        """Return after how many seconds to try again, None if the worker ends."""
        context, now, text = self._context, time.monotonic(), message_of(error).rstrip(".")
        forbidden = is_forbidden(error)
        if not self._refusals:
            self._since = now
        self._refusals += 1
        if forbidden and (self._burst or not self._worked):
            reason = f"the server's access control refuses what a worker does: {text}; {NEEDED_RIGHTS}"
            self._events.work_refused(reason, USAGE)
            return None
        if self._burst and now - self._since > context.settings.guard_wait:
            tried = f"tried {self._refusals} times in {now - self._since:.0f} s (GUARD_WAIT)"
            self._events.work_refused(f"cannot claim jobs: {text}; {tried}", TRY_AGAIN)
            return None
        if self._said is None or self._said[0] != text or now - self._said[1] >= SAY_AGAIN:
            self._said = text, now
            pace = "more and more rarely" if forbidden else "every second"
            hint = f"; {NEEDED_RIGHTS}" if forbidden else ""
            context.log.error("cannot claim jobs: %s; trying again %s%s", text, pace, hint)
        return min(REFUSED_RETRY * 2 ** min(self._refusals - 1, 10), FORBIDDEN_RETRY) if forbidden else REFUSED_RETRY

    def end(self) -> None:
        """Note that a claim was answered."""
        self._worked = True
        if self._refusals:
            self._refusals, self._said = 0, None
            self._context.log.info("claiming jobs again")
