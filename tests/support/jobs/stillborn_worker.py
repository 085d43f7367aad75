"""A worker whose horses die before they are ready, for test_crash.py."""

from __future__ import annotations

import os
from typing import Any

import rq_pooled
from rq_pooled.worker import worker


class Worker(rq_pooled.Worker):
    """Its horses end at once."""

    def work(self, *args: Any, **kwargs: Any) -> bool:
        worker.prepare_horses = lambda *_: lambda _channel, _token: os._exit(3)
        return super().work(*args, **kwargs)
