"""The parent's connection of the role ``command``: it carries every script, and the parent never waits for replies.

The replies come back through the selector. There is no pool here.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..connection.away import NotSent, check_away
from ..connection.cluster import slot_of
from ..connection.place import Place, shown
from ..connection.sockets import replies_within
from ..deadline import clipped
from ..store.keys import NONE
from ..store.scripts import is_unknown
from ..wire import Command, pack_commands
from .exchange import Exchange
from .role_connection import RoleConnection

#: It is refused wherever writing is, and changes nothing, since no key has this name. A replica lets everything else
#: pass.
_WRITE_PROBE: Command = ("DEL", NONE)


class CommandConnection(RoleConnection):
    """Sends commands without waiting, and hands out their replies when they have come, in order.

    A command is never sent twice unless the server said that it did not run it (NOSCRIPT).

    Args:
        make: opens nothing yet, but returns a new redis-py connection object with role ``command``.
        prepare: commands to send after every connect, before anything else (loading the scripts).
        timeout: seconds within which a reply has to come.
    """

    def __init__(self, make: Callable[[], Any], prepare: Sequence[Command], timeout: float) -> None:
        super().__init__(make)
        self._prepare = prepare
        self._timeout = timeout
        self._in_flight: deque[Exchange] = deque()
        self._writes = 0
        self._waiting_since = 0.0
        #: When the last reply came, by the monotonic clock.
        self.answered_at = 0.0
        #: It leads to a node of a cluster, which may cease to serve the slot without a word.
        self.in_cluster = False
        #: Something was answered since the last ``connect``.
        self.answered = False

    @property
    def in_flight(self) -> int:
        """Return how many writes wait for replies."""
        return self._writes

    def connect(self, patience: float | None = None) -> None:
        """Connect anew, waiting for it, to a server that can be written to.

        Args:
            patience: seconds to wait for each reply; the usual timeout if not given.

        Raises redis-py's ConnectionError (ServerAway among them), TimeoutError or AuthenticationError.
        """
        self.close()
        connection = self._make()
        self.in_cluster = slot_of(connection) is not None
        try:
            with replies_within(connection, patience):
                connection.connect()
            self._connection = connection
            for reply in self.execute([_WRITE_PROBE, *self._prepare], patience):
                if isinstance(reply, Exception):
                    raise reply
            # The server may have closed it right behind the last reply.
            if self._connection is None:
                raise RedisConnectionError("connection lost")
            self.answered = False
        except BaseException:
            self.close()
            connection.disconnect()
            raise

    def submit(self, *exchanges: Exchange) -> None:
        """Send ``exchanges`` in one write; ``drain`` hands out the replies. Never raises for a lost connection."""
        # Otherwise redis-py would reconnect by itself here, unnoticed.
        if self._connection is None:
            for exchange in reversed(exchanges):
                exchange.on_lost(NotSent("not connected"))
            return
        if not self._in_flight:
            self._waiting_since = time.monotonic()
        exchanges[-1].ends_write = True
        self._in_flight.extend(exchanges)
        self._writes += 1
        commands = [command for exchange in exchanges for command in exchange.commands]
        try:
            self._connection.send_packed_command([pack_commands(commands)], check_health=False)
        except (RedisError, OSError) as error:
            self.lose(error)

    def drain(self) -> Exception | None:
        """Hand out the replies that are here; return what went wrong if the connection is lost now."""
        try:
            while self._in_flight and self._connection.can_read(0):
                exchange = self._in_flight[0]
                try:
                    reply = self._connection.read_response(disable_decoding=True)
                except ResponseError as error:
                    check_away(error)
                    reply = error
                exchange.replies.append(reply)
                if len(exchange.replies) == len(exchange.commands):
                    self._in_flight.popleft()
                    self._writes -= exchange.ends_write
                    self._waiting_since = self.answered_at = time.monotonic()
                    self.answered = True
                    self._finish(exchange)
                # Lost while a reply was being acted on.
                if self._connection is None:
                    return RedisConnectionError("connection lost")
            if not self._in_flight and self._connection.can_read(0):
                raise RedisConnectionError("the server sent what was not asked for, or closed the connection")
        except (RedisError, OSError) as error:
            self.lose(error)
            return error
        return None

    def _finish(self, exchange: Exchange) -> None:
        unknown = [i for i, reply in enumerate(exchange.replies) if is_unknown(reply)]
        if not unknown:
            exchange.on_replies(exchange.replies)
            return

        # After SCRIPT FLUSH, or on a new master, nothing of these was done. So sending them again is safe.
        def on_replies(replies: list[Any]) -> None:
            for i, reply in zip(unknown, replies[len(self._prepare) :]):
                exchange.replies[i] = reply
            exchange.on_replies(exchange.replies)

        again = [*self._prepare, *(exchange.commands[i] for i in unknown)]
        self.submit(Exchange(again, on_replies, exchange.on_lost))

    def check_deadline(self) -> Exception | None:
        """Lose the connection if a reply is overdue; return the error then."""
        if self._in_flight and time.monotonic() - self._waiting_since > self._timeout:
            error = RedisTimeoutError(f"no reply within {self._timeout:g} s")
            self.lose(error)
            return error
        return None

    def execute(self, commands: Sequence[Command], patience: float | None = None) -> list[Any]:
        """Send ``commands`` and wait for their replies, for at most ``patience`` or the timeout; for beginning and end.

        Raises:
            redis.exceptions.ConnectionError, TimeoutError: the connection is closed then; what was sent may or may
                not have been done.
        """
        result: list[Any] = []
        errors: list[Exception] = []
        self.submit(Exchange(commands, result.extend, errors.append))
        timeout = clipped(self._timeout if patience is None else patience)
        assert timeout is not None
        deadline = time.monotonic() + timeout
        while self._connection is not None and self._in_flight:
            left = deadline - time.monotonic()
            if left <= 0:
                self.lose(RedisTimeoutError(f"no reply within {timeout:g} s"))
            elif select.select([self], [], [], left)[0]:
                self.drain()
        if errors:
            raise errors[0]
        return result

    def lose(self, error: Exception) -> None:
        """Close, and tell everybody who waits for a reply."""
        self.close()
        waiting, self._in_flight, self._writes = list(self._in_flight), deque(), 0
        # The newest comes first, since what is put back is put in front.
        for exchange in reversed(waiting):
            exchange.on_lost(error)

    def server(self) -> tuple[str, int] | None:
        """Return the host and port of the server, None while not connected."""
        connection = self._connection
        return None if connection is None else (connection.host, connection.port)

    @property
    def url(self) -> str:
        """Return where it leads, as it is shown: without user and password."""
        return "" if self._connection is None else shown(self._connection)

    def place(self) -> Place | None:
        """Return where it leads, for a connection beside it; None while not connected."""
        try:
            return None if self._connection is None else Place.of(self._connection)
        except OSError:
            return None

    def address(self) -> str:
        """Return the local end as ``host:port``, which is how CLIENT LIST names this connection, or ``unknown``."""
        sock = self._connection._sock if self._connection is not None else None
        name = sock.getsockname() if sock is not None else None
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"
