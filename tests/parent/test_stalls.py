"""Jobs whose worker is dead, cut off or stopped: they come back once, in order, and not for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import crash_jobs
import jobs
import promise_jobs
import pytest
from engine import Engine, engine, finished, residue
from keys import named
from redis import Redis
from rq import Callback, Queue, Retry
from rq.job import Job, JobStatus
from stalls import end_lease, look
from support import running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.store.leases import postpone

#: A worker that notices within seconds what it would within a minute.
QUICK = {
    "RQ_POOLED_HEARTBEAT_INTERVAL": "0.3",
    "RQ_POOLED_HEARTBEAT_TTL": "1.5",
    "RQ_POOLED_STALLED_INTERVAL": "0.3",
    "RQ_POOLED_RECONNECT_CAP": "0.3",
}


@pytest.fixture
def ours(server: EmbeddedServer, redis: Redis) -> Iterator[Engine]:
    """A ledger with three registered workers; a job may stall twice."""
    with engine(server.url, max_stalls=2) as one:
        one.register("w", "x", "y")
        yield one


# -- the script ------------------------------------------------------------------------------------------------------


def test_stalled_jobs_go_back_in_front_in_their_order(ours: Engine, redis: Redis) -> None:
    """What stalled first runs first, before what waited behind it, as if it had never been popped."""
    queue = Queue(connection=redis)
    before = {}
    for name in "abc":
        queue.enqueue(jobs.nothing, job_id=name, retry=Retry(max=2), ttl=100)
        before[name] = redis.hgetall(named(f"rq:job:{name}"))
    claims = ours.claim("w", "x").claims
    end_lease(redis, *(claim.member for claim in claims))
    stalled = look(ours)
    assert stalled.returned == [("a", "default", "w", 1), ("b", "default", "x", 1)]
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"a", b"b", b"c"]
    # The first is of the worker that held them, which may still be alive; the second goes within seconds.
    assert sorted(residue(redis)) == [named("rq_pooled:claims:token"), named("rq_pooled:lock:stalled")]
    for name in "ab":
        after = redis.hgetall(named(f"rq:job:{name}"))
        assert after.pop(b"rq_pooled_stalls") == b"1"
        assert after.pop(b"worker_name") == after.pop(b"last_heartbeat") == b""
        assert after == {key: value for key, value in before[name].items() if key in after}
        assert after[b"retries_left"] == b"2"
        assert 0 < redis.ttl(named(f"rq:job:{name}")) <= 100
    assert ours.commit(finished(claims[0])) == ["lost"], "whoever lost the claim cannot record anything"
    assert redis.hget(named("rq:job:a"), "status") == b"queued"


def test_leases_that_stand_are_left_alone(ours: Engine, redis: Redis) -> None:
    """A claim that is renewed is nobody else's, and one look within the interval is enough for all workers."""
    Queue(connection=redis).enqueue(jobs.nothing, job_id="a")
    (claim,) = ours.claim("w").claims
    assert look(ours) == (False, [], [])
    end_lease(redis, claim.member)
    assert look(ours, unlock=False).returned == []
    assert look(ours, valid_for=-1).returned == [], "a look that lay in a frozen server judges nobody"
    assert len(look(ours).returned) == 1


def test_a_job_that_stalls_too_often_is_claimed_to_be_failed(ours: Engine, redis: Redis) -> None:
    """After MAX_STALLS the finder holds a claim of its own, under which the failure is recorded and nothing else."""
    Queue(connection=redis).enqueue(jobs.nothing, job_id="a")
    for stall in (1, 2):
        (claim,) = ours.claim("w").claims
        end_lease(redis, claim.member)
        assert look(ours).returned == [("a", "default", "w", stall)]
    (claim,) = ours.claim("w").claims
    end_lease(redis, claim.member)
    stalled = look(ours)
    ((taken, stalls),) = stalled.taken
    assert (stalled.returned, stalls, taken.job_id, taken.worker_name) == ([], 3, "a", "y")
    assert redis.zrange(named("rq:wip:default"), 0, -1) == [taken.member.encode()]
    assert redis.lrange(named("rq:queue:default"), 0, -1) == []
    assert ours.commit(finished(claim)) == ["lost"]
    assert ours.commit(finished(taken)) == ["ok"]
    # Should the finder die, too, the next one takes it over.


