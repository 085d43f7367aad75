"""Moves the jobs of rq-scheduler into their queues."""

from __future__ import annotations

from collections.abc import Sequence

from ..wire import Command, Word
from .keys import SCHEDULED_JOBS, SCHEDULER_LOCK
from .scripts import call


def scheduler_due(token: str, lock_ttl: int) -> Command:
    """Take rq-scheduler's lock with this value if one of its jobs is due."""
    return call("scheduler_due", (SCHEDULED_JOBS, SCHEDULER_LOCK), token, lock_ttl)


def move_job(
    queue_key: str,
    lock: tuple[str, int] | None,
    job_id: str,
    due: float | None,
    next_time: int | None,
    at_front: bool,
    ttl: int | None,
    dependencies: Sequence[str],
    fields: Sequence[Word],
) -> Command:
    """Move a job of rq-scheduler if its due time is unchanged and the lock, (its value, seconds), is still ours."""
    token, life = lock or ("", 0)
    times = ("" if due is None else repr(float(due)), "" if next_time is None else next_time)
    words = (token, life, job_id, *times, "L" if at_front else "R", ttl or -1, len(dependencies), *dependencies)
    return call("move", (SCHEDULED_JOBS, SCHEDULER_LOCK, queue_key), *words, *fields)
