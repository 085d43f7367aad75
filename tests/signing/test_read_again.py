"""What an attacker writes after a job was verified: nothing of it is used, nor signed by those who hold the keys."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import rq
import signed_jobs
from keys import named
from rq import Callback
from rq.job import Job
from signing_scene import K1, Signing
from support import wait_until

from rq_pooled import Queue, Scheduler, SignedSerializer
from rq_pooled.errors import NotVerified


def test_a_job_that_reads_itself_again(signing: Signing) -> None:
    """A job that calls `refresh` while it runs gets no callback that was written meanwhile, and fails with the reason;
    what workers write themselves it reads."""
    queue = Queue("default", connection=signing.redis)
    queue.enqueue(signed_jobs.read_again, "success_callback_name", "signed_jobs.forged", job_id="forged")
    queue.enqueue(signed_jobs.read_again, "retries_left", "0", job_id="fine", retry=rq.Retry(2))
    signing.work()
    assert signing.ran == ["retries_left 180"]
    assert signing.status("forged") == "failed" and signing.status("fine") == "finished"
    assert "is not read again: the signature of its fields is wrong" in signing.reason("forged")


@pytest.mark.parametrize("keys", [K1, None])
def test_unbound_jobs_that_read_themselves_again(signing: Signing, keys: str | None) -> None:
    """So do jobs that a serializer signed, and, with an allow-list alone, jobs that nothing signed."""
    unbound = {"SIGNING_UNBOUND": "yes"} if keys else {}
    signing.use(keys, ALLOWED="signed_jobs.read_again", **unbound)
    serializer = SignedSerializer if keys else None
    queue = rq.Queue("default", connection=signing.redis, serializer=serializer)
    queue.enqueue(signed_jobs.read_again, "success_callback_name", "signed_jobs.forged", job_id="forged")
    queue.enqueue(signed_jobs.read_again, "result_ttl", "60", job_id="fine")
    signing.work()
    assert signing.ran == ["result_ttl 180"] and signing.status("forged") == "failed"
    assert "callbacks" in signing.reason("forged")


def test_a_producer_signs_nothing_that_it_reads_again(signing: Signing) -> None:
    """A process that polls its job with `refresh` and saves it makes no forged callback genuine."""
    queue = Queue("default", connection=signing.redis)
    job = queue.enqueue(signed_jobs.note, "a", job_id="a", meta={"n": 1})
    job.refresh()
    job.meta["n"] = 2
    job.save()
    signing.redis.hset(named("rq:job:a"), "failure_callback_name", "os.abort")
    with pytest.raises(NotVerified, match="job a was changed in Redis"):
        job.refresh()
    job.save()
    assert signing.redis.hget(named("rq:job:a"), "failure_callback_name") == b""
    signing.redis.hdel(named("rq:job:a"), "rq_pooled:signature")
    with pytest.raises(NotVerified, match="missing"):
        job.refresh()
    job.save()
    signing.work()
    assert signing.ran == ["a"]


WAYS: dict[str, Callable[[Signing, Job], Any]] = {
    "its queue": lambda signing, job: Queue("default", connection=signing.redis).enqueue_job(job),
    "another queue": lambda signing, job: Queue("other", connection=signing.redis).enqueue_job(job),
    "its schedule": lambda signing, job: Queue("default", connection=signing.redis).schedule_job(
        job, datetime.now(timezone.utc) - timedelta(seconds=1)
    ),
    "rq-scheduler": lambda signing, job: Scheduler("default", connection=signing.redis).enqueue_job(job),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_call_signs_nothing_that_others_wrote(signing: Signing, way: str) -> None:
    """A fetched job whose arguments the application sets is not signed with a callback that was forged, whatever became
    of its hash meanwhile; a genuine one is, and its callback is called."""
    queue = Queue("default", connection=signing.redis)

    def changed(job_id: str) -> Job:
        fetched = queue.fetch_job(job_id)
        assert fetched is not None
        fetched.args = (f"{fetched.args[0]} again",)
        return fetched

    for job_id in ("forged", "gone", "genuine"):
        callback = Callback(signed_jobs.on_success) if job_id == "genuine" else None
        queue.enqueue(signed_jobs.note, job_id, job_id=job_id, on_success=callback)
    signing.work()
    for job_id in ("forged", "gone"):
        signing.redis.hset(named(f"rq:job:{job_id}"), "success_callback_name", "signed_jobs.forged")
        job = changed(job_id)
        if job_id == "gone":
            signing.redis.delete(named("rq:job:gone"))
        with pytest.raises(
            NotVerified, match="is not signed for the queue .* callbacks or webhooks by Queue.create_job"
        ):
            WAYS[way](signing, job)
    WAYS[way](signing, changed("genuine"))

    def all_done() -> bool:
        signing.work()
        return not signing.redis.zcard(named("rq:scheduled:default"))

    wait_until(all_done, 30)
    ended = ["genuine", "success of genuine", "genuine again", "success of genuine"]
    assert signing.ran == ["forged", "gone", *ended]


@pytest.mark.parametrize("forged", ["timeout", "rq_pooled:signature", "created_at"])
def test_a_changed_call_signs_nothing_else_that_others_wrote(signing: Signing, forged: str) -> None:
    """Nor is one signed whose other fields were altered, or removed."""
    queue = Queue("default", connection=signing.redis)
    queue.enqueue(signed_jobs.note, "a", job_id="a")
    signing.work()
    if forged == "timeout":
        signing.redis.hset(named("rq:job:a"), "timeout", "-1")
    else:
        signing.redis.hdel(named("rq:job:a"), forged)
    job = queue.fetch_job("a")
    assert job is not None
    job.args = (f"{job.args[0]} again",)
    with pytest.raises(NotVerified, match="is not signed for the queue"):
        queue.enqueue_job(job)


def test_a_changed_job_is_signed_while_unsigned_ones_are_accepted(signing: Signing) -> None:
    """During a migration a job that was never signed, and whose arguments change, is signed and runs."""
    signing.use(None)
    Queue("default", connection=signing.redis).enqueue(signed_jobs.note, "a", job_id="a")
    signing.use(K1, signing="accept-unsigned")
    signing.work()
    queue = Queue("default", connection=signing.redis)
    job = queue.fetch_job("a")
    assert job is not None
    job.args = (f"{job.args[0]} again",)
    queue.enqueue_job(job)
    signing.use(K1)
    signing.work()
    assert signing.ran == ["a", "a again"]


def test_a_job_that_job_create_made(signing: Signing) -> None:
    """Without callbacks and webhooks a job of `Job.create` is signed, since nothing is in it but its call."""
    queue = Queue("default", connection=signing.redis)
    with_callback = Job.create(
        signed_jobs.note, ("a",), connection=signing.redis, on_success=Callback(signed_jobs.on_success)
    )
    with pytest.raises(NotVerified, match="Queue.create_job"):
        queue.enqueue_job(with_callback)
    queue.enqueue_job(Job.create(signed_jobs.note, ("b",), connection=signing.redis))
    job = queue.enqueue_job(queue.create_job(signed_jobs.note, ("c",), on_success=Callback(signed_jobs.on_success)))
    signing.work()
    assert signing.ran == ["b", "c", f"success of {job.id}"]
