"""Signed jobs live as others do: whatever RQ and rq_pooled do with a job, it verifies when it runs."""

from __future__ import annotations

from datetime import timedelta

import pytest
import signed_jobs
from keys import named
from rq import Callback, Repeat, Retry
from rq.group import Group
from rq.job import Job
from signing_scene import K1, K2, Signing
from support import wait_until

import rq_pooled
from rq_pooled import Backoff, Queue


def test_every_way_in(signing: Signing) -> None:
    """Each way to enqueue gives a job that verifies: with callbacks, dependents, retries, repeats, groups, limits."""
    queue = Queue("default", connection=signing.redis, max_running=5)
    callbacks = {"on_success": Callback(signed_jobs.on_success), "on_failure": Callback(signed_jobs.on_failure)}
    plain = queue.enqueue(signed_jobs.note, "plain", job_id="plain", **callbacks)
    queue.enqueue(signed_jobs.note, "dependent", depends_on=plain)
    queue.enqueue(signed_jobs.fail_once, "retried", retry=Retry(2), meta={"why": "x"})
    queue.enqueue(signed_jobs.fail_once, "backed off", retry=Backoff(2, base=0.1, cap=1, on=ValueError), **callbacks)
    queue.enqueue(signed_jobs.with_meta, "repeated", repeat=Repeat(times=1, interval=0), meta={"count": 1})
    queue.enqueue(signed_jobs.enqueue, "from a job")
    queue.enqueue(signed_jobs.note, "once", once="key")
    queue.enqueue(signed_jobs.note, "unique", unique_for=60)
    assert queue.enqueue(signed_jobs.note, "unique", unique_for=60).id != ""
    queue.enqueue_many([Queue.prepare_data(signed_jobs.note, ("many",)) for _ in range(2)])
    Group.create(connection=signing.redis).enqueue_many(queue, [Queue.prepare_data(signed_jobs.note, ("grouped",))])
    queue.enqueue_in(timedelta(seconds=0), signed_jobs.note, "scheduled")
    made = Job.create(signed_jobs.note, ("created",), connection=signing.redis)
    Queue("other", connection=signing.redis).enqueue_job(made)

    def all_done() -> bool:
        signing.work()
        return not signing.redis.zcard(named("rq:scheduled:default"))

    wait_until(all_done, 60)
    assert sorted(signing.ran) == sorted(
        [
            *("plain", "success of plain", "dependent", "retried", "backed off", "repeated", "repeated"),
            *("from a job", "once", "unique", "many", "many", "grouped", "scheduled", "created"),
            *[word for word in signing.ran if word.startswith(("success of ", "failure of ")) and "plain" not in word],
        ]
    )
    assert signing.redis.zcard(named("rq:failed:default")) == signing.redis.zcard(named("rq:failed:other")) == 0


def test_what_is_read_back(signing: Signing) -> None:
    """Through a signed queue, and with SignedSerializer, results, arguments and meta are read as they were written."""
    queue = Queue("default", connection=signing.redis)
    queue.enqueue(signed_jobs.with_meta, "x", job_id="a", meta={"count": 4})
    signing.work()
    for job in (
        queue.fetch_job("a"),
        Job.fetch("a", connection=signing.redis, serializer=rq_pooled.SignedSerializer),
    ):
        assert job is not None
        assert (job.return_value(), job.args, job.meta) == ("x", ("x",), {"count": 5})
        assert job.func_name == "signed_jobs.with_meta"
        assert [result.return_value for result in job.results()] == ["x"]


@pytest.mark.parametrize("step", ["both", "new first"])
def test_rotation_loses_no_job(signing: Signing, step: str) -> None:
    """A new key is added, put first, and the old one removed: jobs of each step run."""
    queue = Queue("default", connection=signing.redis)
    queue.enqueue(signed_jobs.note, "old")
    signing.use(f"{K1},{K2}" if step == "both" else f"{K2},{K1}")
    Queue("default", connection=signing.redis).enqueue(signed_jobs.note, "new")
    signing.work()
    assert signing.ran == ["old", "new"]
    assert not signing.redis.zcard(named("rq:failed:default"))


