"""``rq-pooled sweep``, ``requeue`` and ``failed`` as operators type them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
import zlib
from base64 import b64encode
from collections.abc import Callable

import pytest
from failures import fail, fill, ids_in, make_older
from keys import named
from redis import Redis
from support import ROOT

from rq_pooled import Backoff
from rq_pooled.cli import main as cli
from rq_pooled.embedded import EmbeddedServer

FAILED, QUEUE = named("rq:failed:default"), named("rq:queue:default")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command on the test's server; return its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments: str, url: str = server.url) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments, "--url", url])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def test_sweep_of_the_issue(redis: Redis, run: Run) -> None:
    """The command as the documentation has it: told first, then done, then there is nothing left, which is no error."""
    old = fail(redis, "ConnectionError", "ConnectionError", "ValueError")
    for job in old:
        make_older(redis, job, 3600)
    fail(redis, "ConnectionError")
    command = ["sweep", "--queue", "default", "--requeue", "--exception", "ConnectionError", "--older-than", "10m"]
    command += ["--limit", "1000"]
    assert run(*command, "--dry-run") == (0, "default: 2 would be requeued (of 4)\n", "")
    assert redis.zcard(FAILED) == 4
    assert run(*command) == (0, "default: 2 requeued (of 4)\n", "")
    assert ids_in(redis, QUEUE) == [old[0].id, old[1].id]
    assert run(*command) == (0, "no job matches\n", "")


def test_json_is_data_only(redis: Redis, run: Run) -> None:
    """With --json stdout is one document, whatever happened."""
    ids = fill(redis, 5)
    code, out, _ = run("sweep", "--purge", "--beyond", "2", "--json")
    (report,) = json.loads(out)
    assert (code, report["done"], report["policy"], report["examples"]) == (0, 3, "purge", ids[:3])
    assert json.loads(run("failed", "--json")[1])[0]["function"] == "tasks.send_mail"
    assert json.loads(run("requeue", ids[4], "nobody", "--json")[1])["jobs"] == {ids[4]: "done", "nobody": "gone"}
    assert json.loads(run("failed", "--exception", "KeyError", "--json")[1]) == []


def test_bury_and_requeue_from_the_dead(redis: Redis, run: Run) -> None:
    """Dead letters are listed and requeued with --dead, by id with or without it."""
    ids = fill(redis, 6)
    assert run("sweep", "--bury", "--older-than", "30m", "--max-age", "2d", "--max-count", "4")[1] == (
        "default: 6 buried, 2 older dead letters deleted (of 6)\n"
    )
    assert run("failed")[1] == "no job matches\n"
    head, row = run("failed", "--dead", "--limit", "1")[1].splitlines()
    assert head.split() == ["JOB", "QUEUE", "FUNCTION", "FAILED", "MESSAGE"]
    assert row.startswith(f"{ids[2]}  default  tasks.send_mail  ") and "Error 111 connecting to cache:6379" in row
    assert run("requeue", ids[2])[1] == f"{ids[2]} requeued\n"
    assert run("requeue", "--dead", "--all")[1] == "default: 3 requeued (of 3)\n"
    assert ids_in(redis, QUEUE) == ids[2:]


def test_requeue_by_id_says_what_became_of_each(redis: Redis, run: Run) -> None:
    """A job that vanished, one that never was, one that is not failed any more: each has its words, and none is an
    error.
    """
    ids = fill(redis, 3)
    redis.delete(named(f"rq:job:{ids[1]}"))
    redis.hset(named(f"rq:job:{ids[2]}"), "status", "started")
    assert run("requeue", *ids, "-q", "default", "--dry-run")[0] == 0 and redis.zcard(FAILED) == 3
    code, out, _ = run("requeue", "-q", "default", *ids, "nobody")
    assert code == 0
    assert out.splitlines() == [
        f"{ids[0]} requeued",
        f"{ids[1]} is gone; its entry was removed",
        f"{ids[2]} has not failed, or does not any more",
        "nobody is not among the failed jobs",
    ]


def test_refusal_of_the_server_is_one_line(redis: Redis, run: Run, start_server: Callable[..., EmbeddedServer]) -> None:
    """A server that takes no writes, as after a failover, is worth another try: exit code 75, no traceback."""
    server = start_server({"min-replicas-to-write": 1})
    with server.client() as client:
        client.config_set("min-replicas-to-write", 0)
        fill(client, 1)
        client.config_set("min-replicas-to-write", 1)
        code, out, err = run("requeue", "--all", url=server.url)
        assert (code, out) == (75, "") and "replicas" in err and len(err.splitlines()) == 1, err
        assert client.zcard(FAILED) == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_blocked_queue_keeps_no_other_from_its_sweep(redis: Redis, run: Run, as_json: bool) -> None:
    """What was done is told, the queues behind are swept, each one that could not be is named, and the code stays
    75.
    """
    for name in "abcd":
        fill(redis, 3, name, prefix=name)
    redis.set(named("rq_pooled:sweep:b"), "host:1:x", ex=60)
    redis.delete(named("rq:failed:c"))
    redis.set(named("rq:failed:c"), "no registry")
    code, out, err = run("sweep", "--requeue", "--all", *["--json"] * as_json)
    if as_json:
        reports = {one["queue"]: one for one in json.loads(out)}
        assert {name: one["done"] for name, one in reports.items()} == {"a": 3, "b": 0, "c": 0, "d": 3}
        assert "under way" in reports["b"]["error"] and "WRONGTYPE" in reports["c"]["error"]
    else:
        assert out.splitlines() == ["a: 3 requeued (of 3)", "d: 3 requeued (of 3)"]
    lines = err.splitlines()
    assert (code, len(lines)) == (75, 2), err
    assert lines[0].startswith("rq-pooled: b: not swept to the end: a sweep of queue 'b' is under way")
    assert lines[1].startswith("rq-pooled: c: not swept to the end: WRONGTYPE")


def test_queue_named_twice_counts_once(redis: Redis, run: Run) -> None:
    """A queue that is given again is swept, and its jobs are listed, once."""
    fill(redis, 2)
    twice = ("-q", "default", "-q", "default")
    assert len(run("failed", *twice)[1].splitlines()) == 3
    assert run("sweep", "--requeue", "--limit", "1", *twice)[1] == "default: 1 requeued (of 2)\n"


def test_history_of_a_job(redis: Redis, run: Run) -> None:
    """Each try with time, error and what came next; a job that nobody knows is an error in one line."""
    (job,) = fail(redis, "Busy", retry=Backoff(2, 5, jitter=None))
    code, out, _ = run("failed", job.id)
    assert code == 0 and out.splitlines()[1] == "scheduled, 1 retry left" and "no try is recorded" in out
    redis.xadd(named(f"rq:results:{job.id}"), {"type": 4, "exc_string": "", "rq_pooled:next_at": 1790000000})
    lines = run("failed", job.id)[1].splitlines()
    assert lines[2].endswith("retried: -; next try 2026-09-21T14:13:20Z")
    (one,) = json.loads(run("failed", job.id, "--json")[1])["tries"]
    assert one["result"] == "retried" and one["next_try"] == "2026-09-21T14:13:20Z"
    code, out, err = run("failed", "nobody")
    assert (code, out) == (2, "") and err.startswith("rq-pooled: there is no job nobody")


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ("ValueError: no such order", "ValueError: no such order"),
        ("sqlalchemy.exc.OperationalError: gone\n[SQL: SELECT 1]\n(Background: https://sqlalche.me/e/20/e3q8)",
         "sqlalchemy.exc.OperationalError: gone"),
        ("ValueError: no such order\norder 17", "ValueError: no such order"),  # a note
    ],
)  # fmt: skip
def test_history_tells_the_error_itself(redis: Redis, run: Run, end: str, error: str) -> None:
    """The line of a try is the one that begins the exception, whatever its message or its notes go on to say."""
    (job_id,) = fill(redis, 1)
    text = f'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n{end}\n'
    packed = b64encode(zlib.compress(text.encode()))
    redis.xadd(named(f"rq:results:{job_id}"), {"type": 2, "exc_string": packed})
    tried, *shown = run("failed", job_id)[1].splitlines()[-text.count("\n") - 1 :]
    assert tried.endswith(f"failed: {error}") and shown == ["     " + line for line in text.splitlines()]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no groups before")
def test_history_tells_the_error_of_a_group(redis: Redis, run: Run) -> None:
    """The line of a try that ended with a group is the group's own."""
    (job_id,) = fill(redis, 1)
    try:
        raise ExceptionGroup("two orders", [ValueError("a"), KeyError("b")])  # type: ignore[name-defined,unused-ignore]  # noqa: F821
    except Exception:  # noqa: BLE001 - so that 3.10 can read this
        packed = b64encode(zlib.compress(traceback.format_exc().encode()))
    redis.xadd(named(f"rq:results:{job_id}"), {"type": 2, "exc_string": packed})
    line = [line for line in run("failed", job_id)[1].splitlines() if line.startswith("  ") and "failed: " in line][-1]
    assert line.endswith("failed: ExceptionGroup: two orders (2 sub-exceptions)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep"], "exactly one of"),
        (["sweep", "--requeue", "--purge"], "exactly one of"),
        (["sweep", "--purge"], "--all"),
        (["sweep", "--purge", "--limit", "5"], "--all"),
        (["sweep", "--purge", "--older-than", "0"], "delete every failed job"),
        (["sweep", "--purge", "--older-than", "0", "--beyond", "5"], "delete every failed job"),
        (["sweep", "--purge", "--beyond", "0", "--older-than", "5d"], "delete every failed job"),
        (["sweep", "--purge", "--exception", "Exception", "--older-than", "0s"], "delete every failed job"),
        (["sweep", "--purge", "--exception", "builtins.BaseException"], "delete every failed job"),
        (["sweep", "--purge", "--function", "*.*"], "delete every failed job"),
        (["sweep", "--purge", "--all", "--older-than", "5d"], "exclude each other"),
        (["sweep", "--requeue"], "requeue every failed job"),
        (["sweep", "--bury", "--all"], "--all means nothing with --bury"),
        (["requeue", "--older-than", "0"], "requeue every failed job"),
        (["requeue", "--function", "*"], "requeue every failed job"),
        (["requeue", "--exception", "Exception"], "requeue every failed job"),
        (["requeue", "--exception", "KeyError", "--all"], "exclude each other"),
        (["schedule-sweep", "--cron", "* * * * *", "--purge", "--older-than", "0"], "delete every failed job"),
        (["schedule-sweep", "--cron", "* * * * *", "--requeue"], "requeue every failed job"),
        (["sweep", "--ghosts", "--exception", "KeyError"], "--exception means nothing with --ghosts"),
        (["sweep", "--bury", "--rate", "5"], "--rate means nothing with --bury"),
        (["sweep", "--requeue", "--older-than", "10 minutes"], "--older-than is 10 minutes"),
        (["sweep", "--requeue", "--older-than", "-5m"], "--older-than is -5m"),
        (["sweep", "--requeue", "--older-than", "9" * 400 + "d"], "--older-than is 999"),
        (["sweep", "--requeue", "--rate", "1e-320"], "a job a year"),
        (["sweep", "--bury", "--max-age", "20000d"], "ten years"),
        (["sweep", "--requeue", "--delay", ""], "--delay is empty"),
        (["sweep", "--requeue", "--limit", "0"], "--limit"),
        (["sweep", "--requeue", "--exception", "no name"], "exceptions"),
        (["sweep", "--bury", "--dead", "--older-than", "1m"], "dead letters"),
        (["sweep", "--ghosts", "-q", "nobody"], "there is no queue 'nobody'"),
        (["requeue"], "give ids of jobs"),
        (["requeue", "x", "--all"], "or --all: one of the three"),
        (["rescue", "-q", "nobody"], "there is no queue 'nobody'"),
        (["requeue", "--all", "-q", "nobody"], "there is no queue 'nobody'"),
        (["failed", "-q", "nobody"], "there is no queue 'nobody'"),
        (["failed", "--older-than", "x"], "--older-than is x"),
    ],
)
def test_mistakes_are_refused_in_one_line(redis: Redis, run: Run, arguments: list[str], words: str) -> None:
    """Exit code 2, one line that says what to change, and nothing is done."""
    fill(redis, 1)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1, err
    assert redis.zcard(FAILED) == 1


