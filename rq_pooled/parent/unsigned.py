"""Says, once an hour, how many jobs ran without a signature: while keys are introduced, and by mistake."""

from __future__ import annotations

import time

from .context import Context

#: Seconds between two lines.
SAY_EVERY = 3600.0


class UnsignedJobs:
    """Looks at the counter after each outcome."""

    def __init__(self, context: Context) -> None:
        self._context = context
        #: How many had run when that was said last, and when.
        self._said, self._said_at = 0, -SAY_EVERY

    def look(self) -> None:
        """Log a line if there were more since the last one, an hour ago."""
        count = self._context.counters.unsigned
        if count == self._said or time.monotonic() - self._said_at < SAY_EVERY:
            return
        self._context.log.warning(
            "%d jobs without a signature ran so far, since SIGNING=accept-unsigned: who can write to Redis can run "
            "code here",
            count,
        )
        self._said, self._said_at = count, time.monotonic()
