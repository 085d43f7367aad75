"""Sweeps: which failed jobs they take, what becomes of these, and what is left behind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import retry_jobs
from engine import key_space
from failures import fail, fill, ids_in, make_older, work
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keys import named
from keyspace import differences, dump
from redis import Redis
from redis.exceptions import ResponseError
from rq import Callback, Retry
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry
from support import running_worker, wait_until

from rq_pooled import Backoff, Queue, Sweeper
from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError, SweepUnderWay, UnknownQueue
from rq_pooled.failed import DeadLetterRegistry, Selection, sweeper
from rq_pooled.failed.policies import Bury, Ghosts, Purge, Requeue
from rq_pooled.failed.registry import PAGE, FailedJobs, through
from rq_pooled.failed.sweep_settings import maintenance_policies
from rq_pooled.store.locks import SweepLock

FAILED, QUEUE, DEAD = named("rq:failed:default"), named("rq:queue:default"), named("rq_pooled:dead:default")


def sweep(redis: Redis, policy: Any, **options: Any) -> sweeper.Report:
    """Sweep the default queue once."""
    (report,) = Sweeper("default", redis, policy).run(**options)
    return report


# -- requeue -------------------------------------------------------------------------------------------------------


def test_requeued_job_is_as_rq_requeues_it(redis: Redis) -> None:
    """The key space after our requeue equals that after RQ's own, but for the expiry that would lose the job."""
    spaces = []
    for requeue in (
        lambda job: FailedJobRegistry("default", redis).requeue(job.id),
        lambda _job: sweep(redis, Requeue()),
    ):
        redis.flushall()
        began = time.time()
        (job,) = fail(redis, "Broken", job_id="same", meta={"a": 1}, result_ttl=77, on_failure=Callback(print))
        requeue(job)
        redis.persist(job.key)
        spaces.append(dump(redis, began))
    assert not differences(*spaces)


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ({}, "abcd"),
        ({"exceptions": ConnectionError}, "a"),  # the subclass is known: this process has loaded its module
        ({"exceptions": "ConnectionError"}, "a"),
        ({"exceptions": ["retry_jobs.Broken", "ValueError"]}, "bcd"),
        ({"exceptions": "KeyError"}, ""),
        ({"functions": "retry_jobs.fail"}, "abcd"),
        ({"functions": "retry_jobs.*", "exceptions": ValueError}, "c"),
        ({"functions": "other.*"}, ""),
        ({"older_than": 600}, "ab"),
        ({"older_than": 600, "exceptions": "Broken"}, "b"),
        ({"older_than": 3 * 86_400}, ""),
        ({"limit": 2}, "ab"),
        ({"limit": 1, "exceptions": "Broken"}, "b"),
    ],
)
def test_only_what_is_meant_is_taken(redis: Redis, selection: dict[str, Any], wanted: str) -> None:
    """Exception, function, age and limit choose together; what is not meant stays as it is, and order is kept."""
    jobs = dict(zip("abcd", fail(redis, "Busy", "Broken", "ValueError", "Broken")))
    make_older(redis, jobs["a"], 7200)
    make_older(redis, jobs["b"], 3600)
    names = {job.id: name for name, job in jobs.items()}
    told = sweep(redis, Requeue(**selection), dry_run=True)
    assert told.done == len(wanted) and len(ids_in(redis, FAILED)) == 4
    report = sweep(redis, Requeue(**selection))
    assert "".join(names[job_id] for job_id in ids_in(redis, QUEUE)) == wanted
    assert report.done == len(wanted)
    assert {names[job_id] for job_id in ids_in(redis, FAILED)} == set("abcd") - set(wanted)


def test_a_job_whose_time_is_unknown_is_never_old_enough(redis: Redis) -> None:
    """A failed job of which nothing says when it failed is left alone by a sweep that asks for an age."""
    (job,) = fail(redis, "Broken")
    redis.delete(named(f"rq:results:{job.id}"))
    redis.hdel(job.key, "ended_at")
    assert sweep(redis, Purge(older_than=5)).done == 0
    assert ids_in(redis, FAILED) == [job.id] and redis.exists(job.key)


