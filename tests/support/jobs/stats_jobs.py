"""Jobs for the tests of statistics, guard and budget: what they did is written down beside Redis, to the unit."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rq import Retry

from rq_pooled import get_connection


def note(folder: str, what: str) -> None:
    """Leave one file for one run."""
    (Path(folder) / f"{what}.{os.getpid()}.{time.monotonic_ns()}").touch()


def succeed(folder: str) -> None:
    """Succeed."""
    note(folder, "ran")


def fail(folder: str) -> None:
    """Fail."""
    note(folder, "ran")
    raise LookupError("on purpose")


def once_more(folder: str) -> Retry | None:
    """Ask for one more run the first time."""
    note(folder, "ran")
    if len(list(Path(folder).glob("ran.*"))) < 2:
        return Retry(max=3)
    return None


def die(folder: str) -> None:
    """Take the horse along."""
    note(folder, "ran")
    os._exit(3)


def wait_for(folder: str, name: str) -> None:
    """Wait until a file exists."""
    note(folder, "ran")
    while not (Path(folder) / name).exists():
        time.sleep(0.01)


def hold_redis(folder: str, name: str) -> None:
    """Use Redis over the shared connection, and over one that is kept by WATCH until a file exists."""
    with get_connection().pipeline() as pipeline:
        if get_connection().incr("holders") == 1:
            pipeline.watch("held")
        note(folder, "ran")
        while not (Path(folder) / name).exists():
            time.sleep(0.01)
