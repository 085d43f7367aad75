"""RQ's maintenance: however much there is to clean up, no job and no stop waits for it."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import jobs
import promise_jobs
import pytest
from keys import named
from redis import Redis
from rq import Callback, Queue
from rq.job import Job
from support import running_worker, wait_until

from rq_pooled.horse.tolerant_maintenance import clean_groups
from rq_pooled.rq_api import RQ3
from rq_pooled.store.repair import clean_groups as clean_page
from rq_pooled.store.scripts import run_script

GROUPS, STARTED = named("rq:groups"), named("rq:wip:a")
MANY = 100_000


def clean(redis: Redis) -> int:
    """Clean all groups as the horse does, and return how many pages it took."""
    pages = []

    def run(command: Any) -> Any:
        pages.append(command)
        assert len(pages) < 1000, "a round has no end"
        return run_script(redis, command)

    clean_groups(run)
    return len(pages)


def fill(redis: Redis, kind: str) -> str:
    """Write what RQ's maintenance is busy with for long, and return a key that stands until it has done that."""
    pipeline = redis.pipeline(transaction=False)
    for number in range(MANY):
        if kind == "abandoned":
            pipeline.zadd(STARTED, {f"j{number}:e": 1})
        else:
            pipeline.sadd(named("rq:rl-keys"), f"k{number}")
    pipeline.execute()
    return STARTED if kind == "abandoned" else named("rq:rl-keys")


@pytest.mark.parametrize("kind", ["abandoned", *(["rate limits"] if RQ3 else [])])
def test_maintenance_holds_up_neither_jobs_nor_the_stop(server: Any, redis: Redis, tmp_path: Path, kind: str) -> None:
    """A worker with one slot begins jobs, and ends, long before all that RQ has to clean up is cleaned up."""
    left = fill(redis, kind)
    queue = Queue("a", connection=redis)
    with running_worker(server.url, "a", log=tmp_path / "log") as worker:
        for _ in range(3):
            job = queue.enqueue("math.sqrt", 4)
            wait_until(lambda: job.get_status(refresh=True) == "finished", 10, what="the job")  # noqa: B023
        assert redis.exists(left), "there was too little to hold anything up"
        assert worker.stop() == 0
    assert redis.exists(left)


def abandon(redis: Redis, queue: Queue, callback: Any) -> Job:
    """Enqueue a job, and leave it as a worker does that died long ago."""
    job = queue.enqueue("math.sqrt", 4, on_failure=Callback(callback, timeout=30))
    redis.hset(job.key, "status", "started")
    redis.lrem(queue.key, 0, job.id)
    redis.zadd(queue.started_job_registry.key, {f"{job.id}:e": 1})
    return job


