"""Job functions and callbacks of the tests about what RQ promises for a job."""

from __future__ import annotations

import collections
import itertools
import os
import time
from typing import Any

import jobs
from redis import Redis
from rq import Queue, Worker, get_current_job
from rq.job import Job

import rq_pooled


class Eager(Job):
    """A job class that does not inherit what it promises: its own ``perform`` never calls RQ's."""

    def perform(self) -> Any:
        """Run the function twice."""
        return [self.func(*self.args, **self.kwargs) for _ in range(2)]


def pid() -> int:
    """Return the process that runs the job."""
    return os.getpid()


def announce_and_fail(key: str) -> None:
    """Say which process runs this, then fail."""
    jobs.announce(key)
    raise ValueError("on purpose")


def hang_in_c() -> None:
    """Stay for ever in a C loop that looks at no signals and holds the interpreter."""
    collections.deque(itertools.repeat(None), maxlen=0)


def report_progress(go: str, started: str) -> dict[str, Any]:
    """Use meta in every way while the test looks."""
    job = get_current_job()
    assert job is not None
    job.meta["progress"] = 50
    job.save_meta()
    jobs.wait_for(go, started)
    job.refresh()
    seen = dict(job.get_meta())
    job.meta["progress"] = 100
    job.save_meta()
    return seen


def on_any_write_pid(_job: Job, connection: Redis, *_rest: Any) -> None:
    """A callback: say which process runs it, by a transaction, an increment and a plain write."""
    with connection.pipeline() as pipeline:
        pipeline.incr("callbacks:count")
        pipeline.rpush("callbacks:pid", os.getpid())
        pipeline.execute()


def on_success_enqueue(job: Job, connection: Redis, _result: Any) -> None:
    """A callback: enqueue another job."""
    Queue("default", connection=connection).enqueue(jobs.add, 3, 4, job_id=f"{job.id}-next")


def on_failure_take_time(job: Job, connection: Redis, *_error: Any) -> None:
    """A callback that needs longer than its job may."""
    time.sleep(2)
    connection.rpush("callbacks", job.id)


def on_failure_outlast(job: Job, connection: Redis, *_error: Any) -> None:
    """A callback that takes longer than a stop waits for maintenance."""
    connection.rpush("began", job.id)
    time.sleep(6)
    connection.rpush("callbacks", job.id)


def on_abandoned(job: Job, connection: Redis, kind: Any, *_error: Any) -> None:
    """A failure callback that needs plain commands only."""
    connection.rpush("abandoned", f"{os.getpid()} {job.id} {kind.__name__}")


def on_stopped_hang(_job: Job, _connection: Redis) -> None:
    """A callback that does not end by itself."""
    time.sleep(60)


def on_stopped_hang_deaf(_job: Job, _connection: Redis) -> None:
    """A callback that does not hear its alarm either."""
    jobs.hang_deaf()


def on_failure_hang_deaf(_job: Job, connection: Redis, *_error: Any) -> None:
    """A failure callback of that kind."""
    connection.rpush("deaf", os.getpid())
    jobs.hang_deaf()


class Row:
    """Like a database row whose session is closed: it can be pickled, and has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("not bound to a session")


def count_and_return_row(key: str) -> Row:
    """Count how often this runs, and return what cannot be shown."""
    count(key)
    return Row()


def count_and_return_deep(key: str) -> Any:
    """Count how often this runs, and return what is nested too deeply to be pickled or shown."""
    count(key)
    result: list[Any] = []
    for _ in range(100_000):
        result = [result]
    return result


def count(key: str) -> None:
    """Count how often this runs."""
    job = get_current_job()
    assert job is not None
    job.connection.incr(key)


def run_worker_with_killed_handler(url: str, handler: Any = jobs.handle_killed) -> None:
    """What a script of a user's does."""
    with Redis.from_url(url) as connection:
        worker: Worker = rq_pooled.Worker(["default"], connection=connection, work_horse_killed_handler=handler)
        worker.work(logging_level="INFO")
