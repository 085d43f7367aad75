"""Moves due jobs of rq-scheduler to their queues, each in one atomic step; for ``Scheduler`` and for horses.

rq-scheduler 0.14 enqueues a job, removes it from its schedule and adds it again with its next time, in three requests.
A scheduler that dies between them runs a job twice, or forgets a periodic one for ever. Here the next time is computed
first, and one script does all three, if the job's due time is unchanged and the lock is still ours.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from crontab import CronTab
from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.queue import Queue
from rq.scripts import _build_hset_args
from rq.serializers import DefaultSerializer
from rq.utils import import_attribute

from ..errors import NotVerified
from ..foreign import MAX_VALUE, is_wrong_type, names_key, printable
from ..signing.attach import sign_for
from ..signing.envelope import is_sealed
from ..signing.policy import current
from ..signing.serializer import sealed
from ..store.inert_jobs import fetch_bounded, fetch_inert
from ..store.keys import SCHEDULED_JOBS
from ..store.rq_scheduler import move_job
from ..wire import Command, raw, text

#: The number of jobs that are read at once.
BATCH = 100
#: Seconds until a job is tried again that cannot be read or has no valid cron line.
POSTPONED = 60
#: Seconds for which a job is put off before users' code is run to move it. If that code hangs and the process is
#: killed, other jobs are moved first.
SET_ASIDE = 600
#: Classes of queues that no forged meta can misuse, since they are imported here.
_KNOWN = ("rq.Queue", "rq.queue.Queue", "rq_pooled.Queue", "rq_pooled.queue.queue.Queue")
#: The words for a job that needs no further move.
MOVED = ("moved", "deferred", "handled")

#: Sends a command and returns its reply.
Run = Callable[[Command], Any]


class ScheduleLock(NamedTuple):
    """The value and life of rq-scheduler's lock, as its holder knows them."""

    token: str
    #: Seconds; each move renews it.
    life: int


def next_cron_time(cron: str) -> int:
    """Return when the cron line is due next, in seconds since the epoch.

    The line is read in this machine's local time, as in rq-scheduler, even if ``use_local_timezone`` is False.
    rq-scheduler's own function is not used, because it gives a FutureWarning at each call.

    Raises:
        ValueError: the line cannot be read, or is never due.
    """
    found = CronTab(cron).next(now=datetime.now(), return_datetime=True, default_utc=False)
    if found is None:
        raise ValueError(f"the cron line {cron!r} is never due again")
    return int(found.timestamp())


#: Moves one job: (job, its due time when it was read, the server's time, lock). Returns a word of move.lua, "handled"
#: if a user's hook has moved it in another way, or "left" if it is still due.
MoveOne = Callable[[Job, "float | None", int, "ScheduleLock | None"], str]


