"""Turns ``overview`` into what the page's template shows: the rows that it has room for, in the right order."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from ..failed.groups import GHOST
from ..foreign import MAX_VALUE, printable, shown
from ..monitoring.verdict import verdict
from ..monitoring.words import moment, some
from ..store.views import MAX_NAME
from .chart import bars, chart

#: Rows of the tables of processes and others; the rest is summed up.
_ROWS = 30
#: Rows of the table of queues.
_QUEUES = 100
#: What is counted of a queue.
_STATES = ("length", "started", "scheduled", "deferred", "failed", "dead", "workers")
#: What is summed up over all queues.
_SUMS = {"queued": "length", "running": "started", "dead": "dead"}
#: What rows can be sorted by, and how it is read.
_SORTS: dict[str, dict[str, Callable[[dict[str, Any]], Any]]] = {
    "failures": {key: itemgetter(key) for key in ("exception", "queue", "count", "first", "last")},
    "queues": {key: itemgetter(key) for key in ("name", "oldest_age", "rate", *_STATES)},
    "workers": {
        "name": lambda one: one["worker"]["name"],
        "busy": itemgetter("busy_now"),
        "up": lambda one: one["uptime"] + one["age"],
        "age": itemgetter("age"),
        "finished": lambda one: one["worker"]["counters"]["finished"],
        "failed": lambda one: one["worker"]["counters"]["failed"],
        "retried": lambda one: one["worker"]["counters"]["retried"],
    },
}


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
        **{key: found[key] for key in ("partial", "failed", "looked_at", "scheduled", "upcoming")},
        **{key: connections[key] for key in ("level", "connected", "maxclients", "ours", "budget", "budgeted")},
        **{key: connections[key] for key in ("roles", "refused")},
        "as_of": moment(now, now),
        "wrong": verdict(found),
        "ended": {key: value for key, value in found["throughput"].items() if key != "slots"},
        "bars": bars(found["throughput"], now),
        "holders": rows[:_ROWS],
        "more_holders": max(0, len(rows) - _ROWS),
        "others": connections["others"][:_ROWS],
        "other_count": sum(other["total"] for other in connections["others"]),
        "orphans": connections["orphans"][:_ROWS],
        "queues": [queue_row(queue) for queue in _busiest(queues, sort)],
        "queue_count": len(queues),
        "more_queues": max(0, len(queues) - _QUEUES),
        "unreadable": some(found["unreadable"]),
        "unreadable_count": len(found["unreadable"]),
        "oldest": max((queue["oldest_age"] or 0 for queue in queues), default=0) or None,
        **{name: sum(queue[state] for queue in queues) for name, state in _SUMS.items()},
        "slots": sum(process["worker"]["concurrency"] for process in found["workers"]),
        "workers": shown(_sorted(found["workers"], sort, "workers", "name"), MAX_VALUE),
        "failures": [_group(group) for group in _sorted(found["failures"], sort, "failures", "count")[:_ROWS]],
    }
    # One look alone makes no chart. Its paths are ours, and long.
    latest = {"time": now, "connected": connections["connected"], "roles": connections["roles"]}
    history = [*connections["history"], *([latest] if latest["connected"] and connections["history"] else ())]
    return {**shown(page), "chart": shown(chart(history, now, {"ceiling": ceiling, "budget": budget}), None)}


def fits_a_form(name: str) -> bool:
    """Tell whether a form can carry a name as it is: the page shows what is not printable as something else."""
    return len(name) <= MAX_NAME and name.isprintable()


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


def _group(group: dict[str, Any]) -> dict[str, Any]:
    named = all(fits_a_form(group[name]) for name in ("queue", "exception", "function"))
    has_job = group["exception"] != GHOST and fits_a_form(group["id"])
    return {**group, "shown": printable(group["queue"], MAX_VALUE), "named": named, "has_job": has_job}


def queue_row(queue: dict[str, Any]) -> dict[str, Any]:
    """Return a queue with its name as people read it, and whether links and forms can carry it."""
    return {**queue, "shown": printable(queue["name"], MAX_VALUE), "named": fits_a_form(queue["name"])}


def _sorted(rows: list[dict[str, Any]], sort: str, section: str, default: str) -> list[dict[str, Any]]:
    """Return a section's rows in the order that was asked for: texts upwards, numbers from the largest."""
    asked, _, key = sort.partition(".")
    key = key if asked == section and key in _SORTS[section] else default
    read = _SORTS[section][key]
    upwards = key in ("name", "queue", "exception")
    return sorted(rows, key=lambda row: str(read(row)) if upwards else -(read(row) or 0))
