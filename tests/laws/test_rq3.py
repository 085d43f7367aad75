"""What RQ 3 brings: limits on jobs that run at once, executions by worker, a stop for one execution, a prefix of
keys.
"""

from __future__ import annotations

import os
import signal
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import jobs
import pytest
from commands import WAYS, refusal, run, run_command
from engine import engine, finished
from keys import named
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue, Worker
from rq.job import Job, JobStatus
from support import running_worker, wait_until

from rq_pooled import Queue as PooledQueue
from rq_pooled.cli.tables import queue_rows
from rq_pooled.errors import ConfigurationError, QueueFull
from rq_pooled.failed import Sweeper
from rq_pooled.health import queues
from rq_pooled.rq_api import RQ3
from rq_pooled.store.commit import bare_failure
from rq_pooled.store.repair import queue_ready
from rq_pooled.store.scheduled import promote

only_3 = pytest.mark.skipif(not RQ3, reason="of RQ 3")


def limited(redis: Redis, function: Any, *arguments: Any, job_id: str, **options: Any) -> Job:
    """Enqueue a job of a limit of one."""
    from rq import RateLimit

    limit = RateLimit("k", 1)
    return Queue(connection=redis).enqueue(function, *arguments, job_id=job_id, rate_limit=limit, **options)


def ends(job: Job, status: JobStatus = JobStatus.FINISHED) -> None:
    """Wait until a job has this status."""
    wait_until(lambda: job.get_status() == status, 20, f"{job.id} to be {status.value}")


@only_3
@pytest.mark.parametrize("program", ["rq worker", "rq-pooled worker"])
def test_a_worker_class_written_for_rq_2_is_refused(server: Any, redis: Redis, program: str) -> None:
    """A worker class whose ``perform_job`` takes no execution ends in one line, and its jobs stay queued instead of
    failing.
    """
    job = Queue("q", connection=redis).enqueue(jobs.nothing)
    line = refusal(run([*WAYS[program][:-1], "--worker-class", "entry_worker.OldWorker", "q"], server.url))
    assert "entry_worker.OldWorker.perform_job() takes no execution, which rq 3" in line
    assert job.get_status() == JobStatus.QUEUED


@only_3
@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_a_job_cancelled_while_it_runs_frees_its_slot(server: Any, redis: Redis, tmp_path: Path, how: str) -> None:
    """The slot of a job that was cancelled or deleted while it ran is free as soon as it has run to its end."""
    with running_worker(server.url, log=tmp_path / "log", concurrency=2):
        first = limited(redis, jobs.wait_for, "go", "started", job_id="a")
        second = limited(redis, jobs.add, 1, 2, job_id="b")
        wait_until(lambda: redis.llen("started") == 1, what="the first job")
        getattr(first, how)()
        assert second.get_status() == JobStatus.RATE_LIMITED
        redis.rpush("go", 1)
        ends(second)
        wait_until(lambda: not redis.zcard(named("rq:rl:k:allowed")), what="free slots")


