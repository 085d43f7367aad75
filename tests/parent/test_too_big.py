"""Results and arguments at which the server closes the connection: their job fails alone, the worker works on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
import stream_jobs
from engine import Engine, engine, finished, outcomes_of
from keys import named
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue
from rq.job import Job
from support import keys_of_jobs, running_worker, wait_until

from rq_pooled.connection.away import NotSent, ServerAway
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.parent.committer import BLAMED_FROM, MAX_COMMIT, MAX_LOSSES
from rq_pooled.parent.slot import Task

MB = 1024 * 1024


def statuses(redis: Redis, *ids: str) -> list[str]:
    """The jobs' states."""
    return [(redis.hget(named(f"rq:job:{job_id}"), "status") or b"").decode() for job_id in ids]


@pytest.mark.parametrize("function", [jobs.big, jobs.fail_with_noise])
def test_a_result_that_the_server_does_not_take_fails_alone(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path, function: Any
) -> None:
    """A job whose result, or error, exceeds what the server reads fails with the reason; others are recorded, SIGTERM
    ends.
    """
    server = start_server({"client-query-buffer-limit": "1mb"})
    redis, small = server.client(), [f"small-{i}" for i in range(8)]
    queue = Queue(connection=redis)
    queue.enqueue(function, 3 * MB, job_id="big")
    for job_id in small:
        queue.enqueue(jobs.nothing, job_id=job_id)
    before = redis.info()["total_connections_received"]
    with running_worker(server.url, log=tmp_path / "log", concurrency=3) as worker:
        wait_until(lambda: statuses(redis, "big") == ["failed"], what="the big job to fail")
        wait_until(lambda: set(statuses(redis, *small)) == {"finished"}, what="the others")
        result = Job.fetch("big", redis).latest_result()
        assert result is not None and "the connection was lost 4 times while its " in str(result.exc_string)
        assert "client-query-buffer-limit" in str(result.exc_string)
        assert redis.info()["total_connections_received"] - before < 40 and len(worker.output().splitlines()) < 80
        queue.enqueue(jobs.nothing, job_id="later")
        wait_until(lambda: statuses(redis, "later") == ["finished"])
        wait_until(lambda: not keys_of_jobs(redis), what="no residue")
        assert worker.stop() == 0


@pytest.mark.parametrize(
    ("limit", "call"),
    [
        ("300kb", {"args": (os.urandom(MB),)}),  # RQ compresses what it can
        ("100kb", {"args": ("x",), "meta": {"large": os.urandom(150_000).hex()}}),
        ("40kb", {"args": (os.urandom(60_000),)}),
    ],
    ids=["arguments", "meta", "small"],
)
def test_a_job_that_the_server_does_not_send_fails_alone(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path, limit: str, call: dict[str, Any]
) -> None:
    """A job at whose hash the server closes the connection fails with the reason; jobs claimed together with it run
    once.
    """
    server = start_server({"client-output-buffer-limit": f"normal {limit} 0 0"})
    redis = server.client()
    queue = Queue(connection=redis)
    for i in range(3):
        queue.enqueue(jobs.announce, "runs", job_id=f"small-{i}")
    queue.enqueue_call(jobs.length, job_id="big", **call)
    for i in range(3, 6):
        queue.enqueue(jobs.announce, "runs", job_id=f"small-{i}")
    with running_worker(server.url, log=tmp_path / "log", concurrency=4) as worker:
        small = [f"small-{i}" for i in range(6)]
        wait_until(lambda: statuses(redis, "big") == ["failed"], what="the big job to fail")
        wait_until(lambda: set(statuses(redis, *small)) == {"finished"}, what="the others")
        assert redis.llen("runs") == 6
        newest = redis.xrevrange(named("rq:results:big"), count=1)
        assert newest and redis.zscore(named("rq:failed:default"), "big")
        assert ", was read" in worker.output()
        wait_until(lambda: not keys_of_jobs(redis), what="no residue")
        assert worker.stop() == 0


