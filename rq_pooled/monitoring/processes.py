"""What processes tell of themselves: this one's pools, and the statistics that others have published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from redis import Redis

from ..foreign import MAX_VALUE, is_number, plain, printable, replies_of, whole_number
from ..pool.local import local_pools
from ..pool.registry import get_connection
from ..store.counters import BOUNDS, NAMES, RECENT, histogram
from ..store.keys import STATS, stats_key, worker_key
from ..store.queues import first_queues
from ..store.views import current_view, is_shown
from ..wire import raw, text

#: Hashes read in one pipeline, and slots of a worker that are asked for their state.
_PAGE = _SLOTS = 200
#: Processes that are read: those that have to publish again first, which all that live soon have to.
MAX_PROCESSES = 2_000
#: Bytes of statistics after which no further page of them is read.
_MAX_BYTES = 16 * 1024 * 1024


def processes(connection: Redis | None = None, unreadable: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the statistics that workers and web processes have published. Blocks for two round trips, and one per 200.

    Each has ``name``, ``app``, ``host``, ``pid``, ``kind`` (``worker`` or ``web``), ``age`` (seconds since it was
    published), ``uptime``, ``connections`` (role -> open ones), ``pools``, and ``worker``: None, or ``name``,
    ``queues``, ``concurrency``, ``busy``, ``held`` (it claims nothing), ``signing`` (as SIGNING says it, "" without
    keys), ``horses`` (pids), ``memory``, ``counters``, ``queue_wait`` and ``run_time``. What is something else than
    statistics is left out, and its name added to ``unreadable``, as is the number of those beyond MAX_PROCESSES, or
    16 MB.
    """
    return only_shown(read_processes(connection or get_connection(), unreadable))


