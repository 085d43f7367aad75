"""The slot of a rate limit: freed in the step that records an outcome, kept while the job is queued or runs."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jobs
import once_jobs
import pytest
from engine import Engine, engine
from keys import named
from redis import Redis
from rq import Queue, Repeat, Retry
from rq.command import send_stop_job_command
from rq.job import Job
from support import QUICK, running_worker, wait_until

from rq_pooled import Scheduler, Sweeper
from rq_pooled.failed import Bury, DeadLetterRegistry
from rq_pooled.rq_api import RQ3
from rq_pooled.store.leases import find_stalled, push_back

pytestmark = pytest.mark.skipif(not RQ3, reason="of RQ 3")

ALLOWED, WAITING = named("rq:rl:k:allowed"), named("rq:rl:k:rate_limited")
FREES = f"ZREM {ALLOWED} a"


def limited(redis: Redis, function: Any, *arguments: Any, job_id: str, key: str = "k", **options: Any) -> Job:
    """Enqueue a job of a limit of one."""
    from rq import RateLimit

    queue = Queue(connection=redis)
    return queue.enqueue(function, *arguments, job_id=job_id, rate_limit=RateLimit(key, 1), **options)


@contextmanager
def steps(url: str) -> Iterator[Callable[[], list[list[str]]]]:
    """Return a function that returns what the server has done since: the commands of each script, or a single one."""
    with Redis.from_url(url) as client, Redis.from_url(url) as other, client.monitor() as monitor:

        def read() -> list[list[str]]:
            other.echo("the end of this test")
            found: list[list[str]] = [[]]
            while True:
                seen = monitor.next_command()
                if seen["command"] == "ECHO the end of this test":
                    return found
                if seen["client_type"] != "lua":
                    found.append([])
                found[-1].append(seen["command"])

        yield read


def first(found: list[list[str]], pattern: str) -> int:
    """Return the number of the first step with a command that matches."""
    return next(i for i, step in enumerate(found) if any(re.match(pattern, command) for command in step))


OUTCOMES: dict[str, tuple[str, dict[str, Any], str]] = {
    "success": ("jobs.nothing", {}, named(r"HSET rq:job:a .*status finished")),
    "success that is deleted": ("jobs.nothing", {"result_ttl": 0}, named(r"(DEL|UNLINK) rq:job:a")),
    "failure": ("jobs.fail", {}, named(r"HSET rq:job:a .*status failed")),
    "delayed retry": ("jobs.fail", {"retry": Retry(max=1, interval=60)}, named(r"HSET rq:job:a .*status scheduled")),
    "returned retry": ("jobs.return_retry", {"kwargs": {"interval": 60}}, named(r"HSET rq:job:a .*status scheduled")),
    "repeat": ("jobs.nothing", {"repeat": Repeat(times=1, interval=60)}, named(r"HSET rq:job:a .*status scheduled")),
    "missing function": ("jobs.no_such_function", {}, named(r"HSET rq:job:a .*status failed")),
    "stop": ("jobs.hang", {"args": ("started",)}, named(r"HSET rq:job:a .*status stopped")),
    "death": ("jobs.hang", {"args": ("started",)}, named(r"HSET rq:job:a .*status failed")),
    "cancelled": ("jobs.wait_for", {"args": ("go", "started")}, named(r"DEL rq:execution:a:")),
    "deleted": ("jobs.wait_for", {"args": ("go", "started")}, named(r"DEL rq:execution:a:")),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_outcome_frees_the_slot_in_its_step(server: Any, redis: Redis, tmp_path: Path, outcome: str) -> None:
    """The script that records the end of a job, however it ends, frees its slot and queues the job that waits."""
    function, options, recorded = OUTCOMES[outcome]
    limited(redis, function, job_id="a", **options)
    limited(redis, jobs.wait_for, "end", "second", job_id="b")
    assert redis.zrange(WAITING, 0, -1) == [b"b"]
    with steps(server.url) as read, running_worker(server.url, log=tmp_path / "log", concurrency=2):
        if "started" in options.get("args", ()):
            wait_until(lambda: redis.llen("started"), what="its start")
            {
                "stop": lambda: send_stop_job_command(redis, "a"),
                "death": lambda: os.kill(int(redis.lindex("started", 0)), signal.SIGKILL),
                "cancelled": lambda: Job.fetch("a", redis).cancel(),
                "deleted": lambda: Job.fetch("a", redis).delete(),
            }[outcome]()
            redis.rpush("go", 1)
        wait_until(lambda: redis.llen("second"), what="the start of the second job")
        found = read()
        redis.rpush("end", 1)
        freed = first(found, re.escape(FREES))
        assert freed == first(found, recorded), found[freed]
        assert any(re.match(rf"ZADD {ALLOWED} \S+ b$", command) for command in found[freed])
        assert named("RPUSH rq:queue:default b") in found[freed]


def test_an_abandoned_job_frees_its_slot(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A job that has stalled too often gives its slot to the one that waits in the step that fails it."""
    settings = {**QUICK, "RQ_POOLED_MAX_STALLS": "0"}
    limited(redis, jobs.hang, "started", job_id="a")
    limited(redis, jobs.wait_for, "end", "second", job_id="b")
    with running_worker(server.url, log=tmp_path / "1", **settings) as killed:
        wait_until(lambda: redis.llen("started"), what="its start")
        killed.kill()
    with steps(server.url) as read, running_worker(server.url, log=tmp_path / "2", **settings):
        wait_until(lambda: redis.llen("second"), what="the start of the second job")
        found = read()
        redis.rpush("end", 1)
    assert first(found, re.escape(FREES)) == first(found, named(r"HSET rq:job:a .*status failed"))


