"""Dependents are enqueued however many there are, and whatever is written beside it."""

from __future__ import annotations

import time
from pathlib import Path

import dependent_jobs
import pytest
from dependent_jobs import writing
from keys import named
from redis import Redis
from rq import Queue
from rq.job import Dependency, Job
from support import running_worker

from rq_pooled.embedded import EmbeddedServer


def test_many_parents_of_one_job_do_not_disturb_each_other(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """What is asked to see whether a job's dependencies are met grows with their number, not with its square."""
    queue, number = Queue(connection=redis), 60
    parents = [queue.enqueue(dependent_jobs.nothing) for _ in range(number)]
    child = queue.enqueue(dependent_jobs.nothing, depends_on=parents)
    redis.config_resetstat()
    with running_worker(server.url, "--burst", log=tmp_path / "log", concurrency=4, ready=None) as worker:
        assert worker.wait() == 0
    assert child.get_status(refresh=True) == "finished"
    scripts = redis.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert scripts < 40 * number  # about 10 each; one for each parent of each parent made 700


def test_dependents_to_which_somebody_writes_all_the_time(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """What is written to dependents meanwhile is no reason to begin anew."""
    queue = Queue(connection=redis)
    parent = queue.enqueue(dependent_jobs.nothing)
    children = [queue.enqueue(dependent_jobs.nothing, depends_on=parent) for _ in range(100)]
    keys = [child.key for child in children]

    def write(client: Redis) -> None:
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hset(key, "note", str(time.time()))
            pipe.execute()

    with writing(redis, write), running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait(50) == 0, worker.output()
    assert {child.get_status(refresh=True) for child in children} == {"finished"}


def test_a_queue_class_that_reads_what_changes_all_the_time(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """What only a user's class reads may change a few times, then the job's end is recorded all the same."""
    queue = Queue(connection=redis)
    parent = queue.enqueue(dependent_jobs.nothing)
    child = queue.enqueue(dependent_jobs.nothing, depends_on=parent)
    options = ("--burst", "--queue-class", "dependent_jobs.CuriousQueue")
    redis.set("clock", 1, ex=1000)
    with running_worker(server.url, *options, log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0, worker.output()
    assert child.get_status(refresh=True) == "finished"


def spoil(redis: Redis, how: str, parent: Job, child: Job) -> str:
    """Damage one of the dependents of a job; return what the worker's log says of it."""
    if how == "member":
        redis.sadd(parent.dependents_key, b"\xff\x1b")
        return f"1 members of {parent.dependents_key} are no text and are passed over: \\xff\\x1b"
    if how == "gone":
        redis.delete(child.key)
        return ""
    if how == "half":
        redis.hdel(child.key, "data")
    elif how == "date":
        redis.hset(child.key, "created_at", b"\xff")
    elif how == "number":
        redis.hset(child.key, "result_ttl", "soon")
    elif how == "type":
        redis.delete(child.key)
        redis.set(child.key, "no hash")
    elif how == "dependency":
        redis.sadd(child.dependencies_key, "odd")
        redis.hset(named("rq:job:odd"), "status", b"\xff")
        return f"what job {child.id} depends on cannot be read, it stays deferred: UnicodeDecodeError"
    elif how == "queue":
        redis.hset(child.key, "origin", "odd")
        redis.set(named("rq:queue:odd"), "no list")
        return f"{named('rq:queue:odd')} is no list: job {child.id} stays deferred"
    return f"1 jobs cannot be read and are passed over: {child.id} ("


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("how", ["member", "gone", "half", "date", "number", "type", "dependency", "queue"])
def test_a_dependent_that_cannot_be_read_holds_back_no_other(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, how: str, fails: bool
) -> None:
    """One dependent that RQ cannot read is named and passed over, and the others run."""
    queue = Queue(connection=redis)
    parent = queue.enqueue(dependent_jobs.fail if fails else dependent_jobs.nothing)
    after = Dependency(parent, allow_failure=True)
    children = [queue.enqueue(dependent_jobs.nothing, depends_on=after) for _ in range(5)]
    said = spoil(redis, how, parent, children[2])
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait(30) == 0, worker.output()
    assert parent.get_status(refresh=True) == ("failed" if fails else "finished")
    left = [child for child in children if child is not children[2] or how == "member"]
    assert {child.get_status(refresh=True) for child in left} == {"finished"}
    assert fails or said in worker.output(), worker.output()
    assert "Traceback" not in worker.output() or fails


@pytest.mark.parametrize("how", ["number", "queue"])
def test_maintenance_passes_over_what_it_cannot_read(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, how: str
) -> None:
    """When RQ's maintenance fails an abandoned job, its dependents are enqueued but for the one that cannot be."""
    queue = Queue(connection=redis)
    parent = queue.enqueue(dependent_jobs.nothing)
    after = Dependency(parent, allow_failure=True)
    children = [queue.enqueue(dependent_jobs.nothing, depends_on=after) for _ in range(3)]
    spoil(redis, how, parent, children[1])
    redis.delete(queue.key)
    redis.hset(parent.key, "status", "started")
    redis.zadd(named("rq:wip:default"), {f"{parent.id}:e": 1})
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait(30) == 0, worker.output()
    with running_worker(server.url, "--burst", log=tmp_path / "more", ready=None) as worker:
        assert worker.wait(30) == 0, worker.output()
    assert parent.get_status(refresh=True) == "failed"
    assert [children[i].get_status(refresh=True) for i in (0, 2)] == ["finished"] * 2, worker.output()


def test_dependents_in_a_key_of_another_type_harm_no_outcome(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """A job whose set of dependents has become something else has the outcome that it had."""
    queue = Queue(connection=redis)
    parent = queue.enqueue(dependent_jobs.nothing)
    redis.set(parent.dependents_key, "no set")
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait(30) == 0, worker.output()
    assert parent.get_status(refresh=True) == "finished"
    assert f"{parent.dependents_key} is no set: no job is enqueued by it" in worker.output()


def test_a_job_reads_other_jobs_as_with_stock_rq(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """What a job itself fetches raises what RQ raises."""
    queue = Queue(connection=redis)
    odd = queue.create_job(dependent_jobs.nothing)
    odd.save()
    redis.hset(odd.key, "result_ttl", "soon")
    job = queue.enqueue(dependent_jobs.fetch, odd.id)
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait(30) == 0, worker.output()
    assert job.return_value(refresh=True) == "ValueError"
