"""Numbers, types and sizes that a script cannot take: they harm their own job at most, and never leave one in no
list.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jobs
import pytest
from engine import Engine, engine, finished, key_space
from keys import named
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.job import Job
from rq.registry import FailedJobRegistry
from scenes import SCENES, requeue
from scenes import fail as put_into_failed
from stalls import end_lease, look

import rq_pooled
from rq_pooled.durations import LONGEST
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError
from rq_pooled.failed import Sweeper
from rq_pooled.failed.listing import failed_jobs
from rq_pooled.monitoring.processes import read_processes
from rq_pooled.monitoring.queues import queues
from rq_pooled.queue.limits import limits_in_force
from rq_pooled.queue.rescue import find_lost
from rq_pooled.scheduler.mover import Mover, ScheduleLock
from rq_pooled.store.commit import bare_failure
from rq_pooled.store.enqueue import enqueue_jobs
from rq_pooled.store.failed import failed_bury, failed_purge, failed_requeue
from rq_pooled.store.keys import LIMITS, QUEUES, STATS
from rq_pooled.store.leases import heartbeat, push_back
from rq_pooled.store.limits import change_limit
from rq_pooled.store.locks import SweepLock
from rq_pooled.store.repair import rescue_intermediate
from rq_pooled.store.scheduled import promote
from rq_pooled.store.statistics import publish

#: What a field with a number may hold that others have written.
NUMBERS = (sys.maxsize, 10**400, "1e300", "inf", "-inf", "nan", "12.5", "soon", "", "-1", "0x10")
IDS = ("a", "b", "odd", "c", "d")
NO_LOCK = SweepLock(named("rq_pooled:sweep:q"), "", 30)


@pytest.fixture
def ours(server: EmbeddedServer, redis: Redis) -> Iterator[Engine]:
    """A ledger with five registered workers."""
    with engine(server.url, max_stalls=2) as one:
        one.register(*"vwxyz")
        yield one


@pytest.fixture
def queue(redis: Redis) -> Queue:
    """Five queued jobs, of which the third is the odd one."""
    queue = Queue(connection=redis)
    for job_id in IDS:
        queue.enqueue(jobs.nothing, job_id=job_id)
    return queue


def texts(redis: Redis, key: str = named("rq:queue:default")) -> list[str]:
    """The ids in a list."""
    return [word.decode() for word in redis.lrange(key, 0, -1)]


def replace(redis: Redis, key: str) -> None:
    """Put a text where something else belongs."""
    redis.delete(key)
    redis.set(key, "text")


def number_of(field: str, value: Any) -> Callable[[Redis], None]:
    """Have the odd job's hash hold this."""
    return lambda redis: redis.hset(named("rq:job:odd"), field, str(value))


def text_at(key: str) -> Callable[[Redis], None]:
    """Have this key hold a text."""
    return lambda redis: replace(redis, key)


ODD = [
    *(pytest.param(number_of("ttl", number), id=f"ttl {str(number)[:9]}") for number in NUMBERS),
    *(
        pytest.param(number_of("rq_pooled_stalls", number), id=f"stalls {str(number)[:9]}")
        for number in ("soon", "nan", "0.5")
    ),
    *(
        pytest.param(text_at(key), id=key)
        for key in (named("rq:executions:odd"), named("rq:worker:x"), named("rq_pooled:claims:token"))
    ),
]


@pytest.mark.parametrize("spoil", ODD)
def test_stalled_jobs_come_back_beside_an_odd_one(ours: Engine, redis: Redis, queue: Queue, spoil: Any) -> None:
    """A number or key that RQ would not have written keeps no stalled job from its queue, its own included."""
    claims = ours.claim(*"vwxyz").claims
    spoil(redis)
    redis.zadd(named("rq_pooled:leases:default"), {"no claim": 0})
    end_lease(redis, *(claim.member for claim in claims))
    assert [job_id for job_id, *_ in look(ours).returned] == list(IDS)
    assert texts(redis) == list(IDS)
    assert redis.zcard(named("rq:wip:default")) == redis.zcard(named("rq_pooled:leases:default")) == 0
    assert redis.ttl(named("rq:job:odd")) <= LONGEST