def test_a_purged_job_leaves_its_group(redis: Redis) -> None:
    """RQ's group does not name a job that a purge has deleted, and names the others."""
    jobs = fail(redis, "Broken", "Broken")
    for job in jobs:
        redis.hset(job.key, "group_id", "g")
        redis.sadd(named("rq:group:g"), job.id)
    assert sweep(redis, Purge(limit=1, everything=True)).done == 1
    kept = ids_in(redis, FAILED)
    assert len(kept) == 1 and redis.smembers(named("rq:group:g")) == {kept[0].encode()}


def test_custom_description_does_not_hide_the_function(redis: Redis) -> None:
    """The function is known from the job's data, whatever its description says; nothing is unpickled for it."""
    fail(redis, "Broken", description="send the mail")
    assert sweep(redis, Requeue(functions="retry_jobs.fail"), dry_run=True).done == 1
    queue = Queue("default", redis, serializer="rq.serializers.JSONSerializer")
    job = queue.enqueue("nowhere.to.be_found", "x", description="another")
    redis.delete(QUEUE)
    redis.hset(job.key, "status", "failed")
    redis.zadd(FAILED, {job.id: 1e12})
    assert [one.function for one in Sweeper("default", redis).jobs("default", with_data=True)][
        -1
    ] == "nowhere.to.be_found"


def test_requeue_gives_retries_anew(redis: Redis) -> None:
    """A job gets as many retries as it was enqueued with; a job without any gets none, unless it is told otherwise."""
    kinds: dict[str, Any] = {"backoff": Backoff(3, jitter=None), "stock": Retry(2, [5, 6]), "none": None}
    jobs = {}
    for name, retry in kinds.items():
        jobs[name] = Queue("default", redis).enqueue(retry_jobs.give_up, retry=retry, job_id=name)
        redis.hset(jobs[name].key, mapping={"status": "failed", "retries_left": 0} if retry else {"status": "failed"})
        redis.zadd(FAILED, {name: 1e12})
    redis.delete(QUEUE)
    sweep(redis, Requeue())
    left = {name: Job.fetch(job.id, redis).retries_left for name, job in jobs.items()}
    assert left == {"backoff": 3, "stock": 2, "none": None}
    redis.delete(QUEUE)
    for name in kinds:
        redis.hset(named(f"rq:job:{name}"), "status", "failed")
        redis.zadd(FAILED, {name: 1e12})
    sweep(redis, Requeue(retries=9))
    assert {Job.fetch(name, redis).retries_left for name in kinds} == {9}


def test_a_requeued_job_may_return_its_retries_again(redis: Redis) -> None:
    """The count of retries that a job has returned begins anew, else one that used them up would fail at once."""
    (job,) = fail(redis, "value")
    redis.hset(job.key, "number_of_retries", 3)
    sweep(redis, Requeue())
    assert redis.hget(job.key, "number_of_retries") is None and ids_in(redis, QUEUE) == [job.id]


def test_jobs_are_buried_in_the_order_of_their_registry(redis: Redis) -> None:
    """Of jobs that are buried in one step the first stays the first, whatever the order of their ids."""
    ids = [f"z{number:03}" for number in range(60, 0, -1)]
    fill(redis, 60, prefix="x")
    for job_id, old in zip(ids, ids_in(redis, FAILED)):
        redis.rename(named(f"rq:job:{old}"), named(f"rq:job:{job_id}"))
        redis.rename(named(f"rq:results:{old}"), named(f"rq:results:{job_id}"))
        redis.zadd(FAILED, {job_id: redis.zscore(FAILED, old) or 0})
        redis.zrem(FAILED, old)
    for place, job_id in enumerate(ids):
        redis.zadd(FAILED, {job_id: 2e9 + place})
    sweep(redis, Bury())
    assert ids_in(redis, named("rq_pooled:dead:default")) == ids


def test_requeued_job_does_not_expire_while_it_waits(redis: Redis) -> None:
    """A failure's expiry ends with the requeue; the job's own ttl begins anew."""
    fail(redis, "Broken", failure_ttl=60, job_id="short")
    fail(redis, "Broken", failure_ttl=60, ttl=500, job_id="own")
    for job_id in ("short", "own"):
        for key in (named(f"rq:job:{job_id}:dependents"), named(f"rq:job::{job_id}:dependencies")):
            redis.sadd(key, "another")
            redis.expire(key, 60)
    sweep(redis, Requeue())
    for job_id, least, most in (("short", -1, -1), ("own", 490, 500)):
        for key in (
            named(f"rq:job:{job_id}"),
            named(f"rq:job:{job_id}:dependents"),
            named(f"rq:job::{job_id}:dependencies"),
        ):
            assert least <= redis.ttl(key) <= most, key
        assert redis.ttl(named(f"rq:results:{job_id}")) == -1, "the history of its tries stays as long as the job"


