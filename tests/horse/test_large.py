"""Large arguments and results over a slow line: nothing else waits for them, and each job runs once."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
import large_jobs
import pytest
from engine import Engine, engine, finished, outcomes_of, residue
from keys import named
from proxy import CutProxy, SlowProxy
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Callback, Queue, Retry
from rq.command import send_stop_job_command
from rq.job import Job
from stalls import abandon
from support import WorkerProcess, keys_of_jobs, running_worker, wait_until

from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.horse import large
from rq_pooled.horse.large import MAX_LOSSES, LargeValues, Refused, set_apart, without_known
from rq_pooled.pool import Pool
from rq_pooled.store.claim import Claim
from rq_pooled.store.commit import Outcome, bare_failure, set_aside
from rq_pooled.store.keys import aside_key
from rq_pooled.store.leases import find_stalled, push_back, stalled_of

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
    return (redis.hget(named(f"rq:job:{job_id}"), "status") or b"").decode()


@contextmanager
def slow_worker(server: EmbeddedServer, folder: Path, **environment: str) -> Iterator[WorkerProcess]:
    """A worker at the end of a slow line."""
    with (
        closing(SlowProxy(server.port, RATE)) as proxy,
        running_worker(proxy.url, log=folder / "log", **environment) as worker,
    ):
        yield worker


def lease_left(redis: Redis) -> float:
    """The seconds that the shortest lease has still."""
    seconds, microseconds = redis.time()
    scores = [score for _, score in redis.zrange(named("rq_pooled:leases:default"), 0, -1, withscores=True)]
    return min(scores, default=float("inf")) - seconds - microseconds / 1e6


@pytest.fixture
def ours(server: EmbeddedServer, redis: Redis) -> Iterator[Engine]:
    """A ledger with two registered workers."""
    with engine(server.url, max_stalls=0) as one:
        one.register("w", "x")
        yield one


@dataclass
class Watch:
    """What a look at the server has found while something large was under way."""

    redis: Redis
    shortest: float = float("inf")
    slowest: float = 0.0
    number: int = 0
    seconds: float = 0.0

    def until(self, done: Callable[[], bool], worker: WorkerProcess) -> None:
        """Look at leases and let small jobs run, one after the other, until it is done."""
        queue, redis, began = Queue(connection=self.redis), self.redis, time.monotonic()
        while not done():
            small, since = queue.enqueue(jobs.nothing).id, time.monotonic()
            while status(redis, small) != "finished":
                self.shortest = min(self.shortest, lease_left(redis))
                self.slowest = max(self.slowest, time.monotonic() - since)
                assert time.monotonic() - began < 30, worker.output()[-2000:]
                time.sleep(0.005)
            self.number += 1
        self.seconds = time.monotonic() - began

    def check(self) -> None:
        """Fail if anything had to wait."""
        assert self.seconds > 3, "it has taken its time"
        assert self.shortest > 0.3 * TTL, f"a lease had {self.shortest:.2f} s left"
        assert self.slowest < 1.5 and self.number > 20, f"a small job took {self.slowest:.2f} s, {self.number} jobs ran"


@pytest.mark.parametrize("what", ["arguments", "result", "arguments of a dependent", "of a retried job"])
def test_nothing_waits_for_what_is_large(server: EmbeddedServer, redis: Redis, tmp_path: Path, what: str) -> None:
    """While something large is read or written, leases are renewed, other jobs run, a stop is obeyed, none runs
    twice.
    """
    queue, noise = Queue(connection=redis), large_jobs.noise(SIZE)
    if what == "arguments of a dependent":  # before it runs: RQ watches its hash, which each heartbeat changes
        first = queue.enqueue(large_jobs.run_for, 3, job_id="first")
        queue.enqueue(large_jobs.digest, noise, job_id="large", depends_on=first)
    with (
        closing(SlowProxy(server.port, RATE)) as proxy,
        running_worker(server.url, "elsewhere", log=tmp_path / "judge", **QUICK) as judge,
        running_worker(proxy.url, log=tmp_path / "log", concurrency=4, **QUICK) as worker,
    ):
        queue.enqueue(large_jobs.run_for, 60, job_id="stopped")
        queue.enqueue(large_jobs.run_for, 8, job_id="long")
        wait_until(lambda: redis.llen("runs:long") and redis.llen("runs:stopped"))
        if what == "arguments of a dependent":
            assert status(redis, "large") == "deferred"
        elif what == "result":
            queue.enqueue(large_jobs.returning, SIZE, job_id="large")
        elif what == "arguments":
            queue.enqueue(large_jobs.digest, noise, job_id="large")
        else:
            queue.enqueue(large_jobs.digest_at_last, noise, job_id="large", retry=Retry(max=1))
        watch = Watch(redis)
        watch.until(lambda: watch.number > 20, worker)
        send_stop_job_command(redis, "stopped")
        watch.until(lambda: status(redis, "large") == "finished", worker)
        watch.check()
        wait_until(lambda: status(redis, "stopped") == "stopped")
        wait_until(lambda: status(redis, "long") == "finished")
        assert "put back" not in judge.output() and "lost the server" not in worker.output()
        assert {redis.llen(f"runs:{name}") for name in ("long", "stopped", "large")} == {1}
        result = Job.fetch("large", redis).return_value()
        assert result == (noise if what == "result" else hashlib.sha1(noise).hexdigest())
        wait_until(lambda: not keys_of_jobs(redis), what="no residue")


def test_maintenance_with_large_jobs_stops_nothing(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """RQ's clean-up of abandoned large jobs, with their callbacks, takes its time, and nothing else waits for it."""
    queue = Queue(connection=redis)
    for name in ("one", "two"):
        queue.enqueue(
            large_jobs.digest, large_jobs.noise(SIZE // 2), job_id=name, on_failure=Callback("large_jobs.on_end")
        )
        redis.lrem(named("rq:queue:default"), 1, name)
    before = redis.hget(named("rq:job:one"), "data")
    abandon(redis, *(Job.fetch(name, redis) for name in ("one", "two")))
    with (
        closing(SlowProxy(server.port, RATE)) as proxy,
        running_worker(server.url, "elsewhere", log=tmp_path / "judge", **QUICK) as judge,
    ):
        queue.enqueue(large_jobs.run_for, 6, job_id="long")
        with running_worker(proxy.url, log=tmp_path / "log", concurrency=3, **QUICK) as worker:
            watch = Watch(redis)
            watch.until(lambda: status(redis, "two") == "failed", worker)
            watch.check()
            assert status(redis, "one") == "failed" and redis.hget(named("rq:job:one"), "data") == before
            assert (
                redis.lrange("callback:one", 0, -1) == redis.lrange("callback:two", 0, -1) == [str(SIZE // 2).encode()]
            )
            wait_until(lambda: status(redis, "long") == "finished")
            assert redis.llen("runs:long") == 1 and "put back" not in judge.output()


# -- claims ----------------------------------------------------------------------------------------------------------


def test_a_claim_leaves_large_fields_out(ours: Engine, redis: Redis) -> None:
    """Of a hash above 1 MB the values above 64 kB are named and not sent; what the claim itself needs is; the hash is
    whole.
    """
    queue = Queue(connection=redis)
    queue.enqueue(
        jobs.length, large_jobs.noise(2 * MB), job_id="data", meta={"some": large_jobs.noise(100_000)}, job_timeout=77
    )
    queue.enqueue(jobs.nothing, job_id="meta", meta={"some": large_jobs.noise(2 * MB)})
    redis.hset(
        named("rq:job:data"),
        mapping={"rq_pooled_something": "x" * 100_000, b"\xff": b"y" * 100_000, "small": "z" * 60_000},
    )
    before = {name: redis.hgetall(named(f"rq:job:{name}")) for name in ("data", "meta")}
    data, meta = ours.claim("w", "x").claims
    assert set(data.left_out) == {b"data", b"meta", b"\xff"} and meta.left_out == (b"meta",)
    for claim in (data, meta):
        whole = before[claim.job_id]
        assert dict(claim.raw) == {name: value for name, value in whole.items() if name not in claim.left_out}
        after = redis.hgetall(named(f"rq:job:{claim.job_id}"))
        assert all(after[name] == whole[name] for name in claim.left_out)
    assert data.time_limit(1) == 77


def test_what_is_not_large_is_sent_whole(ours: Engine, redis: Redis) -> None:
    """A hash of up to 1 MB comes with its claim, whatever its fields."""
    Queue(connection=redis).enqueue(jobs.length, large_jobs.noise(900_000), job_id="a")
    before = redis.hgetall(named("rq:job:a"))
    (claim,) = ours.claim("w").claims
    assert claim.left_out == () and dict(claim.raw) == before


def test_a_stalled_large_job_is_taken_without_its_data(ours: Engine, redis: Redis) -> None:
    """Who is to fail a job that has stalled too often is told which fields were left out."""
    Queue(connection=redis).enqueue(jobs.length, large_jobs.noise(2 * MB), job_id="a")
    (claim,) = ours.claim("w").claims
    redis.zadd(named("rq_pooled:leases:default"), {claim.member: 1})
    reply = ours.run(
        find_stalled(ours.settings, ours.token, [named("rq:queue:default")], "x", int(ours.run(("TIME",))[0]) + 5)
    )
    ((taken, stalls),) = stalled_of(reply, "x").taken
    assert taken.left_out == (b"data",) and b"data" not in taken.raw and stalls == 1 and taken.raw[b"timeout"] == b"180"


# -- reading ---------------------------------------------------------------------------------------------------------


def horses(pid: int) -> list[int]:
    """The worker's processes, the oldest first."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def being_read(redis: Redis) -> bool:
    """Tell whether a connection is lent, which only reading and writing large values need here."""
    return any(client["name"].endswith("exclusive") and int(client["omem"]) > 0 for client in redis.client_list())


def test_the_time_limit_begins_when_the_job_has_been_read(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Reading does not count: a job with a limit of 1 s is neither interrupted nor killed in the 2 s that reading
    takes.
    """
    queue = Queue(connection=redis)
    with slow_worker(server, tmp_path, RQ_POOLED_KILL_GRACE="0.5") as worker:
        queue.enqueue(large_jobs.digest, large_jobs.noise(8 * MB), job_id="read", job_timeout=1)
        queue.enqueue(large_jobs.hang, large_jobs.noise(8 * MB), job_id="hangs", job_timeout=1)
        wait_until(lambda: status(redis, "read") == "finished", what=worker.output)
        wait_until(lambda: status(redis, "hangs") == "failed", what=worker.output)
        assert "killing its horse" in worker.output() and redis.llen("runs:read") == 1


@pytest.mark.parametrize("share", ["yes", "no"])
def test_a_horse_that_dies_while_it_reads(server: EmbeddedServer, redis: Redis, tmp_path: Path, share: str) -> None:
    """Its job fails as in RQ, with its arguments where they were, and other jobs run; so with connections of its
    own.
    """
    queue = Queue(connection=redis)
    with slow_worker(server, tmp_path, RQ_POOLED_JOBS_SHARE=share) as worker:
        queue.enqueue(
            large_jobs.digest, large_jobs.noise(SIZE), job_id="large", on_failure=Callback("large_jobs.on_end")
        )
        before = redis.hget(named("rq:job:large"), "data")
        wait_until(lambda: status(redis, "large") == "started")
        if share == "yes":
            wait_until(lambda: being_read(redis), what="reading")
        os.kill(horses(worker.pid)[0], signal.SIGKILL)
        queue.enqueue(jobs.nothing, job_id="small")
        wait_until(lambda: status(redis, "small") == "finished")
        wait_until(lambda: status(redis, "large") == "failed", what=worker.output)
        result = Job.fetch("large", redis).latest_result()
        assert result is not None and "Work-horse terminated unexpectedly" in str(result.exc_string)
        assert redis.hget(named("rq:job:large"), "data") == before and not redis.exists("runs:large")
        wait_until(lambda: not keys_of_jobs(redis), what="no residue")


def test_a_worker_that_dies_while_its_horse_reads(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Its job runs elsewhere when its lease is over, once."""
    queue = Queue(connection=redis)
    with slow_worker(server, tmp_path, **QUICK) as worker:
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


# -- outcomes --------------------------------------------------------------------------------------------------------


def put_aside(ours: Engine, claim: Claim, *values: bytes) -> Any:
    """Put values aside as a horse does; the fields are 0, 1 …"""
    return ours.run(set_aside(claim.member, claim.queue, 60, [(str(i), value) for i, value in enumerate(values)]))


def naming(claim: Claim, *more: tuple[Any, ...]) -> Outcome:
    """An outcome that names what was put aside in the place of the second and third field."""
    return finished(
        claim, ("ASIDE", 2, 4, "0", 6, "1", "HSET", named(f"rq:job:{claim.job_id}"), "a", "", "b", "", "c", "d"), *more
    )


def test_a_commit_takes_what_was_put_aside(ours: Engine, redis: Redis) -> None:
    """It is written as if it had been part of the outcome, in the same step, and nothing stays."""
    Queue(connection=redis).enqueue(jobs.nothing, job_id="x")
    (claim,) = ours.claim("w").claims
    first, second = large_jobs.noise(MB), b"$5\r\n"
    assert put_aside(ours, claim, first, second) == 1
    assert 50 < redis.ttl(aside_key(claim.member)) <= 60
    assert ours.commit(naming(claim)) == ["ok"]
    assert redis.hmget(named("rq:job:x"), "a", "b", "c", "status") == [first, second, b"d", b"finished"]
    assert residue(redis) == []


def test_what_was_put_aside_and_is_gone_fails_the_outcome(ours: Engine, redis: Redis) -> None:
    """An outcome whose large values the server has lost changes nothing, and says why; others are recorded."""
    for name in "xy":
        Queue(connection=redis).enqueue(jobs.nothing, job_id=name)
    lost, other = ours.claim("w", "x").claims
    put_aside(ours, lost, b"only one")
    before = redis.hgetall(named("rq:job:x"))
    words = ours.commit(naming(lost), finished(other))
    assert words[0].startswith("ERR the server has lost a large value") and words[1] == "ok"
    assert redis.hgetall(named("rq:job:x")) == before and redis.zscore(named("rq:wip:default"), lost.member)
    put_aside(ours, lost, b"one", b"two")
    assert ours.commit(naming(lost)) == ["ok"]


def test_what_was_put_aside_goes_with_its_claim(ours: Engine, redis: Redis) -> None:
    """Whatever ends a claim removes it: a lost or another outcome, a stall, a push-back; without a claim nothing is
    kept.
    """
    queue = Queue(connection=redis)
    for end in ("lost", "bury", "stall", "push-back"):
        queue.enqueue(jobs.nothing, job_id=end)
        (claim,) = ours.claim("w").claims
        assert put_aside(ours, claim, b"one", b"two") == 1
        if end == "lost":
            redis.zrem(named("rq:wip:default"), claim.member)
            assert ours.commit(naming(claim)) == ["lost"]
        elif end == "bury":
            assert ours.commit(bare_failure(claim, "its horse died")) == ["ok"]
        elif end == "stall":
            redis.zadd(named("rq_pooled:leases:default"), {claim.member: 1})
            ours.run(
                find_stalled(
                    ours.settings, ours.token, [named("rq:queue:default")], "x", int(ours.run(("TIME",))[0]) + 5
                )
            )
        else:
            assert ours.run(push_back(ours.settings, ours.token, [claim])) == 1
        assert not redis.exists(aside_key(claim.member)), end
        assert put_aside(ours, claim, b"late") == 0 and not redis.exists(aside_key(claim.member))


def test_results_are_put_aside_when_the_memory_is_full(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """A large result is recorded though the server takes nothing new, as a small one is."""
    server = start_server()
    redis = server.client()
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log") as worker:
        queue.enqueue(large_jobs.wait_and_return, 3 * MB, job_id="large")
        wait_until(lambda: redis.exists("waits"))
        redis.config_set("maxmemory", "1mb")
        os.kill(int(redis.get("waits") or 0), signal.SIGUSR1)
        wait_until(lambda: status(redis, "large") == "finished", what=worker.output)
        redis.config_set("maxmemory", "0")
        assert Job.fetch("large", redis).return_value() == large_jobs.noise(3 * MB)


@pytest.mark.parametrize("share", ["yes", "no"])
def test_a_horse_that_dies_while_it_writes(server: EmbeddedServer, redis: Redis, tmp_path: Path, share: str) -> None:
    """Its job fails as in RQ, nothing stays, and other jobs run."""
    queue = Queue(connection=redis)
    with slow_worker(server, tmp_path, RQ_POOLED_JOBS_SHARE=share) as worker:
        queue.enqueue(large_jobs.returning, SIZE, job_id="large")
        worker.wait_for("Job OK (large)")
        os.kill(horses(worker.pid)[0], signal.SIGKILL)
        small = queue.enqueue(jobs.nothing)
        wait_until(lambda: status(redis, small.id) == "finished")
        wait_until(lambda: status(redis, "large") == "failed", what=worker.output)
        assert redis.llen("runs:large") == 1 and not Job.fetch("large", redis).return_value()
        wait_until(lambda: not keys_of_jobs(redis), what="no residue")


def test_a_worker_that_dies_while_its_horse_writes(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Its job runs again elsewhere when its lease is over, and its result is whole."""
    queue = Queue(connection=redis)
    with slow_worker(server, tmp_path, **QUICK) as worker:
        queue.enqueue(large_jobs.returning, SIZE, job_id="large")
        worker.wait_for("Job OK (large)")
        worker.kill()
        with running_worker(server.url, log=tmp_path / "other", **QUICK):
            wait_until(lambda: status(redis, "large") == "finished")
            assert not redis.keys(named("rq_pooled:aside:*"))
        assert redis.llen("runs:large") == 2 and Job.fetch("large", redis).return_value() == large_jobs.noise(SIZE)


@pytest.mark.parametrize("function", [large_jobs.digest, large_jobs.returning])
def test_an_outage_in_the_middle_is_ridden_out(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path, function: Any
) -> None:
    """A server that restarts while a large value is on its way costs that job time, and neither a run nor its
    result.
    """
    server = start_server({"appendonly": "yes", "appendfsync": "always"})
    queue = Queue(connection=server.client())
    with slow_worker(server, tmp_path, RQ_POOLED_RECONNECT_CAP="0.3") as worker:
        redis = server.client()
        queue.enqueue(function, large_jobs.noise(SIZE) if function is large_jobs.digest else SIZE, job_id="large")
        if function is large_jobs.returning:
            worker.wait_for("Job OK (large)")
        else:
            wait_until(lambda: being_read(redis), what="reading")
        server.stop()
        server.start()
        wait_until(lambda: status(redis, "large") == "finished", what=worker.output)
        assert redis.llen("runs:large") == 1
        wait_until(lambda: not keys_of_jobs(redis), what="no residue")


def test_a_commit_is_bounded_by_its_bytes(ours: Engine, redis: Redis) -> None:
    """Outcomes that are each just small enough to be sent whole do not add up to what stops all others."""
    sizes = []
    outcomes = outcomes_of(ours, [])
    for number in range(6):
        Queue(connection=redis).enqueue(jobs.nothing, job_id=f"j{number}")
        (claim,) = ours.claim("w").claims
        outcomes.add(finished(claim, ("SET", "text", "x" * 900_000)))
    while outcomes:
        exchange = outcomes.commit()
        replies = ours.command.execute(exchange.commands)
        sizes.append(len(replies[0]))
        exchange.on_replies(replies)
    assert sizes == [2, 2, 2]


def test_a_slow_line_is_not_a_dead_one(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A large value that takes many times SOCKET_TIMEOUT arrives at the first attempt, as long as something moves."""
    queue = Queue(connection=redis)
    with (
        closing(SlowProxy(server.port, 400_000)) as proxy,
        running_worker(proxy.url, log=tmp_path / "log", RQ_POOLED_SOCKET_TIMEOUT="1") as worker,
    ):
        opened = redis.info("stats")["total_connections_received"]
        queue.enqueue(large_jobs.returning, 2 * MB, job_id="large")
        wait_until(lambda: status(redis, "large") == "finished", what=worker.output)
        assert Job.fetch("large", redis).return_value() == large_jobs.noise(2 * MB)
        queue.enqueue(large_jobs.digest, large_jobs.noise(3 * MB), job_id="read")
        wait_until(lambda: status(redis, "read") == "finished", what=worker.output)
        assert redis.info("stats")["total_connections_received"] - opened <= 2
        assert redis.llen("runs:large") == redis.llen("runs:read") == 1


# -- what is not written again ---------------------------------------------------------------------------------------


def test_what_is_known_is_not_written_again() -> None:
    """Large fields that a job's hash holds already are left out of HSET, however compressed, unless it was deleted
    before.
    """
    noise = large_jobs.noise(100_000)
    known = {named(b"rq:job:a"): {b"data": zlib.compress(noise, 1), b"meta": b"m" * 70_000}}
    same = [
        b"HSET",
        named(b"rq:job:a"),
        b"data",
        zlib.compress(noise, 9),
        b"status",
        b"finished",
        b"meta",
        b"m" * 70_000,
    ]
    only = [b"HSET", named(b"rq:job:a"), b"meta", b"m" * 70_000]
    other = [b"HSET", named(b"rq:job:b"), *same[2:]]
    changed = [b"HSET", named(b"rq:job:a"), b"meta", b"n" * 70_000]
    light = [b"HSET", named(b"rq:job:a"), b"status", b"finished"]
    assert without_known([same, only, other, changed, [b"PING"]], known) == [light, other, changed, [b"PING"]]
    for deleting in (
        [b"DEL", b"x", named(b"rq:job:a")],
        [b"EXPIRE", named(b"rq:job:a"), b"0"],
        [b"HDEL", named(b"rq:job:a"), b"data"],
    ):
        assert without_known([deleting, same], known) == [deleting, same]
    assert without_known([[b"EXPIRE", named(b"rq:job:a"), b"5"], only], known) == [
        [b"EXPIRE", named(b"rq:job:a"), b"5"]
    ]


def test_large_words_get_names() -> None:
    """Only words above 64 kB are set apart, each under a name that no other attempt has."""
    long, short = b"x" * 70_000, b"y" * 60_000
    commands = [["PLAIN_SUCCESS", "w", 1.5, long], [b"HSET", b"k", b"f", short], [b"HSET", long, b"f", "z" * 70_000]]
    light, values = set_apart(commands)
    names = [name for name, _ in values]
    assert [value for _, value in values] == [long, long, "z" * 70_000] and len(set(names)) == 3
    assert light == [
        ["ASIDE", 1, 4, names[0], "PLAIN_SUCCESS", "w", 1.5, ""],
        commands[1],
        ["ASIDE", 2, 2, names[1], 4, names[2], b"HSET", "", b"f", ""],
    ]
    assert set(names).isdisjoint(name for name, _ in set_apart(commands)[1])


@pytest.mark.parametrize("parent_is_answered", [True, False])
def test_a_lost_connection_is_blamed_on_a_value_only_while_the_server_answers(
    server: EmbeddedServer, redis: Redis, monkeypatch: pytest.MonkeyPatch, parent_is_answered: bool
) -> None:
    """Connections lost in an outage count for no value, however many they are; those lost beside a live server do."""
    monkeypatch.setattr(large, "_DELAYS", (0.01, 0.02))
    redis.hset(named("rq:job:large"), "data", b"x")
    losses = 0
    with closing(CutProxy(server.port)) as proxy:
        pool = Pool(Settings(url=f"redis://127.0.0.1:{proxy.port}/0"))

        def ask(_commands: Any) -> list[Any]:
            nonlocal losses
            losses += 1
            if losses < 2 * MAX_LOSSES:
                proxy.cut_on(b"HMGET")
            if not parent_is_answered:
                raise RedisConnectionError("away")
            return [b"PONG"]

        values = LargeValues(pool, ask, logging.getLogger("test"))
        proxy.cut_on(b"HMGET")
        if parent_is_answered:
            with pytest.raises(Refused, match=f"lost {MAX_LOSSES} times"):
                values.read(named("rq:job:large"), [b"data"])
        else:
            assert values.read(named("rq:job:large"), [b"data"]) == {b"data": b"x"}
            assert losses == 2 * MAX_LOSSES
        pool.disconnect()