def test_a_callback_of_maintenance_is_not_cut_short_by_a_stop(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A failure callback that maintenance has begun runs to its end, though the worker is told to stop meanwhile, and
    no other begins then.
    """
    for _ in range(3):
        abandon(redis, Queue("a", connection=redis), promise_jobs.on_failure_outlast)
    with running_worker(server.url, "a", log=tmp_path / "log") as worker:
        wait_until(lambda: redis.exists("began"), 10, what="the callback")
        assert worker.stop() == 0
    assert redis.lrange("callbacks", 0, -1) == redis.lrange("began", 0, -1) and redis.llen("began") == 1


def test_a_dependent_that_depends_on_nothing_holds_no_job_back(server: Any, redis: Redis, tmp_path: Path) -> None:
    """An abandoned job is failed though a job is listed among its dependents that names no dependency."""
    queue = Queue("a", connection=redis)
    redis.hset(Queue("b", connection=redis).enqueue("math.sqrt", 4, job_id="alien").key, "status", "deferred")
    redis.zadd(named("rq:deferred:a"), {"alien": 1})
    job = abandon(redis, queue, promise_jobs.on_abandoned)
    redis.delete(queue.key)
    redis.sadd(named(f"rq:job:{job.id}:dependents"), "alien")
    with running_worker(server.url, "a", log=tmp_path / "log"):
        wait_until(lambda: job.get_status(refresh=True) == "failed", 10, what="maintenance")


@pytest.mark.parametrize("worker_class", ["crowded_worker.Worker", "rq_pooled.Worker"])
@pytest.mark.parametrize("end", [("--burst",), ("--max-jobs", "1")], ids=["burst", "max-jobs"])
def test_a_worker_without_room_for_maintenance_ends(
    server: Any, redis: Redis, tmp_path: Path, end: tuple[str, ...], worker_class: str
) -> None:
    """A worker that cannot fork a horse for maintenance does its jobs and ends, as one that can."""
    job = Queue("a", connection=redis).enqueue("math.sqrt", 4)
    log = tmp_path / "log"
    with running_worker(server.url, "a", *end, log=log, ready=None, worker_class=worker_class) as worker:
        assert worker.wait() == 0
        assert ("cannot fork" in worker.output()) == worker_class.startswith("crowded")
    assert job.get_status(refresh=True) == "finished"


def test_no_maintenance_begins_after_the_stop(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A worker that finishes a job after it was told to stop begins no maintenance, which its end would wait for."""
    queue = Queue("a", connection=redis)
    line = ("a", "--maintenance-interval", "1")
    with running_worker(server.url, *line, log=tmp_path / "log", concurrency=2) as worker:
        held = queue.enqueue(jobs.wait_for, "go", "running")
        wait_until(lambda: redis.llen("running"), 10, what="the job")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("warm shut down requested")
        job = abandon(redis, queue, promise_jobs.on_abandoned)
        time.sleep(2.5)
        redis.lpush("go", 1)
        assert worker.wait() == 0
    assert held.get_status(refresh=True) == "finished" and job.get_status(refresh=True) == "started"


def test_a_second_stop_ends_maintenance_at_once(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A cold stop waits for no maintenance, and says nothing of what it cut short but that."""
    fill(redis, "abandoned")
    with running_worker(server.url, "a", log=tmp_path / "log") as worker:
        worker.wait_for("cleaning registries")
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(1.1)  # one that comes within a second is the same signal
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert "cold shut down" in worker.output() and "clean" not in worker.output().rpartition("registries")[2]


@pytest.mark.skipif(not RQ3, reason="RQ 2 has no ready jobs")
def test_what_a_dead_horse_watched_ends_no_other_round(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Keys that were watched when maintenance died, and have changed since, do not end the next round."""
    queue, ready = Queue("a", connection=redis), named("rq:ready:a")
    deadly = queue.enqueue("math.sqrt", 4, job_id="deadly")
    redis.hset(deadly.key, "status", "ready_to_enqueue")
    redis.lrem(queue.key, 0, deadly.id)
    redis.zadd(ready, {deadly.id: time.time()})
    line = ("a", "--maintenance-interval", "1", "--job-class", "deadly_class.Deadly")
    with running_worker(server.url, *line, log=tmp_path / "log", DEADLY=str(tmp_path / "told")) as worker:
        worker.wait_for("died during maintain")
        redis.delete(deadly.key, ready)
        job = abandon(redis, queue, promise_jobs.on_abandoned)
        redis.hset(job.key, "retries_left", 1)
        redis.delete(named("rq:clean_registries:a"))
        wait_until(lambda: job.get_status(refresh=True) == "finished", 10, worker.output())
        assert "given up" not in worker.output()


HASH = {"created_at": "2026-11-01T00:00:00.000000Z", "origin": "a", "data": "x", "timeout": "30"}


@pytest.mark.parametrize("forged", ["failure_ttl", "results", "failed", *(["ready", "ttl", "queue"] if RQ3 else [])])
def test_no_entry_ends_the_maintenance_of_others(server: Any, redis: Redis, tmp_path: Path, forged: str) -> None:
    """What the server refuses of RQ's clean-up, for what others wrote, does not keep it from other queues."""
    if forged == "ready":
        redis.rpush(named("rq:job:x"), "x")
    elif forged in ("ttl", "queue"):
        redis.hset(named("rq:job:x"), mapping={**HASH, "status": "ready_to_enqueue"})
    else:
        redis.hset(named("rq:job:x"), mapping={**HASH, "status": "started"})
    if forged in ("failure_ttl", "ttl"):
        redis.hset(named("rq:job:x"), forged, "9" * 300)
    elif forged != "ready":
        redis.set(named({"results": "rq:results:x", "failed": "rq:failed:a", "queue": "rq:queue:a"}[forged]), "x")
    redis.zadd(*((named("rq:ready:a"), {"x": 1}) if forged in ("ready", "ttl", "queue") else (STARTED, {"x:e": 1})))
    redis.sadd(named("rq:queues"), named("rq:queue:a"))
    job = abandon(redis, Queue("b", connection=redis), promise_jobs.on_abandoned)
    with running_worker(server.url, "a", "b", log=tmp_path / "log"):
        wait_until(lambda: job.get_status(refresh=True) == "failed", 10, what="the other queue")


# -- groups ----------------------------------------------------------------------------------------------------------


def test_groups_are_cleaned_in_pages_as_by_rq(redis: Redis) -> None:
    """Ids whose job is gone, and groups that are empty, are removed; all else stays."""
    redis.hset(named("rq:job:alive"), "status", "finished")
    for number in range(300):
        redis.sadd(GROUPS, f"g{number}", f"empty{number}")
        redis.sadd(named(f"rq:group:g{number}"), f"gone{number}", *(["alive"] if number % 2 else []))
    redis.sadd(GROUPS, "large")
    redis.sadd(named("rq:group:large"), "alive", *(f"gone{number}" for number in range(5000)))
    assert clean(redis) > 5
    assert redis.smembers(GROUPS) == {b"large", *(b"g%d" % number for number in range(1, 300, 2))}
    assert redis.smembers(named("rq:group:large")) == redis.smembers(named("rq:group:g1")) == {b"alive"}


def test_groups_that_come_meanwhile_have_their_turn(redis: Redis) -> None:
    """A group that is emptied after its page is removed by the next round."""
    redis.sadd(GROUPS, *(f"g{number}" for number in range(500)))
    run_script(redis, clean_page(b"0"))
    redis.sadd(GROUPS, "late")
    clean(redis)
    assert not redis.exists(GROUPS)


@pytest.mark.parametrize("name", ["a\nb", "é𝄞", "", "g:x"])
def test_groups_of_any_text_are_cleaned_in_pages(redis: Redis, name: str) -> None:
    """A large group whose name is any text takes pages of its own."""
    redis.sadd(GROUPS, name)
    redis.sadd(named("rq:group:") + name, *(f"gone{number}" for number in range(5000)))
    assert clean(redis) > 3 and not redis.exists(GROUPS, named("rq:group:") + name)


def test_a_small_group_in_a_large_table_is_cleaned_to_its_end(redis: Redis) -> None:
    """A group that has shrunk may take several pages: one round removes each id whose job is gone."""
    key = named("rq:group:shrunk")
    redis.sadd(GROUPS, "shrunk")
    redis.hset(named("rq:job:alive"), "status", "finished")
    redis.sadd(key, "alive", *(f"gone{number}" for number in range(50_000)))
    pipeline = redis.pipeline()
    pipeline.srem(key, *(f"gone{number}" for number in range(90, 50_000)))
    pipeline.execute()
    clean(redis)
    assert redis.smembers(key) == {b"alive"}
