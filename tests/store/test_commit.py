"""Commit and push-back: an outcome counts once, harms nobody, and nothing of a claim is left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import claim_jobs
import pytest
from engine import Engine, engine, finished, key_space, residue
from keys import named
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError
from rq import Queue
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from support import running_worker, wait_until

from rq_pooled.durations import LONGEST
from rq_pooled.rq_api import RQ3
from rq_pooled.store.claim import Claim, drop_notes, known_claims, unknown_claims
from rq_pooled.store.commit import bare_failure, guarded_reads
from rq_pooled.store.leases import heartbeat, push_back
from rq_pooled.store.workers import unregister_workers
from rq_pooled.wire import pack_runs, raw


@pytest.fixture
def ours(server: Any, redis: Redis) -> Iterator[Engine]:
    """An engine on an empty database, with a worker named w registered."""
    with engine(server.url) as one:
        one.register("w", "x", "y")
        yield one


def claim_one(ours: Engine, redis: Redis, job_id: str = "a", name: str = "w", **options: Any) -> Claim:
    """Enqueue a job and claim it."""
    Queue(connection=redis).enqueue("math.factorial", 3, job_id=job_id, **options)
    (claim,) = ours.claim(name).claims
    return claim


def counted(redis: Redis, name: str = "w") -> int:
    """How many successes a worker has."""
    return int(redis.hget(named(f"rq:worker:{name}"), "successful_job_count") or 0)


# -- once --------------------------------------------------------------------------------------------------------


def test_sent_twice_counts_once(ours: Engine, redis: Redis) -> None:
    """An outcome that is sent again, in another commit or in the same one, changes nothing the second time."""
    outcome = finished(claim_one(ours, redis))
    assert ours.commit(outcome) == ["ok"]
    after = key_space(redis)
    assert ours.commit(outcome, outcome) == ["lost", "lost"]
    again = key_space(redis)
    for space in (after, again):
        space[named("rq:worker:w")][0].pop(b"last_heartbeat")
    assert again == after
    assert (counted(redis), residue(redis)) == (1, [])

    other = finished(claim_one(ours, redis, "b"))
    assert ours.commit(other, other) == ["ok", "lost"]
    assert counted(redis) == 2


def test_outcome_of_a_claim_that_another_has_taken_over_records_nothing(ours: Engine, redis: Redis) -> None:
    """Who lost the claim records nothing, and does not touch the execution that has taken its place."""
    old = claim_one(ours, redis)
    ours.run(push_back(ours.settings, ours.token, [old]))
    (new,) = ours.claim("x").claims
    assert new.job_id == old.job_id and new.execution_id != old.execution_id
    before = key_space(redis)
    assert ours.commit(finished(old)) == ["lost"]
    after = key_space(redis)
    before[named("rq:worker:w")][0].pop(b"last_heartbeat"), after[named("rq:worker:w")][0].pop(b"last_heartbeat")
    assert after == before
    assert ours.commit(finished(new)) == ["ok"]


def test_late_outcome_leaves_a_slot_that_has_its_next_job_busy(ours: Engine, redis: Redis) -> None:
    """Clearing up after a lost claim does not make a worker look idle that has another job by now."""
    old = claim_one(ours, redis)
    Job.fetch("a", redis).cancel()
    claim_one(ours, redis, "b")
    assert ours.commit(finished(old)) == ["lost"]
    assert redis.hmget(named("rq:worker:w"), "state", "current_job") == [b"busy", None if RQ3 else b"b"]
    assert [member.partition(b":")[0] for member in redis.smembers(named("rq:worker:w:executions"))] == [b"b"]


def test_a_slot_of_which_nobody_knows_its_job_is_idle_after_it(ours: Engine, redis: Redis) -> None:
    """A worker whose hash has lost its current job, after a flush, is idle when that job's outcome is recorded."""
    claim = claim_one(ours, redis)
    redis.hdel(named("rq:worker:w"), "current_job")
    redis.delete(named("rq:worker:w:executions"))
    assert ours.commit(finished(claim)) == ["ok"]
    assert redis.hget(named("rq:worker:w"), "state") == b"idle"


@pytest.mark.parametrize("seconds", ["nan", "soon"])
def test_an_expiry_that_the_server_refuses_records_nothing(ours: Engine, redis: Redis, seconds: Any) -> None:
    """A result_ttl that is no number is refused before anything of its outcome is written, so that nothing counts
    twice.
    """
    claim = claim_one(ours, redis)
    (answer,) = ours.commit(finished(claim, ("EXPIRE", named("rq:job:a"), seconds)))
    assert answer.startswith("ERR")
    assert (counted(redis), redis.exists(named("rq:results:a")), redis.hget(named("rq:job:a"), "status")) == (
        0,
        0,
        b"started",
    )


