"""Everything that the page shows, as one plain dictionary: health, connections, queues, workers, failures, retries.

Numbers and texts only, nothing formatted; a job's data is never unpickled, so no user code runs.
"""

from __future__ import annotations

import time
from typing import Any

from redis import Redis
from rq.registry import ScheduledJobRegistry

from ..config.describing import shown_description
from ..config.settings import Settings
from ..failed.listing import MAX_FIELD, failed_jobs
from ..foreign import is_number, plain, replies_of, whole_number
from ..monitoring.guard import connections
from ..monitoring.processes import processes
from ..monitoring.queues import queues
from ..store.keys import job_key
from ..wire import raw, text

#: Failed jobs that are looked at to group them, and scheduled jobs that are shown.
FAILURES, UPCOMING = 200, 10


def overview(client: Redis, settings: Settings) -> dict[str, Any]:
    """Return the state of a server. Blocks for about fifteen round trips, whatever the number of queues and jobs.

    Returns:
        ``now`` (server time), ``connections`` (``health.connections``) with ``budget`` and ``budgeted`` (those that
        count for it), ``queues`` (``queue_states``), ``processes`` and ``workers`` (those of them that are workers),
        ``failures``, ``failed`` (how many in all), ``looked_at`` (how many of them are grouped), ``upcoming``,
        ``scheduled``, ``unreadable`` (what is of another type).
    """
    unreadable: list[str] = []
    found = processes(client, unreadable)
    unreadable = [f"what {name} has published" for name in unreadable]
    states = queue_states(client, found)
    unreadable += [f"{state} of {queue['name']}" for queue in states for state in queue["unreadable"]]
    names = [queue["name"] for queue in states if queue["scheduled"]]
    held = connections(client, settings)
    seconds, microseconds = client.time()
    latest = failed_jobs(limit=FAILURES, connection=client)
    now = seconds + microseconds / 1e6
    return {
        "now": now,
        "connections": {**held, "budget": settings.budget, "budgeted": _budgeted(held["processes"], settings)},
        "queues": states,
        "processes": found,
        "workers": [process for process in found if process["worker"]],
        "failures": failures(latest["jobs"]),
        "failed": latest["total"],
        "looked_at": len(latest["jobs"]),
        "upcoming": upcoming(client, names, now),
        "scheduled": sum(queue["scheduled"] for queue in states),
        "unreadable": unreadable,
    }


def _budgeted(holders: list[dict[str, Any]], settings: Settings) -> int:
    """Return how many connections count for BUDGET_NAME's application; without a name all of ours are meant.

    Commands and probes reserve nothing, and are gone in a moment.
    """
    mine = [one["roles"] for one in holders if settings.budget_name in (None, one["app"])]
    return sum(count for roles in mine for role, count in roles.items() if role not in ("cli", "probe"))


def queue_states(client: Redis, found: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return ``health.queues`` with ``rate`` added: jobs that workers of ours begin per minute, over their last
    heartbeat.

    Args:
        found: of ``health.processes``, if it is known already.
    """
    rates: dict[str, float] = {}
    for process in processes(client) if found is None else found:
        for name, rate in (process["worker"] or {}).get("rates", {}).items():
            rates[name] = rates.get(name, 0.0) + rate
    return [{**queue, "rate": round(rates.get(queue["name"], 0.0), 1)} for queue in queues(client)]


def failures(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group failed jobs, as of ``failed_jobs``, by queue and exception, most first.

    Each has ``queue``, ``exception``, ``count``, ``last`` (seconds since the epoch or None), and of the latest one
    ``reason`` and ``description``. Entries without a job are the exception ``ghost``.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for job in jobs:
        name = job["exception"] if job["exists"] else "ghost"
        group = groups.setdefault(
            (job["queue"], name),
            {"queue": job["queue"], "exception": name, "count": 0, "last": None, "reason": "", "description": ""},
        )
        group["count"] += 1
        if group["count"] == 1 or (job["failed_at"] or 0.0) > (group["last"] or 0.0):
            group.update(last=job["failed_at"], reason=job["reason"], description=job["description"])
    return sorted(groups.values(), key=lambda group: (-group["count"], group["queue"], group["exception"]))


def upcoming(client: Redis, names: list[str], now: float | None = None) -> list[dict[str, Any]]:
    """Return the scheduled jobs that are due first: retries, repeats, and what was enqueued for later.

    Each has ``id``, ``queue``, ``description``, ``due_in`` (seconds; below 0: it is late), ``retries_left``, and
    ``kind`` (``retry``, ``repeat`` or ``scheduled``).
    """
    now = time.time() if now is None else now
    pipeline = client.pipeline(transaction=False)
    for name in names:
        key = raw(ScheduledJobRegistry.key_template.format(name))
        pipeline.zrange(key, 0, UPCOMING - 1, withscores=True)
    rows = sorted(
        (due, name, text(job_id))
        for name, reply in zip(names, replies_of(pipeline))
        for job_id, due in reply or ()
        # What is due at infinity never comes.
        if is_number(due)
    )[:UPCOMING]
    pipeline = client.pipeline(transaction=False)
    for _due, _name, job_id in rows:
        pipeline.hstrlen(raw(job_key(job_id)), "description")
    sizes = replies_of(pipeline)
    pipeline = client.pipeline(transaction=False)
    for (_due, _name, job_id), size in zip(rows, sizes):
        description = "description" if size and size <= MAX_FIELD else ""
        pipeline.hmget(raw(job_key(job_id)), (description, "retries_left", "started_at", "repeats_left"))
    found = [fields or [None] * 4 for fields in replies_of(pipeline)]
    return [
        {
            "id": plain(job_id),
            "queue": plain(name),
            "description": plain(shown_description(text(description or b""))),
            "due_in": round(due - now, 3),
            "retries_left": whole_number(left),
            "kind": "repeat" if repeats is not None else "retry" if started else "scheduled",
        }
        for (due, name, job_id), (description, left, started, repeats) in zip(rows, found)
    ]
