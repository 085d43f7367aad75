"""Defines a connection of the parent that carries its horses' bytes to the server, and never makes the parent wait.

The dialer begins the connection; TLS and the greeting follow as far as the network allows at each event.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from ..connection.framing import Malformed, ReplyCutter
from ..connection.place import Place
from ..process.event_loop import Loop
from .dialer import Dialer

#: Bytes that are read at once: the smallest commands and replies of one chunk take some milliseconds. The second
#: number is for long strings.
CHUNK, LONG_CHUNK = 32 * 1024, 256 * 1024
#: What a server at its limit says to a new connection.
FULL = b"max number of clients"
#: Calls a function with a source, once, when it is the source's turn.
Queue = Callable[[Any, Callable[[Any], None]], None]
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, InterruptedError)


class Upstream:
    """One connection to the server for jobs.

    Args:
        loop, dialer, role, place: as the names say.
        queue: serves the connection when it is its turn.
        on_open: called with the connection when it may be used.
        on_data: called with it and the server's bytes, in its turn.
        on_lost: called with it and the reason when it is lost.
        on_drained: called with it when the kernel has taken all that was sent.

    Raises:
        OSError, redis.exceptions.RedisError: the connection cannot be begun.
    """

    def __init__(
        self,
        loop: Loop,
        dialer: Dialer,
        role: str,
        place: Place,
        queue: Queue,
        on_open: Callable[[Upstream], None],
        on_data: Callable[[Upstream, bytes], None],
        on_lost: Callable[[Upstream, str], None],
        on_drained: Callable[[Upstream], None],
    ) -> None:
        self._loop = loop
        self.place = place
        self._on_open = on_open
        self._queue = queue
        self._on_data = on_data
        self._on_lost = on_lost
        self._on_drained = on_drained
        self.is_open = self.was_open = self.closed = False
        #: The connection stands in the queue of sources to serve.
        self.queued = False
        self.cutter = ReplyCutter()
        #: When the kernel last took waiting bytes to send, by the monotonic clock.
        self.moved_at = 0.0
        self._unsent = bytearray()
        self._connected = False
        self._secure = place.context is not None
        self._reading = True
        self._socket, self._hello, self._answers = dialer.open(role, place)
        if not self._answers:
            self._connected = True
            loop.call_later(0, self._opened)
        else:
            self._loop.watch(self._socket, self._advance, self._advance)

    # -- connecting ----------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Continue connecting, the TLS handshake and the greeting as far as the network allows."""
        if self.closed or self.is_open:
            return
        try:
            if not self._connected:
                code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))
                if self._secure:
                    self._socket.do_handshake()
                self._connected = True
                self._unsent += self._hello
                self._hello = b""
                # A full server has closed the connection by now; its message can still be read.
                with contextlib.suppress(ConnectionError):
                    self._flush()
            self._read_answers()
        except ssl.SSLWantReadError:
            self._loop.watch(self._socket, self._advance)
        except ssl.SSLWantWriteError:
            self._loop.watch(self._socket, self._advance, self._advance)
        except (OSError, RedisError, Malformed) as error:
            self.lose(error)

    def _read_answers(self) -> None:
        data = self.receive()
        if data is None:
            self._loop.watch(self._socket, self._advance, self._advance if self._unsent else None)
            return
        self._hello += data
        while self._answers:
            end, done = ReplyCutter().cut(self._hello, 0)
            if not done:
                return
            answer, self._hello = self._hello[:end], self._hello[end:]
            self._answers -= 1
            # The last reply is to CLIENT SETNAME, which an ACL may refuse. A full server sends its error first.
            if answer[:1] in (b"-", b"!") and (self._answers or FULL in answer):
                raise OSError(answer[1:].decode(errors="replace").strip())
        self._opened()

    def _opened(self) -> None:
        if not self.closed:
            self._hello = b""
            self.is_open = self.was_open = True
            self._watch()
            self._on_open(self)

    # -- open ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._reading or self._unsent:
            readable = self._readable if self._reading else None
            self._loop.watch(self._socket, readable, self._flush_now if self._unsent else None)
        else:
            self._loop.unwatch(self._socket)

    def _readable(self) -> None:
        self._loop.minor_calls += 1
        self._queue(self, Upstream._serve)

    def _serve(self) -> None:
        if self.closed or self.paused:
            return
        try:
            data = self.receive()
            if data is not None:
                self._on_data(self, data)
        except Exception as error:  # noqa: BLE001 - which stream is owed what is unknown now
            self.lose(error)

    def pause(self) -> None:
        """Stop reading for now, because what is read could not be passed on."""
        if self._reading and not self.closed:
            self._reading = False
            self._watch()

    def resume(self) -> None:
        """Read again."""
        if not self._reading and not self.closed:
            self._reading = True
            self._watch()

    @property
    def paused(self) -> bool:
        """Tell whether reading has stopped."""
        return not self._reading

    @property
    def unsent(self) -> int:
        """Return the bytes that the server has not taken yet."""
        return len(self._unsent)

    def receive(self) -> bytes | None:
        """Return the bytes that have arrived, about ``LONG_CHUNK`` at most, or None. Raises OSError at the end."""
        try:
            data: bytes = self._socket.recv(CHUNK if not self.cutter.in_string else LONG_CHUNK)
            # A selector does not see the bytes that the TLS layer has read ahead.
            while self._secure and self._socket.pending() and len(data) < LONG_CHUNK:
                data += self._socket.recv(CHUNK)
        except _AGAIN:
            return None
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def send(self, data: bytes) -> None:
        """Send now, or when the kernel takes the bytes. This never raises; ``on_lost`` is called instead."""
        if self.closed:
            return
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except _AGAIN:
            sent = 0
        except OSError as error:
            self.lose(error)
            return
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._watch()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
                self.moved_at = time.monotonic()
        except _AGAIN:
            pass

    def _flush_now(self) -> None:
        try:
            self._flush()
        except OSError as error:
            self.lose(error)
            return
        if not self._unsent:
            self._watch()
            self._on_drained(self)

    def lose(self, reason: str | Exception) -> None:
        """Close the connection, and call ``on_lost`` with the reason."""
        if not self.closed:
            self.close()
            self._on_lost(self, str(reason) or type(reason).__name__)

    def close(self) -> None:
        """Close the connection without calling ``on_lost``."""
        if not self.closed:
            self.closed = True
            self.is_open = False
            self._loop.unwatch(self._socket)
            with contextlib.suppress(OSError):
                self._socket.close()

    def close_in_child(self) -> None:
        """Close a forked copy of the descriptor, leaving the parent's connection as it is."""
        with contextlib.suppress(OSError):
            self._socket.close()
