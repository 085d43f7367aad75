"""Jobs of our Scheduler are signed as others are; what stands in its schedule without a signature is not loaded."""

from __future__ import annotations

import json
import pickle
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import rq_scheduler
import signed_jobs
from commands import run_command
from keys import named
from rq import Callback
from rq.job import Job
from signing_scene import K1, Signing
from support import wait_until

from rq_pooled import Queue, Scheduler
from rq_pooled.store.keys import SCHEDULED_JOBS

PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize("mover", ["scheduler", "worker"])
def test_every_way_to_schedule(signing: Signing, mover: str) -> None:
    """Jobs scheduled once, at intervals and by cron lines verify each time they run, whoever moves them."""
    scheduler = Scheduler(connection=signing.redis)
    callback = Callback(signed_jobs.on_success)
    scheduler.enqueue_at(PAST, signed_jobs.note, "once", job_id="once", on_success=callback, meta={"a": 1})
    scheduler.enqueue_in(timedelta(0), signed_jobs.with_meta, "counted", queue_name="other")
    scheduler.schedule(PAST, signed_jobs.with_meta, ["again"], interval=100, repeat=3, id="again", meta={"count": 3})
    scheduler.cron("0 0 * * *", signed_jobs.note, ["cron"], id="cron")
    signing.redis.zadd(SCHEDULED_JOBS, {"cron": 1})
    for turn in (1, 2):
        if mover == "scheduler":
            assert scheduler.enqueue_jobs()
        signing.work(*(["--with-scheduler"] if mover == "worker" else []))
        wait_until(lambda turn=turn: signing.work("--with-scheduler") and len(signing.ran) >= 4 + turn, 20)
        assert not signing.redis.zcard(named("rq:failed:default")) + signing.redis.zcard(named("rq:failed:other"))
        signing.redis.zadd(SCHEDULED_JOBS, {"again": 1})
    assert sorted(signing.ran) == ["again", "again", "counted", "cron", "once", "success of once"]
    job = Queue("default", connection=signing.redis).fetch_job("again")
    assert job is not None and (job.meta["count"], job.meta["repeat"], job.meta["interval"]) == (5, 1, 100)
    assert {job.id for job in scheduler.get_jobs()} == {"again", "cron"}


def test_what_is_forged_in_the_schedule_is_not_loaded(signing: Signing) -> None:
    """No meta in the schedule is unpickled that does not verify: not by a worker that moves jobs, and not where a
    process with keys lists them."""
    scheduler = Scheduler(connection=signing.redis)
    for job_id, meta in (
        ("evil", pickle.dumps({"queue_class_name": "os.path", "e": signed_jobs.Evil()})),
        ("repeats", pickle.dumps({"repeat": 2, "interval": 1, "e": signed_jobs.Evil()})),
    ):
        scheduler.enqueue_at(PAST, signed_jobs.note, job_id, job_id=job_id)
        signing.redis.hset(named(f"rq:job:{job_id}"), "meta", meta)
    rq_scheduler.Scheduler(connection=signing.redis).enqueue_at(PAST, signed_jobs.note, "stock", job_id="stock")
    scheduler.enqueue_at(PAST, signed_jobs.note, "good", job_id="good")
    assert len(list(scheduler.get_jobs())) == 4
    output = ""
    started = time.time()

    def moved() -> bool:
        nonlocal output
        output += signing.work("--with-scheduler")
        return signing.status("stock") == "failed" and "good" in signing.ran

    wait_until(moved, 30)
    assert signing.ran == ["good"] and "not signed" in signing.refused("stock")
    for job_id in ("evil", "repeats"):
        assert f"scheduled job {job_id} cannot be enqueued (NotVerified: its meta does not verify" in output
        due = signing.redis.zscore(SCHEDULED_JOBS, job_id)
        assert due is not None and due > started


