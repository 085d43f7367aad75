"""``rq-pooled top``: connections, queues and workers on one screen, drawn anew in place; a plain text when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import click
from redis import Redis
from redis.exceptions import RedisError

from ..config.secrets import message_of
from ..config.settings import Settings
from ..connection.place import address_of
from ..durations import show_duration
from ..errors import RQPooledError
from ..monitoring.guard import ConnectionGuard
from ..monitoring.processes import note_busy, processes
from ..monitoring.queues import queues
from ..monitoring.throughput import throughput
from ..monitoring.words import count as counted
from ..store.counters import quantile
from .options import open_server, server_options
from .printing import say, say_json
from .tables import pace, process_rows, queue_rows, seconds, table
from .terminal import draw, size, terminal


@click.command(short_help="Show all of it in a terminal, drawn anew.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, metavar="SECONDS")
@click.option(
    "--count", type=click.IntRange(1), metavar="N", help="End after so many screens. [1 when piped, else never]"
)
@server_options
def top(url: str | None, as_json: bool, interval: float, count: int | None) -> None:
    """Show connections, queues and workers, drawn anew every few seconds; q or Ctrl-C ends it.

    Piped or with --json it prints one screen (or --count, a JSON document per line) and ends. While the server is
    away a terminal shows so and goes on; a pipe ends with 75.
    """
    client, settings = open_server(url), Settings.load({"url": url})
    live = sys.stdout.isatty() and not as_json
    if not live:
        for number in range(count or 1):
            if number:
                time.sleep(interval)
            found = look(client, settings)
            if as_json:
                say_json(found, None)
            else:
                say(*screen(found, 200, 10_000), *[""] * (count is not None))
        return
    with terminal() as wait:
        shown, away_since, paces = 0, None, Paces()
        while count is None or shown < count:
            shape = size()
            try:
                lines = screen(paces.add(look(client, settings)), shape.columns, shape.lines)
                away_since = None
            except (RedisError, OSError, RQPooledError) as error:
                away_since = away_since or time.monotonic()
                lines = [
                    f"rq-pooled top - {time.strftime('%H:%M:%S')}",
                    f"The server is away for {show_duration(round(time.monotonic() - away_since))}:",
                    *_wrapped(message_of(error), shape.columns),
                ]
            draw(lines, shape.columns, shape.lines)
            shown += 1
            if wait(interval):
                break


class Paces:
    """Tells how fast workers are between two screens, from what they published before the one and the other."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int, float | None]] = {}

    def add(self, found: dict[str, Any]) -> dict[str, Any]:
        """Give each worker its ``pace``, outcomes per second, where an earlier screen allows it."""
        now = {}
        for one in found["processes"]:
            if one["worker"] is None:
                continue
            done = sum(one["worker"]["counters"][name] for name in ("finished", "failed", "retried"))
            uptime, earlier, last = self._before.get(one["name"], (one["uptime"], done, None))
            if one["uptime"] > uptime:
                last = (done - earlier) / (one["uptime"] - uptime)
            if last is not None:
                one["worker"]["pace"] = last
            now[one["name"]] = (one["uptime"], done, last)
        self._before = now
        return found


def look(client: Redis, settings: Settings) -> dict[str, Any]:
    """Return everything that the screen shows. Blocks for about ten round trips."""
    pool = client.connection_pool
    found = processes(client)
    note_busy(client, [one for one in found if one["worker"]])
    return {
        "time": time.time(),
        "address": address_of(pool.connection_class, pool.connection_kwargs),
        "connections": ConnectionGuard(settings, client).describe(),
        "processes": found,
        "queues": queues(client),
        "throughput": throughput(client),
    }