@pytest.mark.parametrize("ttl", ["soon", "", "nan"])
def test_a_plain_success_that_cannot_be_read_harms_only_itself(ours: Engine, redis: Redis, ttl: str) -> None:
    """Words of a plain success that are none are an error of its own outcome."""
    claims = [claim_one(ours, redis, name, slot) for name, slot in (("a", "w"), ("b", "x"), ("c", "y"))]
    words = ["PLAIN_SUCCESS", "x", "default", "then", "now", "now", 1.0, 2.0, "0.5", 9, ttl]
    outcomes = [finished(claims[0]), finished(claims[1], words), finished(claims[2])]
    answers = ours.commit(*outcomes)
    assert (answers[0], answers[2]) == ("ok", "ok")
    assert answers[1].startswith("ERR")


@pytest.mark.parametrize("ttl", [-1, None, 60, 10**30])
def test_a_bare_failure_is_kept_as_long_as_the_job_says(ours: Engine, redis: Redis, ttl: int | None) -> None:
    """RQ's next clean-up leaves a job that even RQ's code could not be given, for its failure_ttl: -1 is for ever."""
    claim = claim_one(ours, redis, failure_ttl=ttl)
    assert ours.commit(bare_failure(claim, "why")) == ["ok"]
    assert FailedJobRegistry(connection=redis).get_job_ids() == ["a"]
    score = redis.zscore(named("rq:failed:default"), "a")
    kept = DEFAULT_FAILURE_TTL if ttl is None else min(ttl, LONGEST)
    assert score == -1 if ttl == -1 else abs(score - time.time() - kept) < 10


def test_a_bare_failure_says_any_reason(ours: Engine, redis: Redis) -> None:
    """An error that quotes bytes which are no text is recorded, with these shown as escapes."""
    claim = claim_one(ours, redis)
    assert ours.commit(bare_failure(claim, "no \udcff, no \ud800")) == ["ok"]
    assert r"no \udcff, no \ud800" in Job.fetch("a", connection=redis).latest_result().exc_string


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_cancelled_and_deleted_jobs_leave_nothing(ours: Engine, redis: Redis, how: str) -> None:
    """The dropped outcome of a cancelled or deleted job clears what Job.cancel leaves: executions, lease,
    current_job.
    """
    claim = claim_one(ours, redis)
    getattr(Job.fetch("a", redis), how)()
    assert ours.commit(finished(claim)) == ["lost"]
    assert residue(redis) == []
    assert redis.hget(named("rq:worker:w"), "state") == b"idle"
    assert counted(redis) == 0
    assert redis.hget(named("rq:job:a"), "status") == (b"canceled" if how == "cancel" else None)


def test_does_not_bring_back_a_worker_that_is_gone(ours: Engine, redis: Redis) -> None:
    """Removing a claim never writes half a worker's hash where the server has forgotten the worker."""
    claim = claim_one(ours, redis)
    redis.delete(named("rq:worker:w"))
    outcome = finished(claim)
    outcome.commands = (1, pack_runs([("HSET", named("rq:job:a"), "status", "finished")]))
    assert ours.commit(outcome) == ["ok"]
    assert not redis.exists(named("rq:worker:w"))


# -- errors ------------------------------------------------------------------------------------------------------


def test_an_outcome_that_errors_harms_no_neighbour(ours: Engine, redis: Redis) -> None:
    """A command that fails is told for its outcome alone: none of it is recorded, its claim stands, the others are
    ok.
    """
    claims = [claim_one(ours, redis, name, name) for name in "wxy"]
    redis.set("text", "x")
    bad = finished(claims[1], ("RPUSH", "text", 1))
    words = ours.commit(finished(claims[0]), bad, finished(claims[2]))
    assert (words[0], words[2]) == ("ok", "ok") and words[1].startswith("WRONGTYPE")
    assert [counted(redis, name) for name in "wxy"] == [1, 0, 1]
    assert redis.hget(named("rq:job:x"), "status") == b"started" and not redis.exists(named("rq:results:x"))
    assert redis.zrange(named("rq:wip:default"), 0, -1) == [claims[1].member.encode()]
    redis.delete("text")
    assert ours.commit(bad) == ["ok"], "nothing blocks it once the cause is gone"
    assert (counted(redis, "x"), redis.xlen(named("rq:results:x")), residue(redis)) == (1, 1, [])


