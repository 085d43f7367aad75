"""``Queue``: rq.Queue on the shared pool, whose enqueue either worked, did not, or says that nobody knows.

What RQ 2.11, 2.12 and 3.0 send, in order, for one enqueue without a pipeline, and what is known when it breaks off
there:

1. ``depends_on`` only: WATCH and reads, then MULTI: the job as deferred, its dependencies. Broken off: unknown. From
here
   on the job exists.
2. SADD of the queue's name, INFO of the server. Without ``depends_on`` the job is still nowhere.
3. The job and its place in the queue, or in the registry of scheduled jobs. Broken off: unknown.

A job with a limit of RQ 3 goes its own way at step 3, see queue/conditions.py.

Step 3 is stock RQ's MULTI, or its script for ``unique=True``, which does both only where no job has that id. Here the
script is always tried first: should a request that was given up arrive late, after it was repeated, it changes nothing.
(Stock ``enqueue_at`` also writes its registry outside of its MULTI; the script does not.) Where a job with that id is
there already RQ's MULTI follows, which replaces it, as stock RQ does. Where scripts are refused, RQ's MULTI comes at
once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

import rq
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, ResponseError, WatchError
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.exceptions import DeserializationError, DuplicateJobError, NoSuchJobError
from rq.job import Job, JobStatus, Retry
from rq.queue import EnqueueData
from rq.utils import as_text, now, utcformat

from ..connection.away import LOST
from ..errors import ConfigurationError, EnqueueUnconfirmed, RedisUnavailable, ServerUnreachable
from ..originals import rqs_own
from ..pool.failfast import failing_fast
from ..pool.pool import get_connection
from ..retry.backoff import Backoff, attach
from ..rq_version import check_rq
from ..store.client_scripts import refuses_scripts
from .conditions import AdmittingQueue
from .unique import call_key

#: How many unconfirmed ids a process remembers. An outage that leaves more behind forgets the oldest.
_REMEMBERED = 10_000
_SHOWN = 10
#: Seconds that each further job of ``enqueue_many`` adds to ENQUEUE_DEADLINE.
_TIME_PER_JOB = 0.002
#: Connection errors that are replies of the server: the command was refused, not lost.
_REFUSALS = (AuthenticationError, AuthorizationError, BusyLoadingError)

#: id of a job whose enqueue was not confirmed -> when that enqueue began (UTC, this process's clock, which also writes
#: the job's ``created_at``). Of the process and not of a Queue: web code makes a new Queue for each request.
_unconfirmed: OrderedDict[str, datetime] = OrderedDict()


class Queue(AdmittingQueue):
    """An ``rq.Queue`` whose connection may be left out, and whose enqueue cannot fail silently or double a job.

    Every argument of ``rq.Queue`` works as there. Without a connection the process's pool is used (``get_connection``),
    and an enqueue raises, within ENQUEUE_DEADLINE (in jobs: within POOL_TIMEOUT and the socket timeouts), one of these,
    each of them a RedisUnavailable, a redis ConnectionError:

    * ``RedisUnavailable``: the server could not be used a moment ago (BREAKER_DELAY); the job was not enqueued.
    * ``PoolExhausted``, ``ServerUnreachable``, ``BudgetExceeded``: the job was not enqueued.
    * ``EnqueueUnconfirmed``: the connection was lost before the reply came. The job may have been enqueued. Repeat the
      call with ``job_id=error.job_id``: in this process the job that is there is returned, else it is enqueued. In
      another process pass ``unique=True`` too: RQ then raises DuplicateJobError if the job is there.

    A repeat cannot see a job that has already run and left no trace (``result_ttl=0``). Where the caller gives a
    pipeline, its own ``execute`` tells how it went; with ``is_async=False`` errors are RQ's.

    ``retry`` is for all jobs that are enqueued without one; ``enqueue(..., retry=False)`` then means none.

    Further arguments of the queue: ``limit="10/5s"`` and ``max_running=3``, kept by all workers together
    (docs/limits.md); ``max_length=1000``: an enqueue beyond it raises ``QueueFull``. Of ``enqueue``
    (docs/once-and-unique.md): ``once="order-42"`` with ``once_ttl="30d"``, ``unique_for=60``, and
    ``on_duplicate="raise"`` for ``AlreadySpent`` and ``AlreadyQueued`` instead of the earlier job. With
    ``is_async=False`` none of these has an effect.

    Raises:
        ConfigurationError: no connection is given and the settings cannot be used; ``retry`` is no ``rq.Retry``.
        RQUnsupported: a major version of RQ that is not known here is installed.
    """

    def __init__(
        self,
        name: str = "default",
        connection: Redis | None = None,
        *args: Any,
        retry: Retry | None = None,
        **kwargs: Any,
    ) -> None:
        check_rq()
        if retry is not None and not isinstance(retry, Retry):
            raise ConfigurationError(f"Queue(retry={retry!r}): give a Backoff or an rq.Retry")
        if "url" in kwargs or isinstance(connection, str):
            raise ConfigurationError(
                f"Queue({name!r}) takes no URL: set RQ_POOLED_URL, or pass connection=redis.Redis.from_url(…)"
            )
        super().__init__(name, get_connection() if connection is None else connection, *args, **kwargs)
        self._retry = retry

    def create_job(self, *args: Any, **kwargs: Any) -> Job:
        """Create a job as RQ does, with this queue's ``retry`` where none is given."""
        if kwargs.get("retry") is None and self._retry is not None:
            kwargs["retry"] = self._retry
        retry = kwargs.get("retry")
        job = super().create_job(*args, **kwargs)
        if isinstance(retry, Backoff):
            attach(job, retry)
        return job

    def enqueue_job(
        self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False, unique: bool = False
    ) -> Job:
        """Enqueue a job, or return the one that an unconfirmed call with this id has enqueued; see the class."""
        _check_unique(job, unique)
        # Keywords: Sentry's integration replaces rq's method by one that takes nothing else.
        if pipeline is not None or not self._is_async:
            return super().enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        with self._confirming([job.id], job):
            return self._landed(job) or super().enqueue_job(job, pipeline=None, at_front=at_front, unique=unique)

    def schedule_job(
        self,
        job: Job,
        datetime: datetime,
        pipeline: Pipeline | None = None,
        unique: bool = False,
    ) -> Job:
        """Schedule a job, or return the one that an unconfirmed call with this id has scheduled; see the class."""
        _check_unique(job, unique)
        if pipeline is not None:
            return super().schedule_job(job, datetime, pipeline=pipeline, unique=unique)
        with self._confirming([job.id], job):
            landed = self._landed(job)
            if landed is not None:
                return landed
            if unique or not refuses_scripts(self.connection):
                try:
                    return super().schedule_job(job, datetime, unique=True)
                except DuplicateJobError:
                    if unique:
                        raise
                except ResponseError as error:
                    if unique or not refuses_scripts(self.connection, error):
                        raise
            return super().schedule_job(job, datetime)

    def enqueue_many(
        self,
        job_datas: Iterable[EnqueueData],
        pipeline: Pipeline | None = None,
        group_id: str | None = None,
        *,
        rate_limit: Any = None,
    ) -> list[Job]:
        """Enqueue many jobs in one MULTI, and those with dependencies after it; see ``rq.Queue.enqueue_many``.

        Args:
            rate_limit: an ``rq.RateLimit`` (RQ 3) that all of them share; they are enqueued in one script then.

        Raises:
            EnqueueUnconfirmed: all, some or none of the jobs in its ``job_ids`` may have been enqueued. Repeat with
                ``prepare_data(..., job_id=...)`` for each: those that are there are returned as they are.
        """
        if pipeline is not None or not self._is_async:
            return super().enqueue_many(job_datas, pipeline=pipeline, group_id=group_id, rate_limit=rate_limit)
        # The ids are chosen here, not in RQ, so that an error can name them.
        datas = [data if data.job_id else data._replace(job_id=str(uuid4())) for data in job_datas]
        with self._confirming([data.job_id for data in datas], steps=any(data.depends_on for data in datas)):
            doubtful = [self._call_of(data) for data in datas if data.job_id in _unconfirmed]
            landed = [job for job in map(self._landed, doubtful) if job is not None]
            there = {job.id for job in landed}
            missing = [data for data in datas if data.job_id not in there]
            return landed + (super().enqueue_many(missing, group_id=group_id, rate_limit=rate_limit) if missing else [])

    def setup_dependencies(self, job: Job, pipeline: Pipeline | None = None) -> Job:
        """Do step 1 of the module's docstring, and start again only where another client changed a dependency.

        Calls rq's method with a pipeline of its own, for two reasons. Without one it reads the dependencies over a
        second connection while the first one watches them: callers that together hold all connections of a bounded pool
        would wait for each other. And while watching, redis-py turns a lost connection into a WatchError, too: RQ would
        send a MULTI that may have been done once more.
        """
        if not job._dependency_ids:
            return super().setup_dependencies(job, pipeline=pipeline)
        if pipeline is not None:
            with _asking_over(pipeline, job):
                return super().setup_dependencies(job, pipeline=pipeline)
        # What an instrumentation has put around rq's method sees one call, whatever comes in between.
        setup = super().setup_dependencies
        own = rqs_own(rq.Queue, "setup_dependencies")
        status = job.get_status(refresh=False)
        while True:
            with _watching(self.connection) as pipe:
                try:
                    with _asking_over(pipe, job):
                        setup(job, pipeline=pipe)
                except BaseException as error:
                    job._status = status  # nothing was sent
                    if not isinstance(error, WatchError):
                        raise
                    if _is_lost(error):
                        raise ServerUnreachable(f"the connection was lost: {error.__context__}") from error
                    continue
                if job.get_status(refresh=False) != JobStatus.DEFERRED:
                    return job
                try:
                    pipe.execute()
                    return job
                except WatchError as error:
                    if _is_lost(error):
                        raise RedisConnectionError(str(error.__context__)) from error
                    job._status = status
            if own is not None:
                setup = own.__get__(self)

    def _enqueue_async_job(
        self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False, unique: bool = False
    ) -> Job:
        """Do step 3 of the module's docstring."""
        # A deferred job exists already, and RQ's script would leave it in the registry of deferred jobs. What a
        # worker's handler enqueues becomes part of the job's outcome, which holds no scripts.
        recording = getattr(self.connection, "recording", False)
        new = pipeline is None and not unique and job.get_status(refresh=False) != JobStatus.DEFERRED
        if new and not recording and not refuses_scripts(self.connection):
            try:
                return super()._enqueue_async_job(job, at_front=at_front, unique=True)
            except DuplicateJobError:
                # With a connection of the caller's own redis-py may have sent the script twice: then this is our job,
                # told by the time that was set just now. (For schedule_job a second time changes nothing.)
                written = self.connection.hget(job.key, "enqueued_at")
                if job.enqueued_at is not None and as_text(written or b"") == utcformat(job.enqueued_at):
                    return job
            except ResponseError as error:
                # What asks for more than RQ's own enqueue (once, unique_for, max_length) cannot do without a script.
                if "_rq_pooled_admission" in job.__dict__ or not refuses_scripts(self.connection, error):
                    raise
        return super()._enqueue_async_job(job, pipeline=pipeline, at_front=at_front, unique=unique)

    def run_sync(self, job: Job) -> Job:
        """Run a job in this process, as RQ; that it has started is written, too, which RQ forgets to send.

        So a job that runs here is not mistaken for one that was lost on its way to a worker; see queue/rescue.py.
        """
        job.prepare_for_execution("sync", self.connection)  # type: ignore[arg-type] # a pipeline that sends at once
        return super().run_sync(job)

    def _call_of(self, data: EnqueueData) -> Job:
        return self.job_class.create(
            data.func, data.args, data.kwargs, self.connection, id=data.job_id, serializer=self.serializer
        )

    def _landed(self, wanted: Job) -> Job | None:
        """Return the job that an unconfirmed enqueue of the same call left in Redis, if there is one."""
        since = _unconfirmed.get(wanted.id)
        if since is None:
            return None
        try:
            job = self.job_class.fetch(wanted.id, connection=self.connection, serializer=self.serializer)
        except NoSuchJobError:
            return None
        # An older job under this id was there before: the lost enqueue was to replace it, and did not.
        if job.created_at is None or job.created_at < since:
            return None
        # RQ's enqueue_many saves jobs as deferred, registers them later, and enqueues them later still: one that broke
        # off in between would be enqueued by nobody.
        if job.get_status(refresh=False) == JobStatus.DEFERRED and not (
            job in self.deferred_job_registry and not job.dependencies_are_met()
        ):
            return None
        if not _same_call(job, wanted):  # nobody repeated the earlier one, and this is another
            return None
        self.log.info("Job %s was enqueued by an earlier call whose reply was lost", job.id)
        return job

    @contextmanager
    def _confirming(self, ids: list[str], job: Job | None = None, steps: bool = False) -> Iterator[None]:
        """Turn a connection error into what it means for these jobs, and remember those that nobody knows about.

        Args:
            steps: some of the jobs may have been written before the last connection was asked for.
        """
        began = job.created_at if job is not None and job.created_at is not None else now()
        shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
        what, verb = (f"job {shown}", "was") if len(ids) == 1 else (f"jobs {shown}", "were")
        try:
            with failing_fast(self.connection, more_time=(len(ids) - 1) * _TIME_PER_JOB):
                yield
        except _REFUSALS:
            raise
        except LOST as error:
            # Status deferred: step 1 was done, the job waits for its dependencies and will be enqueued.
            saved = steps or (job is not None and job.get_status(refresh=False) == JobStatus.DEFERRED)
            doubtful = saved or any(job_id in _unconfirmed for job_id in ids)
            if isinstance(error, RedisUnavailable) and not doubtful:
                raise type(error)(f"{what} {verb} not enqueued in {self.name!r}: {error}") from error
            for job_id in ids:
                _unconfirmed.setdefault(job_id, began)
                _unconfirmed.move_to_end(job_id)
            while len(_unconfirmed) > max(_REMEMBERED, len(ids)):  # all of these: half a memory would double the rest
                _unconfirmed.popitem(last=False)
            raise EnqueueUnconfirmed(
                f"{what} may have been enqueued in {self.name!r}: the connection was lost before the server confirmed "
                f"it ({error}). Repeat the call with the same job id: that cannot double the job (in another process "
                "pass unique=True, too)",
                ids[0],
                tuple(ids),
            ) from error
        for job_id in ids:
            _unconfirmed.pop(job_id, None)


