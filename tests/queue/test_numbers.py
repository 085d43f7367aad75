"""Times and counts that fail later: our Queue and Scheduler refuse them, and those of plain RQ harm no other job."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jobs
import number_jobs
import pytest
from keys import named
from redis import Redis
from rq import Callback, Repeat, Retry
from rq import Queue as StockQueue
from rq.job import Job
from support import running_worker

from rq_pooled import Queue, Scheduler
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError

HUGE = 10**30
LAST = datetime.max.replace(tzinfo=timezone.utc)
FIRST = datetime.min.replace(tzinfo=timezone.utc)
Enqueue = Callable[[Any], Any]


def changed(job: Job, **values: Any) -> Job:
    """Return a job whose attributes a program has set by itself, past the checks of rq.Retry and rq.Repeat."""
    vars(job).update(values)
    return job


REFUSED: list[tuple[str, Enqueue]] = [
    ("interval of retry is 9223372036854775807", lambda q: q.enqueue(jobs.nothing, retry=Retry(1, sys.maxsize))),
    ("interval of retry is a number of 31 digits", lambda q: q.enqueue(jobs.nothing, retry=Retry(2, [1, HUGE]))),
    ("interval of retry is nan", lambda q: q.enqueue(jobs.nothing, retry=Retry(1, [float("nan")]))),
    ("Retry: max is 1.5", lambda q: q.enqueue(jobs.nothing, retry=Retry(1.5))),
    ("Retry: max is a number", lambda q: q.enqueue(jobs.nothing, retry=Retry(HUGE))),
    ("Retry: max is -1", lambda q: q.enqueue_job(changed(q.create_job(jobs.nothing), retries_left=-1))),
    ("Repeat: times is -2", lambda q: q.enqueue_job(changed(q.create_job(jobs.nothing), repeats_left=-2))),
    ("interval of repeat is a number", lambda q: q.enqueue(jobs.nothing, repeat=Repeat(3, HUGE))),
    ("Repeat: times is 2.5", lambda q: q.enqueue(jobs.nothing, repeat=Repeat(2.5, 1))),
    ("result_ttl is a number", lambda q: q.enqueue(jobs.nothing, result_ttl=-HUGE)),
    ("result_ttl is nan", lambda q: q.enqueue(jobs.nothing, result_ttl=float("nan"))),
    ("failure_ttl is inf", lambda q: q.enqueue(jobs.nothing, failure_ttl=float("inf"))),
    ("failure_ttl is a number", lambda q: q.enqueue(jobs.nothing, failure_ttl=-HUGE)),
    ("ttl is 9223372036854775807", lambda q: q.enqueue(jobs.nothing, ttl=sys.maxsize)),
    ("timeout is a number", lambda q: q.enqueue(jobs.nothing, job_timeout=-HUGE)),
    ("timeout is 2147483648", lambda q: q.enqueue(jobs.nothing, job_timeout=2**31)),
    ("timeout of on_success is", lambda q: q.enqueue(jobs.nothing, on_success=Callback(jobs.nothing, HUGE))),
    ("timeout of on_failure is", lambda q: q.enqueue(jobs.nothing, on_failure=Callback(jobs.nothing, HUGE))),
    ("timeout of on_stopped is", lambda q: q.enqueue(jobs.nothing, on_stopped=Callback(jobs.nothing, HUGE))),
    ("the delay is 999999 days", lambda q: q.enqueue_in(timedelta(days=999_999), jobs.nothing)),
    ("the delay is 999999999 days", lambda q: q.enqueue_in(timedelta.max, jobs.nothing)),
    ("the due time is 9999", lambda q: q.enqueue_at(LAST, jobs.nothing)),
    ("the due time is 0001", lambda q: q.enqueue_at(FIRST, jobs.nothing)),
    ("the due time is 0001", lambda q: q.enqueue_at(datetime.min, jobs.nothing)),
    (
        "interval of retry is",
        lambda q: q.enqueue_many([q.prepare_data(jobs.nothing), q.prepare_data(jobs.nothing, retry=Retry(1, HUGE))]),
    ),
]


@pytest.mark.parametrize(("words", "enqueue"), REFUSED)
def test_a_number_that_fails_later_is_refused_at_once(redis: Redis, words: str, enqueue: Enqueue) -> None:
    """A time or count that a server, calendar or timer refuses is refused in one line, and nothing is written."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        enqueue(Queue("q", connection=redis))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    assert not redis.keys(named("rq:job:*")) and not redis.exists(named("rq:queue:q"), named("rq:scheduled:q"))


