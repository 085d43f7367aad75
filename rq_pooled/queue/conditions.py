"""What may speak against an enqueue, asked in the step that enqueues: a spent key, the same call, a full queue.

``AdmittingQueue`` stands between ``rq.Queue`` and our ``Queue``. A job that asks for any of this carries an
``Admission`` while it is being enqueued, and ``enqueue.lua`` takes the place of RQ's own write. Only what users enqueue
carries one: retries, repeats, dependents and scheduled jobs that are due always get in.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import rq
from redis.client import Pipeline
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job, JobStatus
from rq.queue import EnqueueData
from rq.registry import ScheduledJobRegistry
from rq.scripts import _build_hset_args
from rq.utils import as_text, now, utcformat

from ..durations import LONGEST, parse_duration
from ..errors import AlreadyQueued, AlreadySpent, ConfigurationError, QueueFull
from ..rq_api import RQ3
from ..rq_version import check_keys
from ..store.client_scripts import run_script
from ..store.due import add_fraction
from ..store.inert_jobs import fetch_inert
from ..store.once import FIELD, OF_FIELD, TTL_FIELD, once_key
from ..store.scripts import shared_scripts
from .limits import Limit, declare_limit, make_limit
from .unique import call_key

#: Longest text of a spent-once key.
_MAX_KEY = 1000
#: How often an enqueue is tried again because the job in its way went away in that moment.
_ATTEMPTS = 5

#: Limits that this process has declared, by connection pool.
_declared: weakref.WeakKeyDictionary[Any, set[tuple[str, Limit]]] = weakref.WeakKeyDictionary()
#: Jobs that are collected for one step, as (job, at front).
_batch: ContextVar[list[tuple[Job, bool]] | None] = ContextVar("_batch", default=None)


@dataclass(frozen=True)
class Admission:
    """What one enqueue asks for."""

    once: str | None = None
    #: Seconds, 0 for ever.
    once_ttl: int = 0
    #: Seconds, 0 if it does not matter.
    unique_for: float = 0.0
    #: Return the job that stands in the way, instead of raising.
    returns: bool = True
    max_length: int | None = None


_asked: ContextVar[Admission | None] = ContextVar("_asked", default=None)
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

    # -- what is asked for ---------------------------------------------------------------------------------------

    def enqueue(self, f: Any, *args: Any, **kwargs: Any) -> Job:
        """Enqueue a call; see the class for what is taken besides RQ's arguments."""
        with _asking(kwargs):
            return super().enqueue(f, *args, **kwargs)

    def enqueue_call(self, func: Any, *args: Any, **kwargs: Any) -> Job:
        """Enqueue a call, see ``enqueue``."""
        with _asking(kwargs):
            return super().enqueue_call(func, *args, **kwargs)

    def enqueue_at(self, datetime: datetime, f: Any, *args: Any, **kwargs: Any) -> Job:
        """Schedule a call, see ``enqueue``; ``unique_for`` is refused, it is about jobs that are queued."""
        with _asking(kwargs):
            job: Job = super().enqueue_at(datetime, f, *args, **kwargs)
            return job

    def create_job(self, *args: Any, **kwargs: Any) -> Job:
        """Create a job as RQ does, with what the running ``enqueue`` asks for."""
        job = super().create_job(*args, **kwargs)
        _check_times(job)
        limit: Any = _limited.get()
        if limit is not None:
            limited: Any = job
            limited.rate_limit_key, limited.rate_limit_concurrency = limit.key, limit.concurrency
        asked = _asked.get()
        if asked is not None:
            _asked.set(
                None
            )  # for one job: with is_async=False it runs inside the block, and what it enqueues is its own
            _attach(job, asked)
        return job

    # -- enqueueing ----------------------------------------------------------------------------------------------

    def enqueue_job(
        self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False, unique: bool = False
    ) -> Job:
        """Enqueue a job, if nothing speaks against it."""
        self._declare_limit()
        _check_times(job)
        admission = _admission_of(job)
        if self.max_length is not None:
            admission = replace(admission or Admission(), max_length=self.max_length)
        if admission is None or not self._is_async:
            return super().enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        check_keys((type(self), type(job)))
        if pipeline is not None and (admission.unique_for or admission.max_length is not None):
            raise ConfigurationError(
                "unique_for and max_length cannot be decided inside a pipeline: enqueue without one"
            )
        if admission.unique_for and job._dependency_ids:
            raise ConfigurationError("unique_for cannot be combined with depends_on: leave out one of them")
        if admission.once is not None and (pipeline is not None or job._dependency_ids):
            earlier = self._spender(admission)
            if earlier is not None:
                return earlier
        job._rq_pooled_admission = admission  # type: ignore[attr-defined]
        try:
            return super().enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        finally:
            del job._rq_pooled_admission  # type: ignore[attr-defined]

    def schedule_job(self, job: Job, datetime: datetime, pipeline: Pipeline | None = None, unique: bool = False) -> Job:
        """Schedule a job, unless its key has been spent."""
        self._declare_limit()
        _check_times(job)
        admission = _admission_of(job)
        if admission is not None:
            if admission.unique_for:
                raise ConfigurationError("unique_for is for jobs that are enqueued now: leave it out of enqueue_at")
            earlier = self._spender(admission)
            if earlier is not None:
                return earlier
        # RQ writes whole seconds; added to them, since RQ alone knows what a time without a zone means.
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
        """Enqueue many jobs; with ``max_length`` or ``rate_limit`` all that have no dependencies or none, in one
        step.
        """
        self._declare_limit()
        if rate_limit is not None:
            self._check_limited(rate_limit, pipeline)
        elif self.max_length is None or not self._is_async:
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
            if batch:
                moment = now()
                verdict, words = self._ask(Admission(max_length=self.max_length), batch, replace=True, moment=moment)
                if verdict == "full":
                    raise self._full(int(words[0]), len(batch))
                for (job, _), status in zip(batch, words):
                    _note_status(job, status, moment)
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
        # RQ's enqueue_many passes by the limits of jobs.
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
        admission: Admission | None = job.__dict__.get("_rq_pooled_admission")
        if admission is None or pipeline is not None:
            return super()._enqueue_async_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        self._prepare_for_queue(job)
        return self._admit(job, admission, at_front, replace=not unique)

    def _enqueue_rate_limited_job(self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False) -> Job:
        """Enqueue a job that has a limit, in one step where RQ takes two; RQ 3 calls it.

        In between, a process that dies would leave its job waiting until another one of its limit ends.
        """
        if pipeline is not None or getattr(self.connection, "recording", False):
            parent: Any = super()
            enqueued: Job = parent._enqueue_rate_limited_job(job, pipeline=pipeline, at_front=at_front)
            return enqueued
        is_new = job.get_status(refresh=False) != JobStatus.DEFERRED
        self._prepare_for_queue(job)
        job._status, job.enqueued_at = JobStatus("rate_limited"), None
        if at_front:
            job.enqueue_at_front = True
        admission: Admission = job.__dict__.get("_rq_pooled_admission") or Admission()
        try:
            return self._admit(job, admission, at_front, replace=not is_new)
        except DuplicateJobError:
            # As in Queue._enqueue_async_job: it may have been sent twice, and then is there; else it is replaced.
            written, status = self.connection.hmget(job.key, "created_at", "status")
            if as_text(written or b"") == utcformat(job.created_at) and status in (b"queued", b"rate_limited"):
                job._status = JobStatus(as_text(status))
                return job
            return self._admit(job, admission, at_front, replace=True)

    def _admit(self, job: Job, admission: Admission, at_front: bool, replace: bool) -> Job:
        """Enqueue a job if nothing speaks against it; return it, or the one that stands in its way."""
        for _ in range(_ATTEMPTS):
            moment = now()
            verdict, words = self._ask(admission, [(job, at_front)], replace=replace, moment=moment)
            word = words[0] if words else ""
            if verdict == "exists":
                raise DuplicateJobError(f"Job with ID '{job.id}' already exists")
            if verdict == "full":
                raise self._full(int(word), 1)
            if verdict == "spent":
                return self._earlier(admission, word)
            if verdict != "unique":
                _note_status(job, word, moment)
                return job
            if not admission.returns:
                break
            try:
                return fetch_inert(self.job_class, word, self.connection, self.serializer)
            except NoSuchJobError:  # it ended in this moment and was not kept: then nothing is in the way any more
                continue
        raise AlreadyQueued(
            f"job {word} calls {job.func_name} with the same arguments and is queued or running: not enqueued", word
        )

    def _ask(
        self, admission: Admission, jobs: list[tuple[Job, bool]], replace: bool, moment: datetime
    ) -> tuple[str, list[str]]:
        """Run enqueue.lua; return its verdict and what belongs to it."""
        command = shared_scripts().enqueue(
            self.key,
            admission.max_length,
            replace,
            None if admission.once is None else once_key(admission.once),
            call_key(jobs[0][0]) if admission.unique_for else None,
            admission.unique_for,
            utcformat(moment),
            [(job.id, at_front, job.ttl, _build_hset_args(job), _limit_of(job)) for job, at_front in jobs],
        )
        verdict, *more = map(as_text, run_script(self.connection, command))
        return verdict, more

    # -- what stands in the way ----------------------------------------------------------------------------------

    def _full(self, length: int, more: int) -> QueueFull:
        assert self.max_length is not None
        what = "the job was" if more == 1 else f"the {more} jobs were"
        return QueueFull(
            f"queue {self.name!r} has {length} jobs and takes at most {self.max_length}: {what} not enqueued; wait for "
            "the "
            "workers, or raise max_length",
            self.name,
            length,
            self.max_length,
        )

    def _spender(self, admission: Admission) -> Job | None:
        """Return the job that spent the key, before anything is written; claim.lua decides again."""
        if admission.once is None:
            return None
        spender = self.connection.get(once_key(admission.once))
        return None if spender is None else self._earlier(admission, as_text(spender))

    def _earlier(self, admission: Admission, job_id: str) -> Job:
        """Return the job that spent the key, or raise AlreadySpent."""
        gone = ""
        if admission.returns:
            try:
                return fetch_inert(self.job_class, job_id, self.connection, self.serializer)
            except NoSuchJobError:
                gone = ", which is not kept any more"
        assert admission.once is not None
        raise AlreadySpent(
            f"the key {admission.once!r} was spent by job {job_id}{gone}: not enqueued", admission.once, job_id
        )

    def _declare_limit(self) -> None:
        """Write the limit to Redis, once per process: an operator's goes before it, see queue/limits.py."""
        if self._limit is None:
            return
        declared = _declared.setdefault(self.connection.connection_pool, set())
        if (self.name, self._limit) not in declared:
            declare_limit(self.connection, self.name, self._limit)
            declared.add((self.name, self._limit))


