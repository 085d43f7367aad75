"""What the benchmarks run."""

from __future__ import annotations

import os
import socket
import time

from rq import get_current_job


def nothing() -> int:
    """Return something that is stored."""
    return 1


def doze(seconds: float) -> None:
    """Take a while."""
    time.sleep(seconds)


def stamp(path: str) -> None:
    """Send the time of this function's first line to a datagram socket."""
    now = time.time_ns()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.sendto(f"{now} {os.getpid()}".encode(), path)


def kilobyte(given: bytes) -> bytes:
    """Return as much as was given."""
    return given[::-1]


def keep_meta() -> None:
    """Save meta once, as a job does that tells how far it is."""
    job = get_current_job()
    assert job is not None
    job.meta["part"] = 1
    job.save_meta()


def second_time() -> int:
    """Fail at the first try."""
    job = get_current_job()
    assert job is not None
    if job.retries_left:
        raise ValueError("the first try")
    return 1
