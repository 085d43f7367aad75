"""Spent-once keys: the first success spends the key, atomically with its result; nothing that has the key runs after
it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import claim_jobs
import once_jobs
import pytest
from engine import engine, finished
from keys import named
from redis import Redis
from rq import Queue as StockQueue
from rq import Repeat, Retry
from rq.job import Job, JobStatus
from support import running_worker, wait_until

from rq_pooled import Queue
from rq_pooled.config import Settings
from rq_pooled.errors import AlreadySpent, ConfigurationError
from rq_pooled.pool import Pool
from rq_pooled.store.keys import ENDED
from rq_pooled.store.leases import push_back

KEY = named("rq_pooled:once:order-42")


def lines(path: Path) -> list[str]:
    """What jobs have noted."""
    return path.read_text().split() if path.exists() else []


def run_all(server: Any, tmp_path: Path, *arguments: str, concurrency: int = 1) -> str:
    """Work until the queues are empty; return the log."""
    log = tmp_path / "log"
    with running_worker(server.url, *arguments, "--burst", log=log, concurrency=concurrency, ready=None) as worker:
        assert worker.wait(40) == 0, worker.output()
    return worker.output()


def test_success_spends_the_key_and_the_second_is_a_duplicate(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Of two queued jobs with one key the first runs; the second is finished without running and says why."""
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    first = queue.enqueue(claim_jobs.note, str(notes), once="order-42", once_ttl="30d", job_id="first")
    second = queue.enqueue(claim_jobs.note, str(notes), once="order-42", once_ttl="30d", job_id="second")
    dependent = queue.enqueue(claim_jobs.note, str(notes), depends_on=second, job_id="dependent")
    assert run_all(server, tmp_path).count("not run: its key was spent by job first") == 1
    assert lines(notes) == ["first", "dependent"]
    assert redis.get(KEY) == b"first" and 29 * 86400 < redis.ttl(KEY) <= 30 * 86400
    for job in (first, second, dependent):
        assert job.get_status() == JobStatus.FINISHED
    assert first.return_value() == "noted" and second.return_value() is None
    assert redis.hget(second.key, "rq_pooled_duplicate_of") == b"first"
    assert second.id in queue.finished_job_registry
    assert not redis.exists(named("rq_pooled:once-running:order-42"))