def test_requeue_goes_on_past_ghosts(redis: Redis) -> None:
    """Entries whose job is gone are dropped and counted; all others are requeued."""
    ids = fill(redis, 300)
    for job_id in ids[::3]:
        redis.delete(named(f"rq:job:{job_id}"))
    report = sweep(redis, Requeue())
    assert (report.done, report.ghosts, report.looked_at) == (200, 100, 300)
    assert ids_in(redis, QUEUE) == [job_id for i, job_id in enumerate(ids) if i % 3]
    assert not redis.exists(FAILED)


def test_requeue_leaves_what_is_not_failed_any_more(redis: Redis) -> None:
    """An entry whose job is queued, runs or has finished under the same id is not run once more."""
    (job,) = fail(redis, "Broken")
    Queue("default", redis).enqueue(retry_jobs.fail_while, "never", job_id=job.id)
    assert sweep(redis, Requeue()).done == 0
    assert ids_in(redis, QUEUE) == [job.id]
    work(redis, "default")
    assert sweep(redis, Purge(everything=True)).done == 0
    assert job.get_status() == JobStatus.FINISHED


def test_requeue_counts_delays_and_spaces(redis: Redis) -> None:
    """``times`` bounds the requeues of a job in all, ``delay`` schedules each later, ``rate`` spreads them."""
    (job,) = fail(redis, "Broken")
    policy = Requeue(times=2, delay=Backoff(5, base=100, factor=3, cap=1000, jitter=None))
    for wait in (100, 300):
        assert sweep(redis, policy).done == 1
        due = redis.zscore(named("rq:scheduled:default"), job.id)
        assert wait - 5 < due - time.time() <= wait + 1 and job.get_status() == JobStatus.SCHEDULED
        redis.delete(named("rq:scheduled:default"))
        Queue("default", redis).push_job_id(job.id)
        work(redis, "default")
    report = sweep(redis, policy)
    assert (report.done, report.spent) == (0, 1)
    assert sweep(redis, Requeue()).done == 1  # by hand: the count begins anew
    assert not redis.hexists(job.key, "rq_pooled:requeues")

    redis.flushall()
    fill(redis, 100)
    sweep(redis, Requeue(rate=10))
    assert redis.llen(QUEUE) == 10
    scores = [score for _, score in redis.zrange(named("rq:scheduled:default"), 0, -1, withscores=True)]
    assert len(scores) == 90 and 8 <= max(scores) - min(scores) <= 10


@pytest.mark.parametrize("dry_run", [True, False])
def test_limit_counts_what_is_requeued(redis: Redis, dry_run: bool) -> None:
    """Ghosts, and jobs that were requeued too often already, take no place of the limit, however many stand in
    front.
    """
    ids = fill(redis, 2 * PAGE)
    for ghost, spent in zip(ids[:20:2], ids[1:20:2]):
        redis.delete(named(f"rq:job:{ghost}"))
        redis.hset(named(f"rq:job:{spent}"), "rq_pooled:requeues", 2)
    report = sweep(redis, Requeue(times=2, limit=2), dry_run=dry_run)
    assert (report.done, report.ghosts, report.spent) == (2, 10, 10)
    assert report.examples == ids[20:22]


# -- bury, purge, ghosts -------------------------------------------------------------------------------------------


