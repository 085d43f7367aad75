"""Jobs and classes that RQ imports by name, see test_dependents.py and test_remains.py."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from redis import Redis
from rq import Queue, get_current_job
from rq.job import Job


def nothing() -> None:
    pass


def fail() -> None:
    raise LookupError("on purpose")


def fetch(job_id: str) -> str:
    """Return the name of the error with which RQ fetches a job."""
    job = get_current_job()
    assert job is not None
    try:
        Job.fetch_many([job_id], connection=job.connection)
    except Exception as error:  # noqa: BLE001
        return type(error).__name__
    return "none"


def save_until(go: str, started: str, how: str) -> None:
    """Write to its own hash, as a job that reports progress does, until a key is there."""
    job = get_current_job()
    assert job is not None
    connection = job.connection
    connection.set(started, 1)
    deadline = time.monotonic() + 30
    while not connection.exists(go) and time.monotonic() < deadline:
        job.meta["at"] = time.monotonic()
        getattr(job, how)()
        time.sleep(0.01)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def handle_slowly(_job: Job, *_error: Any) -> bool:
    """An exception handler that takes its time."""
    time.sleep(4)
    return True


class CuriousQueue(Queue):
    """Reads, before it enqueues dependents, what is different whenever it is read again."""

    def enqueue_dependents(self, job: Job, *args: Any, **kwargs: Any) -> Any:
        self.connection.pttl("clock")
        time.sleep(0.01)
        return super().enqueue_dependents(job, *args, **kwargs)


@contextlib.contextmanager
def writing(redis: Redis, write: Callable[[Redis], Any]) -> Iterator[None]:
    """Do something again and again inside the block, on a connection of its own."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            write(redis)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
