"""How a pool is made smaller while it is used: slots are withheld from the queue of free ones, and put back later."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from typing import Any


class Sizes:
    """The bounds that others set on a pool, and the slots withheld for them.

    Args:
        most: the pool's own bound.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bounds: dict[str, int] = {}
        self._withheld: list[Any] = []

    @property
    def size(self) -> int:
        """The connections that may be used now, at least 1."""
        return max(1, min(self._most, *self._bounds.values())) if self._bounds else self._most

    @property
    def reason(self) -> str | None:
        """Who set the lowest bound, None if it is the pool's own."""
        if self.size == self._most:
            return None
        return min(self._bounds, key=lambda name: self._bounds[name])

    @property
    def withheld(self) -> int:
        """Return how many slots are withheld now."""
        return len(self._withheld)

    def set(self, queue: Queue[Any], reason: str, size: int | None, is_open: Callable[[Any], bool] = bool) -> list[Any]:
        """Set or lift (None) a bound, and return the connections that are withheld now and have to be closed.

        Connections in use are withheld when they come back, see ``keeps``. Slots without an open one are withheld
        first.
        """
        withheld = []
        with queue.mutex:  # redis-py itself reads ``queue`` here; the end of the list is given out first
            if size is None:
                self._bounds.pop(reason, None)
            else:
                self._bounds[reason] = size
            surplus = self._most - self.size
            while len(self._withheld) < surplus and queue.queue:
                spare = (i for i, slot in enumerate(queue.queue) if slot is None or not is_open(slot))
                slot = queue.queue.pop(next(spare, 0))
                self._withheld.append(slot)
                if slot is not None:
                    withheld.append(slot)
            while len(self._withheld) > surplus:
                queue.queue.insert(0, self._withheld.pop())
                queue.not_empty.notify()
        return withheld

    def keeps(self, queue: Queue[Any], slot: Any) -> bool:
        """Withhold a slot that comes back, if there are too few withheld; return whether it was."""
        if not self._bounds:
            return False
        with queue.mutex:
            if len(self._withheld) >= self._most - self.size:
                return False
            self._withheld.append(slot)
            return True