@pytest.mark.parametrize(
    "command", [["sweep", "--ghosts"], ["requeue", "--all"], ["requeue", "x"], ["failed"], ["failed", "x"]]
)
def test_lost_server_is_worth_another_try(
    start_server: Callable[..., EmbeddedServer], run: Run, command: list[str]
) -> None:
    """Exit code 75 and one line without a password."""
    server = start_server({"requirepass": "s3cret"})
    url = server.url
    server.stop()
    code, out, err = run(*command, url=url)
    assert (code, out) == (75, "") and len(err.splitlines()) == 1 and "s3cret" not in err, err


@pytest.mark.timeout(150)
def test_examples_run(redis: Redis, server: EmbeddedServer) -> None:
    """The examples of retries and of failed jobs do what they say, with a worker started in their folder."""
    environ = {**os.environ, "RQ_POOLED_URL": server.url, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "rq_pooled", "worker", "--quiet", "--concurrency", "2"]
    worker = subprocess.Popen(line, cwd=ROOT / "examples", env=environ)
    try:
        said = {}
        for name in ("retries.py", "failed_jobs.py"):
            done = subprocess.run(
                [sys.executable, name],
                cwd=ROOT / "examples",
                env=environ,
                capture_output=True,
                text=True,
                timeout=70,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            said[name] = done.stdout
            if name == "retries.py":
                assert redis.zcard(FAILED) == 2
                redis.flushdb()
    finally:
        worker.terminate()
        worker.wait(20)
    lines = said["retries.py"].splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "ada: finished",
        "offline: failed",
        "nobody: failed",
    ]
    kinds = [line.split()[1].rstrip(":") for line in lines if line.startswith(" ")]
    assert kinds == ["retried", "successful", "retried", "retried", "failed", "failed"]
    assert said["failed_jobs.py"].splitlines() == [
        "requeue (dry run): 3 of 4",
        "requeue: 3 of 4",
        "bury: 2 of 3",
        "dead letters: 2",
        "brought back: 1",
        "purge: 2 of 2",
        "ghosts: 0 of 1",
        "dead letters deleted: 1",
    ]


