"""Checks the arguments of rq-scheduler's methods that write its schedule, which itself would fail too late."""

from __future__ import annotations

import warnings
from datetime import datetime, timezone
from typing import Any

from rq.job import Job

from ..foreign import names_key, plain
from ..queue.numbers import check_floats, check_interval, check_moment, check_numbers
from ..queue.older import forget_older
from ..signing.attach import attach
from ..signing.policy import current
from ..signing.serializer import sealed
from ..store.keys import SCHEDULED_JOBS

with warnings.catch_warnings():  # of dateutil before 2.9, on which rq-scheduler stands, on Python 3.12
    warnings.simplefilter("ignore", DeprecationWarning)
    import rq_scheduler

_names_schedule = names_key(SCHEDULED_JOBS)


class CheckedScheduler(rq_scheduler.Scheduler):  # type: ignore[misc] # it has no annotations
    """rq-scheduler's ``Scheduler``, which refuses times that are never due, and names a schedule of another type."""

    def _create_job(self, func: Any, *args: Any, commit: bool = True, **kwargs: Any) -> Job:
        check_floats(kwargs)
        # The job is written before its place in the schedule, and would stay if the schedule is of another type.
        self.connection.zcard(SCHEDULED_JOBS)
        job: Job = super()._create_job(func, *args, commit=False, **kwargs)
        check_numbers(job)
        # Half of a character cannot be written to Redis, and the job is not to be lost for it.
        job.description = plain(job.description)
        policy = current()
        if policy.keys is not None:
            job.serializer = sealed(job.serializer)
            if job.timeout is None:
                # What moves it would set that, and the signature covers it.
                job.timeout = self.get_queue_for_job(job)._default_timeout
            attach(job, policy)
            forget_older(job)
        if commit:
            job.save()
        return job

    @_names_schedule
    def enqueue_at(self, scheduled_time: datetime, func: Any, *args: Any, **kwargs: Any) -> Job:
        """Schedule a call for a time, see rq-scheduler."""
        check_moment("the due time", _in_utc(scheduled_time))
        job: Job = super().enqueue_at(scheduled_time, func, *args, **kwargs)
        return job

    @_names_schedule
    def schedule(self, scheduled_time: datetime, func: Any, *args: Any, **kwargs: Any) -> Job:
        """Schedule a call, once or at intervals, see rq-scheduler."""
        check_moment("the due time", _in_utc(scheduled_time))
        interval = kwargs.get("interval")
        if interval is not None:
            check_interval("interval", interval)
        job: Job = super().schedule(scheduled_time, func, *args, **kwargs)
        return job

    @_names_schedule
    def change_execution_time(self, job: Job, date_time: datetime) -> None:
        """Give a scheduled job another time, see rq-scheduler."""
        check_moment("the due time", _in_utc(date_time))
        super().change_execution_time(job, date_time)

    cancel = _names_schedule(rq_scheduler.Scheduler.cancel)
    count = _names_schedule(rq_scheduler.Scheduler.count)
    __contains__ = _names_schedule(rq_scheduler.Scheduler.__contains__)


def _in_utc(moment: datetime) -> datetime:
    """Return a time as rq-scheduler reads it: one without a zone is UTC."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
