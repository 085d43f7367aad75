"""Jobs, classes and handlers that the tests of options and integrations name on command lines."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from rq import Queue, get_current_job
from rq.job import Job


def note(key: str = "order") -> int:
    """Append the own id to a list in Redis; return the process."""
    job = get_current_job()
    assert job is not None
    job.connection.rpush(key, job.id)
    return os.getpid()


def add(a: int, b: int) -> int:
    """Return the sum."""
    return a + b


def fail() -> None:
    """Raise."""
    raise ValueError("on purpose")


def wait_for_key(key: str, patience: float = 40.0) -> int:
    """Wait until a key exists, asking on the job's connection."""
    job = get_current_job()
    assert job is not None
    deadline = time.monotonic() + patience
    while not job.connection.exists(key):
        if time.monotonic() > deadline:
            raise TimeoutError(key)
        time.sleep(0.01)
    return os.getpid()


def preloaded() -> tuple[int, list[int]]:
    """Return the own process and those that imported entry_preload, as far as this one knows."""
    module: Any = sys.modules.get("entry_preload")
    return os.getpid(), module.imported_by if module else []


def handler(job: Job, *exc_info: Any) -> bool:
    """Note which job failed of what, and let the next handler have it too."""
    job.connection.rpush("handled", f"{job.id} {exc_info[0].__name__}")
    return True


class OwnJob(Job):
    """Says so in its result."""

    def perform(self) -> Any:
        """Wrap the result."""
        return ["own job", super().perform()]


class OwnQueue(Queue):
    """Says so where its jobs have dependents."""

    def enqueue_dependents(self, job: Job, *args: Any, **kwargs: Any) -> Any:
        """Say so."""
        print(f"own queue for {job.id}", flush=True)
        return super().enqueue_dependents(job, *args, **kwargs)

    def move_dependents_to_ready(self, job: Job, *args: Any, **kwargs: Any) -> Any:
        """Say so, with RQ 3."""
        print(f"own queue for {job.id}", flush=True)
        return super().move_dependents_to_ready(job, *args, **kwargs)  # type: ignore[misc, unused-ignore]


class ShopJob(Job):
    """Keeps its data under a key of its own."""

    redis_job_namespace_prefix = "shop:job:"


class ShopQueue(Queue):
    """Keeps its jobs' ids under a key of its own."""

    redis_queue_namespace_prefix = "shop:queue:"
    redis_queues_keys = "shop:queues"