def test_groups_tell_what_fails_most(redis: Redis, run: Run) -> None:
    """``failed --groups`` counts by exception and function as the page does, and a cut list says that it is one."""
    fail(redis, "ValueError", "KeyError", "ValueError")
    code, out, err = run("failed", "--groups")
    rows = [line.split()[:4] for line in out.splitlines()]
    assert (code, err) == (0, "") and rows[0] == ["EXCEPTION", "FUNCTION", "QUEUE", "JOBS"]
    assert rows[1:] == [["ValueError", "retry_jobs.fail", "default", "2"], ["KeyError", *rows[2][1:3], "1"]]
    assert [one["count"] for one in json.loads(run("failed", "--groups", "-q", "default", "--json")[1])] == [2, 1]
    assert run("failed", "--groups", "--exception", "KeyError")[0] == 2
    assert "there is no queue" in run("failed", "--groups", "-q", "nope")[2]
    assert "only the oldest 2 of default" in run("failed", "--limit", "2")[2]


@pytest.mark.parametrize("name", ["workers", "queues", "jobs"])
def test_what_is_looked_for_under_another_name(run: Run, name: str) -> None:
    """Who types ``workers`` is sent to what shows them, and not to ``worker``, which would start one."""
    code, _, err = run(name)
    assert code == 2 and "`rq-pooled " in err and "Did you mean" not in err
