"""Scheduled jobs are enqueued by every worker, as RQ's scheduler would, and under its lock."""

from __future__ import annotations

import copy
import itertools
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import claim_jobs
import pytest
from engine import Engine, engine, key_space
from keys import named
from redis import Redis
from rq import Queue, Retry
from rq.exceptions import SchedulerNotFound
from rq.job import Job, JobStatus
from rq.registry import ScheduledJobRegistry
from rq.scheduler import RQScheduler
from support import running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.store import scheduled

QUEUES = ("default", "q2")
PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)
TIMES = (b"enqueued_at", b"created_at", b"last_heartbeat")


def promote(ours: Engine, redis: Redis, queues: Any = QUEUES, name: str = "us") -> list[int]:
    """Promote as the scheduler ``name``."""
    scheduler = RQScheduler(queues, redis, name=name)
    scheduler.pid, scheduler.last_heartbeat = 1234, datetime.now(timezone.utc)
    command = scheduled.promote(queues, name, scheduler.to_dict())
    *counts, wait, asked = ours.run(command)
    assert 0 < wait <= 15_000 and asked == 0
    return counts


def stock(redis: Redis, name: str = "us") -> None:
    """What RQ's own scheduler does in one round."""
    scheduler = RQScheduler(QUEUES, redis, name=name)
    scheduler._connection = redis
    scheduler.register_birth()
    assert scheduler.acquire_locks() == set(QUEUES)
    scheduler.enqueue_scheduled_jobs()


def schedule_all_kinds(redis: Redis) -> None:
    """Due jobs with everything that decides how they are enqueued, one that is not due, and one without data."""
    queue, other = Queue("default", redis), Queue("q2", redis, default_timeout=77)
    queue.enqueue_at(PAST, "math.factorial", 3, job_id="plain")
    queue.enqueue_at(PAST + timedelta(seconds=1), "math.factorial", 3, job_id="ttl", ttl=900, result_ttl=5)
    queue.enqueue("math.factorial", 3, job_id="dependent", depends_on="ttl")
    queue.enqueue_at(PAST + timedelta(seconds=2), "math.factorial", 3, job_id="meta", meta={"a": 1}, timeout=33)
    other.enqueue_at(PAST, "math.factorial", 3, job_id="other")
    queue.enqueue_at(datetime.now(timezone.utc) + timedelta(hours=1), "math.factorial", 3, job_id="later")
    fronts = itertools.product((None, False, True), (False, True), (False, True))
    for i, (at_front, on_retry, ran) in enumerate(fronts):
        job = Job.create("math.factorial", args=(3,), id=f"front-{i}", connection=redis, origin="default")
        job.enqueue_at_front, job.enqueue_at_front_on_retry = at_front, on_retry
        job.retries_left, job.ended_at = 1, PAST if ran else None
        job.timeout = None if i % 2 else 44
        job.set_status(JobStatus.SCHEDULED)
        job.save()
        ScheduledJobRegistry("default", redis).schedule(job, PAST + timedelta(seconds=10 + i))
    ghost = queue.enqueue_at(PAST, "math.factorial", 3, job_id="ghost")
    redis.delete(ghost.key)


def normalised(redis: Redis) -> dict[str, Any]:
    """The key space without times, and without what only says who did it."""
    space = copy.deepcopy(key_space(redis))
    for key, (value, _) in space.items():
        if isinstance(value, dict):
            for name in TIMES:
                if value.get(name):
                    value[name] = b"time"
            value.pop(b"pid", None)
            if b"queues" in value:
                value[b"queues"] = b",".join(sorted(value[b"queues"].split(b",")))
        if key.startswith(named("rq:scheduled:")):
            space[key] = ([member for member, _ in value], False)
    return space


def test_leaves_what_stock_rq_leaves(server: Any, redis: Redis) -> None:
    """After one round the key space equals that after a round of RQScheduler: jobs, order, expiries, locks, its
    hash.
    """
    schedule_all_kinds(redis)
    stock(redis)
    expected = normalised(redis)
    redis.flushall()
    schedule_all_kinds(redis)
    with engine(server.url) as ours:
        assert promote(ours, redis) == [2, 16, 0]
    assert normalised(redis) == expected
    assert redis.zrange(named("rq:scheduled:default"), 0, -1) == [b"later"], "ghosts are gone, what is not due stays"
    assert 880 < redis.ttl(named("rq:job:ttl")) <= 900 and 880 < redis.ttl(named("rq:job:ttl:dependents")) <= 900


