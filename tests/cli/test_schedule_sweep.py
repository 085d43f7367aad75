"""``rq-pooled schedule-sweep``: recurring sweeps are registered once, listed, removed, and run."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import claim_jobs
import pytest
from commands import rq_pooled_command
from keys import named
from redis import Redis
from rq import Queue
from rq.job import Job, JobStatus
from support import running_worker, wait_until

from rq_pooled.store.keys import SCHEDULED_JOBS

Run = Callable[..., "subprocess.CompletedProcess[str]"]
TEN = ("--cron", "*/10 * * * *")


@pytest.fixture
def run(server: Any) -> Run:
    """Run ``rq-pooled schedule-sweep`` against the server."""
    return functools.partial(rq_pooled_command, "schedule-sweep", url=server.url)


def test_register_list_replace_remove(redis: Redis, run: Run) -> None:
    """Registering twice leaves one; a second registration of the name replaces the first; removing leaves nothing."""
    Queue("mail", redis).enqueue(claim_jobs.nothing)
    before = set(redis.keys("*"))
    result = run()
    assert (result.returncode, result.stdout) == (0, "no recurring sweep\n")
    arguments = (*TEN, "-q", "mail", "--requeue", "--exception", "ConnectionError", "--older-than", "10m")
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(
        "requeue-mail: */10 * * * *  requeue failed jobs of mail (exceptions ConnectionError, older_than 10m); next 20"
    )
    assert run(*arguments).stdout == first.stdout == run().stdout
    run("--cron", "0 4 * * *", "--purge", "--older-than", "30d", "--name", "monthly")
    assert run("--cron", "0 5 * * *", "--ghosts", "--name", "monthly", "--in-queue", "mail").returncode == 0
    listed = json.loads(run("--json").stdout)
    assert [(one["name"], one["cron"], one["in_queue"]) for one in listed] == [
        ("monthly", "0 5 * * *", "mail"),
        ("requeue-mail", "*/10 * * * *", "default"),
    ]
    assert listed[0]["what"] == "ghosts failed jobs of all queues"
    assert redis.zcard(SCHEDULED_JOBS) == 2
    assert run("--remove", "monthly").stdout == "monthly: removed\n"
    assert run("--remove", "requeue-mail").stdout == "requeue-mail: removed\n"
    result = run("--remove", "monthly")
    assert (result.returncode, result.stdout) == (0, "no recurring sweep is named monthly\n")
    assert set(redis.keys("*")) - {named("rq_pooled:audit").encode()} == before


def test_default_names_tell_queues_apart(redis: Redis, run: Run) -> None:
    """Queues whose names differ only in what a name may not contain each keep their sweep; the same ones replace it."""
    sweeps = [["a b"], ["a_b"], ["почта"], ["слово"], ["a", "b"], ["a-b"], [], ["all"]]
    for queues in sweeps:
        for name in queues:
            redis.sadd(named("rq:queues"), named(f"rq:queue:{name}"))
        flags = [word for name in queues for word in ("-q", name)]
        for _ in range(2):
            assert run(*TEN, "--ghosts", *flags).returncode == 0
    found = [Job.fetch(job_id.decode(), redis).kwargs["queues"] for job_id in redis.zrange(SCHEDULED_JOBS, 0, -1)]
    assert sorted(map(repr, found)) == sorted(repr(queues or None) for queues in sweeps)


@pytest.mark.parametrize("due", [float("-inf"), -1e300, float("inf"), 1e300])
def test_any_time_is_shown(redis: Redis, run: Run, due: float) -> None:
    """A sweep whose time others have set to one that no calendar has is listed."""
    run("--cron", "0 4 * * *", "--ghosts", "--name", "s")
    redis.zadd(SCHEDULED_JOBS, {"rq_pooled-sweep-s": due})
    result = run()
    assert result.returncode == 0 and "0 4 * * *" in result.stdout


def test_sweep_whose_job_vanished_is_forgotten(redis: Redis, run: Run) -> None:
    """A sweep whose job was deleted is dropped from the list and from the schedule."""
    run(*TEN, "--ghosts")
    Job.fetch("rq_pooled-sweep-ghosts-all", redis).delete()
    assert run().stdout == "no recurring sweep\n"
    assert not redis.exists(SCHEDULED_JOBS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cron", "every day", "--ghosts"], "write it as"),
        (["--cron", "0 0 31 2 *", "--ghosts"], "write it as"),
        (["--cron", "* * * * *"], "exactly one of"),
        (["--cron", "* * * * *", "--requeue", "--purge"], "exactly one of"),
        (["--cron", "* * * * *", "--requeue", "--older-than", "10q"], "45s, 10m"),
        (["--cron", "* * * * *", "--requeue", "--all", "-q", "nobody"], "no queue 'nobody'"),
        (["--cron", "* * * * *", "--ghosts", "--name", "a b"], "letters, digits"),
        (["--requeue"], "give --cron"),
        (["--remove", "x", "--cron", "* * * * *"], "excludes"),
    ],
)
def test_bad_input_is_refused(redis: Redis, run: Run, arguments: list[str], words: str) -> None:
    """Bad input is one line and exit code 2, and registers nothing."""
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert redis.keys("*") == []


def test_lost_server_is_exit_code_75(run: Run) -> None:
    """A server that cannot be reached is one line and exit code 75."""
    for arguments in ((), (*TEN, "--ghosts"), ("--remove", "x")):
        result = run(*arguments, url="redis://127.0.0.1:1/0")
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (75, "", 1)


def test_runs_when_it_is_due_and_comes_again(server: Any, redis: Redis, run: Run, tmp_path: Path) -> None:
    """A worker with --with-scheduler enqueues the sweep and runs it: failed jobs are requeued, and its next time
    stands.
    """
    queue, gate = Queue(connection=redis), tmp_path / "gate"
    job = queue.enqueue(claim_jobs.fail_unless_file, str(gate))
    with running_worker(server.url, "--with-scheduler", log=tmp_path / "log"):
        wait_until(lambda: job.get_status() == JobStatus.FAILED)
        gate.touch()
        assert run(*TEN, "-q", "default", "--requeue", "--exception", "RuntimeError").returncode == 0
        due = redis.zscore(SCHEDULED_JOBS, "rq_pooled-sweep-requeue-default")
        redis.zadd(SCHEDULED_JOBS, {"rq_pooled-sweep-requeue-default": 1})
        sweep = Job.fetch("rq_pooled-sweep-requeue-default", redis)
        wait_until(lambda: sweep.get_status() == JobStatus.FINISHED)
        assert sweep.return_value()[0]["done"] == 1
        wait_until(lambda: job.get_status() == JobStatus.FINISHED)
    assert redis.zscore(SCHEDULED_JOBS, sweep.id) >= due
