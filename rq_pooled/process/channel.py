"""Messages between the parent and one horse, over a socketpair: a length, then plain data.

The data is written with ``marshal``: numbers, text, bytes, tuples and lists; from the parent also dictionaries. Both
ends are forks of one interpreter. Unlike pickle, marshal runs no code when it reads, but it allocates any size that a
few bytes announce, and may crash on bytes that it has not written. So the parent first checks each type and length.
One frequent message has a form of its own, see ``encode_plain``.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

from .side_channel import MAX_QUIET, ChildSide, ParentSide

_HEADER = struct.Struct(">I")
#: The longest accepted message. Redis refuses strings over 512 MB, so a longer message is garbage.
MAX_MESSAGE = 512 * 1024 * 1024
_CHUNK = 64 * 1024
#: Bytes and messages that are taken at once, so that no horse holds up others; before it is killed, all there can be.
_MOST, _MOST_MESSAGES, LAST = 1024 * 1024, 1000, 16 * 1024 * 1024
#: In marshal's second version the same data is always written alike, without references. It is the quickest, too.
_VERSION = 2
#: The most objects in one message, since the parent checks each.
MAX_OBJECTS = 1_000_000
_COUNT = struct.Struct("<I")
#: A bit of the length that marks a message of ``encode_plain``, and how that begins.
_IS_PLAIN = 0x80000000
_PLAIN = struct.Struct(">?dH")
#: The bytes of types with a fixed length: None, True, False, numbers of up to 32 bits, floats.
_FIXED = {ord("N"): 1, ord("T"): 1, ord("F"): 1, ord("i"): 5, ord("g"): 9}
#: The types that announce how many bytes or objects follow; large numbers announce pairs of bytes.
_STRINGS, _CONTAINERS, _LONG = frozenset(b"su"), frozenset(b"(["), ord("l")
#: What reading a message may raise.
GARBAGE = (ValueError, EOFError, TypeError)


def encode(message: Any) -> bytes:
    """Return the bytes of ``message``: four bytes of length, then its marshalled form."""
    body = marshal.dumps(message, _VERSION)
    return _HEADER.pack(len(body)) + body


class Encoded(bytes):
    """A message that is encoded already."""


def encode_plain(flag: bool, number: float, count: int, data: bytes) -> Encoded:
    """Return the bytes of the message ``("plain", flag, number, count, data)``; reading it needs no check of types."""
    return Encoded(_HEADER.pack(_IS_PLAIN | (_PLAIN.size + len(data))) + _PLAIN.pack(flag, number, count) + data)


def _read_plain(body: bytes) -> tuple[str, bool, float, int, bytes]:
    if len(body) < _PLAIN.size:
        raise ValueError(f"a plain message has {len(body)} bytes, fewer than {_PLAIN.size}")
    return ("plain", *_PLAIN.unpack_from(body), body[_PLAIN.size :])


def check(body: bytes) -> None:
    """Raise unless ``body`` is whole, of the types that horses send, and announces no more than it holds.

    Raises:
        ValueError, EOFError: ``body`` breaks one of these rules.
    """
    position, missing, end, objects = 0, 1, len(body), 0
    try:
        while missing:
            kind = body[position]
            missing -= 1
            if kind in _STRINGS:
                position += 5 + _COUNT.unpack_from(body, position + 1)[0]
            elif kind in _CONTAINERS:
                count = _COUNT.unpack_from(body, position + 1)[0]
                position += 5
                missing += count
                objects += count
                # Each object has at least one byte.
                if missing > end - position or objects > MAX_OBJECTS:
                    raise ValueError(f"{count} objects were announced in a message of {end} bytes")
            elif kind == _LONG:
                (digits,) = struct.unpack_from("<i", body, position + 1)
                position += 5 + 2 * abs(digits)
            else:
                position += _FIXED[kind]
    except (IndexError, struct.error):
        raise EOFError(f"a message of {end} bytes says that it is longer") from None
    except KeyError as error:
        raise ValueError(f"byte {position} of a message of {end} bytes is {error}, which begins nothing") from None
    if position != end:
        raise ValueError(f"a message of {position} bytes has {end}")


def _joined(messages: Sequence[Any]) -> bytes:
    return b"".join([message if type(message) is Encoded else encode(message) for message in messages])


class Inbox:
    """Cuts a stream of bytes into messages.

    Args:
        wary: check each message before it is read, see ``check``.
    """

    def __init__(self, wary: bool = True) -> None:
        self._buffer = bytearray()
        self._wary = wary

    def feed(self, data: bytes, messages: list[Any] | None = None) -> list[Any]:
        """Take ``data`` and return the messages that are complete now, oldest first, added to ``messages``.

        Raises:
            ValueError, EOFError, TypeError: ``encode`` does not write such bytes. Earlier messages were added.
        """
        messages = [] if messages is None else messages
        self._buffer += data
        position = 0
        while len(self._buffer) - position >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer, position)
            is_plain = size & _IS_PLAIN
            size &= ~_IS_PLAIN
            if size > MAX_MESSAGE:
                raise ValueError(f"a message of {size} bytes was announced; the longest one allowed has {MAX_MESSAGE}")
            end = position + _HEADER.size + size
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[position + _HEADER.size : end])
            if self._wary and not is_plain:
                check(body)
            messages.append(_read_plain(body) if is_plain else marshal.loads(body))
            position = end
        del self._buffer[:position]
        return messages


class ChildChannel:
    """The horse's end: blocking, and its own; a process that a job has forked sends nothing and receives EOF."""

    def __init__(self, sock: socket.socket, side: ChildSide | None = None) -> None:
        self._pid = os.getpid()
        self._socket = sock
        self._socket.setblocking(True)
        self._side = side
        #: Something was sent since the last message came: what follows must not overtake it.
        self._spoken = False
        # Linux wakes a process that sleeps in recv, but not in poll, whenever the parent has read earlier messages.
        # Without poll a horse woke up 1.7 times per job in vain.
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._inbox = Inbox(wary=False)
        self._messages: deque[Any] = deque()

    def send(self, *messages: Any) -> None:
        """Send messages whole; blocks while the parent does not read. Raises OSError when the parent is gone."""
        if os.getpid() != self._pid:
            return
        self._spoken = True
        self._socket.sendall(_joined(messages))

    def send_quietly(self, *messages: Any) -> None:
        """Send messages that the parent need not act on at once, and which do not wake it where that can be."""
        if os.getpid() != self._pid:
            return
        data = _joined(messages)
        if self._spoken or self._side is None or len(data) > MAX_QUIET:
            self._spoken = True
            self._socket.sendall(data)
        else:
            self._side.say(data)

    def take_permit(self) -> bool:
        """Take the permit for the next waiting job; False: the parent has taken back all that wait."""
        return self._side is not None and self._side.take_permit()

    def receive(self) -> Any:
        """Return the next message, and wait for it without bound. Raises EOFError when the parent closed its end."""
        if os.getpid() != self._pid:
            raise EOFError(f"the channel belongs to process {self._pid}")
        while not self._messages:
            self._poll.poll()
            data = self._socket.recv(_CHUNK)
            if not data:
                raise EOFError("the parent closed the channel")
            self._messages.extend(self._inbox.feed(data))
        return self._messages.popleft()

    def receive_task(self) -> Any:
        """Return the next message as ``receive`` does; all that was said about the last task has been read by then."""
        message = self.receive()
        self._spoken = False
        return message

    def ask(self, message: Any) -> Any:
        """Send ``message`` and return the answer.

        A time limit that expires meanwhile is held until the answer is here. Otherwise the answer would be taken for
        that of the next message.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGALRM,))
        try:
            self.send(message)
            return self.receive()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close_in_copy(self) -> None:
        """Close the descriptors in a process that was forked from the owner, so that EOF means the owner's end."""
        self._socket.close()
        if self._side is not None:
            self._side.close()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()


