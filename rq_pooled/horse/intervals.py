"""Intervals of retries and repeats that no calendar reaches: RQ raises in its handlers, which loses the outcome."""

from __future__ import annotations

import numbers
from typing import Any

from rq.job import Job, Retry
from rq.repeat import Repeat

from ..durations import LONGEST


def bounded(seconds: Any) -> Any:
    """Return an interval as it is, at most 100 years; what is no number of seconds is 0."""
    number: Any = seconds if isinstance(seconds, numbers.Real) else 0
    return min(number, LONGEST) if number >= 0 else 0


def use_in_handlers() -> None:
    """Have RQ's handlers and maintenance of this process take intervals so; for a horse, whose process is ours."""
    inherited = Job.get_retry_interval

    def get_retry_interval(self: Job) -> Any:
        # RQ takes the first of an empty list.
        return bounded(inherited(self)) if self.retry_intervals else 0

    Job.get_retry_interval = get_retry_interval  # type: ignore[method-assign]
    for kind in (Retry, Repeat):
        _bound(kind)


def _bound(kind: Any) -> None:
    if "get_interval" not in vars(kind):
        return
    inherited = vars(kind)["get_interval"]

    def get_interval(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return bounded(inherited.__get__(None, cls)(*args, **kwargs))

    kind.get_interval = classmethod(get_interval)
