"""A horse's connection to its parent, in the place of one to the server.

It is redis-py's own connection over a Unix socket. The greeting differs. The parent may also answer with an error of
its own, which becomes the exception that a pool or redis-py would have raised.
"""

from __future__ import annotations

import select
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.connection import UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..connection.command_table import SUBSCRIBE
from ..connection.defaults import accepted_options
from ..connection.resending import Resending
from ..deadline import current as current_deadline
from ..errors import BudgetExceeded, PoolExhausted, ServerUnreachable
from ..process.peer import is_of_this_user

#: Begins the errors that the parent sends in the place of a reply; see multiplexer/streams.py.
ERROR = "RQPOOLED"
_ERRORS = {
    "BUDGET": BudgetExceeded,
    "EXHAUSTED": PoolExhausted,
    "LOST": RedisConnectionError,
    "TIMEOUT": RedisTimeoutError,
    "UNREACHABLE": ServerUnreachable,
}
#: Milliseconds that a subscriber waits for the first word of its parent's.
_ANSWERED_WITHIN = 60_000
#: Options of a connection to the server that are the parent's affair.
_NOT_OURS = ("credential_provider", "host", "password", "port", "username")


@dataclass(frozen=True)
class Door:
    """Where the streams of one horse begin.

    Args:
        path: of the parent's socket.
        token: lets this horse in, and what it forks.
        protocol, db: what the shared connection speaks, and its database.
        slot: of a cluster, that of all keys.
        patience: seconds for which a command is sent again that the cluster refused.
    """

    path: str
    token: bytes
    protocol: int
    db: int
    slot: int | None = None
    patience: float = 0.0


@dataclass(frozen=True)
class Greeting:
    """redis-py's ``redis_connect_func``: shows the token. Login, protocol and database are the parent's, and done.

    Only what a program has asked for beyond that is sent, as redis-py does. Picklable, see ``Introduce``.
    """

    door: Door
    role: str

    def __call__(self, connection: Any) -> None:
        """Greet the parent on a connection whose socket has just been opened."""
        connection.door = self.door
        if not is_of_this_user(connection._sock):
            raise RedisConnectionError(f"the socket for jobs, {self.door.path}, is another user's: restart the worker")
        connection._sock.sendall(self.door.token + b"\n")
        connection._parser.on_connect(connection)
        protocol = int(connection.protocol or 2)
        if protocol == 3:
            _use_resp3(connection)
        if connection.username or connection.password or connection.credential_provider:
            connection.db = connection.db or self.door.db
            connection.on_connect()
            return
        if protocol != self.door.protocol:
            connection.send_command("HELLO", protocol, check_health=False)
            connection.read_response()
        if int(connection.db or 0) != self.door.db:
            connection.send_command("SELECT", connection.db or 0, check_health=False)
            connection.read_response()


def _use_resp3(connection: Any) -> None:
    """Have replies read as RESP3, as redis-py does before it sends HELLO."""
    from redis.connection import _RESP2Parser, _RESP3Parser  # type: ignore[attr-defined]

    parser = connection._parser
    if isinstance(parser, _RESP2Parser):
        connection.set_parser(_RESP3Parser)
        connection._parser.EXCEPTION_CLASSES = parser.EXCEPTION_CLASSES
        connection._parser.on_connect(connection)


class StreamConnection(UnixDomainSocketConnection):
    """redis-py's connection over a Unix socket that raises what the parent has to say."""

    door: Door
    #: How often this process has sent something, over all streams: a job that has may have left replies unread.
    sent = 0

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send bytes as redis-py does, and count it."""
        StreamConnection.sent += 1
        super().send_packed_command(*args, **kwargs)  # type: ignore[no-untyped-call]

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        """Send a command as redis-py does; after one that subscribes, wait for the answer without reading it.

        Nothing else makes redis-py wait for it. What the job sends next over another connection, such as the PUBLISH
        that it wants to hear, would overtake it: the parent has to find a connection for the subscriber first.
        """
        super().send_command(*args, **kwargs)  # type: ignore[no-untyped-call]
        if args and str(args[0]).upper().encode() in SUBSCRIBE and self._sock is not None:
            # The parent answers within POOL_TIMEOUT in any case.
            waiting = select.poll()
            waiting.register(self._sock, select.POLLIN)
            waiting.poll(_ANSWERED_WITHIN)

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply as redis-py does.

        It waits until the parent has one, which keeps the time: SOCKET_TIMEOUT past what a command itself waits, and
        POOL_TIMEOUT before it is sent.

        Raises:
            BudgetExceeded, PoolExhausted, ServerUnreachable: there was no connection for the command; it was not sent.
            redis.exceptions.ConnectionError, TimeoutError: there is no reply; the command may have been done.
        """
        try:
            return super().read_response(*args, **kwargs)
        except ResponseError as error:
            mark, _, said = str(error).partition(" ")
            kind, _, reason = said.partition(" ")
            if mark != ERROR or kind not in _ERRORS:
                raise
            self.disconnect()  # type: ignore[no-untyped-call] # the parent has closed it
            raise _ERRORS[kind](reason) from None


class ClusterStreamConnection(Resending, StreamConnection):
    """The same to a cluster: what was refused is sent again for POOL_TIMEOUT; the parent finds the owner."""

    @property
    def slot(self) -> int:
        """Return the slot of all keys of the application."""
        return self.door.slot or 0

    @property
    def patience(self) -> float:
        """Return for how many seconds a command is sent again."""
        deadline = current_deadline()
        return self.door.patience if deadline is None else min(deadline.left(), self.door.patience)

    def go_to_owner(self, error: Exception) -> bool:
        """Leave it to the parent, which is refused, too."""
        if self._sock is None:
            self.connect()  # type: ignore[no-untyped-call]
        return True


def stream_class(door: Door) -> type[StreamConnection]:
    """Return the class of the streams that begin at a door."""
    return StreamConnection if door.slot is None else ClusterStreamConnection


def stream_options(options: Mapping[str, Any], door: Door, role: str) -> dict[str, Any]:
    """Return the keyword arguments of a stream's connection.

    They are ``options``, those of a connection to the server, as far as they mean the same.
    """
    known = accepted_options(StreamConnection)
    same = {name: value for name, value in options.items() if name in known and name not in _NOT_OURS}
    return {
        **same,
        "path": door.path,
        "db": door.db,
        "protocol": door.protocol,
        "socket_timeout": None,
        "health_check_interval": 0,
        "redis_connect_func": Greeting(door, role),
    }
