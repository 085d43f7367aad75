"""Rights that are withdrawn from a running worker's user: each step of a script happens whole, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import crash_jobs
import jobs
import pytest
from engine import Engine, engine, finished, key_space
from redis import Redis
from rq import Queue, Worker
from rq.job import Job, JobStatus
from support import running_worker, wait_until
from test_outages import started
from test_stalls import end_lease

import rq_pooled
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.rq_api import RQ3
from rq_pooled.store import failed, leases, rq_scheduler, scheduled, statistics, workers
from rq_pooled.store import scripts as loader
from rq_pooled.store.budget import reserve
from rq_pooled.store.claim import claim_jobs
from rq_pooled.store.commit import commit_outcomes, set_aside
from rq_pooled.store.enqueue import enqueue_jobs
from rq_pooled.store.keys import budget_keys
from rq_pooled.store.limits import change_limit
from rq_pooled.store.locks import SweepLock
from rq_pooled.store.repair import queue_ready, remove_executions, remove_ghosts, rescue_intermediate, rescue_jobs
from rq_pooled.store.scripts import commands_of
from rq_pooled.wire import Command, pack_runs

LOCK = SweepLock("rq_pooled:sweep:q", "", 30)
OWN_LOCK = SweepLock("rq_pooled:sweep:q", "us", 30)
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
            redis.hset(f"rq:job:{job_id}", mapping=fields)


def fail(redis: Redis, *ids: str, **fields: Any) -> None:
    """Have jobs stand in the failed registry."""
    enqueue(redis, *ids, status="failed", **fields)
    redis.delete("rq:queue:default")
    redis.zadd("rq:failed:default", dict.fromkeys(ids, 2e9))


def schedule(redis: Redis, *ids: str, **fields: Any) -> None:
    """Have jobs be due since long ago."""
    for job_id in ids:
        Job.create(jobs.nothing, id=job_id, connection=redis, origin="default").save()
        redis.hset(f"rq:job:{job_id}", mapping={"status": "scheduled", "ttl": 900, **fields})
        redis.zadd("rq:scheduled:default", {job_id: 1000})


def claim_two(ours: Engine, redis: Redis, **fields: Any) -> list[Any]:
    """Claim two jobs for two registered workers."""
    ours.register("v", "w")
    enqueue(redis, "a", "b", **fields)
    return ours.claim("v", "w").claims


def claiming(ours: Engine) -> Command:
    """A claim for three workers."""
    return claim_jobs(ours.settings, ours.token, ["rq:queue:default"], "default", ["v", "w", "x"])[0]


@scene
def claim(ours: Engine, redis: Redis) -> Command:
    ours.register("v", "w", "x")
    enqueue(redis, "a", "b", timeout=5)
    return claiming(ours)


@scene
def claim_stale(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b")
    redis.delete("rq:job:a")
    return claiming(ours)


@scene
def claim_once(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b", "c", rq_pooled_once="k", timeout=5)
    redis.hset("rq:job:b", "rq_pooled_once", "spent")
    redis.set("rq_pooled:once:spent", "another")
    return claiming(ours)


@scene
def claim_limited(ours: Engine, redis: Redis) -> Command:
    ours.run(change_limit("default", "operator", "2 60000000 2"))
    enqueue(redis, "a", "b", "c")
    return claiming(ours)


@scene
def claim_twice_queued(ours: Engine, redis: Redis) -> Command:
    claim_two(ours, redis)
    redis.lpush("rq:queue:default", "a")
    enqueue(redis, "c")
    return claiming(ours)


@scene
def claim_large(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", data=b"x" * 1_100_000)
    return claiming(ours)


@scene
def claim_of_another_queue(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", origin="elsewhere")
    return claiming(ours)


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
    outcome.commands = (1, pack_runs([("ASIDE", 1, 4, "f", "HSET", f"rq:job:{one.job_id}", "result", "")]))
    return commit_outcomes(ours.token, [outcome])


@scene
def commit_retry(ours: Engine, redis: Redis) -> Command:
    (one, _) = claim_two(ours, redis)
    more = [("HDEL", "rq:job:a", "ended_at"), ("LPUSH", "rq:queue:default", "a"), ("EXPIRE", "rq:job:a", "50")]
    return commit_outcomes(ours.token, [finished(one, *more, ("SADD", "rq:queues", "rq:queue:default"))])


@scene
def commit_lost(ours: Engine, redis: Redis) -> Command:
    one, other = claim_two(ours, redis)
    redis.zrem("rq:wip:default", one.member, other.member)
    redis.zadd("rq:canceled:default", {"a": 1})
    redis.hdel("rq:job:b", "data")
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
    redis.hset("rq:job:b", "rq_pooled_stalls", 9)
    end_lease(redis, *(one.member for one in claims))
    return leases.find_stalled(ours.settings, ours.token, ["rq:queue:default"], "v", 9e9)


@scene
def stalled_deleted(ours: Engine, redis: Redis) -> Command:
    claims = claim_two(ours, redis)
    redis.delete("rq:job:a")
    end_lease(redis, *(one.member for one in claims))
    return leases.find_stalled(ours.settings, ours.token, ["rq:queue:default"], "v", 9e9)


@scene
def promote(ours: Engine, redis: Redis) -> Command:
    schedule(redis, "a", "b", enqueue_at_front=1)
    schedule(redis, "c", "gone")
    redis.delete("rq:job:gone")
    return scheduled.promote(["default"], "us", {"name": "us"})


@scene
def promote_from_another(ours: Engine, redis: Redis) -> Command:
    schedule(redis, "a")
    redis.set("rq:scheduler-lock:default", "other", ex=60)
    redis.hset("rq:scheduler:other", "rq_pooled", "1")
    redis.pexpire("rq:scheduler-lock:default", 30000)
    return scheduled.promote(["default"], "us", {"name": "us"})


def moving(ours: Engine, redis: Redis, next_time: int | None, depends_on: list[str]) -> Command:
    """A move of one of rq-scheduler's jobs, whose lock we hold."""
    enqueue(redis, "a", ttl=900)
    redis.delete("rq:queue:default")
    redis.zadd("rq:scheduler:scheduled_jobs", {"a": 1000})
    redis.set("rq:scheduler_lock", "us", ex=60)
    fields = ["status", "queued", "enqueued_at", "now"]
    return rq_scheduler.move_job("rq:queue:default", ("us", 60), "a", 1000.0, next_time, False, 900, depends_on, fields)


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
    redis.delete("rq:job:a")
    return command


