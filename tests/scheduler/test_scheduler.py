"""Scheduler: rq-scheduler's jobs, by whichever of the two they were scheduled, are moved once, whatever happens
meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import claim_jobs
import once_jobs
import psutil
import pytest
import rq_scheduler
from engine import key_space
from keys import default_prefix_only, named
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue as StockQueue
from rq.job import Job, JobStatus
from support import PYTHONPATH, ROOT, WorkerProcess, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.queue import Queue
from rq_pooled.scheduler.mover import ScheduleLock, next_cron_time
from rq_pooled.scheduler.scheduler import Scheduler
from rq_pooled.store.keys import SCHEDULED_JOBS, SCHEDULER_LOCK

PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)


@contextmanager
def running_scheduler(url: str, *arguments: str, log: Path, stock: bool = False) -> Iterator[WorkerProcess]:
    """Run ``rq-pooled scheduler``, or the stock ``rqscheduler``, for the length of the block."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1"}
    line = ["-m", "rq_scheduler.scripts.rqscheduler"] if stock else ["-W", "error", "-m", "rq_pooled", "scheduler"]
    process = WorkerProcess([sys.executable, *line, "--url", url, *arguments], env, log)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.kill()


@pytest.fixture
def ours(redis: Redis) -> Scheduler:
    """A scheduler of ours."""
    return Scheduler(connection=redis)


@pytest.fixture
def stock(redis: Redis) -> Any:
    """A stock scheduler; its own warnings are its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield rq_scheduler.Scheduler(connection=redis)


def schedule_all_kinds(scheduler: Any, redis: Redis) -> None:
    """Due jobs with everything that decides how they are enqueued, one that is not due, and one that is gone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.enqueue_at(PAST, once_jobs.accept, 1, a=2, job_id="plain")
        scheduler.enqueue_at(
            PAST + timedelta(1), once_jobs.accept, job_id="ttl", job_ttl=900, job_result_ttl=5, meta={"m": 1}
        )
        scheduler.enqueue_at(PAST, once_jobs.accept, job_id="other", queue_name="other", timeout=33)
        scheduler.schedule(PAST + timedelta(2), once_jobs.accept, interval=3600, id="interval", at_front=True)
        scheduler.schedule(PAST + timedelta(3), once_jobs.accept, interval=3600, repeat=2, id="twice")
        scheduler.schedule(PAST + timedelta(4), once_jobs.accept, interval=3600, repeat=1, id="last")
        scheduler.cron("0 0 1 1 *", once_jobs.accept, id="cron", repeat=5)
        redis.zadd(SCHEDULED_JOBS, {"cron": 1_600_000_000})
        job = StockQueue(connection=redis).enqueue_at(datetime(2100, 1, 1), once_jobs.accept, job_id="unfinished")
        scheduler.enqueue_at(PAST + timedelta(5), once_jobs.accept, job_id="waits", depends_on=job)
        scheduler.enqueue_at(PAST + timedelta(6), once_jobs.accept, job_id="gone").delete()
        scheduler.enqueue_in(timedelta(hours=1), once_jobs.accept, job_id="later")


def normalised(redis: Redis) -> dict[str, Any]:
    """The key space without times; of due times only whether they lie in the future."""
    space = key_space(redis)
    for key, (value, expires) in space.items():
        if isinstance(value, dict):
            for name in (b"created_at", b"enqueued_at"):
                if value.get(name):
                    value[name] = b"time"
        elif key == SCHEDULED_JOBS:
            space[key] = ({member: round((score - time.time()) / 100) for member, score in value}, expires)
        elif key.startswith(named("rq:deferred:")):
            space[key] = ([member for member, _ in value], expires)
    return space