@pytest.mark.parametrize(
    ("function", "options"),
    [("jobs.fail_unless_last", {"retry": Retry(max=2)}), ("jobs.nothing", {"repeat": Repeat(times=2)})],
    ids=["retry", "repeat"],
)
def test_a_retry_at_once_keeps_its_slot(
    server: Any, redis: Redis, tmp_path: Path, function: str, options: dict[str, Any]
) -> None:
    """A job that is queued again by its own outcome keeps its slot in between: none that waits overtakes it."""
    limited(redis, function, job_id="a", **options)
    limited(redis, jobs.nothing, job_id="b")
    with (
        steps(server.url) as read,
        running_worker(server.url, "--burst", log=tmp_path / "log", concurrency=2, ready=None) as worker,
    ):
        assert worker.wait(20) == 0
        found = read()
    again = [i for i, step in enumerate(found) if named("RPUSH rq:queue:default a") in step]
    assert len(again) == 2 and first(found, re.escape(FREES)) > again[1]
    assert not redis.exists(ALLOWED, WAITING)


def stall(ours: Engine) -> None:
    """End the lease of what runs, and look for what has stalled."""
    with Redis.from_url(ours.settings.url) as client:
        for member in client.zrange(named("rq_pooled:leases:default"), 0, -1):
            client.zadd(named("rq_pooled:leases:default"), {member: 1})
    ours.run(find_stalled(ours.settings, ours.token, [named("rq:queue:default")], "w", time.time() + 3600))


@pytest.mark.parametrize("how", ["push-back", "push-back of a begun one", "stall"])
def test_a_job_that_goes_back_keeps_its_slot(server: Any, redis: Redis, how: str) -> None:
    """A job that is put back into its queue stays admitted: RQ counts what is queued, and the next one waits on."""
    limited(redis, jobs.nothing, job_id="a")
    limited(redis, jobs.nothing, job_id="b")
    with engine(server.url, max_stalls=3) as ours, steps(server.url) as read:
        ours.register("w")
        (claim,) = ours.claim("w").claims
        if how == "stall":
            stall(ours)
        else:
            ours.run(push_back(ours.settings, ours.token, [claim], how != "push-back"))
        found = read()
    assert Queue(connection=redis).job_ids == ["a"]
    assert (redis.zrange(ALLOWED, 0, -1), redis.zrange(WAITING, 0, -1)) == ([b"a"], [b"b"])
    assert not any(FREES in step for step in found)