def test_a_scheduler_without_keys_leaves_signed_jobs(signing: Signing) -> None:
    """A scheduler that has no keys keeps a signed job that comes again in the schedule, and says what it needs."""
    Scheduler(connection=signing.redis).schedule(PAST, signed_jobs.note, ["again"], interval=100, id="again")
    signing.use(None)
    result = run_command(signing.server.url, "scheduler", "--burst")
    assert "NotVerified: its meta is signed, and there are no keys here: set SIGNING_KEYS" in result.stderr
    assert signing.redis.zscore(SCHEDULED_JOBS, "again") and not signing.redis.llen(named("rq:queue:default"))


@pytest.mark.parametrize("keys", [None, K1])
@pytest.mark.parametrize("allowed", ["signed_jobs.*", None])
def test_a_scheduler_imports_no_class_that_is_not_allowed(
    signing: Signing, tmp_path: Path, allowed: str | None, keys: str | None
) -> None:
    """Of jobs without a signature a queue's class in meta is imported if ALLOWED names it, and used if it is a
    queue's.
    """
    (tmp_path / "forged.py").write_text("import pathlib; pathlib.Path(__file__ + '.imported').touch(); path = 1")
    signing.use(None)
    scheduler = Scheduler(connection=signing.redis)
    for job_id, name in (("forged", "forged.path"), ("own", "rq_pooled.Queue")):
        scheduler.enqueue_at(PAST, signed_jobs.note, job_id, job_id=job_id, meta={"queue_class_name": name})
    signing.use(keys, **({"SIGNING": "accept-unsigned"} if keys else {}), **({"ALLOWED": allowed} if allowed else {}))
    result = run_command(signing.server.url, "scheduler", "--burst", PYTHONPATH=str(tmp_path))
    words = "NotVerified: the class of its queue is 'forged.path'" if allowed else "as the class of its queue, which is"
    assert words in result.stderr and "Traceback" not in result.stderr
    assert (tmp_path / "forged.py.imported").exists() == (allowed is None)
    assert signing.redis.lrange(named("rq:queue:default"), 0, -1) == [b"own"]
    assert signing.redis.zrange(SCHEDULED_JOBS, 0, -1) == [b"forged"]


def test_recurring_sweeps(signing: Signing) -> None:
    """A sweep that `schedule-sweep` registers is signed, listed with its cron line, and runs."""
    queue = Queue("default", connection=signing.redis)
    queue.enqueue(signed_jobs.fail_once, "swept", job_id="swept")
    signing.work()
    assert signing.status("swept") == "failed"
    url = signing.server.url
    what = ("--requeue", "--function", "signed_jobs.fail_*")
    result = run_command(url, "schedule-sweep", "--cron", "0 0 * * *", *what, "--name", "mine", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)[0]["cron"] == "0 0 * * *"
    signing.redis.zadd(SCHEDULED_JOBS, {"rq_pooled-sweep-mine": 1})
    wait_until(lambda: signing.work("--with-scheduler") and "swept" in signing.ran, 30)
    assert not signing.redis.zcard(named("rq:failed:default"))


def test_requeueing_a_dead_letter_loads_nothing_forged(signing: Signing) -> None:
    """`DeadLetterRegistry.requeue` in a process with keys unpickles no meta that does not verify."""
    from rq_pooled.failed.dead_letters import DeadLetterRegistry

    queue = Queue("default", connection=signing.redis)
    for job_id in ("good", "evil"):
        queue.enqueue(signed_jobs.fail_once, job_id, job_id=job_id, meta={"a": 1})
    signing.work()
    registry = DeadLetterRegistry(connection=signing.redis)
    for job_id in ("good", "evil"):
        registry.add(Job(job_id, connection=signing.redis))
    signing.redis.hset(named("rq:job:evil"), "meta", pickle.dumps(signed_jobs.Evil()))
    assert registry.requeue("good").meta == {"a": 1}
    assert isinstance(registry.requeue("evil").meta.get("unserialized"), bytes)
    signing.work()
    assert signing.ran == ["good"] and signing.refused("evil")