def test_jobs_that_the_server_does_not_send_fail_each_for_itself(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """Of jobs whose claims were lost together each is claimed alone, so that all that are to blame fail in the end."""
    server = start_server({"client-output-buffer-limit": "normal 40kb 0 0"})
    redis, names = server.client(), [f"big-{i}" for i in range(3)]
    queue = Queue(connection=redis)
    for job_id in names:
        queue.enqueue_call(jobs.length, args=(os.urandom(60_000),), job_id=job_id)
    queue.enqueue(jobs.nothing, job_id="small")
    with running_worker(server.url, log=tmp_path / "log", concurrency=4) as worker:
        wait_until(lambda: statuses(redis, *names, "small") == ["failed"] * 3 + ["finished"], 30, "the end of all")
        assert worker.output().count(", was read") == 3
        assert worker.stop() == 0


def test_a_reply_that_is_cut_harms_no_job_that_uses_redis(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """Jobs that use Redis go on while the server closes the parent's connection at a claim: theirs stay open."""
    server = start_server({"client-output-buffer-limit": "normal 40kb 0 0"})
    redis = server.client()
    queue = Queue(connection=redis)
    for job_id in ("a", "b"):
        queue.enqueue(jobs.wait_for, job_id, "running", job_id=job_id)
    queue.enqueue(stream_jobs.wait_in_redis, "pushed", 30, job_id="waits")
    with running_worker(server.url, log=tmp_path / "log", concurrency=4) as worker:
        wait_until(lambda: redis.llen("running") == 2, what="jobs that ask again and again")
        wait_until(lambda: any(entry["cmd"] == "blpop" for entry in redis.client_list()), what="one that waits")
        queue.enqueue_call(jobs.length, args=(os.urandom(60_000),), job_id="big")
        wait_until(lambda: statuses(redis, "big") == ["failed"], what="the big job to fail")
        assert "lost the server" in worker.output()
        for key in ("a", "b", "pushed"):
            redis.rpush(key, "x")
        wait_until(lambda: "started" not in statuses(redis, "a", "b", "waits"), what="the others")
        assert statuses(redis, "a", "b", "waits") == ["finished"] * 3
        assert worker.stop() == 0


# -- who is to blame -------------------------------------------------------------------------------------------------


@pytest.fixture
def ours(server: EmbeddedServer, redis: Redis) -> Iterator[Engine]:
    """A ledger with three registered workers."""
    with engine(server.url) as one:
        one.register("w", "x", "y")
        yield one


@pytest.mark.parametrize("size", [100, BLAMED_FROM + 1])
@pytest.mark.parametrize(
    "error", [RedisConnectionError("reset"), RedisTimeoutError("late"), NotSent(), ServerAway("LOADING")]
)
def test_only_what_may_be_the_reason_is_given_up(ours: Engine, redis: Redis, size: int, error: Exception) -> None:
    """A lost connection is blamed on an outcome only if it was sent, is large, and the server did not say why; the
    small ones that were lost with it are sent before it, together."""
    for name in "abc":
        Queue(connection=redis).enqueue(jobs.nothing, job_id=name)
    first, large, last = ours.claim("w", "x", "y").claims
    tasks: deque[Task] = deque()
    outcomes = outcomes_of(ours, tasks)
    for outcome in (finished(first), finished(large, ("SET", "text", "x" * size)), finished(last)):
        outcomes.add(outcome)
    for losses in range(1, MAX_LOSSES + 1):
        blamed = size > BLAMED_FROM and not isinstance(error, (NotSent, ServerAway))
        assert outcomes.singled_out == (blamed and losses > 1)
        outcomes.commit().on_lost(error)
        if losses == 1:
            assert outcomes and not outcomes.singled_out and len(outcomes.claims()) == 3
            if blamed:
                assert ours.command.execute(outcomes.commit().commands) == [[b"ok", b"ok"]]
    assert [(task.kind, task.claim and task.claim.job_id) for task in tasks] == ([("fail", "b")] if blamed else [])
    if not blamed:
        assert ours.command.execute(outcomes.commit().commands) == [[b"ok", b"ok", b"ok"]]


def test_more_outcomes_than_one_commit_takes_are_all_recorded(ours: Engine, redis: Redis) -> None:
    """Outcomes that have gathered while the server was away are recorded 50 at a time, in their order."""
    claims = []
    for number in range(MAX_COMMIT + 10):
        Queue(connection=redis).enqueue(jobs.nothing, job_id=f"j{number}")
        claims += ours.claim("w").claims
    outcomes = outcomes_of(ours, deque())
    for claim in claims:
        outcomes.add(finished(claim))
    for number in (MAX_COMMIT, 10):
        assert len(outcomes.claims()) == len(outcomes.renewed()) > 0
        exchange = outcomes.commit()
        replies = ours.command.execute(exchange.commands)
        assert replies == [[b"ok"] * number]
        exchange.on_replies(replies)
    assert not outcomes and set(statuses(redis, *(claim.job_id for claim in claims))) == {"finished"}


def test_a_commit_that_is_refused_as_a_whole_is_sent_one_by_one(ours: Engine, redis: Redis) -> None:
    """Where the server refuses a whole commit, each of its outcomes is sent alone, so that the one to blame fails
    alone.
    """
    for name in "abc":
        Queue(connection=redis).enqueue(jobs.nothing, job_id=name)
    tasks: deque[Task] = deque()
    outcomes = outcomes_of(ours, tasks)
    for claim in ours.claim("w", "x", "y").claims:
        outcomes.add(finished(claim))
    outcomes.commit().on_replies([ResponseError("ERR too many results to unpack")])
    sent = []
    while outcomes:
        exchange = outcomes.commit()
        replies = ours.command.execute(exchange.commands)
        sent.append(len(replies[0]))
        exchange.on_replies(replies)
    assert sent == [1, 1, 1] and statuses(redis, *"abc") == ["finished"] * 3 and not tasks
