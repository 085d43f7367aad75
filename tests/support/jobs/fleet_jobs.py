"""Job functions of fleets in which processes run different majors of RQ: each run leaves a line in Redis."""

from __future__ import annotations

import time
from typing import Any

from rq import Retry, get_current_job


def _note() -> Any:
    job = get_current_job()
    assert job is not None
    job.connection.rpush(f"runs:{job.id}", job.worker_name or "")
    return job


def note(seconds: float = 0) -> str:
    """Succeed after some time."""
    job = _note()
    time.sleep(seconds)
    return str(job.id)


def fail() -> None:
    """Fail."""
    raise ValueError(_note().id)


def fail_while_retries_are_left() -> str:
    """Fail until the last try."""
    job = _note()
    if job.retries_left:
        raise ValueError(job.id)
    return str(job.id)


def ask_for_one_retry() -> Any:
    """Return a Retry once."""
    return "done" if _note().number_of_retries else Retry(max=2)


def called_back(job: Any, connection: Any, *_: Any) -> None:
    """Leave a line."""
    connection.rpush(f"called:{job.id}", "")


def wait_for(key: str) -> None:
    """Run until something is in a list, 60 seconds at most."""
    _note().connection.blpop([key], timeout=60)
