"""Retries: what a failed job does next, with our worker and stock RQ's, and what is kept of each try."""

from __future__ import annotations

import collections
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import retry_jobs
from keys import named
from redis import Redis
from rq import Queue as StockQueue
from rq import Retry, SimpleWorker
from rq.decorators import job as job_decorator
from rq.exceptions import AbandonedJobError
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, ScheduledJobRegistry
from rq.results import Result
from rq.scheduler import RQScheduler
from support import keys_of_jobs, running_worker, wait_until

from rq_pooled import Backoff, Queue
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError
from rq_pooled.retry.backoff import Rules

SOON = {"max": 2, "base": 1, "cap": 1, "jitter": None}
OVER = (JobStatus.FAILED, JobStatus.FINISHED)


def soon(**more: Any) -> Backoff:
    """Twice, after a second each."""
    return Backoff(**{**SOON, **more})


def wait_for(*jobs: Job, timeout: float = 40) -> None:
    """Wait until all are over."""
    wait_until(lambda: all(job.get_status() in OVER for job in jobs), timeout, "the end of all jobs")


def history(job: Job) -> list[str]:
    """The kinds of results, oldest first."""
    return [result.type.name for result in reversed(Result.all(job))]


def test_exceptions_decide_about_another_try(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """``on`` and ``give_up_on`` know subclasses, dotted and bare names; GiveUp and RetryAfter go before them."""
    queue = Queue("default", redis)
    fail = retry_jobs.fail
    tried = {
        "all": queue.enqueue(fail, retry=soon()),
        "on a subclass": queue.enqueue(fail, "Busy", retry=soon(on=(KeyError, ConnectionError))),
        "on a name": queue.enqueue(fail, retry=soon(on="retry_jobs.Broken")),
        "not given up": queue.enqueue(fail, retry=soon(give_up_on=(ConnectionError,))),
        "its process died": queue.enqueue(retry_jobs.vanish, retry=soon(on=AbandonedJobError)),
    }
    failed = {
        "not on": queue.enqueue(fail, retry=soon(on=ConnectionError)),
        "given up": queue.enqueue(fail, "Busy", retry=soon(give_up_on="ConnectionError")),
        "given up before on": queue.enqueue(fail, "Busy", retry=soon(on=OSError, give_up_on=ConnectionError)),
        "GiveUp": queue.enqueue(retry_jobs.give_up, retry=soon()),
        "GiveUp with stock Retry": queue.enqueue(retry_jobs.give_up, retry=Retry(2, [1, 1])),
        "died, not on": queue.enqueue(retry_jobs.vanish, retry=soon(on=ConnectionError)),
        "RetryAfter without tries": queue.enqueue(retry_jobs.later, 1),
    }
    asked = queue.enqueue(retry_jobs.later, 1.5, retry=soon(on=KeyError))
    with running_worker(server.url, log=tmp_path / "log", concurrency=4):
        wait_for(*tried.values(), *failed.values(), asked)
    assert {name: history(job) for name, job in tried.items()} == {name: ["RETRIED"] * 2 + ["FAILED"] for name in tried}
    assert {name: history(job) for name, job in failed.items()} == {name: ["FAILED"] for name in failed}
    assert history(asked) == ["RETRIED", "SUCCESSFUL"]
    asked.refresh()
    assert asked.retries_left == 1  # it counted
    first, second = (float(run) for run in redis.lrange(f"runs:{asked.id}", 0, -1))
    assert second - first >= 1.5
    assert keys_of_jobs(redis) == []


def test_history_tells_error_time_and_next_time(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Each RETRIED entry has the traceback, the execution's times, and when the next try is due, as it was
    scheduled.
    """
    job = Queue("default", redis).enqueue(retry_jobs.fail, "Busy", "try again", retry=Backoff(1, 3600, 1, 3600, None))
    with running_worker(server.url, log=tmp_path / "log"):
        wait_until(lambda: job.get_status() == JobStatus.SCHEDULED)
        (entry,) = Result.all(job)
        assert entry.type is Result.Type.RETRIED and entry.exc_string.endswith("retry_jobs.Busy: try again\n")
        assert entry.execution_id and entry.execution_started_at <= entry.execution_ended_at
        ((_, fields),) = redis.xrange(Result.get_key(job.id))
        registry = ScheduledJobRegistry("default", redis)
        assert float(fields[b"rq_pooled:next_at"]) == registry.get_scheduled_time(job).timestamp()


@pytest.mark.parametrize("retry", [soon(max=1), Retry(max=1, interval=1)], ids=["Backoff", "Retry"])
def test_the_log_says_that_a_job_is_tried_again(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, retry: Retry
) -> None:
    """A command's worker logs that a failed job is tried again, and when, in RQ's words."""
    job = Queue("default", redis).enqueue(retry_jobs.fail, retry=retry)
    with running_worker(server.url, log=tmp_path / "log") as worker:
        wait_for(job)
        worker.wait_for(f"Job {job.id}: scheduled for retry at 20")


def test_jobs_with_stock_retry_leave_what_stock_rq_leaves(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Without a Backoff there is no RETRIED entry and no field of ours."""
    job = Queue("default", redis).enqueue(retry_jobs.fail, retry=Retry(max=2, interval=[0, 1]))
    with running_worker(server.url, log=tmp_path / "log"):
        wait_for(job)
    assert history(job) == ["FAILED"]
    assert not [name for name in redis.hkeys(job.key) if name.startswith(b"rq_pooled")]


def test_stock_worker_keeps_to_our_intervals(redis: Redis) -> None:
    """SimpleWorker of stock RQ tries a job of ours exactly ``max`` times, after the intervals in their order."""
    job = Queue("default", redis).enqueue(retry_jobs.fail, retry=Backoff(3, 10, 3, 1000, None, on=KeyError))
    worker = SimpleWorker(["default"], connection=redis)
    registry = ScheduledJobRegistry("default", redis)
    for expected in (10, 30, 90):
        worker.work(burst=True)
        due = redis.zscore(registry.key, job.id)
        assert expected - 5 < due - time.time() <= expected
        redis.zadd(registry.key, {job.id: 1})
        scheduler = RQScheduler(["default"], redis)
        scheduler._connection = redis
        scheduler.acquire_locks()
        scheduler.enqueue_scheduled_jobs()
        scheduler.release_locks()
    worker.work(burst=True)
    assert job.get_status() == JobStatus.FAILED
    raw = redis.hgetall(job.key)
    assert Rules.read(raw) == Rules(3, ("builtins.KeyError",)), "stock RQ dropped our field"


def test_both_index_rules_of_rq_give_the_intervals_in_order(redis: Redis) -> None:
    """RQ counts intervals from retries_left after an exception, and from the number of retries after a returned
    Retry.
    """
    backoff = Backoff(4, 1, 2, 100, None)
    job = Queue("default", redis).enqueue(retry_jobs.fail, retry=backoff)
    by_exception = []
    for left in (4, 3, 2, 1):
        job.retries_left = left
        by_exception.append(job.get_retry_interval())
    assert by_exception == [Retry.get_interval(count, backoff.intervals) for count in range(4)] == [1, 2, 4, 8]


def test_returned_backoff_is_obeyed(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A job may return a Backoff where it may return a Retry."""
    job = Queue("default", redis).enqueue(retry_jobs.return_backoff, soon())
    with running_worker(server.url, log=tmp_path / "log"):
        wait_for(job)
    assert history(job) == ["RETRIED", "RETRIED", "MAX_RETRIES_EXCEEDED"]


def test_retry_of_queue_call_and_decorator(redis: Redis) -> None:
    """A queue's default counts unless a call has its own or says False; each way of enqueueing knows it."""
    queue = Queue("default", redis, retry=Backoff(7))
    later = datetime(2099, 1, 1, tzinfo=timezone.utc)
    data = Queue.prepare_data("math.sqrt", (4,))
    seven = [
        queue.enqueue("math.sqrt", 4),
        queue.enqueue_at(later, "math.sqrt", 4),
        *queue.enqueue_many([data, data]),
        job_decorator(queue, connection=redis)(retry_jobs.fail).delay(),
    ]
    for job in seven:
        stored = Job.fetch(job.id, redis)
        assert (stored.retries_left, len(stored.retry_intervals or ())) == (7, 7)
        assert Rules.read(redis.hgetall(job.key)) == Rules(7)
    assert queue.enqueue("math.sqrt", 4, retry=Retry(2)).retries_left == 2
    assert redis.hget(queue.enqueue("math.sqrt", 4, retry=False).key, "retries_left") is None
    decorated = job_decorator(queue, connection=redis, retry=Backoff(3, on=OSError))(retry_jobs.fail)
    assert Rules.read(redis.hgetall(decorated.delay().key)) == Rules(3, ("builtins.OSError",))
    for wrong in (5, {"max": 3}, Backoff):
        with pytest.raises(ConfigurationError, match="Queue\\(retry="):
            Queue("default", redis, retry=wrong)  # type: ignore[arg-type]


def test_rules_live_and_die_with_the_job(redis: Redis) -> None:
    """Saving, requeueing and refreshing the job keep its rules, deleting it leaves nothing."""
    job = Queue("default", redis).enqueue("math.sqrt", "x", retry=Backoff(3, give_up_on=TypeError))
    stranger = Job.fetch(job.id, redis)
    stranger.meta = {"mine": 1}
    stranger.save()
    StockQueue("other", redis).enqueue_job(stranger)
    assert Rules.read(redis.hgetall(job.key)) == Rules(3, (), ("builtins.TypeError",))
    assert Job.fetch(job.id, redis).meta == {"mine": 1}
    stranger.delete()
    assert [key for key in redis.keys("*") if job.id.encode() in key] == []


def test_history_ends_with_the_job(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """The entries of failed tries expire if nobody needs them any more, and are gone at once where no result is
    kept.
    """
    queue = Queue(connection=redis)
    kept = queue.enqueue(retry_jobs.fail, retry=Backoff(1, base=60, cap=60, jitter=None), failure_ttl=1)
    gone = queue.enqueue(retry_jobs.fail_once, retry=soon(), result_ttl=0)
    with running_worker(server.url, log=tmp_path / "log"):
        wait_until(lambda: kept.get_status() == JobStatus.SCHEDULED)
        wait_until(lambda: not redis.exists(gone.key))
    # A day at least, counted from the next try.
    assert 86_400 + 30 < redis.ttl(named(f"rq:results:{kept.id}")) <= 86_400 + 61
    assert not redis.exists(named(f"rq:results:{gone.id}"))


def test_retries_come_due_without_a_scheduler(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """While our worker holds the scheduler's lock a retry runs within a second of its time."""
    queue = Queue("default", redis)
    with running_worker(server.url, log=tmp_path / "log", concurrency=2):
        jobs = [queue.enqueue(retry_jobs.fail_while, "never", job_id=f"on-{i}") for i in range(3)]
        wait_for(*jobs)
        redis.set("outage", 1)
        job = queue.enqueue(retry_jobs.fail_while, "outage", retry=Backoff(4, 1, 1, 1, None))
        wait_for(job)
    runs = [float(run) for run in redis.lrange(f"runs:{job.id}", 0, -1)]
    due = [float(fields[b"rq_pooled:next_at"]) for _, fields in redis.xrange(Result.get_key(job.id))[:-1]]
    late = [run - at for run, at in zip(runs[1:], due)]
    assert len(late) == 4 and all(0 <= seconds < 1 for seconds in late), late


def test_retries_go_on_when_a_dead_scheduler_held_the_lock(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """Our worker takes over as soon as the lock of a scheduler that is no more has run out, and not a while later."""
    scheduler = RQScheduler(["default"], redis)
    scheduler._connection = redis
    scheduler.acquire_locks()
    lock = scheduler.get_locking_key("default")
    assert 55 < redis.ttl(lock) <= 61
    redis.pexpire(lock, 6000)  # as if most of its 61 seconds had passed
    ends = time.time() + 6
    queue = Queue("default", redis)
    with running_worker(server.url, log=tmp_path / "log"):
        job = queue.enqueue(retry_jobs.fail_while, "never", job_id="first")
        wait_for(job)
        redis.set("outage", 1)
        job = queue.enqueue(retry_jobs.fail_while, "outage", retry=Backoff(1, 1, 1, 1, None))
        wait_until(lambda: job.get_status() == JobStatus.SCHEDULED)
        redis.delete("outage")
        wait_for(job)
        assert ends - 0.5 < time.time() < ends + 5
    assert job.get_status() == JobStatus.FINISHED


def test_state_and_schedule_are_one_step(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """No client ever sees a job that is scheduled and has no time, or has a time and another state."""
    queue = Queue("default", redis)
    script = redis.register_script(
        named(
            "local s = redis.call('HGET', 'rq:job:' .. ARGV[1], 'status')"
            "local z = redis.call('ZSCORE', 'rq:scheduled:default', ARGV[1])"
            "return {s, z or 'none'}"
        )
    )
    job = queue.enqueue(retry_jobs.fail, retry=Backoff(3, 1, 1, 1, None))
    seen: collections.Counter[tuple[bytes, bool]] = collections.Counter()
    with running_worker(server.url, log=tmp_path / "log"):
        deadline = time.monotonic() + 40
        while job.get_status() not in OVER and time.monotonic() < deadline:
            for _ in range(20):
                status, due = script(args=[job.id])
                seen[status, due != b"none"] += 1
    assert all((status == b"scheduled") is timed for status, timed in seen), seen
    assert seen[b"scheduled", True]


def test_abandoned_jobs_are_tried_again_by_their_rules(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """RQ's clean-up of jobs whose worker vanished obeys the rules, in one step, and leaves its line in the history."""
    queue = Queue("default", redis)
    again = queue.enqueue(retry_jobs.fail, retry=Backoff(2, 3600, 1, 3600, None))
    never = queue.enqueue(retry_jobs.fail, retry=Backoff(2, 3600, 1, 3600, None, on=ConnectionError))
    redis.delete(queue.key)
    for job in (again, never):  # as a worker leaves them that died long ago
        redis.hset(job.key, "status", "started")
        redis.zadd(named("rq:wip:default"), {f"{job.id}:gone": 1})
    with running_worker(server.url, log=tmp_path / "log"):
        wait_until(lambda: again.get_status() == JobStatus.SCHEDULED and never.get_status() == JobStatus.FAILED)
        wait_until(lambda: history(again) == ["RETRIED"])
    assert again.id in ScheduledJobRegistry("default", redis)
    assert never.id in FailedJobRegistry("default", redis)
    again.refresh()
    assert again.retries_left == 1


@pytest.mark.timeout(180)
def test_storm_of_retries_spreads_out(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """5 000 jobs that fail at once are not tried again at once: no second gets more than its share."""
    queue = Queue("default", redis, retry=Backoff(2, base=3600, cap=3600))
    for _ in range(10):
        queue.enqueue_many([Queue.prepare_data(retry_jobs.fail, ("Busy",)) for _ in range(500)])
    with running_worker(server.url, "--quiet", log=tmp_path / "log", concurrency=4, ready=None):
        registry = ScheduledJobRegistry("default", redis)
        wait_until(lambda: queue.count == 0 and not redis.exists(named("rq:wip:default")), 150, "the end of the storm")
        times = [score for _, score in redis.zrange(registry.key, 0, -1, withscores=True)]
    began = min(times)
    per_second = collections.Counter(int(score - began) for score in times)
    assert len(times) > 4800  # few were drawn so early that they have been tried a second time meanwhile
    assert max(per_second.values()) < 20, per_second.most_common(5)
    assert len(per_second) > 2000
