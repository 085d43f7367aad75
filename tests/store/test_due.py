"""Due times: never early, by the server's clock, whoever wrote them; stock schedulers go on working beside ours."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import due_jobs
import pytest
from engine import engine
from keys import named
from redis import Redis
from rq import Queue, Repeat, Retry
from rq.job import Job
from rq.registry import ScheduledJobRegistry
from rq.scheduler import RQScheduler
from support import running_worker, wait_until

import rq_pooled
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.retry import Backoff
from rq_pooled.scheduler.scheduler import Scheduler
from rq_pooled.store.due import due_at, fraction_of
from rq_pooled.store.scheduled import promote


@pytest.mark.parametrize("microseconds", [0, 1, 999, 1000, 1001, 500_000, 998_999, 999_000, 999_001, 999_999])
def test_a_due_time_of_ours_is_never_whole_and_never_earlier(microseconds: int) -> None:
    """A fraction is rounded up to milliseconds, and one that would be none gets one."""
    fraction = fraction_of(microseconds)
    assert fraction >= microseconds / 1e6 and fraction % 1 and fraction - microseconds / 1e6 <= 0.002
    assert float(due_at(1_700_000_000 + microseconds / 1e6)) == pytest.approx(1_700_000_000 + fraction, abs=1e-5)


def test_promotion_is_never_early(server: EmbeddedServer, redis: Redis) -> None:
    """A time with a fraction is due at it, a whole one a second later; the next look is when the next one is due."""
    for name in ("whole-now", "whole-before", "soon", "fraction", "later"):
        Job.create("math.factorial", args=(3,), id=name, connection=redis, origin="default").save()
    with engine(server.url) as ours:

        def second() -> int:
            seconds, microseconds = redis.time()
            return int(seconds) if 20_000 < microseconds < 400_000 else 0

        now = wait_until(second)
        scores = {
            "whole-now": now,
            "whole-before": now - 1,
            "soon": now + 0.6,
            "fraction": now + 0.001,
            "later": now + 1.5,
        }
        redis.zadd(named("rq:scheduled:default"), scores)
        *_, wait, _ = ours.run(promote(["default"], "us", {"name": "us"}))
        assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"whole-before", b"fraction"]
        assert 0 < wait <= 580
        wait_until(lambda: redis.time()[0] > now)
        ours.run(promote(["default"], "us", {"name": "us"}))
        assert redis.lrange(named("rq:queue:default"), 0, -1)[2:] == [b"whole-now", b"soon"]


def test_no_delay_is_cut_short(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Whatever says "in two seconds", our Queue or RQ's, a retry, a Backoff, RetryAfter or a repeat, gives two
    seconds.
    """
    ours, stock = rq_pooled.Queue(connection=redis), Queue(connection=redis)
    two = timedelta(seconds=2)
    fails = due_jobs.note_and_fail_once
    with running_worker(server.url, log=tmp_path / "log", concurrency=4):
        runs = {
            "backoff": ours.enqueue(fails, "backoff", retry=Backoff(1, base=2, jitter=None)),
            "retry": stock.enqueue(fails, "retry", retry=Retry(1, interval=2)),
            "after": ours.enqueue(fails, "after", 2, retry=Retry(1)),
            "returned": stock.enqueue(due_jobs.note_and_return_retry, "returned"),
            "repeat": stock.enqueue(due_jobs.note, "repeat", repeat=Repeat(1, interval=2)),
            "nested": stock.enqueue(due_jobs.note_and_enqueue_in, "nested", 2),
        }
        for name, queue in (("ours", ours), ("stock", stock)):
            due_jobs.note_in(redis, name)
            queue.enqueue_in(two, due_jobs.note, name)
        for name in (*runs, "ours", "stock"):
            wait_until(lambda name=name: redis.llen(f"due:{name}") == 2, what=name)  # type: ignore[misc]
    for name in (*runs, "ours", "stock"):
        first, second = map(float, redis.lrange(f"due:{name}", 0, -1))
        assert 2 <= second - first < 2 + (2.5 if name == "stock" else 1.5), name


def test_stock_schedulers_move_what_ours_wrote(redis: Redis) -> None:
    """RQ's scheduler and its registry read times with a fraction: the job moves at the next full second."""
    queue = rq_pooled.Queue(connection=redis)
    moment = datetime.now(timezone.utc) + timedelta(seconds=0.5)
    job = queue.enqueue_at(moment, "math.factorial", 3)
    registry = ScheduledJobRegistry("default", redis)
    assert abs(registry.get_scheduled_time(job) - moment) < timedelta(seconds=0.003)
    scheduler = RQScheduler(["default"], redis, name="stock")
    scheduler._connection = redis
    scheduler.acquire_locks()

    def moved() -> Any:
        scheduler.enqueue_scheduled_jobs()
        return queue.get_job_ids()

    assert wait_until(moved) == [job.id]
    assert datetime.now(timezone.utc) >= moment


def test_a_time_of_a_pipeline_or_a_unique_job_keeps_its_fraction(redis: Redis) -> None:
    """However our Queue schedules a job, its time has the fraction that was given."""
    queue = rq_pooled.Queue(connection=redis)
    moment = datetime(2100, 1, 1, 0, 0, 0, 250_000, tzinfo=timezone.utc)
    whole = moment.replace(microsecond=0)
    with redis.pipeline() as pipeline:
        queue.enqueue_at(moment, "math.factorial", 3, job_id="a", pipeline=pipeline)
        pipeline.execute()
    queue.enqueue_at(moment, "math.factorial", 3, job_id="b", unique=True)
    queue.enqueue_at(whole, "math.factorial", 3, job_id="c")
    scores = dict(redis.zrange(named("rq:scheduled:default"), 0, -1, withscores=True))
    assert scores == {b"a": moment.timestamp(), b"b": moment.timestamp(), b"c": whole.timestamp() + 0.001}


def test_rq_scheduler_s_times_keep_their_fraction(redis: Redis) -> None:
    """``Scheduler.enqueue_in`` means what it says: the job is not moved before."""
    scheduler = Scheduler(connection=redis)
    before = datetime.now(timezone.utc)
    job = scheduler.enqueue_in(timedelta(seconds=0.7), "math.factorial", 3)
    assert scheduler.acquire_lock()
    wait_until(lambda: scheduler.enqueue_jobs() or redis.llen(named("rq:queue:default")), what=job.id)
    assert timedelta(seconds=0.7) <= datetime.now(timezone.utc) - before
