"""The places that a pool's connections have in the budget: one each, from before it counts until it is closed.

A connection without a place introduces itself as a ``probe`` and asks over itself, so that asking takes no further
connection. Whether another process waits is asked in front of a caller's command and read with its reply: no round
trip.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from redis.exceptions import RedisError

from ..capacity.budget import Lease, execute_on
from ..config.settings import Settings
from ..wire import Command
from .book import is_open

#: Seconds between looks whether another process waits.
_LOOK_INTERVAL = 0.1
#: Seconds that a returned connection is waited for whose caller has read no reply.
_SOON = 0.5


class Places(Lease):
    """The lease of a pool, with the number of its connections that have a place.

    Args:
        settings: as for ``Lease``.
        make_probe: as for ``Lease``.
    """

    def __init__(self, settings: Settings, make_probe: Callable[[], Any]) -> None:
        super().__init__(settings, 1, 1, make_probe)
        self._placed: set[Any] = set()
        self._looked_at = float("-inf")
        self._look_closer = False
        self._may_shed = False

    @property
    def used(self) -> int:
        """Return how many connections have a place."""
        return len(self._placed)

    @property
    def surplus(self) -> bool:
        """Tell whether fewer connections are granted than have a place: close one more."""
        with self._book:
            return self.used > self.granted

    def claim(self, connection: Any) -> bool:
        """Tell whether a connection has a place, or give it one that is reserved already.

        False: there is none, or it may have been lost.
        """
        with self._book:
            if connection not in self._placed:
                if self.overdue or self.used >= self.granted:
                    return False
                self._placed.add(connection)
            return True

    def ask_for_one(self, connection: Any) -> bool:
        """Give ``connection``, which is connected and unnamed, a place if the server grants one more."""
        self.ask(execute_on(connection), self.used + 1)
        return self.claim(connection)

    def leave(self, connection: Any) -> None:
        """Note that a connection is closed. Its place stays reserved for the next until ``give_back`` is sent."""
        with self._book:
            self._placed.discard(connection)

    def give_back(self, connection: Any) -> list[Command]:
        """Return the commands that give back the place of a connection, and any without one; their replies may be lost.

        None of them if it has no place.
        """
        with self._book:
            if connection not in self._placed:
                return []
            self._placed.discard(connection)
            return [self.command(self.used, wish=0.0)]

    def release(self) -> list[Command]:
        """Return the commands that give all of it back, and forget who has a place."""
        with self._book:
            self._placed.clear()
            return super().release()

    def look(self, now: float) -> tuple[Command, Callable[[Any], None]] | None:
        """Return a command that tells whether others wait, and what reads its reply; None while it need not be sent.

        A pool with one connection has nothing to give and does not look.
        """
        with self._book:
            unused = self.granted > max(1, self.used)
            if not (unused or self.used > 1) or now - self._looked_at < _LOOK_INTERVAL:
                return None
            self._looked_at = now
            if unused or self.crowded or self._look_closer:
                self._look_closer = False
                return self.command(), self._read
            return ("EXISTS", self._keys[3]), self._glance

    def may_shed(self) -> bool:
        """Tell, once per reply, whether to close a connection that is still in demand: a process waits that has
        none.
        """
        with self._book:
            may, self._may_shed = self._may_shed and self.starving and self.used > 1, False
            return may

    def accept(self, reply: Any) -> bool:
        """Read the reply to a ``command``, see ``Lease``."""
        stands = super().accept(reply)
        self._may_shed = self.starving
        return stands

    def _needed(self) -> int:
        return max(1, self.used)

    def _glance(self, reply: Any) -> None:
        self._look_closer = reply == 1

    def _read(self, reply: Any) -> None:
        self.accept(reply)


class _Owing:
    """Mixed in front of a connection class of redis-py: the reply to one command of ours is read before the
    caller's.
    """

    _owed: Callable[[Any], None] | None = None

    def send_ahead(self, words: Command, read: Callable[[Any], None]) -> None:
        """Send a command whose reply ``read`` gets, an exception if it is an error, before the next reply is read."""
        self.send_command(*words, check_health=False)  # type: ignore[attr-defined]
        self._owed = read

    def settle(self) -> None:
        """Read the reply that is owed, if there is one."""
        read, self._owed = self._owed, None
        if read is None:
            return
        try:
            reply: Any = super().read_response(disable_decoding=True)  # type: ignore[misc]
        except RedisError as error:
            if not is_open(self):
                # The connection is lost, and the caller's reply with it.
                raise
            reply = error
        read(reply)

    def settle_soon(self) -> None:
        """Read the reply that is owed, or close where it does not come soon: the caller did not wait for its own."""
        if self._owed is not None:
            if super().can_read(_SOON):  # type: ignore[misc]
                self.settle()
            else:
                self.disconnect()

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read what is owed, then as ever."""
        self.settle()
        return super().read_response(*args, **options)  # type: ignore[misc]

    def can_read(self, *args: Any, **options: Any) -> Any:
        """Tell whether there is anything to read for the caller."""
        if self._owed is not None:
            if not super().can_read(*args, **options):  # type: ignore[misc]
                return False
            self.settle()
        return super().can_read(*args, **options)  # type: ignore[misc]

    def disconnect(self, *args: Any, **options: Any) -> Any:
        """Close as ever; what was owed never comes."""
        self._owed = None
        return super().disconnect(*args, **options)  # type: ignore[misc]


@cache
def owing(connection_class: type[Any]) -> type[Any]:
    """Return a subclass that can send a command ahead; the same one each time."""
    return type(connection_class.__name__, (_Owing, connection_class), {"__module__": connection_class.__module__})
