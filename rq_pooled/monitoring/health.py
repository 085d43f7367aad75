"""Health, statistics, queues, failed jobs and connections as plain dictionaries; docs/monitoring.md has their keys.

Keys are stable: new ones may come, none changes its meaning. Values are numbers, texts, lists, dictionaries and None,
fit for JSON. No password appears in any of them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rq import Queue
from rq.registry import (
    BaseRegistry,
    CanceledJobRegistry,
    DeferredJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ScheduledJobRegistry,
    StartedJobRegistry,
)

from ..capacity.level import level_of
from ..capacity.processes import read_processes
from ..config.secrets import scrub
from ..config.settings import Settings
from ..connection.connect_errors import FULL
from ..connection.options import make_connection
from ..connection.place import address_of
from ..deadline import within
from ..failed.listing import failed_jobs
from ..foreign import plain, replies_of, seconds_of
from ..pool.pool import get_connection, local_pools
from ..rq_version import check_prefix
from ..wire import raw, text
from .guard import ConnectionGuard

_REGISTRIES: dict[str, type[BaseRegistry]] = {
    "started": StartedJobRegistry,
    "scheduled": ScheduledJobRegistry,
    "deferred": DeferredJobRegistry,
    "failed": FailedJobRegistry,
    "finished": FinishedJobRegistry,
    "canceled": CanceledJobRegistry,
}
#: Ids at the head of a queue among which the oldest job is looked for; some may have no job any more.
_HEAD = 10
#: Rate limits of RQ 3, and jobs that wait at each, whose queues are looked up.
_LIMITS, _COUNTED = 100, 200

__all__ = ["connections", "failed_jobs", "health", "health_word", "pool_stats", "processes", "queues"]


def health(timeout: float = 2.0, settings: Settings | None = None, connection: Redis | None = None) -> dict[str, Any]:
    """Ask the server for a sign of life; one that is away is an answer, not an error. Blocks for at most ``timeout``.

    Opens one connection named ``…:probe`` and closes it: what matters is whether one can be opened. Only resolving a
    host's name is not bounded by ``timeout``.

    Args:
        timeout: seconds for everything.
        settings: from the environment if not given.
        connection: a client whose server is asked instead of the one in the settings.

    Returns:
        ``ok``, ``status`` (``healthy``, ``full``: the guard's level is ``stop``, or it takes no clients, ``away``),
        ``reason`` (None if ok), ``address``, ``latency`` (seconds of a PING, or None), ``version``, ``connected``,
        ``maxclients``, ``level``.

    Raises:
        ConfigurationError: a setting or the URL cannot be used.
    """
    with within(timeout, "timeout"):
        return _probed(timeout, settings or Settings.load(), connection)


def health_word(
    timeout: float = 2.0, settings: Settings | None = None, connection: Redis | None = None, age: float = 1.0
) -> dict[str, Any]:
    """Return of ``health`` what strangers may know, ``ok`` and ``status``; one answer serves all callers for ``age``
    seconds.

    So a probe that anybody may call opens one connection a second and process at most. Blocks as ``health``.
    """
    client = connection or get_connection(settings)
    shared = _words.setdefault(client.connection_pool, _Word())
    if shared.is_older_than(age):
        # While one caller asks, the others take the last answer, which is at most as old as a probe takes, or wait for
        # the first.
        wait = timeout if shared.found is None else 0
        if shared.asking.acquire(timeout=wait):
            try:
                if shared.is_older_than(age):
                    shared.asked = time.monotonic()
                    found = health(timeout, settings, client)
                    shared.found = {"ok": found["ok"], "status": found["status"]}
            finally:
                shared.asking.release()
    return dict(shared.found or {"ok": False, "status": "away"})


class _Word:
    """The last answer of a server, when it was asked for, and the lock of the caller that asks."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None
        self.asked = 0.0
        self.asking = threading.Lock()

    def is_older_than(self, age: float) -> bool:
        """Tell whether the server is to be asked again."""
        return self.found is None or time.monotonic() - self.asked > age


#: By pool, so that it ends with it. A forked process begins anew: the lock may be held by a thread that it has not.
_words: WeakKeyDictionary[Any, _Word] = WeakKeyDictionary()
os.register_at_fork(after_in_child=_words.clear)


def _probed(timeout: float, settings: Settings, connection: Redis | None) -> dict[str, Any]:
    began = time.monotonic()
    report: dict[str, Any] = {"ok": False, "status": "away", "reason": None, "address": None}
    report.update(latency=None, version=None, connected=None, maxclients=None, level="unknown")
    # Connecting may try several addresses, and each step has its own limit: three steps share the time.
    step = timeout / 3
    client = connection or get_connection(settings)
    probe = make_connection(
        settings,
        "probe",
        client,
        socket_timeout=step,
        socket_connect_timeout=step,
        health_check_interval=0,
    )
    report["address"] = address_of(type(probe), dict(client.connection_pool.connection_kwargs))
    try:
        probe.connect()
        asked = time.monotonic()
        probe.send_command("PING", check_health=False)
        probe.read_response()
        report["latency"] = round(time.monotonic() - asked, 6)
        if time.monotonic() - began < timeout - step:
            report.update(_described(probe, settings))
        report["ok"] = report["level"] != "stop"
        report["status"] = "healthy" if report["ok"] else "full"
        if not report["ok"]:
            report["reason"] = f"{report['connected']} of {report['maxclients']} connections of the server are in use"
    except (RedisError, OSError) as error:
        report["reason"] = scrub(str(error)) or type(error).__name__
        if FULL in str(error):
            report["status"] = "full"
    finally:
        probe.disconnect()
    return report


def _described(probe: Any, settings: Settings) -> dict[str, Any]:
    """Return what INFO says, nothing where it is refused."""
    found: dict[str, Any] = {}
    for section in ("server", "clients"):
        probe.send_command("INFO", section, check_health=False)
        try:
            text = probe.read_response()
        except ResponseError:
            return {}
        for line in _text(text).splitlines():
            name, _, found[name] = line.partition(":")
    connected = int(found.get("connected_clients", 0)) or None
    maxclients = settings.guard_maxclients or int(found.get("maxclients", 0)) or None
    level = level_of(settings, connected, maxclients)
    version = found.get("valkey_version") or found.get("redis_version")
    return {"version": version, "connected": connected, "maxclients": maxclients, "level": level.name}


def pool_stats() -> dict[str, Any]:
    """Return the state of this process's pools. Asks no server and does not block.

    Returns:
        ``pools``: for each ``role``, ``address`` and all keys of ``Pool.stats()``; and their sums over all pools,
        ``max``, ``created``, ``available``, ``in_use``, ``waiting``, ``timeouts``, ``reconnects``.
    """
    pools = [{"role": pool.role, "address": pool.address, **pool.stats()} for pool in local_pools()]
    names = ("max", "created", "available", "in_use", "waiting", "timeouts", "reconnects")
    return {**{name: sum(pool[name] for pool in pools) for name in names}, "pools": pools}


def processes(connection: Redis | None = None, unreadable: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the statistics that workers and web processes have published. Blocks for three round trips per 200.

    Each has ``name``, ``app``, ``host``, ``pid``, ``kind`` (``worker`` or ``web``), ``age`` (seconds since it was
    published), ``uptime``, ``connections`` (role -> open ones), ``pools``, and ``worker``: None, or ``name``,
    ``queues``, ``concurrency``, ``busy``, ``horses`` (pids), ``counters``, ``queue_wait`` and ``run_time``. What is
    something else than statistics is left out, and its name added to ``unreadable``.
    """
    return read_processes(connection or get_connection(), unreadable)


def connections(connection: Redis | None = None, settings: Settings | None = None) -> dict[str, Any]:
    """Return who holds the server's connections, see ``ConnectionGuard.describe``. Blocks for four round trips."""
    return ConnectionGuard(settings, connection).describe()


def queues(connection: Redis | None = None) -> list[dict[str, Any]]:
    """Return the state of every queue, by name. Blocks for three round trips, and for two more
    where jobs wait at rate limits; changes nothing, cleans nothing up.

    Each has ``name``, ``length``, ``oldest_age`` (seconds that the job at the head has been queued, None if there is
    none), ``workers``, ``suspended``, and the number of jobs ``started``, ``scheduled``, ``deferred``, ``failed``,
    ``finished`` and ``canceled``, and of RQ 3's ``ready`` (dependents that a stock worker has still to queue) and
    ``rate_limited`` (of 100 limits, 200 jobs each). A key that is of another type than RQ's counts as empty, and
    ``unreadable`` names it: ``queued``, ``workers`` or a registry. A name that is no text is shown with escapes such as
    ``\\xff``.

    Raises:
        ConfigurationError: RQ keeps its data under another prefix.
    """
    check_prefix()
    client = connection or get_connection()
    names = sorted({text(key).removeprefix(Queue.redis_queue_namespace_prefix) for key in client.smembers("rq:queues")})
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    pipeline.exists("rq:suspended")
    for name in names:
        pipeline.llen(raw(f"rq:queue:{name}"))
        pipeline.lrange(raw(f"rq:queue:{name}"), 0, _HEAD - 1)
        pipeline.scard(raw(f"rq:workers:{name}"))
        for registry in _REGISTRIES.values():
            pipeline.zcard(raw(registry.key_template.format(name)))
        pipeline.zcard(raw(f"rq:ready:{name}"))
    pipeline.srandmember("rq:rl-keys", _LIMITS)
    (seconds, microseconds), suspended, *replies, limits = replies_of(pipeline)
    held = _held_back(client, limits or ())
    now, width = seconds + microseconds / 1e6, 4 + len(_REGISTRIES)
    heads = [replies[at + 1] or [] for at in range(0, len(replies), width)]
    ages = _queued_for(client, heads, now)
    return [
        {
            "name": plain(name),
            "length": replies[at] or 0,
            "oldest_age": age,
            "workers": replies[at + 2] or 0,
            "suspended": bool(suspended),
            **dict(zip((*_REGISTRIES, "ready"), [count or 0 for count in replies[at + 3 : at + width]])),
            "rate_limited": held[name],
            "unreadable": [
                state
                for state, reply in zip(
                    ("queued", "workers", *_REGISTRIES, "ready"), (replies[at], *replies[at + 2 : at + width])
                )
                if reply is None
            ],
        }
        for name, at, age in zip(names, range(0, len(replies), width), ages)
    ]


def _held_back(client: Redis, limits: Sequence[bytes]) -> Counter[str]:
    """Return how many jobs of each queue wait at these rate limits: RQ keeps them by limit."""
    pipeline = client.pipeline(transaction=False)
    for limit in limits:
        pipeline.zrange(b"rq:rl:" + raw(limit) + b":rate_limited", 0, _COUNTED - 1)
    waiting = [job_id for ids in (replies_of(pipeline) if limits else ()) for job_id in ids or ()]
    for job_id in waiting:
        pipeline.hget(b"rq:job:" + raw(job_id), "origin")
    return Counter(text(origin) for origin in (replies_of(pipeline) if waiting else ()) if origin is not None)


def _queued_for(client: Redis, heads: Sequence[Sequence[Any]], now: float) -> list[float | None]:
    pipeline = client.pipeline(transaction=False)
    for head in heads:
        for job_id in head:
            pipeline.hget(b"rq:job:" + raw(job_id), "enqueued_at")
    replies = iter(replies_of(pipeline) if any(heads) else ())
    ages: list[float | None] = []
    for head in heads:
        times = [when for when in (seconds_of(next(replies)) for _ in head) if when is not None]
        ages.append(round(max(0.0, now - min(times)), 3) if times else None)
    return ages


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
