"""What an attacker who can write to Redis tries. Nothing of a job that does not verify is loaded, called or sent."""

from __future__ import annotations

import os
import pickle
import zlib
from base64 import b64decode, b64encode
from typing import Any

import pytest
import rq
import signed_jobs
from commands import run
from keys import named
from rq import Callback, Retry
from rq.job import Job
from signed_jobs import Evil
from signing_scene import K1, K2, Signing

from rq_pooled import Queue, SignedSerializer
from rq_pooled.errors import NotVerified
from rq_pooled.rq_api import RQ3

EVIL_CALL = ("signed_jobs.note", None, (Evil(),), {})


def genuine(signing: Signing, job_id: str, **options: Any) -> Job:
    """Enqueue a job that verifies."""
    return Queue("default", connection=signing.redis).enqueue(signed_jobs.note, job_id, job_id=job_id, **options)


def copied(signing: Signing, job_id: str, new_id: str, queue: str = "default") -> None:
    """Copy a job's hash to another id, and put it into a queue."""
    signing.redis.hset(named(f"rq:job:{new_id}"), mapping=signing.redis.hgetall(named(f"rq:job:{job_id}")))  # type: ignore[arg-type]
    signing.redis.rpush(named(f"rq:queue:{queue}"), new_id)


def data_of(signing: Signing, job_id: str) -> bytes:
    return zlib.decompress(signing.redis.hget(named(f"rq:job:{job_id}"), "data") or b"")


def test_whatever_is_altered_is_refused(signing: Signing) -> None:
    """A forged or altered job fails with the reason: its data, its meta, its id, its queue and each signed field."""
    fields = {
        "success_callback_name": "signed_jobs.on_success",
        "failure_callback_name": "signed_jobs.on_failure",
        "stopped_callback_name": "os.abort",
        "success_callback_timeout": "1",
        "webhooks": '[{"url": "http://127.0.0.1:9/", "job_status": "failed"}]',
        "timeout": "-1",
        "retry_intervals": "[0]",
        "repeat_intervals": "[0]",
        "rq_pooled:retry": '{"max": 5}',
        "dependency_ids": '["good"]',
        "dependency_id": "good",
        "allow_dependency_failures": "1",
        "created_at": "2026-01-01T00:00:00.000000Z",
    }
    redis = signing.redis
    for name, value in fields.items():
        genuine(signing, f"altered-{name.replace(':', '-')}")
        redis.hset(named(f"rq:job:altered-{name.replace(':', '-')}"), name, value)
    genuine(signing, "exchanged", on_success=Callback(signed_jobs.on_success))
    redis.hset(named("rq:job:exchanged"), "success_callback_name", "signed_jobs.on_failure")
    genuine(signing, "flipped")
    data = bytearray(data_of(signing, "flipped"))
    data[-40] ^= 1
    redis.hset(named("rq:job:flipped"), "data", zlib.compress(bytes(data)))
    genuine(signing, "unpickled")
    redis.hset(named("rq:job:unpickled"), "data", zlib.compress(pickle.dumps(EVIL_CALL)))
    genuine(signing, "no-field")
    redis.hdel(named("rq:job:no-field"), "rq_pooled:signature")
    genuine(signing, "meta", meta={"a": 1})
    redis.hset(named("rq:job:meta"), "meta", pickle.dumps(Evil()))
    genuine(signing, "meta-added")
    redis.hset(named("rq:job:meta-added"), "meta", pickle.dumps(Evil()))
    genuine(signing, "result-added")
    redis.hset(named("rq:job:result-added"), "result", pickle.dumps(Evil()))
    rq.Queue("default", connection=redis).enqueue(signed_jobs.note, "unsigned", job_id="unsigned")
    genuine(signing, "good", meta={"a": 1})
    copied(signing, "good", "copied")
    genuine(signing, "moved")
    redis.lrem(named("rq:queue:default"), 0, "moved")
    redis.rpush(named("rq:queue:other"), "moved")
    genuine(signing, "moved-origin")
    redis.hset(named("rq:job:moved-origin"), "origin", "other")
    redis.lrem(named("rq:queue:default"), 0, "moved-origin")
    redis.rpush(named("rq:queue:other"), "moved-origin")
    genuine(signing, "last")
    output = signing.work()

    altered = {one for one in (b.decode() for b in redis.zrange(named("rq:failed:default"), 0, -1))}
    altered |= {one.decode() for one in redis.zrange(named("rq:failed:other"), 0, -1)}
    assert signing.ran == ["result-added", "good", "last"], output
    expected = {f"altered-{name.replace(':', '-')}" for name in fields}
    others = {"exchanged", "flipped", "unpickled", "no-field", "meta", "meta-added", "unsigned", "copied"}
    assert altered == expected | others | {"moved", "moved-origin"}
    for job_id in sorted(altered):
        assert signing.refused(job_id)
    assert "another job" in signing.refused("copied") and "another queue" in signing.refused("moved")
    assert "its meta" in signing.refused("meta") and "not signed" in signing.refused("unsigned")