@default_prefix_only
def test_leaves_what_the_stock_scheduler_leaves(redis: Redis, ours: Scheduler, stock: Any) -> None:
    """After a round the key space equals that after a round of rq-scheduler: jobs, queues, next times, counters."""
    schedule_all_kinds(stock, redis)
    stock.enqueue_jobs()
    for job in stock.get_jobs_to_queue():  # its enqueue_jobs moves while it lists; what it left out comes now
        stock.enqueue_job(job)
    expected = normalised(redis)
    redis.flushdb()
    schedule_all_kinds(ours, redis)
    assert ours.acquire_lock()
    assert {job.id for job in ours.enqueue_jobs()} == {
        "plain",
        "ttl",
        "other",
        "interval",
        "twice",
        "last",
        "cron",
        "waits",
    }
    ours.remove_lock()
    found = normalised(redis)
    # A deferred job: rq-scheduler leaves out the two fields that RQ writes when it enqueues.
    for name in (b"enqueued_at", b"timeout"):
        found[named("rq:job:waits")][0].pop(name, None)
        expected[named("rq:job:waits")][0].pop(name, None)
    assert found == expected
    assert StockQueue(connection=redis).get_job_ids() != []
    assert set(redis.zrange(SCHEDULED_JOBS, 0, -1)) == {b"interval", b"twice", b"cron", b"later"}
    assert Job.fetch("twice", redis).meta["repeat"] == 1


@default_prefix_only
def test_stock_jobs_run_under_ours_and_the_other_way_round(
    server: Any, redis: Redis, ours: Any, stock: Any, tmp_path: Path
) -> None:
    """What one package has scheduled the other one's process moves, and a worker runs it."""
    theirs = stock.enqueue_at(PAST, claim_jobs.nothing, job_id="theirs")
    with running_scheduler(server.url, "--burst", log=tmp_path / "ours") as process:
        assert process.wait() == 0, process.output()
    assert theirs.get_status() == JobStatus.QUEUED and not redis.exists(SCHEDULER_LOCK)
    mine = ours.enqueue_in(timedelta(0), claim_jobs.nothing, job_id="mine")
    later = ours.cron("* * * * *", claim_jobs.nothing, id="cron")
    redis.zadd(SCHEDULED_JOBS, {"cron": 1})
    wait_until(lambda: redis.time()[0] > redis.zscore(SCHEDULED_JOBS, "mine"))  # stock compares with whole seconds
    with running_scheduler(server.url, "--burst", log=tmp_path / "stock", stock=True) as process:
        assert process.wait() == 0, process.output()
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0
    for job in (theirs, mine, later):
        assert job.get_status() == JobStatus.FINISHED
    assert redis.zrange(SCHEDULED_JOBS, 0, -1) == [b"cron"] and redis.zscore(SCHEDULED_JOBS, "cron") > time.time()


