"""A prefix of keys: all that RQ and rq_pooled keep in Redis begins with it, and what could mix two is refused."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commands import WAYS, refusal, run, run_command
from redis import Redis
from support import running_worker, wait_until

from rq_pooled.cli.main import cli
from rq_pooled.errors import ConfigurationError
from rq_pooled.rq_api import RQ3
from rq_pooled.rq_version import check_rq

only_3 = pytest.mark.skipif(not RQ3, reason="RQ 2 has no prefix of keys")
ENQUEUE = "import sys; from redis import Redis; from rq import Queue; q = Queue('q', Redis.from_url(sys.argv[1])); "


@only_3
@pytest.mark.parametrize("prefix", ["{app}", "my.app-1{x}"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_worker_runs_jobs_under_a_prefix(server: Any, redis: Redis, way: list[str], prefix: str) -> None:
    """A worker takes the jobs that were enqueued under its prefix, and writes no key outside of it."""
    enqueue = ENQUEUE + "q.enqueue('jobs.nothing', job_id='j')"
    assert run(["-c", enqueue, "{url}"], server.url, RQ_KEY_PREFIX=prefix).returncode == 0
    ended = run(way, server.url, RQ_KEY_PREFIX=prefix)
    assert ended.returncode == 0, ended.stderr
    assert redis.hget(f"{prefix}:job:j", "status") == b"finished"
    assert [
        key for key in redis.keys("*") if not key.startswith((f"{prefix}:".encode(), f"{prefix}_pooled:".encode()))
    ] == []


@only_3
@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("{}", "its hash tag is empty: write '{app}'"),
        ("a{}b", "its hash tag is empty"),
        ("a{b", "its brace is open: write '{app}'"),
        ("app_pooled", "choose another name"),
        ("app_pooled:x", "choose another name"),
    ],
)
def test_a_prefix_that_would_mix_keys_is_refused(prefix: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix under which one slot is not certain, or that begins as our keys of another do, is refused in words."""
    monkeypatch.setattr("rq.defaults.RQ_KEY_PREFIX", prefix)
    monkeypatch.delenv("RQ_KEY_PREFIX", raising=False)
    with pytest.raises(ConfigurationError, match="RQ_KEY_PREFIX is") as refused:
        check_rq()
    assert words in str(refused.value)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_prefix_that_rq_does_not_use_is_refused(server: Any, redis: Redis, way: list[str]) -> None:
    """RQ 2 knows no prefix, and RQ 3 none that is set after it was imported: one line says so, and no job is taken."""
    late = [
        "-c",
        "import os, rq; os.environ['RQ_KEY_PREFIX'] = 'app'; import rq_pooled.cli.main as m; m.main(['worker'])",
    ]
    line = refusal(run(late if RQ3 else way, server.url, RQ_KEY_PREFIX="rq" if RQ3 else "app"))
    assert "RQ_KEY_PREFIX is 'app', and " in line and redis.keys("*") == []


@only_3
@pytest.mark.parametrize("prefix", ["a[b]*", "", "an app"])
def test_a_prefix_that_rq_refuses_is_refused_in_one_line(prefix: str) -> None:
    """Letters that rq allows in no prefix end a command with one line instead of a traceback from rq's import."""
    line = refusal(run(["-m", "rq_pooled", "check"], RQ_KEY_PREFIX=prefix))
    assert line.startswith(
        f"rq-pooled: RQ_KEY_PREFIX is {prefix!r}, and rq allows letters, digits and _ . : - {{ }} only"
    )


#: Two applications on one server and database.
MINE, THEIRS = "{mine}", "their.s-1{x}"
#: What the other application has: jobs that wait, failed, are due, are lost, and entries that a clean-up would remove.
POPULATE = """
import sys
from datetime import timedelta
from redis import Redis
from rq_pooled import Queue, Scheduler
from rq_pooled.store import keys

redis = Redis.from_url(sys.argv[1])
queue = Queue("theirs", connection=redis)
queue.enqueue("jobs.nothing", job_id="of-them-waiting")
lost = queue.enqueue("jobs.nothing", job_id="of-them-lost")
redis.lrem(queue.key, 0, lost.id)
redis.hset(lost.key, "enqueued_at", "2020-01-01T00:00:00.000000Z")
Scheduler("theirs", connection=redis).enqueue_in(timedelta(0), "jobs.nothing", job_id="of-them-due")
redis.hset(keys.execution_key("of-them-gone", "1"), "id", "1")
redis.zadd(keys.registry_key("finished", "theirs"), {"of-them-ghost": 9e9})
redis.zadd(keys.leases_key("theirs"), {"of-them-gone:1": 1})
redis.zadd(keys.registry_key("wip", "theirs"), {"of-them-gone:1": 1})
redis.rpush(queue.key + ":intermediate", "of-them-waiting")
"""
COMMANDS = [
    *(["acl"], ["audit"], ["resume", "theirs"], ["schedule", "list"]),
    *(["check", "--json"], ["stats", "--json"], ["top", "--count", "1"], ["connections", "--json"], ["settings"]),
    *(["failed", "--json"], ["rescue", "--apply", "--older-than", "1s"], ["limit"], ["schedule-sweep"]),
    *(["requeue", "--all"], ["sweep", "--ghosts"], ["sweep", "--purge", "--all"], ["scheduler", "--burst"]),
    ["connections", "--reap"],
    ["worker", "--burst", "theirs", "default"],
]
SHOW = """
import os
from flask import Flask
from rq_pooled import health
from rq_pooled.flask import RQPooled

app = Flask("app")
app.config["RQ_POOLED_URL"] = os.environ["RQ_POOLED_URL"]
pool = RQPooled(app)
app.register_blueprint(pool.blueprint(authorize=lambda: True), url_prefix="/rq")
print(health.queues(), health.failed_jobs(), health.processes())
for path in ("/rq/", "/rq/health", "/rq/failed", "/rq/queues"):
    print(app.test_client().get(path, follow_redirects=True).text)
"""


