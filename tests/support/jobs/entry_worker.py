"""Workers that tests name: one sent signals at the worst moments, one with keys of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import rq_pooled
from rq_pooled.worker import worker

SIGNAL = signal.Signals[os.environ.get("ENTRY_SIGNAL", "SIGTERM")]


class Worker(rq_pooled.Worker):
    """Sends itself ENTRY_SIGNAL before it has forked its horses and before it registers its death."""

    def work(self, *args: Any, **kwargs: Any) -> bool:
        worker.prepare_horses = signalled(worker.prepare_horses)
        worker.unregister = signalled(worker.unregister)
        return super().work(*args, **kwargs)


def signalled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, after a signal."""

    def call(*args: Any) -> Any:
        os.kill(os.getpid(), SIGNAL)
        return function(*args)

    return call


class ShopWorker(rq_pooled.Worker):
    """Registers under a key of its own."""

    redis_worker_namespace_prefix = "shop:worker:"


class OldWorker(rq_pooled.Worker):
    """As written for RQ 2."""

    def perform_job(self, job: Any, queue: Any) -> bool:  # type: ignore[override]
        return super().perform_job(job, queue)