@pytest.mark.parametrize("at_front", [None, False, True])
@pytest.mark.parametrize("on_retry", [False, True])
@pytest.mark.parametrize("ran", [False, True])
def test_at_front_as_rq_decides_it(server: Any, redis: Redis, at_front: Any, on_retry: bool, ran: bool) -> None:
    """A job goes to the front where Job.should_enqueue_at_front says so, to the back otherwise."""
    queue = Queue(connection=redis)
    queue.enqueue("math.factorial", 3, job_id="waiting")
    job = queue.enqueue_at(PAST, "math.factorial", 3, job_id="due", at_front=bool(at_front))
    job.enqueue_at_front, job.enqueue_at_front_on_retry, job.ended_at = at_front, on_retry, PAST if ran else None
    redis.delete(job.key)
    job.save()
    front = Job.fetch("due", redis).should_enqueue_at_front()
    with engine(server.url) as ours:
        promote(ours, redis)
    assert queue.get_job_ids() == (["due", "waiting"] if front else ["waiting", "due"])


def test_many_due_at_once_move_in_bounded_steps_and_in_order(server: Any, redis: Redis) -> None:
    """One call moves at most 100 of a queue, in the order of their times, and says whether more are due."""
    queue = Queue(connection=redis)
    for i in range(250):
        queue.enqueue_at(PAST + timedelta(seconds=i), "math.factorial", 3, job_id=f"j{i}")
    with engine(server.url) as ours:
        assert [promote(ours, redis) for _ in range(3)] == [[2, 100, 1], [2, 100, 1], [2, 50, 0]]
    assert queue.get_job_ids() == [f"j{i}" for i in range(250)]


def test_lock_of_another_scheduler_is_respected_until_it_expires(server: Any, redis: Redis) -> None:
    """Nothing moves in a queue whose lock another scheduler holds; once it has expired, the next call takes it over."""
    for name in QUEUES:
        Queue(name, redis).enqueue_at(PAST, "math.factorial", 3, job_id=f"job-{name}")
    theirs = RQScheduler(["default"], redis, name="them")
    theirs._connection = redis
    theirs.acquire_locks()
    with engine(server.url) as ours:
        assert promote(ours, redis) == [1, 1, 0]
        assert redis.get(named("rq:scheduler-lock:default")) == b"them"
        assert redis.llen(named("rq:queue:default")) == 0 and redis.llen(named("rq:queue:q2")) == 1
        assert promote(ours, redis, ["default"], name="third") == [0, 0, 0]
        with pytest.raises(SchedulerNotFound):
            RQScheduler.fetch("third", redis)
        redis.pexpire(named("rq:scheduler-lock:default"), 1)
        wait_until(lambda: not redis.exists(named("rq:scheduler-lock:default")))
        assert promote(ours, redis) == [2, 1, 0]
        assert redis.get(named("rq:scheduler-lock:default")) == b"us"
        redis.expire(named("rq:scheduler-lock:default"), 5)
        promote(ours, redis)
        assert redis.ttl(named("rq:scheduler-lock:default")) > 55, "each call renews what is ours"
    assert theirs.acquire_locks() == set(), "a stock scheduler respects ours"


def test_a_promotion_without_work_costs_three_commands_a_queue(server: Any, redis: Redis) -> None:
    """Where nothing is due a call reads and renews each lock and looks for the next job, and counts the keys asked for;
    the scheduler's hash is written anew with the lock, and now and then.
    """
    scheduled_later = Queue(connection=redis).enqueue_at(PAST.replace(year=2200), "math.factorial", 3)
    asked = [named("rq:queue:default"), named("rq_pooled:a"), named("rq_pooled:a"), scheduled_later.key]
    redis.set(named("rq_pooled:a"), "1")
    command = scheduled.promote(QUEUES, "us", {"name": "us"}, asked)
    with engine(server.url) as ours:
        assert ours.run(command)[-1] == 3
        assert redis.hgetall(named("rq:scheduler:us")) == {b"name": b"us"}
        while redis.time()[0] % 15 in (0, 14):
            time.sleep(0.1)
        redis.config_resetstat()
        ours.run(command)
        calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in redis.info("commandstats").items()}
        for name in ("config|resetstat", "evalsha"):
            calls.pop(name, None)
        assert calls == {"time": 1, "get": 2, "zrangebyscore": 2, "set": 2, "exists": 1}
        redis.flushall()
        ours.run(command)
        assert redis.hgetall(named("rq:scheduler:us")) == {b"name": b"us"}


