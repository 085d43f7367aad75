"""Claims of several jobs per slot: how many there are, and what viewers see of them."""

from __future__ import annotations

from typing import Any

import pytest
from engine import Engine, engine, finished
from keys import named
from redis import Redis
from rq import Queue

from rq_pooled import rq_api
from rq_pooled.queue.limits import make_limit, set_limit
from rq_pooled.store.claim import MAX_CLAIM_AHEAD, Claimed
from rq_pooled.store.keys import SLEEPERS
from rq_pooled.store.leases import push_back


def fill(redis: Redis, count: int, queue: str = "default") -> Queue:
    """Enqueue so many jobs."""
    one = Queue(queue, connection=redis)
    for number in range(count):
        one.enqueue("builtins.len", "x", job_id=f"{queue[0]}{number}", result_ttl=60)
    return one


def of_slots(claimed: Claimed) -> dict[str, list[str]]:
    """The jobs of each worker name."""
    found: dict[str, list[str]] = {}
    for claim in claimed.claims:
        found.setdefault(claim.worker_name, []).append(claim.job_id)
    return found


def current(redis: Redis, name: str) -> Any:
    """The job that a worker shows; with RQ 3 that is its only execution."""
    if not rq_api.RQ3:
        return redis.hget(named(f"rq:worker:{name}"), "current_job")
    (member,) = redis.smembers(named(f"rq:worker:{name}:executions"))
    return member.rpartition(b":")[0]


@pytest.mark.parametrize(("jobs", "taken"), [(1, 1), (3, 2), (5, 2), (6, 3), (7, 4), (8, 5), (20, 8)])
def test_each_registered_slot_finds_a_job(server: Any, redis: Redis, jobs: int, taken: int) -> None:
    """Only jobs beyond one for each slot of all workers are claimed ahead, up to so many per slot."""
    queue = fill(redis, jobs)
    with engine(server.url) as ours, engine(server.url, "other") as theirs:
        ours.register("a", "b")
        theirs.register("c")
        claimed = ours.claim("a", "b", per_name=4)
        # Two are for these slots, and three stay for all three slots.
        assert len(claimed.claims) == taken
        assert queue.get_job_ids() == [f"d{number}" for number in range(taken, jobs)]


def test_slots_get_jobs_in_turns(server: Any, redis: Redis) -> None:
    """The first round gives each slot a job, and each further round one more, in the order of the queue."""
    fill(redis, 9)
    with engine(server.url) as ours:
        ours.register("a", "b")
        assert of_slots(ours.claim("a", "b", per_name=3)) == {"a": ["d0", "d2", "d4"], "b": ["d1", "d3", "d5"]}


@pytest.mark.parametrize(("jobs", "heard"), [(8, 1), (1, 0)])
def test_what_is_left_for_others_wakes_one(server: Any, redis: Redis, jobs: int, heard: int) -> None:
    """A claim that may take no more ahead, and leaves jobs, wakes one that sleeps; where none is left it sleeps on."""
    fill(redis, jobs)
    redis.zadd(f"{SLEEPERS}crew", {"a-sleeper": 0})
    with engine(server.url) as ours, redis.pubsub() as listener:
        listener.subscribe("a-sleeper")
        assert listener.get_message(timeout=5)["type"] == "subscribe"
        ours.register("a", "b", "c")
        claimed = ours.claim("a", per_name=16, crew="crew")
        assert claimed.left == bool(heard) and len(claimed.claims) < max(2, jobs)
        assert redis.zcard(f"{SLEEPERS}crew") == 1 - heard
        assert (listener.get_message(timeout=0.5) is not None) == bool(heard)


def test_no_more_than_one_step_can_take(server: Any, redis: Redis) -> None:
    """Whatever is asked for, a claim holds the server for a bounded time."""
    fill(redis, MAX_CLAIM_AHEAD + 50)
    with engine(server.url) as ours:
        ours.register("a", "b")
        claimed = ours.claim("a", "b", per_name=1000)
        assert len(claimed.claims) == MAX_CLAIM_AHEAD
        assert len({claim.execution_id for claim in claimed.claims}) == MAX_CLAIM_AHEAD
        assert {len(claim.execution_id) for claim in claimed.claims} == {32}


@pytest.mark.parametrize("limit", [("1000/1s", None), (None, 100)])
def test_nothing_is_claimed_ahead_from_a_limited_queue(server: Any, redis: Redis, limit: tuple[Any, Any]) -> None:
    """Where a limit counts what starts or runs, a job that only waits would count; others may have it."""
    fill(redis, 20)
    fill(redis, 20, "other")
    set_limit(redis, "default", make_limit(*limit))
    with engine(server.url) as ours:
        ours.register("a", queues=("default", "other"))
        found = of_slots(ours.claim("a", queues=("default", "other"), per_name=4))
        assert found == {"a": ["d0", "o0", "o1", "o2"]}


