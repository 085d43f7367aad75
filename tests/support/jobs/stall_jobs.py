"""Job functions of the tests about stalled jobs."""

from __future__ import annotations

import os
from typing import Any

from redis import Redis
from rq import get_current_job
from rq.job import Job


def on_failure_die(_job: Job, connection: Redis, *_error: Any) -> None:
    """A failure callback that takes its process with it."""
    connection.rpush("died", os.getpid())
    os._exit(1)


def count_and_fail() -> None:
    """Count the runs of this job, and fail."""
    job = get_current_job()
    assert job is not None
    job.connection.incr("runs")
    raise ValueError("on purpose")
