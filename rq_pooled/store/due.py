"""Keeps the fraction of due times: RQ cuts it off, so a job due in two seconds may start after one.

A due time of ours is never a whole number. A whole number comes from a stock client, which has lost the fraction, so
the promotion moves that job one second later; see promote.lua. Stock schedulers compare whole seconds, and are never
early.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

from redis.exceptions import RedisError
from rq.registry import ScheduledJobRegistry

_patched = False


def fraction_of(microseconds: int) -> float:
    """Return the fraction to add to a whole second: milliseconds, rounded up, and never a whole second."""
    milliseconds = -(-microseconds // 1000)
    return (milliseconds + (milliseconds % 1000 == 0)) / 1000


def due_at(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as it is written into a registry."""
    whole = int(seconds)
    return f"{whole + fraction_of(round((seconds - whole) * 1e6)):.3f}"


class _Adding:
    """Stands in for the connection of a registry, to which RQ writes a whole second."""

    def __init__(self, connection: Any, fraction: float) -> None:
        self._connection = connection
        self._fraction = fraction

    def zadd(self, name: str, mapping: dict[str, float], **options: Any) -> Any:
        """Write the score with its fraction."""
        return self._connection.zadd(name, {key: score + self._fraction for key, score in mapping.items()}, **options)


def use_in_jobs() -> None:
    """Make RQ's registries in this process keep fractions; only for a horse, whose process is ours."""
    global _patched
    if _patched:
        return
    _patched, inherited = True, ScheduledJobRegistry.schedule

    def schedule(self: Any, job: Any, scheduled_datetime: datetime, pipeline: Any = None, **kwargs: Any) -> Any:
        connection, fraction = self.connection, fraction_of(scheduled_datetime.microsecond)
        self.connection = _Adding(connection, fraction)
        # RQ 2 writes to the connection in any case, RQ 3 to the pipeline.
        adding: Any = None if pipeline is None else _Adding(pipeline, fraction)
        try:
            return inherited(self, job, scheduled_datetime, pipeline=adding, **kwargs)
        finally:
            self.connection = connection

    ScheduledJobRegistry.schedule = schedule  # type: ignore[method-assign]


def add_fraction(connection: Any, key: str, job_id: str, moment: datetime) -> None:
    """Add the fraction that RQ has cut off to the due time that it has just written, if the entry still exists.

    This serves processes that are not ours. If the command is lost, the time stays whole, and the job runs a second
    later.
    """
    if not _patched:
        with contextlib.suppress(RedisError):  # the job is scheduled, whatever becomes of this
            connection.zadd(key, {job_id: fraction_of(moment.microsecond)}, xx=True, incr=True)
