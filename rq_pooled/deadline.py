"""One deadline for everything that a call does on the network: waiting for a connection, opening it, sending, reading.

redis-py knows timeouts for single steps only: a call that waits for the pool, connects and then reads may spend each of
them, one after another. Here the caller says once how long it has (``within``), and every step takes what is left.
Kept in a context variable: each thread, greenlet and asyncio task has its own. What cannot be cut short is the look-up
of a host's name, which the operating system does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Deadline:
    """When the caller has to have an answer (``time.monotonic()``), and the setting that says so, for messages."""

    ends: float
    setting: str

    def left(self) -> float:
        """Return the seconds that are left, below 0 when it is over."""
        return self.ends - time.monotonic()


#: Seconds by which a step may take longer than what is left.
_TOLERANCE = 0.01

_current: ContextVar[Deadline | None] = ContextVar("rq_pooled_deadline", default=None)


@contextmanager
def within(seconds: float, setting: str) -> Iterator[None]:
    """Give everything inside, all commands together, ``seconds``. Inside another deadline the earlier one counts.

    Args:
        setting: what to change to have more, as messages name it.
    """
    ends, outer = time.monotonic() + seconds, _current.get()
    if outer is not None and outer.ends <= ends:
        yield
        return
    token = _current.set(Deadline(ends, setting))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Deadline | None:
    """Return the deadline of the running call, None if it has none."""
    return _current.get()


def clipped(timeout: float | None) -> float | None:
    """Return ``timeout`` (seconds, None for ever) or what is left of the deadline if that is less; never below 1 ms."""
    deadline = _current.get()
    if deadline is None:
        return timeout
    left = max(0.001, deadline.left())
    return left if timeout is None else min(timeout, left)


def hurried(connection_class: type[Any]) -> type[Any]:
    """Return a subclass of one of redis-py's connection classes that keeps the deadline of the call that uses it."""
    made = _classes.get(connection_class)
    if made is None:
        made = type(f"Hurried{connection_class.__name__}", (_Hurried, connection_class), {"__module__": __name__})
    return _classes.setdefault(connection_class, made)


#: There are but a few.
_classes: dict[type[Any], type[Any]] = {}


class _Hurried:
    """Mixed in front of a connection class; ``_connect`` is where each of them makes its socket."""

    _socket_connect_timeout: float | None = None
    socket_timeout: float | None

    # redis-py reads it once for each address that a host has: together they have one deadline.
    @property
    def socket_connect_timeout(self) -> float | None:
        return clipped(self._socket_connect_timeout)

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, value: float | None) -> None:
        self._socket_connect_timeout = value  # where redis-py 8 keeps it, too

    def _connect(self) -> Any:
        own = self.socket_timeout
        self.socket_timeout = clipped(own)  # for the handshake of TLS
        try:
            connected: Any = super()._connect()  # type: ignore[misc]
        finally:
            self.socket_timeout = own
        return _HurriedSocket(connected, own)


class _HurriedSocket:
    """A socket whose every send and receive takes at most what is left; all else is the socket's own.

    A timeout set once would not do: a reply comes in many pieces, and each of them may take as long.
    """

    __slots__ = ("_set", "_socket", "_timeout")

    def __init__(self, connected: Any, timeout: float | None) -> None:
        self._socket = connected
        self.settimeout(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = self._set = timeout
        self._socket.settimeout(timeout)

    def recv(self, *args: Any) -> Any:
        self._hurry()
        return self._socket.recv(*args)

    def recv_into(self, *args: Any) -> Any:
        self._hurry()
        return self._socket.recv_into(*args)

    def sendall(self, *args: Any) -> Any:
        self._hurry()
        return self._socket.sendall(*args)

    def _hurry(self) -> None:
        deadline, wanted = _current.get(), self._timeout
        if deadline is not None and wanted != 0:  # 0: looking whether there is anything
            left = deadline.left()
            if left <= 0:
                raise TimeoutError("timed out")
            if wanted is None or left < wanted:
                # A call makes several system calls within a millisecond: most need no other timeout than the last.
                if self._set is not None and abs(self._set - left) < _TOLERANCE:
                    return
                wanted = left
        if wanted != self._set:
            self._set = wanted
            self._socket.settimeout(wanted)
