"""Jobs that fail in the ways that retries are about."""

from __future__ import annotations

import time
from typing import Any

from rq import Retry, get_current_job

from rq_pooled import RetryAfter
from rq_pooled.retry import GiveUp


class Busy(ConnectionError):
    """A kind of ConnectionError that only this module knows."""


class Broken(Exception):
    """Nothing that helps."""


KINDS: dict[str, type[BaseException]] = {
    "Busy": Busy,
    "Broken": Broken,
    "ConnectionError": ConnectionError,
    "ValueError": ValueError,
    "TimeoutError": TimeoutError,
}


def fail(kind: str = "Broken", text: str = "as told") -> None:
    """Raise."""
    raise KINDS[kind](text)


def fail_once(kind: str = "Broken") -> str:
    """Raise at the first try."""
    job = get_current_job()
    assert job is not None
    key = f"tried:{job.id}"
    if job.connection.incr(key) == 1:
        raise KINDS[kind]("the first time")
    job.connection.delete(key)
    return "ok"


def fail_while(key: str, kind: str = "Broken") -> str:
    """Raise for as long as a key exists, and note each run in a list."""
    job = get_current_job()
    assert job is not None
    job.connection.rpush(f"runs:{job.id}", time.time())
    if job.connection.exists(key):
        raise KINDS[kind](f"{key} exists")
    return "ok"


def later(seconds: float) -> str:
    """Ask to be called again, the first time."""
    job = get_current_job()
    assert job is not None
    runs = job.connection.rpush(f"runs:{job.id}", time.time())
    if runs == 1:
        raise RetryAfter(seconds, "HTTP 429")
    return "ok"


def give_up() -> None:
    """Say that it makes no sense."""
    raise GiveUp("no such customer")


def return_backoff(retry: Retry) -> Any:
    """Return what asks for another try."""
    return retry


def vanish() -> None:
    """End the process as the kernel does when memory is short."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