def test_a_queue_that_is_no_list_keeps_its_stalled_jobs_claimed(ours: Engine, redis: Redis, queue: Queue) -> None:
    """A job whose queue cannot take it stays claimed until the queue can; those of other queues come back."""
    redis.rename(named("rq:queue:default"), named("rq:queue:other"))
    other = Queue("fine", redis).enqueue(jobs.nothing, job_id="fine")
    claims = [*ours.claim("v", queues=["other"]).claims, *ours.claim("w", queues=["fine"]).claims]
    for key in (named("rq:queue:other"), named("rq:queue:default")):
        replace(redis, key)
    end_lease(redis, claims[0].member)
    end_lease(redis, claims[1].member, queue="fine")
    assert [job_id for job_id, *_ in look(ours).returned] == [other.id]
    assert redis.zscore(named("rq:wip:default"), claims[0].member) is not None
    redis.delete(named("rq:queue:default"))
    end_lease(redis, claims[0].member)
    assert [job_id for job_id, *_ in look(ours).returned] == ["a"]
    assert texts(redis) == ["a"]


@pytest.mark.parametrize("spoil", ODD)
def test_claims_are_undone_beside_an_odd_one(ours: Engine, redis: Redis, queue: Queue, spoil: Any) -> None:
    """Whatever one job's hash or keys hold, all claims that are pushed back are queued again, in their order."""
    claims = ours.claim(*"vwxyz").claims
    spoil(redis)
    assert ours.run(push_back(ours.settings, ours.token, claims, begun=True)) == 5
    assert texts(redis) == list(IDS)
    assert redis.zcard(named("rq:wip:default")) == 0


def test_a_claim_whose_queue_is_no_list_stays_a_claim(ours: Engine, redis: Redis, queue: Queue) -> None:
    """A job that cannot be put back is not dropped: its lease ends, so that it goes back once its queue is a list
    again.
    """
    (claim,) = ours.claim("v").claims
    replace(redis, named("rq:queue:default"))
    assert ours.run(push_back(ours.settings, ours.token, [claim])) == 0
    redis.delete(named("rq:queue:default"))
    assert [job_id for job_id, *_ in look(ours).returned] == ["a"]


@pytest.mark.parametrize("way", ["stalled", "push_back"])
@pytest.mark.parametrize("right", ["hset", "lpush", "expire", "hget"])
def test_a_withdrawn_right_loses_no_claimed_job(
    server: EmbeddedServer, redis: Redis, queue: Queue, right: str, way: str
) -> None:
    """Claims whose jobs may not be written back stay claims, and go back once the right is there again."""
    redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "&*", "+@all")
    with engine(server.url.replace("redis://", "redis://limited:pw@"), max_stalls=2) as one:
        one.register(*"vwxyz")
        claims = one.claim(*"vwxyz").claims
        end_lease(redis, *(claim.member for claim in claims))
        for rule in (f"-{right}", "+@all"):
            redis.execute_command("ACL", "SETUSER", "limited", rule)
            redis.delete(named("rq_pooled:lock:stalled"))
            with contextlib.suppress(ResponseError):
                look(one) if way == "stalled" else one.run(push_back(one.settings, one.token, claims))
            back, claimed = len(texts(redis)), redis.zcard(named("rq:wip:default"))
            assert back + claimed == 5
    redis.acl_deluser("limited")
    assert texts(redis) == list(IDS)


def test_a_claim_that_is_not_allowed_says_so(server: EmbeddedServer, redis: Redis, queue: Queue) -> None:
    """Where the right to ZADD is withdrawn the job goes back, and the error is the server's, which claims wait for."""
    redis.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", "-zadd")
    limited = server.url.replace("redis://", "redis://limited:pw@")
    with engine(limited) as one, pytest.raises(ResponseError, match="permission|can't run this command"):
        one.claim("v")
    redis.acl_deluser("limited")
    assert texts(redis) == list(IDS)


