"""What may hang on a pool: the moments at which it calls others, and how they say that nothing can be opened now.

A hook belongs to one pool and keeps no reference to it: a pool that is dropped closes its connections at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..capacity.stop_flag import Brake
from ..connection.long_waits import patient
from ..errors import PoolExhausted, RedisUnavailable
from ..wire import Command

if TYPE_CHECKING:
    from .pool import Pool


class NotNow(Exception):
    """A connection cannot be opened now, and later it may.

    Args:
        bound: the setting that is in the way.
        error: what a caller gets that cannot wait any longer.
        again: seconds until the next try, growing from the first figure to the second, jittered.
        logged: whether such errors are logged, too.
    """

    def __init__(
        self, bound: str, error: RedisUnavailable, again: tuple[float, float] = (0.05, 1.0), logged: bool = False
    ) -> None:
        super().__init__(bound)
        self.bound = bound
        self.error = error
        self.again = again
        self.logged = logged


class Hook:
    """Does nothing at any moment; a hook overrides what concerns it. Only ``on_close`` is called under locks."""

    def equip(self, connection_class: Any, options: dict[str, Any]) -> Any:
        """Return the class of a connection that is made next; ``options`` may be changed."""
        return connection_class

    @contextmanager
    def opening(self, pool: Pool, connection: Any) -> Iterator[None]:
        """Wrap the opening of a connection.

        Raises:
            NotNow: it may not be opened, or not be used.
        """
        yield

    def before_use(self, pool: Pool, connection: Any) -> None:
        """Look at an idle connection that a caller gets; it may be closed, then the pool opens it anew.

        Raises:
            NotNow: it may not be used.
        """

    def on_return(self, pool: Pool, connection: Any) -> None:
        """Use, or close, a connection that comes back, before others can take it."""

    def at_rest(self, pool: Pool, now: float) -> None:
        """Look at the pool after a connection has come back."""

    def on_close(self, connection: Any) -> None:
        """Note that a connection is closed; called once or more. It must not wait."""

    def last_words(self, connection: Any = None) -> Sequence[Command]:
        """Return commands that give back what an idle connection (None: the whole pool) has on the server."""
        return ()

    def at_exit(self) -> Sequence[Command]:
        """Return the last commands of this process."""
        return self.last_words()


class StopFlag(Hook):
    """Lets a horse open nothing while its parent's guard says ``stop``.

    Args:
        flag: the memory that the parent shares.
    """

    def __init__(self, flag: Brake) -> None:
        self._flag = flag

    @contextmanager
    def opening(self, pool: Pool, connection: Any) -> Iterator[None]:
        """Refuse while the flag is set."""
        if self._flag.engaged:
            words = (
                f"no connection to {pool.address} may be opened: the server is full above GUARD_STOP. "
                "Close connections, or raise the server's maxclients"
            )
            raise NotNow("GUARD_STOP", PoolExhausted(words), (0.05, 0.05))
        yield


class LongWaits(Hook):
    """Lets the commands of a job that wait in Redis take longer than SOCKET_TIMEOUT, see connection/long_waits.py."""

    def equip(self, connection_class: Any, options: dict[str, Any]) -> Any:
        """Return a class that waits as long as its command says."""
        return patient(connection_class)
