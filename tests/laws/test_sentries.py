"""Many idle workers: a job wakes one of them, and none waits for longer than a second, whatever is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash_jobs
import jobs
import pytest
from keys import named
from redis import Redis
from rq import Queue
from rq.job import Job, JobStatus
from rq.suspension import resume, suspend
from support import WorkerProcess, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.queue.limits import make_limit, set_limit
from rq_pooled.store.keys import SENTRY_COMMAND, commands_channel
from rq_pooled.store.scripts import with_text
from rq_pooled.store.sentries import Post

#: A second, and what a busy machine takes to start a job.
A_SECOND = 2.0


class Fleet:
    """Workers ``w0``, ``w1``, … of the queue ``q``, of which one is the sentry and the others doze."""

    def __init__(self, redis: Redis, workers: dict[str, WorkerProcess], queues: tuple[str, ...] = ("q",)) -> None:
        self.redis, self.workers = redis, workers
        self.queue = Queue(queues[-1], connection=redis)
        self.post = Post.of(queues, "")

    @property
    def sentry(self) -> str:
        """The name of the sentry, or nothing."""
        return (self.redis.get(self.post.sentry_key) or b"").decode().removeprefix(commands_channel(""))

    @property
    def sleepers(self) -> list[str]:
        """The names of those who doze, the next one first."""
        channels = self.redis.zrange(self.post.sleepers_key, 0, -1)
        return [channel.decode().removeprefix(commands_channel("")) for channel in channels]

    def settle(self, awake: int = 0) -> None:
        """Wait until all but so many workers are asleep, and one of them hears of jobs."""

        def settled() -> bool:
            alive = {self.sentry, *self.sleepers}
            return bool(self.sentry) and len(alive) == len(self.workers) - awake and alive <= set(self.workers)

        wait_until(settled, what=f"{len(self.workers) - awake} workers to sleep")
        # The look with which the sentry registers.
        wait_until(lambda: self.redis.info("stats")["tracking_total_items"] >= 2)

    def signal(self, name: str, signum: int) -> None:
        """Send a signal to a worker's parent."""
        os.kill(self.workers[name].pid, signum)

    def delay(self, job: Job) -> float:
        """Return the seconds after which a job that was just enqueued has ended."""
        began = time.monotonic()
        wait_until(lambda: job.get_status() == JobStatus.FINISHED, what="the job")
        return time.monotonic() - began


@contextlib.contextmanager
def fleet(url: str, redis: Redis, path: Path, number: int, *queues: str, **settings: Any) -> Iterator[Fleet]:
    """A fleet that has fallen asleep."""
    with contextlib.ExitStack() as stack:
        workers = {
            f"w{i}": stack.enter_context(
                running_worker(
                    url, *(queues or ("q",)), "--name", f"w{i}", log=path / f"log{i}", ready=None, **settings
                )
            )
            for i in range(number)
        }
        one = Fleet(redis, workers, queues or ("q",))
        one.settle()
        try:
            yield one
        finally:
            for worker in workers.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGCONT)


def claims(redis: Redis) -> int:
    """How often a claim looked whether it may begin."""
    return int(redis.info("commandstats").get("cmdstat_lpushx", {"calls": 0})["calls"])


def test_one_job_wakes_one_worker(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Five jobs, one after the other, are five claims of six workers, and each runs on the next worker."""
    with fleet(server.url, redis, tmp_path, 6) as one:
        before, ran = claims(redis), set()
        for _ in range(5):
            ran.add(one.sentry)
            one.delay(one.queue.enqueue(jobs.nothing))
            one.settle()
        assert claims(redis) - before == len(ran) == 5
        assert sorted("Job OK" in worker.output() for worker in one.workers.values()) == [False] + [True] * 5


def test_a_worker_without_work_runs_one_script_a_second(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A lone worker that waits promotes and looks in one script a second, and asks nothing else twice."""
    with fleet(server.url, redis, tmp_path, 1):
        time.sleep(1)
        redis.config_resetstat()
        time.sleep(6)
        calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in redis.info("commandstats").items()}
        # Heartbeat, statistics and clean-up come every 15 s, a sign of life every third second.
        assert 5 <= calls["evalsha"] <= 7 + 6 and "client|caching" not in calls
        assert calls["exists"] <= 7 and calls["get"] <= 7 + 3
        assert sum(calls.values()) < 6 * 8 + 50


