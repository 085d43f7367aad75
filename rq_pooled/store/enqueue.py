"""Enqueues jobs in one step, under conditions that may refuse them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..wire import Command, Word
from .keys import QUEUES
from .scripts import call

#: Most jobs that are enqueued in one step, and bytes after which it takes no further one.
MANY, MANY_BYTES = 250, 1024 * 1024


def enqueue_new(
    job_key: str, queue_key: str, job_id: str, at_front: bool, ttl: int | None, fields: Sequence[Word]
) -> Command:
    """Enqueue a job, given as alternating fields and values, unless a job with its id exists."""
    return call("enqueue_new", (job_key, queue_key, QUEUES), job_id, "L" if at_front else "R", ttl or -1, *fields)


def forget(job_key: str, created_at: str) -> Command:
    """Have an older job's hash forget what a signed job with its id may not write, see forget.lua."""
    return call("forget", (job_key,), created_at)


def enqueue_many(queue_key: str, jobs: Iterable[tuple[str, bool, int | None, Sequence[Word]]]) -> Command:
    """Enqueue jobs, each (id, at front, ttl, field and value ...), whether or not others with their ids exist."""
    words: list[Word] = []
    for job_id, at_front, ttl, fields in jobs:
        words += [job_id, "L" if at_front else "R", ttl or -1, len(fields), *fields]
    return call("enqueue_many", (queue_key, QUEUES), *words)


def enqueue_jobs(
    queue_key: str,
    max_length: int | None,
    replace: bool,
    once: str | None,
    unique: str | None,
    unique_for: float,
    now: str,
    jobs: Iterable[tuple[str, bool, int | None, Sequence[Word], tuple[str, int]]],
) -> Command:
    """Enqueue jobs, each (id, at front, ttl, field and value ..., limit), all or none; the keys are as in the
    header.
    """
    limit = -1 if max_length is None else max_length
    words: list[Word] = [limit, int(replace), once or "", unique or "", max(1, round(unique_for * 1000)), now]
    for job_id, at_front, ttl, fields, limit_of_job in jobs:
        words += [job_id, "L" if at_front else "R", ttl or -1, len(fields), *fields, *limit_of_job]
    return call("enqueue", (queue_key,), *words)