@pytest.mark.parametrize(
    ("words", "schedule"),
    [
        ("interval is a number", lambda s: s.schedule(LAST.replace(year=2030), jobs.nothing, interval=HUGE)),
        ("interval is -5", lambda s: s.schedule(LAST.replace(year=2030), jobs.nothing, interval=-5)),
        ("the due time is 9999", lambda s: s.schedule(LAST, jobs.nothing)),
        ("the due time is 0001", lambda s: s.enqueue_at(datetime.min, jobs.nothing)),
        ("the delay is 999999999 days", lambda s: s.enqueue_in(timedelta.max, jobs.nothing)),
        ("timeout is", lambda s: s.cron("* * * * *", jobs.nothing, timeout=HUGE)),
        ("result_ttl is", lambda s: s.schedule(LAST.replace(year=2030), jobs.nothing, result_ttl=HUGE)),
        ("ttl is", lambda s: s.enqueue_in(timedelta(1), jobs.nothing, job_ttl=sys.maxsize)),
    ],
)
def test_a_time_that_a_scheduler_never_reaches_is_refused(redis: Redis, words: str, schedule: Enqueue) -> None:
    """Our Scheduler refuses what its schedule, or the job that it enqueues, fails at later; nothing is written."""
    with pytest.raises(ConfigurationError, match=words):
        schedule(Scheduler(connection=redis))
    assert redis.dbsize() == 0


def test_the_largest_numbers_are_taken(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """What is said to be allowed works: it is enqueued, and the job runs."""
    queue = Queue("q", connection=redis)
    century = 36_525 * 86_400
    job = queue.enqueue(
        jobs.nothing,
        ttl=century,
        result_ttl=century,
        failure_ttl=-1,
        job_timeout=2**31 - 1,
        retry=Retry(10**9, century),
    )
    failing = queue.enqueue(jobs.fail, retry=Retry(1, century), failure_ttl=century)
    queue.enqueue_in(timedelta(seconds=century - 60), jobs.nothing)
    queue.enqueue_at(datetime(1970, 1, 2), jobs.nothing)
    with running_worker(server.url, "q", "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0, worker.output()
    assert job.get_status(refresh=True) == "finished" and failing.get_status(refresh=True) == "scheduled"


@pytest.mark.parametrize(
    ("enqueue", "status"),
    [
        (lambda q: q.enqueue(jobs.fail, retry=Retry(1, sys.maxsize)), "scheduled"),
        (lambda q: q.enqueue(jobs.fail, retry=Retry(1, [float("nan")])), "finished or failed"),
        (lambda q: q.enqueue(jobs.fail, retry=Retry(1, HUGE)), "scheduled"),
        (lambda q: q.enqueue(jobs.nothing, repeat=Repeat(1, HUGE)), "scheduled"),
        (lambda q: q.enqueue(jobs.nothing, repeat=Repeat(1, [float("nan")])), "finished or failed"),
        (lambda q: q.enqueue(number_jobs.return_retry, HUGE), "scheduled"),
        (lambda q: q.enqueue(jobs.nothing, result_ttl=-HUGE), "finished or failed"),
        (lambda q: q.enqueue(jobs.nothing, job_timeout=HUGE), "finished or failed"),
        (lambda q: q.enqueue(jobs.fail, failure_ttl=-HUGE), "finished or failed"),
    ],
)
@pytest.mark.parametrize("queue_class", ["rq.Queue", "rq_pooled.Queue"])
def test_numbers_of_plain_rq_harm_no_other_job(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, enqueue: Enqueue, status: str, queue_class: str
) -> None:
    """A job of plain RQ with such a number has an outcome, costs no horse, and all others run."""
    queue = StockQueue("q", connection=redis)
    job, others = enqueue(queue), [queue.enqueue(jobs.nothing) for _ in range(3)]
    options = ("q", "--burst", "--queue-class", queue_class)
    with running_worker(server.url, *options, log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0, worker.output()
    assert job.get_status(refresh=True) in status.split(" or ")
    assert {other.get_status(refresh=True) for other in others} == {"finished"}
    assert "outside of a job" not in worker.output() and "could not be recorded" not in worker.output()