@pytest.mark.parametrize("spoil", [*ODD, pytest.param(text_at(named("rq:job:odd")), id=named("rq:job:odd"))])
def test_scheduled_jobs_are_moved_beside_an_odd_one(ours: Engine, redis: Redis, spoil: Any) -> None:
    """A due job with a hostile number, or whose key is no hash, stops neither its queue's jobs nor other queues'."""
    for job_id in (*IDS, "other"):
        Job.create(jobs.nothing, id=job_id, connection=redis, origin="default").save()
        redis.zadd(named("rq:scheduled:other") if job_id == "other" else named("rq:scheduled:default"), {job_id: 1000})
    spoil(redis)
    replace(redis, named("rq:queue:spoilt")), redis.zadd(named("rq:scheduled:spoilt"), {"x": 1})
    replace(redis, named("rq:scheduled:text"))
    replace(redis, named("rq:scheduler:us"))
    names = ("spoilt", "text", "default", "other")
    locks, moved, more, *_ = ours.run(promote(names, "us", {"name": "us"}))
    odd = redis.type(named("rq:job:odd")) == b"hash"
    assert (locks, moved, more) == (2, 5 + odd, 0)
    assert sorted(texts(redis)) == sorted(set(IDS) - (set() if odd else {"odd"})) and texts(
        redis, named("rq:queue:other")
    ) == ["other"]
    assert redis.zrange(named("rq:scheduled:spoilt"), 0, -1) == [b"x"]


@pytest.mark.parametrize(
    "spoil",
    [
        *ODD,
        *(pytest.param(number_of("rq_pooled:requeues", number), id=f"requeues {number}") for number in ("0.5", "nan")),
        *(
            pytest.param(number_of("rq_pooled:retry", rules), id=rules)
            for rules in ('{"max": []}', '{"max": true}', '{"max": 1e300}', "[]", "{")
        ),
    ],
)
def test_failed_jobs_are_requeued_beside_an_odd_one(ours: Engine, redis: Redis, queue: Queue, spoil: Any) -> None:
    """A requeue leaves no job between the failed registry and its queue, whatever the hash of one says."""
    redis.delete(named("rq:queue:default"))
    for job_id in IDS:
        redis.hset(named(f"rq:job:{job_id}"), "status", "failed")
        redis.zadd(named("rq:failed:default"), {job_id: 2e9})
    spoil(redis)
    chosen = [(job_id, "any", "") for job_id in IDS]
    command = failed_requeue(named("rq:failed:default"), NO_LOCK, "now", b"", 180, False, 3, "default", None, chosen)
    assert ours.run(command) == [b"ok", [b"done"] * 5]
    assert texts(redis) == list(IDS) and not redis.exists(named("rq:failed:default"))


@pytest.mark.parametrize("key", [named("rq:queues"), named("rq:dead"), named("rq:group:g"), named("rq:executions:a")])
def test_failed_jobs_stay_listed_where_a_key_is_of_another_type(
    ours: Engine, redis: Redis, queue: Queue, key: str
) -> None:
    """Requeue, burial and purge take a job out of the failed registry only if the rest can be done, too."""
    redis.hset(named("rq:job:a"), mapping={"status": "failed", "group_id": "g"})
    redis.zadd(named("rq:failed:default"), {"a": 2e9})
    redis.delete(named("rq:queue:default"))
    replace(redis, key)
    jobs_of = [("a", "any")]
    failed = named("rq:failed:default")
    if key == named("rq:queues"):
        chosen = [("a", "any", "")]
        command = failed_requeue(failed, NO_LOCK, "now", b"", 1, False, None, "default", None, chosen)
        assert ours.run(command) == [b"ok", [b"changed"]]
    elif key == named("rq:dead"):
        assert ours.run(failed_bury(failed, NO_LOCK, key, 60, jobs_of)) == [b"ok", [b"changed"]]
    else:
        assert ours.run(failed_purge(failed, NO_LOCK, jobs_of)) == [b"ok", [b"done"]]
        assert not redis.exists(named("rq:job:a"))
    assert (redis.zscore(failed, "a") is None) == (not redis.exists(named("rq:job:a")))


@pytest.mark.parametrize("number", [sys.maxsize, 10**20])
def test_rq_scheduler_s_jobs_are_moved_once(ours: Engine, redis: Redis, number: int) -> None:
    """A ttl that the server refuses does not push a periodic job again at each run."""
    job = Job.create(jobs.nothing, id="odd", connection=redis, origin="default", meta={"interval": 60})
    job.save()
    redis.hset(named("rq:job:odd"), "ttl", number)
    redis.zadd(named("rq:scheduler:scheduled_jobs"), {"odd": 5})
    mover = mover_of(ours, redis)
    for _ in range(2):
        mover.move_due(ScheduleLock("t", 60), 10)
        redis.set(named("rq:scheduler_lock"), "t")
    assert [one.id for one in mover.move_due(ScheduleLock("t", 60), 10)] == []
    assert texts(redis) == ["odd"] and 0 < redis.ttl(named("rq:job:odd")) <= LONGEST


