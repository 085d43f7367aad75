"""The parent's connection of the role ``listen``: it carries only what the server sends by itself.

These are the control commands of ``rq`` (PubSub) and the wake-ups. A wake-up is an invalidation message: client
tracking is switched on for the command connection, and redirected here. Both connections speak RESP2, so a redirected
invalidation arrives as an ordinary PubSub message. One parser serves every server since 6.0, and two connections are
enough everywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from ..connection.sockets import replies_within
from .role_connection import RoleConnection

_INVALIDATE = b"__redis__:invalidate"


class ListenConnection(RoleConnection):
    """Receives control commands and wake-ups; it never blocks except while connecting.

    Args:
        make: returns a new redis-py connection object with role ``listen``.
        channels: PubSub channels of the control commands.
    """

    def __init__(self, make: Callable[[], Any], channels: Sequence[str]) -> None:
        super().__init__(make)
        self._channels = channels
        self.client_id: int | None = None
        self._asked_at: float | None = None

    def connect(self, patience: float | None = None) -> None:
        """Connect and subscribe. ``client_id`` is None afterwards if wake-ups cannot be redirected here.

        Raises redis-py's ConnectionError, TimeoutError or AuthenticationError, or ResponseError where the user may
        not subscribe to the control channels.
        """
        self.close()
        connection = self._make()
        try:
            with replies_within(connection, patience):
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


def _parse_command(channel: bytes, data: Any) -> list[tuple[str, dict[str, Any]]]:
    try:
        payload = json.loads(data)
    except (TypeError, ValueError, RecursionError):
        return []
    return [(channel.decode(errors="replace"), payload)] if isinstance(payload, dict) else []


def _or_none(read: Callable[[], Any]) -> Any:
    """Return the reply, or None where the server refuses the command (an ACL, a proxy)."""
    try:
        return read()
    except ResponseError:
        return None
