"""Two things that redis-py's connections do not offer: to wait otherwise for a while, and to drop a forked copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def patient(connection: Any, seconds: float | None) -> Iterator[None]:
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


def close_copy(connection: Any) -> None:
    """Close the socket of a connection inherited by fork: close, not shut down, which would end the parent's too."""
    if connection is not None and connection._sock is not None:
        connection._sock.close()
        connection._sock = None