def test_a_lock_whose_owner_left_no_hash_is_a_stock_scheduler_s(server: Any, redis: Redis) -> None:
    """Only a lock that carries our mark is taken over early: that of any other scheduler stands until it expires."""
    Queue("default", redis).enqueue_at(PAST, "math.factorial", 3)
    redis.set(named("rq:scheduler-lock:default"), "them", ex=20)
    with engine(server.url) as ours:
        assert promote(ours, redis, ["default"])[:2] == [0, 0]
    assert redis.get(named("rq:scheduler-lock:default")) == b"them" and not redis.exists(named("rq:queue:default"))


def test_worker_enqueues_what_is_due_without_being_told_to(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A worker that was not started with --with-scheduler runs scheduled jobs and retries on time, holds RQ's lock for
    as long as it lives, shows up as scheduler, and gives the lock back."""
    queue = Queue(connection=redis)
    with running_worker(server.url, "default", "--name", "mine", log=tmp_path / "log") as worker:
        wait_until(lambda: queue.scheduler_pid, what="the scheduler to show up")
        assert queue.scheduler_pid == worker.pid
        scheduler = RQScheduler.fetch("mine", redis)
        assert (scheduler.name, scheduler.pid, scheduler._queue_names) == ("mine", worker.pid, {"default"})
        assert redis.get(named("rq:scheduler-lock:default")) == b"mine"
        job = queue.enqueue_in(timedelta(seconds=1), claim_jobs.nothing)
        retried = queue.enqueue(claim_jobs.fail_unless_file, str(tmp_path / "file"), retry=Retry(1, interval=1))
        wait_until(lambda: retried.get_status() == JobStatus.SCHEDULED, what="the retry to be scheduled")
        (tmp_path / "file").touch()
        for one in (job, retried):
            wait_until(lambda: one.get_status() == JobStatus.FINISHED, timeout=8, what=one.id)  # noqa: B023
        due = redis.zscore(named("rq:scheduled:default"), job.id)
        assert due is None
        job.refresh()
        assert job.started_at - (job.created_at + timedelta(seconds=1)) < timedelta(seconds=3)
        worker.stop()
    assert not redis.exists(named("rq:scheduler-lock:default"), named("rq:scheduler:mine"))
    assert queue.scheduler_pid is None


def test_worker_promotes_more_than_one_batch_at_once(server: Any, redis: Redis, tmp_path: Path) -> None:
    """When more are due than one step moves, the worker goes on at once instead of waiting a second per hundred."""
    queue = Queue(connection=redis)
    for i in range(350):
        queue.enqueue_at(PAST, claim_jobs.nothing, job_id=f"j{i}", result_ttl=60)
    with running_worker(server.url, log=tmp_path / "log", concurrency=4):
        wait_until(lambda: queue.finished_job_registry.get_job_count(cleanup=False) == 350, what="all to run")
    assert not redis.exists(named("rq:scheduled:default"))


def test_worker_leaves_the_lock_of_a_stock_scheduler_alone(server: Any, redis: Redis, tmp_path: Path) -> None:
    """While a stock scheduler holds the lock, a worker of ours enqueues nothing of that queue, and ends without
    releasing what is not its own."""
    redis.set(named("rq:scheduler-lock:default"), "them", ex=300)
    ours, theirs = Queue("q2", redis), Queue(connection=redis)
    theirs.enqueue_at(PAST, claim_jobs.nothing, job_id="theirs")
    ours.enqueue_at(PAST, claim_jobs.nothing, job_id="ours")
    with running_worker(server.url, *QUEUES, log=tmp_path / "log") as worker:
        wait_until(lambda: Job.fetch("ours", redis).get_status() == JobStatus.FINISHED, what="the one with a free lock")
        assert redis.zrange(named("rq:scheduled:default"), 0, -1) == [b"theirs"]
        worker.stop()
    assert redis.get(named("rq:scheduler-lock:default")) == b"them"


def test_the_lock_of_a_dead_worker_of_ours_is_taken_over(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """kill -9 of the worker that holds RQ's scheduler lock delays no retry by the lock's life of 61 seconds."""
    queue = Queue("default", connection=redis)
    with running_worker(server.url, "--name", "dead", "default", log=tmp_path / "1") as first:
        wait_until(lambda: redis.get(named("rq:scheduler-lock:default")) == b"dead", what="the lock")
        with running_worker(server.url, "--name", "heir", "default", log=tmp_path / "2"):
            first.kill()
            job = queue.enqueue_in(timedelta(seconds=1), "math.factorial", 3)
            wait_until(lambda: job.get_status() == JobStatus.FINISHED, timeout=30)
            assert redis.get(named("rq:scheduler-lock:default")) == b"heir"
