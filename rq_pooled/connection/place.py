"""Where a connected socket leads: what is needed to open another connection beside it."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """An address that has been looked up, and how TLS is spoken there."""

    family: int
    address: Any
    context: ssl.SSLContext | None
    server_hostname: str | None

    @classmethod
    def of(cls, connection: Any) -> Place:
        """Return the place of one of redis-py's connections. Raises OSError when it is connected no more."""
        connected = connection._sock
        address, context = connected.getpeername(), getattr(connected, "context", None)
        if connected.family == socket.AF_UNIX:
            # The server tells the path by which it made its socket; behind a mount or a link it has another one here.
            address = getattr(connection, "path", address)
        return cls(connected.family, address, context, getattr(connected, "server_hostname", None))
