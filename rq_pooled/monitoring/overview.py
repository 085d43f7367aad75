"""Everything that the page shows, as one plain dictionary: health, connections, queues, workers, failures, retries.

Numbers and texts only, nothing formatted; a job's data is never unpickled, so no user code runs.
"""

from __future__ import annotations

import time
from typing import Any

from redis import Redis
from rq.registry import ScheduledJobRegistry

from ..config.settings import Settings
from ..failed.description import described
from ..failed.groups import failure_groups
from ..failed.listing import MAX_FIELD
from ..foreign import is_number, plain, replies_of, whole_number
from ..store.keys import job_key
from ..store.queues import all_shown, left_out
from ..store.views import is_shown, one_view
from ..wire import raw, text
from .guard import ConnectionGuard
from .processes import note_busy, only_shown, processes, read_processes
from .queues import queues
from .throughput import throughput

#: Scheduled jobs that are shown.
UPCOMING = 10


@one_view()
def overview(client: Redis, settings: Settings) -> dict[str, Any]:
    """Return the state of a server. Blocks for about forty round trips, whatever the number of queues and jobs.

    Returns:
        ``now`` (server time), ``connections`` (``health.connections``) with ``budget`` and ``budgeted`` (those that
        count for it), ``queues`` (``queue_states``), ``processes`` and ``workers`` (those that are workers, with
        ``busy_now``), ``failures`` (groups), ``failed`` (how many in all), ``looked_at`` (how many of them are
        grouped), ``throughput``, ``partial`` (it is of all queues, which may not all be shown), ``upcoming``,
        ``scheduled``, ``unreadable`` (what is of another type).
    """
    unreadable: list[str] = []
    published = read_processes(client, unreadable)
    found = only_shown(published)
    unreadable = [f"statistics of {name}" for name in unreadable]
    states = queue_states(client, found)
    unreadable += [f"{state} of {queue['name']}" for queue in states for state in queue["unreadable"]]
    names = [queue["name"] for queue in states if queue["scheduled"]]
    held = ConnectionGuard(settings, client).describe(published)
    seconds, microseconds = client.time()
    failing = failure_groups(client)
    now = seconds + microseconds / 1e6
    workers = [process for process in found if process["worker"]]
    note_busy(client, workers)
    return {
        "now": now,
        "connections": {**held, "budget": settings.budget, "budgeted": _budgeted(held["processes"], settings)},
        "queues": states,
        "processes": found,
        "workers": workers,
        "failures": failing["groups"],
        "failed": failing["total"],
        "looked_at": failing["looked_at"],
        "throughput": throughput(client, now),
        "partial": not all_shown(client.execute_command),
        "upcoming": upcoming(client, names, now),
        "scheduled": sum(queue["scheduled"] for queue in states),
        "unreadable": unreadable,
        "left_out": left_out(client.execute_command),
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
        pipeline.hmget(raw(job_key(job_id)), (description, "retries_left", "started_at", "repeats_left", "origin"))
    found = [fields or [None] * 5 for fields in replies_of(pipeline)]
    return [
        {
            "id": plain(job_id),
            "queue": plain(name),
            "description": described(plain(description or b"")),
            "due_in": round(due - now, 3),
            "retries_left": whole_number(left),
            "kind": "repeat" if repeats is not None else "retry" if started else "scheduled",
        }
        for (due, name, job_id), (description, left, started, repeats, origin) in zip(rows, found)
        # An entry may be of a job that is another queue's.
        if not origin or is_shown(text(origin))
    ]
