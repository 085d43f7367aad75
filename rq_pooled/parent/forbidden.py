"""What a worker does while the server's access control refuses to record outcomes."""

from __future__ import annotations

import time

from ..config.secrets import message_of
from ..connection.away import NEEDED_RIGHTS
from ..errors import USAGE
from .complaint import Complaint
from .context import Context
from .events import Events

#: Seconds until refused outcomes are sent again, at first and at most, and between two lines about it.
FORBIDDEN_FIRST, FORBIDDEN_RETRY, SAY_AGAIN = 0.5, 15.0, 300.0


class Forbidden:
    """Counts refusals in a row, says why they come, and how long to wait; a worker that ends waits for GUARD_WAIT.

    Args:
        context, events: as the names say.
        burst: the worker ends when nothing is under way any more, as it does once a shutdown has begun.
    """

    def __init__(self, context: Context, events: Events, *, burst: bool) -> None:
        self._context = context
        self._events = events
        self._burst = burst
        self._complaint = Complaint(SAY_AGAIN)
        #: Until when nothing is sent.
        self._paused_until = 0.0

    def __bool__(self) -> bool:
        return self._complaint.count > 0

    @property
    def paused(self) -> bool:
        """Tell whether sending again is no use yet."""
        return bool(self) and time.monotonic() < self._paused_until

    def add(self, count: int, reason: str) -> bool:
        """Note that so many outcomes were refused; return whether to keep them, which a worker that ends does not."""
        context, complaint, reason = self._context, self._complaint, message_of(reason).rstrip(".")
        # Reasons differ from job to job, and none is news.
        is_news, waited = complaint.add(""), complaint.seconds
        ending = self._burst or self._events.shutdown_began.happened
        if ending and waited > context.settings.guard_wait:
            text = f"cannot record outcomes: {reason}; tried for {waited:.0f} s (GUARD_WAIT)"
            self._events.work_refused(text, USAGE)
            return False
        if is_news:
            text = "cannot record outcomes of %d jobs: %s; taking no jobs until it can; %s"
            context.log.error(text, count, reason, NEEDED_RIGHTS)
        pause = complaint.pause(FORBIDDEN_FIRST, FORBIDDEN_RETRY)
        self._paused_until = time.monotonic() + pause
        # The loop's next turn sends them.
        context.loop.call_later(pause, lambda: None)
        return True

    def end(self) -> None:
        """Note that a commit was allowed."""
        if self._complaint.end():
            self._context.log.info("recording outcomes again")
