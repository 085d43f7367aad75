"""What the jobs of the harness do. Each writes into the journal when it begins, lives and ends."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Retry, get_current_job
from rq.exceptions import DuplicateJobError
from rq.job import Job

from rq_pooled.rq_api import key_prefix

from . import journal

QUEUE = "chaos"
#: How often a job that uses Redis tries again while the server is away, and the seconds between.
ATTEMPTS, PAUSE = 100, 0.2


class OnPurpose(Exception):
    """The failure of a job that is to fail."""


def _me() -> tuple[Job, str]:
    """Return the running job and its execution id, which RQ tells nobody but the worker up the stack."""
    job = get_current_job()
    assert job is not None
    frame: Any = sys._getframe(1)
    while frame is not None:
        worker = frame.f_locals.get("self")
        execution = getattr(worker, "execution", None)
        if execution is not None and hasattr(worker, "perform_job"):
            return job, execution.id
        frame = frame.f_back
    return job, "-"


def sleep(seconds: float) -> None:
    """Take some time, and show signs of life."""
    job, execution = _me()
    with journal.running(job.id, execution):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
            journal.write("alive", job.id, execution)


def ok() -> str:
    """Succeed at once."""
    job, execution = _me()
    with journal.running(job.id, execution):
        return job.id


def fail() -> None:
    """Fail at once."""
    job, execution = _me()
    with journal.running(job.id, execution):
        raise OnPurpose(job.id)


def retry() -> str:
    """Fail as long as a retry is left."""
    job, execution = _me()
    with journal.running(job.id, execution):
        if job.retries_left:
            raise OnPurpose(f"{job.id}: {job.retries_left} left")
        return job.id


def again() -> Any:
    """Ask once to be run again."""
    job, execution = _me()
    with journal.running(job.id, execution):
        return job.id if job.number_of_retries else Retry(max=2)


def use_redis() -> str:
    """Write to the server of the job, waiting for it where it is away."""
    job, execution = _me()
    with journal.running(job.id, execution):
        for _ in range(5):
            _insist(lambda: job.connection.set(f"{key_prefix()}:chaos:touched:{job.id}", execution, ex=600))
        return job.id


def spawn(number: int) -> str:
    """Enqueue further jobs, each once however often this job runs."""
    job, execution = _me()
    with journal.running(job.id, execution):
        queue = Queue(QUEUE, connection=job.connection)
        for i in range(number):
            _insist(lambda: _enqueue_child(queue, f"{job.id}_c{i}"))  # noqa: B023
        return job.id


def share() -> str:
    """Use Redis in all the ways that jobs do: meta, a pipeline, WATCH, a wait, an enqueue; each reply has to be its
    own.
    """
    job, execution = _me()
    with journal.running(job.id, execution):
        key = f"{key_prefix()}:chaos:shared:{job.id}:{execution}"
        for step in range(5):
            job.meta["step"] = step
            _insist(job.save_meta)
            _insist(lambda: _pipeline(job.connection, key, f"{execution}:{step}"))  # noqa: B023
        _insist(lambda: _watch(job.connection, f"{key}:watched", execution))
        _insist(lambda: _wait(job.connection, f"{key}:list", execution))
        queue = Queue(QUEUE, connection=job.connection)
        _insist(lambda: _enqueue_child(queue, f"{job.id}_c0"))
        return job.id


def _pipeline(client: Redis, key: str, value: str) -> None:
    with client.pipeline(transaction=False) as pipeline:
        found = pipeline.set(key, value, ex=600).get(key).echo(value).execute()
    expect(found, [True, value.encode(), value.encode()])


def _watch(client: Redis, key: str, value: str) -> None:
    def change(pipeline: Any) -> None:
        pipeline.get(key)
        pipeline.multi()
        pipeline.set(key, value, ex=600).get(key)

    expect(client.transaction(change, key), [True, value.encode()])


def _wait(client: Redis, key: str, value: str) -> None:
    client.rpush(key, value)
    client.expire(key, 600)
    found = client.blpop([key], timeout=1)
    if found is not None:  # after a loss it may be the one from before
        expect(found, (key.encode(), value.encode()))


def expect(found: Any, right: Any) -> None:
    """Raise if a reply is not the right one."""
    if found != right and list(found) != list(right):
        raise AssertionError(f"somebody else's reply: {found!r}, not {right!r}")


def _enqueue_child(queue: Queue, name: str) -> None:
    with suppress(DuplicateJobError):
        queue.enqueue("chaos.jobs.ok", job_id=name, unique=True, result_ttl=86400, description=name, failure_ttl=86400)


def _insist(call: Any) -> None:
    for attempt in range(ATTEMPTS):
        try:
            call()
            return
        except (RedisError, OSError):
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE)


#: For single faults: wait for a file, so that what runs is known.
def wait_for(path: str, patience: float = 120.0) -> str:
    """Run until the file exists."""
    job, execution = _me()
    with journal.running(job.id, execution):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            with suppress(OSError), open(path):
                return job.id
            time.sleep(0.05)
        raise TimeoutError(path)