def test_dead_letters_are_a_registry_of_rq(redis: Redis) -> None:
    """What is buried leaves the failed registry and stands here, as a failed job, until it is requeued or its time
    ends.
    """
    jobs = fail(redis, "Busy", "Broken", "Broken", retry=None)
    report = sweep(redis, Bury(exceptions="Broken", max_age=5000))
    dead = DeadLetterRegistry("default", redis)
    assert report.done == 2 and ids_in(redis, FAILED) == [jobs[0].id]
    assert dead.get_job_ids() == [jobs[1].id, jobs[2].id]
    assert len(dead) == dead.count == 2 and jobs[1] in dead and jobs[0].id not in dead
    assert Job.fetch(jobs[1].id, redis).get_status() == JobStatus.FAILED
    assert 4900 < redis.ttl(jobs[1].key) <= 5000
    assert 4900 < dead.get_expiration_time(jobs[1]).timestamp() - time.time() <= 5001
    assert DeadLetterRegistry(queue=Queue("default", redis)) == dead

    requeued = dead.requeue(jobs[1].id)
    assert requeued.get_status() == JobStatus.QUEUED and ids_in(redis, QUEUE) == [jobs[1].id]
    with pytest.raises(InvalidJobOperation):
        dead.requeue(jobs[1])
    redis.delete(jobs[2].key)
    with pytest.raises(NoSuchJobError):
        dead.requeue(jobs[2].id)
    assert len(dead) == 0

    dead.add(Job.fetch(jobs[0].id, redis), ttl=100)
    assert jobs[0] in dead and not redis.exists(FAILED) and 90 < redis.ttl(jobs[0].key) <= 100
    assert dead.find(Selection(exceptions=ConnectionError)) == [jobs[0].id]
    assert dead.requeue_many(Requeue(exceptions=ValueError)).done == 0
    assert dead.requeue_many().done == 1
    dead.remove(jobs[0])


def test_dead_letters_are_bounded_by_count_and_age(redis: Redis) -> None:
    """Beyond the bound the oldest are deleted with all that belongs to them; expired ones leave the registry."""
    ids = fill(redis, 130)
    report = sweep(redis, Bury(max_count=20))
    assert (report.done, report.trimmed) == (130, 110)
    dead = DeadLetterRegistry("default", redis)
    assert dead.get_job_ids() == ids[110:]
    assert len(redis.keys(named("rq:job:*"))) == len(redis.keys(named("rq:results:*"))) == 20
    assert dead.trim(5) == 15
    dead.cleanup(time.time() + 31 * 86_400)
    assert not redis.exists(DEAD)


def test_buried_jobs_get_their_retries_anew(redis: Redis) -> None:
    """A dead letter comes back with as many retries as it was enqueued with."""
    (job,) = fail(redis, "Broken", retry=Backoff(4))
    redis.zadd(FAILED, {job.id: 1e12})
    redis.hset(job.key, mapping={"status": "failed", "retries_left": 0})
    redis.delete(named("rq:scheduled:default"))
    sweep(redis, Bury())
    assert DeadLetterRegistry("default", redis).requeue(job.id).retries_left == 4


def test_purge_leaves_nothing_of_a_job(redis: Redis) -> None:
    """Hash, results, dependents, group and registry: all gone; other jobs are untouched."""
    (keep,) = fail(redis, "Busy", job_id="keep")
    before = key_space(redis)
    jobs = fail(redis, "Broken", "Broken")
    # What a worker leaves behind that dies after its job has failed: half a record of the execution.
    redis.zadd(named(f"rq:executions:{jobs[0].id}"), {"left": 1})
    redis.hset(named(f"rq:execution:{jobs[0].id}:left"), "id", "left")
    assert sweep(redis, Purge(exceptions="Broken")).done == 2
    after = key_space(redis)
    assert {key: value for key, value in after.items() if "worker" not in key} == {
        key: value for key, value in before.items() if "worker" not in key
    }
    assert not [key for key in redis.keys("*") if any(job.id.encode() in key for job in jobs)]
    assert keep.get_status() == JobStatus.FAILED


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        (Purge(everything=True), 0),
        (Purge(beyond=70), 70),
        (Purge(beyond=0, everything=True), 0),
        (Purge(beyond=500), 200),
        (Purge(older_than=5000), 100),
        (Purge(older_than=5000, beyond=70), 70),
        (Purge(older_than=5000, beyond=150), 100),
        (Purge(older_than=99_999), 200),
        (Purge(exceptions="ConnectionError", limit=30), 170),
        (Purge(exceptions="KeyError", beyond=1), 200),
    ],
)
def test_purge_bounds_by_age_and_count(redis: Redis, policy: Purge, left: int) -> None:
    """What is older goes, what is beyond the newest goes, whatever the order of the registry: it is that of expiry."""
    old, new = fill(redis, 100, age=10_000, prefix="a"), fill(redis, 100, age=1000, prefix="b")
    shuffled = random.Random(1).sample(old + new, 200)
    redis.zadd(FAILED, {job_id: -1 if i % 2 else 1e12 + i for i, job_id in enumerate(shuffled)})
    sweep(redis, policy)
    found = ids_in(redis, FAILED)
    assert len(found) == left
    if policy.limit is None:
        assert set(found) == set((old + new)[200 - left :])


