"""What processes tell of themselves: this one's pools, and the statistics that others have published."""

from __future__ import annotations

from typing import Any

from redis import Redis

from ..capacity.processes import read_processes
from ..pool.pool import get_connection, local_pools


def processes(connection: Redis | None = None, unreadable: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the statistics that workers and web processes have published. Blocks for three round trips per 200.

    Each has ``name``, ``app``, ``host``, ``pid``, ``kind`` (``worker`` or ``web``), ``age`` (seconds since it was
    published), ``uptime``, ``connections`` (role -> open ones), ``pools``, and ``worker``: None, or ``name``,
    ``queues``, ``concurrency``, ``busy``, ``horses`` (pids), ``counters``, ``queue_wait`` and ``run_time``. What is
    something else than statistics is left out, and its name added to ``unreadable``.
    """
    return read_processes(connection or get_connection(), unreadable)


def pool_stats() -> dict[str, Any]:
    """Return the state of this process's pools. Asks no server and does not block.

    Returns:
        ``pools``: for each ``role``, ``address`` and all keys of ``Pool.stats()``; and their sums over all pools,
        ``max``, ``created``, ``available``, ``in_use``, ``waiting``, ``timeouts``, ``reconnects``.
    """
    pools = [{"role": pool.role, "address": pool.address, **pool.stats()} for pool in local_pools()]
    names = ("max", "created", "available", "in_use", "waiting", "timeouts", "reconnects")
    return {**{name: sum(pool[name] for pool in pools) for name in names}, "pools": pools}
