"""Every kind of job, value and queue works where signatures are required, in a real worker."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import rq
import signed_jobs
from commands import run_command
from keys import named
from rq.group import Group
from rq.serializers import JSONSerializer
from signing_scene import K1, K2, Signing
from support import running_worker, wait_until

from rq_pooled import Queue
from rq_pooled.errors import QueueFull
from rq_pooled.rq_api import RQ3


def none_failed(signing: Signing) -> bool:
    return not signing.redis.zcard(named("rq:failed:default"))


def test_buried_and_requeued(signing: Signing) -> None:
    """A signed job that failed is found by its function, buried, requeued from the dead letters, and verifies."""
    queue = Queue("default", connection=signing.redis)
    callback = rq.Callback(signed_jobs.on_success)
    queue.enqueue(signed_jobs.fail_once, "back", job_id="a", on_success=callback, meta={"a": 1})
    signing.work()
    url, which = signing.server.url, ("--function", "signed_jobs.fail_once")
    assert run_command(url, "sweep", "--bury", *which).returncode == 0
    assert none_failed(signing)
    assert run_command(url, "sweep", "--dead", "--requeue", *which).returncode == 0
    signing.work()
    assert signing.ran == ["back", "success of a"]


@pytest.mark.parametrize("size", [1_000_000, 20_000_000])
def test_large_values(signing: Signing, size: int) -> None:
    """Arguments and results of 1 MB and 20 MB are signed, verified and read back."""
    queue, value = Queue("default", connection=signing.redis), "0123456789" * (size // 10)
    queue.enqueue(signed_jobs.length, value, job_id="a")
    signing.work()
    job = queue.fetch_job("a")
    assert signing.ran == [str(size)] and job is not None and job.return_value() == value


def test_meta_of_all_kinds(signing: Signing) -> None:
    """Meta of any type is verified, written back by the job, and read with its types."""
    queue = Queue("default", connection=signing.redis)
    moment = datetime(2026, 1, 2, tzinfo=timezone.utc)
    kinds: list[Any] = [{}, {"n": None}, {"m": moment, "s": {1, 2}, "b": b"\0\xff"}, {1: {"deep": [1.5, (True,)]}}]
    kinds += [{"unserialized": "a word of RQ's"}, {"big": "x" * 100_000}]
    for index, meta in enumerate(kinds):
        queue.enqueue(signed_jobs.meta_of_all_kinds, "w", job_id=f"m{index}", meta=meta)
    signing.work()
    assert none_failed(signing), signing.redis.zrange(named("rq:failed:default"), 0, -1)
    for index, meta in enumerate(kinds):
        job = queue.fetch_job(f"m{index}")
        assert job is not None and job.get_meta() == meta


def test_groups_and_repeats(signing: Signing) -> None:
    """Jobs of a group that come again verify each time, and the group counts them."""
    queue = Queue("default", connection=signing.redis)
    data = Queue.prepare_data(signed_jobs.note, ("grouped",), job_id="g")
    group = Group.create(connection=signing.redis, name="group")
    group.enqueue_many(queue, [data])
    queue.enqueue(signed_jobs.with_meta, "repeated", job_id="r", repeat=rq.Repeat(times=2, interval=0), meta={"n": 1})
    wait_until(lambda: signing.work() and len(signing.ran) >= 4, 30)
    assert sorted(signing.ran) == ["grouped", "repeated", "repeated", "repeated"] and none_failed(signing)
    assert signing.redis.smembers(named("rq:group:group")) == {b"g"}


@pytest.mark.skipif(not RQ3, reason="of RQ 3")
def test_rate_limits_of_rq(signing: Signing) -> None:
    """Jobs that a limit of RQ 3 holds back wait, run when their turn comes, and verify."""
    queue = Queue("default", connection=signing.redis)
    for index in range(4):
        limit = rq.RateLimit("key", 1)  # type: ignore[attr-defined]
        queue.enqueue(signed_jobs.slowly, str(index), job_id=f"j{index}", rate_limit=limit, meta={"n": index})
    assert signing.redis.llen(named("rq:queue:default")) == 1
    wait_until(lambda: signing.work() and len(signing.ran) == 4, 30)
    assert none_failed(signing)


def test_limits_of_ours(signing: Signing) -> None:
    """`limit`, `max_running`, `max_length` and `unique_for` do with signed jobs what they do with others."""
    queue = Queue("default", connection=signing.redis, limit="2/1s", max_running=1, max_length=4)
    first = queue.enqueue(signed_jobs.slowly, "0", unique_for=60)
    assert queue.enqueue(signed_jobs.slowly, "0", unique_for=60).id == first.id
    for index in range(1, 4):
        queue.enqueue(signed_jobs.slowly, str(index))
    with pytest.raises(QueueFull):
        queue.enqueue(signed_jobs.slowly, "too many")
    wait_until(lambda: signing.work() and len(signing.ran) == 4, 30)
    assert none_failed(signing)


@pytest.mark.skipif(not hasattr(rq, "Webhook"), reason="of newer RQ")
def test_webhooks(signing: Signing) -> None:
    """Webhooks of a signed job are sent; of a job whose webhook was altered, none is."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            pass

    web = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{web.server_address[1]}"
        queue = Queue("default", connection=signing.redis)
        for job_id in ("good", "altered"):
            hooks = [rq.Webhook(f"{url}/{job_id}", status, method="POST") for status in ("finished", "failed")]
            queue.enqueue(signed_jobs.note, job_id, job_id=job_id, webhooks=hooks)
        text = signing.redis.hget(named("rq:job:altered"), "webhooks") or b""
        signing.redis.hset(named("rq:job:altered"), "webhooks", text.replace(b"/altered", b"/stolen"))
        signing.work()
        wait_until(lambda: seen == ["/good"], 10)
    finally:
        web.shutdown()
        web.server_close()
        thread.join()
    assert signing.ran == ["good"] and signing.refused("altered")


