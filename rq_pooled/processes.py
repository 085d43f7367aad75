"""The processes that use a server: each publishes its statistics in one hash with expiry; here it is written and read.

A process is named ``<app>:<host>:<pid>``, as in the names of its connections.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from redis import Redis

from .config import Settings
from .counters import NAMES, RECENT, histogram
from .resp import Command
from .scripts import STATS, Scripts
from .sockets import client_name

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
    if len(parts) != 5 or parts[0] != "rq_pooled" or not parts[3].isdigit():
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


def read_processes(client: Redis) -> list[dict[str, Any]]:
    """Return what every process has published, by name; see docs/monitoring.md for the keys. Pages of 200."""
    now = server_time(client)
    keys = sorted(_text(key) for key in client.zrangebyscore(STATS, now, "+inf"))
    found = []
    for start in range(0, len(keys), _PAGE):
        pipeline = client.pipeline(transaction=False)
        for key in keys[start : start + _PAGE]:
            pipeline.hgetall(key)
        for key, raw in zip(keys[start : start + _PAGE], pipeline.execute()):
            if raw:  # else it has just expired
                found.append(_process(key, {_text(k): _text(v) for k, v in raw.items()}, now))
    return found


def _process(key: str, raw: Mapping[str, str], now: float) -> dict[str, Any]:
    app, host, pid = key.split(":")[-3:]
    values = {name: json.loads(value) for name, value in raw.items()}
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
    return histogram(flat[1:], flat[0])


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
