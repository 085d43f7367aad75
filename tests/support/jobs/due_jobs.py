"""Job functions that note when they run."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rq import Queue, Retry, get_current_job

from rq_pooled.retry import RetryAfter


def note_in(connection: Any, name: str) -> int:
    """Note the time under this name; return how often that was done."""
    return int(connection.rpush(f"due:{name}", repr(time.time())))


def _connection() -> Any:
    job = get_current_job()
    assert job is not None
    return job.connection


def note(name: str) -> None:
    """Note that it runs."""
    note_in(_connection(), name)


def note_and_fail_once(name: str, after: float | None = None) -> None:
    """Fail the first time."""
    if note_in(_connection(), name) == 1:
        raise ValueError("on purpose") if after is None else RetryAfter(after)


def note_and_return_retry(name: str) -> Any:
    """Ask to be run again in two seconds, once."""
    return Retry(1, interval=2) if note_in(_connection(), name) == 1 else None


def note_and_enqueue_in(name: str, seconds: float) -> None:
    """Enqueue another call with RQ's own Queue."""
    connection = _connection()
    note_in(connection, name)
    Queue(connection=connection).enqueue_in(timedelta(seconds=seconds), note, name)
