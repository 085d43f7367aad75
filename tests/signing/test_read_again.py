"""What an attacker writes after a job was verified: nothing of it is used, nor signed by those who hold the keys."""

from __future__ import annotations

import pytest
import rq
import signed_jobs
from keys import named
from signing_scene import K1, Signing

from rq_pooled import Queue, SignedSerializer
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
