"""Job functions of the tests about large arguments and results."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import time
from typing import Any

from rq import get_current_job
from rq.job import Job


def noise(size: int, seed: int = 1) -> bytes:
    """So many bytes that nothing compresses, the same for a seed."""
    return random.Random(seed).randbytes(size)


def note(name: str) -> None:
    """Count the runs of this job, in a list of its name."""
    job = get_current_job()
    assert job is not None
    job.connection.rpush(f"{name}:{job.id}", "once")


def digest(data: bytes) -> str:
    """Tell what arrived."""
    note("runs")
    return hashlib.sha1(data).hexdigest()


def digest_at_last(data: bytes) -> str:
    """Fail as long as there is another try."""
    job = get_current_job()
    assert job is not None
    if job.retries_left:
        raise ValueError("not yet")
    return digest(data)


def returning(size: int) -> bytes:
    """Return so much."""
    note("runs")
    return noise(size)


def failing(data: bytes, size: int = 0) -> None:
    """Fail, with a message of so many characters."""
    raise ValueError(f"{len(data)} bytes " + noise(size // 2).hex())


def run_for(seconds: float) -> None:
    """Run on for a while without saying a word."""
    note("runs")
    time.sleep(seconds)


def in_meta(data: bytes, size: int) -> None:
    """Keep so much in its meta."""
    job = get_current_job()
    assert job is not None
    job.meta["noise"] = noise(size, len(data))
    job.save_meta()


def die(_data: bytes) -> None:
    """End this process."""
    os._exit(3)


def on_end(job: Job, connection: Any, *_more: Any) -> None:
    """Note what a callback sees of the arguments."""
    connection.rpush(f"callback:{job.id}", len(job.args[0]))


def hang(data: bytes) -> None:
    """Run on, whatever comes."""
    while data:
        with contextlib.suppress(BaseException):
            time.sleep(60)


def wait_and_return(size: int) -> bytes:
    """Say who waits; return so much when the signal comes."""
    came: list[int] = []
    signal.signal(signal.SIGUSR1, lambda signum, _frame: came.append(signum))
    job = get_current_job()
    assert job is not None
    job.connection.set("waits", os.getpid())
    while not came:
        time.sleep(0.005)
    return noise(size)
