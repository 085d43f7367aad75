"""A connection of the parent to the server that carries other processes' bytes; nobody waits for anything.

It is opened beside the command connection: to the same address, which has been looked up already, with the same context
of TLS. redis-py could open it, but would wait for the network with the parent's loop standing still.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import RedisError

from ..config.settings import Settings
from ..connection.names import Introduce, client_name
from ..connection.place import Place
from ..process.event_loop import Loop
from ..wire import Command, pack_commands
from .framing import Malformed, ReplyCutter

#: Bytes that are read at once: of the smallest commands and replies these are some milliseconds. More where a long
#: string is being passed on.
CHUNK, LONG_CHUNK = 32 * 1024, 256 * 1024
#: What a server at its limit says to a new connection.
FULL = b"max number of clients"
#: What a connection class may do in its own way when it connects, and the modules whose ways are known here.
_OPENS = ("_connect", "connect", "connect_check_health", "on_connect", "on_connect_check_health")
_KNOWN = ("redis.", __name__)
#: Has a function called with a source, once, when it is the source's turn.
Queue = Callable[[Any, Callable[[Any], None]], None]
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, InterruptedError)


class Dialer:
    """Makes what opens connections of one role.

    Args:
        settings: the time to connect, and the name of the application.
        make: returns a new redis-py connection object, not connected, with the credentials and options that count.
    """

    def __init__(self, settings: Settings, make: Callable[[str], Any]) -> None:
        self._settings = settings
        self._make = make
        sample = make("jobs")
        #: The protocol and the database that every stream has unless it asks for another.
        self.protocol, self.db = int(getattr(sample, "protocol", 2) or 2), int(getattr(sample, "db", 0) or 0)
        introduce = getattr(sample, "redis_connect_func", None)
        own_way = isinstance(introduce, Introduce) and introduce.before is not None
        # What a user's class does to connect (a proxy, a tunnel, a handshake of its own) only that class knows.
        own = [name for name in _OPENS if not getattr(type(sample), name, _nothing).__module__.startswith(_KNOWN)]
        self._plain = not own and not own_way

    def open(self, role: str, place: Place) -> tuple[Any, bytes, int]:
        """Begin to connect; return the socket, what is to be sent first, and how many replies that has.

        Only for a connection class of the user's own this waits, for at most SOCKET_CONNECT_TIMEOUT.

        Raises:
            OSError, redis.exceptions.RedisError: it cannot be.
        """
        connection = self._make(role)
        if not self._plain:
            connection.connect()
            connected, connection._sock = connection._sock, None
            connected.setblocking(False)
            return connected, b"", 0
        commands = self._greeting(connection, role)
        return _begin(place, connection), pack_commands(commands), len(commands)

    def _greeting(self, connection: Any, role: str) -> list[Command]:
        """Return what redis-py sends first; only the reply to the last command may be an error."""
        provider = connection.credential_provider
        if provider is None and (connection.username or connection.password):
            provider = UsernamePasswordCredentialProvider(connection.username, connection.password)
        login = tuple(provider.get_credentials()) if provider is not None else ()
        commands: list[Command] = []
        if self.protocol == 3:
            full = login if len(login) != 1 else ("default", *login)
            commands.append(("HELLO", 3, *(("AUTH", *full) if full else ())))
        elif login:
            commands.append(("AUTH", *login))
        if self.db:
            commands.append(("SELECT", self.db))
        commands.append(("CLIENT", "SETNAME", client_name(self._settings, role)))
        return commands


def _begin(place: Place, connection: Any) -> Any:
    """Return a socket that is being connected."""
    made: Any = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if place.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if getattr(connection, "socket_keepalive", False):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in (connection.socket_keepalive_options or {}).items():
                    made.setsockopt(socket.IPPROTO_TCP, option, value)
        if place.context is not None:
            made = place.context.wrap_socket(made, server_hostname=place.server_hostname, do_handshake_on_connect=False)
        code = made.connect_ex(place.address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        made.close()
        raise
    return made


class Upstream:
    """One such connection.

    Args:
        loop, dialer, role, place: as the names say.
        on_open, on_readable, on_lost, on_drained: called from the loop with this, when it may be used; when there is
            something to ``receive``; when it is closed, with the reason; when all that was sent is on its way.

    Raises:
        OSError, redis.exceptions.RedisError: it cannot even be begun.
    """

    def __init__(
        self,
        loop: Loop,
        dialer: Dialer,
        role: str,
        place: Place,
        on_open: Callable[[Upstream], None],
        on_readable: Callable[[Upstream], None],
        on_lost: Callable[[Upstream, str], None],
        on_drained: Callable[[Upstream], None],
    ) -> None:
        self._loop = loop
        self._on_open = on_open
        self._on_readable = on_readable
        self._on_lost = on_lost
        self._on_drained = on_drained
        self.role = role
        self.is_open = self.was_open = self.closed = False
        #: It is among what is to be read.
        self.queued = False
        self.cutter = ReplyCutter()
        #: When the server's end last took some of what had been waiting to be sent, by the monotonic clock.
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
        """Go on with connecting, the handshake of TLS, and the greeting, as far as the network lets it."""
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
                # A full server has closed it by now; what it said is still there to be read.
                with contextlib.suppress(ConnectionError):
                    self._flush()
            self._read_answers()
        except ssl.SSLWantReadError:
            self._loop.watch(self._socket, self._advance)
        except ssl.SSLWantWriteError:
            self._loop.watch(self._socket, self._advance, self._advance)
        except (OSError, RedisError, Malformed) as error:
            self.lose(str(error) or type(error).__name__)

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
            # The last one is to CLIENT SETNAME, which an ACL may refuse. A full server says so first of all.
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
            readable = self._readable if self._reading else _nothing
            self._loop.watch(self._socket, readable, self._flush_now if self._unsent else None)
        else:
            self._loop.unwatch(self._socket)

    def _readable(self) -> None:
        self._loop.minor_calls += 1
        self._on_readable(self)

    def pause(self) -> None:
        """Do not read for now: what is read could not be passed on."""
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
        """Tell whether it is not read."""
        return not self._reading

    @property
    def unsent(self) -> int:
        """Return the bytes that the server has not taken yet."""
        return len(self._unsent)

    def receive(self) -> bytes | None:
        """Return what is here, at most ``LONG_CHUNK``, None if nothing is. Raises OSError at the end."""
        try:
            data: bytes = self._socket.recv(CHUNK if not self.cutter.in_string else LONG_CHUNK)
            # A selector does not see what the layer of TLS has read ahead.
            while self._secure and self._socket.pending() and len(data) < LONG_CHUNK:
                data += self._socket.recv(CHUNK)
        except _AGAIN:
            return None
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def send(self, data: bytes) -> None:
        """Send, now or when the server takes it. Never raises: ``on_lost`` tells."""
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
            self.lose(str(error))
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
            self.lose(str(error))
            return
        if not self._unsent:
            self._watch()
            self._on_drained(self)

    def lose(self, reason: str) -> None:
        """Close, and say so."""
        if not self.closed:
            self.close()
            self._on_lost(self, reason)

    def close(self) -> None:
        """Close without a word."""
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


def _nothing() -> None:
    """Do not read."""