def screen(found: dict[str, Any], width: int, height: int) -> list[str]:
    """Return the screen as at most ``height`` lines: what does not fit is counted in a line of its own."""
    connections, workers = found["connections"], [one for one in found["processes"] if one["worker"]]
    counters = [one["worker"]["counters"] for one in workers]
    jobs = sum(pace(one["worker"]) for one in workers)

    def total(name: str) -> Any:
        return sum(one[name] for one in counters)

    slots = sum(one["worker"]["concurrency"] for one in workers)
    busy = sum(one.get("busy_now", one["worker"]["busy"]) for one in workers)
    done = ", ".join(f"{name} {total(name)}" for name in ("finished", "failed", "retried"))
    trouble = {
        "lost": "lost_claims",
        "stale": "stale_ids",
        "stalls": "stalls",
        "restarts": "horses_replaced",
        "reconnects": "reconnects",
    }
    away = show_duration(round(total("outage_seconds"), 1))
    head = [
        f"rq-pooled top - {found['address']} - {time.strftime('%H:%M:%S', time.localtime(found['time']))}",
        "connections  " + _connections(connections),
        f"jobs         {jobs:.1f}/s, {busy} of {slots} slots busy; {done}",
        _throughput(found["throughput"]),
        _failed(found["queues"]),
        "trouble      " + ", ".join(f"{word} {total(name)}" for word, name in trouble.items()) + f", away {away}",
        _latency(workers),
    ]
    left = max(0, height - len(head) - 3)
    queue_lines = table(queue_rows(found["queues"])) if found["queues"] else ["no queues"]
    process_lines = table(process_rows(found["processes"])) if found["processes"] else ["no processes"]
    other_lines = _holders(connections)
    # Each list gets a third, and what others leave over.
    wanted = [len(queue_lines), len(process_lines), len(other_lines)]
    given = _shares(wanted, left)
    parts = [_cut(lines, room) for lines, room in zip((queue_lines, process_lines, other_lines), given)]
    lines = head + [line for part in parts if part for line in ["", *part]]
    return [line[:width] for line in lines[:height]]


def _connections(found: dict[str, Any]) -> str:
    if found["connected"] is None:
        return "unknown: the server refuses INFO"
    of = f" of {found['maxclients']} ({found['share']:.0%}) {found['level']}" if found["maxclients"] else ""
    pace = f", {found['trend_per_minute']:+g}/min" if found["trend_per_minute"] else ""
    # None where the limit is not known.
    left = found["minutes_left"]
    growth = "" if left is None else f", full in {left:g} min"
    orphans = f", {len(found['orphans'])} left behind" if found["orphans"] else ""
    others = sum(other["total"] for other in found["others"])
    return f"{found['connected']}{of}{pace}{growth}; ours {found['ours']}, others {others}{orphans}"


def _throughput(ended: dict[str, Any]) -> str:
    rates, sums = ([ended[name + per] for name in ("finished", "failed")] for per in ("_per_minute", ""))
    return f"a minute     {rates[0]:g} finished, {rates[1]:g} failed; in the last hour {sums[0]} and {sums[1]}"


def _failed(queues: Sequence[dict[str, Any]]) -> str:
    """A line of its own, because it is what an operator looks for, and at 80 columns the end of a line is cut."""
    jobs, dead = (sum(queue[state] for queue in queues) for state in ("failed", "dead"))
    return f"now failed   {counted(jobs, 'job')}, {counted(dead, 'dead letter')} (rq-pooled failed --groups)"


def _latency(workers: Sequence[dict[str, Any]]) -> str:
    parts = []
    for name, label in (("queue_wait", "waited"), ("run_time", "ran")):
        merged: dict[str, Any] = {"count": 0, "buckets": {}}
        for one in workers:
            merged["count"] += one["worker"][name]["count"]
            for bound, below in one["worker"][name]["buckets"].items():
                merged["buckets"][bound] = merged["buckets"].get(bound, 0) + below
        half, most = (seconds(quantile(merged, share)) for share in (0.5, 0.95))
        parts.append(f"{label} {half} / {most}")
    return f"at most      {', '.join(parts)} (half / 95 % of the jobs)"


def _holders(found: dict[str, Any]) -> list[str]:
    """Return the other clients; ours are in the table of processes."""
    if not found["others"]:
        return []
    rows: list[list[object]] = [["OTHER CLIENTS", "FROM", "CONN"]]
    rows += [[other["name"] or "(no name)", other["address"], other["total"]] for other in found["others"]]
    return table(rows, left=2)


def _shares(wanted: Sequence[int], room: int) -> list[int]:
    """Return how many lines each list gets of ``room``."""
    given = [0] * len(wanted)
    while room > 0 and any(g < w for g, w in zip(given, wanted)):
        for i, want in enumerate(wanted):
            if room > 0 and given[i] < want:
                given[i] += 1
                room -= 1
    return given


def _cut(lines: list[str], room: int) -> list[str]:
    if len(lines) <= room:
        return lines
    return [*lines[: max(0, room - 1)], f"... and {len(lines) - room + 1} more"][:room]


def _wrapped(text: str, width: int) -> list[str]:
    return [text[start : start + width] for start in range(0, len(text), max(1, width))]
