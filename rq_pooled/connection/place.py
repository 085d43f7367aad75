"""Where a connection leads: what another one beside it needs, and how people are shown it."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Any

from redis.connection import UnixDomainSocketConnection

from .finder import Finder


@dataclass(frozen=True)
class Place:
    """An address that has been looked up, and how TLS is spoken there."""

    family: int
    address: Any
    context: ssl.SSLContext | None
    server_hostname: str | None

    @classmethod
    def of(cls, connection: Any) -> Place:
        """Return the place of one of redis-py's connections. Raises OSError: it is not connected."""
        connected = connection._sock
        address, context = connected.getpeername(), getattr(connected, "context", None)
        if connected.family == socket.AF_UNIX:
            # The server tells the path at which it made its socket; here a mount or a link may give it another.
            address = getattr(connection, "path", address)
        return cls(connected.family, address, context, getattr(connected, "server_hostname", None))

    def is_same(self, other: Place) -> bool:
        """Tell whether both are one address."""
        return (self.family, self.address) == (other.family, other.address)


def shown(connection: Any) -> str:
    """Return where a connection leads, as ``address_of``."""
    options = {name: getattr(connection, name, None) for name in ("host", "port", "db", "path", "connection_pool")}
    return address_of(type(connection), {name: value for name, value in options.items() if value is not None})


def address_of(connection_class: type[Any], options: dict[str, Any]) -> str:
    """Return where a connection leads, as a URL without user and password."""
    db = options.get("db") or 0
    if issubclass(connection_class, UnixDomainSocketConnection):
        return f"unix://{options.get('path', '')}?db={db}"
    scheme = "rediss" if any("SSL" in cls.__name__ for cls in connection_class.__mro__) else "redis"
    finder = options.get("connection_pool")
    if isinstance(finder, Finder):
        return finder.url(scheme == "rediss", db)
    host = str(options.get("host", "localhost"))
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{options.get('port', 6379)}/{db}"