def mover_of(ours: Engine, redis: Redis) -> Mover:
    """A mover whose lock is held."""
    import logging

    redis.set(named("rq:scheduler_lock"), "t")
    return Mover(redis, ours.run, Job, Queue, logging.getLogger("rq.worker"))


@pytest.mark.parametrize("key", [named("rq:queue:default"), named("rq:queues"), "interval"])
def test_an_odd_job_of_rq_scheduler_is_put_off_alone(ours: Engine, redis: Redis, key: str) -> None:
    """A job that cannot be moved, for its queue or its next time, is tried again later; those behind it are moved."""
    for job_id, origin in (("odd", "default"), ("fine", "other")):
        meta = {"interval": sys.maxsize} if (key, job_id) == ("interval", "odd") else {}
        Job.create(jobs.nothing, id=job_id, connection=redis, origin=origin, meta=meta).save()
    redis.zadd(named("rq:scheduler:scheduled_jobs"), {"odd": 5, "fine": 6})
    if key != "interval":
        replace(redis, key)
    moved = [job.id for job in mover_of(ours, redis).move_due(ScheduleLock("t", 60), 10)]
    assert moved == ([] if key == named("rq:queues") else ["fine"])
    assert redis.zscore(named("rq:scheduler:scheduled_jobs"), "odd") > 1e9
    assert key != "interval" or not texts(redis)


# -- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [
    *(pytest.param(number_of("timeout", number), id=f"timeout {str(number)[:9]}") for number in NUMBERS),
    *(
        pytest.param(text_at(named(key)), id=key)
        for key in (named("rq:executions:odd"), named("rq:worker:x"), named("rq_pooled:claims:token"))
    ),
    pytest.param(lambda redis: redis.rpush(named("rq_pooled:once:k"), "list"), id="once"),
    pytest.param(lambda redis: redis.rpush(named("rq_pooled:once-running:k"), "list"), id="once-running"),
    pytest.param(lambda redis: redis.set(named("rq_pooled:once-running:k"), "no claim"), id="no claim"),
])  # fmt: skip
def test_a_batch_is_claimed_beside_an_odd_job(ours: Engine, redis: Redis, queue: Queue, spoil: Any) -> None:
    """A claim that has popped an odd job goes on: no id is popped without a claim that its worker hears of."""
    redis.hset(named("rq:job:odd"), "rq_pooled_once", "k")
    spoil(redis)
    claimed = ours.claim(*"vwxyz")
    assert [claim.job_id for claim in claimed.claims] == list(IDS)
    assert redis.zcard(named("rq:wip:default")) == redis.zcard(named("rq_pooled:leases:default")) == 5
    assert redis.ttl(named("rq_pooled:once-running:k")) <= 2 * LONGEST + 86400
    assert ours.commit(*map(finished, claimed.claims)) == ["ok"] * 5 or redis.type(named("rq:worker:x")) == b"string"


@pytest.mark.parametrize("key", [named("rq:queue:first"), named("rq:wip:first"), named("rq_pooled:leases:first")])
def test_a_spoilt_queue_keeps_no_other_from_being_served(ours: Engine, redis: Redis, queue: Queue, key: str) -> None:
    """Where a queue's list, registry or leases are of another type, other queues are served; alone it is told."""
    if key != named("rq:queue:first"):
        Queue("first", redis).enqueue(jobs.nothing, job_id="first")
    replace(redis, key)
    assert [claim.job_id for claim in ours.claim(*"vwx", queues=["first", "default"]).claims] == ["a", "b", "odd"]
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        ours.claim("y", queues=["first"])
    assert key == named("rq:queue:first") or texts(redis, named("rq:queue:first")) == ["first"]
    assert redis.type(named("rq:wip:first")) != b"zset" and not redis.exists(named("rq:execution:first"))


@pytest.mark.parametrize("limit", ["code 1 1000000 1", f"code {'9' * 18} {'9' * 18} {'9' * 18}", f"x {'9' * 400} 1 1"])
@pytest.mark.parametrize("starts", ["text", ["soon"], []])
def test_limits_of_any_size_stop_no_claim(ours: Engine, redis: Redis, queue: Queue, limit: str, starts: Any) -> None:
    """A limit with numbers beyond all bounds, or starts that are no times, costs no job its claim."""
    redis.hset(named("rq_pooled:limits"), "default", limit)
    if starts:
        redis.set(named("rq_pooled:starts:default"), starts) if starts == "text" else redis.rpush(
            named("rq_pooled:starts:default"), *starts
        )
    claims = ours.claim(*"vwx", queues=["none", "default"]).claims
    assert [claim.job_id for claim in claims] == list(IDS[: 1 if limit.startswith("code 1 ") else 3])


