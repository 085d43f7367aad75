"""What the parent's two connections have in common: they are opened anew by their owner, and never by redis-py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class RoleConnection:
    """One connection of the parent to the server, of one role.

    Args:
        make: opens nothing yet, but returns a new redis-py connection object of this role.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._connection: Any = None

    @property
    def connected(self) -> bool:
        """Tell whether it is open, as far as is known."""
        return self._connection is not None

    def fresh(self) -> Any:
        """Return a new redis-py connection to the same server, not connected."""
        return self._make()

    def fileno(self) -> int:
        """Return the descriptor, for the selector."""
        descriptor: int = self._connection._sock.fileno()
        return descriptor

    def close(self) -> None:
        """Close; ``connect`` opens it again."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.disconnect()

    def close_in_child(self) -> None:
        """Close a forked copy of the descriptor; a shutdown would end the parent's connection, too."""
        if self._connection is not None and self._connection._sock is not None:
            self._connection._sock.close()
            self._connection._sock = None
        self._connection = None
