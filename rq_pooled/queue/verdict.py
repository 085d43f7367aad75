"""Runs enqueue.lua, the one step that enqueues under conditions, and reads its verdict."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import rq
from redis.exceptions import RedisError
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq.scripts import _build_hset_args
from rq.utils import utcformat

from ..errors import QueueFull
from ..foreign import error_words, is_wrong_type
from ..store.enqueue import enqueue_jobs
from ..store.inert_jobs import fetch_inert
from ..store.keys import once_key
from ..store.scripts import run_script
from ..wire import text
from .asked import Asked
from .unique import call_key

#: The text about a job that has ended and was not kept.
GONE = "is not kept any more"


def ask(
    queue: rq.Queue, asked: Asked, jobs: list[tuple[Job, bool]], replace: bool, moment: datetime
) -> tuple[str, list[str]]:
    """Run enqueue.lua for jobs, each (job, at front); return its verdict and the details."""
    command = enqueue_jobs(
        queue.key,
        asked.max_length,
        replace,
        None if asked.once is None else once_key(asked.once),
        call_key(jobs[0][0]) if asked.unique_for else None,
        asked.unique_for,
        utcformat(moment),
        [(job.id, at_front, job.ttl, _build_hset_args(job), _limit_of(job)) for job, at_front in jobs],
    )
    verdict, *more = map(text, run_script(queue.connection, command))
    return verdict, more


def earlier_job(queue: rq.Queue, job_id: str) -> Job | str:
    """Return the earlier job in the way, or a text about it: GONE, or why it cannot be read."""
    try:
        return fetch_inert(queue.job_class, job_id, queue.connection, queue.serializer)
    except NoSuchJobError:
        return GONE
    except Exception as error:
        # A damaged hash may raise any error; errors of the server are not about the job.
        if isinstance(error, RedisError) and not is_wrong_type(error):
            raise
        return f"cannot be read ({error_words(error)})"


def note_status(job: Job, status: str, moment: datetime) -> None:
    """Set on the job object what the script has written."""
    job._status = JobStatus(status)
    if job.enqueued_at is None and job._status == JobStatus.QUEUED:
        job.enqueued_at = moment


def full(name: str, length: int, max_length: Any, more: int) -> QueueFull:
    """Return the error that refuses ``more`` jobs for a queue of this length."""
    what = "the job was" if more == 1 else f"the {more} jobs were"
    return QueueFull(
        f"queue {name!r} has {length} jobs and takes at most {max_length}: {what} not enqueued; wait for "
        "the workers, or raise max_length",
        name,
        length,
        max_length,
    )


def _limit_of(job: Job) -> tuple[str, int]:
    """Return the key of a job's RQ 3 limit, and the number of jobs that it admits."""
    key, concurrency = getattr(job, "rate_limit_key", None), getattr(job, "rate_limit_concurrency", None)
    return (key, concurrency) if key and concurrency else ("", 0)