def requeue(ours: Engine, due: str, lock: SweepLock = LOCK) -> Command:
    """A requeue of two failed jobs."""
    words = ("now", b"", 180, True, 3, "default", None, [("a", "any", due), ("b", "any", due)])
    return failed.failed_requeue("rq:failed:default", lock, *words)


@scene
def failed_requeue(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b", ttl=900)
    return requeue(ours, "")


@scene
def failed_requeue_later(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b")
    redis.set("rq_pooled:sweep:q", "us", ex=9)
    return requeue(ours, "3000", OWN_LOCK)


@scene
def failed_requeue_ghost(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b")
    redis.delete("rq:job:a")
    return requeue(ours, "")


@scene
def failed_bury(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b")
    redis.zadd("rq:scheduler:scheduled_jobs", {"b": 1})
    return failed.failed_bury("rq:failed:default", LOCK, "rq_pooled:dead:q", 60, [("a", "any"), ("b", "any")])


@scene
def failed_purge(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b", group_id="g")
    redis.sadd("rq:group:g", "a")
    redis.zadd("rq:executions:a", {"x": 1})
    redis.zadd("rq:scheduler:scheduled_jobs", {"b": 1})
    return failed.failed_purge("rq:failed:default", LOCK, [("a", "any"), ("b", "any")])


@scene
def failed_ghosts(ours: Engine, redis: Redis) -> Command:
    fail(redis, "a", "b")
    redis.delete("rq:job:a")
    return failed.failed_ghosts("rq:failed:default", LOCK, 0, 10, False)


def enqueueing(ours: Engine, limit: tuple[str, int] = ("", 0), **options: Any) -> Command:
    """An enqueue of two jobs."""
    fields = ["data", b"x", "status", "queued", "created_at", "then", "origin", "default", "timeout", "5"]
    one = [(name, name == "a", 900, fields, limit) for name in "ab"]
    return enqueue_jobs("rq:queue:default", 9, False, options.get("once"), options.get("unique"), 9, "now", one)


@scene
def enqueue_two(ours: Engine, redis: Redis) -> Command:
    return enqueueing(ours)


@scene
def enqueue_unique(ours: Engine, redis: Redis) -> Command:
    redis.set("rq_pooled:unique:u", "then gone")
    return enqueueing(ours, once="rq_pooled:once:k", unique="rq_pooled:unique:u")


@scene
def rescue(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b")
    redis.delete("rq:queue:default", "rq:queues")
    return rescue_jobs(True, [(name, redis.hget(f"rq:job:{name}", "enqueued_at").decode()) for name in "ab"])


@scene
def intermediate(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b")
    redis.rename("rq:queue:default", "rq:queue:default:intermediate")
    redis.zadd("rq_pooled:intermediate:default", {"a": 1, "b": 2, "c": 3})
    return rescue_intermediate(["rq:queue:default"], 20)


@scene
def ready(ours: Engine, redis: Redis) -> Command:
    enqueue(redis, "a", "b", status="ready_to_enqueue")
    redis.delete("rq:queue:default", "rq:queues")
    redis.zadd("rq:ready:default", {"a": 1, "b": 2, "c": 3})
    return queue_ready(["rq:queue:default"], 20, "now")


@scene
def limit(ours: Engine, redis: Redis) -> Command:
    ours.run(change_limit("default", "operator", "2 60000000 2"))
    return change_limit("default", "code", "1 1 1")


@scene
def limit_cleared(ours: Engine, redis: Redis) -> Command:
    ours.run(change_limit("default", "code", "1 1 1"))
    redis.lpush("rq_pooled:starts:default", "1")
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
        redis.zadd("rq:wip:default", {one.member: 1})
    return leases.postpone(["rq:queue:default"], 900)


@scene
def aside(ours: Engine, redis: Redis) -> Command:
    (one, _) = claim_two(ours, redis)
    return set_aside(one.member, "default", 60, [("f", b"large"), ("g", b"larger")])


@scene
def register(ours: Engine, redis: Redis) -> Command:
    redis.hset("rq:worker:v", mapping={"birth": "b", "death": "d"})
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
    redis.zadd("rq:finished:default", {"a": 1, "b": 2})
    return remove_ghosts("rq:finished:default", "0", 10, "t", 10)


@scene
def executions(ours: Engine, redis: Redis) -> Command:
    redis.hset("rq:execution:a:x", "id", "x")
    redis.zadd("rq:executions:a", {"x": 1, "y": 2})
    return remove_executions("0", 100, "t", 10)


@scene
def scheduler_due(ours: Engine, redis: Redis) -> Command:
    redis.zadd("rq:scheduler:scheduled_jobs", {"a": 1})
    return rq_scheduler.scheduler_due("t", 60)


#: Scripts that try each command alone, and those that do one thing.
APART = {"heartbeat", "unregister", "rights", "reads", "failed_page", "unlock"}


SCRIPTS = {path.stem for path in (Path(rq_pooled.__file__).parent / "store" / "lua").glob("*.lua")}


def script_of(name: str) -> str:
    """The script of a scene."""
    words = name.split("_")
    return next(known for n in range(len(words), 0, -1) if (known := "_".join(words[:n])) in SCRIPTS)


def state(redis: Redis) -> str:
    """All that the server holds, without times and random ids."""
    held = {key: value for key, value in key_space(redis).items() if not key.startswith("rq_pooled:stats:rights")}
    return re.sub(r"[0-9a-f]{32}|(?<![a-z])[\d.]+(?:e\+?\d+)?|\d{4}-\d\d-\d\dT[\d:.]+Z", "#", repr(held))


@pytest.fixture(params=["asks", "tries"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts as they are, and as they are on a server before 7.0, which knows no acl_check_cmd."""
    if request.param == "tries":
        whole, known = loader._text, cache(loader.scripts.__wrapped__)
        monkeypatch.setattr(loader, "_text", lambda name: whole(name).replace("redis.acl_check_cmd", "nil"))
        monkeypatch.setattr(loader, "scripts", known)


@pytest.fixture
def limited(server: EmbeddedServer, redis: Redis, way: None) -> Iterator[Engine]:
    """A connected ledger whose user an operator may take rights from."""
    redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "&*", "+@all")
    with engine(server.url.replace("redis://", "redis://limited:pw@"), max_stalls=2) as one:
        yield one
    redis.acl_deluser("limited")


@pytest.mark.parametrize("name", SCENES)
def test_a_step_happens_whole_or_not_at_all(server: EmbeddedServer, redis: Redis, limited: Engine, name: str) -> None:
    """Whichever right is withdrawn, a script does all of a step or nothing of it, and all once the right is back."""
    broken = []
    with engine(server.url, max_stalls=2) as ours:
        prepare = SCENES[name]
        ours.run(prepare(ours, redis))
        whole = state(redis)
        for right in commands_of(loader.scripts()[script_of(name)].text):
            redis.flushall()
            call = prepare(ours, redis)
            for key in redis.keys("rq_pooled:stats:rights*"):
                redis.delete(key)
            before = state(redis)
            redis.execute_command("ACL", "SETUSER", "limited", f"-{right}")
            reply = limited.command.execute([call])[0]
            after = state(redis)
            redis.execute_command("ACL", "SETUSER", "limited", "+@all")
            if after == before != whole:
                limited.run(call)
                after = state(redis)
            if after != whole:
                broken.append(f"-{right}: {reply!r}")
    assert not broken, "\n".join(broken)


@pytest.mark.skipif(not RQ3, reason="of RQ 3")
def test_a_job_with_a_limit_waits_for_the_right_to_pass_it(redis: Redis, limited: Engine) -> None:
    """Whichever right is withdrawn, jobs that are enqueued with a limit stand in the queue, wait, or are refused."""
    for right in (*commands_of(loader.scripts()["enqueue"].text), "ZPOPMIN"):
        redis.flushall()
        redis.execute_command("ACL", "SETUSER", "limited", f"-{right}")
        (reply,) = limited.command.execute([enqueueing(limited, ("key", 1))])
        redis.execute_command("ACL", "SETUSER", "limited", "+@all")
        queued = [*redis.lrange("rq:queue:default", 0, -1), *redis.zrange("rq:rl:key:rate_limited", 0, -1)]
        kept = [] if isinstance(reply, Exception) else [b"a", b"b"]
        assert sorted(queued) == kept and redis.exists("rq:job:a", "rq:job:b") == len(kept), right


def test_every_script_that_writes_is_tried() -> None:
    """A new script is in the scenes above, or does one thing, or tries each command alone."""
    assert {script_of(name) for name in SCENES} | APART == SCRIPTS


@pytest.mark.parametrize("right", ["xadd", "zrem", "hset", "hincrby", "zscore"])
def test_an_outcome_waits_for_the_right_to_record_it(start_server: Any, tmp_path: Path, right: str) -> None:
    """A job that ran well without a right is recorded when that is back: run once, counted once, no failure."""
    server = start_server()
    redis, gate = server.client(), tmp_path / "gate"
    redis.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all")
    queue = Queue(connection=redis)
    held = queue.enqueue(crash_jobs.wait_for_file, str(gate))
    with running_worker(server.url.replace("//", "//app:pw@"), log=tmp_path / "log") as worker:
        started(tmp_path, 1)
        redis.execute_command("ACL", "SETUSER", "app", f"-{right}")
        waiting = queue.enqueue(jobs.nothing)
        gate.touch()
        worker.wait_for("cannot record outcomes of 1 jobs")
        calls = lambda: redis.info("commandstats")["cmdstat_evalsha"]["calls"]
        before = calls()
        wait_until(lambda: calls() >= before + 2)
        assert right.upper() in worker.output().upper() and worker.output().count("cannot record outcomes") == 1
        assert waiting.get_status() == JobStatus.QUEUED, "it takes no jobs meanwhile"
        redis.execute_command("ACL", "SETUSER", "app", "+@all")
        worker.wait_for("recording outcomes again")
        wait_until(lambda: waiting.get_status(refresh=True) == JobStatus.FINISHED)
        assert held.get_status(refresh=True) == JobStatus.FINISHED and len(held.results()) == 1
        (one,) = Worker.all(connection=redis)
        assert (one.successful_job_count, one.failed_job_count) == (2, 0)
    started(tmp_path, 1)


def test_a_stop_waits_only_so_long_for_a_right(start_server: Any, tmp_path: Path) -> None:
    """A worker that may not record outcomes ends GUARD_WAIT after SIGTERM, with 2, and says which job runs again."""
    server = start_server()
    redis, gate = server.client(), tmp_path / "gate"
    redis.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all")
    held = Queue(connection=redis).enqueue(crash_jobs.wait_for_file, str(gate))
    url = server.url.replace("//", "//app:pw@")
    with running_worker(url, log=tmp_path / "log", RQ_POOLED_GUARD_WAIT="1") as worker:
        started(tmp_path, 1)
        redis.execute_command("ACL", "SETUSER", "app", "-xadd")
        gate.touch()
        worker.wait_for("cannot record outcomes of 1 jobs")
        assert worker.stop() == 2
        assert f"giving up on recording job {held.id}" in worker.output() and "(GUARD_WAIT)" in worker.output()
    assert redis.zcard("rq:wip:default") == 1, "its claim stands: it runs again"
