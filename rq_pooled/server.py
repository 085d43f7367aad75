"""What a server has to be for a worker: checked once, before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from .errors import ServerUnsupported

logger = logging.getLogger("rq.worker")

#: LMOVE, the ZADD options and the Lua of 6.2 are the floor; older ones have had no fixes since 2022.
OLDEST = (6, 2, 0)


class Server(NamedTuple):
    """What a server says of itself."""

    version: tuple[int, int, int]
    #: Seconds since it was started; infinite where it does not say.
    uptime: float


def check_server(execute: Callable[[list[Any]], list[Any]]) -> Server:
    """Ask the server what it is; warn where it may evict keys.

    Args:
        execute: sends commands and returns raw replies.

    Raises:
        ServerUnsupported: it is older than 6.2, or in cluster mode.
    """
    (reply,) = execute([("INFO",)])
    if isinstance(reply, ResponseError):  # an ACL: what it cannot do will be said when it is asked to
        logger.warning("the server does not answer INFO (%s): its version and eviction policy are not checked", reply)
        return Server(OLDEST, float("inf"))
    info = dict(line.split(":", 1) for line in reply.decode(errors="replace").splitlines() if ":" in line)
    version = _parse(info.get("redis_version", "0"))
    if version < OLDEST:
        raise ServerUnsupported(
            f"the server is version {info.get('redis_version', 'unknown')}; rq_pooled needs 6.2 or newer: upgrade it"
        )
    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled") == "1":
        raise ServerUnsupported(
            "the server is a cluster node, and RQ's keys do not stay on one node: use one server or Sentinel"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        logger.warning("the server may evict jobs when memory is short (maxmemory-policy %s); set noeviction", policy)
    uptime = info.get("uptime_in_seconds", "")
    return Server(version, float(uptime) if uptime.isdigit() else float("inf"))


def _parse(text: str) -> tuple[int, int, int]:
    numbers = [int(part) for part in text.split(".")[:3] if part.isdigit()]
    major, minor, patch = (numbers + [0, 0, 0])[:3]
    return major, minor, patch
