"""What others left behind: ids in intermediate lists, entries without a job, half executions, jobs in no list."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
from engine import Engine, engine
from keys import named
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, JobStatus
from support import running_worker, wait_until

import rq_pooled
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.parent import cleaner as orphans
from rq_pooled.store.repair import remove_executions, remove_ghosts, rescue_intermediate, rescue_jobs


@pytest.fixture
def ours(server: EmbeddedServer, redis: Redis) -> Iterator[Engine]:
    """A ledger with two registered workers."""
    with engine(server.url) as one:
        one.register("w", "x")
        yield one


def leave(redis: Redis, job: Job) -> None:
    """Do what a stock worker has done when it is killed between its BLMOVE and the start of the job."""
    assert (
        redis.lmove(named("rq:queue:default"), named("rq:queue:default:intermediate"), "LEFT", "RIGHT")
        == job.id.encode()
    )


# -- intermediate lists ----------------------------------------------------------------------------------------------


def test_an_id_is_rescued_before_rq_fails_it() -> None:
    """The look that sees an id, and the first one after its age, both come within the minute after which RQ fails
    it.
    """
    looks = math.ceil(orphans.INTERMEDIATE_AGE / orphans.INTERMEDIATE_INTERVAL) + 1
    assert looks * orphans.INTERMEDIATE_INTERVAL < 60


def test_an_id_left_in_an_intermediate_list_is_rescued(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A job that a stock worker popped and did not start runs, by the third look at the latest."""
    queue = Queue(connection=redis)
    job = queue.enqueue(jobs.add, 1, 2)
    leave(redis, job)
    with running_worker(server.url, log=tmp_path / "log", worker_class="impatient_worker.Worker") as worker:
        wait_until(lambda: job.get_status() == JobStatus.FINISHED)
        worker.wait_for(named(f"job {job.id} was left in rq:queue:default:intermediate; put back into its queue"))
    assert redis.keys("*intermediate*") == []


def test_only_what_stays_is_rescued(ours: Engine, redis: Redis) -> None:
    """Ids pass through an intermediate list all the time: one counts as left when it was there for the whole age."""
    queue = Queue(connection=redis)
    job = queue.enqueue(jobs.nothing)

    def look(age: float = 1000) -> list[tuple[bytes, bytes, int]]:
        return [tuple(found) for found in ours.run(rescue_intermediate([queue.key], age))]

    leave(redis, job)
    assert look() == look() == [] and redis.llen(f"{queue.key}:intermediate") == 1
    redis.zadd(named("rq_pooled:intermediate:default"), {job.id: 1})
    redis.lrem(f"{queue.key}:intermediate", 1, job.id)  # it was started in time
    assert look(1) == [] and not redis.exists(named("rq_pooled:intermediate:default"))
    redis.rpush(f"{queue.key}:intermediate", job.id)  # and passes once more
    assert look(1) == []
    IntermediateQueue(queue.key, redis).set_first_seen(job.id)
    redis.zadd(named("rq_pooled:intermediate:default"), {job.id: 1})
    assert look(1) == [(job.id.encode(), queue.key.encode(), 1)]
    assert redis.lrange(queue.key, 0, -1) == [job.id.encode()]
    assert redis.keys("*intermediate*") == [], "RQ must not take the next pass for this one"


def test_a_job_that_a_stock_worker_registered_but_did_not_begin_is_rescued(ours: Engine, redis: Redis) -> None:
    """A stock worker registers an execution before it forks: killed in between, its job has not begun, and goes
    back.
    """
    queue = Queue(connection=redis)
    job = queue.enqueue(jobs.nothing)
    leave(redis, job)
    with redis.pipeline() as pipeline:
        execution = Execution.create(job, ttl=100, pipeline=pipeline)
        pipeline.zadd(named("rq:wip:default"), {execution.composite_key: time.time() + 100})
        pipeline.execute()
    redis.zadd(named("rq_pooled:intermediate:default"), {job.id: 1})
    assert ours.run(rescue_intermediate([queue.key], 1)) == [[job.id.encode(), queue.key.encode(), 1]]
    assert queue.job_ids == [job.id]
    assert not redis.exists(named("rq:wip:default"), *redis.keys(named("rq:execution*")))


@pytest.mark.parametrize("state", ["running", "running, but queued again", "gone", "finished"])
def test_what_need_not_run_is_only_removed(ours: Engine, redis: Redis, state: str) -> None:
    """A left id whose job runs, is gone or has ended is taken out of the list and not queued."""
    queue = Queue(connection=redis)
    job = queue.enqueue(jobs.nothing)
    if state.startswith("running"):
        ours.claim("w")
        if state != "running":
            job.set_status(JobStatus.QUEUED)
    else:
        redis.delete(queue.key)
        job.delete() if state == "gone" else job.set_status(JobStatus.FINISHED)
    redis.rpush(f"{queue.key}:intermediate", job.id)
    redis.zadd(named("rq_pooled:intermediate:default"), {job.id: 1})
    assert ours.run(rescue_intermediate([queue.key], 1)) == [[job.id.encode(), queue.key.encode(), 0]]
    assert redis.llen(queue.key) == 0
    assert redis.keys("*intermediate*") == []


