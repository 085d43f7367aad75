"""A job whose hash cannot be read fails with that reason; its horse, and the jobs after it, go on."""

from __future__ import annotations

import pytest
import signed_jobs
from keys import named
from rq import Retry
from rq.job import Job
from signing_scene import Signing

from rq_pooled import Queue
from rq_pooled.horse.screening import Screened
from rq_pooled.signing.policy import current

#: Values that RQ cannot read, or reads and fails at later, of fields that no signature covers.
SPOILT: dict[str, tuple[bytes, ...]] = {
    "enqueued_at": (b"9" * 5000,),
    "ended_at": (b"\xff",),
    "last_heartbeat": (b"never",),
    "enqueue_at_front": (b"",),
    "description": (b"\xff",),
    "group_id": (b"\xff",),
    "result_ttl": (b"x",),
    "failure_ttl": (b"x",),
    "ttl": (b"x",),
    "number_of_retries": (b"x",),
    "retries_left": (b"x",),
    "repeats_left": (b"x",),
    "enqueue_at_front_on_retry": (b"x",),
}
#: The same of fields that a signature covers.
COVERED: dict[str, tuple[bytes, ...]] = {
    "allow_dependency_failures": (b"x",),
    "dependency_id": (b"\xff",),
    "dependency_ids": (b"[", b"\xff", b"7", b'{"a": 1}', b"[7]", b"[null]", b'["\\ud800"]'),
    "created_at": (b"yesterday", b"\xff"),
    "timeout": (b"x",),
    "success_callback_name": (b"\xff",),
    "success_callback_timeout": (b"x",),
    "retry_intervals": (b"[", b"7", b'{"a": 1}'),
    "repeat_intervals": (b"7",),
}


@pytest.mark.parametrize("signs", [True, False])
def test_a_job_that_cannot_be_read_fails_with_the_field(signing: Signing, signs: bool) -> None:
    """It fails with the name of the field, does not run, keeps that field, and ends no horse, signed or not."""
    if not signs:
        signing.use(None)
    queue, redis = Queue("default", connection=signing.redis), signing.redis
    spoilt = {}
    for name, values in (SPOILT if signs else {**SPOILT, **COVERED}).items():
        for number, value in enumerate(values):
            job = queue.enqueue(signed_jobs.note, "spoilt", job_id=f"{name}-{number}", retry=Retry(2))
            redis.hset(job.key, name, value)
            spoilt[job.id] = name, value
    queue.enqueue(signed_jobs.note, "last")
    output = signing.work()
    assert signing.ran == ["last"], output
    for job_id, (name, value) in spoilt.items():
        assert signing.status(job_id) == "failed" and redis.zscore(named("rq:failed:default"), job_id)
        reason = signing.reason(job_id)
        assert reason.startswith(f"rq.exceptions.DeserializationError: {name} of its hash cannot be read: "), reason
        assert redis.hget(named(f"rq:job:{job_id}"), name) == value or name in ("ended_at", "last_heartbeat")
    assert "died" not in output and "Traceback" not in output
    raw = redis.hgetall(named("rq:job:ended_at-0"))
    # It is no attack.
    assert Screened(current(), Job("ended_at-0", connection=redis), queue, raw).counted("x") == []


@pytest.mark.parametrize("job_id", [b"a:b", b"\xff", b"a b", b"x\n", b"x" * 100_000])
def test_a_job_whose_id_rq_refuses_fails_with_that(signing: Signing, job_id: bytes) -> None:
    """An id that RQ takes for none fails its job alone, with RQ's words, and ends no horse."""
    signing.use(None)
    redis, queue = signing.redis, Queue("default", connection=signing.redis)
    first = queue.enqueue(signed_jobs.note, "first")
    redis.hset(named(b"rq:job:") + job_id, mapping=redis.hgetall(first.key))  # type: ignore[arg-type]
    redis.rpush(named("rq:queue:default"), job_id)
    queue.enqueue(signed_jobs.note, "last")
    output = signing.work()
    if redis.zscore(named("rq:failed:default"), job_id) is None:
        # This version of RQ takes it.
        assert signing.ran == ["first", "first", "last"]
    assert "died" not in output and "Traceback" not in output and signing.ran[-1] == "last"


def test_a_refused_job_that_cannot_be_read_is_refused(signing: Signing) -> None:
    """A job that does not verify, and has a date that is none, fails since it does not verify."""
    job = Queue("default", connection=signing.redis).enqueue(signed_jobs.note, "forged", job_id="forged")
    signing.redis.hset(job.key, mapping={"created_at": "yesterday", "timeout": "9"})
    output = signing.work()
    assert "the signature of its fields is wrong" in signing.refused("forged")
    assert not signing.ran and "died" not in output


def test_a_job_with_no_interval_of_retries_is_tried_again(signing: Signing) -> None:
    """An empty list of intervals means none, and the retry is recorded."""
    signing.use(None)
    job = Queue("default", connection=signing.redis).enqueue("math.sqrt", -1, job_id="again", retry=Retry(1))
    signing.redis.hset(job.key, "retry_intervals", "[]")
    output = signing.work()
    assert "math domain error" in signing.reason("again") or "nonnegative" in signing.reason("again")
    assert "died" not in output and signing.redis.hget(job.key, "retries_left") == b"0"