@pytest.mark.parametrize("command", [("NOSUCH", "k"), ("HSET", "k"), ("HSET", "k", *"x" * 12_001), ()])
def test_an_impossible_command_is_that_outcome_s_alone(ours: Engine, redis: Redis, command: Any) -> None:
    """Unknown commands, wrong numbers of words, and more words than Lua can pass are errors of one outcome, not of
    all.
    """
    claims = [claim_one(ours, redis, name, name) for name in "wx"]
    words = ours.commit(finished(claims[0], command), finished(claims[1]))
    assert words[1] == "ok" and words[0] not in ("ok", "lost", "changed")
    assert redis.zrange(named("rq:wip:default"), 0, -1) == [claims[0].member.encode()]


def test_a_spoilt_registry_harms_no_neighbour(ours: Engine, redis: Redis) -> None:
    """Where a started registry itself is no sorted set, only the outcomes of its queue are refused."""
    Queue("other", redis).enqueue("math.factorial", 3, job_id="b")
    claims = [claim_one(ours, redis), *ours.claim("x", queues=["other"]).claims]
    redis.delete(named("rq:wip:default"))
    redis.set(named("rq:wip:default"), "text")
    words = ours.commit(*map(finished, claims))
    assert words[0].startswith("WRONGTYPE") and words[1] == "ok"


@pytest.mark.parametrize(
    "key",
    [
        named("rq:executions:a"),
        named("rq:worker:w"),
        named("rq_pooled:leases:default"),
        named("rq_pooled:claims:token"),
    ],
)
def test_a_spoilt_key_of_a_claim_does_not_spoil_the_commit(ours: Engine, redis: Redis, key: str) -> None:
    """Where what belongs to a claim has become something else, the others of the same commit are recorded all the
    same.
    """
    claims = [claim_one(ours, redis, "a", "w"), claim_one(ours, redis, "b", "x")]
    redis.delete(key)
    redis.set(key, "text")
    assert ours.commit(*map(finished, claims))[1] == "ok"
    assert redis.zscore(named("rq:wip:default"), claims[1].member) is None and counted(redis, "x") == 1


def test_a_claim_that_cannot_be_written_leaves_the_job_in_its_queue(ours: Engine, redis: Redis) -> None:
    """A job whose claim the server refuses is not popped, and one whose key holds something else is dropped as
    stale.
    """
    redis.set(named("rq:wip:default"), "text")
    Queue(connection=redis).enqueue("math.factorial", 3, job_id="a")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        ours.claim("w")
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"a"]
    assert redis.hget(named("rq:job:a"), "status") == b"queued"
    Queue("other", redis).enqueue("math.factorial", 3, job_id="b")
    claims = ours.claim("w", queues=["default", "other"]).claims
    assert [claim.job_id for claim in claims] == ["b"], "other queues are served"
    redis.delete(named("rq:wip:default"))
    redis.lpush(named("rq:queue:default"), "text")
    redis.set(named("rq:job:text"), "text")
    claimed = ours.claim("w")
    assert (claimed.stale, [claim.job_id for claim in claimed.claims]) == (["text"], ["a"])


