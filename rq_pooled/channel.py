"""Messages between the parent and one horse, over a socketpair: a length, then plain data.

The data is written with ``marshal``: numbers, text, bytes and containers of them, nothing else. Unlike pickle it
never runs code when it is read, so the parent can read what a horse sends after user code ran there; both ends are
forks of one interpreter, so its version never differs.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import socket
import struct
from collections import deque
from typing import Any

_HEADER = struct.Struct(">I")
#: The longest message believed. Redis refuses strings over 512 MB, so a longer one is garbage.
MAX_MESSAGE = 512 * 1024 * 1024
_CHUNK = 64 * 1024


def encode(message: Any) -> bytes:
    """Return ``message`` as it travels: four bytes of length, then its marshalled form."""
    body = marshal.dumps(message)
    return _HEADER.pack(len(body)) + body


class Inbox:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Take ``data`` and return the messages that are complete now, oldest first.

        Raises:
            ValueError, EOFError, TypeError: the bytes are not what ``encode`` writes.
        """
        self._buffer += data
        messages, position = [], 0
        while len(self._buffer) - position >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer, position)
            if size > MAX_MESSAGE:
                raise ValueError(f"a message of {size} bytes was announced; the longest one allowed has {MAX_MESSAGE}")
            end = position + _HEADER.size + size
            if len(self._buffer) < end:
                break
            messages.append(marshal.loads(self._buffer[position + _HEADER.size : end]))
            position = end
        del self._buffer[:position]
        return messages


class ChildChannel:
    """The horse's end: blocking, since a horse has nothing else to do.

    It belongs to the process that made it. A copy of that process, which a job has forked, says nothing and hears EOF.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._pid = os.getpid()
        self._socket = sock
        self._socket.setblocking(True)
        # Linux wakes whoever sleeps in recv, for nothing, whenever the parent has read what was sent before; whoever
        # sleeps in poll it does not. Without this a horse woke up 1.7 times per job.
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._inbox = Inbox()
        self._messages: deque[Any] = deque()

    def send(self, *messages: Any) -> None:
        """Send messages whole; blocks while the parent does not read. Raises OSError when the parent is gone."""
        if os.getpid() != self._pid:
            return
        self._socket.sendall(b"".join(map(encode, messages)))

    def receive(self) -> Any:
        """Return the next message, waiting for it without bound. Raises EOFError when the parent closed its end."""
        if os.getpid() != self._pid:
            raise EOFError(f"the channel belongs to process {self._pid}")
        while not self._messages:
            self._poll.poll()
            data = self._socket.recv(_CHUNK)
            if not data:
                raise EOFError("the parent closed the channel")
            self._messages.extend(self._inbox.feed(data))
        return self._messages.popleft()

    def ask(self, message: Any) -> Any:
        """Send ``message`` and return the answer.

        A time limit that strikes meanwhile is kept back until then: interrupted, the answer would reach whoever asks next.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGALRM,))
        try:
            self.send(message)
            return self.receive()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close_in_copy(self) -> None:
        """Close the descriptor in a process that was forked from the owner: EOF is to mean that the owner ended."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()


class ParentChannel:
    """The parent's end: never blocks; what the kernel does not take at once waits in ``unsent``."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._inbox = Inbox()
        self.unsent = bytearray()
        self.at_eof = False

    def send(self, message: Any) -> bool:
        """Send as much as fits; return True when all of it went, else call ``flush`` when it is writable."""
        self.unsent += encode(message)
        return self.flush()

    def flush(self) -> bool:
        """Send what waits; return True when nothing is left. A closed peer counts as all sent: its death follows."""
        try:
            while self.unsent:
                del self.unsent[: self._socket.send(self.unsent)]
        except BlockingIOError:
            return False
        except OSError:
            self.unsent.clear()
        return True

    def receive(self) -> list[Any]:
        """Return the complete messages that are here now; sets ``at_eof`` once the other end is closed.

        Raises:
            ValueError, EOFError, TypeError: the other end wrote something that is no message.
        """
        messages: list[Any] = []
        while not self.at_eof:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.at_eof = not data
            messages += self._inbox.feed(data)
            if len(data) < _CHUNK:
                break
        return messages

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; an idle horse takes it as the request to exit."""
        self._socket.close()
