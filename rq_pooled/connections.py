"""The parent's own two connections to the server, by role: ``command`` and ``listen``. There is no pool here.

*command* carries every script, one round trip at a time. *listen* carries only what the server sends by itself: the
control commands of ``rq`` (PubSub) and the wake-ups, which are the invalidation messages of client tracking that is
switched on for the command connection and redirected here. Both speak RESP2: a redirected invalidation then arrives as
an ordinary PubSub message, so one parser serves every server since 6.0, and two connections are enough everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from .scripts import Command

_INVALIDATE = b"__redis__:invalidate"

#: What a server says when it lives but cannot serve for now; errors from inside scripts arrive as text on 6.2, so the
#: text decides. Each one passes, or is mended by connecting anew (after a failover to another machine).
_AWAY = (
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "UNBLOCKED",
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
    "NOAUTH",
    "WRONGPASS",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "max number of clients",
)


class ServerAway(RedisConnectionError):
    """The server cannot serve for now. A ConnectionError: the cure is the same, to connect again later."""


def check_away(error: Exception) -> None:
    """Raise ServerAway if ``error``, a reply of the server, says that it cannot serve for now."""
    text = str(error)
    if any(word in text for word in _AWAY):
        raise ServerAway(text) from error


class CommandConnection:
    """Sends commands and waits for the replies, at most the socket timeout for each.

    Args:
        make: opens nothing yet, but returns a new redis-py connection object with role ``command``.
        prepare: commands to send after every connect, before anything else (loading the scripts).
    """

    def __init__(self, make: Callable[[], Any], prepare: Sequence[Command]) -> None:
        self._make = make
        self._prepare = prepare
        self._connection: Any = None

    @property
    def connected(self) -> bool:
        """Tell whether the last word about this connection was good."""
        return self._connection is not None

    def connect(self) -> None:
        """Connect anew. Raises redis-py's ConnectionError, TimeoutError or AuthenticationError."""
        self.close()
        connection = self._make()
        try:
            connection.connect()
            self._connection = connection
            for reply in self.execute(self._prepare):
                if isinstance(reply, Exception):
                    raise reply
        except BaseException:
            self._connection = None
            connection.disconnect()
            raise

    def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Send ``commands`` in one write and return their replies, raw bytes, in order; an error reply is returned.

        A command is never sent twice unless the server said that it did not run it (NOSCRIPT).

        Raises:
            redis.exceptions.ConnectionError, TimeoutError: the connection is closed then; what was sent may or may
                not have been done.
        """
        replies = self._round_trip(commands)
        unknown = [i for i, reply in enumerate(replies) if _is_noscript(reply)]
        if unknown:  # SCRIPT FLUSH or a restart: nothing of these was done, so sending them again is safe
            again = self._round_trip([*self._prepare, *(commands[i] for i in unknown)])[len(self._prepare) :]
            for i, reply in zip(unknown, again):
                replies[i] = reply
        for reply in replies:
            if isinstance(reply, ResponseError):
                try:
                    check_away(reply)
                except ServerAway:
                    self.close()
                    raise
        return replies

    def _round_trip(self, commands: Sequence[Command]) -> list[Any]:
        if self._connection is None:  # redis-py would reconnect by itself here, unnoticed
            raise RedisConnectionError("not connected")
        replies: list[Any] = []
        try:
            self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
            for _ in commands:
                try:
                    replies.append(self._connection.read_response(disable_decoding=True))
                except ResponseError as error:
                    replies.append(error)
        except BaseException:  # a reply may still come: nobody may use this connection again
            self.close()
            raise
        return replies

    def address(self) -> str:
        """Return the local end as ``host:port``, which is how CLIENT LIST names this connection, or ``unknown``."""
        sock = self._connection._sock if self._connection is not None else None
        name = sock.getsockname() if sock is not None else None
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"

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
        self.unanswered_pings = 0

    @property
    def connected(self) -> bool:
        """Tell whether the last word about this connection was good."""
        return self._connection is not None

    def connect(self) -> None:
        """Connect and subscribe. ``client_id`` is None afterwards if wake-ups cannot be redirected here.

        Raises redis-py's ConnectionError, TimeoutError or AuthenticationError, or ResponseError where the user may
        not subscribe to the control channels.
        """
        self.close()
        connection = self._make()
        try:
            connection.connect()
            connection.send_command("CLIENT", "ID", check_health=False)
            self.client_id = _or_none(connection.read_response)
            connection.send_command("SUBSCRIBE", *self._channels, check_health=False)
            for _ in self._channels:
                connection.read_response(disable_decoding=True)
            if self.client_id is not None:
                connection.send_command("SUBSCRIBE", _INVALIDATE, check_health=False)
                if _or_none(connection.read_response) is None:
                    self.client_id = None
        except BaseException:
            connection.disconnect()
            raise
        self._connection = connection
        self.unanswered_pings = 0

    def ping(self) -> None:
        """Ask for a sign of life; ``unanswered_pings`` counts those that got none yet."""
        self.unanswered_pings += 1
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
                    self.unanswered_pings = 0
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


def _close_copy(connection: Any) -> None:
    """Close the socket of a connection inherited by fork: close, not shut down, which would end the parent's too."""
    if connection is not None and connection._sock is not None:
        connection._sock.close()
        connection._sock = None
