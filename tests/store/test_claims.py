"""Claims: which job runs, once, in which order, and when a sleeping worker finds out about it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import claim_jobs
import pytest
from engine import engine, finished, key_space, residue
from keys import named
from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Dependency, Job, JobStatus
from rq.suspension import resume, suspend
from support import running_worker, wait_until

from rq_pooled.store.claim import Claim
from rq_pooled.store.claim import claim_jobs as build_claim


def lines(path: Path) -> list[str]:
    """What jobs have noted."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def worker_states(redis: Redis) -> set[bytes]:
    """The states of all workers."""
    return {redis.hget(key, "state") for key in redis.smembers(named("rq:workers"))}


def wait_until_asleep(redis: Redis, workers: int = 1, queues: int = 1) -> None:
    """Wait until one worker wants to hear about its queues and about suspension, and the others sleep beside it."""

    def asleep() -> bool:
        sleepers = sum(redis.zcard(key) for key in redis.keys(named("rq_pooled:stats:sleepers:*")))
        return sleepers == workers - 1 and redis.info("stats")["tracking_total_items"] > queues

    wait_until(asleep, what="the workers to sleep")


# -- once --------------------------------------------------------------------------------------------------------


def test_two_workers_run_each_of_5000_executions_once(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Two workers with five slots each run 5 000 jobs, every one once, and each outcome is counted once."""
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    data = [Queue.prepare_data(claim_jobs.note, (str(notes),), job_id=f"j{i}") for i in range(5000)]
    with redis.pipeline() as pipe:
        queue.enqueue_many(data, pipeline=pipe)
        pipe.execute()
    with (
        running_worker(server.url, "--burst", log=tmp_path / "log1", concurrency=5, ready=None) as first,
        running_worker(server.url, "--burst", log=tmp_path / "log2", concurrency=5, ready=None) as second,
    ):
        assert (first.wait(50), second.wait(50)) == (0, 0)
    assert Counter(lines(notes)) == Counter(f"j{i}" for i in range(5000))
    assert queue.finished_job_registry.get_job_count(cleanup=False) == 5000
    counts = [
        int(redis.hget(key, "successful_job_count") or 0)
        for key in redis.keys(named("rq:worker:*"))
        if not key.endswith(b":executions")
    ]
    assert len(counts) == 10 and sum(counts) == 5000 and min(counts) > 0
    assert residue(redis) == []


def test_stale_ids_are_skipped_and_counted(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Ids whose job was deleted or has expired are dropped with one warning that counts them, and what is behind
    runs.
    """
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    for i in range(10):
        queue.enqueue(claim_jobs.note, str(notes), job_id=f"j{i}")
    redis.delete(*(Job.key_for(f"j{i}") for i in (0, 1, 5, 9)))
    redis.rpush(queue.key, "never-existed")
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0
    assert lines(notes) == ["j2", "j3", "j4", "j6", "j7", "j8"]
    dropped = [line.split("dropped ")[1] for line in worker.output().splitlines() if "dropped " in line]
    assert sum(int(line.split()[0]) for line in dropped) == 5
    assert "deleted or expired while queued" in dropped[0] and "j0" in dropped[0]
    assert not redis.exists(queue.key)


def test_an_id_that_is_no_text_harms_nobody_else(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Of ids that are not UTF-8, which RQ cannot handle, one with a job fails and one without is dropped; others
    run.
    """
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    for i in range(3):
        queue.enqueue(claim_jobs.note, str(notes), job_id=f"j{i}")
    redis.hset(named(b"rq:job:\xff\xfd"), mapping=redis.hgetall(named("rq:job:j0")))
    redis.lpush(queue.key, b"\xff\xfd", b"\xff\xfe")
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    with running_worker(server.url, "--burst", log=tmp_path / "log", concurrency=3, ready=None, **strict) as worker:
        assert worker.wait() == 0, worker.output()
    assert sorted(lines(notes)) == ["j0", "j1", "j2"]
    assert redis.hget(named(b"rq:job:\xff\xfd"), "status") == b"failed"
    assert "dropped 1 ids without a job" in worker.output()
    assert redis.zcard(named("rq:wip:default")) == 0


def test_more_stale_ids_than_one_claim_drops(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A queue full of ghosts holds the server for one bounded step at a time, and the job behind them runs."""
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    redis.rpush(queue.key, *(f"ghost-{i}" for i in range(2500)))
    queue.enqueue(claim_jobs.note, str(notes), job_id="real")
    with engine(server.url) as ours:
        claimed = ours.claim("w")
        assert (len(claimed.stale), claimed.claims) == (1000, [])
    with running_worker(server.url, log=tmp_path / "log"):
        wait_until(lambda: lines(notes) == ["real"])


def test_id_queued_twice_runs_twice_but_not_beside_itself(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Every time that an id is in the queue it runs, never at the same time as another run, and a burst ends after
    it.
    """
    queue, notes = Queue(connection=redis), tmp_path / "notes"
    job = queue.enqueue(claim_jobs.note_start_and_end, str(notes))
    redis.rpush(queue.key, job.id, job.id)
    other = queue.enqueue(claim_jobs.note_start_and_end, str(tmp_path / "other"))
    with running_worker(server.url, "--burst", log=tmp_path / "log", concurrency=4, ready=None) as worker:
        assert worker.wait() == 0
    assert lines(notes) == [f"start {job.id}", f"end {job.id}"] * 3
    assert other.get_status() == JobStatus.FINISHED
    assert residue(redis) == []


def test_an_execution_that_died_hides_none_that_runs(server: Any, redis: Redis) -> None:
    """An id in the queue is held back while any of its executions stands, whatever others RQ's list still names."""
    Queue(connection=redis).enqueue("math.factorial", 3, job_id="a")
    with engine(server.url) as ours:
        assert len(ours.claim("w").claims) == 1
        redis.zadd(named("rq:executions:a"), {"dead": 1})  # sorts before the one that runs
        redis.rpush(named("rq:queue:default"), "a")
        claimed = ours.claim("x")
    assert (claimed.claims, claimed.held) == ([], 1)


# -- order -------------------------------------------------------------------------------------------------------


def test_order_is_kept_at_concurrency_1(server: Any, redis: Redis, tmp_path: Path) -> None:
    """One slot runs jobs in the order of the queues and, within each, in the order of the queue, as stock RQ."""
    notes = tmp_path / "notes"
    for i in range(40):
        Queue(("low", "high")[i % 2], redis).enqueue(claim_jobs.note, str(notes), job_id=f"j{i}")
    with running_worker(server.url, "high", "low", "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0
    assert lines(notes) == [f"j{i}" for i in range(1, 40, 2)] + [f"j{i}" for i in range(0, 40, 2)]


def test_what_a_job_enqueues_in_front_is_next_at_concurrency_1(server: Any, redis: Redis, tmp_path: Path) -> None:
    """One slot claims nothing before the outcome of its job is recorded: a dependent at the front comes first."""
    notes, queue = tmp_path / "notes", Queue(connection=redis)
    for i in range(10):
        queue.enqueue(claim_jobs.note, str(notes), job_id=f"a{i}")
        queue.enqueue(
            claim_jobs.note, str(notes), job_id=f"b{i}", depends_on=Dependency(f"a{i}", enqueue_at_front=True)
        )
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0
    assert lines(notes) == [f"{letter}{i}" for i in range(10) for letter in "ab"]


def test_a_claim_behind_a_commit_takes_nothing_while_a_claim_stands(server: Any, redis: Redis) -> None:
    """Sent behind the commit, a claim is answered by None until that has ended the job before, and changes nothing."""
    for job_id in "ab":
        Queue(connection=redis).enqueue("math.factorial", 3, job_id=job_id)
    with engine(server.url) as ours:
        ours.register("w")
        (first,) = ours.claim("w").claims
        before = key_space(redis)
        keys = [named("rq:queue:default")]
        command, request = build_claim(ours.settings, ours.token, keys, "default", ["w"], behind=True)
        assert ours.run(command) is None
        assert key_space(redis) == before
        assert ours.commit(finished(first)) == ["ok"]
        assert [claim.job_id for claim in request.read(ours.run(command)).claims] == ["b"]


def test_round_robin_takes_turns(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A worker with round_robin goes through its queues in turn, from claim to claim, and leaves out empty ones."""
    notes = tmp_path / "notes"
    for name, number in (("a", 5), ("b", 1), ("c", 5)):
        for i in range(number):
            Queue(name, redis).enqueue(claim_jobs.note, str(notes), job_id=f"{name}{i}")
    arguments = ("a", "b", "c", "--burst", "--dequeue-strategy", "round_robin")
    with running_worker(server.url, *arguments, log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0
    assert lines(notes) == ["a0", "b0", "c0", "a1", "c1", "a2", "c2", "a3", "c3", "a4", "c4"]


def fill_three(redis: Redis) -> None:
    """Three queues with three jobs each."""
    redis.flushall()
    for name in "abc":
        for i in range(3):
            Queue(name, redis).enqueue("math.factorial", 3, job_id=f"{name}{i}")


def order_of(ours: Any, strategy: str, number: int = 9) -> list[str]:
    """The order in which one claim takes jobs."""
    names = [f"w{i}" for i in range(number)]
    return [claim.job_id for claim in ours.claim(*names, queues="abc", strategy=strategy).claims]


def test_strategies_inside_one_claim(server: Any, redis: Redis) -> None:
    """Several jobs of one claim come in the order in which several claims would have given them."""
    with engine(server.url) as ours:
        fill_three(redis)
        assert order_of(ours, "default") == ["a0", "a1", "a2", "b0", "b1", "b2", "c0", "c1", "c2"]
        fill_three(redis)
        assert order_of(ours, "round_robin") == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]
        fill_three(redis)
        redis.delete(named("rq:queue:b"))
        assert order_of(ours, "round_robin") == ["a0", "c0", "a1", "c1", "a2", "c2"]
        orders = set()
        for _ in range(30):
            fill_three(redis)
            order = order_of(ours, "random")
            assert len(order) == 9
            for name in "abc":
                assert [job_id for job_id in order if job_id[0] == name] == [f"{name}{i}" for i in range(3)]
            orders.add("".join(job_id[0] for job_id in order))
        assert len(orders) > 10 and {order[0] for order in orders} == set("abc")


def test_an_id_without_a_job_uses_up_no_turn(server: Any, redis: Redis) -> None:
    """Under round_robin a queue's turn passes with a job that is claimed, as in RQ, and not with a ghost."""
    with engine(server.url) as ours:
        fill_three(redis)
        redis.delete(named("rq:job:a0"))
        assert order_of(ours, "round_robin", 4) == ["a1", "b0", "c0", "a2"]


def test_a_hash_may_hold_any_bytes(server: Any, redis: Redis) -> None:
    """A claimed job has its hash as it was, though the whole hash travels as one text, and a horse cuts it alike."""
    fields = {
        b"data": os.urandom(3000),
        b"": b"",
        b"a\r\n b": b"$-1\r\n",
        b"x" * 70_000: bytes(range(256)),
        b"e": b"\xff",
    }
    redis.hset(named("rq:job:a"), mapping=fields)  # type: ignore[arg-type]
    redis.hset(named("rq:job:b"), mapping={**fields, b"data": b"d" * 1_500_000, b"big": b"b" * 70_000})  # type: ignore[arg-type]
    redis.rpush(named("rq:queue:default"), "a", "b")
    with engine(server.url) as ours:
        small, large = (*ours.claim("w").claims, *ours.claim("w").claims)
    assert (small.raw, small.left_out) == (fields, ())
    assert large.raw == {name: fields[name] for name in fields if name != b"data"}
    assert sorted(large.left_out) == [b"big", b"data"]
    assert [Claim.from_message(claim.message())[:8] for claim in (small, large)] == [small[:8], large[:8]]


@pytest.mark.parametrize(("size", "expected"), [(10, 50), (400_000, 3), (900_000, 2), (3_000_000, 6)])
def test_one_claim_is_bounded(server: Any, redis: Redis, size: int, expected: int) -> None:
    """One claim takes at most 50 jobs, none after a megabyte of data that it returns, and leaves the rest in order."""
    queue = Queue(connection=redis)
    number = 60 if size < 1000 else 6
    for i in range(number):
        queue.enqueue("builtins.len", os.urandom(size), job_id=f"j{i}", description="large")
    with engine(server.url) as ours:
        claimed = ours.claim(*(f"w{i}" for i in range(60)))
        assert [claim.job_id for claim in claimed.claims] == [f"j{i}" for i in range(expected)]
    assert queue.get_job_ids() == [f"j{i}" for i in range(expected, number)]


def test_a_held_id_does_not_block_what_is_behind_it(server: Any, redis: Redis) -> None:
    """Ids that wait for their other run to end stay in front, and the jobs behind them are claimed, however large the
    data of those that wait."""
    queue = Queue(connection=redis)
    queue.enqueue("builtins.len", os.urandom(2_000_000), job_id="large", description="large")
    redis.rpush(queue.key, "large", "large")
    queue.enqueue("builtins.len", "x", job_id="small")
    with engine(server.url) as ours:
        assert [claim.job_id for claim in ours.claim("w").claims] == ["large"]
        claimed = ours.claim("x", "y")
        assert ([claim.job_id for claim in claimed.claims], claimed.held) == (["small"], 2)
    assert queue.get_job_ids() == ["large", "large"]


def test_a_crowd_of_held_ids_holds_the_server_for_one_bounded_step(server: Any, redis: Redis) -> None:
    """One claim passes over at most 1 000 ids that wait for another run, and loses none of them."""
    queue = Queue(connection=redis)
    queue.enqueue("builtins.len", "x", job_id="twice")
    with engine(server.url) as ours:
        ours.claim("w")
        redis.rpush(queue.key, *["twice"] * 3000)
        assert ours.claim("x").held == 1000
    assert redis.llen(queue.key) == 3000


# -- suspension --------------------------------------------------------------------------------------------------


def test_suspension_takes_effect_while_asleep(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A worker that sleeps learns at once that it is suspended, leaves new jobs alone, and learns at once of the
    end.
    """
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", concurrency=2) as worker:
        wait_until_asleep(redis)
        suspend(redis)
        worker.wait_for("suspended, run `rq resume` to resume", timeout=5)
        wait_until(lambda: worker_states(redis) == {b"suspended"}, timeout=5, what="the state to show")
        job = queue.enqueue(claim_jobs.nothing)
        wait_until_asleep(redis)
        assert job.get_status() == JobStatus.QUEUED
        resume(redis)
        wait_until(lambda: job.get_status() == JobStatus.FINISHED, timeout=5, what="the job to run")
        wait_until(lambda: worker_states(redis) == {b"idle"}, timeout=5, what="the state to show")


def test_suspension_takes_effect_while_busy(server: Any, redis: Redis, tmp_path: Path) -> None:
    """What runs when ``rq suspend`` comes ends as usual; nothing else begins until ``rq resume``."""
    queue, started, gate = Queue(connection=redis), tmp_path / "started", tmp_path / "gate"
    with running_worker(server.url, log=tmp_path / "log", concurrency=2) as worker:
        running = [queue.enqueue(claim_jobs.wait_for_file, str(started), str(gate)) for _ in range(2)]
        waiting = queue.enqueue(claim_jobs.nothing)
        wait_until(lambda: len(lines(started)) == 2)
        subprocess.run(
            [sys.executable, "-m", "rq.cli", "suspend", "--url", server.url], check=True, capture_output=True
        )
        gate.touch()
        worker.wait_for("suspended, run `rq resume` to resume", timeout=5)
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in running), what="what ran to end")
        assert waiting.get_status() == JobStatus.QUEUED
        subprocess.run([sys.executable, "-m", "rq.cli", "resume", "--url", server.url], check=True, capture_output=True)
        wait_until(lambda: waiting.get_status() == JobStatus.FINISHED, timeout=5, what="the other to run")


def test_suspension_with_a_ttl_ends_by_itself(server: Any, redis: Redis, tmp_path: Path) -> None:
    """``rq suspend --duration`` ends when its key expires, without anybody telling the worker."""
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log") as worker:
        suspend(redis, ttl=1)
        worker.wait_for("suspended, run `rq resume` to resume", timeout=5)
        job = queue.enqueue(claim_jobs.nothing)
        wait_until(lambda: job.get_status() == JobStatus.FINISHED, timeout=10, what="the job to run")
        assert "resumed" in worker.output()


# -- viewers -----------------------------------------------------------------------------------------------------


def test_viewers_never_fail_a_running_job(server: Any, redis: Redis, tmp_path: Path) -> None:
    """``rq info``, a look at the started registry, and a stock worker's cleanup leave a job alone that runs longer than
    its lease and than the horizon in RQ's registry, because both are renewed."""
    queue, started, gate = Queue(connection=redis), tmp_path / "started", tmp_path / "gate"
    settings = {
        "RQ_POOLED_HEARTBEAT_INTERVAL": "0.5",
        "RQ_POOLED_HEARTBEAT_TTL": "2",
        "RQ_POOLED_ABANDON_AFTER": "3",
    }
    with running_worker(server.url, log=tmp_path / "log", **settings):
        job = queue.enqueue(claim_jobs.wait_for_file, str(started), str(gate))
        wait_until(started.exists)
        (member,) = queue.started_job_registry.get_job_and_execution_ids(cleanup=False)
        claim = ":".join(member)
        first = redis.zscore(named("rq:wip:default"), claim)
        viewer = SimpleWorker([queue], connection=redis)

        def looked_for_longer_than_it_first_had() -> bool:
            assert len(queue.started_job_registry) == 1
            viewer.clean_registries()
            assert job.get_status() == JobStatus.STARTED
            return redis.time()[0] > first + 1

        wait_until(looked_for_longer_than_it_first_had, what="the first horizon to pass")
        lease = redis.zscore(named("rq_pooled:leases:default"), claim)
        assert lease > redis.time()[0] + 0.5 and lease < redis.zscore(named("rq:wip:default"), claim)
        info = [sys.executable, "-m", "rq.cli", "info", "--url", server.url]
        shown = subprocess.run(info, check=True, capture_output=True, text=True).stdout
        assert "busy" in shown and "1 workers, 1 queues" in shown
        gate.touch()
        wait_until(lambda: job.get_status() == JobStatus.FINISHED, what="it to finish")
        assert job.return_value() == "passed" and not residue(redis)


# -- waking up ---------------------------------------------------------------------------------------------------


def by_rpush(redis: Redis, queue: Queue, job: Job) -> None:
    redis.rpush(queue.key, job.id)


def by_transaction(redis: Redis, queue: Queue, job: Job) -> None:
    with redis.pipeline(transaction=True) as pipe:
        pipe.set("before", 1)
        pipe.rpush(queue.key, job.id)
        pipe.set("after", 1)
        pipe.execute()


def by_script(redis: Redis, queue: Queue, job: Job) -> None:
    redis.eval("return redis.call('LPUSH', KEYS[1], ARGV[1])", 1, queue.key, job.id)


def by_lmove(redis: Redis, queue: Queue, job: Job) -> None:
    redis.rpush("side", job.id)
    redis.lmove("side", queue.key)


def by_rename(redis: Redis, queue: Queue, job: Job) -> None:
    redis.rpush("side", job.id)
    redis.rename("side", queue.key)


def by_copy_of_another_worker(redis: Redis, queue: Queue, job: Job) -> None:
    redis.rpush("side", job.id)
    redis.copy("side", queue.key)


def by_requeue(redis: Redis, queue: Queue, job: Job) -> None:
    job.set_status(JobStatus.FAILED)
    queue.failed_job_registry.add(job, ttl=100)
    queue.failed_job_registry.requeue(job)


@pytest.mark.parametrize("names", [("default",), ("high", "default", "low")], ids=["one queue", "three queues"])
def test_sleeping_worker_wakes_however_a_job_comes(
    server: Any, redis: Redis, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """A worker that sleeps runs a job at once, whichever command put it into the queue; nothing is polled meanwhile."""
    ways: list[Callable[[Redis, Queue, Job], None]] = [
        by_rpush,
        by_transaction,
        by_script,
        by_lmove,
        by_rename,
        by_copy_of_another_worker,
        by_requeue,
    ]
    queue = Queue(connection=redis)
    settings = {"RQ_POOLED_BLOCK": "600", "RQ_POOLED_HEARTBEAT_INTERVAL": "25"}
    with running_worker(server.url, *names, log=tmp_path / "log", **settings) as worker:
        assert "client tracking" in worker.output()
        for way in ways:
            job = Job.create(claim_jobs.nothing, connection=redis, origin="default", status=JobStatus.QUEUED)
            job.timeout = 60
            job.save()
            wait_until_asleep(redis, queues=len(names))
            way(redis, queue, job)
            wait_until(lambda: job.get_status() == JobStatus.FINISHED, timeout=10, what=way.__name__)  # noqa: B023


def test_every_sleeping_worker_gets_its_share_of_a_crowd(server: Any, redis: Redis, tmp_path: Path) -> None:
    """When jobs come to several sleeping workers at once, all of them wake, and nobody waits while another has a
    slot.
    """
    queue, started, gate = Queue(connection=redis), tmp_path / "started", tmp_path / "gate"
    with (
        running_worker(server.url, log=tmp_path / "log1", concurrency=2),
        running_worker(server.url, log=tmp_path / "log2", concurrency=2),
    ):
        wait_until_asleep(redis, workers=2)
        jobs = [queue.enqueue(claim_jobs.wait_for_file, str(started), str(gate)) for _ in range(4)]
        wait_until(lambda: len(lines(started)) == 4, timeout=10, what="all four to run at once")
        gate.touch()
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs))
