"""Workers that tests name: one sent signals at the worst moments, one with keys of its own."""

from __future__ import annotations

import os
import signal
from typing import Any

import rq_pooled

SIGNAL = signal.Signals[os.environ.get("ENTRY_SIGNAL", "SIGTERM")]


class Worker(rq_pooled.Worker):
    """Sends itself ENTRY_SIGNAL before it has forked its horses and before it registers its death."""

    def _prepare_horses(self, *arguments: Any) -> Any:
        os.kill(os.getpid(), SIGNAL)
        return super()._prepare_horses(*arguments)

    def _unregister(self, *arguments: Any) -> None:
        os.kill(os.getpid(), SIGNAL)
        super()._unregister(*arguments)


class ShopWorker(rq_pooled.Worker):
    """Registers under a key of its own."""

    redis_worker_namespace_prefix = "shop:worker:"


class OldWorker(rq_pooled.Worker):
    """As written for RQ 2."""

    def perform_job(self, job: Any, queue: Any) -> bool:  # type: ignore[override]
        return super().perform_job(job, queue)
