"""An error that comes back again and again: how often, and when to say so."""

from __future__ import annotations

import time

#: Seconds until what is refused for the same reason is said again.
SAY_AGAIN = 600.0


class Complaint:
    """Counts refusals in a row. Each reason is to be said once, and again after some time.

    Args:
        say_again: the seconds until then.
    """

    def __init__(self, say_again: float = SAY_AGAIN) -> None:
        self._say_again = say_again
        #: Refusals in a row, and when the first of them came.
        self.count = 0
        self._since = 0.0
        #: The reason that was said last, and when.
        self._said: tuple[str, float] | None = None

    @property
    def seconds(self) -> float:
        """Return how long ago the first refusal came."""
        return time.monotonic() - self._since

    def add(self, reason: str) -> bool:
        """Count a refusal; tell whether to say its reason."""
        now = time.monotonic()
        if not self.count:
            self._since = now
        self.count += 1
        if self._said is not None and self._said[0] == reason and now - self._said[1] < self._say_again:
            return False
        self._said = reason, now
        return True

    def pause(self, first: float, longest: float) -> float:
        """Return the seconds until the next try, which double with each refusal."""
        return min(first * 2.0 ** min(self.count - 1, 10), longest)

    def end(self) -> bool:
        """Forget the refusals; tell whether there were some."""
        ended, self.count, self._said = self.count > 0, 0, None
        return ended
