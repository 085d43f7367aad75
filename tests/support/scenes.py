"""Each script once, on a server that is prepared for it: what tests take away, break or count beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jobs
from engine import Engine, finished
from keys import named
from redis import Redis
from rq import Queue
from rq.job import Job
from stalls import end_lease

from rq_pooled.queue.pause import pause
from rq_pooled.store import failed, leases, rq_scheduler, scheduled, statistics, workers
from rq_pooled.store.budget import reserve
from rq_pooled.store.claim import claim_jobs
from rq_pooled.store.commit import commit_outcomes, set_aside
from rq_pooled.store.enqueue import enqueue_jobs, enqueue_many, enqueue_new
from rq_pooled.store.keys import budget_keys
from rq_pooled.store.limits import change_limit
from rq_pooled.store.locks import SweepLock
from rq_pooled.store.repair import queue_ready, remove_executions, remove_ghosts, rescue_intermediate, rescue_jobs
from rq_pooled.store.sentries import Post
from rq_pooled.wire import Command, pack_runs

LOCK = SweepLock(named("rq_pooled:sweep:q"), "", 30)
OWN_LOCK = SweepLock(named("rq_pooled:sweep:q"), "us", 30)
#: Too large to come with a claim.
LARGE = b"x" * 1_100_000
Scene = Callable[[Engine, Redis], Command]
SCENES: dict[str, Scene] = {}


def scene(function: Scene) -> Scene:
    """Note a step: the script's name, then what is special about it; it prepares a server and returns the call."""
    SCENES[function.__name__] = function
    return function


def enqueue(redis: Redis, *ids: str, **fields: Any) -> None:
    """Queue jobs, each with these fields besides its own."""
    for job_id in ids:
        Queue(connection=redis).enqueue(jobs.nothing, job_id=job_id)
        if fields:
            redis.hset(named(f"rq:job:{job_id}"), mapping=fields)


def fail(redis: Redis, *ids: str, **fields: Any) -> None:
    """Have jobs stand in the failed registry."""
    enqueue(redis, *ids, status="failed", **fields)
    redis.delete(named("rq:queue:default"))
    redis.zadd(named("rq:failed:default"), dict.fromkeys(ids, 2e9))


def schedule(redis: Redis, *ids: str, **fields: Any) -> None:
    """Have jobs be due since long ago."""
    for job_id in ids:
        Job.create(jobs.nothing, id=job_id, connection=redis, origin="default").save()
        redis.hset(named(f"rq:job:{job_id}"), mapping={"status": "scheduled", "ttl": 900, **fields})
        redis.zadd(named("rq:scheduled:default"), {job_id: 1000})


def claim_two(ours: Engine, redis: Redis, **fields: Any) -> list[Any]:
    """Claim two jobs for two registered workers."""
    ours.register("v", "w")
    enqueue(redis, "a", "b", **fields)
    return ours.claim("v", "w").claims


def claiming(ours: Engine) -> Command:
    """A claim for three workers."""
    return claim_jobs(ours.settings, ours.token, [named("rq:queue:default")], "default", ["v", "w", "x"])[0]


@scene
def claim(ours: Engine, redis: Redis) -> Command:
    ours.register("v", "w", "x")
    enqueue(redis, "a", "b", timeout=5)
    return claiming(ours)


