"""Paused queues: no job of one begins, at once and atomically, and those who sleep hear that it is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import claim_jobs
import pytest
from commands import refusal, run_command
from engine import engine
from failures import FACTORIAL, work
from keys import named
from redis import Redis
from rq import Queue
from rq.job import JobStatus
from support import drop_pools, running_worker, wait_until

from rq_pooled.errors import UnknownQueue
from rq_pooled.health import queues
from rq_pooled.monitoring.audit import trail
from rq_pooled.queue.limits import make_limit, set_limit
from rq_pooled.queue.pause import pause, paused, resume


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


@pytest.mark.parametrize("strategy", ["default", "round_robin", "random"])
def test_a_claim_takes_nothing_of_a_paused_queue(server: Any, redis: Redis, strategy: str) -> None:
    """Every strategy passes a paused queue over, ahead of time too, and a claim after the resume takes its jobs in
    order.
    """
    for name in ("p", "q"):
        Queue(name, redis).enqueue_many([Queue.prepare_data(FACTORIAL, (3,), job_id=f"{name}{i}") for i in range(6)])
    set_limit(redis, "p", make_limit("5/1h"))  # a pause goes before a limit
    assert pause(redis, "p") and not pause(redis, "p")
    with engine(server.url) as ours:
        claimed = ours.claim("v", "w", queues=("p", "q"), strategy=strategy, per_name=3)
        assert claimed.claims and {one.queue for one in claimed.claims} == {"q"}
        told = [(one.key, one.paused) for one in claimed.limited]
        # A random order may have found enough in the other queue.
        assert told == [(named("rq:queue:p"), True)] or (strategy == "random" and told == [])
        assert redis.llen(named("rq:queue:p")) == 6
        assert resume(redis, "p") and not resume(redis, "p")
        assert [one.job_id for one in ours.claim("x", "y", queues=("p",)).claims] == ["p0", "p1"]
    assert paused(redis) == {} and not redis.exists(named("rq_pooled:paused"))


@pytest.mark.parametrize("asleep", [True, False])
def test_a_worker_obeys_at_once(server: Any, redis: Redis, tmp_path: Path, asleep: bool) -> None:
    """Workers begin no job of a paused queue, finish what runs, serve the others, and begin at once after a resume."""
    queue, other = Queue("q", redis), Queue("other", redis)
    with (
        running_worker(server.url, "q", "other", log=tmp_path / "a"),
        running_worker(server.url, "q", "other", log=tmp_path / "b", concurrency=2),
    ):
        gate = tmp_path / "gate"
        running = queue.enqueue(claim_jobs.wait_for_file, str(tmp_path / "started"), str(gate))
        wait_until((tmp_path / "started").exists)
        pause(redis, "q")
        waiting = queue.enqueue(claim_jobs.nothing)
        if asleep:
            wait_until(lambda: redis.exists(named("rq_pooled:full:q")))
        passes = [other.enqueue(claim_jobs.nothing) for _ in range(3)]
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in passes))
        assert waiting.get_status() == JobStatus.QUEUED
        gate.touch()
        wait_until(lambda: running.get_status() == JobStatus.FINISHED)
        another = other.enqueue(claim_jobs.nothing)
        wait_until(lambda: another.get_status() == JobStatus.FINISHED)
        assert waiting.get_status() == JobStatus.QUEUED
        resume(redis, "q")
        wait_until(lambda: waiting.get_status() == JobStatus.FINISHED, timeout=5)


def test_a_burst_does_not_wait_for_a_paused_queue(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A burst ends with jobs left in a paused queue, as one of RQ ends where RQ is suspended."""
    job, other = Queue("q", redis).enqueue(claim_jobs.nothing), Queue("other", redis).enqueue(claim_jobs.nothing)
    pause(redis, "q")
    with running_worker(server.url, "q", "other", "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0
    assert (job.get_status(), other.get_status()) == (JobStatus.QUEUED, JobStatus.FINISHED)


def test_a_stock_worker_knows_no_pauses(redis: Redis) -> None:
    """A stock worker runs the jobs of a paused queue: the docs say so."""
    job = Queue("q", redis).enqueue(FACTORIAL, 3)
    pause(redis, "q")
    work(redis, "q")
    assert job.get_status() == JobStatus.FINISHED


@pytest.mark.parametrize("junk", ["text", {"q": b"\xff", "other": "nan"}])
def test_what_others_wrote_breaks_nothing(server: Any, redis: Redis, junk: Any) -> None:
    """A key of another type pauses nothing; an entry that is no time pauses, and is shown."""
    Queue("q", redis).enqueue(FACTORIAL, 3)
    key = named("rq_pooled:paused")
    if isinstance(junk, dict):
        redis.hset(key, mapping=junk)
    else:
        redis.set(key, junk)
    with engine(server.url) as ours:
        assert len(ours.claim("v", queues=("q",)).claims) == (not isinstance(junk, dict))
    assert (queues(redis)[0]["paused_for"] is None) == (not isinstance(junk, dict))
    assert list(paused(redis)) == (["other", "q"] if isinstance(junk, dict) else [])


def test_commands_pause_resume_and_tell(server: Any, redis: Redis) -> None:
    """`rq-pooled pause` and `resume` change a known queue and say so; stats, check, metrics and the trail show it."""
    pytest.importorskip("prometheus_client")
    from rq_pooled.metrics import metrics

    with pytest.raises(UnknownQueue):
        pause(redis, "q")
    assert "there is no queue 'q'" in refusal(run_command(server.url, "pause", "q"))
    Queue("q", redis).enqueue(FACTORIAL, 3)
    assert run_command(server.url, "pause", "q").stdout == "q: paused\n"
    assert run_command(server.url, "pause", "q").stdout == "q: was paused already\n"
    assert "q (paused)" in run_command(server.url, "stats").stdout
    checked = run_command(server.url, "check")
    assert checked.returncode == 0 and "1 queue paused: q" in checked.stdout
    assert 'rq_pooled_queue_paused{queue="q"} 1.0' in metrics(redis)
    assert json.loads(run_command(server.url, "resume", "q", "--json").stdout)["changed"] is True
    assert run_command(server.url, "resume", "q").stdout == "q: was not paused\n"
    assert 'rq_pooled_queue_paused{queue="q"} 0.0' in metrics(redis)
    assert [(one["action"], one["queue"]) for one in trail(redis)] == [("resume", "q"), ("pause", "q")]