@pytest.mark.parametrize("broken", ["list", "job", "executions", "id", "queue"])
def test_what_others_wrote_keeps_no_left_id_from_its_queue(ours: Engine, redis: Redis, broken: str) -> None:
    """An id that is no text, and keys of another type, leave the rescue of all other ids as it is."""
    queue = Queue(connection=redis)
    job = queue.enqueue(jobs.nothing)
    leave(redis, job)
    marks: dict[bytes | str, float] = {job.id: 1}
    if broken == "list":
        redis.set(named("rq:queue:odd:intermediate"), "no list")
        redis.sadd(named("rq:queues"), named("rq:queue:odd"))
    else:
        odd = b"\xff" if broken == "id" else b"odd"
        redis.hset(named(b"rq:job:") + odd, mapping={"data": "x", "status": "started"})
        redis.lpush(named("rq:queue:default:intermediate"), odd)
        marks[odd] = 1
        if broken == "job":
            redis.delete(named("rq:job:odd"))
            redis.set(named("rq:job:odd"), "no hash")
        elif broken == "executions":
            redis.set(named("rq:executions:odd"), "no sorted set")
        elif broken == "queue":
            redis.hset(named("rq:job:odd"), "origin", b"\xff")
    redis.zadd(named("rq_pooled:intermediate:default"), marks)
    found = ours.run(rescue_intermediate([queue.key], 1))
    assert [job.id.encode(), queue.key.encode(), 1] in found
    assert job.id.encode() in redis.lrange(queue.key, 0, -1)


# -- entries without a job -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [False, True])
def test_maintenance_removes_entries_without_a_job(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, odd: bool
) -> None:
    """Ghosts go from RQ's registries in bounded pages; entries whose job exists, and scheduled ones, stay.

    A registry that is a key of another type keeps no other from it.
    """
    queue = Queue(connection=redis)
    real = queue.enqueue(jobs.nothing)
    redis.delete(queue.key)
    far = time.time() + 10_000
    for name in ("failed", "finished", "deferred", "canceled", "scheduled"):
        redis.zadd(named(f"rq:{name}:default"), {f"ghost-{i}": far for i in range(1200)} | {real.id: far})
    if odd:
        redis.set(named("rq:finished:default"), "no registry")
    redis.hset(named("rq:execution:half:1"), "last_heartbeat", "1")
    redis.zadd(named("rq:executions:half"), {"1": far})
    settings = {
        "RQ_POOLED_HEARTBEAT_INTERVAL": "0.3",
        "RQ_POOLED_HEARTBEAT_TTL": "1",
        "RQ_POOLED_RECONNECT_CAP": "0.3",
    }
    with running_worker(server.url, "--maintenance-interval", "1", log=tmp_path / "log", **settings) as worker:
        worker.wait_for("registry entries and executions without a job", timeout=40)
        wait_until(lambda: "Failed jobs of default: ghosts did 1200" in worker.output())
        assert f"removed {2401 if odd else 3601} registry entries" in worker.output()
        wait_until(lambda: not redis.exists(named("rq:execution:half:1")), what="the end of the round")
    for name in ("failed", *(() if odd else ("finished",)), "deferred", "canceled"):
        assert redis.zrange(named(f"rq:{name}:default"), 0, -1) == [real.id.encode()], name
    assert redis.zcard(named("rq:scheduled:default")) == 1201
    assert not redis.exists(named("rq:execution:half:1"), named("rq:executions:half"))


def test_executions_that_somebody_holds_are_left_alone(ours: Engine, redis: Redis) -> None:
    """A standing claim keeps its execution, whatever its hash looks like; halves and orphans of others go."""
    queue = Queue(connection=redis)
    for name in "ab":
        queue.enqueue(jobs.nothing, job_id=name)
    held, dead = ours.claim("w", "x").claims
    redis.hdel(named(f"rq:execution:{held.member}"), "created_at")
    redis.hdel(named(f"rq:execution:{dead.member}"), "created_at")
    redis.zrem(named("rq:wip:default"), dead.member)
    redis.hset(named("rq:execution:nobody:1"), mapping={"id": "1", "created_at": "1"})
    with pytest.raises(KeyError):  # what a half does to RQ
        Job.fetch("b", redis).delete()
    cursor, removed = ours.run(remove_executions("0", 10_000, "t", 10))
    assert (cursor, removed) == (b"0", 2)
    assert redis.keys(named("rq:execution:*")) == [named(f"rq:execution:{held.member}").encode()]
    Job.fetch("b", redis).delete()


