"""Jobs that are cancelled or deleted while they run, and write to their hash all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from keys import named
from redis import Redis
from rq import Queue
from rq.job import Job
from support import WorkerProcess, keys_of_jobs, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer

Running = tuple[Job, WorkerProcess]
SETTINGS = {"RQ_POOLED_HEARTBEAT_INTERVAL": "1", "RQ_POOLED_HEARTBEAT_TTL": "5"}


@pytest.fixture(params=["save", "save_meta"])
def running(request: pytest.FixtureRequest, server: EmbeddedServer, redis: Redis, tmp_path: Path) -> Iterator[Running]:
    """A job that runs and saves itself again and again, in one of two ways, and its worker."""
    job = Queue(connection=redis).enqueue("dependent_jobs.save_until", "go", "started", request.param)
    with running_worker(server.url, "--name", "here", log=tmp_path / "log", **SETTINGS) as worker:
        wait_until(lambda: redis.exists("started"))
        yield job, worker


def run_on(redis: Redis, running: Running) -> None:
    """Let two heartbeats pass, then the job end; its horse has to be alive until then."""
    (job, worker), key = running, named("rq:worker:here")
    seen: set[bytes | None] = set()
    wait_until(lambda: seen.add(redis.hget(key, "last_heartbeat")) or len(seen) > 2)
    redis.set("go", 1)
    worker.wait_for(f"outcome of job {job.id} dropped")
    assert "killed" not in worker.output()
    wait_until(lambda: redis.hget(key, "state") == b"idle" and not redis.hexists(key, "current_job"))
    assert not keys_of_jobs(redis)


def test_a_cancelled_job_that_saves_itself(redis: Redis, running: Running) -> None:
    """It runs to its end, as in RQ, and is cancelled after it, whatever it has written to its hash."""
    job, _worker = running
    job.cancel()
    run_on(redis, running)
    assert job.get_status(refresh=True) == "canceled"


def test_a_deleted_job_that_saves_itself(redis: Redis, running: Running) -> None:
    """It runs to its end, as in RQ, and what it has written of itself does not stay for ever."""
    job, _worker = running
    job.delete()
    wait_until(lambda: redis.exists(job.key))
    run_on(redis, running)
    assert 0 < redis.ttl(job.key) <= 86400


def test_an_exception_handler_that_takes_its_time(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A job past its timeout is recorded as such, though what handles its exception takes longer than KILL_GRACE."""
    job = Queue(connection=redis).enqueue("dependent_jobs.sleep", 20, job_timeout=1)
    options = ("--burst", "--exception-handler", "dependent_jobs.handle_slowly")
    environment = {"RQ_POOLED_KILL_GRACE": "1"}
    with running_worker(server.url, *options, log=tmp_path / "log", ready=None, **environment) as worker:
        assert worker.wait() == 0
    result = job.latest_result()
    assert result is not None and "JobTimeoutException" in result.exc_string