def test_jobs_wake_as_many_workers_as_there_are(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Jobs that come at once wake each other's workers in a chain, in a fraction of the second after which each would
    have looked.
    """
    gate = tmp_path / "gate"
    with fleet(server.url, redis, tmp_path, 6) as one:
        began = redis.time()
        with redis.pipeline() as pipe:
            data = [Queue.prepare_data(crash_jobs.wait_for_file, (str(gate),)) for _ in range(6)]
            started = one.queue.enqueue_many(data, pipeline=pipe)
            pipe.execute()
        wait_until(lambda: all(job.get_status() == JobStatus.STARTED for job in started))
        last = max(job.started_at.timestamp() for job in (Job.fetch(job.id, redis) for job in started))
        assert last - (began[0] + began[1] / 1e6) < 0.5
        gate.touch()
        for job in started:
            one.delay(job)
        one.settle()


def test_a_job_that_comes_while_the_sentry_is_busy_wakes_the_next(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """While jobs run another sentry hears of the next one at once, until all workers are busy."""
    gate = tmp_path / "gate"
    with fleet(server.url, redis, tmp_path, 3) as one:
        running = []
        for busy in range(3):
            job = one.queue.enqueue(crash_jobs.wait_for_file, str(gate))
            wait_until(lambda: job.get_status() == JobStatus.STARTED)  # noqa: B023
            running.append(Job.fetch(job.id, redis))
            if busy < 2:
                one.settle(awake=busy + 1)
        assert len({job.worker_name for job in running}) == 3
        waiting = one.queue.enqueue(jobs.nothing)
        gate.touch()
        assert one.delay(waiting) < A_SECOND
        one.settle()


@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL])
def test_a_sentry_that_does_not_hear_is_replaced(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, signum: int
) -> None:
    """A job waits for at most a second where the sentry is frozen or dead; from then on another one hears of jobs."""
    with fleet(server.url, redis, tmp_path, 4) as one:
        lost = one.sentry
        one.signal(lost, signum)
        assert one.delay(one.queue.enqueue(jobs.nothing)) < A_SECOND
        wait_until(lambda: one.sentry not in ("", lost))
        assert one.delay(one.queue.enqueue(jobs.nothing)) < A_SECOND
        if signum == signal.SIGSTOP:
            one.signal(lost, signal.SIGCONT)
            one.settle()


@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL])
def test_sleepers_that_do_not_hear_hold_up_no_job(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, signum: int
) -> None:
    """Of the dead none is made the sentry; the frozen are, one after the other, and no job waits over a second."""
    with fleet(server.url, redis, tmp_path, 5) as one:
        for name in one.sleepers[:3]:
            one.signal(name, signum)
        for _ in range(6):
            assert one.delay(one.queue.enqueue(jobs.nothing)) < A_SECOND
        if signum == signal.SIGSTOP:
            for name in one.workers:
                one.signal(name, signal.SIGCONT)
            one.settle()


def test_nothing_that_redis_forgets_is_needed(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """After FLUSHALL, and after the loss of either key, jobs start within a second, and all workers doze again."""
    with fleet(server.url, redis, tmp_path, 4) as one:
        for forget in (
            redis.flushall,
            lambda: redis.delete(one.post.sentry_key),
            lambda: redis.delete(one.post.sleepers_key),
            lambda: redis.delete(one.post.sentry_key, one.post.sleepers_key),
            lambda: (redis.set(one.post.sleepers_key, "a text"), redis.delete(one.post.sentry_key)),
        ):
            forget()
            assert one.delay(one.queue.enqueue(jobs.nothing)) < A_SECOND
            if redis.type(one.post.sleepers_key) == b"string":
                redis.delete(one.post.sleepers_key)
                continue
            one.settle()


def test_all_workers_stop_and_go_on_as_they_are_told(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Suspension reaches those who doze, too, and after it jobs start within a second."""
    with fleet(server.url, redis, tmp_path, 3) as one:
        states = lambda: [redis.hget(named(f"rq:worker:{name}"), "state") for name in one.workers]
        suspend(redis)
        waiting = [one.queue.enqueue(jobs.nothing) for _ in range(3)]
        wait_until(lambda: states() == [b"suspended"] * 3)
        assert all(job.get_status() == JobStatus.QUEUED for job in waiting)
        resume(redis)
        for job in waiting:
            assert one.delay(job) < A_SECOND
        wait_until(lambda: states() == [b"idle"] * 3)
        one.settle()


def test_a_place_of_a_limit_is_taken_at_once(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A limited queue's next job starts when its place is free, whichever worker hears of it."""
    gate = tmp_path / "gate"
    set_limit(redis, "q", make_limit(None, 1))
    with fleet(server.url, redis, tmp_path, 3) as one:
        running = one.queue.enqueue(crash_jobs.wait_for_file, str(gate))
        wait_until(lambda: running.get_status() == JobStatus.STARTED)
        waiting = one.queue.enqueue(jobs.nothing)
        wait_until(lambda: redis.exists(named("rq_pooled:full:q")))
        gate.touch()
        one.delay(running)
        assert one.delay(waiting) < A_SECOND


def test_each_set_of_queues_has_a_sentry(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Workers of other queues that overlap have a sentry of their own; a queue's order makes no other set."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with fleet(server.url, redis, tmp_path / "a", 2, "q", "r") as one:
        names = [running_worker(server.url, *queues, "--name", name, log=tmp_path / "b" / name)
                 for queues, name in ((("r", "s"), "v0"), (("s", "r"), "v1"))]  # fmt: skip
        with names[0], names[1]:
            other = Fleet(redis, {"v0": None, "v1": None}, ("s", "r"))  # type: ignore[dict-item]
            other.settle()
            one.settle()
            for queue in ("q", "r", "s"):
                assert one.delay(Queue(queue, connection=redis).enqueue(jobs.nothing)) < A_SECOND
            other.settle()
            one.settle()


def test_workers_that_may_not_publish_hear_of_jobs_by_themselves(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """Where the user may not publish each worker has tracking on, and no key of a sentry exists."""
    server = start_server()
    redis = server.client()
    redis.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-publish")
    url = server.url.replace("//", "//app:pw@")
    with contextlib.ExitStack() as stack:
        for i in range(2):
            stack.enter_context(running_worker(url, "q", "--name", f"w{i}", log=tmp_path / f"log{i}"))
        wait_until(lambda: redis.info("stats")["tracking_total_items"] == 2 * 2)
        one = Fleet(redis, {})
        assert one.delay(Queue("q", connection=redis).enqueue(jobs.nothing)) < A_SECOND
        assert not redis.exists(one.post.sentry_key, one.post.sleepers_key)


def test_workers_that_wake_no_other_leave_no_job(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """Beside workers of a version that knows no sentries, which are all told of all jobs, no job waits."""
    server = start_server()
    redis = server.client()
    redis.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-publish")
    old = running_worker(server.url.replace("//", "//app:pw@"), "q", "--name", "old", log=tmp_path / "old")
    with fleet(server.url, redis, tmp_path, 3) as one, old:
        for _ in range(5):
            with redis.pipeline() as pipe:
                data = [Queue.prepare_data(jobs.nothing) for _ in range(8)]
                crowd = one.queue.enqueue_many(data, pipeline=pipe)
                pipe.execute()
            for job in crowd:
                assert one.delay(job) < A_SECOND


def test_a_sentry_that_ends_hands_on(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A worker that is told to stop makes another one the sentry, and no longer stands among the sleepers."""
    with fleet(server.url, redis, tmp_path, 3) as one:
        for _ in range(2):
            name = one.sentry
            one.signal(name, signal.SIGTERM)
            worker = one.workers.pop(name)
            assert worker.wait(10) == 0
            assert one.sentry in one.workers
            one.settle()
        (last,) = one.workers.values()
        assert one.delay(one.queue.enqueue(jobs.nothing)) < A_SECOND and "Job OK" in last.output()


def test_a_worker_without_a_free_slot_hands_on_what_it_is_told(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """A busy worker that is made the sentry makes another one the sentry at once."""
    gate = tmp_path / "gate"
    with fleet(server.url, redis, tmp_path, 3) as one:
        job = one.queue.enqueue(crash_jobs.wait_for_file, str(gate))
        wait_until(lambda: job.get_status() == JobStatus.STARTED)
        one.settle(awake=1)
        busy = Job.fetch(job.id, redis).worker_name
        before = one.sentry
        message = json.dumps({"command": SENTRY_COMMAND, "work": True})
        assert redis.publish(commands_channel(busy), message) == 1
        wait_until(lambda: one.sentry not in (before, busy, ""))
        gate.touch()
        one.delay(job)
        one.settle()


def test_a_sentry_that_begins_anew_is_one_still(redis: Redis) -> None:
    """A sentry whose connection was lost does not lie down beside itself: until its post ended no worker would hear."""
    one, other = Post.of(["q"], "w0"), Post.of(["q"], "w1")
    asked = [redis.execute_command(*with_text(post.doze(0))) for post in (one, other, one, other)]
    assert asked == [1, 0, 1, 0]
    assert redis.zrange(one.sleepers_key, 0, -1) == [other.channel.encode()]
    redis.zadd(one.sleepers_key, {one.channel: 0})
    redis.pexpire(one.sentry_key, 500)
    assert redis.execute_command(*with_text(one.doze(0))) == 1 and redis.pttl(one.sentry_key) > 1000
    assert redis.zrange(one.sleepers_key, 0, -1) == [other.channel.encode()]


def test_a_worker_in_burst_mode_neither_sleeps_nor_guards(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A burst worker ends beside a fleet, takes nobody's post, and leaves no key."""
    with fleet(server.url, redis, tmp_path, 2) as one:
        with running_worker(server.url, "q", "--burst", "--name", "b", log=tmp_path / "b", ready=None) as burst:
            assert burst.wait(20) == 0
        one.settle()
        assert "b" not in (one.sentry, *one.sleepers)
