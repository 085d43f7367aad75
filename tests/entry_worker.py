"""A worker that is sent signals at the worst moments: while it has registered and not begun, and while it ends."""

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