def only_shown(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return processes without what is of workers that serve a queue which may not be shown."""
    # A worker's numbers are sums over its queues.
    return [
        one if not one["worker"] or all(map(is_shown, one["worker"]["queues"])) else {**one, "worker": None}
        for one in found
    ]


def pool_stats() -> dict[str, Any]:
    """Return the state of this process's pools. Asks no server and does not block.

    Returns:
        ``pools``: for each ``role``, ``address`` and all keys of ``Pool.stats()``; and their sums over all pools,
        ``max``, ``created``, ``available``, ``in_use``, ``waiting``, ``timeouts``, ``reconnects``.
    """
    pools = [{"role": pool.role, "address": pool.address, **pool.stats()} for pool in local_pools()]
    names = ("max", "created", "available", "in_use", "waiting", "timeouts", "reconnects")
    return {**{name: sum(pool[name] for pool in pools) for name in names}, "pools": pools}


def server_time(client: Redis) -> float:
    """Return the server's clock, seconds since the epoch."""
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1e6


def note_busy(client: Redis, workers: list[dict[str, Any]]) -> None:
    """Give each worker ``busy_now``: its slots that run a job at this moment. Blocks for one round trip."""
    pipeline: Any = client.pipeline(transaction=False)
    slots = [min(int(one["worker"]["concurrency"]), _SLOTS) for one in workers]
    for one, count in zip(workers, slots):
        name = one["worker"]["name"]
        for slot in [name, *(f"{name}-{number}" for number in range(1, count))]:
            pipeline.hget(raw(worker_key(slot)), "state")
    states = iter(replies_of(pipeline) if workers else ())
    for one, count in zip(workers, slots):
        one["busy_now"] = sum(text(next(states) or b"") == "busy" for _ in range(max(1, count)))


def read_processes(client: Redis, unreadable: list[str] | None = None) -> list[dict[str, Any]]:
    """Return what every process has published, by name; see docs/monitoring.md for the keys. Pages of 200.

    Args:
        client: of the server.
        unreadable: is given the names of entries that are something else; they are left out.
    """
    if current_view().is_restricted:
        # Statistics name queues, too. There is a time for asking, and it is for those that the server knows first.
        first_queues(client.execute_command)
    now = server_time(client)
    pipeline: Any = client.pipeline(transaction=False)
    pipeline.zcount(STATS, now, "+inf")
    pipeline.zrangebyscore(STATS, now, "+inf", start=0, num=MAX_PROCESSES)
    count, keys = replies_of(pipeline)
    said = [] if unreadable is None else unreadable
    if count is None:
        # The key is of another type; each process makes it anew with its next heartbeat.
        said.append(STATS)
    keys, found, looked_at, size = keys or [], [], 0, 0
    for start in range(0, len(keys), _PAGE):
        if size > _MAX_BYTES:
            break
        pipeline = client.pipeline(transaction=False)
        for key in keys[start : start + _PAGE]:
            pipeline.hgetall(key)
        for key, fields in zip(keys[start : start + _PAGE], replies_of(pipeline)):
            looked_at += 1
            size += sum(map(len, fields.values())) if isinstance(fields, dict) else 0
            if fields == {}:
                # It has just expired.
                continue
            try:
                found.append(_process(text(key), {text(k): text(v) for k, v in fields.items()}, now))
            except (AttributeError, ValueError, RecursionError):
                # It is no hash, no JSON, or JSON of another shape.
                said.append(printable(text(key).removeprefix(stats_key("")), MAX_VALUE))
    if count and (looked_at < len(keys) or len(keys) == MAX_PROCESSES) and count > looked_at:
        said.insert(0, f"{count - looked_at} more processes")
    return sorted(found, key=lambda one: one["name"])


def _process(key: str, fields: Mapping[str, str], now: float) -> dict[str, Any]:
    """Return what a process has published. Raises ValueError: it is something else."""
    app, host, pid = plain(key.split(":")[-3:])
    if whole_number(pid) == 0:
        raise ValueError("no process id")
    values = {name: plain(json.loads(value)) for name, value in fields.items()}
    for name, value in values.items():
        if name in _SHAPES and not _SHAPES[name](value):
            raise ValueError(name)
    known: dict[str, Any] = {
        "name": f"{app}:{host}:{pid}",
        "app": app,
        "host": host,
        "pid": int(pid),
        "kind": values.get("kind", "web"),
        "age": round(max(0.0, now - float(values.get("published_at", now))), 3),
        "uptime": values.get("uptime", 0.0),
        "connections": values.get("connections", {}),
        "pools": values.get("pools", []),
        "worker": None,
    }
    if known["kind"] == "worker":
        known["worker"] = {
            "name": values.get("worker", ""),
            "queues": values.get("queues", []),
            "concurrency": values.get("concurrency", 0),
            "busy": values.get("busy", 0),
            "held": values.get("held", False),
            "signing": values.get("signing", ""),
            "horses": values.get("horses", []),
            "memory": _memory(values.get("memory", [])),
            "recent": values.get("recent", {"seconds": 0.0, **dict.fromkeys(RECENT, 0)}),
            "rates": values.get("rates", {}),
            "counters": {name: values.get(name, 0) for name in NAMES},
            **{name: _histogram(values.get(name, [0.0])) for name in ("queue_wait", "run_time")},
        }
    return known


def _histogram(flat: list[Any]) -> dict[str, Any]:
    counts = flat[1 : len(BOUNDS) + 2]
    return histogram([*counts, *[0] * (len(BOUNDS) + 1 - len(counts))], flat[0])


def _memory(sizes: list[float]) -> dict[str, Any]:
    return {"parent": sizes[0] if sizes else None, "horses": sizes[1:]}


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


def _are_pools(value: object) -> bool:
    names = ("max", "created", "available", "in_use", "waiting", "timeouts")
    return isinstance(value, list) and all(
        isinstance(pool, dict) and _is_text(pool.get("role")) and all(is_number(pool.get(name)) for name in names)
        for pool in value
    )


#: What each published value looks like; what is not in it is not read.
_SHAPES: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys((*NAMES, "published_at", "uptime", "concurrency", "busy"), is_number),
    **dict.fromkeys(("kind", "worker", "signing"), _is_text),
    **dict.fromkeys(("connections", "rates"), _are_counts),
    **dict.fromkeys(("queue_wait", "run_time"), lambda value: _are_numbers(value) and value != []),
    **dict.fromkeys(("horses", "memory"), _are_numbers),
    "held": lambda value: isinstance(value, bool),
    "pools": _are_pools,
    "queues": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "recent": lambda value: _are_counts(value) and {"seconds", *RECENT} <= set(value),  # type: ignore[call-overload]
}
