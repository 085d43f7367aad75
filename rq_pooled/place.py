"""Where a connected socket leads: what is needed to open another connection beside it."""

from __future__ import annotations

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
    def of(cls, connected: Any) -> Place:
        """Return the place of a socket. Raises OSError when it is connected no more."""
        context = getattr(connected, "context", None)
        return cls(connected.family, connected.getpeername(), context, getattr(connected, "server_hostname", None))
