"""Large arguments and results over a slow line: nothing else waits for them, and each job runs once."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jobs
import large_jobs
import pytest
from engine import Engine, engine
from proxy import SlowProxy
from redis import Redis
from rq import Callback, Queue
from rq.command import send_stop_job_command
from rq.job import Job
from support import keys_of_jobs, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer

MB = 1024 * 1024
#: Of the line to the worker, per second, and of what is large: it takes four seconds, more than two leases.
RATE, SIZE = 4 * MB, 16 * MB
TTL = 1.5
QUICK = {
    "RQ_POOLED_HEARTBEAT_INTERVAL": "0.3",
    "RQ_POOLED_HEARTBEAT_TTL": str(TTL),
    "RQ_POOLED_STALLED_INTERVAL": "0.3",
    "RQ_POOLED_RECONNECT_CAP": "0.3",
}


def status(redis: Redis, job_id: str) -> str:
    """The job's state."""
    return (redis.hget(f"rq:job:{job_id}", "status") or b"").decode()


def lease_left(redis: Redis) -> float:
    """The seconds that the shortest lease has still."""
    seconds, microseconds = redis.time()
    scores = [score for _, score in redis.zrange("rq_pooled:leases:default", 0, -1, withscores=True)]
    return min(scores, default=float("inf")) - seconds - microseconds / 1e6


@pytest.fixture
def ours(server: EmbeddedServer, redis: Redis) -> Iterator[Engine]:
    """A ledger with two registered workers."""
    with engine(server.url, max_stalls=0) as one:
        one.register("w", "x")
        yield one


@pytest.mark.parametrize(("function", "argument"), [(large_jobs.digest, large_jobs.noise(SIZE))])
def test_nothing_waits_for_what_is_large(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, function: Any, argument: Any
) -> None:
    """While a large job is read, or its result written, leases are renewed, other jobs run, a stop is obeyed, none runs twice."""
    queue = Queue(connection=redis)
    with (
        closing(SlowProxy(server.port, RATE)) as proxy,
        running_worker(server.url, "elsewhere", log=tmp_path / "judge", **QUICK) as judge,
        running_worker(proxy.url, log=tmp_path / "log", concurrency=4, **QUICK) as worker,
    ):
        queue.enqueue(large_jobs.run_for, 8, job_id="long")
        queue.enqueue(large_jobs.run_for, 60, job_id="stopped")
        wait_until(lambda: redis.llen("runs:long") and redis.llen("runs:stopped"))
        began = time.monotonic()
        queue.enqueue(function, argument, job_id="large")
        wait_until(lambda: status(redis, "large") == "started")
        shortest, slowest, number = float("inf"), 0.0, 0
        while status(redis, "large") != "finished":
            small, since = queue.enqueue(jobs.nothing), time.monotonic()
            while status(redis, small.id) != "finished":
                shortest = min(shortest, lease_left(redis))
                slowest = max(slowest, time.monotonic() - since)
                assert time.monotonic() - began < 30, worker.output()
                time.sleep(0.005)
            number += 1
            if number == 20:
                send_stop_job_command(redis, "stopped")
        assert time.monotonic() - began > 3, "it has taken its time"
        assert shortest > 0.3 * TTL, f"a lease had {shortest:.2f} s left"
        assert slowest < 1.5 and number > 20, f"a small job took {slowest:.2f} s, {number} jobs ran"
        wait_until(lambda: status(redis, "stopped") == "stopped")
        wait_until(lambda: status(redis, "long") == "finished")
        assert "put back" not in judge.output() and "lost the server" not in worker.output()
        assert {redis.llen(f"runs:{name}") for name in ("long", "stopped", "large")} == {1}
        result = Job.fetch("large", redis).return_value()
        assert result == (
            hashlib.sha1(argument).hexdigest() if function is large_jobs.digest else large_jobs.noise(SIZE)
        )
        wait_until(lambda: not keys_of_jobs(redis), what="no residue")


# -- claims ----------------------------------------------------------------------------------------------------------


def test_a_claim_leaves_large_fields_out(ours: Engine, redis: Redis) -> None:
    """Of a hash above 1 MB the values above 64 kB are named and not sent; what the claim itself needs is; the hash is whole."""
    queue = Queue(connection=redis)
    queue.enqueue(
        jobs.length, large_jobs.noise(2 * MB), job_id="data", meta={"some": large_jobs.noise(100_000)}, job_timeout=77
    )
    queue.enqueue(jobs.nothing, job_id="meta", meta={"some": large_jobs.noise(2 * MB)})
    redis.hset(
        "rq:job:data", mapping={"rq_pooled_something": "x" * 100_000, b"\xff": b"y" * 100_000, "small": "z" * 60_000}
    )
    before = {name: redis.hgetall(f"rq:job:{name}") for name in ("data", "meta")}
    data, meta = ours.claim("w", "x").claims
    assert set(data.left_out) == {b"data", b"meta", b"\xff"} and meta.left_out == (b"meta",)
    for claim in (data, meta):
        whole = before[claim.job_id]
        assert dict(claim.raw) == {name: value for name, value in whole.items() if name not in claim.left_out}
        after = redis.hgetall(f"rq:job:{claim.job_id}")
        assert all(after[name] == whole[name] for name in claim.left_out)
    assert data.time_limit(1) == 77