def test_a_limit_beside_more_queues_than_lua_can_pass(ours: Engine, redis: Redis) -> None:
    """A worker of 20 000 queues claims, and keeps the limit of the last of them."""
    names = [f"q{i}" for i in range(20_000)]
    for job_id in "abc":
        Queue(names[-1], redis).enqueue(jobs.nothing, job_id=job_id)
    redis.hset(named("rq_pooled:limits"), names[-1], "code 0 0 2")
    claimed = ours.claim(*"vwxyz", queues=names)
    assert [claim.job_id for claim in claimed.claims] == ["a", "b"]
    assert [limited.key for limited in claimed.limited] == [named(f"rq:queue:{names[-1]}")]


# -- leases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [named("rq:worker:x"), named("rq:workers"), named("rq:wip:other"), named("rq:executions:odd"), named("rq:job:odd")],
)
def test_leases_are_renewed_beside_an_odd_key(ours: Engine, redis: Redis, queue: Queue, key: str) -> None:
    """A heartbeat renews the leases that it can, and hands no claim on, where one key is of another type."""
    Queue("other", redis).enqueue(jobs.nothing, job_id="other")
    claims = [*ours.claim("v", queues=["other"]).claims, *ours.claim(*"wxyz").claims]
    ids = [claim.job_id for claim in claims]
    end_lease(redis, *(claim.member for claim in claims[1:]))
    replace(redis, key)
    slots = [(name, "", 1.0) for name in "vwxyz"]
    _missing, handed_on, noted, _clock = ours.run(heartbeat(ours.settings, ours.token, 480, slots, claims))
    assert (handed_on, noted) == ([], 5)
    assert ids == ["other", "a", "b", "odd", "c"]
    assert redis.zcount(named("rq_pooled:leases:default"), 1e9, "inf") == 4


@pytest.mark.parametrize(
    "key",
    [
        named("rq:job:a"),
        named("rq:executions:a"),
        named("rq:queue:first"),
        named("rq:queue:first:intermediate"),
        named("rq:queues"),
    ],
)
def test_intermediate_ids_are_rescued_beside_an_odd_key(ours: Engine, redis: Redis, queue: Queue, key: str) -> None:
    """An id that was left in an intermediate list goes back, whatever stands at the keys of another."""
    redis.delete(named("rq:queue:default"))
    Queue("first", redis).enqueue(jobs.nothing, job_id="x")
    redis.rpush(named("rq:queue:default:intermediate"), "a", "b")
    replace(redis, key)
    keys = [named("rq:queue:first"), named("rq:queue:default")]
    for _ in range(2):
        ours.run(rescue_intermediate(keys, 0))
    assert texts(redis) == (["b"] if key == named("rq:job:a") else ["b", "a"])


# -- outcomes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (("EXPIRE", named("rq:job:a"), sys.maxsize), "ok"),
        (("EXPIRE", named("rq:job:a"), -sys.maxsize), "ok"),
        (("EXPIRE", named("rq:job:a"), "12.5"), "ok"),
        (("EXPIRE", named("rq:job:a"), "nan"), "ERR"),
        (("EXPIRE", named("rq:job:a"), "soon"), "ERR"),
        (("ZADD", named("rq:failed:default"), "nan", "a"), "ERR"),
        (("ZADD", named("rq:failed:default"), "", "a"), "ERR"),
        (("ZADD", named("rq:failed:default"), "+inf", "a"), "ok"),
        (("HINCRBY", named("rq:worker:v"), "spoilt", 1), "ok"),
        (("HINCRBYFLOAT", named("rq:worker:v"), "spoilt", 1), "ok"),
    ],
)
def test_an_outcome_is_recorded_whole_or_not_at_all(
    ours: Engine, redis: Redis, queue: Queue, command: Any, word: str
) -> None:
    """A number that the server refuses is bounded, left out where it only counts, or refuses the outcome at its
    beginning.
    """
    (claim,) = ours.claim("v").claims
    redis.hset(named("rq:worker:v"), "spoilt", "text")
    (answer,) = ours.commit(finished(claim, command))
    assert answer.startswith(word)
    counted = redis.hget(named("rq:worker:v"), "successful_job_count")
    assert counted == (b"1" if word == "ok" else None)
    assert redis.ttl(named("rq:job:a")) <= LONGEST


