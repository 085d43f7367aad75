"""Sweeps beside workers and other sweeps, and sweeps that are killed: nothing is lost, nothing happens twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import retry_jobs
from failures import fill, ids_in
from keys import named
from redis import Redis
from rq import Queue as StockQueue
from rq.registry import FinishedJobRegistry
from support import ROOT, running_worker, wait_until

from rq_pooled import Queue, Sweeper
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import SweepUnderWay
from rq_pooled.failed import Bury, Ghosts, Purge, Requeue

FAILED, QUEUE, DEAD = named("rq:failed:default"), named("rq:queue:default"), named("rq_pooled:dead:default")


def sweep(redis: Redis, policy: Any, **options: Any) -> int:
    """Sweep once; 0 where somebody else does."""
    try:
        return Sweeper("default", redis, policy).run(**options)[0].done
    except SweepUnderWay:
        return 0


@pytest.mark.timeout(120)
def test_requeues_beside_a_worker_run_each_job_once(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Jobs that fail and are requeued again and again by several sweepers run once per requeue, and all end."""
    queue = Queue("default", redis)
    redis.set("outage", 1)
    jobs = queue.enqueue_many([Queue.prepare_data(retry_jobs.fail_while, ("outage",)) for _ in range(300)])
    requeued, stop = [0], threading.Event()
    lock = threading.Lock()

    def sweeps(dead: bool) -> None:
        with Redis.from_url(server.url) as own:
            while not stop.is_set():
                sweeper = Sweeper("default", own, Requeue(), dead=dead)
                try:
                    done = sweeper.run()[0].done
                except SweepUnderWay:
                    done = 0
                with lock:
                    requeued[0] += done
                sweep(own, Bury(limit=20))

    threads = [threading.Thread(target=sweeps, args=(dead,)) for dead in (False, False, True)]
    with running_worker(server.url, "--quiet", log=tmp_path / "log", concurrency=4, ready=None):
        wait_until(lambda: redis.zcard(FAILED) > 50)
        for thread in threads:
            thread.start()
        wait_until(lambda: requeued[0] > 600, 60)
        redis.delete("outage")
        finished = FinishedJobRegistry("default", redis).key
        wait_until(lambda: redis.zcard(finished) == len(jobs), 60, "the end of all jobs")
        stop.set()
        for thread in threads:
            thread.join(20)
    runs = sum(redis.llen(f"runs:{job.id}") for job in jobs)
    assert runs == len(jobs) + requeued[0]
    assert not any(
        redis.exists(key) for key in (FAILED, DEAD, QUEUE, named("rq:wip:default"), named("rq_pooled:sweep:default"))
    )


def test_single_requeues_and_purges_exclude_each_other(server: EmbeddedServer, redis: Redis) -> None:
    """While one deletes and another requeues the same jobs, each job is either queued and whole, or gone."""
    ids = fill(redis, 2000)
    done: list[str] = []

    def requeue() -> None:
        with Redis.from_url(server.url) as own:
            sweeper = Sweeper("default", own)
            for start in range(len(ids) - 10, -1, -10):
                words = sweeper.requeue_ids("default", ids[start : start + 10])
                done.extend(job_id for job_id, word in words.items() if word == "done")

    thread = threading.Thread(target=requeue)
    thread.start()
    purged = sweep(redis, Purge(everything=True))
    thread.join()
    assert sorted(ids_in(redis, QUEUE)) == sorted(done)
    assert purged + len(done) == len(ids) and done
    assert {key.decode() for key in redis.keys(named("rq:job:*"))} == {named(f"rq:job:{job_id}") for job_id in done}
    assert not redis.exists(FAILED)


def test_ghosts_are_no_jobs_that_just_failed(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Dropping ghosts all the time never takes an entry whose job is there."""
    queue = StockQueue("default", redis)
    jobs = [queue.enqueue(retry_jobs.fail) for _ in range(200)]
    with running_worker(server.url, "--quiet", log=tmp_path / "log", concurrency=3, ready=None):
        wait_until(lambda: sweep(redis, Ghosts()) or redis.zcard(FAILED) == 200, 40)
    assert sorted(ids_in(redis, FAILED)) == sorted(job.id for job in jobs)


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    "arguments", [["--requeue", "--all"], ["--purge", "--all"], ["--bury", "--max-count", "50000"]]
)
def test_killed_sweep_is_resumed(server: EmbeddedServer, redis: Redis, arguments: list[str]) -> None:
    """SIGKILL in the middle: every job is on one side or the other; when the lock has run out the next one ends it."""
    ids = fill(redis, 6000)
    line = [sys.executable, "-m", "rq_pooled", "sweep", "-u", server.url, "-q", "default", *arguments]
    killed = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: redis.zcard(FAILED) < 5500, 40)
    killed.send_signal(signal.SIGKILL)
    killed.wait(10)
    left, target = ids_in(redis, FAILED), DEAD if "--bury" in arguments else QUEUE
    assert 0 < len(left) < len(ids)
    moved = [] if "--purge" in arguments else ids_in(redis, target)
    kept = {key.decode().removeprefix(named("rq:job:")) for key in redis.keys(named("rq:job:*"))}
    assert kept == {*left, *moved} and len(left) + len(moved) == len(kept)
    if moved:
        assert len(kept) == len(ids)

    refused = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=40)
    assert refused.returncode == 75 and "is under way" in refused.stderr
    assert 0 < redis.ttl(named("rq_pooled:sweep:default")) <= 30
    redis.pexpire(named("rq_pooled:sweep:default"), 200)  # instead of the rest of its 30 seconds
    wait_until(lambda: not redis.exists(named("rq_pooled:sweep:default")), what="the end of the lock")
    resumed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=40)
    assert resumed.returncode == 0, resumed.stderr
    assert not redis.exists(FAILED)
    if moved:
        assert sorted(ids_in(redis, target)) == ids
    else:
        assert not redis.keys(named("rq:job:*")) and not redis.keys(named("rq:results:*"))
