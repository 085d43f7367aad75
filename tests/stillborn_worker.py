"""A worker whose horses die before they are ready, for test_crash.py."""

from __future__ import annotations

import os
from typing import Any

import rq_pooled


class Worker(rq_pooled.Worker):
    """Its horses end at once."""

    def _run_horse(self, *_: Any) -> None:
        os._exit(3)
