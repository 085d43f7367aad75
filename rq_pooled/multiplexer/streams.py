"""Defines the parent's end of the jobs' connections to it, which replace connections to the server."""

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

#: The most bytes of one command, and of a stream's unanswered commands on the shared connection. Beyond it the stream
#: is lent a connection, because one stream must not hold up the others.
LONG_REQUEST = 64 * 1024
#: Bytes of a reply beyond which its stream is lent connections until its job ends.
LONG_REPLY = 1024 * 1024
#: Bytes of replies that one horse may leave unread.
MOST_UNREAD = 4 * 1024 * 1024


class Guest:
    """One horse and the processes that it forks, which may open streams.

    Args:
        describe: returns a text of what the horse does, for messages.
    """

    def __init__(self, describe: Callable[[], str]) -> None:
        self.token = secrets.token_hex(16).encode()
        self.describe = describe
        self.streams: set[Stream] = set()
        #: Bytes of replies that its processes have not read.
        self.unread = 0


class Stream:
    """One connection of a guest. No method waits.

    Args:
        loop: watches the socket.
        accepted: the accepted socket.
        on_readable, on_flushed, on_closed: called from the loop with the stream.
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
        #: Bytes that the stream has sent and that are not passed on yet.
        self.data = b""
        #: The replies that it waits for on the shared connection, and the bytes sent there since it waited for none.
        self.pending = 0
        self.under_way = 0
        #: The stream has got part of a reply.
        self.in_reply = False
        #: Lent connections carry all its commands until its job ends, or only the next command.
        self.exclusive = False
        self.own_next = False
        self.loan: Loan | None = None
        #: What the stream waits for, None while it is served, and since when.
        self.waits_for: str | None = None
        self.since = now
        #: The stream stands in the queue of sources to serve.
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
        """Return the bytes that have arrived, at most ``size``; None if there are none, empty bytes at the end."""
        try:
            return self._socket.recv(size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    @property
    def is_plain(self) -> bool:
        """Tell whether the stream's state permits that its next command is shared."""
        return (
            self.guest is not None
            and self.loan is None
            and self.waits_for is None
            and not (self.exclusive or self.own_next)
        )

    def read_on(self, reading: bool) -> None:
        """Start or stop reading; while it is not read, the kernel makes the sender wait."""
        if reading != self._reading:
            self._reading = reading
            self._watch()

    def has_left(self) -> bool:
        """Tell whether the other end is closed and all that it sent has been read."""
        if self.closed:
            return True
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def wait(self, reason: str | None, now: float) -> None:
        """Stop serving the stream until this is called with None."""
        self.waits_for, self.since = reason, now

    # -- replies -------------------------------------------------------------------------------------------------

    @property
    def unread(self) -> int:
        """Return the bytes of replies that the kernel has not taken."""
        return len(self._replies)

    def deliver(self, data: bytes) -> None:
        """Send a piece of the stream's replies; keep what the socket does not take yet."""
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
        """Send an error of ours in place of the awaited reply, and close."""
        if not self.in_reply:
            self.deliver(f"-{ERROR} {kind} {' '.join(reason.split())}\r\n".encode())
        self.close()

    def is_clean(self) -> bool:
        """Tell whether the stream waits for nothing and is owed nothing."""
        return not (self.pending or self.data or self._replies or self.loan or self.waits_for)

    def close(self) -> None:
        """Close the stream; later replies for it are dropped."""
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