@only_3
def test_a_killed_job_frees_its_slot(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A job whose process dies gives its slot to the next one with its failure."""
    with running_worker(server.url, log=tmp_path / "log", concurrency=2):
        first = limited(redis, jobs.wait_for, "go", "started", job_id="a")
        second = limited(redis, jobs.add, 1, 2, job_id="b")
        wait_until(lambda: redis.llen("started") == 1, what="the first job")
        os.kill(int(redis.lindex("started", 0)), signal.SIGKILL)
        ends(first, JobStatus.FAILED)
        ends(second)


@only_3
def test_an_execution_is_stopped(server: Any, redis: Redis, tmp_path: Path) -> None:
    """RQ 3's command stops the execution that it names, and no other of the same worker."""
    from rq.command import send_stop_execution_command

    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", concurrency=2):
        one, two = (queue.enqueue(jobs.wait_for, f"go:{n}", "started") for n in range(2))
        wait_until(lambda: redis.llen("started") == 2, what="both jobs")
        (execution,) = one.get_executions()
        holder = {w.name: w for w in Worker.all(connection=redis)}[str(Job.fetch(one.id, redis).worker_name)]
        assert [e.job_id for e in holder.get_current_executions()] == [one.id]
        send_stop_execution_command(redis, one.id, execution.id)
        ends(one, JobStatus.STOPPED)
        assert two.get_status() == JobStatus.STARTED
        redis.rpush("go:1", 1)
        ends(two)
        assert not redis.keys(named("rq:worker:*:executions"))


@only_3
def test_a_slot_in_a_spoilt_key_costs_no_outcome(server: Any, redis: Redis) -> None:
    """Where a limit's key has another type the outcome is recorded, once, and the key stays as it is."""
    from rq.rate_limit import RELEASE_AND_ENQUEUE_SCRIPT

    with engine(server.url) as ours:
        ours.register("w")
        limited(redis, jobs.add, 1, 2, job_id="a")
        (claim,) = ours.claim("w").claims
        redis.delete(named("rq:rl:k:allowed"))
        redis.set(named("rq:rl:k:allowed"), "spoilt")
        sha1 = redis.script_load(RELEASE_AND_ENQUEUE_SCRIPT)
        keys = (named("rq:rl:k:allowed"), named("rq:rl:k:rate_limited"))
        words = ("EVALSHA", sha1, 2, *keys, 1, 1.0, "now", named("rq:queue:"), named("rq:job:"), "a")
        (answer,) = ours.commit(finished(claim, words))
        assert answer == "ok" and redis.get(named("rq:rl:k:allowed")) == b"spoilt"
        assert Job.fetch("a", redis).get_status() == JobStatus.FINISHED
        assert ours.commit(finished(claim, words)) == ["lost"]


@only_3
def test_a_bare_failure_frees_its_slot(server: Any, redis: Redis) -> None:
    """A job that RQ's code cannot be given lets the next one of its limit in when it is recorded as failed."""
    with engine(server.url) as ours:
        ours.register("w")
        limited(redis, jobs.add, 1, 2, job_id="a")
        second = limited(redis, jobs.add, 1, 2, job_id="b")
        (claim,) = ours.claim("w").claims
        assert ours.commit(bare_failure(claim, "unreadable")) == ["ok"]
        assert second.get_status() == JobStatus.QUEUED
        assert redis.zrange(named("rq:rl:k:allowed"), 0, -1) == [b"b"]


def rate_limit(concurrency: int = 1, key: str = "k") -> Any:
    """Return a limit; RQ 2 has none."""
    from rq import RateLimit

    return RateLimit(key, concurrency)


@only_3
def test_an_enqueue_with_a_limit_is_one_step(server: Any, redis: Redis) -> None:
    """What a process sends for a limited job is one script, so none waits because its process died in between."""
    queue = PooledQueue(connection=redis)
    queue.enqueue(jobs.nothing, rate_limit=rate_limit())  # the connection is set up, the script known
    calls = [redis.info("commandstats")["cmdstat_evalsha"]["calls"]]
    first = queue.enqueue(jobs.nothing, job_id="a", rate_limit=rate_limit(2))
    second = queue.enqueue(jobs.nothing, job_id="b", rate_limit=rate_limit(2))
    calls.append(redis.info("commandstats")["cmdstat_evalsha"]["calls"])
    assert calls[1] - calls[0] == 2
    assert (first.get_status(refresh=False), second.get_status(refresh=False)) == (
        JobStatus.QUEUED,
        JobStatus.RATE_LIMITED,
    )
    assert first.enqueued_at is not None and second.enqueued_at is None
    for job in (first, second):
        stored = Job.fetch(job.id, redis)
        assert (stored.get_status(), stored.enqueued_at) == (job.get_status(refresh=False), job.enqueued_at)
    assert redis.zrange(named("rq:rl:k:rate_limited"), 0, -1) == [b"b"]


@only_3
@pytest.mark.parametrize("at_front", [False, True])
def test_an_enqueue_with_a_limit_leaves_what_rq_leaves(redis: Redis, at_front: bool) -> None:
    """Hash, queue and limit are the same after our one step as after RQ's two, for a job that is let in and one that
    waits.
    """

    def state(kind: type[Queue]) -> dict[str, Any]:
        redis.flushall()
        for name in ("a", "b"):
            kind(connection=redis).enqueue(
                jobs.add, 1, 2, job_id=name, ttl=50, rate_limit=rate_limit(), at_front=at_front, meta={"x": 1}
            )
        found: dict[str, Any] = {}
        for key in sorted(redis.keys(named("rq:*"))):
            kind_of_key = redis.type(key)
            if kind_of_key == b"hash":
                found[key] = (
                    redis.hgetall(key).keys() - {b"enqueued_at"},
                    redis.hmget(key, "status", "enqueue_at_front"),
                )
                found[key] += (bool(redis.hget(key, "enqueued_at")),)
            elif kind_of_key == b"zset":
                found[key] = redis.zrange(key, 0, -1)
            elif kind_of_key == b"list":
                found[key] = redis.lrange(key, 0, -1)
            found[key, "ttl"] = redis.ttl(key)
        return found

    assert state(PooledQueue) == state(Queue)


@only_3
def test_a_full_queue_takes_no_limited_job(redis: Redis) -> None:
    """Jobs that wait for their limit count among those that wait in a queue with ``max_length``."""
    queue = PooledQueue(connection=redis, max_length=2)
    for _ in range(2):
        queue.enqueue(jobs.nothing, rate_limit=rate_limit())
    with pytest.raises(QueueFull, match="has 2 jobs and takes at most 2"):
        queue.enqueue(jobs.nothing, rate_limit=rate_limit())
    assert len(redis.keys(named("rq:job:*"))) == 2
    PooledQueue(connection=redis).enqueue_many([Queue.prepare_data(jobs.nothing)] * 2, rate_limit=rate_limit())
    assert redis.llen(named("rq:queue:default")) == 1 and redis.zcard(named("rq:rl:k:rate_limited")) == 3


@only_3
def test_a_call_that_waits_for_its_limit_is_unique(redis: Redis) -> None:
    """``unique_for`` returns the job with the same call while that waits for its limit."""
    queue = PooledQueue(connection=redis)
    blocker = queue.enqueue(jobs.nothing, rate_limit=rate_limit())
    first = queue.enqueue(jobs.add, 1, 2, rate_limit=rate_limit(), unique_for=60)
    again = queue.enqueue(jobs.add, 1, 2, rate_limit=rate_limit(), unique_for=60)
    assert again.id == first.id != blocker.id and redis.zcard(named("rq:rl:k:rate_limited")) == 1


@only_3
def test_a_spent_key_keeps_a_limited_job_out(server: Any, redis: Redis, tmp_path: Path) -> None:
    """``once`` decides before a job takes a place of its limit."""
    queue = PooledQueue(connection=redis)
    first = queue.enqueue(jobs.add, 1, 2, rate_limit=rate_limit(), once="order")
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait(20) == 0
    assert queue.enqueue(jobs.add, 1, 2, rate_limit=rate_limit(), once="order").id == first.id
    assert redis.zcard(named("rq:rl:k:allowed")) == redis.zcard(named("rq:rl:k:rate_limited")) == 0


@only_3
def test_many_jobs_share_a_limit(server: Any, redis: Redis, tmp_path: Path) -> None:
    """``enqueue_many(..., rate_limit=)`` enqueues all in one step, those with dependencies too, and each runs."""
    queue, limit = PooledQueue(connection=redis), rate_limit(2)
    parent = Queue("other", connection=redis).enqueue(jobs.nothing)
    datas = [Queue.prepare_data(jobs.add, (i, i)) for i in range(5)]
    many = queue.enqueue_many([*datas, Queue.prepare_data(jobs.add, (5, 5), depends_on=parent)], rate_limit=limit)
    assert [job.get_status(refresh=False).value for job in many] == ["queued"] * 2 + ["rate_limited"] * 3 + ["deferred"]
    with running_worker(server.url, "default", "other", log=tmp_path / "log", concurrency=4):
        for job in many:
            ends(job)
    assert redis.zcard(named("rq:rl:k:allowed")) == redis.zcard(named("rq:rl:k:rate_limited")) == 0


@only_3
def test_what_rq_refuses_with_a_limit_is_refused(redis: Redis) -> None:
    """A pipeline, a synchronous queue and ``unique`` are refused with a limit as by RQ, for one job and for many."""
    queue, limit = PooledQueue(connection=redis), rate_limit()
    data = [Queue.prepare_data(jobs.nothing)]
    with redis.pipeline() as pipe:
        for attempt in (
            lambda: queue.enqueue(jobs.nothing, rate_limit=limit, pipeline=pipe),
            lambda: queue.enqueue_many(data, rate_limit=limit, pipeline=pipe),
            lambda: queue.enqueue(jobs.nothing, rate_limit=limit, job_id="a", unique=True),
            lambda: PooledQueue(connection=redis, is_async=False).enqueue(jobs.nothing, rate_limit=limit),
            lambda: PooledQueue(connection=redis, is_async=False).enqueue_many(data, rate_limit=limit),
        ):
            with pytest.raises(ValueError, match=r"rate.limit"):
                attempt()
    with pytest.raises(ConfigurationError, match=r"give an rq\.RateLimit"):
        queue.enqueue_many(data, rate_limit="3/1s")
    assert redis.keys(named("rq:job:*")) == []


@only_3
@pytest.mark.parametrize(
    "key", [named("rq:rl-keys"), named("rq:rl:k"), named("rq:rl:k:allowed"), named("rq:rl:k:rate_limited")]
)
def test_a_limit_that_is_something_else_loses_no_job(server: Any, redis: Redis, tmp_path: Path, key: str) -> None:
    """Where a key of a limit has another type an enqueue raises and writes nothing; a job that is due runs without
    it.
    """
    queue = PooledQueue(connection=redis)
    due = queue.enqueue_in(timedelta(seconds=0.1), jobs.add, 1, 2, rate_limit=rate_limit())
    redis.lpush(key, "x")
    before = sorted(redis.keys("*"))
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        queue.enqueue(jobs.nothing, rate_limit=rate_limit())
    assert sorted(redis.keys("*")) == sorted({*before, named(b"rq:queues")})
    with running_worker(server.url, log=tmp_path / "log"):
        ends(due)


@only_3
def test_a_queue_that_is_none_keeps_its_jobs_waiting(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A job whose queue has become something else stays where it waits when a slot is free, and the others' outcomes
    stand.
    """
    first = limited(redis, jobs.add, 1, 2, job_id="a")
    stuck = Queue("spoilt", connection=redis).enqueue(jobs.nothing, job_id="b", rate_limit=rate_limit())
    redis.set(named("rq:queue:spoilt"), "x")
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait(20) == 0
    ends(first)
    assert redis.zrange(named("rq:rl:k:rate_limited"), 0, -1) == [b"b"] and redis.zcard(named("rq:rl:k:allowed")) == 0
    redis.delete(named("rq:queue:spoilt"))
    with running_worker(server.url, "spoilt", log=tmp_path / "log2"):
        ends(stuck)


@only_3
def test_a_waiting_job_that_cannot_be_queued_stops_no_other(server: Any, redis: Redis) -> None:
    """Waiting entries without a job are dropped, those of a spoilt queue wait on, and the next one gets the slot."""
    limited(redis, jobs.add, 1, 2, job_id="a")
    Queue("spoilt", connection=redis).enqueue(jobs.add, 1, 2, job_id="b", rate_limit=rate_limit())
    redis.set(named("rq:queue:spoilt"), "x")
    redis.set(named("rq:job:c"), "x")
    redis.zadd(named("rq:rl:k:rate_limited"), {"c": 1, b"\xff": 2})
    last = limited(redis, jobs.add, 1, 2, job_id="d")
    with engine(server.url) as ours:
        ours.register("w")
        (claim,) = ours.claim("w").claims
        assert ours.commit(bare_failure(claim, "unreadable")) == ["ok"]
    assert last.get_status() == JobStatus.QUEUED
    assert redis.zrange(named("rq:rl:k:allowed"), 0, -1) == [b"d"]
    assert redis.zrange(named("rq:rl:k:rate_limited"), 0, -1) == [b"b"]


@only_3
@pytest.mark.parametrize("concurrency", ["junk", "0", "-1", "nan", "1e999", "99999999999999999999"])
def test_a_limit_that_is_no_number_is_none(server: Any, redis: Redis, concurrency: str) -> None:
    """A due job whose limit's number is junk or huge is queued, and so is the one behind it."""
    queue = Queue(connection=redis)
    held, plain = (queue.enqueue_in(timedelta(days=1), jobs.add, 1, 2, job_id=name) for name in ("held", "plain"))
    redis.hset(held.key, mapping={"rate_limit_key": "k", "rate_limit_concurrency": concurrency})
    redis.zadd(named("rq:scheduled:default"), {"held": 1, "plain": 2})
    with engine(server.url) as ours:
        ours.run(promote(["default"], "s", {"x": "y"}))
    assert sorted(queue.get_job_ids()) == ["held", "plain"]
    assert redis.hget(held.key, "status") == plain.get_status().value.encode() == b"queued"


@only_3
@pytest.mark.parametrize(
    "key", [named("rq:rl-keys"), named("rq:rl:k"), named("rq:rl:k:allowed"), named("rq:rl:k:rate_limited")]
)
def test_a_due_job_of_a_spoilt_limit_is_queued(server: Any, redis: Redis, key: str) -> None:
    """A due job, one that is requeued and one that was ready are queued where a key of their limit is of another
    type.
    """
    queue = Queue(connection=redis)
    due = limited(redis, jobs.add, 1, 2, job_id="due")
    redis.delete(
        queue.key, named("rq:rl-keys"), named("rq:rl:k"), named("rq:rl:k:allowed"), named("rq:rl:k:rate_limited")
    )
    due.set_status(JobStatus.SCHEDULED)
    redis.zadd(named("rq:scheduled:default"), {"due": 1})
    redis.set(key, "spoilt")
    with engine(server.url) as ours:
        ours.run(promote(["default"], "s", {"x": "y"}))
        assert queue.get_job_ids() == ["due"] and due.get_status() == JobStatus.QUEUED
        redis.delete(queue.key, *{named("rq:rl:k:allowed"), named("rq:rl:k:rate_limited")} - {key})
        due.set_status(JobStatus.READY_TO_ENQUEUE)
        redis.zadd(named("rq:ready:default"), {"due": 1})
        ours.run(queue_ready([queue.key], 1, "now"))
        assert queue.get_job_ids() == ["due"] and due.get_status() == JobStatus.QUEUED
    redis.delete(queue.key, *{named("rq:rl:k:allowed"), named("rq:rl:k:rate_limited")} - {key})
    due.set_status(JobStatus.FAILED)
    redis.zadd(named("rq:failed:default"), {"due": 1})
    assert Sweeper(connection=redis).requeue_ids("default", ["due"]) == {"due": "done"}
    assert queue.get_job_ids() == ["due"] and due.get_status() == JobStatus.QUEUED


@only_3
def test_ready_entries_that_are_odd_stop_nothing(server: Any, redis: Redis) -> None:
    """A registry of another type and ids that are no UTF-8 keep no dependent of another queue from being queued."""
    queue = Queue("b", connection=redis)
    job = queue.enqueue(jobs.add, 1, 2, job_id="a")
    redis.delete(queue.key)
    job.set_status(JobStatus.READY_TO_ENQUEUE)
    redis.set(named("rq:ready:a"), "x")
    redis.set(named("rq:job:spoilt"), "x")
    redis.zadd(named("rq:ready:b"), {b"\xff\xfe": 1, "spoilt": 1, "gone": 1, "a": 2})
    redis.hset(named(b"rq:job:\xff\xfe"), "status", "ready_to_enqueue")
    with engine(server.url) as ours:
        ours.run(queue_ready([named("rq:queue:a"), named("rq:queue:b")], 60, "now"))
    assert redis.lrange(named("rq:queue:b"), 0, -1) == [b"\xff\xfe", b"a"]
    assert not redis.exists(named("rq:ready:b"))


@only_3
def test_dependents_left_ready_are_queued(server: Any, redis: Redis) -> None:
    """What a stock worker noted as ready before it died is queued after the age, by its limit if it has one; not
    before.
    """
    queue = Queue(connection=redis)
    plain, held = queue.enqueue(jobs.add, 1, 2, job_id="plain"), limited(redis, jobs.add, 1, 2, job_id="held")
    redis.delete(queue.key, named("rq:rl:k:allowed"))
    for job in (plain, held):
        job.set_status(JobStatus.READY_TO_ENQUEUE)
        queue.ready_job_registry.add(job)
    redis.zadd(named("rq:rl:k:allowed"), {"other": 1})
    redis.hset(named("rq:job:other"), "status", "started")
    with engine(server.url) as ours:
        assert ours.run(queue_ready([queue.key], 100, "now")) == []
        found = ours.run(queue_ready([queue.key], -1, "2026-01-01T00:00:00.000000Z"))
    assert sorted(found) == [[b"held", named(b"rq:queue:default"), 1], [b"plain", named(b"rq:queue:default"), 1]]
    assert (plain.get_status(), held.get_status()) == (JobStatus.QUEUED, JobStatus.RATE_LIMITED)
    assert queue.get_job_ids() == ["plain"] and redis.zrange(named("rq:rl:k:rate_limited"), 0, -1) == [b"held"]
    assert not redis.exists(named("rq:ready:default"))


@only_3
@pytest.mark.parametrize("key", [named("rq:job:odd"), named("rq:executions:odd")])
def test_an_odd_key_of_an_admitted_job_stops_no_other_limit(server: Any, redis: Redis, key: str) -> None:
    """A slot whose job is no job, or whose executions are none, keeps the jobs of no other limit waiting, and loses
    none of its own that cannot be queued."""
    redis.set(key, "x")
    redis.set(named("rq:queue:spoilt"), "x")
    limited(redis, jobs.nothing, job_id="first")
    Queue("spoilt", connection=redis).enqueue(
        jobs.nothing, job_id="-stuck", rate_limit=rate_limit()
    )  # the first, of one second
    waiting = []
    for name in "kl":
        waiting += [Queue(connection=redis).enqueue(jobs.nothing, rate_limit=rate_limit(1, name)) for _ in range(2)][1:]
        redis.delete(named(f"rq:rl:{name}:allowed"))
        redis.zadd(named(f"rq:rl:{name}:allowed"), {"odd" if name == "k" else "gone": 1})
    with engine(server.url) as ours:
        ours.run(queue_ready([named("rq:queue:default")], 100, "now"))
    assert redis.zrank(named("rq:rl:k:rate_limited"), "-stuck") == 0
    assert waiting[1].get_status() == JobStatus.QUEUED and redis.zrange(named("rq:rl:l:allowed"), 0, -1) == [
        waiting[1].id.encode()
    ]


@only_3
def test_free_slots_are_filled_between_maintenances(server: Any, redis: Redis) -> None:
    """Jobs that wait although a slot is free, as after the end of one on RQ 2, are admitted; a spoilt limit stops no
    other.
    """
    first, second = (limited(redis, jobs.add, 1, 2, job_id=name) for name in "ab")
    redis.delete(named("rq:rl:k:allowed"), named("rq:queue:default"))
    for name in ("spoilt", "without a number"):
        redis.sadd(named("rq:rl-keys"), name)
    redis.set(named("rq:rl:spoilt"), 1)
    first.set_status(JobStatus.FINISHED)
    with engine(server.url) as ours:
        assert ours.run(queue_ready([named("rq:queue:default")], 100, "now")) == []
        assert (second.get_status(), Queue(connection=redis).job_ids) == (JobStatus.QUEUED, ["b"])
        third = limited(redis, jobs.add, 1, 2, job_id="c")
        ours.run(queue_ready([named("rq:queue:default")], 100, "now"))
    assert third.get_status() == JobStatus.RATE_LIMITED and redis.zrange(named("rq:rl:k:allowed"), 0, -1) == [b"b"]


@only_3
def test_queues_count_what_is_held_back(redis: Redis) -> None:
    """Each queue says how many of its jobs wait at rate limits and how many dependents are ready."""
    for name in "abc":
        limited(redis, jobs.add, 1, 2, job_id=name)
    redis.zadd(named("rq:ready:default"), {"x": 1})
    (queue,) = queues(redis)
    assert (queue["length"], queue["rate_limited"], queue["ready"]) == (1, 2, 1)
    header, row = (" ".join(map(str, line)) for line in queue_rows([queue]))
    assert header.endswith("WORKERS RATE LIMITED READY") and row.endswith("0 2 1")
    for key in (named("rq:ready:default"), named("rq:rl-keys")):
        redis.delete(key)
        redis.set(key, "x")
    (queue,) = queues(redis)
    assert (queue["length"], queue["rate_limited"], queue["ready"]) == (1, 0, 0)
    assert queue["unreadable"] == ["ready"]
    assert len(queue_rows([queue])[0]) == 9


@only_3
def test_check_judges_what_is_held_back(server: Any, redis: Redis) -> None:
    """check --rate-limited and --ready count the jobs of all queues or of those named, and refuse what is no number."""
    for queue in ("a", "a", "a", "b", "b"):
        Queue(queue, connection=redis).enqueue(jobs.nothing, rate_limit=rate_limit(1, queue))
    redis.zadd(named("rq:ready:b"), {"x": 1})
    for words, code, text in [
        (("--rate-limited", "4"), 0, "3 jobs at rate limits"),
        (("--rate-limited", "3:4"), 1, "WARNING - 3 jobs at rate limits"),
        (("--rate-limited", "1:2", "--queue", "b"), 1, "WARNING - 1 job at rate limits"),
        (("--rate-limited", "1:2", "--queue", "a"), 2, "CRITICAL - 2 jobs at rate limits"),
        (("--ready", "1", "--queue", "a"), 0, "0 jobs ready and not queued"),
        (("--ready", "1:2"), 1, "WARNING - 1 job ready and not queued"),
        (("--rate-limited", "2", "--ready", "1"), 2, "3 jobs at rate limits; 1 job ready and not queued"),
        (("--ready", "0"), 3, "UNKNOWN - --ready is 0: write it as a number of jobs"),
        (("--rate-limited", "1.5"), 3, "UNKNOWN - --rate-limited is 1.5"),
    ]:
        result = run_command(server.url, "check", *words)
        assert (result.returncode, text in result.stdout, result.stderr) == (code, True, ""), (words, result)


@pytest.mark.skipif(RQ3, reason="of RQ 2")
def test_on_rq_2_a_limited_job_gives_its_slot_back(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A job that RQ 3 has admitted leaves its slot with its outcome on RQ 2, too."""
    job = Queue(connection=redis).enqueue(jobs.add, 1, 2, job_id=uuid.uuid4().hex)
    redis.hset(job.key, mapping={"rate_limit_key": "k", "rate_limit_concurrency": 1})
    redis.zadd(named("rq:rl:k:allowed"), {job.id: 1, "other": 2})
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait(20) == 0
    ends(job)
    assert redis.zrange(named("rq:rl:k:allowed"), 0, -1) == [b"other"]
