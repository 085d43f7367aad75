"""The parent's own two connections to the server, by role: ``command`` and ``listen``. There is no pool here.

*command* carries every script; nobody waits for its replies, which come back through the selector. *listen* carries
only what the server sends by itself: the control commands of ``rq`` (PubSub) and the wake-ups, which are the
invalidation messages of client tracking that is switched on for the command connection and redirected here. Both speak
RESP2: a redirected invalidation then arrives as an ordinary PubSub message, so one parser serves every server since
6.0, and two connections are enough everywhere.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .place import Place
from .resp import Command, pack_commands
from .sentinels import MasterAway

_INVALIDATE = b"__redis__:invalidate"

#: What a server says when it lives but cannot serve for now. Each one passes, or is mended by connecting anew (after a
#: failover to another machine). Errors from inside scripts arrive as text on 6.2, so the text decides; but redis-py
#: takes the code off the text of the errors that it has a class for, so the class decides, too.
_AWAY = re.compile(
    r"(?<![\w-])(READONLY|LOADING|MASTERDOWN|UNBLOCKED|MISCONF|NOREPLICAS|BUSY|NOAUTH|WRONGPASS|TRYAGAIN|CLUSTERDOWN|"
    r"max number of clients)(?![\w-])"
)
_AWAY_CLASSES = (ReadOnlyError, BusyLoadingError, ClusterDownError, TryAgainError)  # MasterDownError is the third's
#: What an access control list says, of a command and of one inside a script; 6.2 and 7.0 have the longer text.
_FORBIDDEN = re.compile(r"NOPERM|no permissions|ACL failure in script|user executing the script", re.IGNORECASE)
#: What an access control list has to allow.
NEEDED_RIGHTS = (
    "let its user run all commands (but @dangerous) on the keys rq:* and rq_pooled:*, and use the channels rq:pubsub:*"
)
#: Refused wherever writing is, and changes nothing: no key has this name. A replica lets everything else pass.
_WRITE_PROBE: Command = ("DEL", "rq_pooled:none")


OnReplies = Callable[[list[Any]], None]
OnLost = Callable[[Exception], None]


def _ignore(_news: Any) -> None:
    """Be told of replies or of a loss that need no answer."""


class ServerAway(RedisConnectionError):
    """The server cannot serve for now. A ConnectionError: the cure is the same, to connect again later."""


class NotSent(RedisConnectionError):
    """The connection was lost already when a command was to be sent."""


def is_blamed(error: Exception) -> bool:
    """Tell whether what was in flight may be the reason for a lost connection: it was sent, and the server said
    nothing.
    """
    return not isinstance(error, NotSent) and not is_away(error)


def check_away(error: Exception) -> None:
    """Raise ServerAway if ``error``, a reply of the server, says that it cannot serve for now."""
    if is_away(error):
        raise ServerAway(str(error)) from error


def is_away(error: BaseException) -> bool:
    """Tell whether an error means that the server, or the master, is there but cannot serve for now."""
    if isinstance(error, MasterAway):
        return error.passing
    known = (ServerAway, *_AWAY_CLASSES)  # behind a connection of redis-py's Sentinel, as the context of another error
    return isinstance(error, known) or isinstance(error.__context__, known) or _AWAY.search(str(error)) is not None


def is_forbidden(error: BaseException) -> bool:
    """Tell whether an error, of a command or from inside a script, means that the user lacks a right."""
    return isinstance(error, NoPermissionError) or _FORBIDDEN.search(str(error)) is not None


class Exchange:
    """Some commands, and who hears of their replies.

    Args:
        commands: sent together, answered in order.
        on_replies: called once with all raw replies, error replies included as exceptions.
        on_lost: called once instead if the connection is lost first: the commands may or may not have been done.
    """

    __slots__ = ("commands", "ends_write", "on_lost", "on_replies", "replies")

    def __init__(self, commands: Sequence[Command], on_replies: OnReplies = _ignore, on_lost: OnLost = _ignore) -> None:
        self.commands = commands
        self.on_replies = on_replies
        self.on_lost = on_lost
        self.replies: list[Any] = []
        self.ends_write = False

    def again(self) -> Exchange:
        """Return the same exchange as if it had never been sent."""
        return Exchange(self.commands, self.on_replies, self.on_lost)


class CommandConnection:
    """Sends commands without waiting, and hands out their replies when they have come, in order.

    A command is never sent twice unless the server said that it did not run it (NOSCRIPT).

    Args:
        make: opens nothing yet, but returns a new redis-py connection object with role ``command``.
        prepare: commands to send after every connect, before anything else (loading the scripts).
        timeout: seconds within which a reply has to come.
    """

    def __init__(self, make: Callable[[], Any], prepare: Sequence[Command], timeout: float) -> None:
        self._make = make
        self._prepare = prepare
        self._timeout = timeout
        self._connection: Any = None
        self._in_flight: deque[Exchange] = deque()
        self._writes = 0
        self._waiting_since = 0.0
        #: When the last reply came, by the monotonic clock.
        self.answered_at = 0.0
        #: Something was answered since the last ``connect``.
        self.answered = False

    @property
    def connected(self) -> bool:
        """Tell whether the last word about this connection was good."""
        return self._connection is not None

    def fresh(self) -> Any:
        """Return a new redis-py connection to the same server, not connected."""
        return self._make()

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
        try:
            with _patient(connection, patience):
                connection.connect()
            self._connection = connection
            for reply in self.execute([*self._prepare, _WRITE_PROBE], patience):
                if isinstance(reply, Exception):
                    raise reply
            self.answered = False
        except BaseException:
            self.close()
            connection.disconnect()
            raise

    def submit(self, *exchanges: Exchange) -> None:
        """Send ``exchanges`` in one write; ``drain`` hands out the replies. Never raises for a lost connection."""
        if self._connection is None:  # redis-py would reconnect by itself here, unnoticed
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
                if self._connection is None:  # lost while a reply was being acted on
                    return RedisConnectionError("connection lost")
            if not self._in_flight and self._connection.can_read(0):
                raise RedisConnectionError("the server sent what nobody asked for, or closed the connection")
        except (RedisError, OSError) as error:
            self.lose(error)
            return error
        return None

    def _finish(self, exchange: Exchange) -> None:
        unknown = [i for i, reply in enumerate(exchange.replies) if _is_noscript(reply)]
        if not unknown:
            exchange.on_replies(exchange.replies)
            return

        # SCRIPT FLUSH, or a new master: nothing of these was done, so sending them again is safe.
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
        timeout = self._timeout if patience is None else patience
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
        for exchange in reversed(waiting):  # the newest first: who puts something back puts it in front
            exchange.on_lost(error)

    def server(self) -> tuple[str, int] | None:
        """Return the host and port of the server, None while not connected."""
        connection = self._connection
        return None if connection is None else (connection.host, connection.port)

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

    def fileno(self) -> int:
        """Return the descriptor, for the selector."""
        descriptor: int = self._connection._sock.fileno()
        return descriptor

    def close(self) -> None:
        """Close; ``connect`` opens it again."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.disconnect()

    def close_in_child(self) -> None:
        """Close a forked copy of the descriptor, leaving the parent's connection as it is."""
        _close_copy(self._connection)
        self._connection = None


