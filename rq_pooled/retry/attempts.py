"""Decides in a horse whether a failed job is tried again, and writes the try into the job's history.

RQ's own handler does the retrying. Before it, the job object is changed as the exception asks (``GiveUp``,
``RetryAfter``, the rules of its ``Backoff``). After it, a RETRIED entry joins the handler's commands. One commit
records all of it, including the state *scheduled* and the entry in the registry of scheduled jobs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rq.defaults import DEFAULT_FAILURE_TTL
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.registry import ScheduledJobRegistry
from rq.results import Result

from .backoff import GiveUp, RetryAfter, Rules

#: The field of a RETRIED entry with the due time of the next try, seconds since the epoch.
NEXT_AT = "rq_pooled:next_at"
_DAY = 86_400


def decide(job: Job, raw: Mapping[bytes, bytes], raised: BaseException | type[BaseException]) -> Rules | None:
    """Change the job object so that RQ's handler retries it as the exception asks; return the job's rules."""
    rules = Rules.read(raw)
    kind = raised if isinstance(raised, type) else type(raised)
    if not job.should_retry:
        return rules
    if issubclass(kind, GiveUp) or (rules is not None and not rules.allow(kind)):
        job.retries_left = 0
    elif isinstance(raised, RetryAfter):
        wait = raised.seconds
        job.get_retry_interval = lambda: wait  # type: ignore[method-assign, assignment, return-value]
    return rules


def next_try(job: Job, commands: Iterable[Sequence[Any]]) -> float | None:
    """Return the time of the next try, seconds since the epoch, from what RQ's handler wrote; None without a try."""
    scheduled = ScheduledJobRegistry.key_template.format(job.origin).encode()
    for words in commands:
        if words[0] == b"ZADD" and words[1] == scheduled:
            return float(words[2])
        if words[0] in (b"RPUSH", b"LPUSH") and words[2:] == [job.id.encode()]:
            return time.time()
    return None


class Retried(Result):
    """The history's entry for a failed try: RQ's RETRIED result, with the error and the time of the next try."""

    next_at: float = 0.0

    def serialize(self) -> dict[str, Any]:
        """Return RQ's fields and ours, which RQ ignores."""
        return {**super().serialize(), NEXT_AT: self.next_at}


def note(
    job: Job, exc_string: str, next_at: float, worker_name: str, execution: Execution | None, pipeline: Any
) -> None:
    """Write the entry. It lives as long as RQ's result of a failed job, from the next try on, and at least a day.

    Without an expiry it would outlive a job that is deleted, or that expires, before it has another result.
    """
    entry = Retried(
        job.id,
        Result.Type.RETRIED,
        job.connection,
        exc_string=exc_string,
        worker_name=worker_name,
        serializer=job.serializer,
        execution_id=execution.id if execution else None,
        execution_started_at=execution.created_at if execution else None,
        execution_ended_at=job.ended_at,
    )
    entry.next_at = next_at
    kept = DEFAULT_FAILURE_TTL if job.failure_ttl is None else job.failure_ttl
    ttl = -1 if kept < 0 else max(kept, _DAY) + math.ceil(max(0.0, next_at - time.time()))
    entry.save(ttl=ttl, pipeline=pipeline)  # type: ignore[no-untyped-call]


def retry_in_one_step(retry: Any, job: Job, queue: Queue, pipeline: Any) -> None:
    """Call RQ's ``Job.retry`` so that the pipeline gets all its writes, including state and time."""
    set_status = job.set_status
    job.set_status = lambda status, pipeline=pipeline: set_status(status, pipeline)  # type: ignore[method-assign]
    schedule_job = queue.schedule_job

    def schedule(job: Job, datetime: Any, pipeline: Any = None, **_: Any) -> Job:
        connection, queue.connection = queue.connection, pipeline  # RQ's registry writes to its queue's connection
        try:
            return schedule_job(job, datetime, pipeline=pipeline)
        finally:
            queue.connection = connection

    queue.schedule_job = schedule  # type: ignore[method-assign, assignment]
    try:
        retry(queue, pipeline)
    finally:
        del job.set_status, queue.schedule_job