def test_end_to_end_a_refused_outcome_fails_alone(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Where RQ's finished registry is unusable, its queue's jobs fail with the reason; where the failed one is too, the
    worker lives and others are served."""
    queue, other = Queue("spoilt", redis), Queue("fine", redis)
    redis.set(named("rq:finished:spoilt"), "text")
    with running_worker(server.url, "spoilt", "fine", log=tmp_path / "log", concurrency=3) as worker:
        bad = queue.enqueue(claim_jobs.nothing)
        good = [other.enqueue(claim_jobs.nothing) for _ in range(5)]
        wait_until(lambda: bad.get_status() == JobStatus.FAILED, what="the bad job to fail")
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in good), what="the others")
        assert "WRONGTYPE" in bad.latest_result().exc_string
        assert FailedJobRegistry("spoilt", redis).get_job_ids() == [bad.id]
        wait_until(lambda: not residue(redis), what="no residue")
        counts = [
            redis.hmget(key, "successful_job_count", "failed_job_count")
            for key in redis.keys(named("rq:worker:*"))
            if not key.endswith(b":executions")
        ]
        assert [sum(int(count[i] or 0) for count in counts) for i in (0, 1)] == [5, 1], "each outcome counts once"

        redis.delete(named("rq:failed:spoilt"))
        redis.set(named("rq:failed:spoilt"), "text")
        worse = queue.enqueue(claim_jobs.nothing)
        worker.wait_for(f"giving up on recording job {worse.id}")
        more = [other.enqueue(claim_jobs.nothing) for _ in range(5)]
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in more), what="the others")
        assert worker.process.poll() is None


# -- guards ------------------------------------------------------------------------------------------------------


def test_a_dependent_that_appears_changes_the_outcome(ours: Engine, redis: Redis) -> None:
    """An outcome that relies on there being no dependents records nothing when there is one, and keeps its claim."""
    claim = claim_one(ours, redis)
    guard = (b"0", [b"EXISTS", named(b"rq:job:a:dependents")])
    Queue(connection=redis).enqueue("math.factorial", 3, job_id="child", depends_on="a")
    assert ours.commit(finished(claim, guards=[guard])) == ["changed"]
    assert counted(redis) == 0 and redis.zscore(named("rq:wip:default"), claim.member)
    redis.delete(named("rq:job:a:dependents"))
    assert ours.commit(finished(claim, guards=[guard])) == ["ok"]


@pytest.mark.parametrize(
    ("read", "change"),
    [
        (("SMEMBERS", "k:set"), ("SADD", "k:set", "more")),
        (("LRANGE", "k:list", 0, -1), ("RPUSH", "k:list", "more")),
        (("HGETALL", "k:hash"), ("HSET", "k:hash", "more", "1")),
        (("HGET", "k:hash", "field"), ("HSET", "k:hash", "field", "other")),
        (("HGET", "k:hash", "none"), ("HSET", "k:hash", "none", "x")),
        (("HMGET", "k:hash", "none", "field"), ("HSET", "k:hash", "none", "x")),
        (("ZSCORE", "k:zset", "m"), ("ZADD", "k:zset", 2.5, "m")),
        (("ZSCORE", "k:zset", "none"), ("ZADD", "k:zset", 1, "none")),
        (("EXISTS", "k:set"), ("DEL", "k:set")),
        (("TYPE", "k:set"), ("DEL", "k:set")),
        (("GET", "k:none"), ("SET", "k:none", "")),
        (("XRANGE", "k:stream", "-", "+"), ("XADD", "k:stream", "2-1", "f", "v")),
        (("ZRANGE", "k:zset", 0, -1, "WITHSCORES"), ("ZADD", "k:zset", 7, "m")),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_guards_know_every_kind_of_reply(ours: Engine, redis: Redis, read: Any, change: Any) -> None:
    """reads.lua and commit.lua digest each type of reply alike, and a changed reply differently."""
    redis.sadd("k:set", "a", "b"), redis.rpush("k:list", "a"), redis.hset("k:hash", "field", "\xff")
    redis.zadd("k:zset", {"m": 1.5}), redis.xadd("k:stream", {"f": "v"}, id="1-1")
    words = [str(word).encode() for word in read]
    ((digest, reply),) = ours.run(guarded_reads([words]))
    raw = ours.run(tuple(words))
    assert reply == raw
    guard = (digest if isinstance(digest, bytes) else str(digest).encode(), words)
    assert ours.commit(finished(claim_one(ours, redis, "a"), guards=[guard])) == ["ok"]
    redis.execute_command(*change)
    assert ours.commit(finished(claim_one(ours, redis, "b"), guards=[guard])) == ["changed"]


@pytest.mark.parametrize(
    ("change", "result"),
    [
        (("HSET", named("rq:job:other"), "status", "started"), "ok"),
        (("HSET", named("rq:job:other"), "status", "finished"), "changed"),
        (("HSET", named("rq:job:other"), "status", "canceled"), "changed"),
        (("DEL", named("rq:job:other")), "changed"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_of_another_job_only_its_end_changes_an_outcome(ours: Engine, redis: Redis, change: Any, result: str) -> None:
    """That another parent was queued and is started says nothing to their dependent; how it ended, or its deletion,
    does.
    """
    claim = claim_one(ours, redis)
    redis.hset(named("rq:job:other"), "status", "queued")
    read = [b"HGET", named(b"rq:job:other"), b"status"]
    ((digest, reply),) = ours.run(guarded_reads([read]))
    assert reply == b"queued"
    redis.execute_command(*change)
    assert ours.commit(finished(claim, guards=[(digest, read)])) == [result]


# -- push back ---------------------------------------------------------------------------------------------------


def test_push_back_undoes_everything_that_the_claim_wrote(ours: Engine, redis: Redis) -> None:
    """After a claim of jobs of three queues and their push-back the key space is the one before, order and ttl
    included.
    """
    for name in ("default", "q2", "q3"):
        queue = Queue(name, redis)
        queue.enqueue("math.factorial", 1, job_id=f"{name}-1", ttl=500)
        queue.enqueue("math.factorial", 1, job_id=f"{name}-2", result_ttl=7, meta={"a": 1})
        queue.enqueue("math.factorial", 1, job_id=f"{name}-3")
    before = key_space(redis)
    names, queues = [f"w{i}" for i in range(8)], ("default", "q2", "q3")
    ours.register(*names)
    before |= {key: value for key, value in key_space(redis).items() if ":worker" in key}
    claims = ours.claim(*names, queues=queues).claims
    assert len(claims) == 8 and redis.llen(named("rq:queue:q3")) == 1 and redis.ttl(named("rq:job:default-1")) == -1
    assert ours.run(push_back(ours.settings, ours.token, claims)) == 8
    after = key_space(redis)
    for name in names:
        worker = after[named(f"rq:worker:{name}")][0]
        before[named(f"rq:worker:{name}")][0][b"last_heartbeat"] = worker[b"last_heartbeat"]
        assert worker.pop(b"current_job_working_time", None) == (None if RQ3 else b"0")
    assert after == before
    assert ours.run(push_back(ours.settings, ours.token, claims)) == 0, "a second time it finds no claims"
    assert redis.llen(named("rq:queue:default")) == 3


def test_push_back_of_a_deleted_job_clears_without_queueing(ours: Engine, redis: Redis) -> None:
    """What was cancelled or deleted while claimed does not come back to the queue when claims are put back."""
    first, second = claim_one(ours, redis, "a", "w"), claim_one(ours, redis, "b", "x")
    Job.fetch("a", redis).cancel()
    Job.fetch("b", redis).delete()
    assert ours.run(push_back(ours.settings, ours.token, [first, second])) == 0
    assert redis.llen(named("rq:queue:default")) == 0 and residue(redis) == []
    assert redis.hget(named("rq:job:a"), "status") == b"canceled" and not redis.exists(named("rq:job:b"))


def test_push_back_of_a_job_without_data_queues_nothing(ours: Engine, redis: Redis) -> None:
    """A job whose hash has expired or was evicted while it was claimed is no job: its claim is cleared, not queued."""
    claim = claim_one(ours, redis)
    redis.delete(named("rq:job:a"))
    assert ours.run(push_back(ours.settings, ours.token, [claim])) == 0
    assert not redis.exists(named("rq:job:a"), named("rq:queue:default")) and residue(redis) == []


def test_claims_whose_reply_was_lost_are_found(ours: Engine, redis: Redis) -> None:
    """The worker's claims hash names exactly what it holds, with all that is needed to put it back."""
    known, lost = claim_one(ours, redis, "a", "w"), claim_one(ours, redis, "b-b", "x")
    reply = ours.run(known_claims(ours.token))
    (found,) = unknown_claims(reply, [known.member])
    assert found[:5] == lost[:5]
    assert ours.run(push_back(ours.settings, ours.token, [found])) == 1
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"b-b"]