def test_what_a_job_works_on_is_bound(signing: Signing) -> None:
    """A job is refused whose dependency was exchanged, whose meta was removed, or which has meta of an earlier job."""
    redis, queue = signing.redis, Queue("default", connection=signing.redis)
    for job_id in ("one", "two"):
        genuine(signing, job_id)
    genuine(signing, "waits", depends_on="one")
    redis.hset(named("rq:job:waits"), mapping={"dependency_ids": '["two"]', "dependency_id": "two"})
    genuine(signing, "waits-no-more", depends_on="one")
    redis.hdel(named("rq:job:waits-no-more"), "dependency_ids", "dependency_id")
    for removed in ("hdel", "emptied"):
        genuine(signing, removed, meta={"dry_run": True})
    redis.hdel(named("rq:job:hdel"), "meta")
    redis.hset(named("rq:job:emptied"), "meta", "")
    # The same call under the same id, so that the meta alone tells them apart.
    genuine(signing, "daily", meta={"tenant": "first"})
    earlier = redis.hget(named("rq:job:daily"), "meta")
    redis.lrem(named("rq:queue:default"), 0, "daily")
    genuine(signing, "daily", meta={"tenant": "second"})
    redis.hset(named("rq:job:daily"), "meta", earlier)
    job = queue.fetch_job("daily")
    assert job is not None and job.meta != {"tenant": "first"}
    with pytest.raises(NotVerified, match="earlier job"):
        job.get_meta()
    signing.work()
    assert signing.ran == ["one", "two"]
    assert "dependencies" in signing.refused("waits") and "dependencies" in signing.refused("waits-no-more")
    assert "removed" in signing.refused("hdel") and "removed" in signing.refused("emptied")
    assert "earlier job" in signing.refused("daily")


def test_each_purpose_swapped_for_another(signing: Signing) -> None:
    """A result or meta shaped like a call is no call, a call is no meta, and none of them is a result."""
    call = ("signed_jobs.note", None, ("SWAPPED",), {})
    queue = Queue("default", connection=signing.redis)
    queue.enqueue(signed_jobs.echo, call, job_id="echo", meta={"m": 1})
    queue.enqueue(signed_jobs.echo, {"m": 1}, job_id="two", meta={"m": 1})
    signing.work()
    job, two = queue.fetch_job("echo"), queue.fetch_job("two")
    assert job is not None and two is not None and job.return_value() == call
    redis = signing.redis
    entry = redis.xrange(named("rq:results:echo"))[0][1]
    result = b64decode(entry[b"return_value"])
    meta = redis.hget(named("rq:job:echo"), "meta") or b""
    data = data_of(signing, "echo")
    for name, field, value in (
        ("result-as-call", "data", zlib.compress(result)),
        ("meta-as-call", "data", zlib.compress(meta)),
        ("result-as-meta", "meta", result),
        ("call-as-meta", "meta", data),
        ("others-meta", "meta", redis.hget(named("rq:job:two"), "meta")),
    ):
        redis.hset(named("rq:job:echo"), field, value)
        redis.rpush(named("rq:queue:default"), "echo")
        signing.work()
        assert signing.refused("echo"), name
        redis.hset(named("rq:job:echo"), mapping={"data": zlib.compress(data), "meta": meta})
    # Where results are read, too.
    redis.delete(named("rq:results:echo"))
    for other in (meta, data, b64decode(redis.xrange(named("rq:results:two"))[0][1][b"return_value"])):
        redis.xadd(named("rq:results:echo"), {**entry, b"return_value": b64encode(other)})
        with pytest.raises(ValueError, match="signed"):
            job.return_value(refresh=True)
    assert signing.ran == ["echo", "echo"]