@pytest.mark.parametrize("buried", [False, True], ids=["failed", "dead letter"])
def test_a_requeued_job_passes_its_limit(redis: Redis, buried: bool) -> None:
    """A failed job or dead letter that is requeued waits while others have the slots, and is queued if one is free."""
    job = limited(redis, jobs.nothing, job_id="a")
    redis.delete(named(f"rq:queue:{job.origin}"), ALLOWED)
    job.set_status("failed")  # type: ignore[arg-type]
    redis.zadd(named("rq:failed:default"), {"a": time.time()})
    if buried:
        assert Sweeper("default", connection=redis, policies=Bury()).run()[0].done == 1
    holder = limited(redis, jobs.nothing, job_id="b")

    def requeue() -> None:
        if buried:
            DeadLetterRegistry("default", connection=redis).requeue("a")
        else:
            assert Sweeper(connection=redis).requeue_ids("default", ["a"]) == {"a": "done"}

    requeue()
    assert (job.get_status(), redis.zrange(WAITING, 0, -1)) == ("rate_limited", [b"a"])
    assert Queue(connection=redis).job_ids == ["b"]
    holder.cancel()
    assert (job.get_status(), redis.zrange(ALLOWED, 0, -1)) == ("queued", [b"a"])


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "free"])
def test_what_rq_scheduler_moves_passes_its_limit(redis: Redis, taken: bool) -> None:
    """A due job of rq-scheduler's schedule waits while others have the slots of its limit, and is queued otherwise."""
    scheduler = Scheduler(connection=redis)
    job = scheduler.enqueue_at(datetime(2020, 1, 1, tzinfo=timezone.utc), once_jobs.accept, job_id="a")
    redis.hset(job.key, mapping={"rate_limit_key": "k", "rate_limit_concurrency": 1})
    if taken:
        limited(redis, jobs.nothing, job_id="b")
    assert scheduler.acquire_lock()
    scheduler.enqueue_jobs()
    scheduler.remove_lock()
    queue = Queue(connection=redis)
    if taken:
        assert (job.get_status(), queue.job_ids, redis.zrange(WAITING, 0, -1)) == ("rate_limited", ["b"], [b"a"])
    else:
        assert (job.get_status(), queue.job_ids, redis.zrange(ALLOWED, 0, -1)) == ("queued", ["a"], [b"a"])


def left_by_a_dead_stock_worker(redis: Redis, *jobs: Job) -> None:
    """Make jobs look as if a stock worker had died with them a while ago."""
    for job in jobs:
        redis.lrem(named("rq:queue:default"), 0, job.id)
        job.set_status("started")  # type: ignore[arg-type]
        redis.zadd(named("rq:wip:default"), {f"{job.id}:gone": time.time() - 100})


def test_what_a_dead_stock_worker_ran_gives_its_slot_back(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A job that RQ's clean-up finds abandoned, which no lease of ours covers, lets the one that waits in."""
    job = limited(redis, jobs.nothing, job_id="a")
    second = limited(redis, jobs.nothing, job_id="b")
    left_by_a_dead_stock_worker(redis, job)
    with running_worker(server.url, log=tmp_path / "log"):
        # Sooner than the worker looks for free slots.
        wait_until(lambda: second.get_status() == "finished", 10, "the second job")
        assert job.get_status() == "failed"
        wait_until(lambda: not redis.exists(ALLOWED), what="the slots to be free")


@pytest.mark.parametrize("key", [named("rq:rl-keys"), named("rq:rl:k"), ALLOWED, WAITING])
def test_a_spoilt_limit_ends_no_maintenance(server: Any, redis: Redis, tmp_path: Path, key: str) -> None:
    """Where a key of one limit is of another type RQ's maintenance frees the slots of others, and comes to its end."""
    spoilt, other = limited(redis, jobs.nothing, job_id="a"), limited(redis, jobs.nothing, job_id="b", key="l")
    waiting = limited(redis, jobs.nothing, job_id="c", key="l")
    left_by_a_dead_stock_worker(redis, spoilt, other)
    redis.delete(key)
    redis.set(key, "x")
    redis.zadd(named("rq:failed:default"), {"ghost": time.time() + 1000})
    with running_worker(server.url, log=tmp_path / "log") as worker:
        wait_until(lambda: waiting.get_status() == "finished", 10, "the job of the other limit")
        worker.wait_for("cleaning group registries", 10)
        wait_until(lambda: redis.zscore(named("rq:failed:default"), "ghost") is None, 10, "the sweep")
        assert spoilt.get_status() == other.get_status() == "failed"
        assert "given up" not in worker.output()
