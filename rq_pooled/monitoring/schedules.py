"""What is to come: RQ's scheduled jobs, retries and repeats, rq-scheduler's jobs with recurring sweeps, and RQ's cron.

Nothing is unpickled but a job's ``meta``, which tells when it comes again, and of that no class is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from redis import Redis
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job

from ..errors import ConfigurationError
from ..failed.description import described
from ..failed.listing import MAX_FIELD
from ..foreign import LAST_TIME, MAX_VALUE, is_number, plain, printable, replies_of, seconds_of
from ..store.keys import CRON_SCHEDULER, CRON_SCHEDULERS, SCHEDULED_JOBS, job_key, registry_key
from ..store.queues import all_shown, first_queues
from ..store.unpickling import plain_meta
from ..store.views import is_shown, note_cut, one_view
from ..wire import raw, text
from .audit import Deed

#: What the ids of recurring sweeps begin with, as ``rq-pooled schedule-sweep`` makes them.
SWEEP = "rq_pooled-sweep-"
#: Processes of RQ's cron that are asked, and bytes of what one tells.
_CRONS, _TOLD = 20, 1024 * 1024
#: So many times the entries of rq-scheduler that are shown are read: those of all queues stand in one set.
_PAGES = 10
_CANCELLED_BY = ("origin", "rate_limit_key", "rate_limit_concurrency")
_FIELDS = ("origin", "started_at", "enqueued_at", "repeats_left")


@one_view()
def schedules(client: Redis, limit: int = 100) -> list[dict[str, Any]]:
    """Return what is due first, of queues that may be shown. Blocks for about eight round trips.

    Each has ``id`` ("" for RQ's cron), ``kind`` (``scheduled``, ``retry``, ``repeat``, ``rq-scheduler``, ``sweep``,
    ``cron``), ``queue``, ``what``, ``every`` (a cron line, or seconds; "" for once), and ``next`` and ``last`` (seconds
    since the epoch, or None).
    """
    rows: list[tuple[float, str, str]] = []
    entries: list[dict[str, Any]] = []
    names = first_queues(client.execute_command)
    pipeline: Any = client.pipeline(transaction=False)
    for name in names:
        pipeline.zrange(raw(registry_key("scheduled", name)), 0, limit - 1, withscores=True)
    pipeline.zrange(SCHEDULED_JOBS, 0, _PAGES * limit - 1, withscores=True)
    *registries, others = replies_of(pipeline)
    are_all = all(len(found or ()) < limit for found in registries) and len(others or ()) < _PAGES * limit
    for name, found in zip(names, registries):
        rows += [(due, name, text(job_id)) for job_id, due in found or () if is_number(due)]
    rows += [(due, "", text(job_id)) for job_id, due in others or () if is_number(due)]
    rows.sort()
    # What may not be shown takes no place of what may.
    while rows and len(entries) < limit:
        entries += _jobs(client, rows[:limit])
        del rows[:limit]
    if len(entries) < limit and not are_all:
        note_cut()
    shown = [one for one in entries + _crons(client) if is_shown(one["queue"])]
    return sorted(shown, key=lambda one: (one["next"] is None, one["next"] or 0.0, one["id"]))[:limit]


def cancel(client: Redis, job_id: str, asked: str | None = None) -> str:
    """Cancel a scheduled job, and return its queue. Blocks for a few round trips.

    A job of RQ is cancelled as RQ does it. One of rq-scheduler leaves its schedule, and what of it runs goes on.

    Args:
        client, job_id: as the names say.
        asked: the queue that it has to be of, if given: the right may hold there only.

    Raises:
        ConfigurationError: it is not scheduled (any more), or is of another queue by now.
    """
    queue = scheduled_in(client, job_id)
    if queue is None or asked not in (None, queue):
        raise ConfigurationError(f"{printable(job_id, MAX_VALUE)} is not scheduled, or not any more")
    if client.zrem(SCHEDULED_JOBS, raw(job_id)):
        return queue
    try:
        job = _to_cancel(client, job_id)
        if job.origin == queue:
            job.cancel()
    except (NoSuchJobError, InvalidJobOperation, ValueError):
        # The job is gone, was cancelled meanwhile, or RQ takes no such id: the entry is all that can be removed.
        pass
    # RQ removes it from the registry of its status only.
    client.zrem(raw(registry_key("scheduled", queue)), raw(job_id))
    return queue


def _to_cancel(client: Redis, job_id: str) -> Job:
    """Return a job with what RQ reads of it to cancel it, because all else may be damaged, or large once unpacked."""
    pipeline: Any = client.pipeline(transaction=False)
    pipeline.hexists(raw(job_key(job_id)), "data")
    pipeline.hmget(raw(job_key(job_id)), *_CANCELLED_BY)
    exists, values = replies_of(pipeline)
    if not exists:
        raise NoSuchJobError(f"No such job: {job_id}")
    job = Job(job_id, connection=client)
    job.restore({"data": b"", **{name: value for name, value in zip(_CANCELLED_BY, values) if value is not None}})
    return job


def deed_of_cancel(job_id: str, queue: str, jobs: int | None = None) -> Deed:
    """Return what the trail says; of a sweep without its queue, since its id names those that it sweeps."""
    return Deed("cancel", "" if job_id.startswith(SWEEP) else queue, jobs, f"of {job_id}")


def scheduled_in(client: Redis, job_id: str) -> str | None:
    """Return the queue of a scheduled job, None if it is not scheduled, or is a sweep and may not be shown."""
    if job_id.startswith(SWEEP) and not all_shown(client.execute_command):
        return None
    queue = text(client.hget(raw(job_key(job_id)), "origin") or b"")
    pipeline: Any = client.pipeline(transaction=False)
    pipeline.zscore(SCHEDULED_JOBS, raw(job_id))
    pipeline.zscore(raw(registry_key("scheduled", queue)), raw(job_id))
    return queue if any(score is not None for score in replies_of(pipeline)) else None


def _jobs(client: Redis, rows: Sequence[tuple[float, str, str]]) -> list[dict[str, Any]]:
    pipeline: Any = client.pipeline(transaction=False)
    for _, _, job_id in rows:
        for name in ("description", "meta"):
            pipeline.hstrlen(raw(job_key(job_id)), name)
    sizes = replies_of(pipeline) if rows else []
    pipeline = client.pipeline(transaction=False)
    for at, (_, _, job_id) in enumerate(rows):
        long = zip(("description", "meta"), sizes[2 * at : 2 * at + 2])
        pipeline.hmget(
            raw(job_key(job_id)), *_FIELDS, *(name if 0 < (size or 0) <= MAX_FIELD else "" for name, size in long)
        )
    entries, everything = [], all_shown(client.execute_command)
    for (due, name, job_id), fields in zip(rows, replies_of(pipeline) if rows else ()):
        origin, started, enqueued, repeats, description, meta = fields or [None] * 6
        # An entry may be of a job that is another queue's.
        if origin and not is_shown(text(origin)):
            continue
        known = plain_meta(meta) if not name else {}
        every = known.get("cron_string") or known.get("interval") or ""
        kind = "repeat" if repeats is not None else "retry" if started else "scheduled"
        if not name:
            kind = "sweep" if job_id.startswith(SWEEP) else "rq-scheduler"
        # It names the queues that it sweeps, which may be others than the one in which it runs.
        if kind == "sweep" and not everything:
            continue
        entries.append(
            {
                "id": plain(job_id),
                "kind": kind,
                "queue": name or text(origin or b""),
                "what": described(plain(description or b"")) or plain(job_id),
                "every": every if isinstance(every, str) or is_number(every) else "",
                # Beyond these, Python has no date.
                "next": min(max(due, 0.0), LAST_TIME),
                "last": seconds_of(started) or (seconds_of(enqueued) if not name else None),
            }
        )
    return entries


def _crons(client: Redis) -> list[dict[str, Any]]:
    """Return the jobs of the processes of `rq cron`; their schedule is in their files, and only told here."""
    pipeline: Any = client.pipeline(transaction=False)
    pipeline.zrevrange(CRON_SCHEDULERS, 0, _CRONS - 1)
    (processes,) = replies_of(pipeline)
    entries: list[dict[str, Any]] = []
    for process in processes or ():
        key = raw(CRON_SCHEDULER + text(process))
        pipeline.hstrlen(key, "cron_jobs")
        (size,) = replies_of(pipeline)
        if not size or size > _TOLD:
            continue
        pipeline.hget(key, "cron_jobs")
        try:
            told = json.loads(replies_of(pipeline)[0] or b"[]")
        except (ValueError, RecursionError):
            continue
        for one in told if isinstance(told, list) else ():
            if isinstance(one, dict) and isinstance(one.get("queue_name"), str):
                every = one.get("cron") or one.get("interval") or ""
                entries.append(
                    {
                        "id": "",
                        "kind": "cron",
                        "queue": one["queue_name"],
                        "what": plain(str(one.get("func_name") or one.get("name") or "")),
                        "every": every if isinstance(every, str) or is_number(every) else "",
                        "next": seconds_of(_text_of(one.get("next_enqueue_time"))),
                        "last": seconds_of(_text_of(one.get("latest_enqueue_time"))),
                    }
                )
    return entries


def _text_of(value: object) -> str | None:
    return value if isinstance(value, str) else None