@pytest.mark.parametrize("note", [b"", b"\xff\n", b"x y z", b"1"])
def test_a_note_that_is_no_claim_hides_no_lost_one(ours: Engine, redis: Redis, note: bytes) -> None:
    """What no claim has written into the worker's claims is told apart and can be dropped; a lost claim is found."""
    lost = claim_one(ours, redis)
    ours.run(("HSET", known_claims(ours.token)[1], b"\xff\n", note))
    strange: list[bytes] = []
    (found,) = unknown_claims(ours.run(known_claims(ours.token)), [], strange)
    assert found[:5] == lost[:5] and strange == [b"\xff\n"]
    assert ours.run(drop_notes(ours.token, strange)) == 1


@pytest.mark.parametrize(("queue", "name"), [("a\nb", "w"), ("q", "w\n1"), ("\udcff 3", "2 w")])
def test_claims_of_any_name_are_found(ours: Engine, redis: Redis, queue: str, name: str) -> None:
    """A line break, or bytes that are no text, in the name of a queue or worker keep no lost claim from its queue."""
    key = named(b"rq:queue:") + raw(queue)
    redis.hset(named("rq:job:a"), mapping={"data": "x", "status": "queued", "origin": raw(queue)})
    redis.rpush(key, "a")
    (lost,) = ours.claim(name, queues=[queue]).claims
    (found,) = unknown_claims(ours.run(known_claims(ours.token)), [])
    assert found[:5] == lost[:5]
    assert ours.run(push_back(ours.settings, ours.token, [found])) == 1
    assert redis.lrange(key, 0, -1) == [b"a"]


# -- heartbeat and registration ----------------------------------------------------------------------------------