def of_them(redis: Redis) -> dict[bytes, Any]:
    """Return all that the other application has."""
    found = [key for key in redis.keys("*") if key.startswith(THEIRS.encode())]
    return {key: redis.dump(key) for key in found}


def populate(server: Any) -> None:
    """Give the other application jobs of all kinds."""
    fail = ENQUEUE.replace("'q'", "'theirs'") + "q.enqueue('jobs.fail', job_id='of-them-failed')"
    assert run(["-c", fail, "{url}"], server.url, RQ_KEY_PREFIX=THEIRS).returncode == 0
    for words in (
        ["worker", "--burst", "theirs"],
        ["limit", "theirs", "--rate", "5/1m"],
        ["schedule-sweep", "--cron", "* * * * *", "--name", "of-them", "--ghosts"],
    ):
        ended = run_command(server.url, *words, RQ_KEY_PREFIX=THEIRS)
        assert ended.returncode == 0, ended.stderr
    ended = run(["-c", POPULATE, "{url}"], server.url, RQ_KEY_PREFIX=THEIRS)
    assert ended.returncode == 0, ended.stderr


@only_3
def test_no_command_sees_another_application(server: Any, redis: Redis) -> None:
    """Each command shows and changes nothing of an application with another prefix on the same database."""
    populate(server)
    before = of_them(redis)
    assert len(before) > 15
    assert {words[0] for words in COMMANDS} == {*cli.commands} - {"demo", "web", "pause"}, (
        "demo has a server of its own, web is the page"
    )
    refused = run_command(server.url, "pause", "theirs", RQ_KEY_PREFIX=MINE)
    assert refused.returncode == 2 and "there is no queue" in refused.stderr and of_them(redis) == before
    for words in COMMANDS:
        ended = run_command(server.url, *words, RQ_KEY_PREFIX=MINE)
        assert ended.returncode in (0, 1) and "Traceback" not in ended.stderr, (words, ended.stderr)
        assert "of-them" not in ended.stdout + ended.stderr, words
        assert of_them(redis) == before, words
    assert not [key for key in redis.keys("*") if not key.startswith((THEIRS.encode(), MINE.encode()))]


@only_3
def test_the_page_shows_nothing_of_another_application(server: Any, redis: Redis) -> None:
    """The page and the functions of ``health`` show the jobs of their own prefix only."""
    pytest.importorskip("flask")
    populate(server)
    shown = run(["-c", SHOW], RQ_KEY_PREFIX=MINE, RQ_POOLED_URL=server.url)
    assert shown.returncode == 0, shown.stderr
    assert "of-them" not in shown.stdout and "'theirs'" not in shown.stdout
    theirs = run(["-c", SHOW], RQ_KEY_PREFIX=THEIRS, RQ_POOLED_URL=server.url)
    assert "of-them-failed" in theirs.stdout, theirs.stderr


@only_3
def test_workers_of_two_applications_run_side_by_side(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Two workers of one name, one budget's name and one queue, each with its prefix, take each its own jobs; the guard
    of each counts all clients and tells its own processes from the other's, whose connections no reap closes.
    """
    options = {"RQ_POOLED_BUDGET": "4", "RQ_POOLED_BUDGET_NAME": "shop", "RQ_POOLED_HEARTBEAT_TTL": "2"}
    options["RQ_POOLED_HEARTBEAT_INTERVAL"] = "0.5"
    workers = []
    with ExitStack() as stack:
        for prefix in (MINE, THEIRS):
            log = tmp_path / ("mine" if prefix == MINE else "theirs")
            workers.append(
                stack.enter_context(
                    running_worker(
                        server.url, "q", "--name", "w", log=log, concurrency=2, RQ_KEY_PREFIX=prefix, **options
                    )
                )
            )
        for prefix in (MINE, THEIRS):
            enqueue = ENQUEUE + "[q.enqueue('jobs.nothing', job_id=f'j{i}') for i in range(20)]"
            assert run(["-c", enqueue, "{url}"], server.url, RQ_KEY_PREFIX=prefix).returncode == 0
        for prefix in (MINE, THEIRS):
            wait_until(lambda prefix=prefix: redis.zcard(f"{prefix}:finished:q") == 20, 30, f"jobs of {prefix}")
            assert redis.smembers(f"{prefix}:workers") == {f"{prefix}:worker:{n}".encode() for n in ("w", "w-1")}
            assert redis.zcard(f"{prefix}_pooled:budget:shop") == 1
        time.sleep(2.5)
        pids = [worker.pid for worker in workers]
        for prefix, own, other in ((MINE, *pids), (THEIRS, *reversed(pids))):
            ended = run_command(server.url, "connections", "--json", RQ_KEY_PREFIX=prefix)
            found = json.loads(ended.stdout)
            assert own in [process["pid"] for process in found["processes"]]
            assert other not in [process["pid"] for process in found["processes"]]
            assert any(f":{other}:" in row["name"] for row in found["others"]) and not found["orphans"]
            assert found["connected"] >= 5
            run_command(server.url, "connections", "--reap", RQ_KEY_PREFIX=prefix)
        assert all("connection" not in worker.output().split("connections: command", 1)[1] for worker in workers)
