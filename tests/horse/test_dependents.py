"""Dependents are enqueued however many there are, and whatever is written beside it."""

from __future__ import annotations

import time
from pathlib import Path

import dependent_jobs
from dependent_jobs import writing
from redis import Redis
from rq import Queue
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
