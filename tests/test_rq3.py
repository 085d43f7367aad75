"""What RQ 3 brings: limits on jobs that run at once, executions by worker, a stop for one execution, a prefix of keys."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import Any

import jobs
import pytest
from engine import engine, finished
from redis import Redis
from rq import Queue, Worker
from rq.job import Job, JobStatus
from support import running_worker, wait_until
from test_bad_input import WAYS, refusal, run

from rq_pooled import Queue as PooledQueue
from rq_pooled.errors import ConfigurationError
from rq_pooled.rq_api import RQ3

only_3 = pytest.mark.skipif(not RQ3, reason="of RQ 3")


def limited(redis: Redis, function: Any, *arguments: Any, job_id: str, **options: Any) -> Job:
    """Enqueue a job of a limit of one."""
    from rq import RateLimit

    limit = RateLimit("k", 1)
    return Queue(connection=redis).enqueue(function, *arguments, job_id=job_id, rate_limit=limit, **options)


def ends(job: Job, status: JobStatus = JobStatus.FINISHED) -> None:
    """Wait until a job has this status."""
    wait_until(lambda: job.get_status() == status, 20, f"{job.id} to be {status.value}")


@only_3
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_another_prefix_of_keys_is_refused(server: Any, redis: Redis, way: list[str]) -> None:
    """With a prefix that the scripts do not know no worker starts, in one line, since it would drop jobs as deleted."""
    assert "RQ_KEY_PREFIX is 'app'" in refusal(run(way, server.url, RQ_KEY_PREFIX="app"))
    assert redis.keys("*") == []


@only_3
@pytest.mark.parametrize("program", ["rq worker", "rq-pooled worker"])
def test_a_worker_class_written_for_rq_2_is_refused(server: Any, redis: Redis, program: str) -> None:
    """A worker class whose ``perform_job`` takes no execution ends in one line, and its jobs stay queued instead of failing."""
    job = Queue("q", connection=redis).enqueue(jobs.nothing)
    line = refusal(run([*WAYS[program][:-1], "--worker-class", "entry_worker.OldWorker", "q"], server.url))
    assert "entry_worker.OldWorker.perform_job() takes no execution, which rq 3" in line
    assert job.get_status() == JobStatus.QUEUED


@only_3
@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_a_job_cancelled_while_it_runs_frees_its_slot(server: Any, redis: Redis, tmp_path: Path, how: str) -> None:
    """The slot of a job that was cancelled or deleted while it ran is free as soon as it has run to its end."""
    with running_worker(server.url, log=tmp_path / "log", concurrency=2):
        first = limited(redis, jobs.wait_for, "go", "started", job_id="a")
        second = limited(redis, jobs.add, 1, 2, job_id="b")
        wait_until(lambda: redis.llen("started") == 1, what="the first job")
        getattr(first, how)()
        assert second.get_status() == JobStatus.RATE_LIMITED
        redis.rpush("go", 1)
        ends(second)
        wait_until(lambda: not redis.zcard("rq:rl:k:allowed"), what="free slots")


@only_3
def test_a_killed_job_frees_its_slot(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A job whose process dies gives its slot to the next one with its failure."""
    with running_worker(server.url, log=tmp_path / "log", concurrency=2):
        first = limited(redis, jobs.wait_for, "go", "started", job_id="a")
        second = limited(redis, jobs.add, 1, 2, job_id="b")
        wait_until(lambda: redis.llen("started") == 1, what="the first job")
        os.kill(int(redis.lindex("started", 0)), signal.SIGKILL)
        ends(first, JobStatus.FAILED)
        ends(second)


@only_3
def test_an_execution_is_stopped(server: Any, redis: Redis, tmp_path: Path) -> None:
    """RQ 3's command stops the execution that it names, and no other of the same worker."""
    from rq.command import send_stop_execution_command

    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", concurrency=2):
        one, two = (queue.enqueue(jobs.wait_for, f"go:{n}", "started") for n in range(2))
        wait_until(lambda: redis.llen("started") == 2, what="both jobs")
        (execution,) = one.get_executions()
        holder = {w.name: w for w in Worker.all(connection=redis)}[str(Job.fetch(one.id, redis).worker_name)]
        assert [e.job_id for e in holder.get_current_executions()] == [one.id]
        send_stop_execution_command(redis, one.id, execution.id)
        ends(one, JobStatus.STOPPED)
        assert two.get_status() == JobStatus.STARTED
        redis.rpush("go:1", 1)
        ends(two)
        assert not redis.keys("rq:worker:*:executions")


@only_3
def test_a_slot_in_a_spoilt_key_records_nothing_twice(server: Any, redis: Redis) -> None:
    """A limit's key of another type is seen before the first write of an outcome, which is refused and not half written."""
    from rq.rate_limit import RELEASE_AND_ENQUEUE_SCRIPT

    with engine(server.url) as ours:
        ours.register("w")
        limited(redis, jobs.add, 1, 2, job_id="a")
        (claim,) = ours.claim("w").claims
        redis.delete("rq:rl:k:allowed")
        redis.set("rq:rl:k:allowed", "spoilt")
        sha1 = redis.script_load(RELEASE_AND_ENQUEUE_SCRIPT)
        keys = ("rq:rl:k:allowed", "rq:rl:k:rate_limited")
        words = ("EVALSHA", sha1, 2, *keys, 1, 1.0, "now", "rq:queue:", "rq:job:", "a")
        (answer,) = ours.commit(finished(claim, words))
        assert answer.startswith("WRONGTYPE")
        assert not redis.hget("rq:worker:w", "successful_job_count")
        redis.delete("rq:rl:k:allowed")
        redis.zadd("rq:rl:k:allowed", {"a": 1})
        assert ours.commit(finished(claim, words)) == ["ok"]
        assert not redis.exists("rq:rl:k:allowed")