def test_the_claim_to_fail_a_job_stalls_too(ours: Engine, redis: Redis) -> None:
    """A finder that dies before the failure is recorded is found like any other; the job never gets lost."""
    Queue(connection=redis).enqueue(jobs.nothing, job_id="a")
    redis.hset(named("rq:job:a"), "rq_pooled_stalls", 2)
    (claim,) = ours.claim("w").claims
    end_lease(redis, claim.member)
    ((first, _),) = look(ours).taken
    end_lease(redis, first.member)
    ((second, stalls),) = look(ours, "x").taken
    assert stalls == 4 and second.execution_id != first.execution_id
    assert redis.zrange(named("rq:wip:default"), 0, -1) == [second.member.encode()]


def test_the_claim_to_fail_a_job_expires_like_any_other(ours: Engine, redis: Redis) -> None:
    """What the finder of a job that stalled too often writes has the lease, horizon and expiry of an ordinary claim."""
    Queue(connection=redis).enqueue(jobs.nothing, job_id="a")
    redis.hset(named("rq:job:a"), "rq_pooled_stalls", 2)
    (claim,) = ours.claim("w").claims
    (claims,) = redis.keys(named("rq_pooled:claims*"))
    keys, scores = {}, {}

    def note(stage: str, member: str) -> None:
        keys[stage] = [redis.ttl(key) for key in (named(f"rq:execution:{member}"), named("rq:executions:a"), claims)]
        zsets = (named("rq_pooled:leases:default"), named("rq:wip:default"))
        found = [
            *(redis.zscore(key, member) for key in zsets),
            redis.zscore(named("rq:executions:a"), member.partition(":")[2]),
        ]
        scores[stage] = [score - redis.time()[0] for score in found]

    note("claimed", claim.member)
    end_lease(redis, claim.member)
    for key in (named(f"rq:execution:{claim.member}"), named("rq:executions:a"), claims):
        redis.persist(key)
    ((taken, _),) = look(ours).taken
    note("taken", taken.member)
    for stage in (keys, scores):
        assert all(abs(now - before) < 5 for now, before in zip(stage["taken"], stage["claimed"])), stage


def test_the_claim_to_fail_a_job_knows_where_it_was_popped(ours: Engine, redis: Redis) -> None:
    """Should the finder die, too, the next one still knows the queue to which a job of another queue belongs."""
    Queue(connection=redis).enqueue(jobs.nothing, job_id="a")
    redis.rename(named("rq:queue:default"), named("rq:queue:other"))
    redis.hset(named("rq:job:a"), "rq_pooled_stalls", 2)
    (claim,) = ours.claim("w", queues=("other",)).claims
    for name in "xy":
        end_lease(redis, claim.member)
        ((claim, _),) = look(ours, name).taken
        assert claim.queue_key == named("rq:queue:other")


def test_a_claim_whose_worker_is_long_gone_is_not_postponed_again(ours: Engine, redis: Redis) -> None:
    """A horizon further behind its lease than ABANDON_AFTER was put there by a postponement: RQ's clean-up may have
    it.
    """
    queue = Queue(connection=redis)
    queue.enqueue(jobs.nothing, job_id="a")
    (claim,) = ours.claim("w").claims
    clock = redis.time()[0]
    for behind, postponed in ((960, 0), (899, 1)):
        redis.zadd(named("rq:wip:default"), {claim.member: clock + 30})
        redis.zadd(named("rq_pooled:leases:default"), {claim.member: clock + 30 - behind})
        assert ours.run(postpone([queue.key], 900)) == postponed


def test_cancelled_and_deleted_jobs_do_not_come_back(ours: Engine, redis: Redis) -> None:
    """A lease whose job was cancelled or deleted while it ran is removed with all that belongs to it."""
    queue = Queue(connection=redis)
    for name in "ab":
        queue.enqueue(jobs.nothing, job_id=name)
    claims = ours.claim("w", "x").claims
    Job.fetch("a", redis).cancel()
    redis.delete(named("rq:job:b"))
    end_lease(redis, *(claim.member for claim in claims))
    assert look(ours) == (False, [], [])
    assert redis.llen(named("rq:queue:default")) == 0
    assert not [
        key
        for key in redis.keys("*")
        if key.startswith((named(b"rq:execution"), named(b"rq:wip"), named(b"rq_pooled:leases")))
    ]