class ParentChannel:
    """The parent's end, which never blocks; bytes that the kernel does not take at once wait in ``unsent``."""

    def __init__(self, sock: socket.socket, side: ParentSide | None = None) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self.side = side
        #: Permits that a horse had not taken when its channel was closed.
        self.untaken = 0
        self._inbox, self._quiet = Inbox(), Inbox()
        self.unsent = bytearray()
        self.at_eof = False
        #: The error of the last message, if it was garbage; nothing is read after it.
        self.garbage: Exception | None = None

    def send(self, message: Any) -> bool:
        """Send as much as fits; return whether all of it went. If not, call ``flush`` when the end is writable."""
        self.unsent += encode(message)
        return self.flush()

    def flush(self) -> bool:
        """Send waiting bytes; return whether none are left. A closed peer counts as all sent: its death follows."""
        try:
            while self.unsent:
                del self.unsent[: self._socket.send(self.unsent)]
        except BlockingIOError:
            return False
        except OSError:
            self.unsent.clear()
        return True

    def receive(self, most: int = _MOST) -> list[Any]:
        """Return complete messages that have arrived, of about as many bytes; what is left stays readable.

        Sets ``at_eof`` once the other end is closed, ``garbage`` when it wrote bytes that are no message.
        """
        messages: list[Any] = []
        aloud: list[Any] = []
        taken = 0
        while not self.at_eof and self.garbage is None and taken < most and len(aloud) < _MOST_MESSAGES:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.at_eof = not data
            taken += len(data)
            try:
                self._inbox.feed(data, aloud)
            except GARBAGE as error:
                self.garbage = error
            if len(data) < _CHUNK:
                break
        # What was said quietly is older. It is read later, so that nothing that was said before the rest is missed.
        if self.side is not None and self.side.in_use:
            try:
                self._quiet.feed(self.side.read(), messages)
            except GARBAGE as error:
                self.garbage = self.garbage or error
        return messages + aloud if messages else aloud

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; an idle horse takes it as the request to exit."""
        self._socket.close()
        if self.side is not None:
            self.untaken += self.side.take_back()
            self.side.close()

    def close_in_child(self) -> None:
        """Close this end in another horse, which takes no permits."""
        self._socket.close()
        if self.side is not None:
            self.side.close()
