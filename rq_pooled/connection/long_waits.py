"""Lets a job that has connections of its own wait in Redis for as long as its command says, as in stock RQ.

Where jobs share their worker's connections the parent keeps this time, see multiplexer/lending.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from .command_table import SUBSCRIBE, block_of, may_block


class Patient:
    """Mixed in front of a connection class of redis-py: what a command waits comes on top of SOCKET_TIMEOUT."""

    socket_timeout: float | None
    _sock: Any
    #: Seconds that the commands may wait which were sent last, None for ever.
    _wait: float | None = 0.0

    def send_command(self, *args: Any, **options: Any) -> Any:
        """Send as ever."""
        self._wait = _seconds(args)
        return super().send_command(*args, **options)  # type: ignore[misc]

    def pack_commands(self, commands: Iterable[Sequence[Any]]) -> Any:
        """Pack the commands of a pipeline as ever."""
        commands = list(commands)
        waits = [_seconds(args) for args in commands]
        self._wait = None if None in waits else max((wait for wait in waits if wait is not None), default=0.0)
        return super().pack_commands(commands)  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read as ever."""
        usual = self.socket_timeout
        if self._wait == 0.0 or usual is None or self._sock is None:
            return super().read_response(*args, **options)  # type: ignore[misc]
        self._sock.settimeout(None if self._wait is None else usual + self._wait)
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        finally:
            if self._sock is not None:
                self._sock.settimeout(usual)


@cache
def patient(connection_class: type[Any]) -> type[Any]:
    """Return a subclass that waits; the same one each time."""
    return type(connection_class.__name__, (Patient, connection_class), {"__module__": connection_class.__module__})


def _seconds(args: Sequence[Any]) -> float | None:
    """Return what ``block_of`` says of a command as redis-py takes it: its first word may be several."""
    first = args[0] if args else b""
    names = (first.encode() if isinstance(first, str) else bytes(first)).upper().split()
    if not names or not may_block(names[0]):
        return None if names and names[0] in SUBSCRIBE else 0.0
    return block_of([*names, *(word if isinstance(word, bytes) else str(word).encode() for word in args[1:])])