def test_a_serializer_signs_for_one_use_too(signing: Signing) -> None:
    """Under plain RQ, what SignedSerializer signed as a result of one job is no call, and no result of another."""
    signing.use(SIGNING_UNBOUND="yes")
    queue = rq.Queue("default", connection=signing.redis, serializer=SignedSerializer)
    queue.enqueue(signed_jobs.echo, EVIL_CALL[:2] + (("SWAPPED",), {}), job_id="echo")
    stock = ("--serializer", "rq_pooled.SignedSerializer")
    signing.work(*stock, worker_class="rq.worker.SimpleWorker")
    result = b64decode(signing.redis.xrange(named("rq:results:echo"))[0][1][b"return_value"])
    for worker_class in ("rq.worker.SimpleWorker", "rq_pooled.Worker"):
        signing.redis.hset(named("rq:job:echo"), mapping={"data": zlib.compress(result), "status": "queued"})
        signing.redis.rpush(named("rq:queue:default"), "echo")
        signing.work(*stock, worker_class=worker_class)
        assert signing.status("echo") == "failed"
    assert signing.ran == ["echo"]


def test_unbound_jobs(signing: Signing) -> None:
    """A plain queue's job that SignedSerializer signed runs only with SIGNING_UNBOUND, and never with callbacks."""
    queue = rq.Queue("default", connection=signing.redis, serializer=SignedSerializer)
    queue.enqueue(signed_jobs.note, "refused", job_id="a")
    signing.work()
    assert "SIGNING_UNBOUND" in signing.refused("a")
    signing.use(SIGNING_UNBOUND="yes")
    queue.enqueue(signed_jobs.note, "runs", job_id="b", meta={"a": 1})
    queue.enqueue(signed_jobs.note, "called back", job_id="c", on_success=Callback(signed_jobs.on_success))
    genuine(signing, "stripped", on_success=Callback(signed_jobs.on_success))
    signing.redis.hdel(named("rq:job:stripped"), "rq_pooled:signature", "success_callback_name")
    signing.work()
    assert "callbacks" in signing.refused("c") and "missing" in signing.refused("stripped")
    assert signing.ran == ["runs"]


def test_wrong_keys(signing: Signing) -> None:
    """A job is refused that another key signed, or another secret under the name of a known key."""
    signing.use(K2)
    genuine(signing, "unknown")
    signing.use("k1:an-attackers-own-secret")
    genuine(signing, "guessed", on_failure=Callback(signed_jobs.on_failure))
    signing.use(K1)
    signing.work()
    assert "'k2'" in signing.refused("unknown") and "wrong" in signing.refused("guessed")
    assert signing.ran == []


def test_a_worker_without_keys_does_not_run_signed_jobs(signing: Signing) -> None:
    """Without keys, our worker fails signed jobs as stock RQ does, and runs others."""
    genuine(signing, "a")
    signing.use(None)
    rq.Queue("default", connection=signing.redis).enqueue(signed_jobs.note, "plain")
    signing.work()
    assert signing.ran == ["plain"] and "DeserializationError" in signing.reason("a")


@pytest.mark.parametrize("size", [1, 100 * 1024 * 1024])
def test_garbage(signing: Signing, size: int) -> None:
    """Garbage of any size in the place of data is refused, and the next job runs."""
    genuine(signing, "a")
    genuine(signing, "next")
    signing.redis.hset(named("rq:job:a"), "data", os.urandom(1) * size)
    signing.work()
    assert signing.refused("a") and signing.ran == ["next"]


def test_a_bomb_is_not_unpacked(signing: Signing) -> None:
    """A gigabyte that was packed into a megabyte costs its job 64 MB and no more, as a dependent too."""
    packer = zlib.compressobj(9)
    block = bytes(1024 * 1024)
    bomb = b"".join([*(packer.compress(block) for _ in range(1024)), packer.flush()])
    first = genuine(signing, "first")
    genuine(signing, "dependent", depends_on=first)
    for job_id in ("bomb", "error"):
        genuine(signing, job_id)
    genuine(signing, "next")
    signing.redis.hset(named("rq:job:dependent"), "data", bomb)
    signing.redis.hset(named("rq:job:bomb"), "data", bomb)
    signing.redis.hset(named("rq:job:error"), "exc_info", bomb)
    output = signing.work(RQ_POOLED_MAX_HORSE_MEMORY="300")
    assert "64 MB" in signing.refused("bomb") and signing.refused("dependent")
    assert signing.ran == ["first", "error", "next"]
    assert "above MAX_HORSE_MEMORY" not in output