def test_heartbeat_renews_and_never_recreates(ours: Engine, redis: Redis) -> None:
    """It renews what stands, tells how many claims are noted, and neither recreates a hash nor ends a cancelled job."""
    kept, cancelled, deleted = (claim_one(ours, redis, name, name) for name in "wxy")
    for key in (named("rq:wip:default"), named("rq_pooled:leases:default")):
        redis.zadd(key, {kept.member: 5})
    redis.expire(named("rq:worker:w"), 5), redis.expire(named(f"rq:execution:{kept.member}"), 5)
    Job.fetch("x", redis).cancel()
    redis.delete(named("rq:job:y"), named(f"rq:execution:{deleted.member}"), named("rq:worker:y"))
    before = set(redis.keys("*"))
    slots = [(name, "", 1.5) for name in "wxy"]
    missing, handed_on, noted, clock = ours.run(
        heartbeat(ours.settings, ours.token, 480, slots, [kept, cancelled, deleted])
    )
    assert (missing, handed_on, noted) == ([b"y"], [], 3)
    assert abs(clock / 1000 - redis.time()[0]) < 5
    assert set(redis.keys("*")) == before
    clock = redis.time()[0]
    assert clock + 55 < redis.zscore(named("rq_pooled:leases:default"), kept.member) < clock + 65
    assert clock + 895 < redis.zscore(named("rq:wip:default"), kept.member) < clock + 905
    assert redis.ttl(named("rq:worker:w")) > 400 and redis.ttl(named(f"rq:execution:{kept.member}")) > 800
    assert redis.hget(named("rq:worker:w"), "current_job_working_time") == (None if RQ3 else b"1.5")
    assert StartedJobRegistry(connection=redis).get_job_ids(cleanup=False) == ["w", "y"]


def test_heartbeat_renews_the_notes_of_a_claim(ours: Engine, redis: Redis) -> None:
    """A job that runs for longer than its claim's first expiry stays in RQ's list of executions and in the claims
    hash.
    """
    claim = claim_one(ours, redis)
    (claims,) = redis.keys(named("rq_pooled:claims*"))
    for key in (named("rq:executions:a"), claims):
        redis.expire(key, 5)
    ours.run(heartbeat(ours.settings, ours.token, 480, [("w", "", 1.0)], [claim]))
    assert redis.ttl(named("rq:executions:a")) > 800 and redis.ttl(claims) > 800


def test_a_claim_lets_nothing_expire_too_early(ours: Engine, redis: Redis) -> None:
    """A job does not expire while it runs; the execution, RQ's list of them and our note outlive the horizon."""
    claim = claim_one(ours, redis, ttl=5)
    (claims,) = redis.keys(named("rq_pooled:claims*"))
    horizon = int(ours.settings.abandon_after)
    assert redis.ttl(named("rq:job:a")) == -1
    lease = redis.zscore(named("rq_pooled:leases:default"), claim.member) - redis.time()[0]
    assert ours.settings.heartbeat_ttl - 5 < lease <= ours.settings.heartbeat_ttl + 1
    assert horizon - 5 < redis.ttl(named(f"rq:execution:{claim.member}")) <= horizon
    assert horizon + 55 < redis.ttl(named("rq:executions:a")) <= horizon + 60
    assert horizon + 55 < redis.ttl(claims) <= horizon + 60
    for key, member in ((named("rq:wip:default"), claim.member), (named("rq:executions:a"), claim.execution_id)):
        assert redis.zscore(key, member) - redis.time()[0] > horizon - 5, key  # else RQ's clean-up takes it for over
    ours.run(push_back(ours.settings, ours.token, [claim]))
    assert 0 < redis.ttl(named("rq:job:a")) <= 5


def test_a_claim_that_cannot_be_written_leaves_no_lease(ours: Engine, redis: Redis) -> None:
    """Where a queue's started registry is something else, the job stays in its queue, and no lease of it stays."""
    redis.set(named("rq:wip:default"), "text")
    for name in "ab":
        Queue(connection=redis).enqueue("math.factorial", 3, job_id=name)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        ours.claim("w")
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"a", b"b"] and not redis.exists(
        named("rq_pooled:leases:default")
    )


def test_what_a_claim_holds_back_keeps_its_order(ours: Engine, redis: Redis) -> None:
    """Ids of running jobs go back to the front of the queue in the order in which they stood there."""
    for name, slot in (("a", "w"), ("b", "x")):
        claim_one(ours, redis, name, slot)
    redis.rpush(named("rq:queue:default"), "a", "b")
    assert ours.claim("y", "z").held == 2
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"a", b"b"]


def test_an_id_in_another_queue_does_not_run_beside_itself(ours: Engine, redis: Redis) -> None:
    """Whether a job runs is looked up in the queue that its hash names, whichever queue its id is popped from."""
    claim_one(ours, redis)
    redis.rpush(named("rq:queue:other"), "a")
    assert ours.claim("x", queues=("other",)).held == 1
    assert redis.lrange(named("rq:queue:other"), 0, -1) == [b"a"]