def test_what_is_not_large_is_sent_whole(ours: Engine, redis: Redis) -> None:
    """A hash of up to 1 MB comes with its claim, whatever its fields."""
    Queue(connection=redis).enqueue(jobs.length, large_jobs.noise(900_000), job_id="a")
    before = redis.hgetall("rq:job:a")
    (claim,) = ours.claim("w").claims
    assert claim.left_out == () and dict(claim.raw) == before


def test_a_stalled_large_job_is_taken_without_its_data(ours: Engine, redis: Redis) -> None:
    """Who is to fail a job that has stalled too often is told which fields were left out."""
    Queue(connection=redis).enqueue(jobs.length, large_jobs.noise(2 * MB), job_id="a")
    (claim,) = ours.claim("w").claims
    redis.zadd("rq_pooled:leases:default", {claim.member: 1})
    reply = ours.run(ours.ledger.stalled(["rq:queue:default"], "x", int(ours.run(("TIME",))[0]) + 5))
    ((taken, stalls),) = ours.ledger.stalled_reply(reply, "x").taken
    assert taken.left_out == (b"data",) and b"data" not in taken.raw and stalls == 1 and taken.raw[b"timeout"] == b"180"


# -- reading ---------------------------------------------------------------------------------------------------------


def horses(pid: int) -> list[int]:
    """The worker's processes, the oldest first."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def being_read(redis: Redis) -> bool:
    """Tell whether a connection is lent, which only reading and writing large values need here."""
    return any(client["name"].endswith("exclusive") and int(client["omem"]) > 0 for client in redis.client_list())


def test_the_time_limit_begins_when_the_job_has_been_read(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Reading does not count: a job with a limit of 1 s is neither interrupted nor killed in the 2 s that reading takes."""
    queue = Queue(connection=redis)
    with (
        closing(SlowProxy(server.port, RATE)) as proxy,
        running_worker(proxy.url, log=tmp_path / "log", RQ_POOLED_KILL_GRACE="0.5") as worker,
    ):
        queue.enqueue(large_jobs.digest, large_jobs.noise(8 * MB), job_id="read", job_timeout=1)
        queue.enqueue(large_jobs.hang, large_jobs.noise(8 * MB), job_id="hangs", job_timeout=1)
        wait_until(lambda: status(redis, "read") == "finished", what=worker.output)
        wait_until(lambda: status(redis, "hangs") == "failed", what=worker.output)
        assert "killing its horse" in worker.output() and redis.llen("runs:read") == 1


@pytest.mark.parametrize("share", ["yes", "no"])
def test_a_horse_that_dies_while_it_reads(server: EmbeddedServer, redis: Redis, tmp_path: Path, share: str) -> None:
    """Its job fails as in RQ, with its arguments where they were, and other jobs run; so with connections of its own."""
    queue = Queue(connection=redis)
    with (
        closing(SlowProxy(server.port, RATE)) as proxy,
        running_worker(proxy.url, log=tmp_path / "log", RQ_POOLED_JOBS_SHARE=share) as worker,
    ):
        queue.enqueue(
            large_jobs.digest, large_jobs.noise(SIZE), job_id="large", on_failure=Callback("large_jobs.on_end")
        )
        before = redis.hget("rq:job:large", "data")
        wait_until(lambda: status(redis, "large") == "started")
        if share == "yes":
            wait_until(lambda: being_read(redis), what="reading")
        os.kill(horses(worker.pid)[0], signal.SIGKILL)
        queue.enqueue(jobs.nothing, job_id="small")
        wait_until(lambda: status(redis, "small") == "finished")
        wait_until(lambda: status(redis, "large") == "failed", what=worker.output)
        result = Job.fetch("large", redis).latest_result()
        assert result is not None and "Work-horse terminated unexpectedly" in str(result.exc_string)
        assert redis.hget("rq:job:large", "data") == before and not redis.exists("runs:large")
        wait_until(lambda: not keys_of_jobs(redis), what="no residue")


def test_a_worker_that_dies_while_its_horse_reads(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Its job runs elsewhere when its lease is over, once."""
    queue = Queue(connection=redis)
    with (
        closing(SlowProxy(server.port, RATE)) as proxy,
        running_worker(proxy.url, log=tmp_path / "log", **QUICK) as worker,
    ):
        queue.enqueue(large_jobs.digest, large_jobs.noise(SIZE), job_id="large")
        wait_until(lambda: being_read(redis), what="reading")
        worker.kill()
        with running_worker(server.url, log=tmp_path / "other", **QUICK):
            wait_until(lambda: status(redis, "large") == "finished")
        assert redis.llen("runs:large") == 1


@pytest.mark.parametrize("delete", [Job.delete, lambda job: job.connection.delete(job.key)], ids=["job", "key"])
def test_a_job_that_is_deleted_before_it_is_read(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, delete: Callable[[Job], None]
) -> None:
    """It does not run, nothing of it stays, and its slot goes on."""
    queue = Queue(connection=redis)
    with closing(SlowProxy(server.port, RATE)) as proxy, running_worker(proxy.url, log=tmp_path / "log") as worker:
        proxy.rate = 2_000  # so that the reply to the claim takes its time
        job = queue.enqueue(large_jobs.digest, large_jobs.noise(2 * MB))
        wait_until(lambda: status(redis, job.id) == "started")
        delete(job)
        proxy.rate = RATE
        small = queue.enqueue(jobs.nothing)
        wait_until(lambda: status(redis, small.id) == "finished", what=worker.output)
        assert not redis.exists(f"runs:{job.id}", job.key) and "was deleted before it began" in worker.output()
        wait_until(lambda: not keys_of_jobs(redis), what="no residue")