@pytest.mark.timeout(150)
def test_sigkill_in_the_middle_of_moves(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Schedulers that are killed again and again while they move lose and double nothing."""
    ours, number = Scheduler(connection=redis), 3000
    for i in range(number):
        job = ours._create_job(once_jobs.accept, commit=False, id=f"j{i}")
        if i % 3 == 0:
            job.meta["interval"] = 86_400
        job.save()
        redis.zadd(SCHEDULED_JOBS, {job.id: 1000 + i})
    queue, kills = StockQueue(connection=redis), 0
    while redis.zcount(SCHEDULED_JOBS, 0, time.time()):
        before = queue.count
        with running_scheduler(server.url, "--interval", "1", log=tmp_path / "log") as process:
            wait_until(lambda: queue.count > before + 400 or not redis.zcount(SCHEDULED_JOBS, 0, time.time()), 60)  # noqa: B023
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        kills += 1
        redis.delete(SCHEDULER_LOCK)  # it would expire after 11 seconds
    assert kills >= 3
    ids = queue.get_job_ids()
    assert len(ids) == len(set(ids)) == number
    assert redis.zcard(SCHEDULED_JOBS) == number / 3
    assert {Job.fetch(job_id, redis).get_status() for job_id in ids[::50]} == {JobStatus.QUEUED}


@pytest.mark.timeout(150)
@pytest.mark.parametrize("with_stock", [False, pytest.param(True, marks=default_prefix_only)])
def test_two_schedulers_at_once(server: Any, redis: Redis, tmp_path: Path, with_stock: bool) -> None:
    """Two schedulers, of one kind or of both, and a worker with --with-scheduler move each job once."""
    scheduler = Scheduler(connection=redis)
    number = 300
    # A lock that expired under a stock scheduler at work would double jobs: hence its interval of a minute.
    with (
        running_scheduler(server.url, "--interval", "1", log=tmp_path / "a") as first,
        running_scheduler(
            server.url, "--interval", "60" if with_stock else "1", log=tmp_path / "b", stock=with_stock
        ) as second,
        running_worker(server.url, "nothing", "--with-scheduler", log=tmp_path / "c"),
    ):
        for i in range(number):
            scheduler.enqueue_at(PAST, once_jobs.accept, job_id=f"j{i}")
        queue = StockQueue(connection=redis)
        wait_until(lambda: redis.zcard(SCHEDULED_JOBS) == 0, timeout=100)
        wait_until(lambda: queue.count >= number)
        assert first.process.poll() is None and second.process.poll() is None
    ids = queue.get_job_ids()
    assert len(ids) == len(set(ids)) == number


def test_move_is_fenced_by_time_and_lock(redis: Redis, ours: Scheduler) -> None:
    """A job that somebody else has moved, cancelled or put off meanwhile stays as it is; without the lock nothing
    moves.
    """
    mover, lock = ours._mover, ours._lock
    job = ours.enqueue_at(PAST, once_jobs.accept, job_id="job")
    due = redis.zscore(SCHEDULED_JOBS, "job")
    assert mover.move(job, due, 0, lock) == "locked"
    assert ours.acquire_lock() and not Scheduler(connection=redis).acquire_lock()
    ours.change_execution_time(job, datetime(2100, 1, 1))
    assert mover.move(job, due, 0, lock) == "changed"
    ours.cancel(job)
    assert mover.move(job, due, 0, lock) == "changed"
    assert redis.llen(named("rq:queue:default")) == 0 and job not in ours
    ours.enqueue_at(PAST, once_jobs.accept, job_id="job")
    redis.set(SCHEDULER_LOCK, "another")
    assert mover.move(job, due, 0, lock) == "locked"
    ours.remove_lock()
    assert redis.get(SCHEDULER_LOCK) == b"another", "the lock of another scheduler is not removed"
    assert mover.move(job, due, 0, ScheduleLock("another", 60)) == "moved"
    assert redis.ttl(SCHEDULER_LOCK) > 50


def test_job_that_cannot_be_read_is_put_off(redis: Redis, ours: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    """A broken cron line, or a hash that is no job, is logged and put off; the others are moved."""
    broken = ours.cron("* * * * *", once_jobs.accept, id="broken")
    broken.meta["cron_string"] = "every day"
    broken.save_meta()
    redis.zadd(SCHEDULED_JOBS, {"broken": 1, "strange": 2})
    redis.hset(named("rq:job:strange"), mapping={"data": b"x", "timeout": "soon"})
    ours.enqueue_at(PAST, once_jobs.accept, job_id="good")
    ours.acquire_lock()
    assert [job.id for job in ours.enqueue_jobs()] == ["good"]
    assert len([line for line in caplog.messages if "trying again in 60 s" in line]) == 2
    assert all(redis.zscore(SCHEDULED_JOBS, name) > time.time() + 30 for name in ("broken", "strange"))


def test_what_others_wrote_into_the_schedule_stops_nothing(redis: Redis, ours: Scheduler) -> None:
    """An id that is no text, a job in a key of another type, and a time beyond the calendar stop no other job."""
    redis.zadd(SCHEDULED_JOBS, {b"\xff": 1, "odd": 2, "far": 1e300, "a\nb": 3})
    for job_id in (b"\xff", b"a\nb"):
        redis.hset(named(b"rq:job:") + job_id, mapping={"data": b"x", "origin": b"\xff"})
    redis.set(named("rq:job:odd"), "no hash")
    redis.hset(named("rq:job:far"), mapping={"data": b"x"})
    ours.enqueue_at(PAST, once_jobs.accept, job_id="good")
    assert {job.id for job in ours.get_jobs()} == {"good", "far"}
    ours.acquire_lock()
    assert [job.id for job in ours.enqueue_jobs()] == ["good"]
    assert all(redis.zscore(SCHEDULED_JOBS, name) > time.time() + 30 for name in (b"\xff", "odd", "a\nb"))


class Bomb:
    """Would tell, if it was unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("import sys; sys.exploded = True",))