@pytest.mark.parametrize("policy", [Purge(everything=True), Bury(), Bury(max_count=0), "trim"], ids=repr)
def test_no_sweep_ends_a_schedule(redis: Redis, policy: Any) -> None:
    """A job that comes again keeps its id: of a failed run the entry goes, and what the schedule names stays for
    ever.
    """
    periodic, once = fail(redis, "Broken", "Broken")
    redis.zadd(named("rq:scheduler:scheduled_jobs"), {periodic.id: 1e12})
    if policy == "trim":  # buried before it was scheduled
        redis.rename(FAILED, DEAD)
        assert Sweeper("default", redis).trim("default", 0) == 2
    else:
        assert sweep(redis, policy).done == 2
    assert not redis.zscore(FAILED, periodic.id) and not redis.zscore(DEAD, periodic.id)
    assert periodic.get_status() == JobStatus.FAILED and redis.ttl(periodic.key) == -1
    assert redis.ttl(once.key) != -1


@pytest.mark.parametrize("policy", [Purge(everything=True), Bury()], ids=repr)
def test_key_that_is_no_schedule_stops_no_sweep(redis: Redis, policy: Any) -> None:
    """Where something else stands at rq-scheduler's key no job is periodic."""
    (job,) = fail(redis, "Broken")
    redis.set(named("rq:scheduler:scheduled_jobs"), "something else")
    assert sweep(redis, policy).done == 1 and redis.ttl(job.key) != -1


def test_ghosts_are_dropped_from_both_registries(redis: Redis) -> None:
    """Entries without a job go, all others stay, in pages of any number; by default a sweep does this and only this."""
    ids = fill(redis, 1300)
    for job_id in random.Random(2).sample(ids, 700):
        redis.delete(named(f"rq:job:{job_id}"))
    redis.zadd(DEAD, {"gone": 1})
    (told,) = Sweeper("default", redis).run(dry_run=True)
    assert told.done == 701 and redis.zcard(FAILED) == 1300
    (report,) = Sweeper("default", redis).run()
    assert report.done == 701
    assert redis.zcard(FAILED) == 600 and not redis.exists(DEAD)
    assert all(redis.exists(named(f"rq:job:{job_id}")) for job_id in ids_in(redis, FAILED))


# -- any sweep -----------------------------------------------------------------------------------------------------

POLICIES = [Requeue(), Bury(max_count=3), Purge(everything=True), Purge(beyond=2), Ghosts()]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_dry_run_changes_nothing_and_tells_the_truth(redis: Redis, policy: Any) -> None:
    """Not a key differs after it, and the sweep that follows does what it told."""
    ids = fill(redis, 120)
    redis.delete(named(f"rq:job:{ids[5]}"))
    before = key_space(redis)
    told = sweep(redis, policy, dry_run=True)
    assert key_space(redis) == before
    done = sweep(redis, policy)
    assert (told.done, told.ghosts, told.looked_at) == (done.done, done.ghosts, done.looked_at)
    assert not redis.keys(named("rq_pooled:sweep:*"))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_nothing_to_do(redis: Redis, policy: Any) -> None:
    """An empty registry is no error, and nothing is written."""
    redis.sadd(named("rq:queues"), QUEUE)
    report = sweep(redis, policy)
    assert (report.done, report.looked_at) == (0, 0)
    assert redis.keys("*") == [named(b"rq:queues")]


@pytest.mark.parametrize("policy", [Ghosts(), Requeue(), Bury(), Purge(everything=True)])
def test_entry_that_is_no_job_stops_no_sweep(redis: Redis, policy: Any) -> None:
    """An entry behind which stands something else than a job is a ghost, and a count that is none counts nothing."""
    queue = Queue("default", redis)
    job = queue.enqueue(retry_jobs.give_up)
    redis.hset(job.key, mapping={"status": "failed", "rq_pooled:requeues": "many"})
    redis.set(named("rq:job:other"), "something else")
    redis.zadd(FAILED, {"other": 1e12, job.id: 2e12})
    report = sweep(redis, policy)
    assert report.done == 1 and redis.zscore(FAILED, "other") is None
    assert redis.get(named("rq:job:other")) == b"something else"


