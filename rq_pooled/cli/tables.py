"""Tables of processes and queues as lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..durations import show_duration
from ..foreign import MAX_VALUE, printable

#: Seconds after which what a process reported is marked as old.
OLD = 5.0


def table(rows: Iterable[Sequence[object]], left: int = 1) -> list[str]:
    """Return aligned lines; the first ``left`` columns to the left, the others to the right."""
    # A queue may have any name: none may move the cursor, or break a line.
    texts = [[printable(cell, MAX_VALUE) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*texts)]
    return [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in texts
    ]


def process_rows(found: Sequence[dict[str, Any]]) -> list[list[object]]:
    """Return a table of processes: workers first."""
    rows: list[list[object]] = [
        ["PROCESS", "KIND", "CONN", "BUSY", "MB", "JOBS/S", "DONE", "FAILED", "RETRIED", "SEEN"]
    ]
    for one in sorted(found, key=lambda one: (one["kind"] != "worker", one["name"])):
        worker, connections = one["worker"], sum(one["connections"].values())
        # A star marks figures that are older than OLD; what is busy is asked now, where a screen has asked.
        seen = f"{show_duration(round(one['age']))} ago{'*' if one['age'] > OLD else ' '}"
        if worker is None:
            rows.append([one["name"], one["kind"], connections, *"------", seen])
            continue
        counters = worker["counters"]
        busy = f"{one.get('busy_now', worker['busy'])}/{worker['concurrency']}"
        done = [counters[name] for name in ("finished", "failed", "retried")]
        sizes = [worker["memory"]["parent"], *worker["memory"]["horses"]]
        size = "-" if sizes[0] is None else f"{sum(sizes):.0f}"
        rows.append([one["name"], "worker", connections, busy, size, f"{pace(worker):.1f}", *done, seen])
    return rows


def queue_rows(found: Sequence[dict[str, Any]]) -> list[list[object]]:
    """Return a table of queues."""
    rows: list[list[object]] = [
        ["QUEUE", "QUEUED", "OLDEST", "RUNNING", "SCHEDULED", "DEFERRED", "FAILED", "DEAD", "WORKERS"]
    ]
    # These are RQ 3's, and rare: they are shown where there are some.
    rare = [state for state in ("rate_limited", "ready") if any(queue[state] for queue in found)]
    rows[0] += [state.replace("_", " ").upper() for state in rare]
    for queue in found:
        states = [queue[state] for state in ("started", "scheduled", "deferred", "failed", "dead", "workers", *rare)]
        name = f"{queue['name']} (paused)" if queue["paused_for"] is not None else queue["name"]
        rows.append([name, queue["length"], seconds(queue["oldest_age"]), *states])
    return rows


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