def test_a_job_goes_back_to_the_queue_that_it_was_popped_from(ours: Engine, redis: Redis) -> None:
    """An id that stood in another queue than its job names, goes back there: that is where its workers are."""
    Queue(connection=redis).enqueue(jobs.nothing, job_id="a")
    redis.rename(named("rq:queue:default"), named("rq:queue:other"))
    (claim,) = ours.claim("w", queues=["other"]).claims
    assert claim.queue == "default"
    end_lease(redis, claim.member)
    assert len(look(ours).returned) == 1
    assert redis.lrange(named("rq:queue:other"), 0, -1) == [b"a"]


def test_a_job_goes_back_to_nothing_but_a_queue(ours: Engine, redis: Redis) -> None:
    """Who may write executions, and not the switch that suspends all workers, does not set it by a stalled job."""
    Queue(connection=redis).enqueue(jobs.nothing, job_id="a")
    (claim,) = ours.claim("w").claims
    redis.hset(named(f"rq:execution:{claim.member}"), "queue_key", named("rq:suspended"))
    end_lease(redis, claim.member)
    assert len(look(ours).returned) == 1
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"a"]
    assert not redis.exists(named("rq:suspended"))


def test_queues_without_a_worker_are_looked_at_too(ours: Engine, redis: Redis) -> None:
    """The jobs of a queue whose workers are all gone go back as well."""
    Queue("lonely", connection=redis).enqueue(jobs.nothing, job_id="a")
    (claim,) = ours.claim("w", queues=["lonely"]).claims
    end_lease(redis, claim.member, queue="lonely")
    assert look(ours).returned == [("a", "lonely", "w", 1)]


def test_one_look_is_bounded(ours: Engine, redis: Redis) -> None:
    """One look deals with so many leases at most, says that there are more, and the next one may follow at once."""
    with redis.pipeline() as pipeline:
        for i in range(250):
            pipeline.hset(named(f"rq:job:{i}"), mapping={"data": "x", "status": "started", "origin": "default"})
            pipeline.zadd(named("rq:wip:default"), {f"{i}:e": 1})
            pipeline.zadd(named("rq_pooled:leases:default"), {f"{i}:e": 1 + i})
        pipeline.execute()
    sizes = []
    for _ in range(3):
        stalled = look(ours, unlock=False)
        sizes.append((len(stalled.returned), stalled.more))
    assert sizes == [(100, True), (100, True), (50, False)]


# -- the worker ------------------------------------------------------------------------------------------------------


def running(redis: Redis, key: str = "running") -> int:
    """Wait until a job has announced itself, and return its process."""
    return int(wait_until(lambda: redis.lrange(key, -1, -1), what="a running job")[0])


def test_the_jobs_of_a_killed_worker_run_again(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """kill -9 of a worker: its jobs run on another one, once, in front, with all their retries, and leave no trace."""
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "1", concurrency=2, **QUICK) as first:
        held = [queue.enqueue(jobs.wait_for, f"go:{i}", "running", retry=Retry(max=2)) for i in range(2)]
        wait_until(lambda: redis.llen("running") == 2)
        later = queue.enqueue(jobs.nothing)
        first.kill()
    with running_worker(server.url, log=tmp_path / "2", concurrency=1, **QUICK) as second:
        wait_until(lambda: redis.llen("running") == 3, what="the first one runs again")
        second.wait_for("put back 2 stalled jobs")
        redis.lpush("go:0", 1), redis.lpush("go:1", 1)
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in (*held, later)))
        assert [len(job.results()) for job in held] == [1, 1]
        assert [Job.fetch(job.id, redis).retries_left for job in held] == [2, 2]
        assert not redis.hexists(named(f"rq:job:{held[0].id}"), "rq_pooled_stalls")
        assert second.stop() == 0
    assert [key for key in residue(redis) if "claims" not in key and "lock" not in key] == []