def _check_times(job: Job) -> None:
    """Refuse what the server refuses only once the job is there: an expiry whose milliseconds exceed 64 bits."""
    for name in ("ttl", "result_ttl", "failure_ttl", "timeout"):
        seconds = getattr(job, name)
        if seconds is not None and not seconds <= LONGEST:
            raise ConfigurationError(
                f"{name} is {seconds}: at most {LONGEST} seconds (100 years) can be kept; leave ttl out and set "
                "result_ttl, "
                "failure_ttl or timeout to -1 for ever"
            )


def _note_status(job: Job, status: str, moment: datetime) -> None:
    """Have a job know what the script has written of it."""
    job._status = JobStatus(status)
    if job.enqueued_at is None and job._status == JobStatus.QUEUED:
        job.enqueued_at = moment


def _limit_of(job: Job) -> tuple[str, int]:
    """Return the key of a job's limit, and how many jobs it lets in; RQ 3's."""
    key, concurrency = getattr(job, "rate_limit_key", None), getattr(job, "rate_limit_concurrency", None)
    return (key, concurrency) if key and concurrency else ("", 0)


def _admission_of(job: Job) -> Admission | None:
    found: Admission | None = job.__dict__.get("_rq_pooled_asked")
    return found


def _attach(job: Job, asked: Admission) -> None:
    """Note on the job what is asked for; a spent-once key is written with it whenever it is saved, in whatever way."""
    job._rq_pooled_asked = asked  # type: ignore[attr-defined]
    if asked.once is None:
        return
    fields, to_dict = {FIELD: asked.once, TTL_FIELD: asked.once_ttl}, job.to_dict

    # On the object: job classes are the user's.
    def with_key(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = to_dict(*args, **kwargs)
        return {**found, **fields, OF_FIELD: found["created_at"]}

    job.to_dict = with_key  # type: ignore[method-assign]


@contextmanager
def _asking(kwargs: dict[str, Any]) -> Iterator[None]:
    """Take our arguments out of ``kwargs``; the job that is created inside the block asks for them."""
    given = {name: kwargs.pop(name) for name in ("once", "once_ttl", "unique_for", "on_duplicate") if name in kwargs}
    if not given:
        yield
        return
    token = _asked.set(_read(**given))
    try:
        yield
    finally:
        _asked.reset(token)


def _read(
    once: Any = None, once_ttl: Any = None, unique_for: Any = None, on_duplicate: str = "return"
) -> Admission | None:
    if on_duplicate not in ("return", "raise"):
        raise ConfigurationError(f"on_duplicate is {on_duplicate!r}: it is 'return' or 'raise'")
    if once is None and unique_for is None:
        if once_ttl is not None:
            raise ConfigurationError("once_ttl says how long a key stays spent: give the key with once=")
        return None
    if once is not None and not 0 < len(str(once)) <= _MAX_KEY:
        raise ConfigurationError(f"once is a key of 1 to {_MAX_KEY} characters, such as 'order-42'")
    ttl = 0.0 if once_ttl is None else parse_duration(once_ttl, "once_ttl")
    if once_ttl is not None and ttl < 1:
        raise ConfigurationError(
            f"once_ttl is {once_ttl}: it must be at least 1 second; leave it out to keep the key for ever"
        )
    unique = 0.0 if unique_for is None else parse_duration(unique_for, "unique_for")
    if unique_for is not None and unique < 0.001:
        raise ConfigurationError(f"unique_for is {unique_for}: it must be more than 0 seconds")
    return Admission(None if once is None else str(once), round(ttl), unique, on_duplicate == "return")
