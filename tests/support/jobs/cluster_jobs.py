"""Jobs of all kinds for a cluster; what they write stands under the prefix of RQ's keys."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rq import Retry, get_current_job

import rq_pooled
from rq_pooled.store.keys import PREFIX


def key(name: str) -> str:
    """Return a key in the slot of RQ's."""
    return f"{PREFIX}:test:{name}"


def client() -> Any:
    """Return a client of the worker's server."""
    return rq_pooled.get_connection()


def count(name: str, nap: float = 0.0) -> int:
    """Use Redis by itself: count a run, over the shared connection and over one that is lent."""
    redis = client()
    number = int(redis.incr(key(name)))
    if nap:
        time.sleep(nap)
    with redis.pipeline() as pipe:
        pipe.rpush(key("list"), name)
        pipe.hset(key("hash"), name, number)
        pipe.execute()
    return number


def wait_for_word(name: str) -> str:
    """Wait for a word with a blocking command, over a lent connection."""
    return str(client().blpop(key(name), timeout=20)[1].decode())


def foreign(name: str) -> Any:
    """Use a key of another slot."""
    return client().get(name)


def keep_using(gate: str) -> int:
    """Use Redis all the time, until a file is there; return how often."""
    redis, number = client(), 0
    started = key("started")
    redis.incr(started)
    ends = time.monotonic() + 60
    while not Path(gate).exists() and time.monotonic() < ends:
        number += 1
        if int(redis.incr(key("used"))) < number:
            raise AssertionError("a command was lost")
        time.sleep(0.005)
    return number


def fail_first() -> str:
    """Fail at the first try."""
    job = get_current_job()
    assert job is not None
    if int(client().incr(key(f"tried:{job.id}"))) == 1:
        raise ValueError("the first time")
    return "second"


def retry_by_return() -> Any:
    """Ask to be run again, the first time."""
    job = get_current_job()
    assert job is not None
    return Retry(max=1) if int(client().incr(key(f"tried:{job.id}"))) == 1 else "again"


def fail() -> None:
    """Fail."""
    raise ValueError("as told")


def save_meta() -> int:
    """Save something with the job, and enqueue another one."""
    job = get_current_job()
    assert job is not None
    job.meta["seen"] = 1
    job.save_meta()
    rq_pooled.Queue("q", connection=client()).enqueue(count, "child", job_id="child")
    return 1


def on_success(job: Any, connection: Any, result: Any) -> None:
    """Note it."""
    connection.rpush(key("callbacks"), f"success {result}")


def on_failure(job: Any, connection: Any, kind: Any, value: Any, traceback: Any) -> None:
    """Note it."""
    connection.rpush(key("callbacks"), f"failure {value}")