def test_queues_are_known_or_refused(redis: Redis) -> None:
    """None means all queues of the server; one that it does not know is an error, unless jobs of it failed."""
    fill(redis, 3, "one", prefix="x")
    fill(redis, 2, "two", prefix="y")
    redis.srem(named("rq:queues"), named("rq:queue:two"))
    redis.sadd(named("rq:queues"), named("rq:queue:empty"))
    reports = Sweeper(None, redis, Requeue()).run()
    assert {report.queue: report.done for report in reports} == {"one": 3, "empty": 0}
    assert Sweeper([Queue("two", redis)], policies=Requeue()).run()[0].done == 2
    with pytest.raises(UnknownQueue, match="'three'.*empty, one"):
        Sweeper("three", redis).run()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Requeue(times=0),
        lambda: Requeue(rate=0),
        lambda: Requeue(rate=1e-300),
        lambda: Requeue(rate=1e-320),
        lambda: Bury(max_age=1e17),
        lambda: Requeue(delay=Retry(3)),  # type: ignore[arg-type]
        lambda: Requeue(exceptions=5),  # type: ignore[arg-type]
        lambda: Requeue(functions=[""]),
        lambda: Bury(max_age=0),
        lambda: Bury(max_count=-1),
        lambda: Purge(beyond=1.5),  # type: ignore[arg-type]
        lambda: Purge(older_than=-1),
        lambda: Purge(),
        lambda: Purge(limit=5),
        lambda: Purge(older_than=0),
        lambda: Purge(older_than=0, beyond=10),
        lambda: Purge(older_than=10, beyond=0),
        lambda: Purge(exceptions=Exception),
        lambda: Purge(exceptions=("KeyError", "BaseException")),
        lambda: Purge(functions="*"),
        lambda: Purge(everything=1),  # type: ignore[arg-type]
        lambda: Purge(older_than=float("nan")),
        lambda: Purge(limit=0, everything=True),
        lambda: Sweeper("q", Redis(), "purge"),  # type: ignore[arg-type]
        lambda: Sweeper("q", Redis(), Purge),  # type: ignore[arg-type]
        lambda: Sweeper("q", Redis(), Bury(), dead=True),
    ],
)
def test_bad_policies_are_refused_when_built(make: Callable[[], Any]) -> None:
    """What cannot be carried out never begins."""
    with pytest.raises(ConfigurationError):
        make()


def test_one_sweep_at_a_time_per_queue(redis: Redis) -> None:
    """A second sweep is refused with the owner's name; when the first has lost its lock it stops before it does
    harm.
    """
    fill(redis, 200)
    fill(redis, 2, "other", prefix="o")
    refused: list[str] = []

    def look(_done: int, _total: int) -> None:
        if not refused:
            with pytest.raises(SweepUnderWay, match="'default' is under way") as caught:
                sweep(redis, Purge(everything=True))
            refused.append(str(caught.value))
            assert Sweeper("other", redis, Requeue()).run()[0].done == 2
            redis.set(named("rq_pooled:sweep:default"), "somebody else")

    with pytest.raises(SweepUnderWay, match="lost its lock"):
        sweep(redis, Requeue(), progress=look)
    assert refused and redis.llen(QUEUE) == PAGE
    assert redis.get(named("rq_pooled:sweep:default")) == b"somebody else"


def test_jobs_that_fail_during_a_sweep_are_left_to_the_next(redis: Redis) -> None:
    """Requeueing jobs that fail at once ends, and takes each job once."""
    fail(redis, *["Broken"] * 3)
    rounds: list[int] = []

    def fail_again(_done: int, _total: int) -> None:
        assert len(rounds) < 5
        rounds.append(1)
        work(redis, "default")

    assert sweep(redis, Requeue(), progress=fail_again).done == 3
    assert redis.zcard(FAILED) == 3