def test_a_job_of_a_missing_key_runs_after_a_requeue(signing: Signing) -> None:
    """A job that failed since its key was missing keeps its callbacks and retries, and runs once the key is there."""
    queue = Queue("default", connection=signing.redis)
    callback = Callback(signed_jobs.on_success)
    queue.enqueue(signed_jobs.note, "kept", job_id="a", on_success=callback, meta={"a": 1}, retry=Retry(2))
    before = signing.redis.hgetall(named("rq:job:a"))
    signing.use(K2)
    signing.work()
    assert "'k1'" in signing.refused("a") and signing.ran == []
    after = signing.redis.hgetall(named("rq:job:a"))
    changed = {b"status", b"started_at", b"ended_at", b"last_heartbeat", b"worker_name", b"enqueued_at"}
    assert {name: value for name, value in after.items() if name not in changed} == {
        name: value for name, value in before.items() if name not in changed
    }
    signing.use(f"{K2},{K1}")
    queue = Queue("default", connection=signing.redis)
    queue.failed_job_registry.requeue("a")
    signing.work()
    assert signing.ran == ["kept", "success of a"]


def test_meta_through_retries(signing: Signing) -> None:
    """Meta that a job first writes while it runs, empties, or never saves, stop none of its retries; once a retry
    has written them, they cannot be removed."""
    queue = Queue("default", connection=signing.redis)
    for retry in (0, 1):
        options = {"retry": Retry(2, interval=retry)}
        for name, saved, before, value in (
            ("first", True, {}, {"page": 2}),
            ("emptied", True, {"page": 1}, {}),
            ("kept", False, {}, {"page": 2}),
            ("dropped", False, {"page": 1}, {}),
        ):
            job_id = f"{name}{retry}"
            queue.enqueue(signed_jobs.meta_and_fail_once, saved, value, job_id=job_id, meta=before, **options)
    queue.enqueue(signed_jobs.meta_and_fail_once, True, {"page": 2}, job_id="robbed", retry=Retry(2, interval=1))
    signing.work()
    assert signing.redis.hdel(named("rq:job:robbed"), "meta")

    def all_done() -> bool:
        signing.work("--with-scheduler")
        return not signing.redis.zcard(named("rq:scheduled:default"))

    wait_until(all_done, 60)
    assert "its meta was removed" in signing.refused("robbed")
    assert len(signing.ran) == 8, signing.ran
    assert {"first0 {'page': 2}", "first1 {'page': 2}", "emptied0 {}", "emptied1 {}"} < set(signing.ran)


def test_moved_to_another_queue(signing: Signing) -> None:
    """A job that verifies is signed for the queue that it is moved to; a forged one is not made genuine so."""
    queue, other = (Queue(name, connection=signing.redis) for name in ("default", "other"))
    queue.enqueue(signed_jobs.note, "moved", job_id="a", on_success=Callback(signed_jobs.on_success), meta={"n": 1})
    queue.enqueue(signed_jobs.note, "forged", job_id="b", on_success=Callback(signed_jobs.on_success))
    signing.redis.hset(named("rq:job:b"), "success_callback_name", "os.getpid")
    signing.redis.delete(named("rq:queue:default"))
    moved, forged = queue.fetch_job("a"), queue.fetch_job("b")
    assert moved is not None and forged is not None
    other.enqueue_job(moved)
    with pytest.raises(rq_pooled.errors.NotVerified, match="job b is not moved"):
        other.enqueue_job(forged)
    signing.work()
    assert signing.ran == ["moved", "success of a"]


def test_stock_worker_with_the_serializer(signing: Signing) -> None:
    """A stock worker runs jobs of a signed queue with SignedSerializer and keys, and refuses them without."""
    queue = Queue("default", connection=signing.redis)
    queue.enqueue(signed_jobs.note, "with", job_id="a", meta={"x": 1})
    signing.work("--serializer", "rq_pooled.SignedSerializer", worker_class="rq.worker.SimpleWorker")
    job = queue.fetch_job("a")
    assert signing.ran == ["with"] and job is not None and job.return_value() == "with"
    queue.enqueue(signed_jobs.note, "without", job_id="b")
    signing.work(worker_class="rq.worker.SimpleWorker")
    assert signing.ran == ["with"] and signing.status("b") == "failed"
    assert "DeserializationError" in signing.reason("b")
