"""The parent's end of the connections that jobs have to it, which take the place of connections to the server."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..horse.stream import ERROR
from ..process.event_loop import Loop

if TYPE_CHECKING:
    from .loan import Loan

#: Bytes of one command, and of commands that wait for replies on the shared connection, beyond which a stream is lent a
#: connection: what one sends must not hold up the others.
LONG_REQUEST = 64 * 1024
#: Bytes of a reply beyond which its stream is lent connections until its job ends.
LONG_REPLY = 1024 * 1024
#: Bytes of replies that one horse may leave unread.
MOST_UNREAD = 4 * 1024 * 1024


class Guest:
    """One horse, with whatever it forks: who may open streams.

    Args:
        describe: says in words what it does, for messages.
    """

    def __init__(self, describe: Callable[[], str]) -> None:
        self.token = secrets.token_hex(16).encode()
        self.describe = describe
        self.streams: set[Stream] = set()
        #: Bytes of replies that its processes have not read.
        self.unread = 0


class Stream:
    """One connection of a guest. Nothing here ever waits.

    Args:
        loop: watches it.
        accepted: its socket.
        on_readable, on_flushed, on_closed: called from the loop with this.
    """

    __slots__ = (
        *("_loop", "_on_closed", "_on_flushed", "_on_readable", "_reading", "_replies", "_socket", "closed", "data"),
        *("exclusive", "guest", "in_reply", "loan", "own_next", "pending", "queued", "since", "under_way", "waits_for"),
    )

    def __init__(
        self,
        loop: Loop,
        accepted: socket.socket,
        now: float,
        on_readable: Callable[[Stream], None],
        on_flushed: Callable[[Stream], None],
        on_closed: Callable[[Stream], None],
    ) -> None:
        self._loop = loop
        self._socket = accepted
        self._on_readable = on_readable
        self._on_flushed = on_flushed
        self._on_closed = on_closed
        self._reading = True
        self._replies = bytearray()
        self.guest: Guest | None = None
        self.closed = False
        #: What it has sent and is not passed on yet.
        self.data = b""
        #: Replies of the shared connection that it waits for, and bytes sent there since it waited for none.
        self.pending = 0
        self.under_way = 0
        #: Part of a reply has been given to it.
        self.in_reply = False
        #: Until its job ends, all it sends goes over connections that it is lent; or only what it sends next.
        self.exclusive = False
        self.own_next = False
        self.loan: Loan | None = None
        #: Why it is not served, and since when; None when it is.
        self.waits_for: str | None = None
        self.since = now
        #: It is among those that are to be served.
        self.queued = False
        self._watch()

    # -- reading -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self.closed:
            return
        if self._reading or self._replies:
            readable = self._readable if self._reading else None
            self._loop.watch(self._socket, readable, self._flush if self._replies else None)
        else:
            self._loop.unwatch(self._socket)

    def _readable(self) -> None:
        self._loop.minor_calls += 1
        self._on_readable(self)

    def receive(self, size: int) -> bytes | None:
        """Return what is here, at most ``size`` bytes; None if nothing is, nothing at the end."""
        try:
            return self._socket.recv(size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    @property
    def is_plain(self) -> bool:
        """Tell whether its next command may be shared, as far as that is up to the stream."""
        return (
            self.guest is not None
            and self.loan is None
            and self.waits_for is None
            and not (self.exclusive or self.own_next)
        )

    def read_on(self, reading: bool) -> None:
        """Read from it, or leave what it sends to the kernel, which makes it wait."""
        if reading != self._reading:
            self._reading = reading
            self._watch()

    def has_left(self) -> bool:
        """Tell whether the other end is closed, whatever else may be waiting to be read."""
        if self.closed:
            return True
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def wait(self, reason: str | None, now: float) -> None:
        """Serve it no more until this is called with None."""
        self.waits_for, self.since = reason, now

    # -- replies -------------------------------------------------------------------------------------------------

    @property
    def unread(self) -> int:
        """Return the bytes of replies that the kernel has not taken."""
        return len(self._replies)

    def deliver(self, data: bytes) -> None:
        """Send a piece of its replies; what it does not take yet is kept."""
        if self.closed or not data:
            return
        sent = 0
        if not self._replies:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.close()
                return
        if sent < len(data):
            begins = not self._replies
            self._replies += memoryview(data)[sent:]
            if self.guest is not None:
                self.guest.unread += len(data) - sent
            if begins:
                self._watch()

    def _flush(self) -> None:
        before = len(self._replies)
        try:
            while self._replies:
                del self._replies[: self._socket.send(memoryview(self._replies)[: 256 * 1024])]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            return
        if self.guest is not None:
            self.guest.unread -= before - len(self._replies)
        if not self._replies:
            self._watch()
        self._on_flushed(self)

    def refuse(self, kind: str, reason: str) -> None:
        """Answer with an error of our own, in the place of the reply that it waits for, and close."""
        if not self.in_reply:
            self.deliver(f"-{ERROR} {kind} {' '.join(reason.split())}\r\n".encode())
        self.close()

    def is_clean(self) -> bool:
        """Tell whether it waits for nothing and is owed nothing."""
        return not (self.pending or self.data or self._replies or self.loan or self.waits_for)

    def close(self) -> None:
        """Close it. Replies that come for it are dropped."""
        if self.closed:
            return
        self.closed = True
        self._loop.unwatch(self._socket)
        self._socket.close()
        if self.guest is not None:
            self.guest.unread -= len(self._replies)
            self.guest.streams.discard(self)
        self.data = b""
        self._on_closed(self)

    def close_in_child(self) -> None:
        """Close a forked copy of the descriptor."""
        with contextlib.suppress(OSError):
            self._socket.close()
