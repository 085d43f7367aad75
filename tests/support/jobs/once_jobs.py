"""Job functions for spent-once keys and unique calls."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

from claim_jobs import note
from redis import Redis

import rq_pooled


def note_and_die_at_first(path: str, died: str) -> str:
    """Do the work, and the first time die before anybody hears of it."""
    note(path)
    if not os.path.exists(died):
        open(died, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "noted"


class FailingWorker(rq_pooled.Worker):
    """Its own end of a success goes wrong, after RQ's."""

    def handle_job_success(self, *args: Any, **kwargs: Any) -> None:
        super().handle_job_success(*args, **kwargs)
        raise RuntimeError("after the success")


def accept(*_args: Any, **_kwargs: Any) -> str:
    """Take anything."""
    return "accepted"


def enqueue_three(url: str) -> None:
    """Enqueue the same call twice, and once for later."""
    queue = rq_pooled.Queue("inner", connection=Redis.from_url(url))
    for _ in range(2):
        queue.enqueue(accept)
    queue.enqueue_in(timedelta(1), accept)
