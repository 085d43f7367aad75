"""Workers that are killed between having got a job and starting it, once: the next one finds the marker."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import rq

import rq_pooled

from . import journal


def _die_once() -> None:
    marker = Path(os.environ[journal.VARIABLE]).with_name("has died")
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Stock(rq.Worker):
    """RQ's worker."""

    def execute_job(self, *args: Any, **kwargs: Any) -> None:
        """Die, or go on."""
        _die_once()
        super().execute_job(*args, **kwargs)


class Ours(rq_pooled.Worker):
    """Ours; this is called between the claim and its hand-over to a horse."""

    def reorder_queues(self, *args: Any, **kwargs: Any) -> None:
        """Die, or go on."""
        _die_once()
        super().reorder_queues(*args, **kwargs)