def test_an_outcome_that_is_sent_again_leaves_its_worker_alone(ours: Engine, redis: Redis) -> None:
    """What a server may have lost is recorded anew, and says nothing about what the worker does by then."""
    outcome = finished(claim_one(ours, redis))
    assert ours.commit(outcome) == ["ok"]
    outcome.on_recorded()
    claim_one(ours, redis)  # the same job, once more
    before, running = redis.hgetall(named("rq:worker:w")), redis.smembers(named("rq:worker:w:executions"))
    assert ours.commit(outcome) == ["lost"]
    assert redis.hgetall(named("rq:worker:w")) == before and before[b"state"] == b"busy"
    assert redis.smembers(named("rq:worker:w:executions")) == running and len(running) == 1


def test_a_canceled_job_that_saved_itself_is_canceled_again(ours: Engine, redis: Redis) -> None:
    """A job that was cancelled while it ran, and wrote its old status since, is cancelled after its lost outcome."""
    claim = claim_one(ours, redis)
    Job.fetch("a", redis).cancel()
    redis.hset(named("rq:job:a"), "status", "started")
    assert ours.commit(finished(claim)) == ["lost"]
    assert redis.hget(named("rq:job:a"), "status") == b"canceled"


def test_a_counter_that_is_no_number_costs_no_outcome(ours: Engine, redis: Redis) -> None:
    """What only counts is left out where it cannot be added to; the outcome around it is recorded, once."""
    redis.hset(named("rq:worker:w"), "successful_job_count", "text")
    assert ours.commit(finished(claim_one(ours, redis))) == ["ok"]
    assert redis.hget(named("rq:job:a"), "status") == b"finished" and redis.xlen(named("rq:results:a")) == 1
    assert residue(redis) == []


def test_what_is_left_of_a_deleted_job_keeps_its_own_expiry(ours: Engine, redis: Redis) -> None:
    """A hash that a deleted job has written again expires in a day, or earlier where it says so itself."""
    for expiry, least, most in ((None, 86_000, 86_400), (50, 0, 50)):
        claim = claim_one(ours, redis)
        Job.fetch("a", redis).delete()
        redis.hset(named("rq:job:a"), "meta", "written by the job")
        if expiry:
            redis.expire(named("rq:job:a"), expiry)
        assert ours.commit(finished(claim)) == ["lost"]
        assert least < redis.ttl(named("rq:job:a")) <= most
        redis.delete(named("rq:job:a"))


def test_heartbeat_of_an_idle_worker_shows_no_job(ours: Engine, redis: Redis) -> None:
    """A job that was handed on does not stay the current one of who had it; that of a busy worker stays."""
    for name in "wx":
        redis.hset(named(f"rq:worker:{name}"), "current_job", "a")
    ours.run(heartbeat(ours.settings, ours.token, 480, [("w", "idle", 0.0), ("x", "", 1.0)], []))
    assert (
        redis.hget(named("rq:worker:w"), "current_job") is None and redis.hget(named("rq:worker:w"), "state") == b"idle"
    )
    assert redis.hget(named("rq:worker:x"), "current_job") == b"a"


def test_heartbeat_names_a_worker_that_was_buried(ours: Engine, redis: Redis) -> None:
    """A worker that somebody has declared dead is named, so that it registers again; one that lives is not."""
    redis.hset(named("rq:worker:w"), "death", "now")
    assert ours.run(heartbeat(ours.settings, ours.token, 480, [("w", "idle", 0.0), ("x", "idle", 0.0)], []))[0] == [
        b"w"
    ]


def test_heartbeat_forgets_a_claim_that_was_handed_on(ours: Engine, redis: Redis) -> None:
    """A claim whose job is in its queue again, or another's, is named once and noted no more."""
    claim = claim_one(ours, redis)
    redis.zrem(named("rq:wip:default"), claim.member)
    redis.hset(named("rq:job:a"), "status", "queued")
    assert ours.run(heartbeat(ours.settings, ours.token, 480, [("w", "", 1.0)], [claim]))[1:3] == [[1], 0]


def test_register_all_or_none(ours: Engine, redis: Redis) -> None:
    """One taken name refuses them all and says whose it is; names of a process known dead, or of a buried one, are
    free.
    """
    before = key_space(redis)
    assert ours.register("n1", "w", "n2") == [b"w", b"here", b"1"]
    assert key_space(redis) == before
    assert ours.register("n1", "w", dead=("elsewhere", 1)) == [b"w", b"here", b"1"]
    assert ours.register("n1", "w", dead=("here", 1)) == []
    assert redis.smembers(named("rq:workers")) == {
        named(f"rq:worker:{name}").encode() for name in ("w", "x", "y", "n1")
    }
    ours.run(unregister_workers("now", "none", ["default"], ["x"]))
    assert ours.register("x") == [] and not redis.hexists(named("rq:worker:x"), "death")