@only_3
def test_a_bare_failure_frees_its_slot(server: Any, redis: Redis) -> None:
    """A job that RQ's code cannot be given lets the next one of its limit in when it is recorded as failed."""
    with engine(server.url) as ours:
        ours.register("w")
        limited(redis, jobs.add, 1, 2, job_id="a")
        second = limited(redis, jobs.add, 1, 2, job_id="b")
        (claim,) = ours.claim("w").claims
        assert ours.commit(ours.ledger.bare_failure(claim, "unreadable")) == ["ok"]
        assert second.get_status() == JobStatus.QUEUED
        assert redis.zrange("rq:rl:k:allowed", 0, -1) == [b"b"]


@only_3
def test_what_a_limit_cannot_be_combined_with_is_refused(redis: Redis) -> None:
    """max_length and unique_for, which RQ's way for limited jobs passes by, are refused instead of ignored."""
    from rq import RateLimit

    tries: list[tuple[dict[str, Any], dict[str, Any]]] = [({"max_length": 1}, {}), ({}, {"unique_for": 9})]
    for of_queue, options in tries:
        queue = PooledQueue(connection=redis, **of_queue)
        with pytest.raises(ConfigurationError, match="cannot be combined with rate_limit"):
            queue.enqueue(jobs.add, 1, 2, rate_limit=RateLimit("k", 1), **options)
    assert redis.keys("rq:job:*") == []


@only_3
def test_dependents_left_ready_are_queued(server: Any, redis: Redis) -> None:
    """What a stock worker noted as ready before it died is queued after the age, by its limit if it has one; not before."""
    queue = Queue(connection=redis)
    plain, held = queue.enqueue(jobs.add, 1, 2, job_id="plain"), limited(redis, jobs.add, 1, 2, job_id="held")
    redis.delete(queue.key, "rq:rl:k:allowed")
    for job in (plain, held):
        job.set_status(JobStatus.READY_TO_ENQUEUE)
        queue.ready_job_registry.add(job)
    redis.zadd("rq:rl:k:allowed", {"other": 1})
    redis.hset("rq:job:other", "status", "started")
    with engine(server.url) as ours:
        assert ours.run(ours.scripts.ready([queue.key], 100, "now")) == []
        found = ours.run(ours.scripts.ready([queue.key], -1, "2026-01-01T00:00:00.000000Z"))
    assert sorted(found) == [[b"held", b"rq:queue:default", 1], [b"plain", b"rq:queue:default", 1]]
    assert (plain.get_status(), held.get_status()) == (JobStatus.QUEUED, JobStatus.RATE_LIMITED)
    assert queue.get_job_ids() == ["plain"] and redis.zrange("rq:rl:k:rate_limited", 0, -1) == [b"held"]
    assert not redis.exists("rq:ready:default")


@only_3
def test_free_slots_are_filled_between_maintenances(server: Any, redis: Redis) -> None:
    """Jobs that wait although a slot is free, as after the end of one on RQ 2, are admitted; a spoilt limit stops no other."""
    first, second = (limited(redis, jobs.add, 1, 2, job_id=name) for name in "ab")
    redis.delete("rq:rl:k:allowed", "rq:queue:default")
    for name in ("spoilt", "without a number"):
        redis.sadd("rq:rl-keys", name)
    redis.set("rq:rl:spoilt", 1)
    first.set_status(JobStatus.FINISHED)
    with engine(server.url) as ours:
        assert ours.run(ours.scripts.ready(["rq:queue:default"], 100, "now")) == []
        assert (second.get_status(), Queue(connection=redis).job_ids) == (JobStatus.QUEUED, ["b"])
        third = limited(redis, jobs.add, 1, 2, job_id="c")
        ours.run(ours.scripts.ready(["rq:queue:default"], 100, "now"))
    assert third.get_status() == JobStatus.RATE_LIMITED and redis.zrange("rq:rl:k:allowed", 0, -1) == [b"b"]


@pytest.mark.skipif(RQ3, reason="of RQ 2")
def test_on_rq_2_a_limited_job_gives_its_slot_back(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A job that RQ 3 has admitted leaves its slot with its outcome on RQ 2, too."""
    job = Queue(connection=redis).enqueue(jobs.add, 1, 2, job_id=uuid.uuid4().hex)
    redis.hset(job.key, mapping={"rate_limit_key": "k", "rate_limit_concurrency": 1})
    redis.zadd("rq:rl:k:allowed", {job.id: 1, "other": 2})
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait(20) == 0
    ends(job)
    assert redis.zrange("rq:rl:k:allowed", 0, -1) == [b"other"]
