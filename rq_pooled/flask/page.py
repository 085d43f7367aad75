"""Turns ``overview`` into what the page's template shows: numbers as people read them, rows in the right order."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from ..foreign import MAX_VALUE, printable, shown
from .chart import chart

#: Rows of the tables of processes and others; the rest is summed up.
_ROWS = 30
#: Rows of the table of queues, and names of what cannot be read.
_QUEUES, _NAMED = 100, 5
#: Characters of a queue's name above which it has no buttons.
_LONGEST = 1000
_LEVELS = {"ok": "healthy", "warn": "filling up", "stop": "nearly full", "unknown": "limit unknown"}


def present(found: dict[str, Any]) -> dict[str, Any]:
    """Return the variables of the template page.html."""
    connections, now = found["connections"], found["now"]
    budget, ceiling = connections["budget"], connections["maxclients"]
    names = {(p["host"], p["pid"]): p for p in found["processes"]}
    rows = [_holder(one, names.get((one["host"], one["pid"]))) for one in connections["processes"]]
    page = {
        "as_of": datetime.fromtimestamp(now, tz=timezone.utc).strftime("%H:%M:%S UTC"),
        "level": connections["level"],
        "level_text": _LEVELS.get(connections["level"], connections["level"]),
        "connected": number(connections["connected"]),
        "ceiling": number(ceiling),
        "share": None if connections["share"] is None else f"{connections['share']:.1%}",
        "ours": number(connections["ours"]),
        "budget": None if budget is None else number(budget),
        "budgeted": number(connections["budgeted"]),
        "over_budget": budget is not None and connections["budgeted"] > budget,
        "roles": connections["roles"],
        "trend": _trend(connections),
        "refused": connections["refused"],
        "chart": chart(_history(connections, now), now, {"ceiling": ceiling, "budget": budget}),
        "holders": rows[:_ROWS],
        "more_holders": max(0, len(rows) - _ROWS),
        "others": connections["others"][:_ROWS],
        "other_count": number(sum(other["total"] for other in connections["others"])),
        "orphans": connections["orphans"][:_ROWS],
        "queues": [_queue(queue) for queue in _busiest(found["queues"])],
        "queue_count": len(found["queues"]),
        "more_queues": number(max(0, len(found["queues"]) - _QUEUES)),
        "unreadable": [printable(name, MAX_VALUE) for name in found["unreadable"][:_NAMED]],
        "unreadable_count": len(found["unreadable"]),
        "suspended": any(queue["suspended"] for queue in found["queues"]),
        "queued": number(sum(queue["length"] for queue in found["queues"])),
        "running": number(sum(queue["started"] for queue in found["queues"])),
        "slots": number(sum(process["worker"]["concurrency"] for process in found["workers"])),
        "workers": [_worker(process) for process in sorted(found["workers"], key=lambda p: p["worker"]["name"])],
        "failed": number(found["failed"]),
        "looked_at": number(found["looked_at"]) if found["looked_at"] < found["failed"] else None,
        "failures": [
            {
                **group,
                "shown": printable(group["queue"], MAX_VALUE),
                "has_buttons": _fits_a_form(group["queue"]) and _fits_a_form(group["exception"]),
                "count": number(group["count"]),
                "last": ago(now - group["last"]) if group["last"] else "–",
            }
            for group in found["failures"][:_ROWS]
        ],
        "scheduled": number(found["scheduled"]),
        "upcoming": [
            {**job, "queue": printable(job["queue"], MAX_VALUE), "due": _due(job["due_in"])}
            for job in found["upcoming"]
        ],
    }
    # The paths of the chart are ours, and long.
    return {**shown(page), "chart": shown(page["chart"], None)}


def _fits_a_form(name: str) -> bool:
    """Tell whether a form can carry a name as it is: the page shows what is not printable as something else."""
    return len(name) <= _LONGEST and name.isprintable()


def number(value: float | None) -> str:
    """Return 1234567 as 1 234 567 with narrow spaces, None as a dash."""
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def span(seconds: float | None) -> str:
    """Return a duration as people say it: 20 ms, 0.4 s, 12 s, 3 min, 5 h, 2 d; None as a dash."""
    if seconds is None:
        return "–"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    for size, most, unit in ((1, 100, "s"), (60, 100, "min"), (3600, 48, "h")):
        if seconds / size < most:
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds / 86400)} d"


def ago(seconds: float) -> str:
    """Return how long ago something was; a moment that another clock puts into the future is now."""
    return "now" if seconds < 1 else f"{span(seconds)} ago"


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
    """Return the samples, and what is now."""
    if connections["connected"] is None:
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


def _busiest(queues: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the queues that the page has room for, by name: those with most to do and most that failed."""
    counted = sorted(
        queues, key=lambda queue: -sum(queue[state] for state in ("length", "started", "failed", "scheduled"))
    )
    return sorted(counted[:_QUEUES], key=lambda queue: str(queue["name"]))


def _queue(queue: dict[str, Any]) -> dict[str, Any]:
    counts = {
        key: number(queue[key])
        for key in ("length", "started", "scheduled", "deferred", "failed", "workers", "rate_limited", "ready")
    }
    return {
        "name": queue["name"],
        "shown": printable(queue["name"], MAX_VALUE),
        "suspended": queue["suspended"],
        "unattended": queue["length"] > 0 and queue["workers"] == 0,
        "oldest": span(queue["oldest_age"]),
        "rate": number(round(queue["rate"])) if queue["rate"] >= 10 else f"{queue['rate']:g}",
        "has_failed": queue["failed"] > 0 and _fits_a_form(queue["name"]),
        **counts,
    }


def _worker(process: dict[str, Any]) -> dict[str, Any]:
    worker = process["worker"]
    counters = worker["counters"]
    busy, slots = worker["busy"], worker["concurrency"]
    run, wait = worker["run_time"], worker["queue_wait"]
    return {
        "name": printable(worker["name"], MAX_VALUE),
        "where": f"{process['host']} · {process['pid']}",
        "queues": printable(", ".join(worker["queues"]), MAX_VALUE),
        "busy": busy,
        "slots": slots,
        "horses": ", ".join(str(pid) for pid in worker["horses"]),
        "finished": number(counters["finished"]),
        "failed": number(counters["failed"]),
        "retried": number(counters["retried"]),
        "reconnects": number(counters["reconnects"]),
        "run": span(run["sum"] / run["count"]) if run["count"] else "–",
        "wait": span(wait["sum"] / wait["count"]) if wait["count"] else "–",
        "up": span(process["uptime"]),
        "seen": ago(process["age"]),
    }
