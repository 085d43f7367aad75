"""The queue of a pool's free slots: which is given out next, and how a pool is made smaller while it is used.

A slot holds an idle connection or None. A smaller pool withholds slots from the queue, and puts them back later.
"""

from __future__ import annotations

import queue
import sys
import threading
from queue import Full
from typing import Any

from .book import Book, is_open


class FreeSlots:
    """The slots of one pool.

    ``queue.mutex`` guards them: the lock that the waiters of the queue sleep on. redis-py itself reads ``queue.queue``,
    whose end is given out first.

    Args:
        free: the pool's queue, full.
        most: the pool's own bound.
        book: knows and closes the connections.
    """

    def __init__(self, free: Any, most: int, book: Book) -> None:
        self.most = most
        self.free = free
        self._book = book
        self._bounds: dict[str, int] = {}
        self._withheld: list[Any] = []

    @property
    def size(self) -> int:
        """The connections that may be used now, at least 1."""
        return max(1, min(self.most, *self._bounds.values())) if self._bounds else self.most

    @property
    def reason(self) -> str | None:
        """Who set the lowest bound, None if it is the pool's own."""
        return None if self.size == self.most else min(self._bounds, key=lambda name: self._bounds[name])

    @property
    def count(self) -> int:
        """Return how many slots are not held, the withheld ones included."""
        return len(self.free.queue) + len(self._withheld)

    def idle(self) -> list[Any]:
        """Return the idle open connections, the next to be given out last."""
        return [slot for slot in list(self.free.queue) if slot is not None and is_open(slot)]

    def resize(self, reason: str, size: int | None) -> None:
        """Set or lift (None) a bound, and close the connections that are beyond it now.

        Those in use are closed when they come back. Slots without an open connection are withheld first.
        """
        surplus = []
        with self.free.mutex:
            if size is None:
                self._bounds.pop(reason, None)
            else:
                self._bounds[reason] = size
            withhold, slots = self.most - self.size, self.free.queue
            while len(self._withheld) < withhold and slots:
                spare = (i for i, slot in enumerate(slots) if slot is None or not is_open(slot))
                self._withheld.append(slots.pop(next(spare, 0)))
                surplus.append(self._withheld[-1])
            while len(self._withheld) > withhold:
                slots.insert(0, self._withheld.pop())
                self.free.not_empty.notify()
        for connection in filter(None, surplus):
            self._book.close(connection, f"pool made smaller: {reason}")

    def put(self, connection: Any) -> None:
        """Put a slot back, or withhold it while too few are withheld."""
        if self._withholds(connection):
            if connection is not None:
                self._book.close(connection, f"pool made smaller: {self.reason}")
            return
        try:
            with self.free.mutex:
                self.free.put_nowait(connection)
                if connection is None or not is_open(connection):
                    # The next caller gets an open one.
                    slots = self.free.queue
                    slot = slots.pop()
                    first_open = (i for i, c in enumerate(slots) if c is not None and is_open(c))
                    slots.insert(next(first_open, len(slots)), slot)
        except Full:
            # The pool was reset in between: no caller waits for the slot.
            if connection is not None:
                connection.disconnect()

    def take_idle(self, now: float, age: float, keep: int) -> list[Any]:
        """Empty the slots of connections idle for ``age`` seconds, but of ``keep`` open ones; return the connections.

        Last in, first out, so the bottom shows the surplus.
        """
        taken = []
        with self.free.mutex:
            most = len(self.idle()) - keep
            for i, connection in enumerate(self.free.queue):
                if connection is None:
                    continue
                open_now = is_open(connection)
                if now - self._book.lines[connection].released_at < age or (open_now and most <= 0):
                    if open_now:
                        break
                    continue
                most -= open_now
                self.free.queue[i] = None
                taken.append(connection)
        return taken

    def take_last(self) -> Any:
        """Empty the slot of an idle open connection and return it; None if there is none."""
        with self.free.mutex:
            for connection in reversed(self.idle()):
                self.free.queue[self.free.queue.index(connection)] = None
                return connection
        return None

    def _withholds(self, slot: Any) -> bool:
        if not self._bounds:
            return False
        with self.free.mutex:
            if len(self._withheld) >= self.most - self.size:
                return False
            self._withheld.append(slot)
            return True


def make_queue(size: int) -> Any:
    """Return the standard library's LifoQueue, also where gevent has replaced it, with a lock like the pool's.

    gevent's own has no ``mutex``. The original, made now, waits with whatever locks ``threading`` has: gevent's.
    """
    monkey = sys.modules.get("gevent.monkey")
    made: Any = (monkey.get_original("queue", "LifoQueue") if monkey is not None else queue.LifoQueue)(size)
    made.mutex = threading.RLock()
    made.not_empty, made.not_full, made.all_tasks_done = (threading.Condition(made.mutex) for _ in range(3))
    return made