@scene
def claim_stale(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b")
    redis.delete(named("rq:job:a"))
    return claiming(ours)


@scene
def claim_once(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b", "c", rq_pooled_once="k", timeout=5)
    redis.hset(named("rq:job:b"), "rq_pooled_once", "spent")
    redis.set(named("rq_pooled:once:spent"), "another")
    return claiming(ours)


@scene
def claim_limited(ours: Engine, redis: Redis) -> Command:
    ours.run(change_limit("default", "operator", "2 60000000 2"))
    enqueue(redis, "a", "b", "c")
    return claiming(ours)


@scene
def claim_paused(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b")
    pause(redis, "default")
    return claiming(ours)


@scene
def claim_twice_queued(ours: Engine, redis: Redis) -> Command:
    claim_two(ours, redis)
    redis.lpush(named("rq:queue:default"), "a")
    enqueue(redis, "c")
    return claiming(ours)


@scene
def claim_large(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", data=LARGE)
    return claiming(ours)


@scene
def claim_of_another_queue(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", origin="elsewhere")
    return claiming(ours)


@scene
def doze(ours: Engine, redis: Redis) -> Command:
    redis.set(Post.of(["default"], "v").sentry_key, "another")
    return Post.of(["default"], "v").doze(1, 0)


@scene
def commit(ours: Engine, redis: Redis) -> Command:
    return commit_outcomes(ours.token, [finished(one) for one in claim_two(ours, redis)])


@scene
def commit_plain(ours: Engine, redis: Redis) -> Command:
    outcomes = [finished(one) for one in claim_two(ours, redis)]
    for outcome in outcomes:
        words = ("v", "default", "s", "e", "h", 1, 2, 0.5, 2e9, 500, b"result")
        outcome.commands = (1, pack_runs([("PLAIN_SUCCESS", *words)]))
    return commit_outcomes(ours.token, outcomes)


@scene
def commit_kept_for_ever(ours: Engine, redis: Redis) -> Command:
    (outcome, _) = [finished(one) for one in claim_two(ours, redis)]
    outcome.commands = (1, pack_runs([("PLAIN_SUCCESS", "v", "default", "s", "e", "h", 1, 2, 0.5, 2e9, -1)]))
    return commit_outcomes(ours.token, [outcome])


@scene
def commit_aside(ours: Engine, redis: Redis) -> Command:
    (one, _) = claim_two(ours, redis)
    ours.run(set_aside(one.member, "default", 60, [("f", b"large")]))
    outcome = finished(one)
    outcome.commands = (1, pack_runs([("ASIDE", 1, 4, "f", "HSET", named(f"rq:job:{one.job_id}"), "result", "")]))
    return commit_outcomes(ours.token, [outcome])


@scene
def commit_retry(ours: Engine, redis: Redis) -> Command:
    (one, _) = claim_two(ours, redis)
    more = [
        ("HDEL", named("rq:job:a"), "ended_at"),
        ("LPUSH", named("rq:queue:default"), "a"),
        ("EXPIRE", named("rq:job:a"), "50"),
    ]
    return commit_outcomes(ours.token, [finished(one, *more, ("SADD", named("rq:queues"), named("rq:queue:default")))])


@scene
def commit_lost(ours: Engine, redis: Redis) -> Command:
    one, other = claim_two(ours, redis)
    redis.zrem(named("rq:wip:default"), one.member, other.member)
    redis.zadd(named("rq:canceled:default"), {"a": 1})
    redis.hdel(named("rq:job:b"), "data")
    return commit_outcomes(ours.token, [finished(one), finished(other)])


@scene
def push_back(ours: Engine, redis: Redis) -> Command:
    return leases.push_back(ours.settings, ours.token, claim_two(ours, redis, ttl=900))


@scene
def push_back_begun(ours: Engine, redis: Redis) -> Command:
    return leases.push_back(ours.settings, ours.token, claim_two(ours, redis), begun=True)


@scene
def stalled(ours: Engine, redis: Redis) -> Command:
    claims = claim_two(ours, redis, ttl=900)
    redis.hset(named("rq:job:b"), "rq_pooled_stalls", 9)
    end_lease(redis, *(one.member for one in claims))
    return leases.find_stalled(ours.settings, ours.token, [named("rq:queue:default")], "v", 9e9)


@scene
def stalled_deleted(ours: Engine, redis: Redis) -> Command:
    claims = claim_two(ours, redis)
    redis.delete(named("rq:job:a"))
    end_lease(redis, *(one.member for one in claims))
    return leases.find_stalled(ours.settings, ours.token, [named("rq:queue:default")], "v", 9e9)


@scene
def promote(ours: Engine, redis: Redis) -> Command:
    schedule(redis, "a", "b", enqueue_at_front=1)
    schedule(redis, "c", "gone")
    redis.delete(named("rq:job:gone"))
    return scheduled.promote(["default"], "us", {"name": "us"})


@scene
def promote_from_another(ours: Engine, redis: Redis) -> Command:
    schedule(redis, "a")
    redis.set(named("rq:scheduler-lock:default"), "other", ex=60)
    redis.hset(named("rq:scheduler:other"), "rq_pooled", "1")
    redis.pexpire(named("rq:scheduler-lock:default"), 30000)
    return scheduled.promote(["default"], "us", {"name": "us"})


def moving(ours: Engine, redis: Redis, next_time: int | None, depends_on: list[str]) -> Command:
    """A move of one of rq-scheduler's jobs, whose lock we hold."""
    enqueue(redis, "a", ttl=900)
    redis.delete(named("rq:queue:default"))
    redis.zadd(named("rq:scheduler:scheduled_jobs"), {"a": 1000})
    redis.set(named("rq:scheduler_lock"), "us", ex=60)
    fields = ["status", "queued", "enqueued_at", "now"]
    return rq_scheduler.move_job(
        named("rq:queue:default"), ("us", 60), "a", 1000.0, next_time, False, 900, depends_on, fields
    )


@scene
def move(ours: Engine, redis: Redis) -> Command:
    return moving(ours, redis, None, [])


@scene
def move_again(ours: Engine, redis: Redis) -> Command:
    return moving(ours, redis, 2000, [])


@scene
def move_deferred(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "first")
    return moving(ours, redis, 2000, ["first"])


@scene
def move_gone(ours: Engine, redis: Redis) -> Command:
    command = moving(ours, redis, 2000, [])
    redis.delete(named("rq:job:a"))
    return command


def requeue(ours: Engine, due: str, lock: SweepLock = LOCK) -> Command:
    """A requeue of two failed jobs."""
    words = ("now", b"", 180, True, 3, "default", None, [("a", "any", due), ("b", "any", due)])
    return failed.failed_requeue(named("rq:failed:default"), lock, *words)


@scene
def failed_requeue(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b", ttl=900)
    return requeue(ours, "")


@scene
def failed_requeue_later(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b")
    redis.set(named("rq_pooled:sweep:q"), "us", ex=9)
    return requeue(ours, "3000", OWN_LOCK)


@scene
def failed_requeue_ghost(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b")
    redis.delete(named("rq:job:a"))
    return requeue(ours, "")


@scene
def failed_bury(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b")
    redis.zadd(named("rq:scheduler:scheduled_jobs"), {"b": 1})
    return failed.failed_bury(
        named("rq:failed:default"), LOCK, named("rq_pooled:dead:q"), 60, [("a", "any"), ("b", "any")]
    )


@scene
def failed_purge(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b", group_id="g")
    redis.sadd(named("rq:group:g"), "a")
    redis.zadd(named("rq:executions:a"), {"x": 1})
    redis.zadd(named("rq:scheduler:scheduled_jobs"), {"b": 1})
    return failed.failed_purge(named("rq:failed:default"), LOCK, [("a", "any"), ("b", "any")])


@scene
def failed_ghosts(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b")
    redis.delete(named("rq:job:a"))
    return failed.failed_ghosts(named("rq:failed:default"), LOCK, 0, 10, False)


def enqueueing(ours: Engine, limit: tuple[str, int] = ("", 0), **options: Any) -> Command:
    """An enqueue of two jobs."""
    fields = ["data", b"x", "status", "queued", "created_at", "then", "origin", "default", "timeout", "5"]
    one = [(name, name == "a", 900, fields, limit) for name in "ab"]
    return enqueue_jobs(named("rq:queue:default"), 9, False, options.get("once"), options.get("unique"), 9, "now", one)


@scene
def enqueue_two(ours: Engine, redis: Redis) -> Command:
    return enqueueing(ours)


@scene
def enqueue_many_two(ours: Engine, redis: Redis) -> Command:
    fields = ["data", b"x", "status", "queued", "created_at", "then", "origin", "default", "timeout", "5"]
    return enqueue_many(named("rq:queue:default"), [(name, name == "a", 900, fields) for name in "ab"])


@scene
def enqueue_new_one(ours: Engine, redis: Redis) -> Command:
    fields = ["data", b"x", "status", "queued", "created_at", "then", "origin", "default", "timeout", "5"]
    return enqueue_new(named("rq:job:a"), named("rq:queue:default"), "a", False, 900, fields)


@scene
def enqueue_new_front(ours: Engine, redis: Redis) -> Command:
    return enqueue_new(named("rq:job:a"), named("rq:queue:default"), "a", True, None, ["data", b"x"])


@scene
def enqueue_unique(ours: Engine, redis: Redis) -> Command:
    redis.set(named("rq_pooled:unique:u"), "then gone")
    return enqueueing(ours, once=named("rq_pooled:once:k"), unique=named("rq_pooled:unique:u"))


@scene
def rescue(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b")
    redis.delete(named("rq:queue:default"), named("rq:queues"))
    return rescue_jobs(True, [(name, redis.hget(named(f"rq:job:{name}"), "enqueued_at").decode()) for name in "ab"])


@scene
def intermediate(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b")
    redis.rename(named("rq:queue:default"), named("rq:queue:default:intermediate"))
    redis.zadd(named("rq_pooled:intermediate:default"), {"a": 1, "b": 2, "c": 3})
    return rescue_intermediate([named("rq:queue:default")], 20)


@scene
def ready(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b", status="ready_to_enqueue")
    redis.delete(named("rq:queue:default"), named("rq:queues"))
    redis.zadd(named("rq:ready:default"), {"a": 1, "b": 2, "c": 3})
    return queue_ready([named("rq:queue:default")], 20, "now")


@scene
def limit(ours: Engine, redis: Redis) -> Command:
    ours.run(change_limit("default", "operator", "2 60000000 2"))
    return change_limit("default", "code", "1 1 1")


@scene
def limit_cleared(ours: Engine, redis: Redis) -> Command:
    ours.run(change_limit("default", "code", "1 1 1"))
    redis.lpush(named("rq_pooled:starts:default"), "1")
    return change_limit("default", "clear", "")


@scene
def admit(ours: Engine, redis: Redis) -> Command:
    return workers.admit("token", True, 30)


@scene
def publish(ours: Engine, redis: Redis) -> Command:
    return statistics.publish("x", 60, {"kind": "worker"})


@scene
def postpone(ours: Engine, redis: Redis) -> Command:
    for one in claim_two(ours, redis):
        redis.zadd(named("rq:wip:default"), {one.member: 1})
    return leases.postpone([named("rq:queue:default")], 900)


@scene
def aside(ours: Engine, redis: Redis) -> Command:
    (one, _) = claim_two(ours, redis)
    return set_aside(one.member, "default", 60, [("f", b"large"), ("g", b"larger")])


@scene
def register(ours: Engine, redis: Redis) -> Command:
    redis.hset(named("rq:worker:v"), mapping={"birth": "b", "death": "d"})
    slots = [(name, {"birth": "c", "state": "idle"}) for name in "vw"]
    return workers.register_workers(480, False, ("", 0), ["default", "low"], slots)


@scene
def budget(ours: Engine, redis: Redis) -> Command:
    keys = budget_keys("shop")
    ours.run(reserve(keys, "u", 1, 2, 1, 20, 60, 6, []))
    redis.zadd(keys[0], {"u": 1})
    return reserve(keys, "t", 1, 2, 1, 20, 60, 6, ["u"])


@scene
def sample(ours: Engine, redis: Redis) -> Command:
    return statistics.note_clients(1, 10, 15)


@scene
def ghosts(ours: Engine, redis: Redis) -> Command:
    redis.zadd(named("rq:finished:default"), {"a": 1, "b": 2})
    return remove_ghosts(named("rq:finished:default"), "0", 10, "t", 10)


@scene
def executions(ours: Engine, redis: Redis) -> Command:
    redis.hset(named("rq:execution:a:x"), "id", "x")
    redis.zadd(named("rq:executions:a"), {"x": 1, "y": 2})
    return remove_executions("0", 100, "t", 10)


@scene
def scheduler_due(ours: Engine, redis: Redis) -> Command:
    redis.zadd(named("rq:scheduler:scheduled_jobs"), {"a": 1})
    return rq_scheduler.scheduler_due("t", 60)