def test_time_limit_ends_a_sweep_after_a_page(redis: Redis) -> None:
    """What is left is left for the next one, and the report says so."""
    fill(redis, 200)
    report = sweep(redis, Requeue(), max_seconds=0)
    assert report.unfinished and report.done == PAGE
    assert not sweep(redis, Requeue()).unfinished
    assert redis.llen(QUEUE) == 200


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    removals=st.lists(st.integers(0, 599), min_size=20, max_size=60),
)
def test_no_entry_is_skipped_when_others_remove_some(redis: Redis, counts: list[int], removals: list[int]) -> None:
    """Whatever the scores, and whoever removes entries between two pages: all that stay are seen."""
    redis.flushall()
    scores = [score for score, count in zip((-1, 5, 6, 1e12), counts) for _ in range(count)]
    ids = [f"e{number:03d}" for number in range(len(scores))]
    for job_id in ids:
        redis.hset(named(f"rq:job:{job_id}"), mapping={"data": b"x", "status": "failed", "description": "f()"})
    redis.zadd(FAILED, dict(zip(ids, scores)))
    seen, gone = set(), set()
    for job in Sweeper("default", redis).jobs("default"):
        seen.add(job.id)
        if removals and len(seen) % 5 == 0:
            victim = ids[removals.pop() % len(ids)]
            gone.add(victim)
            redis.zrem(FAILED, victim)
    assert seen >= set(ids) - gone


