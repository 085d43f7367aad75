"""``Scheduler``: rq-scheduler on the shared pool, whose moves are atomic and which survives a lost server.

It is long since it takes the place of one class of rq-scheduler, method by method.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.serializers import DefaultSerializer

from ..config.secrets import message_of
from ..config.settings import Settings
from ..connection.away import check_lost
from ..delays import reconnect_delays
from ..foreign import MAX_VALUE, is_wrong_type, names_key, printable
from ..pool.registry import get_connection
from ..queue.numbers import check_delay
from ..queue.queue import Queue
from ..rq_version import check_keys, check_rq
from ..signing.serializer import sealed
from ..store.due import add_fraction
from ..store.inert_jobs import fetch_inert
from ..store.keys import SCHEDULED_JOBS, SCHEDULER_INSTANCE, SCHEDULER_LOCK, SCHEDULER_RUNS
from ..store.locks import unlock
from ..store.scripts import run_script
from ..wire import raw, text
from .checked import CheckedScheduler
from .mover import BATCH, MOVED, Mover, ScheduleLock, next_cron_time

logger = logging.getLogger("rq_pooled.scheduler")

#: Longest sleep while another scheduler holds the lock, which expires if that scheduler has died.
LOCKED_RETRY = 5.0
#: Shortest sleep between two checks of the schedule.
_SHORTEST = 0.05
#: The last second that a datetime can be.
_LAST = datetime.max.replace(tzinfo=timezone.utc, microsecond=0).timestamp()
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _Move:
    """A move in progress, and the word that move.lua returned for it; see ``Mover.move``."""

    job: Job
    due: float | None
    now: int
    lock: ScheduleLock | None
    verdict: str | None = None


class Scheduler(CheckedScheduler):
    """rq-scheduler's ``Scheduler``, with all of its methods, keys and its lock, so both kinds can be used side by side.

    These things differ: the connection may be left out; jobs go into our ``Queue``; a due job is moved in one atomic
    step; a job that cannot be read is logged and put off by a minute instead of ending the scheduler; ``run`` wakes up
    when the next job is due, and at the latest after ``interval`` seconds.

    Raises:
        ConfigurationError: no connection is given and the settings cannot be used; a class has keys of its own.
        RQUnsupported: a major version of RQ that is not known here is installed.
    """

    queue_class = Queue
    # These keys have our prefix, because rq-scheduler's own names ignore it.
    redis_scheduler_namespace_prefix = SCHEDULER_INSTANCE
    scheduler_key, scheduler_lock_key, scheduled_jobs_key = SCHEDULER_RUNS, SCHEDULER_LOCK, SCHEDULED_JOBS

    def __init__(
        self,
        queue_name: str = "default",
        queue: Any = None,
        interval: float = 60,
        connection: Redis | None = None,
        job_class: Any = None,
        queue_class: Any = None,
        name: str | None = None,
    ) -> None:
        check_rq()
        connection = get_connection() if connection is None else connection
        super().__init__(queue_name, queue, interval, connection, job_class, queue_class, name)
        check_keys((self.job_class, self.queue_class))
        self.log = logger
        self._serializer: Any = sealed(DefaultSerializer)
        self._lock = ScheduleLock(uuid4().hex, int(interval) + 10)
        self._mover = Mover(
            self.connection,
            lambda command: run_script(self.connection, command),
            self.job_class,
            self.queue_class,
            self.log,
            lambda job: self.get_queue_for_job(job),
            inert=True,
        )
        self._mover.keeps_data = True
        self._stop = threading.Event()
        self._signalled = False
        #: The move for ``enqueue_job`` to make while ``enqueue_jobs`` calls it.
        self._moving: _Move | None = None

    # -- scheduling: what in rq-scheduler warns on Python 3.12 or breaks off half-way -------------------------------

    def enqueue_in(self, time_delta: timedelta, func: Any, *args: Any, **kwargs: Any) -> Job:
        """Schedule a call for ``time_delta`` from now, see rq-scheduler."""
        check_delay("the delay", time_delta)
        job: Job = self.enqueue_at(datetime.now(timezone.utc) + time_delta, func, *args, **kwargs)
        return job

    def enqueue_at(self, scheduled_time: datetime, func: Any, *args: Any, **kwargs: Any) -> Job:
        """Schedule a call for a time, see rq-scheduler, which cuts its fraction off."""
        job: Job = super().enqueue_at(scheduled_time, func, *args, **kwargs)
        add_fraction(self.connection, SCHEDULED_JOBS, job.id, scheduled_time)
        return job

    @names_key(SCHEDULED_JOBS)
    def cron(
        self,
        cron_string: str,
        func: Any,
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        repeat: int | None = None,
        queue_name: str | None = None,
        result_ttl: int = -1,
        ttl: int | None = None,
        id: str | None = None,
        timeout: int | None = None,
        description: str | None = None,
        meta: dict[str, Any] | None = None,
        use_local_timezone: bool = False,
        depends_on: Any = None,
        on_success: Any = None,
        on_failure: Any = None,
        at_front: bool = False,
    ) -> Job:
        """Schedule a call by a cron line, read in local time, see rq-scheduler. Job and time are written in one step.

        Raises:
            ValueError: the line cannot be read.
        """
        due = next_cron_time(cron_string)
        job: Job = self._create_job(
            func, args=args, kwargs=kwargs, commit=False, result_ttl=result_ttl, ttl=ttl, id=id, queue_name=queue_name,
            description=description, timeout=timeout, meta=meta, depends_on=depends_on, on_success=on_success,
            on_failure=on_failure,
        )  # fmt: skip
        job.meta.update(cron_string=cron_string, use_local_timezone=use_local_timezone)
        if repeat is not None:
            job.meta["repeat"] = int(repeat)
        if at_front:
            job.enqueue_at_front = True
        with self.connection.pipeline() as pipeline:
            job.save(pipeline=pipeline)
            pipeline.zadd(SCHEDULED_JOBS, {job.id: due})
            pipeline.execute()
        return job

    def count(self, until: Any = None) -> int:
        """Return how many jobs are scheduled until then: a datetime, timedelta or seconds since the epoch."""
        number: int = super().count(_epoch(until))
        return number

    def get_jobs(
        self, until: Any = None, with_times: bool = False, offset: int | None = None, length: int | None = None
    ) -> Iterator[Any]:
        """Yield scheduled jobs, or (job, time in UTC without a zone), see rq-scheduler; drop entries without a job.

        An entry that cannot be read is logged and left out. Of their ``meta`` only plain values are loaded, because
        others may have written it.
        """
        until = _epoch(until)
        most = "+inf" if until is None else until
        with names_key(SCHEDULED_JOBS):
            found = self.connection.zrangebyscore(SCHEDULED_JOBS, 0, most, offset, length, withscores=True)
        for word, score in found:
            try:
                job = fetch_inert(self.job_class, text(word), self.connection, self._serializer)
            except NoSuchJobError:
                self.connection.zrem(SCHEDULED_JOBS, word)
                continue
            except RedisError as error:
                if not is_wrong_type(error):
                    raise
                self._leave_out(word, error)
                continue
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one job must not hide the others
                self._leave_out(word, error)
                continue
            # A time outside the calendar becomes the calendar's last second.
            due = datetime.fromtimestamp(min(score, _LAST), timezone.utc).replace(tzinfo=None)
            yield (job, due) if with_times else job

    def _leave_out(self, word: bytes, error: Exception) -> None:
        shown = printable(word, MAX_VALUE), type(error).__name__, printable(error, MAX_VALUE)
        self.log.warning("scheduled job %s cannot be read (%s: %s)", *shown)

    def get_jobs_to_queue(self, with_times: bool = False) -> Iterator[Any]:
        """Yield the jobs that are due, see ``get_jobs``."""
        return self.get_jobs(int(time.time()), with_times=with_times)

    # -- moving --------------------------------------------------------------------------------------------------

    def get_queue_for_job(self, job: Job) -> Any:
        """Return the queue for a job."""
        return self._mover.queue_of(job)

    def enqueue_job(self, job: Job) -> None:
        """Move a job to its queue now, even if it is not due, and write its next time, if any, in the same step.

        ``enqueue_jobs`` calls this for each due job, as in rq-scheduler; a subclass may do more here, or leave the job.
        """
        moving = self._moving
        if moving is None or moving.job is not job:
            self._mover.move(job, None, int(self.connection.time()[0]), None)
        else:
            moving.verdict = self._mover.move(job, moving.due, moving.now, moving.lock)

    def enqueue_jobs(self) -> list[Job]:
        """Move the due jobs and return them. If the lock was held, see ``acquire_lock``, losing it ends the call.

        A job is moved once, so nothing is done if another scheduler was faster.
        """
        moved: list[Job] = []
        # A caller without the lock may go on, as in rq-scheduler, since it may have a lock of its own.
        lock = self._lock if self._lock_acquired else None
        if type(self).get_jobs_to_queue is not Scheduler.get_jobs_to_queue:
            moved += self._move_chosen(lock)
        else:
            while not self._stop.is_set():
                some = self._mover.move_due(lock, 10 * BATCH, self._stop.is_set, self._move_one)
                moved += some
                if len(some) < 10 * BATCH:
                    break
        if moved:
            self.log.info("enqueued %d scheduled jobs", len(moved))
        return moved

    def _move_chosen(self, lock: ScheduleLock | None) -> Iterator[Job]:
        """Move the jobs that a subclass's ``get_jobs_to_queue`` chooses; yield those that were moved."""
        # The subclass alone knows its next jobs, so it is asked again after the interval, or when a job is due.
        self._mover.left, self._mover.until = 1, int(self.connection.time()[0])
        for job in self.get_jobs_to_queue():
            due = self.connection.zscore(SCHEDULED_JOBS, job.id)
            if self._stop.is_set() or due is None:
                continue
            now = int(self.connection.time()[0])
            _, verdict = self._mover.move_id(
                job.id, due, now, lock, lambda _, *given, job=job: self._move_one(job, *given)
            )
            if verdict in MOVED:
                yield job

    def _move_one(self, job: Job, due: float | None, now: int, lock: ScheduleLock | None) -> str:
        """Move a job through ``enqueue_job``, which a subclass may override; see ``MoveOne``."""
        self._moving = moving = _Move(job, due, now, lock)
        try:
            self.enqueue_job(job)
        finally:
            self._moving = None
        if moving.verdict is not None:
            return moving.verdict
        return "left" if self.connection.zscore(SCHEDULED_JOBS, job.id) == due else "handled"

    @names_key(SCHEDULER_LOCK)
    def acquire_lock(self) -> bool:
        """Take rq-scheduler's lock, or keep it if it is still ours; return whether we hold it."""
        taken = self.connection.set(SCHEDULER_LOCK, self._lock.token, ex=self._lock.life, nx=True)
        if not taken and raw(self.connection.get(SCHEDULER_LOCK) or b"") == raw(self._lock.token):
            # The server was lost while we held the lock. The lock may end at any moment, so each move checks it.
            taken = self.connection.expire(SCHEDULER_LOCK, self._lock.life)
        self._lock_acquired = bool(taken)
        return self._lock_acquired

    def remove_lock(self) -> None:
        """Give the lock back if it is still ours."""
        if self._lock_acquired:
            self._lock_acquired = False
            run_script(self.connection, unlock(SCHEDULER_LOCK, self._lock.token))

    def register_birth(self) -> None:
        """Register this scheduler. Raises ValueError if another one has its name."""
        if self.connection.exists(self.key) and not self.connection.hexists(self.key, "death"):
            raise ValueError(f"there is an active scheduler named {self.name!r} already")
        self.connection.delete(self.key)
        self.heartbeat()
        self.log.info("scheduler %s: started", self.name)

    def heartbeat(self) -> None:
        """Renew this scheduler's registration, even at a server that has lost it."""
        with self.connection.pipeline() as pipeline:
            pipeline.hsetnx(self.key, "birth", str(time.time()))
            pipeline.hdel(self.key, "death")
            pipeline.expire(self.key, int(self._interval) + 10)
            pipeline.execute()

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, burst: bool = False) -> None:
        """Move due jobs until SIGTERM, SIGINT or ``stop``; with ``burst`` once.

        After a signal, the present move is finished, then this raises SystemExit, as rq-scheduler does. A server that
        is lost later is tried again with growing delays, with one log line when it goes, and one when it is back.

        Raises:
            SystemExit: a signal has arrived; the exit code is 0.
            redis.exceptions.ConnectionError: the server cannot be reached at the beginning.
            ValueError: another scheduler has this name.
        """
        self.register_birth()
        settings = Settings.load()
        base, cap = settings.reconnect_base, settings.reconnect_cap
        away_since: float | None = None
        with self._stop_signals():
            try:
                while not self._stop.is_set():
                    try:
                        wait = self._round()
                    except RedisError as error:
                        check_lost(error)
                        if away_since is None:
                            away_since, delays = time.monotonic(), reconnect_delays(base, cap)
                            self.log.error("lost the server (%s); trying again", message_of(error))
                        self._lock_acquired = False  # or it expires
                        self._stop.wait(next(delays))
                        continue
                    if away_since is not None:
                        self.log.info("the server is back after %.1f s", time.monotonic() - away_since)
                        away_since = None
                    if burst and wait is not None:
                        break
                    self._stop.wait(LOCKED_RETRY if wait is None else wait)
            finally:
                with contextlib.suppress(RedisError):
                    self.remove_lock()
                    self.register_death()
        if self._signalled:
            raise SystemExit

    def stop(self) -> None:
        """End ``run`` after its present move. This may be called from any thread or signal handler."""
        self._stop.set()

    def _round(self) -> float | None:
        """Move due jobs; return the seconds until a job may be due again, None if another scheduler holds the lock."""
        self.heartbeat()
        if not self.acquire_lock():
            self.log.debug("another scheduler holds the lock")
            return None
        self._mover.keeps_data = False
        try:
            self.enqueue_jobs()
        finally:
            self._mover.keeps_data = True
        seconds, microseconds = self.connection.time()
        # Jobs that a subclass has left are offered again only after the interval.
        since = f"({self._mover.until}" if self._mover.left else "-inf"
        first = self.connection.zrangebyscore(SCHEDULED_JOBS, since, "+inf", start=0, num=1, withscores=True)
        self.remove_lock()
        wait = first[0][1] - seconds - microseconds / 1e6 if first else self._interval
        return float(max(_SHORTEST, min(self._interval, wait)))

    def _on_signal(self, *_: Any) -> None:
        self._signalled = True
        self._stop.set()

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._signalled = False
        previous = {signum: signal.signal(signum, self._on_signal) for signum in _STOP_SIGNALS}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def _epoch(until: Any) -> Any:
    """Return a timedelta as a time from now; rq-scheduler reads all other values itself."""
    if isinstance(until, timedelta):
        return int((datetime.now(timezone.utc) + until).timestamp())
    if isinstance(until, datetime):
        return int(until.replace(tzinfo=until.tzinfo or timezone.utc).timestamp())
    return until