def _check_unique(job: Job, unique: bool) -> None:
    """Refuse, as RQ does, ``unique=True`` for a job without an id; reading ``job.id`` first would make up one."""
    if unique and not job._id:
        raise ValueError("unique=True requires an explicit job_id")


def _is_lost(error: WatchError) -> bool:
    """Tell whether redis-py raised this WatchError while it handled a lost connection."""
    return isinstance(error.__context__, LOST)


def _same_call(one: Job, other: Job) -> bool:
    if one.data == other.data:
        return True
    try:
        return call_key(one) == call_key(other)  # equal calls may be pickled differently
    except (ConfigurationError, DeserializationError):
        return False


@contextmanager
def _watching(client: Redis) -> Iterator[Pipeline]:
    """Give a pipeline for WATCH; after an error its connection is closed, which ends the WATCH as well.

    redis-py would send UNWATCH instead, and where that fails too, say at the end of a deadline, hide the first error.
    """
    pipe = client.pipeline()
    try:
        yield pipe
    except BaseException:
        pipe.watching = False
        if pipe.connection is not None:
            pipe.connection.disconnect()  # type: ignore[no-untyped-call] # redis-py's
        raise
    finally:
        pipe.reset()


class _Dependency(NamedTuple):
    """As much of a job as RQ asks for of a dependency."""

    status: str | None

    def get_status(self, refresh: bool = False) -> str | None:
        """Return the status as it was read."""
        return self.status


@contextmanager
def _asking_over(pipe: Pipeline, job: Job) -> Iterator[None]:
    """Have RQ read the job's dependencies over the pipeline that watches them; on the object: job classes are the
    user's.
    """
    fetch = job.fetch_dependencies

    def fetch_over_pipe(watch: bool = False, pipeline: Pipeline | None = None) -> list[Any]:
        if pipeline is not pipe:  # an instrumentation asks, too
            return fetch(watch=watch, pipeline=pipeline)
        keys = [job.key_for(job_id) for job_id in job._dependency_ids]
        pipe.watch(*keys)  # type: ignore[no-untyped-call] # redis-py's
        # One by one, because that is how a connection that watches can be asked. A job that is nowhere does not count;
        # one that was only saved has no status yet.
        found: Any = [pipe.hmget(key, "created_at", "status") for key in keys]
        return [_Dependency(as_text(status or b"")) for created, status in found if created or status]

    job.fetch_dependencies = fetch_over_pipe  # type: ignore[method-assign]
    try:
        yield
    finally:
        del job.fetch_dependencies