class Mover:
    """Moves due jobs.

    Args:
        connection: reads the schedule and jobs.
        run: sends the scripts, see ``Run``.
        job_class, queue_class: as rq-scheduler takes them; a job's own ``meta["queue_class_name"]`` overrides the
            latter.
        log: gets a line about each job that cannot be moved.
        choose_queue: returns the queue for a job; by default ``queue_of``.
        inert: load only plain values of a job's meta, because this process runs no jobs. Otherwise other values are
            loaded where a job cannot be moved without them.
    """

    def __init__(
        self,
        connection: Redis,
        run: Run,
        job_class: type[Job],
        queue_class: type[Queue],
        log: logging.Logger,
        choose_queue: Callable[[Job], Queue] | None = None,
        inert: bool = False,
    ) -> None:
        self._connection = connection
        self._run = run
        self._job_class = job_class
        self._queue_class = queue_class
        self._log = log
        self._choose_queue = choose_queue or self.queue_of
        #: The number of jobs that a user's hook has left in the schedule at the last ``move_due``, and the time up to
        #: which that call looked.
        self.left, self.until = 0, 0.0
        #: The jobs that ``move_due`` returns keep their data, which may be 1000 times as large as in Redis.
        self.keeps_data = False
        self._inert = inert
        self._serializer: Any = sealed(DefaultSerializer)

    def move_due(
        self,
        lock: ScheduleLock | None,
        most: int,
        stopped: Callable[[], bool] = lambda: False,
        move: MoveOne | None = None,
    ) -> list[Job]:
        """Move up to ``most`` jobs that are due by the server's clock; return those that were moved."""
        moved: list[Job] = []
        seen = self.left = 0
        while seen < most and not stopped():
            now, microseconds = self._connection.time()
            self.until = now + microseconds / 1e6
            with names_key(SCHEDULED_JOBS):
                due: Any = self._connection.zrangebyscore(
                    SCHEDULED_JOBS, 0, self.until, start=self.left, num=min(BATCH, most - seen), withscores=True
                )
            for word, score in due:
                if stopped():
                    return moved
                seen += 1
                job, verdict = self.move_id(text(word), score, now, lock, move or self.move)
                self.left += verdict == "left"
                if verdict == "locked":
                    self._log.warning("rq-scheduler's lock was taken over by another scheduler; going on later")
                    return moved
                if job is not None and verdict in MOVED:
                    if not self.keeps_data:
                        job.data = b""
                    moved.append(job)
            if len(due) < BATCH:
                break
        return moved

    def move_id(
        self, job_id: str, due: float, now: int, lock: ScheduleLock | None, move: MoveOne
    ) -> tuple[Job | None, str]:
        """Move one job with ``move``; put it off if that raises. Returns the job, if there is one, and a word."""
        try:
            job = fetch_inert(self._job_class, job_id, self._connection, self._serializer)
            _check_meta(job)
            _check_queue_class(job)
            if not self._inert and _needs_code(job):
                due = now + SET_ASIDE
                self._connection.zadd(SCHEDULED_JOBS, {raw(job_id): due}, xx=True)
                job = fetch_bounded(self._job_class, job_id, self._connection, self._serializer)
                _check_meta(job)
            return job, move(job, due, now, lock)
        except NoSuchJobError:
            self._connection.zrem(SCHEDULED_JOBS, raw(job_id))
            return None, "gone"
        except RedisError as error:
            # A key of another type concerns one job; all other errors concern the server.
            if not is_wrong_type(error):
                raise
            return self._postponed(job_id, now, error)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one job must not stop the others
            return self._postponed(job_id, now, error)

    def _postponed(self, job_id: str, now: int, error: Exception) -> tuple[None, str]:
        self._log.error(
            "scheduled job %s cannot be enqueued (%s: %s); trying again in %d s",
            printable(job_id, MAX_VALUE),
            type(error).__name__,
            printable(error, MAX_VALUE),
            POSTPONED,
        )
        self._connection.zadd(SCHEDULED_JOBS, {raw(job_id): now + POSTPONED}, xx=True)
        return None, "postponed"

    def move(self, job: Job, due: float | None, now: int, lock: ScheduleLock | None) -> str:
        """Move one job; return the word of move.lua. Raises ValueError if that says that the job is unfit.

        Args:
            due: its due time when it was read; nothing is done if that has changed. None moves it at any time.
            now: the server's time, from which an interval counts.
            lock: the caller's lock; nothing is done if another scheduler holds it. None needs no lock.
        """
        queue = self._choose_queue(job)
        next_time = _next_time(job, now)
        if hasattr(queue, "signing"):
            sign_for(queue, job)
        queue._prepare_for_queue(job)
        command = move_job(
            queue.key,
            lock,
            job.id,
            due,
            next_time,
            bool(job.enqueue_at_front),
            job.ttl,
            job._dependency_ids,
            self._fields(job),
        )
        verdict = text(self._run(command))
        if verdict == "unfit":
            raise ValueError(
                f"its next time, {next_time}, is out of range, or {queue.key} or another key to be written is of "
                "another type"
            )
        return verdict

    def _fields(self, job: Job) -> list[Any]:
        """Return the fields to write for a job; its meta changes only by a new count of repeats."""
        try:
            return list(_build_hset_args(job))
        except pickle.PicklingError:
            if not self._inert and job.meta.get("repeat") is not None:
                raise
        if job.meta.get("repeat") is not None:
            raise ValueError(
                "its meta holds objects, which only processes that run jobs load: move it by a worker with "
                "--with-scheduler"
            )
        meta, job.meta = job.meta, {}
        try:
            return list(_build_hset_args(job))
        finally:
            job.meta = meta

    def queue_of(self, job: Job) -> Queue:
        """Return the queue for a job."""
        name = job.meta.get("queue_class_name")
        queue_class: Any = import_attribute(name) if name else self._queue_class
        if name and not (isinstance(queue_class, type) and issubclass(queue_class, Queue)):
            raise ValueError(f"its meta names {printable(name, MAX_VALUE)} as the class of its queue, which is none")
        key = f"{queue_class.redis_queue_namespace_prefix}{job.origin}"
        queue: Queue = queue_class.from_queue_key(key, connection=self._connection, job_class=self._job_class)
        return queue


def _check_meta(job: Job) -> None:
    """Raise NotVerified if a job's meta, which says when it is due again, has no signature of ours, or a strange one.

    RQ keeps what it cannot load under that word.
    """
    meta: Any = job.meta.get("unserialized") if len(job.meta) == 1 else None
    if not isinstance(meta, bytes):
        return
    if current().keys is not None:
        raise NotVerified("its meta does not verify: schedule it again, by a Scheduler that has the keys")
    if is_sealed(meta):
        raise NotVerified("its meta is signed, and there are no keys here: set SIGNING_KEYS or SIGNING_KEYS_FILE")


def _check_queue_class(job: Job) -> None:
    """Raise NotVerified if meta that is not signed names a class which ALLOWED does not: it would be imported."""
    name, policy = job.meta.get("queue_class_name"), current()
    if name and (policy.keys is None or policy.unsigned) and name not in _KNOWN:
        policy.check_allowed(str(name), "the class of its queue is")


def _needs_code(job: Job) -> bool:
    """Tell whether moving an inert job needs users' code: for its queue's class, or for a count beside objects."""
    if job.meta.get("queue_class_name"):
        return True
    if job.meta.get("repeat") is None:
        return False
    try:
        job.serializer.dumps(job.meta)
    except pickle.PicklingError:
        return True
    return False


def _next_time(job: Job, now: int) -> int | None:
    """Return when a job is due again, None if never; count down its repeats, as rq-scheduler does."""
    meta = job.meta
    interval, times, cron = meta.get("interval"), meta.get("repeat"), meta.get("cron_string")
    # It would be due again at once, for ever.
    if interval and int(interval) < 1:
        raise ValueError("its interval is less than a second")
    if times:
        meta["repeat"] = int(times) - 1
    if times is not None and meta["repeat"] == 0:
        return None
    if interval:
        return now + int(interval)
    return next_cron_time(cron) if cron else None