def test_one_worker_at_a_time_looks_for_ghosts(ours: Engine, redis: Redis) -> None:
    """While one worker goes through the registries, others find the lock and do nothing."""
    redis.zadd(named("rq:failed:default"), {"ghost": 1})
    redis.set(named("rq_pooled:lock:ghosts"), "other", ex=10)
    assert ours.run(remove_ghosts(named("rq:failed:default"), "0", 10, "me", 10)) == [b"-1", 0]
    redis.delete(named("rq_pooled:lock:ghosts"))
    assert ours.run(remove_ghosts(named("rq:failed:default"), "0", 10, "me", 10)) == [b"0", 1]
    assert redis.get(named("rq_pooled:lock:ghosts")) == b"me"


# -- jobs in no list -------------------------------------------------------------------------------------------------


def rescue(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``rq-pooled rescue``."""
    line = [sys.executable, "-m", "rq_pooled", "rescue", "--url", url, *options]
    return subprocess.run(line, capture_output=True, text=True, timeout=50, check=False)


def lose(redis: Redis, queue: Queue, job_id: str, age: float = 7200) -> Job:
    """Make a job that a stock worker has popped and lost, so many seconds ago."""
    job = queue.enqueue(jobs.add, 1, 2, job_id=job_id)
    redis.lrem(queue.key, 1, job.id)
    written = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() - age))
    redis.hset(job.key, "enqueued_at", written)
    return job


def test_rescue_finds_jobs_in_no_list(server: EmbeddedServer, redis: Redis) -> None:
    """Only queued jobs that stand nowhere and are old enough are found; they are listed first, and put back on
    demand.
    """
    queue = Queue(connection=redis)
    lost = lose(redis, queue, "lost")
    lose(redis, queue, "young", age=60)
    waiting = queue.enqueue(jobs.nothing)
    redis.hset(waiting.key, "enqueued_at", "2020-01-01T00:00:00.000000Z")
    for name, key in (("popped", named("rq:queue:default:intermediate")), ("elsewhere", named("rq:queue:other"))):
        redis.rpush(key, lose(redis, queue, name).id)
    redis.sadd(named("rq:queues"), named("rq:queue:other"))
    lose(redis, queue, "ended").set_status(JobStatus.FINISHED)

    listed = rescue(server.url)
    assert listed.returncode == 0 and "lost  default" in listed.stdout and "found 1 job; --apply" in listed.stdout
    assert lost.id not in queue.job_ids
    applied = rescue(server.url, "--apply", "--json")
    assert [job["id"] for job in json.loads(applied.stdout)["jobs"]] == ["lost"]
    assert queue.job_ids == [waiting.id, "lost"]
    assert "no lost jobs" in rescue(server.url, "--apply").stdout
    unknown = rescue(server.url, "--older-than", "1m", "--queue", "unknown")
    assert unknown.returncode == 2 and "there is no queue 'unknown'" in unknown.stderr
    assert "young" in rescue(server.url, "--older-than", "30s").stdout


def test_a_job_that_was_enqueued_meanwhile_is_not_put_back(ours: Engine, redis: Redis) -> None:
    """What was enqueued anew after the look from outside is another run, which somebody may just be starting."""
    job = lose(redis, Queue(connection=redis), "lost")
    written = str(redis.hget(job.key, "enqueued_at").decode())
    for seen, found in (("2020-01-01T00:00:00.000000Z", []), (written, [b"lost"])):
        assert ours.run(rescue_jobs(True, [(job.id, seen)])) == found
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"lost"]


def test_rescue_refuses_and_gives_up_in_words(server: EmbeddedServer) -> None:
    """A malformed duration is a usage error, a lost server may be tried again; neither shows a traceback."""
    malformed = rescue(server.url, "--older-than", "soon")
    assert malformed.returncode == 2 and "--older-than is soon" in malformed.stderr
    away = rescue("redis://127.0.0.1:1/0")
    assert away.returncode == 75 and "Traceback" not in away.stderr


def test_a_job_that_runs_where_it_was_enqueued_is_not_lost(redis: Redis, server: EmbeddedServer) -> None:
    """A job of Queue(is_async=False) says while it runs that it has started, so that nobody takes it for a lost one."""
    queue = rq_pooled.Queue("default", connection=redis, is_async=False)
    job = queue.enqueue("orphan_jobs.own_status")
    assert job.return_value() == "started"
    assert job.get_status() == JobStatus.FINISHED


def test_queues_in_which_programs_run_jobs_themselves_are_left_out(server: EmbeddedServer, redis: Redis) -> None:
    """A job that stock RQ runs in its own program looks lost; where one has run that way, none is touched unasked."""
    Queue("inline", connection=redis, is_async=False).enqueue(jobs.add, 1, 2)
    queue = Queue("inline", connection=redis)
    lose(redis, queue, "running")
    unasked = rescue(server.url, "--apply")
    assert "no lost jobs" in unasked.stdout and "left out: inline" in unasked.stderr and queue.job_ids == []
    asked = rescue(server.url, "--apply", "--queue", "inline")
    assert "put back 1 job" in asked.stdout and queue.job_ids == ["running"]