def test_a_worker_that_was_paused_gives_up_what_was_handed_on(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """SIGSTOP past the lease: the job runs elsewhere; the paused worker, back, ends its horse and records nothing."""
    queue = Queue(connection=redis)
    with running_worker(server.url, "--name", "paused", log=tmp_path / "1", **QUICK) as first:
        job = queue.enqueue(jobs.wait_for, "go", "running")
        horse = running(redis)
        os.kill(first.pid, signal.SIGSTOP)
        os.kill(horse, signal.SIGSTOP)
        with running_worker(server.url, log=tmp_path / "2", **QUICK) as second:
            second.wait_for("put back 1 stalled jobs")
            wait_until(lambda: redis.llen("running") == 2, what="the second run")
            os.kill(horse, signal.SIGCONT)
            os.kill(first.pid, signal.SIGCONT)
            first.wait_for("was handed on while this worker could not renew its lease")
            wait_until(lambda: not alive(horse), what="the end of the first run")
            redis.lpush("go", 1)
            wait_until(lambda: job.get_status() == JobStatus.FINISHED)
            assert [result.worker_name for result in job.results()] != ["paused"]
            assert len(job.results()) == 1
        done = queue.enqueue(jobs.add, 1, 2)
        wait_until(lambda: done.get_status() == JobStatus.FINISHED, what="the worker that was paused goes on")
        assert first.output().count("was handed on") == 1


def alive(pid: int) -> bool:
    """Tell whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_job_that_stalls_too_often_fails(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Past MAX_STALLS it fails for good: reason, failure callback and handlers in a horse, whatever retries it has."""
    queue = Queue(connection=redis)
    job = queue.enqueue(
        jobs.hang, "running", retry=Retry(max=3), on_failure=Callback(promise_jobs.on_abandoned), job_id="poison"
    )
    settings = {**QUICK, "RQ_POOLED_MAX_STALLS": "0"}
    with running_worker(server.url, log=tmp_path / "1", **settings) as first:
        running(redis)
        first.kill()
    handler = ("--exception-handler", "jobs.handle_exception")
    with running_worker(server.url, *handler, log=tmp_path / "2", **settings) as second:
        wait_until(lambda: job.get_status() == JobStatus.FAILED, what="its failure")
        result = job.latest_result()
        assert result is not None and "stalled 1 times, more often than MAX_STALLS=0 allows" in result.exc_string
        assert "AbandonedJobError" in result.exc_string
        pid, job_id, kind = redis.lindex("abandoned", 0).decode().split()
        assert (job_id, kind) == ("poison", "AbandonedJobError") and int(pid) != second.pid
        assert redis.llen("abandoned") == 1
        assert queue.failed_job_registry.get_job_ids(cleanup=False) == ["poison"]
        assert Job.fetch("poison", redis).retries_left == 3
        assert redis.llen("running") == 1, "it did not run again"


@pytest.mark.parametrize("age", [2.0, 0.7, 0.0], ids=["settled", "has_wanted_to_look", "just_started"])
def test_an_outage_longer_than_the_leases_takes_nobody_s_jobs(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path, age: float
) -> None:
    """A server that was away for longer than HEARTBEAT_TTL: each worker keeps its jobs, and each job runs once."""
    server = start_server({"appendonly": "yes", "appendfsync": "always"})
    redis, gate = server.client(), tmp_path / "gate"
    queue = Queue(connection=redis)
    with (
        running_worker(server.url, log=tmp_path / "1", concurrency=2, **QUICK) as first,
        running_worker(server.url, log=tmp_path / "2", concurrency=2, **QUICK) as second,
    ):
        held = [queue.enqueue(crash_jobs.wait_for_file, str(gate)) for _ in range(4)]
        wait_until(lambda: len(list(tmp_path.glob("gate.*.pid"))) == 4, what="four running jobs")
        wait_until(lambda: redis.zcard(named("rq_pooled:leases:default")) == 4)
        time.sleep(age)  # after 2 seconds both have been connected for a full HEARTBEAT_TTL, and may look
        over = max(score for _, score in redis.zrange(named("rq_pooled:leases:default"), 0, -1, withscores=True))
        server.kill()
        time.sleep(max(0.0, over - time.time()) + 1)  # all leases are over
        server.start()
        first.wait_for("the server is back")
        second.wait_for("the server is back")
        time.sleep(2)  # several looks
        gate.touch()
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in held))
        assert len(list(tmp_path.glob("gate.*.pid"))) == 4, "none ran twice"
        assert "stalled" not in first.output() + second.output()