def test_register_again_keeps_what_a_worker_has_counted(ours: Engine, redis: Redis) -> None:
    """Registering again, as after a heartbeat that found it missing, keeps counters; a first registration starts
    anew.
    """
    ours.commit(finished(claim_one(ours, redis)))
    redis.srem(named("rq:workers"), named("rq:worker:w"))
    assert ours.run(heartbeat(ours.settings, ours.token, 480, [("w", "idle", 0.0)], []))[0] == [b"w"]
    assert ours.register("w", again=True) == [] and counted(redis) == 1
    assert ours.run(heartbeat(ours.settings, ours.token, 480, [("w", "idle", 0.0)], []))[0] == []


def test_unregister_takes_all_slots_out_of_every_list(ours: Engine, redis: Redis) -> None:
    """Death is written for each slot, visible for a minute, and only our own scheduler's locks are given back."""
    redis.mset(
        {
            named("rq:scheduler-lock:default"): "mine",
            named("rq:scheduler-lock:q2"): "theirs",
            named("rq:scheduler:mine"): "x",
        }
    )
    assert ours.run(unregister_workers("now", "mine", ["default", "q2"], ["w", "x", "y"])) == 3
    assert not redis.exists(
        named("rq:workers"), named("rq:workers:default"), named("rq:scheduler-lock:default"), named("rq:scheduler:mine")
    )
    assert redis.get(named("rq:scheduler-lock:q2")) == b"theirs"
    assert {redis.hget(named(f"rq:worker:{name}"), "death") for name in "wxy"} == {b"now"}
    assert 0 < redis.ttl(named("rq:worker:w")) <= 60


# -- out of memory -----------------------------------------------------------------------------------------------


def fill(redis: Redis) -> None:
    """Write until the server takes no more."""
    with suppress(OutOfMemoryError):
        for i in range(10_000):
            redis.set(f"filler:{i}", os.urandom(50_000))
    with suppress(OutOfMemoryError):
        for i in range(100_000):
            redis.set(f"filler:small:{i}", b"x" * 100)
    with pytest.raises(OutOfMemoryError):
        redis.set("filler:last", b"x" * 1000)


def empty(redis: Redis) -> None:
    """Take away what ``fill`` wrote."""
    keys = redis.keys("filler:*")
    for start in range(0, len(keys), 1000):
        redis.delete(*keys[start : start + 1000])


def test_out_of_memory_commits_go_on_and_claims_stop(start_server: Any) -> None:
    """On a full server an outcome, a push-back and a heartbeat are recorded, while a claim is refused and pops
    nothing.
    """
    server = start_server({"maxmemory": "20mb", "maxmemory-policy": "noeviction"})
    redis = server.client()
    with engine(server.url) as ours:
        ours.register("w", "x")
        first, second = claim_one(ours, redis, "a", "w"), claim_one(ours, redis, "b", "x")
        Queue(connection=redis).enqueue("math.factorial", 3, job_id="c")
        fill(redis)
        with pytest.raises(ResponseError, match="OOM|maxmemory"):
            ours.claim("w")
        assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"c"]
        redis.expire(named("rq:worker:w"), 5)
        assert ours.run(heartbeat(ours.settings, ours.token, 480, [("w", "", 0.0)], [first, second]))[:3] == [[], [], 2]
        assert redis.ttl(named("rq:worker:w")) > 400
        assert ours.commit(finished(first)) == ["ok"]
        assert ours.run(push_back(ours.settings, ours.token, [second])) == 1
        assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"b", b"c"]
        empty(redis)
        assert [claim.job_id for claim in ours.claim("w", "x").claims] == ["b", "c"]


def test_out_of_memory_a_worker_records_waits_and_goes_on(start_server: Any, tmp_path: Path) -> None:
    """A worker on a full server records the job that runs, claims no other, says so, and goes on when there is room."""
    server = start_server({"maxmemory": "20mb", "maxmemory-policy": "noeviction"})
    redis = server.client()
    queue = Queue(connection=redis)
    started, gate = tmp_path / "started", tmp_path / "gate"
    with running_worker(server.url, log=tmp_path / "log") as worker:
        running = queue.enqueue(claim_jobs.wait_for_file, str(started), str(gate))
        waiting = queue.enqueue(claim_jobs.nothing)
        wait_until(started.exists)
        fill(redis)
        gate.touch()
        wait_until(lambda: running.get_status() == JobStatus.FINISHED, what="the outcome to be recorded")
        assert running.return_value() == "passed"
        worker.wait_for("cannot claim jobs: ")
        assert waiting.get_status() == JobStatus.QUEUED
        empty(redis)
        wait_until(lambda: waiting.get_status() == JobStatus.FINISHED, what="the next job")
        assert FinishedJobRegistry(connection=redis).count == 2
