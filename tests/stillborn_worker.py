"""A worker whose horses die before they are ready, for test_crash.py."""

from __future__ import annotations

import os
from typing import Any

import rq_pooled


class Worker(rq_pooled.Worker):
    """Its horses end at once."""

    def _prepare_horses(self, *_: Any) -> Any:
        return lambda _channel: os._exit(3)
