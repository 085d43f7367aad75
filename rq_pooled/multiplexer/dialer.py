"""Begins the parent's connections for jobs, to the address of the command connection.

The address is resolved already, and the command connection's TLS context is reused. redis-py does not open them,
because it waits for the network and stops the parent's loop meanwhile.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from redis.credentials import UsernamePasswordCredentialProvider

from ..config.settings import Settings
from ..connection.cluster import slot_of
from ..connection.names import Introduce, client_name
from ..connection.place import Place
from ..wire import Command, pack_commands

#: The methods that a connection class may override to connect in its own way.
_OPENS = ("_connect", "connect", "connect_check_health", "on_connect", "on_connect_check_health")


class Dialer:
    """Begins connections of a given role.

    Args:
        settings: give the time to connect and the name of the application.
        make: returns a new, unconnected redis-py connection object with the credentials and options to use.
    """

    def __init__(self, settings: Settings, make: Callable[[str], Any]) -> None:
        self._settings = settings
        self._make = make
        sample = make("jobs")
        #: The protocol and the database with which every stream begins; it may ask for another.
        self.protocol, self.db = int(getattr(sample, "protocol", 2) or 2), int(getattr(sample, "db", 0) or 0)
        #: The slot of all keys on a cluster.
        self.slot = slot_of(sample)
        introduce = getattr(sample, "redis_connect_func", None)
        own_way = isinstance(introduce, Introduce) and introduce.before is not None
        # Only a user's class knows how it connects: through a proxy, a tunnel, or with a handshake of its own.
        ways = [getattr(type(sample), name, None) for name in _OPENS]
        self._plain = not own_way and all(way is None or way.__module__.startswith("redis.") for way in ways)

    def open(self, role: str, place: Place) -> tuple[Any, bytes, int]:
        """Begin to connect; return the socket, the bytes of the greeting, and the number of replies to it.

        This waits only for a user's own connection class, for at most SOCKET_CONNECT_TIMEOUT.

        Raises:
            OSError, redis.exceptions.RedisError: the connection cannot be begun.
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