def test_a_worker_that_has_just_come_does_not_judge(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Before its own connection has been good for HEARTBEAT_TTL, a worker takes no expired lease for a dead worker."""
    Queue("elsewhere", connection=redis).enqueue(jobs.nothing, job_id="a")
    with engine(server.url) as ours:
        ours.register("w")
        (claim,) = ours.claim("w", queues=["elsewhere"]).claims
    end_lease(redis, claim.member, queue="elsewhere")
    settings = {**QUICK, "RQ_POOLED_HEARTBEAT_TTL": "4"}
    with running_worker(server.url, log=tmp_path / "1", **settings) as worker:
        began = time.monotonic()
        worker.wait_for("put back 1 stalled jobs", timeout=20)
        assert time.monotonic() - began > 3


def test_rq_s_clean_up_leaves_leased_claims_alone_once(ours: Engine, redis: Redis) -> None:
    """After a night without power our claims are put back, not failed as abandoned; one that nobody puts back is,
    later.
    """
    queue = Queue(connection=redis)
    queue.enqueue(jobs.nothing, job_id="a")
    (claim,) = ours.claim("w").claims
    redis.zadd(named("rq:wip:default"), {claim.member: 900, "stock:1": 900})
    redis.zadd(named("rq_pooled:leases:default"), {claim.member: 60})
    command = postpone([queue.key], 900)
    assert ours.run(command) == 1
    assert redis.zscore(named("rq:wip:default"), "stock:1") == 900, "claims of stock workers get RQ's rule"
    assert redis.zscore(named("rq:wip:default"), claim.member) > redis.time()[0] + 900
    redis.zadd(named("rq:wip:default"), {claim.member: redis.time()[0]})  # nobody came
    assert ours.run(command) == 0


def test_a_job_of_last_night_is_put_back(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A worker that starts long after a crash runs the jobs that were running then, although RQ calls them
    abandoned.
    """
    queue = Queue(connection=redis)
    with engine(server.url) as ours:
        ours.register("w")
        job = queue.enqueue(jobs.add, 1, 2, on_failure=Callback(promise_jobs.on_abandoned))
        (claim,) = ours.claim("w").claims
    redis.zadd(named("rq:wip:default"), {claim.member: 900})
    redis.zadd(named("rq_pooled:leases:default"), {claim.member: 60})
    with running_worker(server.url, "--maintenance-interval", "1", log=tmp_path / "1", **QUICK):
        wait_until(lambda: job.get_status() == JobStatus.FINISHED)
        assert not redis.exists("abandoned")


def test_a_machine_that_slept_takes_nobody_s_jobs(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Two workers and their horses stopped past all leases and continued: each keeps its job, and each runs once."""
    queue = Queue(connection=redis)
    with (
        running_worker(server.url, log=tmp_path / "1", **QUICK) as first,
        running_worker(server.url, log=tmp_path / "2", **QUICK) as second,
    ):
        held = [queue.enqueue(jobs.wait_for, f"go:{i}", "running") for i in range(2)]
        wait_until(lambda: redis.llen("running") == 2)
        time.sleep(2.5)  # both have been connected long enough to judge
        everybody = [first.pid, second.pid, *(int(pid) for pid in redis.lrange("running", 0, -1))]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        leases = named("rq_pooled:leases:default")
        wait_until(
            lambda: all(score < redis.time()[0] - 1 for _, score in redis.zrange(leases, 0, -1, withscores=True))
        )
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        time.sleep(1)  # several looks
        redis.lpush("go:0", 1), redis.lpush("go:1", 1)
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in held))
        assert redis.llen("running") == 2
        assert "stalled" not in first.output() + second.output()


def test_a_callback_that_kills_its_horse_does_not_hide_the_reason(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """A failure callback that ends its process is called once, and the job fails with the reason that it stalled."""
    queue = Queue(connection=redis)
    job = queue.enqueue(jobs.nothing, on_failure=Callback("stall_jobs.on_failure_die"))
    with engine(server.url) as ours:
        ours.register("w")
        (claim,) = ours.claim("w").claims
    end_lease(redis, claim.member)
    with running_worker(server.url, log=tmp_path / "1", RQ_POOLED_MAX_STALLS="0", **QUICK):
        wait_until(lambda: job.get_status() == JobStatus.FAILED)
        assert redis.llen("died") == 1
        result = job.latest_result()
        assert result is not None and "stalled 1 times" in result.exc_string


def test_an_outcome_that_cannot_be_recorded_does_not_make_its_job_run_for_ever(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """A registry of the wrong type: the job is given up until its lease is over, not put back at each heartbeat."""
    redis.set(named("rq:failed:default"), "not a registry")
    queue = Queue(connection=redis)
    settings = {**QUICK, "RQ_POOLED_HEARTBEAT_TTL": "30"}
    queue.enqueue("stall_jobs.count_and_fail")
    with running_worker(server.url, log=tmp_path / "1", **settings) as worker:
        worker.wait_for("giving up on recording")
        time.sleep(2)  # several heartbeats
        assert redis.get("runs") == b"1"
        assert "claim was not answered" not in worker.output()
