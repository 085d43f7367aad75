"""Jobs that use Redis past rq_pooled, as much code does, and one that does not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

from rq_pooled import get_connection

URL = os.environ.get("STRAY_URL", "redis://127.0.0.1:1")

#: Made at import, as in most applications; its one connection is opened by the first command.
client = redis.Redis.from_url(URL)
_more: list[Any] = []


def ping() -> int:
    """Use the module's client, and return the horse."""
    client.ping()
    return os.getpid()


def open_more(number: int) -> None:
    """Open further clients with a connection each, and keep them."""
    for _ in range(number):
        _more.append(redis.Redis.from_url(URL))
        _more[-1].ping()


async def ping_async() -> int:
    """Use a client of redis.asyncio, keep it, and return the horse."""
    _more.append(redis.asyncio.Redis.from_url(URL))
    await _more[-1].ping()
    return os.getpid()


def hold_routed(folder: str) -> None:
    """Use Redis through the worker, and hold the connection until a file exists."""
    pool = get_connection().connection_pool
    connection = pool.get_connection()
    try:
        (Path(folder) / "holds").touch()
        while not (Path(folder) / "go").exists():
            time.sleep(0.01)
    finally:
        pool.release(connection)
