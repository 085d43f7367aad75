"""Turns ``overview`` into what the page's template shows: numbers as people read them, rows in the right order."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from ..failed.groups import GHOST
from ..foreign import MAX_VALUE, printable, shown
from ..monitoring.verdict import verdict
from ..monitoring.words import ago, moment, number, rate, span
from .chart import bars, chart

#: Rows of the tables of processes and others; the rest is summed up.
_ROWS = 30
#: Rows of the table of queues, and names of what cannot be read.
_QUEUES, _NAMED = 100, 5
#: Characters of a queue's name above which it has no buttons.
_LONGEST = 1000
#: What is counted of a queue.
_STATES = ("length", "started", "scheduled", "deferred", "failed", "dead", "workers")
#: What rows can be sorted by, and how it is read.
_SORTS: dict[str, dict[str, Callable[[dict[str, Any]], Any]]] = {
    "failures": {key: itemgetter(key) for key in ("exception", "queue", "count", "first", "last")},
    "queues": {key: itemgetter(key) for key in ("name", "oldest_age", "rate", *_STATES)},
    "workers": {
        "name": lambda one: one["worker"]["name"],
        "busy": itemgetter("busy_now"),
        "up": lambda one: one["uptime"] + one["age"],
        "age": itemgetter("age"),
        **{
            key: lambda one, key=key: one["worker"]["counters"][key]  # type: ignore[misc]
            for key in ("finished", "failed", "retried")
        },
    },
}
#: Seconds after which a figure that a process reported is marked as old.
OLD = 5.0


def present(found: dict[str, Any], sort: str = "") -> dict[str, Any]:
    """Return the variables of the template page.html.

    Args:
        found: by ``overview``.
        sort: a section and what its rows are sorted by, such as ``queues.failed``; anything else sorts nothing.
    """
    connections, now = found["connections"], found["now"]
    queues, budget, ceiling = found["queues"], connections["budget"], connections["maxclients"]
    names = {(p["host"], p["pid"]): p for p in found["processes"]}
    rows = [_holder(one, names.get((one["host"], one["pid"]))) for one in connections["processes"]]
    page = {
        "as_of": moment(now, now),
        "wrong": verdict(found),
        "ended": _ended(found["throughput"]),
        "partial": found["partial"],
        "bars": bars(found["throughput"], now),
        "level": connections["level"],
        "connected": number(connections["connected"]),
        "ceiling": number(ceiling),
        "ours": number(connections["ours"]),
        "budget": None if budget is None else number(budget),
        "budgeted": number(connections["budgeted"]),
        "roles": connections["roles"],
        "trend": _trend(connections),
        "refused": connections["refused"],
        "chart": chart(_history(connections, now), now, {"ceiling": ceiling, "budget": budget}),
        "holders": rows[:_ROWS],
        "more_holders": max(0, len(rows) - _ROWS),
        "others": connections["others"][:_ROWS],
        "other_count": number(sum(other["total"] for other in connections["others"])),
        "orphans": connections["orphans"][:_ROWS],
        "queues": [queue_row(queue) for queue in _busiest(queues, sort)],
        "queue_count": len(queues),
        "more_queues": number(max(0, len(queues) - _QUEUES)),
        "unreadable": [printable(name, MAX_VALUE) for name in found["unreadable"][:_NAMED]],
        "unreadable_count": len(found["unreadable"]),
        "oldest": span(max((queue["oldest_age"] or 0 for queue in queues), default=0) or None),
        "queued": number(sum(queue["length"] for queue in queues)),
        "running": number(sum(queue["started"] for queue in queues)),
        "dead": number(sum(queue["dead"] for queue in queues)),
        "slots": number(sum(process["worker"]["concurrency"] for process in found["workers"])),
        "workers": [_worker(process) for process in _sorted(found["workers"], sort, "workers", "name")],
        "failed": number(found["failed"]),
        "looked_at": number(found["looked_at"]) if found["looked_at"] < found["failed"] else None,
        "failures": [_group(group, now) for group in _sorted(found["failures"], sort, "failures", "count")[:_ROWS]],
        "scheduled": number(found["scheduled"]),
        "upcoming": [
            {**job, "queue": printable(job["queue"], MAX_VALUE), "due": _due(job["due_in"])}
            for job in found["upcoming"]
        ],
    }
    # The paths of the chart are ours, and long.
    return {**shown(page), "chart": shown(page["chart"], None)}


def fits_a_form(name: str) -> bool:
    """Tell whether a form can carry a name as it is: the page shows what is not printable as something else."""
    return len(name) <= _LONGEST and name.isprintable()


def _due(seconds: float) -> str:
    return f"in {span(seconds)}" if seconds > 0 else "now" if seconds > -5 else f"late by {span(-seconds)}"


def _trend(connections: dict[str, Any]) -> str:
    """Return a sentence on the growth of connections where there is something to say."""
    per_minute, left = connections["trend_per_minute"], connections["minutes_left"]
    if not connections["steady_growth"] or not per_minute:
        return ""
    full = f", full in about {span(left * 60)}" if left is not None else ""
    return f"Growing steadily by {per_minute:g} a minute{full}: does a process leak connections?"


def _history(connections: dict[str, Any], now: float) -> list[dict[str, Any]]:
    """Return the samples, and what is now; one look alone makes no chart."""
    if connections["connected"] is None or not connections["history"]:
        return list(connections["history"])
    return [
        *connections["history"],
        {"time": now, "connected": connections["connected"], "roles": connections["roles"]},
    ]


def _holder(one: dict[str, Any], process: dict[str, Any] | None) -> dict[str, Any]:
    kind = process["kind"] if process else "job" if one["worker"] else "silent"
    return {
        "name": one["worker"] if kind == "job" else one["app"],
        "where": f"{one['host']} · {one['pid']}",
        "kind": {"job": "jobs of a worker", "silent": "no statistics (yet)"}.get(kind, kind),
        "roles": ", ".join(f"{role} {count}" for role, count in sorted(one["roles"].items())),
        "total": one["total"],
    }


def _busiest(queues: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """Return the queues that the page has room for, by name: those with most to do and most that failed."""
    if sort.startswith("queues."):
        return _sorted(queues, sort, "queues", "name")[:_QUEUES]
    counted = sorted(
        queues, key=lambda queue: -sum(queue[state] for state in ("length", "started", "failed", "scheduled", "dead"))
    )
    return sorted(counted[:_QUEUES], key=lambda queue: str(queue["name"]))


def _ended(ended: dict[str, Any]) -> dict[str, Any]:
    rates = {f"{name}_rate": rate(ended[f"{name}_per_minute"]) for name in ("finished", "failed")}
    return {"finished": number(ended["finished"]), "failed_per_minute": ended["failed_per_minute"], **rates}


def _group(group: dict[str, Any], now: float) -> dict[str, Any]:
    names = [group[name] for name in ("queue", "exception", "function")]
    return {
        **group,
        "shown": printable(group["queue"], MAX_VALUE),
        "named": all(map(fits_a_form, names)),
        "has_job": group["exception"] != GHOST and fits_a_form(group["id"]),
        "count": number(group["count"]),
        "first": moment(group["first"], now),
        "last": moment(group["last"], now),
    }


def _sorted(rows: list[dict[str, Any]], sort: str, section: str, default: str) -> list[dict[str, Any]]:
    """Return a section's rows in the order that was asked for: texts upwards, numbers from the largest."""
    asked, _, key = sort.partition(".")
    key = key if asked == section and key in _SORTS[section] else default
    read = _SORTS[section][key]
    upwards = key in ("name", "queue", "exception")
    return sorted(rows, key=lambda row: str(read(row)) if upwards else -(read(row) or 0))