def test_moving_unpickles_nothing(redis: Redis, ours: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    """A scheduler moves jobs without loading what their meta names, which stays as it is; a count of repeats it
    keeps.
    """
    for number, meta in enumerate(({}, {"interval": 60}, {"repeat": 2, "interval": 60})):
        job = ours.enqueue_at(PAST, once_jobs.accept, job_id=f"j{number}")
        redis.hset(job.key, mapping={"meta": pickle.dumps({**meta, "bomb": Bomb()}), "result": pickle.dumps(Bomb())})
    before = redis.hget(named("rq:job:j1"), "meta")
    ours.acquire_lock()
    assert [job.id for job in ours.enqueue_jobs()] == ["j0", "j1"]
    assert redis.hget(named("rq:job:j1"), "meta") == before and redis.zscore(SCHEDULED_JOBS, "j1") > time.time()
    assert "--with-scheduler" in caplog.text and not hasattr(sys, "exploded")


@pytest.mark.parametrize("interval", [-5, 0.5, -(10**5000)], ids=["negative", "half", "huge"])
def test_an_interval_below_a_second_floods_no_queue(redis: Redis, ours: Scheduler, interval: float) -> None:
    """A job that would be due again at once is put off, and one that is due after it moves."""
    job = ours.enqueue_at(PAST, once_jobs.accept, job_id="flood")
    redis.hset(job.key, "meta", pickle.dumps({"interval": interval}))
    redis.zadd(SCHEDULED_JOBS, {"flood": 1})
    ours.enqueue_at(PAST, once_jobs.accept, job_id="good")
    ours.acquire_lock()
    assert [job.id for job in ours.enqueue_jobs()] == ["good"]
    assert (redis.zscore(SCHEDULED_JOBS, "flood") or 0) > time.time() + 30


def test_wakes_up_when_the_next_job_is_due_and_ends_in_order(server: Any, redis: Redis, tmp_path: Path) -> None:
    """With an interval of a minute a job due in two seconds is moved then; SIGTERM ends it with its death
    registered.
    """
    Scheduler(connection=redis).enqueue_in(timedelta(seconds=2), once_jobs.accept)
    with running_scheduler(server.url, "--name", "mine", log=tmp_path / "log") as process:
        wait_until(lambda: redis.llen(named("rq:queue:default")) == 1)
        assert redis.hexists(named("rq:scheduler_instance:mine"), "birth")
        with running_scheduler(server.url, "--name", "mine", log=tmp_path / "other") as other:
            assert other.wait() == 75
            assert other.output().count("\n") == 1 and "active scheduler named 'mine'" in other.output()
        assert process.stop() == 0
    assert redis.hexists(named("rq:scheduler_instance:mine"), "death") and not redis.exists(SCHEDULER_LOCK)


def test_survives_a_lost_server(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """A server that goes away and comes back costs two log lines, and what is due then is moved."""
    server = start_server({"appendonly": "yes", "appendfsync": "always"})
    with running_scheduler(server.url, "--interval", "1", log=tmp_path / "log") as process:
        with Redis.from_url(server.url) as redis:
            wait_until(lambda: redis.keys(named("rq:scheduler_instance:*")))
            Scheduler(connection=redis).enqueue_in(timedelta(seconds=3), once_jobs.accept, job_id="job")
        server.kill()
        process.wait_for("lost the server")
        time.sleep(1)
        server.start()
        process.wait_for("the server is back")
        with Redis.from_url(server.url) as redis:
            wait_until(lambda: redis.llen(named("rq:queue:default")) == 1)
        assert process.output().count("lost the server") == 1
        assert process.stop() == 0


def test_lock_that_is_its_own_is_taken_again(redis: Redis, ours: Scheduler) -> None:
    """A scheduler that lost the server while it held the lock goes on with it, instead of waiting until it has
    expired.
    """
    assert ours.acquire_lock()
    ours._lock_acquired = False  # as run does when the server is lost
    redis.expire(SCHEDULER_LOCK, 5)
    assert ours.acquire_lock() and redis.ttl(SCHEDULER_LOCK) > 5
    assert not Scheduler(connection=redis).acquire_lock()
    ours.remove_lock()
    assert not redis.exists(SCHEDULER_LOCK)
    redis.set(SCHEDULER_LOCK, "somebody else")
    assert not ours.acquire_lock() and redis.get(SCHEDULER_LOCK) == b"somebody else"


def test_unreachable_server_is_exit_code_75(tmp_path: Path) -> None:
    """Where there is no server at the beginning, one line says so."""
    with running_scheduler("redis://127.0.0.1:1/0", log=tmp_path / "log") as process:
        assert process.wait() == 75
    assert process.output().count("\n") == 1


@pytest.mark.parametrize("interval", ["0", "soon", "-1", "1x"])
def test_bad_intervals_are_refused(server: Any, tmp_path: Path, interval: str) -> None:
    """A malformed interval is one line and exit code 2."""
    with running_scheduler(server.url, f"--interval={interval}", log=tmp_path / "log") as process:
        assert process.wait() == 2
    assert process.output().count("\n") == 1


def test_worker_does_it_without_further_connections(server: Any, redis: Redis, tmp_path: Path) -> None:
    """With --with-scheduler due and periodic jobs run, while all slots are busy too, over the worker's two
    connections.
    """
    scheduler, gate = Scheduler(connection=redis), tmp_path / "gate"
    with running_worker(server.url, "--with-scheduler", log=tmp_path / "log") as worker:
        before = len(redis.client_list())
        blocker = StockQueue(connection=redis).enqueue(claim_jobs.wait_for_file, str(tmp_path / "started"), str(gate))
        wait_until(lambda: blocker.get_status() == JobStatus.STARTED)
        job = scheduler.enqueue_in(timedelta(0), claim_jobs.nothing)
        periodic = scheduler.schedule(PAST, claim_jobs.nothing, interval=1, repeat=3)
        wait_until(lambda: job.get_status() == JobStatus.QUEUED, what="the job to be moved while the only slot is busy")
        assert len(redis.client_list()) == before
        gate.touch()
        for one in (job, periodic):
            wait_until(lambda: one.get_status() == JobStatus.FINISHED, what=one.id)  # noqa: B023
        wait_until(lambda: len(periodic.results()) == 3)
        wait_until(lambda: not redis.exists(SCHEDULER_LOCK))
        assert len(redis.client_list()) == before
        assert worker.stop() == 0
    assert periodic.id not in scheduler


def test_worker_without_the_flag_leaves_it(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Without --with-scheduler no worker touches rq-scheduler's jobs."""
    job = Scheduler(connection=redis).enqueue_in(timedelta(0), claim_jobs.nothing)
    with running_worker(server.url, log=tmp_path / "log"):
        other = StockQueue(connection=redis).enqueue_in(timedelta(seconds=2), claim_jobs.nothing)
        wait_until(lambda: other.get_status() == JobStatus.FINISHED)
    assert job.get_status() == JobStatus.SCHEDULED


def test_api_warns_nowhere_and_lists(redis: Redis, ours: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method works without a warning of rq-scheduler or its libraries (pytest makes each an error), those
    included that Python 3.12 gives."""

    class Python312(datetime):
        @classmethod
        def utcnow(cls) -> Any:
            raise DeprecationWarning("utcnow")

        @classmethod
        def utcfromtimestamp(cls, _timestamp: float) -> Any:
            raise DeprecationWarning("utcfromtimestamp")

    for module in (rq_scheduler.scheduler, rq_scheduler.utils):
        monkeypatch.setattr(module, "datetime", Python312)
    job = ours.enqueue_in(timedelta(minutes=5), once_jobs.accept)
    far = datetime.now().month % 12 + 2  # two months on: never within the minute that is counted below
    cron = ours.cron(f"0 0 1 {far if far <= 12 else 1} *", once_jobs.accept, use_local_timezone=True)
    assert job in ours and cron.id in ours
    assert (ours.count(), ours.count(timedelta(minutes=1)), ours.count(datetime(2100, 1, 1))) == (2, 0, 2)
    found = {one.id: due for one, due in ours.get_jobs(with_times=True)}
    assert abs((found[job.id].replace(tzinfo=timezone.utc) - datetime.now(timezone.utc)).total_seconds() - 300) < 10
    assert [one.id for one in ours.get_jobs(timedelta(days=1), offset=0, length=1)] != []
    assert list(ours.get_jobs_to_queue()) == []
    ours.enqueue_job(job)
    assert job not in ours and job.get_status() == JobStatus.QUEUED
    ours.cancel(cron)
    assert ours.count() == 0
    with pytest.raises(ValueError):
        ours.cron("every day", once_jobs.accept)


def test_cron_times_are_those_of_rq_scheduler() -> None:
    """A cron line means the same time as with rq-scheduler."""
    from rq_scheduler.utils import get_next_scheduled_time, to_unix

    for line in ("*/10 * * * *", "0 3 * * *", "15 4 1 * *", "0 0 1 1 *", "@daily", "30 2 * * mon"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = to_unix(get_next_scheduled_time(line))
        assert next_cron_time(line) == theirs


def test_shared_pool_and_our_queue(server: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection the process's pool is used; jobs go into our Queue; it can be stopped from another
    thread.
    """
    from rq_pooled.pool import get_connection

    monkeypatch.setenv("RQ_POOLED_URL", server.url)
    scheduler = Scheduler(interval=60)
    assert scheduler.connection is get_connection()
    job = scheduler.enqueue_at(PAST, once_jobs.accept)
    assert type(scheduler.get_queue_for_job(job)) is Queue
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    wait_until(lambda: job.get_status() == JobStatus.QUEUED)
    scheduler.stop()
    thread.join(10)
    assert not thread.is_alive()
    get_connection().connection_pool.disconnect()


def test_unknown_name_of_the_server_raises_before_anything_runs() -> None:
    """run() of the class raises where the server cannot be reached at the beginning."""
    with pytest.raises(RedisConnectionError):
        Scheduler(connection=Redis(port=1)).run(burst=True)


def test_enqueue_jobs_without_the_lock_moves_jobs(
    redis: Redis, ours: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    """As in rq-scheduler ``enqueue_jobs`` may be called without ``acquire_lock``, also while another one holds the
    lock.
    """
    ours.enqueue_at(PAST, once_jobs.accept, job_id="a")
    redis.set(SCHEDULER_LOCK, "somebody else")
    assert [job.id for job in ours.enqueue_jobs()] == ["a"]
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"a"]
    assert "taken over" not in caplog.text


class HookedScheduler(Scheduler):
    """Overrides what rq-scheduler calls for each job that is due."""

    def enqueue_job(self, job: Job) -> None:
        """Leave some jobs, enqueue others by hand, fail with one, and note all."""
        self.connection.rpush("hooked", job.id)
        if job.id.startswith("paused"):
            return
        if job.id == "broken":
            raise ValueError("on purpose")
        if job.id == "by-hand":
            self.connection.zrem(SCHEDULED_JOBS, job.id)
            return
        super().enqueue_job(job)

    def get_queue_for_job(self, job: Job) -> Any:
        """Send one job elsewhere."""
        return Queue("elsewhere", connection=self.connection) if job.id == "b" else super().get_queue_for_job(job)


class ChoosingScheduler(HookedScheduler):
    """Chooses what is due."""

    def get_jobs_to_queue(self, with_times: bool = False) -> Any:
        """Leave out one job."""
        return (job for job in super().get_jobs_to_queue() if job.id != "a")


@pytest.mark.parametrize("kind", [HookedScheduler, ChoosingScheduler])
@pytest.mark.parametrize("locked", [True, False])
def test_overridden_hooks_are_called(redis: Redis, kind: type[Scheduler], locked: bool) -> None:
    """``enqueue_job`` and ``get_queue_for_job`` of a subclass are called for each due job, once in a round, and may
    leave it.
    """
    mine = kind(connection=redis)
    paused = [f"paused-{i:03}" for i in range(150)]
    for at, job_id in enumerate([*paused, "a", "b", "by-hand", "broken"]):
        mine.enqueue_at(PAST + timedelta(seconds=at), once_jobs.accept, job_id=job_id)
    mine.schedule(PAST + timedelta(days=1), once_jobs.accept, interval=3600, id="again")
    assert not locked or mine.acquire_lock()
    first = [] if kind is ChoosingScheduler else ["a"]
    assert [job.id for job in mine.enqueue_jobs()] == [*first, "b", "by-hand", "again"]
    called = [word.decode() for word in redis.lrange("hooked", 0, -1)]
    assert called == [*paused, *first, "b", "by-hand", "broken", "again"]
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [*(name.encode() for name in first), b"again"]
    assert redis.lrange(named("rq:queue:elsewhere"), 0, -1) == [b"b"]
    assert redis.zscore(SCHEDULED_JOBS, "again") > time.time() + 3000
    assert redis.zscore(SCHEDULED_JOBS, "broken") > time.time() + 30
    assert redis.zcard(SCHEDULED_JOBS) == len(paused) + 2 + (1 - len(first))
    mine.remove_lock()
    # What was left is asked about again after the interval, not all the time.
    assert mine._round() > 30


RUNS = """
import sys
from redis import Redis
if sys.argv[1] == "stock":
    import warnings
    warnings.simplefilter("ignore")
    from rq_scheduler import Scheduler
else:
    from rq_pooled import Scheduler
try:
    Scheduler(connection=Redis.from_url(sys.argv[2]), name="mine", interval=1).run()
except SystemExit as error:
    print("SystemExit", error.code, flush=True)
    raise
print("returned", flush=True)
"""


@pytest.mark.parametrize("kind", [pytest.param("stock", marks=default_prefix_only), "ours"])
def test_a_signal_ends_run_by_system_exit(server: Any, redis: Redis, tmp_path: Path, kind: str) -> None:
    """After SIGTERM ``run`` raises SystemExit, as rq-scheduler's: what stands behind it in a program is not done."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = WorkerProcess([sys.executable, "-c", RUNS, kind, server.url], env, tmp_path / "log")
    wait_until(lambda: redis.exists(named("rq:scheduler_instance:mine")) and not redis.exists(SCHEDULER_LOCK))
    wait_until(lambda: handles_sigterm(process.pid))
    assert process.stop() == 0
    assert process.output() == "SystemExit None\n"
    assert redis.hexists(named("rq:scheduler_instance:mine"), "death")


def handles_sigterm(pid: int) -> bool:
    """Tell whether a process has a handler for SIGTERM."""
    text = Path(f"/proc/{pid}/status").read_text()
    return bool(int(text.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_job_that_is_cancelled_while_it_is_moved_is_not_put_off(redis: Redis) -> None:
    """What a move that fails leaves of a schedule is its time; one that was cancelled meanwhile does not come back."""
    scheduler = Scheduler(connection=redis)
    mover = scheduler._mover
    for cancelled in (False, True):
        job = scheduler.enqueue_in(timedelta(0), claim_jobs.nothing)

        def fail(job: Job, *_: Any, cancelled: bool = cancelled) -> str:
            if cancelled:
                scheduler.cancel(job)
            raise ValueError("on purpose")

        now = int(redis.time()[0])
        assert mover.move_id(job.id, 0.0, now, None, fail) == (None, "postponed")
        due = redis.zscore(SCHEDULED_JOBS, job.id)
        assert due is None if cancelled else due and due > now


class Hanging:
    """Names a call that hangs the process that unpickles it."""

    def __reduce__(self) -> Any:
        return (time.sleep, (600,))


def test_meta_that_hangs_when_it_is_loaded_stops_no_other_job(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A worker moves such a job without loading its meta; one that cannot be moved so has its turn after the others."""
    scheduler = Scheduler(connection=redis)
    for number, meta in enumerate(({}, {"repeat": 3, "interval": 60})):
        job = scheduler.enqueue_at(PAST, claim_jobs.nothing, job_id=f"hanging{number}")
        redis.hset(job.key, "meta", pickle.dumps({**meta, "bomb": Hanging()}))
        redis.zadd(SCHEDULED_JOBS, {job.id: number})
    scheduler.enqueue_at(PAST, claim_jobs.nothing, job_id="good")
    with running_worker(server.url, "nothing", "--with-scheduler", log=tmp_path / "log") as worker:
        wait_until(
            lambda: (redis.zscore(SCHEDULED_JOBS, "hanging1") or 0) > time.time() + 300, what="a horse that hangs"
        )
        assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"hanging0"]
        for horse in psutil.Process(worker.pid).children():  # as the worker does after a minute
            with contextlib.suppress(psutil.NoSuchProcess):
                horse.kill()
        wait_until(
            lambda: redis.lrange(named("rq:queue:default"), 0, -1) == [b"hanging0", b"good"], what="the next job"
        )