class ListenConnection:
    """Receives control commands and wake-ups; it never blocks except while connecting.

    Args:
        make: returns a new redis-py connection object with role ``listen``.
        channels: PubSub channels of the control commands.
    """

    def __init__(self, make: Callable[[], Any], channels: Sequence[str]) -> None:
        self._make = make
        self._channels = channels
        self._connection: Any = None
        self.client_id: int | None = None
        self._asked_at: float | None = None

    @property
    def connected(self) -> bool:
        """Tell whether the last word about this connection was good."""
        return self._connection is not None

    def fresh(self) -> Any:
        """Return a new redis-py connection to the same server, not connected."""
        return self._make()

    def connect(self, patience: float | None = None) -> None:
        """Connect and subscribe. ``client_id`` is None afterwards if wake-ups cannot be redirected here.

        Raises redis-py's ConnectionError, TimeoutError or AuthenticationError, or ResponseError where the user may
        not subscribe to the control channels.
        """
        self.close()
        connection = self._make()
        try:
            with _patient(connection, patience):
                connection.connect()
                self._subscribe(connection)
        except BaseException:
            connection.disconnect()
            raise
        self._connection = connection
        self._asked_at = None

    def _subscribe(self, connection: Any) -> None:
        connection.send_command("CLIENT", "ID", check_health=False)
        self.client_id = _or_none(connection.read_response)
        connection.send_command("SUBSCRIBE", *self._channels, check_health=False)
        for _ in self._channels:
            connection.read_response(disable_decoding=True)
        if self.client_id is not None:
            connection.send_command("SUBSCRIBE", _INVALIDATE, check_health=False)
            if _or_none(connection.read_response) is None:
                self.client_id = None

    def silent_for(self) -> float:
        """Return the seconds since the oldest PING that was not answered, 0 if all were."""
        return 0.0 if self._asked_at is None else time.monotonic() - self._asked_at

    def ping(self) -> None:
        """Ask for a sign of life; ``silent_for`` tells how long it has not come."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
        self._connection.send_command("PING", check_health=False)

    def drain(self) -> tuple[bool, list[tuple[str, dict[str, Any]]]]:
        """Read all that is here: whether there was a wake-up, and control commands as (channel, payload).

        Everything that has arrived is read, parser buffer and TLS layer included: a selector would not report what
        is no longer in the socket. Malformed payloads are dropped.

        Raises:
            redis.exceptions.ConnectionError, TimeoutError: the connection is closed then.
        """
        woken, commands = False, []
        try:
            while self._connection.can_read(0):
                message = self._connection.read_response(disable_decoding=True)
                if message[0] == b"pong":
                    self._asked_at = None
                elif message[0] == b"message" and message[1] == _INVALIDATE:
                    woken = True
                elif message[0] == b"message":
                    commands += _parse_command(message[1], message[2])
        except (RedisError, OSError):
            self.close()
            raise
        return woken, commands

    def fileno(self) -> int:
        """Return the descriptor, for the selector."""
        descriptor: int = self._connection._sock.fileno()
        return descriptor

    def close(self) -> None:
        """Close; ``connect`` opens it again."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.disconnect()

    def close_in_child(self) -> None:
        """Close a forked copy of the descriptor, leaving the parent's connection as it is."""
        _close_copy(self._connection)
        self._connection = None