def queue_row(queue: dict[str, Any]) -> dict[str, Any]:
    """Return a queue as people read it."""
    return {
        "name": queue["name"],
        "shown": printable(queue["name"], MAX_VALUE),
        "paused": None if queue["paused_for"] is None else span(queue["paused_for"]),
        "unattended": queue["length"] > 0 and queue["workers"] == 0,
        "oldest": span(queue["oldest_age"]),
        "rate": rate(queue.get("rate", 0.0)),
        "limit": queue["limit"],
        "named": fits_a_form(queue["name"]),
        **{key: number(queue[key]) for key in (*_STATES, "rate_limited", "ready")},
    }


def _worker(process: dict[str, Any]) -> dict[str, Any]:
    worker = process["worker"]
    counters = worker["counters"]
    busy, slots = process["busy_now"], worker["concurrency"]
    run, wait = worker["run_time"], worker["queue_wait"]
    return {
        "name": printable(worker["name"], MAX_VALUE),
        "where": f"{process['host']} · {process['pid']}",
        "queues": printable(", ".join(worker["queues"]), MAX_VALUE),
        "busy": busy,
        "slots": slots,
        "horses": ", ".join(str(pid) for pid in worker["horses"]),
        **{key: number(counters[key]) for key in ("finished", "failed", "retried")},
        "run": span(run["sum"] / run["count"]) if run["count"] else "–",
        "wait": span(wait["sum"] / wait["count"]) if wait["count"] else "–",
        "up": span(process["uptime"] + process["age"]),
        "seen": ago(process["age"]),
        "old": process["age"] > OLD,
    }
