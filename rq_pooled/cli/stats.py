"""``rq-pooled stats``, ``connections`` and ``check``: what monitoring.health knows, for people and probes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import click
from redis.exceptions import NoPermissionError

from ..config.settings import Settings
from ..durations import show_duration
from ..errors import ServerUnsupported
from ..foreign import MAX_VALUE, printable
from ..monitoring.guard import ConnectionGuard
from ..monitoring.health import processes, queues
from ..store.counters import quantile
from .options import open_server, server_options
from .printing import say, say_json

#: Names of what cannot be read that are shown.
_NAMED = 5
_COUNTED = (
    "claims",
    "finished",
    "failed",
    "retried",
    "lost_claims",
    "stale_ids",
    "stalls",
    "reconnects",
    "horses_replaced",
)


def table(rows: Iterable[Sequence[object]], left: int = 1) -> list[str]:
    """Return aligned lines; the first ``left`` columns to the left, the others to the right."""
    # A queue may have any name: none may move the cursor, or break a line.
    texts = [[printable(cell, MAX_VALUE) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*texts)]
    return [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in texts
    ]


def pace(worker: dict[str, Any]) -> float:
    """Return the outcomes per second of a worker: between two screens of ``top``, else in the last minutes."""
    if "pace" in worker:
        return float(worker["pace"])
    recent = worker["recent"]
    done = recent["finished"] + recent["failed"] + recent["retried"]
    return float(done / recent["seconds"]) if recent["seconds"] else 0.0


def seconds(value: float | None) -> str:
    """Return a duration for people, ``-`` for none."""
    if value is None:
        return "-"
    if value == math.inf:
        return ">1h"
    return f"{value * 1000:g}ms" if value < 1 else show_duration(round(value, 1))


def process_rows(found: Sequence[dict[str, Any]]) -> list[list[object]]:
    """Return a table of processes: workers first."""
    rows: list[list[object]] = [["PROCESS", "KIND", "CONN", "BUSY", "JOBS/S", "DONE", "FAILED", "RETRIED", "SEEN"]]
    for one in sorted(found, key=lambda one: (one["kind"] != "worker", one["name"])):
        worker, connections = one["worker"], sum(one["connections"].values())
        seen = f"{show_duration(round(one['age']))} ago"
        if worker is None:
            rows.append([one["name"], one["kind"], connections, "-", "-", "-", "-", "-", seen])
            continue
        counters = worker["counters"]
        busy = f"{worker['busy']}/{worker['concurrency']}"
        done = [counters[name] for name in ("finished", "failed", "retried")]
        rows.append([one["name"], "worker", connections, busy, f"{pace(worker):.1f}", *done, seen])
    return rows


def queue_rows(found: Sequence[dict[str, Any]]) -> list[list[object]]:
    """Return a table of queues."""
    rows: list[list[object]] = [["QUEUE", "QUEUED", "OLDEST", "RUNNING", "SCHEDULED", "DEFERRED", "FAILED", "WORKERS"]]
    # Of RQ 3, and rare: shown where there are some.
    rare = [state for state in ("rate_limited", "ready") if any(queue[state] for queue in found)]
    rows[0] += [state.replace("_", " ").upper() for state in rare]
    for queue in found:
        states = [queue[state] for state in ("started", "scheduled", "deferred", "failed", "workers", *rare)]
        rows.append([queue["name"], queue["length"], seconds(queue["oldest_age"]), *states])
    return rows


@click.command()
@server_options
def stats(url: str | None, as_json: bool) -> None:
    """Show what workers, web processes and queues are doing.

    Each process publishes its statistics at HEARTBEAT_INTERVAL; those of a web process are as old as its last
    request.
    """
    client = open_server(url)
    unreadable: list[str] = []
    found, waiting = processes(client, unreadable), queues(client)
    if as_json:
        say_json({"processes": found, "queues": waiting, "unreadable": unreadable})
        return
    if unreadable:
        count = f"{len(unreadable)} process{'es' * (len(unreadable) != 1)}"
        say(f"rq-pooled: {count} published what cannot be read: {', '.join(unreadable[:_NAMED])}", err=True)
    for queue in waiting:
        if queue["unreadable"]:
            states = ", ".join(queue["unreadable"])
            say(
                f"rq-pooled: {printable(queue['name'], MAX_VALUE)}: counted as empty, of another type: {states}",
                err=True,
            )
    if not found:
        say("No process has published statistics: no worker runs, and no web process lately.")
    else:
        say(*table(process_rows(found)))
    workers = [one["worker"] for one in found if one["worker"]]
    if workers:
        sums = {name: sum(worker["counters"][name] for worker in workers) for name in _COUNTED}
        away = sum(worker["counters"]["outage_seconds"] for worker in workers)
        say("", "since their start: " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in sums.items()))
        say(f"without the server: {show_duration(round(away, 1))}")
        for worker in workers:
            wait, run = worker["queue_wait"], worker["run_time"]
            at_most = [seconds(quantile(one, share)) for one in (wait, run) for share in (0.5, 0.95)]
            say(
                f"{worker['name']}: half of the jobs waited at most {at_most[0]}, 95 % {at_most[1]}; ran {at_most[2]}, "
                f"{at_most[3]}"
            )
    if waiting:
        say("", *table(queue_rows(waiting)))


def connection_lines(found: dict[str, Any]) -> list[str]:
    """Return what ``ConnectionGuard.describe`` found, for people."""
    if found["connected"] is None:
        head = "The server does not tell how many connections it has"
    else:
        of = f" of {found['maxclients']} ({found['share']:.1%})" if found["maxclients"] else " of an unknown number"
        head = f"{found['connected']}{of} connections in use: {found['level']}"
    if found["trend_per_minute"] is not None:
        head += f"; {found['trend_per_minute']:+g} a minute"
    if found["steady_growth"]:
        left = found["minutes_left"]
        head += ", growing steadily" + ("" if left is None else f": full in {left:g} minutes")
    lines = [head]
    if found["refused"]:
        lines.append(f"Refused to this user: {', '.join(found['refused'])}; what they would show is missing")
    rows: list[list[object]] = [["HELD BY", "ROLES", "FROM", "CONN"]]
    for one in found["processes"]:
        roles = ", ".join(f"{role} {count}" for role, count in sorted(one["roles"].items()))
        name = one["name"]
        if one["worker"]:
            name += f" (horse of {one['worker']})"
        elif not one["alive"] and not set(one["roles"]) <= {"cli", "probe"}:  # those publish nothing
            name += " (silent)"
        rows.append([name, roles, one["address"], one["total"]])
    rows += [[other["name"] or "(no name)", "-", other["address"], other["total"]] for other in found["others"]]
    if len(rows) > 1:
        lines += ["", *table(rows, left=3)]
    if found["orphans"]:
        lines += ["", "Left behind, it seems: their processes publish no statistics, and do not use them."]
        rows = [["CONNECTION", "NAME", "FROM", "IDLE", "AGE"]]
        for one in found["orphans"]:
            rows.append([one["id"], one["name"], one["address"], show_duration(one["idle"]), show_duration(one["age"])])
        lines += table(rows, left=3)
        lines.append("Close them with --reap, if you know that these processes are gone.")
    return lines


@click.command()
@click.option("--reap", is_flag=True, help="Close the connections of processes that are gone.")
@server_options
def connections(url: str | None, as_json: bool, reap: bool) -> None:
    """Show who holds how many of the server's connections.

    Ours are told by process and role, others by name and address. Connections whose process publishes no statistics
    and does not use them are listed as left behind. Whether a process of another container still lives cannot be
    checked from here, so they are closed only with --reap; a process that does live opens a new one.
    """
    guard = ConnectionGuard(Settings.load({"url": url}), open_server(url))
    try:
        closed = guard.reap() if reap else []
    except NoPermissionError as error:
        raise ServerUnsupported(
            f"the server refuses CLIENT KILL to this user: {error}; let it, or use another"
        ) from None
    found = guard.describe()
    if as_json:
        say_json({**found, "reaped": closed})
        return
    if reap:
        say(f"Closed {len(closed)} connection{'s' * (len(closed) != 1)} left behind.")
        for one in closed:
            say(f"  {one['name']} from {one['address']}, idle for {show_duration(one['idle'])}")
    say(*connection_lines(found))