@pytest.mark.skipif(not rq_api.RQ3, reason="RQ 2 has no rate limits")
def test_nothing_of_a_rate_limit_is_claimed_ahead(server: Any, redis: Redis) -> None:
    """A job of RQ 3's rate limit that only waited would keep another one of its limit from running elsewhere."""
    import rq

    queue = fill(redis, 2)
    for number in range(10):
        queue.enqueue("builtins.len", "x", job_id=f"r{number}", rate_limit=rq.RateLimit("k", 10))
    with engine(server.url) as ours:
        ours.register("a")
        assert of_slots(ours.claim("a", per_name=8)) == {"a": ["d0", "d1"]}
        assert queue.get_job_ids() == [f"r{number}" for number in range(10)]


def test_strategies_hold_ahead(server: Any, redis: Redis) -> None:
    """Round robin takes its turns among the jobs that are claimed ahead, too."""
    for name in "xyz":
        fill(redis, 6, name)
    with engine(server.url) as ours:
        ours.register("a", queues="xyz")
        found = of_slots(ours.claim("a", queues="xyz", strategy="round_robin", per_name=6))
        assert found == {"a": ["x0", "y0", "z0", "x1", "y1", "z1"]}


def hold(ours: Engine, redis: Redis) -> list[Any]:
    """Claim three jobs for one slot."""
    fill(redis, 6)
    ours.register("a")
    claims = ours.claim("a", per_name=3).claims
    assert [claim.job_id for claim in claims] == ["d0", "d1", "d2"]
    return claims


def test_a_worker_shows_the_job_that_is_left(server: Any, redis: Redis) -> None:
    """The job that a slot shows is one that it has: the first at first, the last one when the others have ended."""
    with engine(server.url) as ours:
        claims = hold(ours, redis)
        key = named("rq:worker:a")
        assert redis.hget(key, "current_job") in (b"d0", None)
        assert ours.commit(finished(claims[0])) == ["ok"]
        assert redis.hget(key, "state") == b"busy"
        assert ours.run(push_back(ours.settings, "token", claims[2:])) == 1
        assert current(redis, "a") == b"d1" and redis.hget(key, "state") == b"busy"
        assert ours.commit(finished(claims[1])) == ["ok"]
        assert redis.hget(key, "state") == b"idle" and not redis.hget(key, "current_job")
        assert not redis.exists(named("rq:worker:a:executions"))


def test_a_worker_shows_no_job_that_is_gone(server: Any, redis: Redis) -> None:
    """RQ 2 raises for a current job without a hash: where the first one leaves none, another one of the slot stands."""
    with engine(server.url) as ours:
        claims = hold(ours, redis)
        gone = finished(claims[0], ("DEL", named(f"rq:job:{claims[0].job_id}")))
        assert ours.commit(gone) == ["ok"]
        left = [claim.job_id.encode() for claim in claims[1:]]
        assert len(left) > 1 and redis.hget(named("rq:worker:a"), "current_job") in ([None] if rq_api.RQ3 else left)


def test_what_is_put_back_has_its_old_order(server: Any, redis: Redis) -> None:
    """Jobs of several slots go back into the order of the queue, though each slot had every second one."""
    queue = fill(redis, 9)
    with engine(server.url) as ours:
        ours.register("a", "b")
        claimed = ours.claim("a", "b", per_name=3).claims
        by_slot = [claim for name in "ba" for claim in claimed if claim.worker_name == name]
        assert ours.run(push_back(ours.settings, "token", by_slot)) == 6
        assert queue.get_job_ids() == [f"d{number}" for number in range(9)]


def test_what_is_put_back_is_as_it_was(server: Any, redis: Redis) -> None:
    """Jobs that waited go back to the front of their queue in their order, queued, and uncharged."""
    with engine(server.url) as ours:
        claims = hold(ours, redis)
        before = {job_id: redis.hgetall(named(f"rq:job:{job_id}")) for job_id in ("d3", "d4")}
        assert ours.run(push_back(ours.settings, "token", claims[1:])) == 2
        assert Queue(connection=redis).get_job_ids() == ["d1", "d2", "d3", "d4", "d5"]
        for job_id in ("d1", "d2"):
            fields = redis.hgetall(named(f"rq:job:{job_id}"))
            assert fields[b"status"] == b"queued" and b"rq_pooled_stalls" not in fields
            assert set(fields) - set(before["d3"]) <= {b"started_at", b"worker_name", b"last_heartbeat"}
        assert current(redis, "a") == b"d0"
