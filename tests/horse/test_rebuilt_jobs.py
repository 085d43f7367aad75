"""A job that is rebuilt after one of its kind is the job that RQ's own code reads from its hash."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Queue, Repeat, Retry
from rq.job import Job

from rq_pooled.horse.kinds import Kinds


def read(redis: Redis, job: Job) -> tuple[Job, dict[bytes, bytes]]:
    """A job as RQ reads it, and its hash."""
    raw: dict[bytes, bytes] = redis.hgetall(job.key)
    there = Job(job.id, connection=redis)
    there.restore(raw)
    return there, raw


def attributes(job: Job) -> dict[str, Any]:
    """What a job is, without what is no value; lists by their content."""
    return {**vars(job), "connection": None}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"result_ttl": 30, "failure_ttl": 40, "job_timeout": 7},
        {"ttl": 90, "at_front": True},
        {"retry": Retry(max=2, interval=[1, 2])},
        {"repeat": Repeat(times=2, interval=[3])},
        {"on_success": Callback("jobs.add", timeout=3)},
    ],
)
def test_a_job_of_a_known_kind_is_what_rq_reads(redis: Redis, options: dict[str, Any]) -> None:
    """Each attribute has the value that RQ gives it, and changing one job in place changes no other."""
    queue, kinds = Queue("default", connection=redis), Kinds()
    first, raw = read(redis, queue.enqueue("jobs.add", 1, 2, **options))
    assert kinds.rebuild(queue.key, first.id, raw) is None
    kinds.note(queue.key, first, raw)
    # As jobs do while they run, before the next one is read.
    first.meta["seen"] = True
    first.webhooks.append("x")  # type: ignore[arg-type]
    for call in (("jobs.add", "ä", [3] * 100), ("math.factorial", 5)):
        other, raw = read(redis, queue.enqueue(*call, **options))
        mine = kinds.rebuild(queue.key, other.id, raw)
        assert mine is not None and type(mine) is Job
        assert attributes(mine) == attributes(other)
        assert mine.connection is redis
        assert (mine.func_name, list(mine.args), mine.get_status(refresh=False)) == (
            *(other.func_name, list(other.args)),
            other.get_status(refresh=False),
        )
        mine.meta["seen"] = True
        mine.webhooks.append("x")  # type: ignore[arg-type]
        if mine.retry_intervals:
            mine.retry_intervals.append(9)


@pytest.mark.parametrize("options", [{"meta": {"a": 1}}, {"result_ttl": 5}])
def test_a_job_that_differs_is_left_to_rq(redis: Redis, options: dict[str, Any]) -> None:
    """A job with another field than the one before is not made from it; nor is one on another queue."""
    queue, kinds = Queue("default", connection=redis), Kinds()
    kinds.note(queue.key, *read(redis, queue.enqueue("jobs.add", 1, 2)))
    other, raw = read(redis, queue.enqueue("jobs.add", 1, 2, **options))
    assert kinds.rebuild(queue.key, other.id, raw) is None
    same, raw = read(redis, queue.enqueue("jobs.add", 1, 2))
    assert kinds.rebuild("rq:queue:other", same.id, raw) is None
    assert kinds.rebuild(queue.key, "a:b", raw) is None
    assert kinds.rebuild(queue.key, same.id, {**raw, b"created_at": b"yesterday"}) is None


def test_a_known_kind_keeps_no_arguments(redis: Redis) -> None:
    """What a job was called with is not kept in the process for the jobs after it."""
    queue, kinds = Queue("default", connection=redis), Kinds()
    kinds.note(queue.key, *read(redis, queue.enqueue("jobs.add", "x" * 10_000, 2, description="y" * 10_000)))
    assert len(repr(vars(kinds))) < 5_000
    other, raw = read(redis, queue.enqueue("jobs.add", 1, 2))
    assert kinds.rebuild(queue.key, other.id, raw) is not None


def test_what_cannot_be_shared_makes_no_kind(redis: Redis) -> None:
    """A job whose meta or webhooks are objects of its own is read by RQ each time."""
    queue, kinds = Queue("default", connection=redis), Kinds()
    for _ in range(2):
        job, raw = read(redis, queue.enqueue("jobs.add", 1, 2, meta={"a": [1]}))
        assert kinds.rebuild(queue.key, job.id, raw) is None
        kinds.note(queue.key, job, raw)


def test_what_wraps_rqs_reading_sees_each_job(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Job.restore is wrapped, no job is made without it."""
    queue, kinds = Queue("default", connection=redis), Kinds()
    job, raw = read(redis, queue.enqueue("jobs.add", 1, 2))
    kinds.note(queue.key, job, raw)
    assert kinds.rebuild(queue.key, job.id, raw) is not None
    original = Job.restore

    @functools.wraps(original)
    def wrapped(self: Job, *args: Any) -> Any:
        return original(self, *args)

    monkeypatch.setattr(Job, "restore", wrapped)
    assert kinds.rebuild(queue.key, job.id, raw) is None
