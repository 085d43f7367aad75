"""What a worker does while the server's access control refuses to record outcomes."""

from __future__ import annotations

import time

from ..config.secrets import message_of
from ..connection.away import NEEDED_RIGHTS
from ..errors import USAGE
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
        self._ending = burst
        #: Refusals in a row, when the first came, when that was said last, and until when nothing is sent.
        self._refusals = 0
        self._since = 0.0
        self._said_at: float | None = None
        self._paused_until = 0.0
        events.shutdown_began.append(self._on_shutdown)

    def _on_shutdown(self) -> None:
        self._ending = True

    def __bool__(self) -> bool:
        return self._refusals > 0

    @property
    def paused(self) -> bool:
        """Tell whether sending again is no use yet."""
        return bool(self) and time.monotonic() < self._paused_until

    def add(self, count: int, reason: str) -> bool:
        """Note that so many outcomes were refused; return whether to keep them, which a worker that ends does not."""
        context, now, reason = self._context, time.monotonic(), message_of(reason).rstrip(".")
        if not self._refusals:
            self._since = now
        self._refusals += 1
        waited = now - self._since
        if self._ending and waited > context.settings.guard_wait:
            text = f"cannot record outcomes: {reason}; tried for {waited:.0f} s (GUARD_WAIT)"
            self._events.work_refused(text, USAGE)
            return False
        if self._said_at is None or now - self._said_at >= SAY_AGAIN:
            self._said_at = now
            text = "cannot record outcomes of %d jobs: %s; taking no jobs until it can; %s"
            context.log.error(text, count, reason, NEEDED_RIGHTS)
        pause = min(FORBIDDEN_FIRST * 2 ** min(self._refusals - 1, 10), FORBIDDEN_RETRY)
        self._paused_until = now + pause
        # The loop's next turn sends them.
        context.loop.call_later(pause, lambda: None)
        return True

    def end(self) -> None:
        """Note that a commit was allowed."""
        if self._refusals:
            self._refusals, self._said_at = 0, None
            self._context.log.info("recording outcomes again")
