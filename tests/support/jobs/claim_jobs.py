"""Job functions of the tests of claims, commits and promotion. They note what they did in files, which costs no
connection.
"""

from __future__ import annotations

import os
import time

from rq import get_current_job


def _append(path: str, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def _id() -> str:
    job = get_current_job()
    assert job is not None
    return job.id


def nothing() -> None:
    """Do nothing."""


def note(path: str) -> str:
    """Append the job's id to a file."""
    _append(path, _id())
    return "noted"


def note_start_and_end(path: str) -> None:
    """Append a line at the start and one at the end, some time apart."""
    _append(path, f"start {_id()}")
    time.sleep(0.05)
    _append(path, f"end {_id()}")


def wait_for_file(started: str, gate: str) -> str:
    """Note that the job runs, and wait until the file ``gate`` exists."""
    _append(started, _id())
    while not os.path.exists(gate):
        time.sleep(0.005)
    return "passed"


def fail_unless_file(path: str) -> str:
    """Raise as long as the file does not exist."""
    if not os.path.exists(path):
        raise RuntimeError("not yet")
    return "passed"
