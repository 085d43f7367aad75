"""An error that comes back again and again, in few lines."""

from __future__ import annotations

import time

from redis.exceptions import ResponseError

from ..log_lines import WorkerLog

#: Seconds until what is refused for the same reason is said again.
SAY_AGAIN = 600.0


class Complaint:
    """Says that the server refuses something: once for each reason, and again after SAY_AGAIN.

    Args:
        log: where it is said.
        what: is refused, in words that the reason follows.
    """

    def __init__(self, log: WorkerLog, what: str) -> None:
        self._log = log
        self._what = what
        #: The reason that was said last, and when.
        self._said: tuple[str, float] | None = None

    def refused(self, error: ResponseError) -> None:
        """Log the reason, unless that was done a short time ago."""
        now, reason = time.monotonic(), str(error)
        if self._said is None or self._said[0] != reason or now - self._said[1] >= SAY_AGAIN:
            self._said = reason, now
            self._log.error("%s: %s", self._what, reason)

    def allowed(self) -> None:
        """Forget what was said: the next refusal is news."""
        self._said = None
