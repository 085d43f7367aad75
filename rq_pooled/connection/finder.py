"""What a connection asks where the server is now.

redis-py's ``SentinelManagedConnection`` asks an object for an address each time it connects. A finder is that object:
it asks sentinels (sentinel.py) or the nodes of a cluster (cluster.py), and keeps no connection to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.sentinel import MasterNotFoundError

Address = tuple[str, int]
#: Makes the keyword arguments of a connection to what is asked: (class, keyword arguments).
Node = tuple[type[Any], dict[str, Any]]


class MasterAway(MasterNotFoundError):
    """Nothing that is asked names a server that is up.

    ``passing``: one of them knows of it, so that a failover may be under way.
    """

    def __init__(self, message: str, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class Finder:
    """What a ``SentinelManagedConnection`` asks for the server's address; one object for all connections of a pool."""

    is_master = True
    # The handshake that follows is check enough.
    check_connection = False
    #: For redis-py's repr of a connection.
    service_name = ""

    def __init__(self) -> None:
        self.latest: Address | None = None

    def is_former(self, connection: Any) -> bool:
        """Tell whether a connection leads elsewhere than to the server that was found last. It sends nothing."""
        return self.latest is not None and (connection.host, connection.port) != self.latest

    def get_master_address(self) -> Address:
        """Ask where the server is. Blocks for at most SOCKET_CONNECT_TIMEOUT in all."""
        self.latest = self.find()
        return self.latest

    def find(self) -> Address:
        """Ask where the server is."""
        raise NotImplementedError

    def url(self, tls: bool, db: int) -> str:
        """Return what is asked, as a URL without user and password."""
        raise NotImplementedError


def is_watched(connection: Any) -> bool:
    """Tell whether a connection asks where its server is."""
    return isinstance(getattr(connection, "connection_pool", None), Finder)


def beside(connection: Any, address: Callable[[], Address | None]) -> Any:
    """Return a connection that goes where ``address`` says, instead of asking where the server is.

    It is for two connections that belong together: in the middle of a failover they would be told different servers.
    """
    if is_watched(connection):
        connection.connection_pool = _Same(address)
    return connection


class _Same:
    """Answers with the address that another connection has."""

    is_master = True
    check_connection = False
    service_name = ""

    def __init__(self, address: Callable[[], Address | None]) -> None:
        self._address = address

    def get_master_address(self) -> Address:
        address = self._address()
        if address is None:
            raise RedisConnectionError("the connection that this one goes beside was lost")
        return address
