"""A signed job whose id another had before takes nothing of that one over, and runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import signed_jobs
from keys import named
from redis import Redis
from rq.job import Job
from signing_scene import Signing
from support import wait_until

import rq_pooled
from rq_pooled import Backoff, Queue
from rq_pooled.signing.job import SIGNED

#: What a job whose rules have changed since has left, or others have written.
LEFT: dict[str, Any] = {
    **dict.fromkeys(SIGNED, "x"),
    "webhooks": '[{"url": "http://127.0.0.1:1/", "job_status": "finished"}]',
    "dependency_ids": '["evil"]',
    "retry_intervals": "[1]",
    "repeat_intervals": "[0]",
    "timeout": "1",
    "success_callback_name": "signed_jobs.on_success",
    "meta": b"x",
    "retries_left": "5",
    "repeats_left": "5",
    "created_at": "2026-01-01T00:00:00.000000Z",
}


def in_a_pipeline(queue: Queue, redis: Redis) -> None:
    with redis.pipeline() as pipeline:
        queue.enqueue(signed_jobs.note, "ran", job_id="again", pipeline=pipeline)
        pipeline.execute()


def made_by_hand(queue: Queue, redis: Redis) -> None:
    queue.enqueue_job(Job.create(signed_jobs.note, ("ran",), connection=redis, id="again", origin="default"))


def by_rq_scheduler(queue: Queue, redis: Redis) -> None:
    pytest.importorskip("rq_scheduler")
    scheduler = rq_pooled.Scheduler("default", connection=redis)
    scheduler.enqueue_at(datetime.now(timezone.utc) - timedelta(seconds=1), signed_jobs.note, "ran", job_id="again")
    scheduler.run(burst=True)


DOORS: dict[str, Callable[[Queue, Redis], Any]] = {
    "enqueue": lambda queue, _: queue.enqueue(signed_jobs.note, "ran", job_id="again"),
    "once": lambda queue, _: queue.enqueue(signed_jobs.note, "ran", job_id="again", once="key"),
    "many": lambda queue, _: queue.enqueue_many([Queue.prepare_data(signed_jobs.note, ("ran",), job_id="again")]),
    "later": lambda queue, _: queue.enqueue_in(timedelta(0), signed_jobs.note, "ran", job_id="again"),
    "pipeline": in_a_pipeline,
    "by hand": made_by_hand,
    "rq-scheduler": by_rq_scheduler,
    "dependent": lambda queue, _: queue.enqueue(
        signed_jobs.note, "ran", job_id="again", depends_on=queue.enqueue(signed_jobs.with_meta, "x", job_id="first")
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_an_id_is_used_again(signing: Signing, door: str) -> None:
    """Whatever stands in the hash of an older job, a genuine one with its id verifies, by each way to enqueue."""
    signing.redis.hset(named("rq:job:again"), mapping=LEFT)
    DOORS[door](Queue("default", connection=signing.redis), signing.redis)

    def is_done() -> bool:
        signing.work()
        return not signing.redis.zcard(named("rq:scheduled:default"))

    wait_until(is_done, 60)
    assert [one for one in signing.ran if one != "x"] == ["ran"] and signing.status("again") == "finished"


@pytest.mark.parametrize("most", [None, 100])
def test_a_job_that_is_enqueued_again_keeps_its_rules(signing: Signing, most: int | None) -> None:
    """A job that was fetched and is enqueued in another queue, by a script too, keeps rules and meta, and verifies."""
    rules = Backoff(2, base=0.1, cap=1, on=ValueError)
    queue = Queue("default", connection=signing.redis)
    queue.enqueue(signed_jobs.note, "ran", job_id="a", retry=rules, meta={"count": 1})
    signing.work()
    job = queue.fetch_job("a")
    assert job is not None
    Queue("other", connection=signing.redis, max_length=most).enqueue_job(job)
    signing.work()
    assert signing.ran == ["ran"] * 2 and signing.status("a") == "finished"
    assert signing.redis.hexists(job.key, "rq_pooled:retry")


def test_a_job_that_is_saved_again_keeps_what_others_wrote(signing: Signing) -> None:
    """Saving the same job object once more removes no meta that its worker has written."""
    job = Queue("default", connection=signing.redis).enqueue(signed_jobs.with_meta, "x", job_id="a", meta={"count": 4})
    signing.work()
    job.meta = {}
    with signing.redis.pipeline() as pipeline:
        job.save(pipeline=pipeline)
        pipeline.execute()
    job.save()
    kept = Job.fetch("a", connection=signing.redis, serializer=rq_pooled.SignedSerializer)
    assert kept.meta == {"count": 5}


def test_the_script_forgets_what_is_signed() -> None:
    """The names in the script are those that the signature binds, and what RQ writes of meta, retries and repeats."""
    shared = Path(rq_pooled.__file__).parent / "store" / "lua" / "shared" / "forget_older.lua"
    names = re.findall(r"'([\w:]+)'", shared.read_text().partition("local function")[0])
    assert sorted(names) == sorted([*SIGNED, "meta", "retries_left", "repeats_left"])


@pytest.mark.parametrize("refused", ["-@scripting", "-evalsha", "-script"])
def test_signed_jobs_are_enqueued_where_scripts_are_refused(signing: Signing, refused: str) -> None:
    """A process that may run no scripts schedules and enqueues signed jobs, also in a transaction of its own."""
    signing.redis.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "&*", "+@all", refused)
    with Redis(host=signing.server.host, port=signing.server.port, username="few", password="pw") as client:
        queue = Queue("default", connection=client)
        queue.enqueue_in(timedelta(seconds=60), signed_jobs.note, "later")
        in_a_pipeline(queue, client)
    signing.work()
    assert signing.ran == ["ran"] and signing.redis.zcard(named("rq:scheduled:default")) == 1
