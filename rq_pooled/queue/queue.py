"""``Queue``: rq.Queue on the shared pool, whose enqueue either worked, did not, or says that it is in doubt.

RQ 2.11, 2.12 and 3.0 send these steps, in order, for one enqueue without a pipeline. Each step says what is known if
it breaks off:

1. ``depends_on`` only: WATCH and reads, then MULTI: the job as deferred, its dependencies. Broken off: unknown. From
   here on the job exists.
2. SADD of the queue's name, INFO of the server. Without ``depends_on`` the job is still nowhere.
3. The job and its place in the queue, or in the registry of scheduled jobs. Broken off: unknown.

A job without ``depends_on`` that is enqueued now needs one step instead of 2 and 3, see queue/one_step.py.

A job with a limit of RQ 3 takes another step 3, see queue/conditions.py.

Step 3 is stock RQ's MULTI, or its script for ``unique=True``, which writes only if no job has that id. Here the script
is always tried first, because a late request then changes nothing after its repeat. (Stock ``enqueue_at`` also writes
its registry outside of its MULTI; the script does not.) If a job with that id exists, RQ's MULTI follows and replaces
it, as in stock RQ. If scripts are refused, RQ's MULTI is sent at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError
from rq.exceptions import DuplicateJobError
from rq.job import Job, JobStatus, Retry
from rq.queue import EnqueueData
from rq.registry import StartedJobRegistry
from rq.utils import utcformat

from ..config.describing import described
from ..errors import ConfigurationError
from ..foreign import plain
from ..pool.registry import get_connection
from ..retry.backoff import Backoff, attach
from ..rq_version import check_rq
from ..signing.attach import sign_for
from ..signing.policy import current
from ..signing.serializer import sealed
from ..wire import text
from . import one_step
from .conditions import AdmittingQueue
from .confirming import confirming, is_unconfirmed, landed
from .dependencies import asking_over, set_up_watching
from .handlers import is_recording
from .numbers import check_delay
from .older import forget_older
from .refused_scripts import refuses_scripts
from .started import ReadOnlyStartedJobRegistry

#: Jobs of a generator that are enqueued before the next is read.
_READ_AT_ONCE = 1000


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
        self.signing = current()
        self.serializer = sealed(self.serializer)

    @property
    def started_job_registry(self) -> StartedJobRegistry:
        """RQ's registry; with keys or ALLOWED one that leaves abandoned jobs to workers, see queue/started.py."""
        checks = self.signing.keys is not None or self.signing.allowed
        registry = ReadOnlyStartedJobRegistry if checks else StartedJobRegistry
        return registry(queue=self, job_class=self.job_class, serializer=self.serializer)

    def create_job(self, *args: Any, **kwargs: Any) -> Job:
        """Create a job as RQ does, with this queue's ``retry``, and DESCRIBE's description, where none is given."""
        if kwargs.get("retry") is None and self._retry is not None:
            kwargs["retry"] = self._retry
        retry = kwargs.get("retry")
        job = super().create_job(*args, **kwargs)
        # It is the eighth argument.
        if kwargs.get("description") is None and not any(args[7:8]):
            job.description = described(job, args[0] if args else kwargs.get("func")) or job.description
        # Half of a character cannot be written to Redis, and the job is not to be lost for it.
        job.description = plain(job.description)
        if isinstance(retry, Backoff):
            attach(job, retry)
        # The signature is last, because it covers what the others write.
        if sign_for(self, job, created=True):
            forget_older(job)
        return job

    def enqueue_job(
        self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False, unique: bool = False
    ) -> Job:
        """Enqueue a job, or return the one that an unconfirmed call with this id has enqueued; see the class."""
        _check_unique(job, unique)
        if sign_for(self, job):
            forget_older(job)
        # Arguments are passed by keyword, because Sentry's integration replaces rq's method and takes only those.
        if pipeline is not None or not self._is_async:
            return super().enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        with confirming(self.name, self.connection, [job.id], job):
            there = landed(self, job)
            if there is not None:
                return there
            steps = one_step.begin(self, job)
            job = super().enqueue_job(job, pipeline=steps, at_front=at_front, unique=unique)
            one_step.end(steps)
            return job

    def enqueue_in(self, time_delta: timedelta, func: Any, *args: Any, **kwargs: Any) -> Job:
        """Schedule a call for ``time_delta`` from now."""
        check_delay("the delay", time_delta)
        return super().enqueue_in(time_delta, func, *args, **kwargs)

    def schedule_job(
        self,
        job: Job,
        datetime: datetime,
        pipeline: Pipeline | None = None,
        unique: bool = False,
    ) -> Job:
        """Schedule a job, or return the one that an unconfirmed call with this id has scheduled; see the class."""
        _check_unique(job, unique)
        if sign_for(self, job):
            forget_older(job)
        if pipeline is not None:
            return super().schedule_job(job, datetime, pipeline=pipeline, unique=unique)
        with confirming(self.name, self.connection, [job.id], job):
            there = landed(self, job)
            if there is not None:
                return there
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
        """Enqueue many jobs, 250 in one step, and those with dependencies after it; see ``rq.Queue.enqueue_many``.

        Of a generator a thousand jobs are read at a time, and an error names the jobs in doubt: those read before are
        enqueued.

        Args:
            rate_limit: an ``rq.RateLimit`` (RQ 3) that all of them share; they are enqueued in one script then.

        Raises:
            EnqueueUnconfirmed: all, some or none of the jobs in its ``job_ids`` may have been enqueued. Repeat with
                ``prepare_data(..., job_id=...)`` for each: those that are there are returned as they are.
        """
        if pipeline is not None or not self._is_async:
            return super().enqueue_many(job_datas, pipeline=pipeline, group_id=group_id, rate_limit=rate_limit)
        if isinstance(job_datas, Collection):
            return self._enqueue_some(job_datas, group_id, rate_limit)
        source, jobs = iter(job_datas), []
        while some := list(islice(source, _READ_AT_ONCE)):
            jobs += self._enqueue_some(some, group_id, rate_limit)
        return jobs

    def _enqueue_some(self, job_datas: Collection[EnqueueData], group_id: str | None, rate_limit: Any) -> list[Job]:
        # The ids are chosen here, not in RQ, so that an error can name them.
        datas = [data if data.job_id else data._replace(job_id=str(uuid4())) for data in job_datas]
        ids, steps = [data.job_id for data in datas], any(data.depends_on for data in datas)
        with confirming(self.name, self.connection, ids, steps=steps, calls=map(self._call_of, datas)):
            doubtful = (self._call_of(data) for data in datas if is_unconfirmed(data.job_id))
            there = [job for wanted in doubtful if (job := landed(self, wanted)) is not None]
            known = {job.id for job in there}
            missing = [data for data in datas if data.job_id not in known]
            return there + (super().enqueue_many(missing, group_id=group_id, rate_limit=rate_limit) if missing else [])

    def setup_dependencies(self, job: Job, pipeline: Pipeline | None = None) -> Job:
        """Do step 1 of the module's docstring over one connection; see queue/dependencies.py."""
        if not job._dependency_ids:
            return super().setup_dependencies(job, pipeline=pipeline)
        if pipeline is not None:
            with asking_over(pipeline, job):
                return super().setup_dependencies(job, pipeline=pipeline)
        return set_up_watching(self, job, super().setup_dependencies)

    def _enqueue_async_job(
        self, job: Job, pipeline: Pipeline | None = None, at_front: bool = False, unique: bool = False
    ) -> Job:
        """Do step 3 of the module's docstring."""
        # A deferred job exists already, and RQ's script would leave it in the registry of deferred jobs. A job that a
        # worker's handler enqueues becomes part of an outcome, which holds no scripts.
        steps = pipeline if one_step.is_begun(pipeline) else None
        pipeline = pipeline if steps is None else None
        new = pipeline is None and not unique and job.get_status(refresh=False) != JobStatus.DEFERRED
        if new and not is_recording(self.connection) and not refuses_scripts(self.connection):
            try:
                return self._enqueue_new(job, steps, at_front)
            except DuplicateJobError:
                # Over a caller's own connection redis-py may have sent the script twice. The job is then ours, as the
                # time that was just set shows. (For schedule_job a second time changes nothing.)
                written = self.connection.hget(job.key, "enqueued_at")
                if job.enqueued_at is not None and text(written or b"") == utcformat(job.enqueued_at):
                    return job
            except ResponseError as error:
                # An enqueue with once, unique_for or max_length needs a script.
                if "_rq_pooled_admission" in job.__dict__ or not refuses_scripts(self.connection, error):
                    raise
        return super()._enqueue_async_job(job, pipeline=pipeline, at_front=at_front, unique=unique)

    def _enqueue_new(self, job: Job, steps: Pipeline | None, at_front: bool) -> Job:
        """Enqueue a job if no job has its id. Raises DuplicateJobError."""
        if steps is None:
            return super()._enqueue_async_job(job, at_front=at_front, unique=True)
        self._prepare_for_queue(job)
        one_step.save(self, steps, job, at_front)
        return job

    def run_sync(self, job: Job) -> Job:
        """Run a job in this process, as RQ does, and write that it has started, which RQ does not send.

        So a job that runs here is not taken for one that was lost on its way to a worker; see queue/rescue.py.
        """
        job.prepare_for_execution("sync", self.connection)  # type: ignore[arg-type] # a pipeline that sends at once
        return super().run_sync(job)

    def _call_of(self, data: EnqueueData) -> Job:
        return self.job_class.create(
            data.func, data.args, data.kwargs, self.connection, id=data.job_id, serializer=self.serializer
        )


def _check_unique(job: Job, unique: bool) -> None:
    """Refuse ``unique=True`` for a job without an id, as RQ does; this comes before ``job.id``, which makes one up."""
    if unique and not job._id:
        raise ValueError("unique=True requires an explicit job_id")
