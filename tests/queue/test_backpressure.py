"""Backpressure: a full queue refuses what users enqueue, exactly at its length, and nothing else."""

from __future__ import annotations

import datetime
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import claim_jobs
import pytest
from keys import named
from redis import Redis
from rq import Queue as StockQueue
from rq import Repeat, Retry
from rq.group import Group
from rq.job import Job, JobStatus
from support import running_worker, wait_until

from rq_pooled import Queue
from rq_pooled.config import Settings
from rq_pooled.errors import (
    AlreadyQueued,
    AlreadySpent,
    ConfigurationError,
    EnqueueUnconfirmed,
    PoolExhausted,
    QueueFull,
    RQPooledError,
)
from rq_pooled.pool import Pool
from rq_pooled.queue.limits import Limit, limits_in_force, make_limit, set_limit


def test_refuses_exactly_at_its_length(redis: Redis) -> None:
    """The job beyond max_length is refused with the numbers, and leaves no trace."""
    queue = Queue("q", redis, max_length=2)
    queue.enqueue(claim_jobs.nothing, job_id="a")
    queue.enqueue(claim_jobs.nothing, job_id="b", at_front=True)
    with pytest.raises(QueueFull, match="'q' has 2 jobs and takes at most 2") as caught:
        queue.enqueue(claim_jobs.nothing, job_id="c")
    assert (caught.value.queue, caught.value.length, caught.value.max_length) == ("q", 2, 2)
    assert caught.value.exit_code == 75
    assert not Job.exists("c", redis) and queue.get_job_ids() == ["b", "a"]
    with pytest.raises(QueueFull):
        queue.enqueue_call(claim_jobs.nothing)
    with pytest.raises(QueueFull):
        queue.enqueue_job(queue.create_job(claim_jobs.nothing))
    redis.lpop(queue.key)
    assert queue.enqueue(claim_jobs.nothing, job_id="d").get_status() == JobStatus.QUEUED


def enqueue_elsewhere(url: str) -> None:
    """What another process does."""
    Queue("q", Redis.from_url(url), max_length=0).enqueue(claim_jobs.nothing)


def test_errors_come_back_from_another_process(server: Any, redis: Redis) -> None:
    """An error raised in another process arrives whole: words, and what it tells besides."""
    with (
        multiprocessing.get_context("spawn").Pool(1) as processes,
        pytest.raises(QueueFull, match="was not enqueued") as caught,
    ):
        processes.apply_async(enqueue_elsewhere, (server.url,)).get(30)
    assert (caught.value.queue, caught.value.length, caught.value.max_length) == ("q", 0, 0)
    assert redis.keys(named("rq:job:*")) == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "error",
    [
        QueueFull("words", "q", 3, 2),
        AlreadySpent("words", "key", "id"),
        AlreadyQueued("words", "id"),
        EnqueueUnconfirmed("words", "a", ("a", "b")),
        PoolExhausted("words"),
        ConfigurationError("words"),
    ],
)
def test_errors_are_the_same_after_a_pickle(error: RQPooledError, protocol: int) -> None:
    """Every error can be pickled, with all that it tells."""
    again = pickle.loads(pickle.dumps(error, protocol))
    assert (type(again), again.args, vars(again)) == (type(error), ("words",), vars(error))


def test_many_get_in_together_or_not_at_all(redis: Redis) -> None:
    """enqueue_many is refused as a whole where not all of its jobs fit; what waits for others does not count."""
    queue = Queue("q", redis, max_length=5)
    queue.enqueue(claim_jobs.nothing, job_id="first")
    some = [Queue.prepare_data(claim_jobs.nothing, job_id=f"m{i}", ttl=50) for i in range(5)]
    with pytest.raises(QueueFull, match="the 5 jobs were not"):
        queue.enqueue_many(some)
    assert queue.get_job_ids() == ["first"] and not Job.exists("m0", redis)
    dependent = Queue.prepare_data(claim_jobs.nothing, job_id="dependent", depends_on="first")
    jobs = queue.enqueue_many([*some[:4], dependent])
    assert [job.id for job in jobs] == ["m0", "m1", "m2", "m3", "dependent"]
    assert queue.get_job_ids() == ["first", "m0", "m1", "m2", "m3"]
    assert 0 < redis.ttl(named("rq:job:m0")) <= 50
    assert jobs[-1].get_status() == JobStatus.DEFERRED


