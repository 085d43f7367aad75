"""A worker class with a method that rq_pooled has no occasion to call, imported by name."""

from __future__ import annotations

from typing import Any

import rq_pooled


class Worker(rq_pooled.Worker):
    def execute_job(self, *args: Any) -> None:
        raise AssertionError("never called")
