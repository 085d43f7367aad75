"""Jobs of tests about signatures. Each writes to a list in Redis, so that a test sees what ran."""

from __future__ import annotations

import os
import time
from typing import Any

from redis import Redis
from rq import get_current_job
from rq.job import Job

import rq_pooled

RAN = "test:ran"


def _connection() -> Redis:
    job = get_current_job()
    assert job is not None
    return job.connection


def note(word: str) -> str:
    """Say that it ran."""
    _connection().rpush(RAN, word)
    return word


def echo(value: Any) -> Any:
    """Return what it got: an attacker's way to have a value signed as a result."""
    _connection().rpush(RAN, "echo")
    return value


def with_meta(word: str) -> str:
    """Count in its meta."""
    job = get_current_job()
    assert job is not None
    job.meta["count"] = job.meta.get("count", 0) + 1
    job.save_meta()
    return note(word)


def meta_and_fail_once(saved: bool, value: dict[str, Any]) -> str:
    """Have these meta, in Redis too if saved, and fail the first time."""
    job = get_current_job()
    assert job is not None
    if _connection().incr(f"test:tries:{job.id}") == 1:
        job.meta = value
        if saved:
            job.save_meta()
        raise ValueError("the first time")
    return note(f"{job.id} {job.meta}")


def fail_once(word: str) -> str:
    """Fail the first time."""
    job = get_current_job()
    assert job is not None
    if _connection().incr(f"test:tries:{job.id}") == 1:
        raise ValueError("the first time")
    return note(word)


def read_again(field: str, value: str) -> str:
    """Read itself again, after a field of its hash was set as an attacker would meanwhile."""
    job = get_current_job()
    assert job is not None
    job.connection.hset(job.key, field, value)
    job.refresh()
    return note(f"{field} {job.timeout}")


def length(value: str) -> str:
    """Say how long a value is; return it."""
    note(str(len(value)))
    return value


def meta_of_all_kinds(word: str) -> str:
    """Say what its meta are, and write them back."""
    job = get_current_job()
    assert job is not None
    job.save_meta()
    return note(f"{word} {job.meta!r}")


def slowly(word: str) -> str:
    """Take a moment."""
    time.sleep(0.01)
    return note(word)


class Custom(Job):
    """A job class of a user's own, with a field of its own."""

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Write the field, too."""
        return {**super().to_dict(*args, **kwargs), "tenant": "t1"}

    def restore(self, raw_data: Any) -> None:
        """Read it."""
        super().restore(raw_data)
        self.tenant = raw_data.get(b"tenant")


def enqueue(word: str) -> None:
    """Enqueue from within a job."""
    rq_pooled.Queue("default", connection=_connection()).enqueue(note, word)


def on_success(job: Any, connection: Redis, _result: Any) -> None:
    """Say that it was called."""
    connection.rpush(RAN, f"success of {job.id}")


def handler(job: Job, *_error: Any) -> None:
    """An exception handler."""
    job.connection.rpush(RAN, f"handler of {job.id}")


def on_failure(job: Any, connection: Redis, *_error: Any) -> None:
    """Say that it was called."""
    connection.rpush(RAN, f"failure of {job.id}")


def forged(job: Any, connection: Redis, *_error: Any) -> None:
    """Say that it was called, though the producer named another callback."""
    connection.rpush(RAN, f"forged of {job.id}")


def evil() -> None:
    """Leave a trace."""
    Redis.from_url(os.environ["EVIL_URL"]).rpush(RAN, "EVIL")


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return evil, ()


class Order:
    """Has methods that are jobs."""

    def charge(self) -> None:
        """Do nothing."""

    def cancel(self) -> None:
        """Do nothing."""