def test_dependents_see_a_failure(signing: Signing) -> None:
    """Those that wait for a refused job are treated as after any failure: kept back, or queued if that is allowed."""
    bad = genuine(signing, "bad", on_failure=Callback(signed_jobs.on_failure))
    genuine(signing, "waits", depends_on=bad)
    genuine(signing, "goes-on", depends_on=rq.job.Dependency(bad, allow_failure=True))
    signing.redis.hset(named("rq:job:bad"), "failure_callback_name", "os.abort")
    output = signing.work()
    assert signing.refused("bad") and signing.status("waits") == "deferred"
    assert signing.ran == ["goes-on"], output


def test_maintenance_calls_no_forged_callback(signing: Signing) -> None:
    """RQ's clean-up calls no callback that an attacker wrote into a hash, and no exception handler with such a job."""
    genuine(signing, "a", on_failure=Callback(signed_jobs.on_failure))
    redis = signing.redis
    redis.delete(named("rq:queue:default"))
    for job_id, name in (("good", None), ("bad", "signed_jobs.forged")):
        genuine(signing, job_id, on_failure=Callback(signed_jobs.on_failure))
        redis.lrem(named("rq:queue:default"), 0, job_id)
        redis.hset(named(f"rq:job:{job_id}"), "status", "started")
        redis.zadd(named("rq:wip:default"), {f"{job_id}:e": 1})
        if name:
            redis.hset(named(f"rq:job:{job_id}"), "failure_callback_name", name)
    genuine(signing, "next")
    signing.work("--exception-handler", "signed_jobs.handler")
    assert [word for word in signing.ran if "of bad" in word] == []
    assert {"failure of good", "handler of good", "next"} <= set(signing.ran)
    assert signing.status("bad") == signing.status("good") == "failed"


@pytest.mark.parametrize("retry", [None, Retry(max=2)], ids=["fails", "is retried"])
@pytest.mark.parametrize("registry", ["wip", *(["ready"] if RQ3 else [])])
def test_maintenance_moves_no_job_to_another_queue(signing: Signing, registry: str, retry: Retry | None) -> None:
    """A genuine job that stands in a registry of another queue is neither run nor signed for it, and calls nothing."""
    redis = signing.redis
    genuine(signing, "good", on_failure=Callback(signed_jobs.on_failure), retry=retry)
    before = redis.hgetall(named("rq:job:good"))
    redis.delete(named("rq:queue:default"))
    redis.sadd(named("rq:queues"), named("rq:queue:other"))
    redis.hset(named("rq:job:good"), "status", {"wip": "started", "ready": "ready_to_enqueue"}[registry])
    redis.zadd(named(f"rq:{registry}:other"), {"good:e" if registry == "wip" else "good": 1})
    for _ in range(2):
        signing.work("other")
    after = redis.hgetall(named("rq:job:good"))
    assert signing.ran == []
    assert all(after[name] == before[name] for name in (b"origin", b"rq_pooled:signature", b"data"))


def test_rq_unpacks_with_a_bound() -> None:
    """In a process with keys RQ's own `restore`, which dependents pass, keeps a bomb packed."""
    code = (
        "import zlib, redis, rq.job; from rq_pooled.horse.screening import use_in_jobs;"
        "from rq_pooled.signing.keys import parse_keys; from rq_pooled.signing.policy import Policy;"
        "use_in_jobs(Policy(parse_keys('k1:a-secret-of-a-test', '')));"
        "bomb = zlib.compress(bytes(70 * 2**20)); job = rq.job.Job('x', connection=redis.Redis());"
        "job.restore({b'data': bomb}); assert job.data == bomb;"
        "job.restore({b'data': zlib.compress(b'small')}); assert job.data == b'small'"
    )
    result = run(["-c", code])
    assert result.returncode == 0, result.stderr
