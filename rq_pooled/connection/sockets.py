"""What redis-py's connections and pools do not offer: another timeout for a while, and closing only some sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from queue import Empty
from typing import Any

from redis.connection import BlockingConnectionPool


@contextlib.contextmanager
def replies_within(connection: Any, seconds: float | None) -> Iterator[None]:
    """Inside the block reads of a connection wait for ``seconds``, or as before for None."""
    usual = connection.socket_timeout
    if seconds is not None:
        connection.socket_timeout = seconds
    try:
        yield
    finally:
        connection.socket_timeout = usual
        if connection._sock is not None:
            connection._sock.settimeout(usual)


def close_idle(pool: Any) -> None:
    """Close the idle connections of a redis-py pool; those in use may belong to other threads.

    A pool that blocks is emptied first: of it redis-py 5 closes all connections, and redis-py 8 those just taken.
    """
    if type(pool).disconnect is not BlockingConnectionPool.disconnect:
        # TypeError: a pool of the user's own kind, which cannot tell them apart.
        with contextlib.suppress(TypeError):
            pool.disconnect(inuse_connections=False)
        return
    idle = []
    with contextlib.suppress(Empty):
        for _ in range(pool.max_connections):
            idle.append(pool.pool.get_nowait())
    for connection in reversed(idle):
        if connection is not None:
            connection.disconnect()
        pool.pool.put_nowait(connection)