def test_enqueue_after_the_key_was_spent(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Afterwards an enqueue returns the job that spent the key, or raises, as the caller chooses; also when it is
    gone.
    """
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    queue.enqueue(claim_jobs.note, str(notes), once="order-42", job_id="first")
    run_all(server, tmp_path)
    assert redis.ttl(KEY) == -1, "without once_ttl for ever"
    again = queue.enqueue(claim_jobs.note, str(notes), once="order-42", job_id="again")
    assert (again.id, again.return_value()) == ("first", "noted")
    with pytest.raises(AlreadySpent, match="'order-42' was spent by job first") as caught:
        queue.enqueue(claim_jobs.note, str(notes), once="order-42", on_duplicate="raise")
    assert (caught.value.key, caught.value.job_id) == ("order-42", "first")
    later = queue.enqueue_at(again.ended_at, claim_jobs.note, str(notes), once="order-42")
    waiting = queue.enqueue(claim_jobs.note, str(notes), once="order-42", depends_on=again)
    assert (later.id, waiting.id) == ("first", "first")
    with redis.pipeline() as pipeline:
        assert queue.enqueue(claim_jobs.note, str(notes), once="order-42", pipeline=pipeline).id == "first"
        assert len(pipeline) == 0
    again.delete()
    with pytest.raises(AlreadySpent, match="not kept any more"):
        queue.enqueue(claim_jobs.note, str(notes), once="order-42")
    assert queue.count == 0 and not Job.exists("again", redis)


def test_failure_does_not_spend(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A job that fails leaves the key to the next one; one that is tried again spends it when it succeeds."""
    queue, gate, notes = Queue(connection=redis), tmp_path / "gate", tmp_path / "notes"
    failing = queue.enqueue(claim_jobs.fail_unless_file, str(gate), once="order-42")
    run_all(server, tmp_path)
    assert failing.get_status() == JobStatus.FAILED
    assert redis.keys(named("rq_pooled:once*")) == []
    gate.touch()
    tried = queue.enqueue(claim_jobs.fail_unless_file, str(gate), once="order-42", job_id="tried")
    second = queue.enqueue(claim_jobs.note, str(notes), once="order-42")
    failing.requeue()
    run_all(server, tmp_path)
    assert tried.get_status() == second.get_status() == failing.get_status() == JobStatus.FINISHED
    assert redis.get(KEY) == b"tried" and lines(notes) == []


def test_success_that_ends_as_a_failure_does_not_spend(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A worker class whose own handler fails after RQ's makes the job a failure, which spends nothing."""
    job = Queue(connection=redis).enqueue(claim_jobs.nothing, once="order-42")
    with running_worker(
        server.url, "--burst", log=tmp_path / "log", ready=None, worker_class="once_jobs.FailingWorker"
    ) as worker:
        assert worker.wait() == 0
    assert job.get_status() == JobStatus.FAILED
    assert redis.keys(named("rq_pooled:once*")) == []


def test_two_with_one_key_never_run_beside_each_other(server: Any, redis: Redis, tmp_path: Path) -> None:
    """With two workers, a job whose key is in use waits; when the first succeeds it is a duplicate, others pass by."""
    queue, started, gate = Queue(connection=redis), tmp_path / "started", tmp_path / "gate"
    with (
        running_worker(server.url, log=tmp_path / "a", concurrency=2),
        running_worker(server.url, log=tmp_path / "b", concurrency=2),
    ):
        first = queue.enqueue(claim_jobs.wait_for_file, str(started), str(gate), once="order-42")
        wait_until(lambda: first.get_status() == JobStatus.STARTED)
        second = queue.enqueue(claim_jobs.wait_for_file, str(started), str(gate), once="order-42")
        other = queue.enqueue(claim_jobs.nothing, once="order-43")
        wait_until(lambda: other.get_status() == JobStatus.FINISHED)
        assert second.get_status() == JobStatus.QUEUED
        gate.touch()
        wait_until(lambda: second.get_status() == JobStatus.FINISHED)
    assert lines(started) == [first.id]
    assert redis.get(KEY).decode() == first.id


def test_crash_between_run_and_commit(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A process that dies after its work and before its outcome is recorded has spent nothing; the retry spends
    once.
    """
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    job = queue.enqueue(
        once_jobs.note_and_die_at_first,
        str(notes),
        str(tmp_path / "died"),
        once="order-42",
        retry=Retry(1),
        job_id="job",
    )
    second = queue.enqueue(claim_jobs.note, str(notes), once="order-42", job_id="second")
    run_all(server, tmp_path)
    # After the first death the key is free: whichever of the two comes next spends it, the other one does not run.
    assert lines(notes) in (["job", "job"], ["job", "second"])
    spender = redis.get(KEY).decode()
    assert spender == lines(notes)[1]
    assert job.get_status() == second.get_status() == JobStatus.FINISHED


def test_worker_that_dies_holds_the_key_no_longer_than_its_claim(server: Any, redis: Redis, tmp_path: Path) -> None:
    """After kill -9 of a worker the key is in use as long as its claim stands; once that was handed on, the job runs
    and spends the key, and the outcome of the dead worker, should it come late, records nothing and spends nothing."""
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    queue.enqueue(claim_jobs.note, str(notes), once="order-42", job_id="first")
    with engine(server.url, token="dead") as dead:
        (claim,) = dead.claim("dead").claims
        assert redis.exists(named("rq_pooled:once-running:order-42"))
        queue.enqueue(claim_jobs.note, str(notes), once="order-42", job_id="second")
        with engine(server.url, token="alive") as alive:
            claimed = alive.claim("alive")
            assert (claimed.held, claimed.claims) == (1, [])
        dead.run(push_back(dead.settings, dead.token, [claim]))  # what whoever finds the expired lease does
        run_all(server, tmp_path)
        assert redis.get(KEY) == b"first"
        late = finished(claim, ("SET", KEY, "late", "NX"), ("DEL", named("rq_pooled:once-running:order-42")))
        assert dead.commit(late) == ["lost"]
    assert lines(notes) == ["first"]
    assert redis.get(KEY) == b"first"


@pytest.mark.parametrize("options", [{"once": "key"}, {"unique_for": 60}])
def test_an_earlier_job_is_returned_without_unpickling_it(redis: Redis, options: dict[str, Any]) -> None:
    """A web process that is given the earlier job loads nothing that its meta names; plain values are there."""
    queue = Queue(connection=redis)
    first = queue.enqueue(claim_jobs.note, "x", meta={"plain": 1}, **options)
    if "once" in options:
        redis.set(named("rq_pooled:once:key"), first.id)
    redis.hset(first.key, "meta", pickle.dumps({"plain": 1, "bomb": Bomb()}))
    second = queue.enqueue(claim_jobs.note, "x", **options)
    assert second.id == first.id and second.meta["plain"] == 1 and second.args == ("x",)
    assert not hasattr(sys, "exploded")


class Bomb:
    """Would tell, if it was unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("import sys; sys.exploded = True",))


def test_line_break_in_a_job_id_does_not_free_its_key(server: Any, redis: Redis) -> None:
    """A key is in use while its job runs, whatever the job's id is made of."""
    with engine(server.url, token="a") as one:
        for job_id in ("first\n1", "second"):
            fields = {"data": "x", "status": "queued", "origin": "default", "rq_pooled_once": "order-42"}
            redis.hset(named(f"rq:job:{job_id}"), mapping=fields)
            redis.rpush(named("rq:queue:default"), job_id)
        claimed = one.claim("v", "w")
        assert [claim.job_id for claim in claimed.claims] == ["first\n1"] and claimed.held == 1


def test_sigkill_of_a_worker_while_the_job_runs(server: Any, redis: Redis, tmp_path: Path) -> None:
    """After kill -9 of a worker its job comes back under another one and spends the key, once; the second job with the
    key, which waited all the time, is a duplicate."""
    queue, started, gate = Queue(connection=redis), tmp_path / "started", tmp_path / "gate"
    quick = {"RQ_POOLED_HEARTBEAT_INTERVAL": "0.5", "RQ_POOLED_HEARTBEAT_TTL": "3", "RQ_POOLED_STALLED_INTERVAL": "0.5"}
    job = queue.enqueue(claim_jobs.wait_for_file, str(started), str(gate), once="order-42", job_id="job")
    with running_worker(server.url, log=tmp_path / "a", **quick) as worker:
        wait_until(lambda: lines(started))
        second = queue.enqueue(claim_jobs.wait_for_file, str(started), str(gate), once="order-42", job_id="second")
        with running_worker(server.url, log=tmp_path / "b", concurrency=2, **quick):
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
            wait_until(lambda: len(lines(started)) == 2, timeout=30)
            assert not redis.exists(KEY)
            gate.touch()
            wait_until(lambda: job.get_status() == second.get_status() == JobStatus.FINISHED)
    assert lines(started) in (["job", "job"], ["job", "second"])
    assert redis.get(KEY).decode() == lines(started)[1]


def test_duplicate_that_is_enqueued_again_runs_when_its_key_is_free(server: Any, redis: Redis, tmp_path: Path) -> None:
    """That a job was once finished as a duplicate says nothing about its next time under the same id."""
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    with redis.pipeline() as pipeline:
        queue.enqueue(claim_jobs.note, str(notes), once="order-42", pipeline=pipeline, job_id="job")
        pipeline.set(KEY, "another")
        pipeline.execute()
    run_all(server, tmp_path)
    assert redis.hget(named("rq:job:job"), "rq_pooled_duplicate_of") == b"another" and not notes.exists()
    redis.delete(KEY)
    queue.enqueue(claim_jobs.note, str(notes), once="order-42", job_id="job")
    run_all(server, tmp_path)
    assert lines(notes) == ["job"] and redis.get(KEY) == b"job"
    assert not redis.hexists(named("rq:job:job"), "rq_pooled_duplicate_of")


@pytest.mark.parametrize("kind", [Queue, StockQueue])
def test_key_is_that_of_one_enqueue(server: Any, redis: Redis, tmp_path: Path, kind: Any) -> None:
    """Whoever enqueues a finished job's id anew, without a key, has it run again, and spends nothing."""
    notes = tmp_path / "notes"
    Queue(connection=redis).enqueue(claim_jobs.note, str(notes), once="order-42", job_id="job")
    run_all(server, tmp_path)
    kind(connection=redis).enqueue(claim_jobs.note, str(notes), job_id="job")
    run_all(server, tmp_path)
    redis.delete(KEY)
    kind(connection=redis).enqueue(claim_jobs.note, str(notes), job_id="job")
    run_all(server, tmp_path)
    assert lines(notes) == ["job"] * 3 and not redis.exists(KEY)


def test_large_jobs_that_wait_for_their_key_hold_up_nobody(server: Any, redis: Redis) -> None:
    """What is held back is no part of a claim: jobs and queues behind it are served, however large its data are."""
    large = "x" * 400_000
    queue = Queue(connection=redis)
    for i in range(5):
        job = queue.enqueue(claim_jobs.nothing, large, once="order-42", job_id=f"large{i}")
        redis.hset(job.key, "data", large)  # RQ has compressed it
    queue.enqueue(claim_jobs.nothing, job_id="behind")
    Queue("other", connection=redis).enqueue(claim_jobs.nothing, job_id="other")
    with engine(server.url) as ours:
        claimed = ours.claim("a", queues=("default", "other"))
        assert [claim.job_id for claim in claimed.claims] == ["large0"]
        claimed = ours.claim("b", "c", queues=("default", "other"))
        assert [claim.job_id for claim in claimed.claims] == ["behind", "other"]
    assert StockQueue(connection=redis).get_job_ids() == [f"large{i}" for i in range(1, 5)]


@pytest.mark.timeout(150)
def test_a_thousand_concurrent_enqueues_of_one_key(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A thousand enqueues of one key from many threads, while two workers run: the work is done once, nothing fails."""
    notes, barrier = tmp_path / "notes", threading.Barrier(10)
    pool = Pool(Settings(url=server.url, max_connections=10))

    def enqueue(_number: int) -> list[str]:
        queue = Queue(connection=Redis(connection_pool=pool))
        barrier.wait(20)
        return [queue.enqueue(claim_jobs.note, str(notes), once="order-42").id for _ in range(100)]

    with (
        running_worker(server.url, log=tmp_path / "a", concurrency=3),
        running_worker(server.url, log=tmp_path / "b", concurrency=3),
        ThreadPoolExecutor(10) as threads,
    ):
        ids = {job_id for some in threads.map(enqueue, range(10)) for job_id in some}
        queue = StockQueue(connection=redis)
        wait_until(lambda: queue.count == 0 and redis.zcard(named("rq:wip:default")) == 0, timeout=100)
    pool.disconnect()
    spender = redis.get(KEY).decode()
    assert lines(notes) == [spender] and spender in ids
    assert queue.failed_job_registry.count == 0
    assert {Job.fetch(job_id, redis).get_status() for job_id in ids} == {JobStatus.FINISHED}
    assert not redis.exists(named("rq_pooled:once-running:order-42"))


def test_stock_queue_and_results_that_are_not_kept(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A job with result_ttl=0 spends its key and leaves nothing else; a duplicate with result_ttl=0 leaves nothing at
    all.
    """
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    for name in ("first", "second"):
        queue.enqueue(claim_jobs.note, str(notes), once="order-42", result_ttl=0, job_id=name)
    run_all(server, tmp_path)
    assert lines(notes) == ["first"]
    keys = {
        key.decode()
        for key in redis.keys("*")
        if not key.startswith((named(b"rq:worker"), named(b"rq:queues"), named(b"rq:clean"), ENDED.encode()))
    }
    assert keys == {KEY}


def test_job_that_repeats_spends_at_its_first_success(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Once means once: what a repeat would run again is recorded as a duplicate."""
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    job = queue.enqueue(claim_jobs.note, str(notes), once="order-42", repeat=Repeat(2), job_id="job")
    run_all(server, tmp_path)
    assert lines(notes) == ["job"]
    assert redis.get(KEY) == b"job" and job.get_status() == JobStatus.FINISHED


def test_pipeline_and_dependency(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A key works for jobs enqueued in a pipeline, deferred or scheduled, as the claim decides."""
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    with redis.pipeline() as pipeline:
        first = queue.enqueue(claim_jobs.note, str(notes), once="order-42", pipeline=pipeline, job_id="first")
        queue.enqueue(claim_jobs.note, str(notes), once="order-42", pipeline=pipeline, job_id="second")
        pipeline.execute()
    queue.enqueue(claim_jobs.note, str(notes), once="order-42", depends_on=first, job_id="third")
    queue.enqueue(claim_jobs.note, str(notes), once="other", depends_on=first, job_id="fourth")
    queue.enqueue_at(first.created_at, claim_jobs.note, str(notes), once="order-42", job_id="fifth")
    with running_worker(server.url, log=tmp_path / "log"):
        for name in ("first", "second", "third", "fourth", "fifth"):
            wait_until(lambda: Job.fetch(name, redis).get_status() == JobStatus.FINISHED, what=name)  # noqa: B023
    assert lines(notes) == ["first", "fourth"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"once": ""}, "1 to 1000 characters"),
        ({"once": "x" * 1001}, "1 to 1000 characters"),
        ({"once": "x", "once_ttl": "10q"}, "45s, 10m"),
        ({"once": "x", "once_ttl": 0}, "at least 1 second"),
        ({"once": "x", "once_ttl": sys.maxsize}, "100 years"),
        ({"once_ttl": 10}, "give the key"),
        ({"once": "x", "on_duplicate": "ignore"}, "'return' or 'raise'"),
    ],
)
def test_bad_arguments_are_refused_in_words(redis: Redis, arguments: dict[str, Any], words: str) -> None:
    """What cannot be meant is refused before anything is sent."""
    with pytest.raises(ConfigurationError, match=words):
        Queue(connection=redis).enqueue(claim_jobs.nothing, **arguments)
    assert redis.keys("*") == []


def test_only_a_job_that_runs_holds_the_key(server: Any, redis: Redis) -> None:
    """A running job holds its key for a day past twice its timeout, should nobody be left; a duplicate holds it
    never.
    """
    with engine(server.url) as ours:
        ours.register("w", "x")
        for name in ("runs", "spent"):
            StockQueue(connection=redis).enqueue(once_jobs.accept, job_id=name, job_timeout=100)
            redis.hset(named(f"rq:job:{name}"), mapping={"rq_pooled_once": name, "rq_pooled_once_of": ""})
            redis.hset(named(f"rq:job:{name}"), "rq_pooled_once_of", redis.hget(named(f"rq:job:{name}"), "created_at"))
        redis.set(named("rq_pooled:once:spent"), "another")
        assert len(ours.claim("w", "x").claims) == 2
        assert 86_400 + 190 < redis.ttl(named("rq_pooled:once-running:runs")) <= 86_400 + 200
        assert not redis.exists(named("rq_pooled:once-running:spent"))