@pytest.mark.parametrize(("ttl", "score"), [("-1", -1), ("60", None), ("soon", None), (str(10**400), None)])
def test_the_barest_failure_is_kept_as_long_as_rq_keeps_it(
    ours: Engine, redis: Redis, queue: Queue, ttl: str, score: Any
) -> None:
    """A failure that no horse could write outlives RQ's clean-up where the job says so, and is recorded whatever it
    says.
    """
    redis.hset(named("rq:job:a"), "failure_ttl", ttl)
    (claim,) = ours.claim("v").claims
    assert ours.commit(bare_failure(claim, "reason")) == ["ok"]
    FailedJobRegistry(connection=redis).cleanup()
    found = redis.zscore(named("rq:failed:default"), "a")
    kept = {"60": 60, "soon": DEFAULT_FAILURE_TTL, "-1": 0}.get(ttl, LONGEST)
    assert found == score if score else abs(found - redis.time()[0] - kept) < 5


# -- enqueueing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ttl", "result_ttl", "failure_ttl", "job_timeout"])
def test_times_beyond_a_hundred_years_are_refused(redis: Redis, name: str) -> None:
    """Our Queue refuses an expiry that the server, or a timeout that no alarm, would take, and says what to write."""
    queue, longest = rq_pooled.Queue("q", connection=redis), 2**31 - 1 if name == "job_timeout" else LONGEST
    for value in (sys.maxsize, str(10**12), "99999d"):
        with pytest.raises(ConfigurationError, match=rf"at most {longest} seconds \((100|68) years\)"):
            queue.enqueue(jobs.nothing, **{name: value})
    job = Job.create(jobs.nothing, connection=redis, result_ttl=sys.maxsize)
    with pytest.raises(ConfigurationError, match="result_ttl"):
        queue.enqueue_job(job)
    assert redis.keys(named("rq:job:*")) == [] and redis.llen(queue.key) == 0
    assert queue.enqueue(jobs.nothing, **{name: longest}).id


def test_an_enqueue_writes_all_or_nothing(ours: Engine, redis: Redis) -> None:
    """Where the key of one of several jobs, or the queue, is of another type, none of them is enqueued."""
    replace(redis, named("rq:job:b"))
    two = [(job_id, False, sys.maxsize, ["data", b"", "status", "queued"], ("", 0)) for job_id in "ab"]
    with pytest.raises(ResponseError, match=named("WRONGTYPE rq:job:b is no hash")):
        ours.run(enqueue_jobs(named("rq:queue:q"), 9, True, None, None, 1.0, "now", two))
    assert not redis.exists(named("rq:job:a"), named("rq:queue:q"))
    redis.delete(named("rq:job:b"))
    assert ours.run(enqueue_jobs(named("rq:queue:q"), 9, True, None, None, 1.0, "now", two)) == [
        b"ok",
        b"queued",
        b"queued",
    ]
    assert 0 < redis.ttl(named("rq:job:a")) <= LONGEST


def places_of(redis: Redis) -> dict[str, list[str]]:
    """Where each job stands: the keys of the queues and registries that name it."""
    found: dict[str, list[str]] = {}
    for key, (value, _) in key_space(redis).items():
        if (
            re.match(
                named(
                    "rq:(queue|wip|scheduled|failed|deferred|finished|ready|scheduler:scheduled_jobs)|rq_pooled:dead:"
                ),
                key,
            )
            and value != b"text"
        ):
            for member in value:
                name = (member[0] if isinstance(member, tuple) else member).decode()
                found.setdefault(name.rpartition(":")[0] if key.startswith(named("rq:wip:")) else name, []).append(key)
    return found


#: Steps that end with a job in no place, or in two.
ODD_ON_PURPOSE = ("claim_twice_queued", "commit_aside", "commit_retry")
#: What a refused step may have changed: a lock, or a budget, whose reservation is asked for again.
REPEATED = (named("rq_pooled:lock:"), named("rq_pooled:budget:"))