def test_concurrent_enqueues_fill_it_exactly(server: Any, redis: Redis) -> None:
    """Ten threads that enqueue as fast as they can never put one job too many into it."""
    barrier, pool = threading.Barrier(10), Pool(Settings(url=server.url, max_connections=10))

    def enqueue(_number: int) -> int:
        queue, refused = Queue(connection=Redis(connection_pool=pool), max_length=37), 0
        barrier.wait(20)
        for _ in range(10):
            try:
                queue.enqueue(claim_jobs.nothing)
            except QueueFull:
                refused += 1
        return refused

    with ThreadPoolExecutor(10) as threads:
        refused = sum(threads.map(enqueue, range(10)))
    pool.disconnect()
    assert (StockQueue(connection=redis).count, refused) == (37, 63)
    assert len(redis.keys(named("rq:job:*"))) == 37


def test_what_nobody_enqueues_always_gets_in(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Retries, repeats, dependents, requeued and scheduled jobs enter a queue that is full for users."""
    queue, gate = Queue("q", redis, max_length=1), tmp_path / "gate"
    with running_worker(server.url, "q", log=tmp_path / "log") as worker:
        started = tmp_path / "started"
        blocker = queue.enqueue(claim_jobs.wait_for_file, str(started), str(gate))
        wait_until(lambda: blocker.get_status() == JobStatus.STARTED)
        dependents = [queue.enqueue(claim_jobs.nothing, depends_on=blocker) for _ in range(3)]
        past = datetime.datetime.now(datetime.timezone.utc)
        scheduled = [queue.enqueue_at(past, claim_jobs.nothing) for _ in range(3)]
        wait_until(lambda: queue.count == 3)
        with pytest.raises(QueueFull):
            queue.enqueue(claim_jobs.nothing)
        gate.touch()
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in dependents + scheduled))
        repeated = queue.enqueue(claim_jobs.nothing, repeat=Repeat(2))
        wait_until(lambda: repeated.get_status() == JobStatus.FINISHED and len(repeated.results()) == 3)
        failing = queue.enqueue(claim_jobs.fail_unless_file, str(tmp_path / "no"), retry=Retry(2))
        wait_until(lambda: failing.get_status() == JobStatus.FAILED)
        worker.stop()
    queue.enqueue(claim_jobs.nothing)
    assert queue.failed_job_registry.requeue(failing).get_status() == JobStatus.QUEUED
    assert queue.count == 2


@pytest.mark.parametrize("length", [True, -1, "3", 1.5])
def test_bad_lengths_are_refused(redis: Redis, length: Any) -> None:
    """max_length is a whole number, and a pipeline cannot be refused in."""
    with pytest.raises(ConfigurationError, match="whole number"):
        Queue("q", redis, max_length=length)
    queue = Queue("q", redis, max_length=1)
    with redis.pipeline() as pipeline, pytest.raises(ConfigurationError, match="pipeline"):
        queue.enqueue(claim_jobs.nothing, pipeline=pipeline)
    with redis.pipeline() as pipeline, pytest.raises(ConfigurationError, match="pipeline"):
        queue.enqueue_many([Queue.prepare_data(claim_jobs.nothing)], pipeline=pipeline)
    with pytest.raises(ConfigurationError, match="an rq.Group always uses one"):
        Group(redis).enqueue_many(queue, [Queue.prepare_data(claim_jobs.nothing)])
    assert redis.keys("*") == []


def test_queue_declares_its_limit_when_it_is_used(redis: Redis) -> None:
    """Making a Queue writes nothing; its first enqueue declares the limit, an operator's stays in force."""
    queue = Queue("q", redis, limit="10/5s", max_running=3)
    assert redis.keys("*") == []
    queue.enqueue(claim_jobs.nothing)
    assert limits_in_force(redis) == {"q": (make_limit("10/5s", 3), False)}
    set_limit(redis, "q", make_limit("1/1s"))
    queue.enqueue(claim_jobs.nothing)
    Queue("q", redis, max_running=2).enqueue(claim_jobs.nothing)
    assert limits_in_force(redis)["q"] == (Limit(1, 1.0, 0), True)
    with pytest.raises(ConfigurationError, match="write it as 10/5s"):
        Queue("q", redis, limit="10 per minute")


def test_queue_declares_its_limit_when_it_schedules(redis: Redis) -> None:
    """A queue whose jobs are all scheduled has its limit, too: they start from it when they are due."""
    Queue("later", redis, limit="3/1s").enqueue_in(datetime.timedelta(minutes=1), claim_jobs.nothing)
    assert limits_in_force(redis)["later"].limit == make_limit("3/1s")


def test_queue_that_uses_none_of_it_writes_what_stock_rq_writes(redis: Redis) -> None:
    """Without these arguments no key of ours appears."""
    Queue("q", redis).enqueue(claim_jobs.nothing)
    assert [key for key in redis.keys("*") if key.startswith(b"rq_pooled")] == []
