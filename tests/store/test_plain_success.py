"""commit.lua records plain successes with few commands: whole or not at all, once, and only without dependents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from engine import Engine, engine, residue
from keys import named
from redis import Redis
from rq import Queue

from rq_pooled.store.claim import Claim
from rq_pooled.store.commit import NOTHING, Outcome
from rq_pooled.wire import pack_runs


@pytest.fixture
def ours(server: Any, redis: Redis) -> Iterator[Engine]:
    """An engine on an empty database, with workers registered."""
    with engine(server.url) as one:
        one.register("w", "x")
        yield one


def claims(ours: Engine, redis: Redis, *ids: str, name: str = "w") -> list[Claim]:
    """Enqueue jobs, and claim them one by one for one worker."""
    for job_id in ids:
        Queue(connection=redis).enqueue("math.factorial", 3, job_id=job_id)
    return [ours.claim(name).claims[0] for _ in ids]


def plain(claim: Claim, ttl: int = 500) -> Outcome:
    """The outcome of a job that has run for a quarter of a second."""
    words = ["PLAIN_SUCCESS", claim.worker_name, claim.queue, "then", "now", "now", 1.0, 2.0, "0.25", 2e9, ttl, b"gA=="]
    return Outcome(claim, "finished", NOTHING, (1, pack_runs([words])))


@pytest.mark.parametrize("key", ["rq:job:a", "rq:results:a", "rq:finished:default"])
def test_a_plain_success_that_is_refused_leaves_its_job_running(ours: Engine, redis: Redis, key: str) -> None:
    """Where one of its keys is of another type, nothing counts; sent again without that, it is recorded once."""
    (claim,) = claims(ours, redis, "a")
    kept = redis.dump(named(key))
    redis.set(named(key), "spoilt")
    (answer,) = ours.commit(plain(claim))
    assert "WRONGTYPE" in answer
    if key != "rq:job:a":
        assert redis.hget(named("rq:job:a"), "status") == b"started"
    assert redis.zcard(named("rq:wip:default")) == 1
    assert redis.hget(named("rq:worker:w"), "successful_job_count") is None
    redis.delete(named(key))
    if kept is not None:
        redis.restore(named(key), 0, kept)
    assert ours.commit(plain(claim)) == ["ok"]
    assert redis.xlen(named("rq:results:a")) == redis.zcard(named("rq:finished:default")) == 1
    assert (redis.hget(named("rq:worker:w"), "successful_job_count"), residue(redis)) == (b"1", [])


def test_a_plain_success_knows_of_no_dependents(ours: Engine, redis: Redis) -> None:
    """A job that has got dependents is not recorded as a plain success; without them it is."""
    (claim,) = claims(ours, redis, "a")
    redis.sadd(named("rq:job:a:dependents"), "b")
    assert ours.commit(plain(claim)) == ["changed"]
    assert redis.hget(named("rq:job:a"), "status") == b"started"
    redis.delete(named("rq:job:a:dependents"))
    assert ours.commit(plain(claim)) == ["ok"]


def test_successes_of_one_call_count_for_each_worker(ours: Engine, redis: Redis) -> None:
    """A call with several outcomes of a worker adds up what it has done, and counts one that it holds twice once."""
    mine, others = claims(ours, redis, "a", "b", "c"), claims(ours, redis, "d", name="x")
    assert ours.commit(*map(plain, [*mine, *others, mine[0]])) == ["ok", "ok", "ok", "ok", "lost"]
    for name, count, worked in (("w", b"3", 0.75), ("x", b"1", 0.25)):
        counted, seconds, state = redis.hmget(
            named(f"rq:worker:{name}"), "successful_job_count", "total_working_time", "state"
        )
        assert (counted, float(seconds), state) == (count, worked, b"idle")
    assert redis.zcard(named("rq:finished:default")) == 4
    assert [redis.ttl(named(f"rq:job:{job_id}")) for job_id in "abcd"] == [500] * 4
    assert residue(redis) == []


def test_a_worker_that_has_another_job_stays_busy(ours: Engine, redis: Redis) -> None:
    """A worker is idle when the last of its executions has ended, not before."""
    first, second = claims(ours, redis, "a", "b")
    assert ours.commit(plain(first)) == ["ok"]
    assert redis.hget(named("rq:worker:w"), "state") == b"busy"
    assert ours.commit(plain(second)) == ["ok"]
    assert redis.hget(named("rq:worker:w"), "state") == b"idle"
