"""Checks, in the step that enqueues, what may refuse a job: a spent key, the same call, a full queue.

It is long since each way to enqueue has its conditions, and all share one way to the script.
``AdmittingQueue`` stands between ``rq.Queue`` and our ``Queue``. A job with such a condition carries an ``Asked`` while
it is being enqueued, and ``enqueue.lua`` replaces RQ's own write. Only jobs that users enqueue carry one: retries,
repeats, dependents and due scheduled jobs always get in.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime
from typing import Any

import rq
from redis.client import Pipeline
from rq.exceptions import DuplicateJobError
from rq.job import Job, JobStatus
from rq.queue import EnqueueData
from rq.registry import ScheduledJobRegistry
from rq.utils import now, utcformat

from ..errors import AlreadyQueued, AlreadySpent, ConfigurationError
from ..foreign import MAX_VALUE, names_key, printable
from ..rq_api import RQ3
from ..rq_version import check_keys
from ..store.due import add_fraction
from ..store.keys import once_key
from ..wire import text
from . import many
from .asked import Asked, asked_by, asking, attach_asked
from .handlers import is_recording
from .limits import Limit, declare_limit, make_limit
from .numbers import check_enqueued, check_floats, check_numbers
from .verdict import GONE, ask, earlier_job, full, note_status

#: How often an enqueue is tried because the earlier job in its way ends at that moment.
_ATTEMPTS = 5

#: Limits that this process has declared, by connection pool.
_declared: weakref.WeakKeyDictionary[Any, set[tuple[str, Limit]]] = weakref.WeakKeyDictionary()
#: Jobs that are collected for one step, as (job, at front).
_batch: ContextVar[list[tuple[Job, bool]] | None] = ContextVar("_batch", default=None)
#: The limit of all jobs that are being created by ``enqueue_many``.
_limited: ContextVar[Any] = ContextVar("_limited", default=None)


class AdmittingQueue(rq.Queue):
    """An ``rq.Queue`` with limits, spent-once keys, unique calls and backpressure; see our ``Queue``."""

    def __init__(
        self,
        *args: Any,
        limit: str | None = None,
        max_running: int | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        if max_length is not None and (type(max_length) is not int or max_length < 0):
            raise ConfigurationError(f"max_length is {max_length}: it must be a whole number of at least 0")
        self._limit = make_limit(limit, max_running) if limit is not None or max_running is not None else None
        self.max_length = max_length
        super().__init__(*args, **kwargs)

    # -- arguments -----------------------------------------------------------------------------------------------

    def enqueue(self, f: Any, *args: Any, **kwargs: Any) -> Job:
        """Enqueue a call; see the class for the arguments that RQ does not have."""
        with asking(kwargs):
            return super().enqueue(f, *args, **kwargs)

    def enqueue_call(self, func: Any, *args: Any, **kwargs: Any) -> Job:
        """Enqueue a call, see ``enqueue``."""
        with asking(kwargs):
            return super().enqueue_call(func, *args, **kwargs)

    def enqueue_at(self, datetime: datetime, f: Any, *args: Any, **kwargs: Any) -> Job:
        """Schedule a call, see ``enqueue``; ``unique_for`` is refused, because it is about queued jobs."""
        with asking(kwargs):
            job: Job = super().enqueue_at(datetime, f, *args, **kwargs)
            return job

    def create_job(self, *args: Any, **kwargs: Any) -> Job:
        """Create a job as RQ does, with our arguments of the running ``enqueue``."""
        check_floats(kwargs)
        job = super().create_job(*args, **kwargs)
        check_numbers(job)
        limit: Any = _limited.get()
        if limit is not None:
            limited: Any = job
            limited.rate_limit_key, limited.rate_limit_concurrency = limit.key, limit.concurrency
        attach_asked(job)
        return job

    # -- enqueueing ----------------------------------------------------------------------------------------------

    def enqueue_job(
        self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False, unique: bool = False
    ) -> Job:
        """Enqueue a job unless a condition refuses it."""
        self._declare_limit()
        check_enqueued(self.connection, job)
        asked = asked_by(job)
        if self.max_length is not None:
            asked = replace(asked or Asked(), max_length=self.max_length)
        if asked is None or not self._is_async:
            return super().enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        check_keys((type(self), type(job)))
        if pipeline is not None and (asked.unique_for or asked.max_length is not None):
            raise ConfigurationError(
                "unique_for and max_length cannot be decided inside a pipeline: enqueue without one"
            )
        if asked.unique_for and job._dependency_ids:
            raise ConfigurationError("unique_for cannot be combined with depends_on: leave out one of them")
        if asked.once is not None and (pipeline is not None or job._dependency_ids):
            earlier = self._spender(asked)
            if earlier is not None:
                return earlier
        job._rq_pooled_admission = asked  # type: ignore[attr-defined]
        try:
            return super().enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        finally:
            del job._rq_pooled_admission  # type: ignore[attr-defined]

    def schedule_job(self, job: Job, datetime: datetime, pipeline: Pipeline | None = None, unique: bool = False) -> Job:
        """Schedule a job, unless its key has been spent."""
        self._declare_limit()
        check_enqueued(self.connection, job, datetime)
        asked = asked_by(job)
        if asked is not None:
            if asked.unique_for:
                raise ConfigurationError("unique_for is for jobs that are enqueued now: leave it out of enqueue_at")
            earlier = self._spender(asked)
            if earlier is not None:
                return earlier
        # RQ writes whole seconds. The fraction is added to them, since RQ alone knows what a time without a zone means.
        scheduled = super().schedule_job(job, datetime, pipeline=pipeline, unique=unique)
        key = ScheduledJobRegistry.key_template.format(self.name)
        add_fraction(self.connection if pipeline is None else pipeline, key, job.id, datetime)
        return scheduled

    def enqueue_many(
        self,
        job_datas: Iterable[EnqueueData],
        pipeline: Pipeline | None = None,
        group_id: str | None = None,
        *,
        rate_limit: Any = None,
    ) -> list[Job]:
        """Enqueue many jobs; ``max_length`` and ``rate_limit`` take all without dependencies in one step, or none."""
        self._declare_limit()
        if rate_limit is not None:
            self._check_limited(rate_limit, pipeline)
        elif not self._is_async or (self.max_length is None and (pipeline is not None or not many.may_write(self))):
            return super().enqueue_many(job_datas, pipeline=pipeline, group_id=group_id)
        if pipeline is not None:
            raise ConfigurationError(
                "max_length cannot be decided inside a pipeline: enqueue without one; an rq.Group always uses one, so "
                "enqueue its jobs through a Queue without max_length"
            )
        check_keys((type(self), self.job_class))
        datas = list(job_datas)
        batch: list[tuple[Job, bool]] = []
        token, limited = _batch.set(batch), _limited.set(rate_limit)
        try:
            jobs = super().enqueue_many([data for data in datas if not data.depends_on], group_id=group_id)
            _batch.set(None)
            if self.max_length is None and rate_limit is None:
                many.write(self, batch)
            elif batch:
                moment = now()
                verdict, words = ask(self, Asked(max_length=self.max_length), batch, replace=True, moment=moment)
                if verdict == "full":
                    raise full(self.name, int(words[0]), self.max_length, len(batch))
                for (job, _), status in zip(batch, words):
                    note_status(job, status, moment)
            dependents = [data for data in datas if data.depends_on]
            return jobs + (super().enqueue_many(dependents, group_id=group_id) if dependents else [])
        finally:
            _limited.reset(limited)
            _batch.reset(token)

    def _check_limited(self, rate_limit: Any, pipeline: Pipeline | None) -> None:
        """Refuse what RQ refuses for a single job with a limit."""
        if not RQ3 or not hasattr(rate_limit, "concurrency"):
            raise ConfigurationError(f"rate_limit is {rate_limit!r}: give an rq.RateLimit, which needs RQ 3")
        if pipeline is not None:
            raise ValueError("rate-limited jobs cannot be enqueued with a pipeline")
        if not self._is_async:
            raise ValueError("rate_limit is not supported on synchronous queues (is_async=False)")

    def _enqueue_job(
        self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False, unique: bool = False
    ) -> Job:
        # RQ's enqueue_many ignores the limits of jobs.
        if getattr(job, "has_rate_limit", False) and self._is_async and _batch.get() is None:
            return self._enqueue_rate_limited_job(job, pipeline=pipeline, at_front=at_front)
        return super()._enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)

    def _enqueue_async_job(
        self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False, unique: bool = False
    ) -> Job:
        batch = _batch.get()
        if batch is not None:
            self._prepare_for_queue(job)
            if getattr(job, "has_rate_limit", False):
                job._status, job.enqueued_at = JobStatus("rate_limited"), None
            batch.append((job, at_front))
            return job
        asked: Asked | None = job.__dict__.get("_rq_pooled_admission")
        if asked is None or pipeline is not None:
            return super()._enqueue_async_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        self._prepare_for_queue(job)
        return self._admit(job, asked, at_front, replace=not unique)

    def _enqueue_rate_limited_job(self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False) -> Job:
        """Enqueue a job that has a limit, in one step where RQ takes two; RQ 3 calls this.

        A process that dies between two steps would leave its job waiting until another job of the limit ends.
        """
        if pipeline is not None or is_recording(self.connection):
            parent: Any = super()
            enqueued: Job = parent._enqueue_rate_limited_job(job, pipeline=pipeline, at_front=at_front)
            return enqueued
        is_new = job.get_status(refresh=False) != JobStatus.DEFERRED
        self._prepare_for_queue(job)
        job._status, job.enqueued_at = JobStatus("rate_limited"), None
        if at_front:
            job.enqueue_at_front = True
        asked: Asked = job.__dict__.get("_rq_pooled_admission") or Asked()
        try:
            return self._admit(job, asked, at_front, replace=not is_new)
        except DuplicateJobError:
            # As in Queue._enqueue_async_job, the script may have been sent twice, so the job may be ours; else it is
            # replaced.
            written, status = self.connection.hmget(job.key, "created_at", "status")
            if text(written or b"") == utcformat(job.created_at) and status in (b"queued", b"rate_limited"):
                job._status = JobStatus(text(status))
                return job
            return self._admit(job, asked, at_front, replace=True)

    def _admit(self, job: Job, asked: Asked, at_front: bool, replace: bool) -> Job:
        """Enqueue a job unless a condition refuses it; return it, or the earlier job in its way."""
        why = ""
        for _ in range(_ATTEMPTS):
            moment = now()
            verdict, words = ask(self, asked, [(job, at_front)], replace=replace, moment=moment)
            word = words[0] if words else ""
            if verdict == "exists":
                raise DuplicateJobError(f"Job with ID '{job.id}' already exists")
            if verdict == "full":
                raise full(self.name, int(word), asked.max_length, 1)
            if verdict == "spent":
                return self._earlier(asked, word)
            if verdict != "unique":
                note_status(job, word, moment)
                return job
            if not asked.returns:
                break
            earlier = earlier_job(self, word)
            if isinstance(earlier, Job):
                return earlier
            # If the earlier job has just ended, it is no longer in the way.
            if earlier != GONE:
                why = f", and {earlier}"
                break
        raise AlreadyQueued(
            f"job {printable(word, MAX_VALUE)} calls {job.func_name} with the same arguments and is queued or running"
            f"{why}: not enqueued",
            word,
        )

    # -- earlier jobs --------------------------------------------------------------------------------------------

    def _spender(self, asked: Asked) -> Job | None:
        """Return the job that spent the key, before anything is written; claim.lua decides again."""
        if asked.once is None:
            return None
        key = once_key(asked.once)
        with names_key(key):
            spender = self.connection.get(key)
        return None if spender is None else self._earlier(asked, text(spender))

    def _earlier(self, asked: Asked, job_id: str) -> Job:
        """Return the job that spent the key, or raise AlreadySpent."""
        earlier = earlier_job(self, job_id) if asked.returns else ""
        if isinstance(earlier, Job):
            return earlier
        assert asked.once is not None
        shown = printable(job_id, MAX_VALUE) + (earlier and f", which {earlier}")
        raise AlreadySpent(f"the key {asked.once!r} was spent by job {shown}: not enqueued", asked.once, job_id)

    def _declare_limit(self) -> None:
        """Write the limit to Redis, once per process; an operator's limit overrides it, see queue/limits.py."""
        if self._limit is None:
            return
        declared = _declared.setdefault(self.connection.connection_pool, set())
        if (self.name, self._limit) not in declared:
            declare_limit(self.connection, self.name, self._limit)
            declared.add((self.name, self._limit))
