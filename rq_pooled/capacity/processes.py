"""The processes that use a server: each publishes its statistics in one hash with expiry; here it is written and read.

A process is named ``<app>:<host>:<pid>``, as in the names of its connections.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from redis import Redis

from ..config.settings import Settings
from ..connection.names import client_name
from ..foreign import MAX_VALUE, is_number, plain, printable, replies_of, whole_number
from ..store.counters import BOUNDS, NAMES, RECENT, histogram
from ..store.scripts import STATS, Scripts
from ..wire import Command, text

#: Seconds that the statistics of a web process are kept: one without requests is silent, which is no fault.
WEB_TTL = 3600.0
#: Hashes read in one pipeline.
_PAGE = 200


def process_name(settings: Settings) -> str:
    """Return ``<app>:<host>:<pid>`` of this process."""
    return client_name(settings, "").split(":", 1)[1].rstrip(":")


def split_name(name: str) -> tuple[str, str, int, str] | None:
    """Return (app, host, pid, role) of a connection's name in CLIENT LIST, None if it is not one of ours."""
    parts = name.split(":")
    if len(parts) != 5 or parts[0] != "rq_pooled" or whole_number(parts[3]) == 0:
        return None
    return parts[1], parts[2], int(parts[3]), parts[4]


def client_rows(reply: Any) -> list[dict[str, Any]] | None:
    """Return the raw reply to CLIENT LIST as one dictionary per client, None if it is an error."""
    if not isinstance(reply, bytes):
        return None
    rows = []
    for line in reply.decode(errors="replace").splitlines():
        fields = dict(pair.split("=", 1) for pair in line.split(" ") if "=" in pair)
        rows.append({"name": "", "addr": "", **fields})
    return rows


def publish(scripts: Scripts, process: str, ttl: float, fields: Mapping[str, Any]) -> Command:
    """Return the command that publishes ``fields`` for ``ttl`` seconds; values are stored as JSON."""
    words = {name: json.dumps(value, separators=(",", ":")) for name, value in fields.items()}
    return scripts.publish(f"{STATS}:{process}", ttl, words)


def withdraw(process: str) -> list[Command]:
    """Return the commands that remove what a process has published: it ends."""
    return [("DEL", f"{STATS}:{process}"), ("ZREM", STATS, f"{STATS}:{process}")]


def server_time(client: Redis) -> float:
    """Return the server's clock, seconds since the epoch."""
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1e6


def read_processes(client: Redis, unreadable: list[str] | None = None) -> list[dict[str, Any]]:
    """Return what every process has published, by name; see docs/monitoring.md for the keys. Pages of 200.

    Args:
        client: of the server.
        unreadable: is given the names of entries that are something else; they are left out.
    """
    now = server_time(client)
    keys: list[Any] = sorted(client.zrangebyscore(STATS, now, "+inf"))
    found = []
    for start in range(0, len(keys), _PAGE):
        pipeline = client.pipeline(transaction=False)
        for key in keys[start : start + _PAGE]:
            pipeline.hgetall(key)
        for key, raw in zip(keys[start : start + _PAGE], replies_of(pipeline)):
            if raw == {}:  # it has just expired
                continue
            try:
                found.append(_process(text(key), {text(k): text(v) for k, v in raw.items()}, now))
            except (AttributeError, ValueError, RecursionError):  # no hash, no JSON, or JSON of another shape
                if unreadable is not None:
                    unreadable.append(printable(text(key).removeprefix(f"{STATS}:"), MAX_VALUE))
    return found


def _process(key: str, raw: Mapping[str, str], now: float) -> dict[str, Any]:
    """Return what a process has published. Raises ValueError: it is something else."""
    app, host, pid = plain(key.split(":")[-3:])
    if whole_number(pid) == 0:
        raise ValueError("no process id")
    values = {name: plain(json.loads(value)) for name, value in raw.items()}
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
            "horses": values.get("horses", []),
            "recent": values.get("recent", {"seconds": 0.0, **dict.fromkeys(RECENT, 0)}),
            "rates": values.get("rates", {}),
            "counters": {name: values.get(name, 0) for name in NAMES},
            **{name: _histogram(values.get(name, [0.0])) for name in ("queue_wait", "run_time")},
        }
    return known


def _histogram(flat: list[Any]) -> dict[str, Any]:
    counts = flat[1 : len(BOUNDS) + 2]
    return histogram([*counts, *[0] * (len(BOUNDS) + 1 - len(counts))], flat[0])


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
    **dict.fromkeys(("kind", "worker"), _is_text),
    **dict.fromkeys(("connections", "rates"), _are_counts),
    **dict.fromkeys(("queue_wait", "run_time"), lambda value: _are_numbers(value) and value != []),
    "horses": _are_numbers,
    "pools": _are_pools,
    "queues": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "recent": lambda value: _are_counts(value) and {"seconds", *RECENT} <= set(value),  # type: ignore[call-overload]
}