@pytest.mark.parametrize("name", [name for name in SCENES if name not in ODD_ON_PURPOSE])
def test_a_text_in_the_place_of_any_key_loses_no_job(server: EmbeddedServer, redis: Redis, name: str) -> None:
    """Whichever key of a step holds a text, a job stays in one place; a step that is refused has changed nothing."""
    broken = []
    with engine(server.url, max_stalls=2) as ours:
        ours.run(SCENES[name](ours, redis))
        later = set(key_space(redis))
        redis.flushall()
        SCENES[name](ours, redis)
        names = {re.sub("[0-9a-f]{32}", "*", key) for key in {*later, *key_space(redis)}}
        for pattern in sorted(names):
            redis.flushall()
            call = SCENES[name](ours, redis)
            key = next((key.decode() for key in redis.keys(pattern)), pattern)
            if redis.type(key) != b"string":
                replace(redis, key)
            before, stood = key_space(redis), places_of(redis)
            reply, stands = ours.command.execute([call])[0], places_of(redis)
            after = key_space(redis)
            changed = [one for one in {*before, *after} if before.get(one) != after.get(one)]
            if isinstance(reply, Exception) and not all(one.startswith(REPEATED) for one in changed):
                broken.append(f"{key}: refused, but changed {changed}")
            for job_id in stood:
                job = after.get(named(f"rq:job:{job_id}"), (None,))[0]
                at = stands.get(job_id, [])
                twice = len(set(at) - {named("rq:scheduler:scheduled_jobs")}) > 1  # a schedule keeps its job
                if (twice or not at) and isinstance(job, dict) and b"data" in job:
                    broken.append(f"{key}: {job_id} stands in {stands.get(job_id)}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("due", ["nan", "soon", "inf", 10**400])
def test_a_job_that_cannot_be_scheduled_stays_failed(ours: Engine, redis: Redis, due: Any) -> None:
    """A requeue for a time that is none leaves the jobs in the failed registry, where they can be seen."""
    put_into_failed(redis, "a", "b")
    assert ours.run(requeue(ours, str(due))) == [b"ok", [b"changed", b"changed"]]
    assert redis.zrange(named("rq:failed:default"), 0, -1) == [b"a", b"b"]


@pytest.mark.parametrize("age", [sys.maxsize, "inf", "1e300", "nan"])
def test_a_dead_letter_is_kept_for_a_time_that_redis_takes(ours: Engine, redis: Redis, age: Any) -> None:
    """Whatever the age of dead letters is, a burial leaves no job between two registries, and none for ever."""
    put_into_failed(redis, "a")
    command = failed_bury(named("rq:failed:default"), NO_LOCK, named("rq_pooled:dead:default"), age, [("a", "any")])
    assert ours.run(command) == [b"ok", [b"done"]]
    assert redis.zrange(named("rq_pooled:dead:default"), 0, -1) == [b"a"] and redis.ttl(named("rq:job:a")) <= LONGEST


def test_limits_of_another_type_keep_no_job_from_running(ours: Engine, redis: Redis, queue: Queue) -> None:
    """What overwrote all limits is no limit: jobs are claimed, and the next limit is written in its place."""
    queue.enqueue("math.factorial", 3, job_id="a")
    redis.set(LIMITS, "x")
    assert [claim.job_id for claim in ours.claim("w").claims] == ["a"]
    with pytest.raises(ResponseError, match=f"{LIMITS} is of another type"):
        limits_in_force(redis)
    ours.run(change_limit("default", "operator", "1 1000000 0"))
    assert redis.hgetall(LIMITS) == {b"default": b"operator 1 1000000 0"}


def test_a_list_of_processes_of_another_type_is_made_anew(ours: Engine, redis: Redis) -> None:
    """What overwrote the list of processes is named, hides nothing else, and ends with the next that is published."""
    redis.set(STATS, "x")
    unreadable: list[str] = []
    assert read_processes(redis, unreadable) == [] and unreadable == [STATS]
    ours.run(publish("app:host:1", 60, {"kind": "web"}))
    assert [process["name"] for process in read_processes(redis)] == ["app:host:1"]


@pytest.mark.parametrize(
    "look",
    [
        queues,
        lambda redis: failed_jobs(connection=redis),
        lambda redis: list(find_lost(redis, 0)),
        lambda redis: Sweeper(connection=redis).run(),
    ],
)
def test_queues_of_another_type_are_named(redis: Redis, look: Any) -> None:
    """Where the set of all queues is of another type the error says which key that is."""
    redis.set(QUEUES, "x")
    with pytest.raises(ResponseError, match=f"{QUEUES} is of another type"):
        look(redis)