def test_custom_job_class(signing: Signing) -> None:
    """A job class of a user's own is signed and verified as RQ's is, with its own fields beside."""
    queue = Queue("default", connection=signing.redis, job_class=signed_jobs.Custom)
    for job_id in ("good", "bad"):
        queue.enqueue(signed_jobs.fail_once, job_id, job_id=job_id, retry=rq.Retry(1), meta={"a": 1})
    signing.redis.hset(named("rq:job:bad"), "timeout", "1")
    signing.work("--job-class", "signed_jobs.Custom")
    assert signing.ran == ["good"] and signing.refused("bad")
    assert signing.redis.hget(named("rq:job:good"), "tenant") == b"t1"


def test_json_serializer(signing: Signing) -> None:
    """What the JSON serializer writes is signed and verified; a pickle in its place is not loaded."""
    queue = Queue("default", connection=signing.redis, serializer=JSONSerializer)
    for job_id in ("good", "bad"):
        queue.enqueue(signed_jobs.with_meta, job_id, job_id=job_id, meta={"count": 1})
    signing.redis.hset(named("rq:job:bad"), "data", json.dumps(["signed_jobs.note", None, ["FORGED"], {}]))
    signing.work("--serializer", "json")
    assert signing.ran == ["good"] and signing.refused("bad")
    job = queue.fetch_job("good")
    assert job is not None and (job.return_value(), job.meta) == ("good", {"count": 2})


def test_rotation_under_load(signing: Signing, tmp_path: Path) -> None:
    """While jobs are enqueued and run, keys are added, put first and removed as docs/security.md says: none is lost."""
    count = 0

    def enqueue(number: int) -> None:
        nonlocal count
        queue = Queue("default", connection=signing.redis)
        for _ in range(number):
            queue.enqueue(signed_jobs.slowly, str(count), job_id=f"j{count}", meta={"n": count})
            count += 1

    for keys in (K1, f"{K1},{K2}", f"{K2},{K1}", K2):
        # The workers change first, and jobs of the step before still wait.
        signing.use(keys)
        with running_worker(
            signing.server.url, "default", log=tmp_path / f"log{count}", RQ_POOLED_SIGNING_KEYS=keys
        ) as worker:
            enqueue(40)
            wait_until(lambda: len(signing.ran) > count - 30, 30)
            if keys == f"{K2},{K1}":
                # The old key is removed when no job that it signed is left.
                wait_until(lambda: len(signing.ran) == count, 30)
            worker.process.terminate()
            worker.wait()
    signing.work()
    assert none_failed(signing) and sorted(map(int, signing.ran)) == list(range(count))


def test_one_purpose_for_another(signing: Signing) -> None:
    """What was signed as one field is none of the others: callbacks, what is called, and other jobs' signatures."""
    queue = Queue("default", connection=signing.redis)
    redis, callback = signing.redis, rq.Callback(signed_jobs.on_success)
    for job_id in ("callback-as-other", "others-signature", "others-field-and-data", "stopped"):
        queue.enqueue(signed_jobs.note, job_id, job_id=job_id, on_success=callback, on_failure=None)
    donor = queue.enqueue(signed_jobs.note, "donor", job_id="donor", on_failure=rq.Callback(signed_jobs.on_failure))
    given = redis.hgetall(donor.key)
    swapped = {"success_callback_name": "", "failure_callback_name": "signed_jobs.on_success"}
    redis.hset(named("rq:job:callback-as-other"), mapping=swapped)
    redis.hset(named("rq:job:others-signature"), "rq_pooled:signature", given[b"rq_pooled:signature"])
    redis.hset(named("rq:job:others-field-and-data"), mapping=given)  # type: ignore[arg-type]
    redis.hset(named("rq:job:stopped"), "stopped_callback_name", "signed_jobs.on_success")
    signing.work()
    assert signing.ran == ["donor"]
    for job_id in ("callback-as-other", "others-signature", "others-field-and-data", "stopped"):
        assert signing.refused(job_id)


def test_a_stock_worker_without_keys(signing: Signing) -> None:
    """A stock worker of a queue with signed jobs and no key refuses each, whatever its meta, callbacks and retries."""
    queue = Queue("default", connection=signing.redis)
    callback = rq.Callback(signed_jobs.on_success)
    queue.enqueue(signed_jobs.note, "a", job_id="a", meta={"a": 1}, on_success=callback, retry=rq.Retry(1))
    signing.use(None)
    signing.work(worker_class="rq.worker.SimpleWorker")
    assert signing.ran == [] and signing.status("a") == "failed"