def _parse_command(channel: bytes, data: Any) -> list[tuple[str, dict[str, Any]]]:
    try:
        payload = json.loads(data)
    except (TypeError, ValueError):
        return []
    return [(channel.decode(errors="replace"), payload)] if isinstance(payload, dict) else []


def _or_none(read: Callable[[], Any]) -> Any:
    """Return the reply, or None where the server refuses the command (an ACL, a proxy)."""
    try:
        return read()
    except ResponseError:
        return None


def _is_noscript(reply: Any) -> bool:
    return isinstance(reply, ResponseError) and ("NOSCRIPT" in str(reply) or type(reply).__name__ == "NoScriptError")


@contextlib.contextmanager
def _patient(connection: Any, seconds: float | None) -> Iterator[None]:
    """Have reads of a new connection wait so long inside the block, and as long as before after it."""
    usual = connection.socket_timeout
    if seconds is not None:
        connection.socket_timeout = seconds
    try:
        yield
    finally:
        connection.socket_timeout = usual
        if connection._sock is not None:
            connection._sock.settimeout(usual)


def _close_copy(connection: Any) -> None:
    """Close the socket of a connection inherited by fork: close, not shut down, which would end the parent's too."""
    if connection is not None and connection._sock is not None:
        connection._sock.close()
        connection._sock = None