def test_sweep_is_a_job_too(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A sweep can be enqueued with plain arguments: it works on its worker's server and returns plain data."""
    fill(redis, 120, "other")
    call = ("rq_pooled.sweeper.sweep", "other", "purge")
    queue = Queue("default", redis)
    good, wrong = queue.enqueue(*call, beyond=100), queue.enqueue(*call, beyond="many")
    total = queue.enqueue(*call, older_than=0)
    unknown = queue.enqueue("rq_pooled.sweeper.sweep", "other", "burn")
    with running_worker(server.url, log=tmp_path / "log"):
        wait_until(lambda: unknown.get_status() == JobStatus.FAILED)
    assert good.return_value()[0]["done"] == 20 and redis.zcard(named("rq:failed:other")) == 100
    assert "give a whole number" in wrong.latest_result().exc_string
    assert "deletes every failed job" in total.latest_result().exc_string
    assert "use requeue, bury, purge, ghosts" in unknown.latest_result().exc_string


@pytest.mark.parametrize("action", ["requeue", "bury", "purge"])
def test_each_job_is_looked_at_again_when_it_is_changed(redis: Redis, action: str) -> None:
    """Between choosing and changing a job may be run, fail anew, vanish, or leave the registry; then nothing is
    done.
    """
    ids = fill(redis, 6)
    store = FailedJobs(through(redis))
    _, page, _ = next(store.pages("default", store.no_lock("default"), False))
    redis.hset(named(f"rq:job:{ids[0]}"), "status", "queued")
    redis.hset(named(f"rq:job:{ids[1]}"), "ended_at", "2099-01-01T00:00:00.000000Z")
    redis.delete(named(f"rq:job:{ids[2]}"))
    redis.zrem(FAILED, ids[3])
    before = {job_id: redis.hgetall(named(f"rq:job:{job_id}")) for job_id in ids[:4]}

    def act(lock: SweepLock) -> list[str]:
        if action == "requeue":
            return store.requeue("default", lock, [(job.id, job.ended_at, "") for job in page])
        if action == "bury":
            return store.bury("default", lock, [(job.id, job.ended_at) for job in page], 100)
        return store.purge("default", lock, [(job.id, job.ended_at) for job in page])

    with pytest.raises(SweepUnderWay):
        act(SweepLock(named("rq_pooled:sweep:default"), "not the owner", 30))
    assert redis.zcard(FAILED) == 5
    assert act(store.no_lock("default")) == ["changed", "changed", "ghost", "gone", "done", "done"]
    assert {job_id: redis.hgetall(named(f"rq:job:{job_id}")) for job_id in ids[:4]} == before
    assert ids_in(redis, FAILED) == ids[:2]


# -- in the worker -------------------------------------------------------------------------------------------------


def test_settings_make_policies() -> None:
    """By default maintenance drops ghosts and does nothing else; each setting adds what it names."""
    assert maintenance_policies(Settings()) == [Ghosts()]
    assert maintenance_policies(Settings(sweep_ghosts=0)) == []
    all_of_them = Settings(
        sweep_requeue=("ConnectionError",),
        sweep_requeue_times=2,
        sweep_bury_after=60,
        sweep_dead_age=100,
        sweep_dead_count=7,
        sweep_purge_after=90,
        sweep_keep=5,
    )
    _, requeue, bury, purge = maintenance_policies(all_of_them)
    assert isinstance(requeue, Requeue) and requeue.times == 2 and requeue.rate == 100 and requeue.delay
    assert bury == Bury(older_than=60, max_age=100, max_count=7)
    assert purge == Purge(older_than=90, beyond=5)


def test_worker_drops_ghosts_by_default(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Maintenance of a worker clears ghosts over the two connections that it has; jobs run meanwhile."""
    ids = fill(redis, 2000)
    for job_id in ids[:1500]:
        redis.delete(named(f"rq:job:{job_id}"))
    job = Queue("default", redis).enqueue(retry_jobs.fail_while, "never")
    with running_worker(server.url, log=tmp_path / "log", concurrency=2) as worker:
        wait_until(lambda: redis.zcard(FAILED) == 500)
        wait_until(lambda: job.get_status() == JobStatus.FINISHED)
        wait_until(lambda: not redis.exists(named("rq_pooled:sweep:default")))
        names = {client["name"] for client in redis.client_list() if f":{worker.pid}:" in client["name"]}
        # The job itself uses Redis.
        assert {name.rpartition(":")[2] for name in names} == {"command", "listen", "jobs"}
        worker.wait_for("ghosts did 1500")  # said after the lock is given back


def test_queues_without_failed_jobs_cost_a_sweep_next_to_nothing(redis: Redis) -> None:
    """Of thousands of queues those with entries are found together; one of another type costs the others nothing."""
    redis.sadd(named("rq:queues"), *(named(f"rq:queue:empty-{number}") for number in range(3_000)))
    redis.sadd(named("rq:queues"), named("rq:queue:spoilt"))
    redis.set(named("rq:failed:spoilt"), "x")
    fill(redis, 3, "q")
    redis.zadd(named("rq:failed:q"), {"ghost": time.time() + 1000})
    trips: list[int] = []
    send = through(redis)

    def counted(commands: Any) -> list[Any]:
        trips.append(len(commands))
        return send(commands)

    sweeper = Sweeper(None, policies=Ghosts(), execute=counted)
    with pytest.raises(ResponseError, match="another type|WRONGTYPE"):
        sweeper.run()
    assert len(sweeper.reports) == 3_002 and len(trips) < 50
    assert {one.queue for one in sweeper.reports if one.done} == {"q"}
    assert [one.queue for one in sweeper.reports if one.error] == ["spoilt"]
    assert sorted(sweeper.filled()) == ["q", "spoilt"]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (named("rq:finished:default"), "of queue default cannot be cleaned"),
        (named("rq:groups"), "Listening on"),
    ],
)
def test_worker_sweeps_where_rq_s_maintenance_gives_up(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, key: str, said: str
) -> None:
    """A registry of another type, which ends RQ's clean-up each time, keeps no queue from being swept."""
    redis.set(key, "x")
    redis.zadd(named("rq:failed:default"), {"ghost": time.time() + 1000})
    with running_worker(server.url, log=tmp_path / "log") as worker:
        worker.wait_for(said, 10)
        wait_until(lambda: not redis.exists(named("rq:failed:default")), 10, "the sweep")


def test_worker_sweeps_as_its_settings_say(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """SWEEP_REQUEUE, SWEEP_BURY_AFTER and SWEEP_DEAD_COUNT at work."""
    (busy,) = fail(redis, "Busy")
    fill(redis, 120, "second")
    with running_worker(
        server.url,
        "default",
        "second",
        log=tmp_path / "log",
        RQ_POOLED_SWEEP_REQUEUE="retry_jobs.Busy",
        RQ_POOLED_SWEEP_REQUEUE_DELAY="1000",
        RQ_POOLED_SWEEP_BURY_AFTER="600",
        RQ_POOLED_SWEEP_DEAD_COUNT="30",
    ):
        wait_until(
            lambda: redis.zcard(named("rq_pooled:dead:second")) == 30 and not redis.exists(named("rq:failed:second"))
        )
        assert busy.get_status() == JobStatus.SCHEDULED
        assert redis.hget(busy.key, "rq_pooled:requeues") == b"1"
