"""Rights that are withdrawn from a running worker's user: each step of a script happens whole, or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import crash_jobs
import jobs
import pytest
from engine import Engine, engine, key_space
from keys import named
from redis import Redis
from rq import Queue, Worker
from rq.job import JobStatus
from scenes import LARGE, SCENES, enqueueing
from support import running_worker, started, wait_until

import rq_pooled
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.rq_api import RQ3
from rq_pooled.store import scripts as loader
from rq_pooled.store.scripts import commands_of

#: Scripts that try each command alone, and those that do one thing.
APART = {
    "groups",
    "heartbeat",
    "unregister",
    "rights",
    "reads",
    "failed_page",
    "failed_look",
    "forget",
    "queue_states",
    "served_queues",
    "unlock",
}


SCRIPTS = {path.stem for path in (Path(rq_pooled.__file__).parent / "store" / "lua").glob("*.lua")}


def script_of(name: str) -> str:
    """The script of a scene."""
    words = name.split("_")
    return next(known for n in range(len(words), 0, -1) if (known := "_".join(words[:n])) in SCRIPTS)


def state(redis: Redis) -> str:
    """All that the server holds, without times and random ids, large values in short."""
    held = {
        key: value for key, value in key_space(redis).items() if not key.startswith(named("rq_pooled:stats:rights"))
    }
    shown = repr(held).replace(repr(LARGE), f"{len(LARGE)} bytes")
    return re.sub(r"[0-9a-f]{32}|(?<![a-z])[\d.]+(?:e\+?\d+)?|\d{4}-\d\d-\d\dT[\d:.]+Z", "#", shown)


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
            for key in redis.keys(named("rq_pooled:stats:rights*")):
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
        queued = [
            *redis.lrange(named("rq:queue:default"), 0, -1),
            *redis.zrange(named("rq:rl:key:rate_limited"), 0, -1),
        ]
        kept = [] if isinstance(reply, Exception) else [b"a", b"b"]
        assert sorted(queued) == kept and redis.exists(named("rq:job:a"), named("rq:job:b")) == len(kept), right


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
    assert redis.zcard(named("rq:wip:default")) == 1, "its claim stands: it runs again"
