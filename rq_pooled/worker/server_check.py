"""What a server has to be for a worker: checked once, before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from ..capacity.level import info_fields
from ..connection.away import NEEDED_RIGHTS
from ..connection.cluster import remedy
from ..errors import ServerUnsupported

logger = logging.getLogger("rq.worker")

#: LMOVE, the ZADD options and the Lua of 6.2 are the floor; older ones have had no fixes since 2022.
OLDEST = (6, 2, 0)


def check_server(
    execute: Callable[[list[Any]], list[Any]], in_cluster: bool = False, url: str = ""
) -> tuple[int, int, int]:
    """Ask the server what it is and return its version; warn where it may evict keys.

    Args:
        execute: sends commands and returns raw replies.
        in_cluster: it was found as a node of a cluster.
        url: of the server, as it is shown.

    Raises:
        ServerUnsupported: it is older than 6.2, or a node of a cluster that was not asked where the keys are.
    """
    (reply,) = execute([("INFO",)])
    # An ACL refuses INFO. What else it refuses is said when it is asked for.
    if isinstance(reply, ResponseError):
        logger.warning("the server does not answer INFO (%s): its version and eviction policy are not checked", reply)
        return OLDEST
    info = info_fields(reply)
    version = _parse(info.get("redis_version", "0"))
    if version < OLDEST:
        raise ServerUnsupported(
            f"the server is version {info.get('redis_version', 'unknown')}; rq_pooled needs 6.2 or newer: upgrade it"
        )
    if not in_cluster and (info.get("redis_mode") == "cluster" or info.get("cluster_enabled") == "1"):
        raise ServerUnsupported(f"the server is one node of a cluster, and the keys may move to another: {remedy(url)}")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        logger.warning("the server may evict jobs when memory is short (maxmemory-policy %s); set noeviction", policy)
    return version


def check_rights(execute: Callable[[list[Any]], list[Any]], question: Any) -> None:
    """Have the server tell which commands inside scripts it would refuse to this user.

    Args:
        execute: sends commands and returns raw replies.
        question: ``store.scripts.rights()``.

    Raises:
        ServerUnsupported: some that a worker needs; otherwise it would find out when it has a job.
    """
    (reply,) = execute([question])
    if isinstance(reply, list) and reply:
        names = ", ".join(name.decode() for name in reply[::2])
        raise ServerUnsupported(f"the server's access control refuses what a worker does: {names}; {NEEDED_RIGHTS}")


def _parse(text: str) -> tuple[int, int, int]:
    numbers = [int(part) for part in text.split(".")[:3] if part.isdigit()]
    major, minor, patch = (numbers + [0, 0, 0])[:3]
    return major, minor, patch
