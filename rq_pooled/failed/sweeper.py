"""``Sweeper``: requeues, buries and purges failed jobs, page by page, with bounded memory and short server commands.

All that a sweep has done stands in Redis after each page, so the next sweep resumes one that is killed. Each job
changes in one atomic step, which first checks that the job is unchanged since it was selected. So a sweep may race with
workers, other tools and people.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import rq
from redis import Redis
from redis.exceptions import ResponseError

from ..errors import ConfigurationError, SweepUnderWay
from ..pool.registry import get_connection
from ..rq_version import check_rq
from ..store.due import due_at
from ..store.locks import SweepLock
from .policies import POLICIES, Bury, Ghosts, Policy, Purge, Requeue
from .registry import ANY, GHOST_PAGE, PAGE, Execute, FailedJobs, through
from .report import Report
from .selection import FailedJob, Selection

_GHOSTS = (Ghosts(),)
_FOREVER = float("inf")

#: Called with (entries looked at, entries in all).
Progress = Callable[[int, int], Any]


class Sweeper:
    """Carries out policies over the failed jobs of queues; one sweep at a time per queue.

    Args:
        queues: names or queues, one or several; None means all that the server knows when a sweep begins.
        connection: a connection to the server; by default that of the given queue, else the process's pool.
        policies: one or several, done in this order; see failed/policies.py. By default ghosts are dropped.
        dead: work on the dead letters instead of the failed registry.
        execute: sends commands instead of a connection.

    Raises:
        ConfigurationError: no connection is given and the settings cannot be used; something is no policy.
        RQUnsupported: a major version of RQ that is not known here is installed.
    """

    def __init__(
        self,
        queues: str | rq.Queue | Iterable[str | rq.Queue] | None = None,
        connection: Redis | None = None,
        policies: Sequence[Policy] | Policy = _GHOSTS,
        *,
        dead: bool = False,
        execute: Execute | None = None,
    ) -> None:
        check_rq()
        given = [queues] if isinstance(queues, (str, rq.Queue)) else None if queues is None else list(queues)
        if connection is None and execute is None:
            found = [queue.connection for queue in given or () if isinstance(queue, rq.Queue)]
            connection = found[0] if found else get_connection()
        self._names = None if given is None else [q.name if isinstance(q, rq.Queue) else str(q) for q in given]
        # A name or a class is no policy, and the message shows the whole argument.
        single = isinstance(policies, (Selection, Ghosts, str, type))
        self._policies: tuple[Policy, ...] = (policies,) if single else tuple(policies)  # type: ignore[arg-type, assignment]
        for policy in self._policies:
            if not isinstance(policy, (Requeue, Bury, Purge, Ghosts)) or (dead and isinstance(policy, Bury)):
                raise ConfigurationError(f"{policy!r} is no policy for {'dead letters' if dead else 'failed jobs'}")
        execute = execute or through(connection)
        self._store, self._dead_letters = FailedJobs(execute, dead), FailedJobs(execute, True)
        self._deadline = _FOREVER
        #: The reports of the last run, up to the point where it ended, even by an error.
        self.reports: list[Report] = []

    def run(
        self,
        dry_run: bool = False,
        *,
        progress: Progress | None = None,
        max_seconds: float | None = None,
        check_queues: bool = True,
    ) -> list[Report]:
        """Sweep once and return a report for each queue and policy.

        A queue that cannot be swept does not stop the others: the first error is raised after the last queue, and
        ``reports`` says what was done.

        Args:
            dry_run: change nothing, and report what would be done. Takes no lock.
            progress: called with (entries looked at, entries in all) after each page.
            max_seconds: end after the page in which this time is over; the next sweep goes on.
            check_queues: refuse queues that the server does not know.

        Raises:
            UnknownQueue: there is no such queue.
            SweepUnderWay: another sweep works on one of the queues.
            redis.exceptions.ResponseError: the server refused a command.
            redis.exceptions.ConnectionError: the server was lost; what was done until then is done.
        """
        self._deadline = time.monotonic() + (_FOREVER if max_seconds is None else max_seconds)
        self.reports = []
        first: Exception | None = None
        names = self._names if self._names is not None and not check_queues else self.queues()
        # A registry without entries is the usual case, and needs no lock.
        filled = set(self._store.filled(names))
        for queue in names:
            mine = [Report(queue, type(policy).__name__.lower(), dry_run) for policy in self._policies]
            self.reports += mine
            if queue not in filled:
                continue
            try:
                with nullcontext(self._store.no_lock(queue)) if dry_run else self._store.locked(queue) as lock:
                    for policy, report in zip(self._policies, mine):
                        self._apply(policy, lock, report, progress or (lambda _done, _total: None))
            except (SweepUnderWay, ResponseError) as error:
                first = first or error
                for report in mine:
                    report.error = str(error)
        if first is not None:
            raise first
        return self.reports

    def queues(self) -> list[str]:
        """Return the names of the queues that are worked on. Raises UnknownQueue."""
        return self._store.queues(self._names)

    def filled(self) -> list[str]:
        """Return those of ``queues`` that have entries."""
        return self._store.filled(self.queues())

    def jobs(self, queue: str, selection: Selection | None = None, with_data: bool = False) -> Iterator[FailedJob]:
        """Yield the selected failed jobs of a queue in the order of the registry, without ghosts.

        ``with_data`` reads the jobs' data, which tell the function's name for certain.
        """
        return self._store.select(queue, selection or Selection(), with_data)

    def requeue_ids(self, queue: str, ids: Sequence[str], policy: Requeue | None = None) -> dict[str, str]:
        """Requeue single jobs of a queue, even during a sweep; return a word for each id.

        The words: ``done``, ``ghost`` (its job is gone, the entry is removed), ``gone`` (not in the registry),
        ``changed`` (it is not failed any more).
        """
        return self.act_on(queue, ids, policy or Requeue())

    def act_on(self, queue: str, ids: Sequence[str], policy: Requeue | Bury | Purge) -> dict[str, str]:
        """Requeue, bury or delete single jobs of a queue, whatever the policy selects; as ``requeue_ids``."""
        lock = self._store.no_lock(queue)
        words: dict[str, str] = {}
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            fenced = [(one, ANY) for one in page]
            if isinstance(policy, Bury):
                done = self._store.bury(queue, lock, fenced, policy.max_age)
            elif isinstance(policy, Purge):
                done = self._store.purge(queue, lock, fenced)
            else:
                jobs = [(one, ANY, "") for one in page]
                done = self._store.requeue(queue, lock, jobs, retries=policy.retries, at_front=policy.at_front)
            words.update(zip(page, done))
        if isinstance(policy, Bury):
            self._dead_letters.trim(queue, lock, policy.max_count)
        return words

    def trim(self, queue: str, max_count: int) -> int:
        """Delete the oldest dead letters of a queue beyond ``max_count``; return how many."""
        return self._dead_letters.trim(queue, self._store.no_lock(queue), max_count)

    # -- policies ------------------------------------------------------------------------------------------------

    def _apply(self, policy: Policy, lock: SweepLock, report: Report, progress: Progress) -> None:
        queue = report.queue
        if isinstance(policy, Ghosts):
            stores = {store.registry(queue): store for store in (self._store, self._dead_letters)}
            for store in stores.values():
                self._drop_ghosts(store, lock, report, progress)
            return
        threshold = self._time_of_last_kept(policy, queue, lock)
        limit = policy.limit or _FOREVER
        times = (policy.times if isinstance(policy, Requeue) else None) or _FOREVER
        total, began = self._store.count(queue), 0.0
        for clock, page, keep in self._store.pages(queue, lock, policy.wants_data):
            began = began or clock
            chosen: list[FailedJob] = []
            # Ghosts, and jobs that were requeued too often, do not count towards the limit.
            counted = report.done
            for job in page:
                if not job.exists:
                    chosen.append(job)
                elif counted < limit and _is_due(policy, job, began, threshold):
                    chosen.append(job)
                    counted += job.requeues < times
            words = self._act(policy, lock, chosen, report, clock) if chosen else []
            report.count(chosen, words)
            gone = {job.id for job, word in zip(chosen, words) if word in ("done", "ghost", "gone")}
            keep([job for job in page if job.id not in gone or report.dry_run])
            report.looked_at += len(page)
            progress(report.looked_at, max(total, report.looked_at))
            if report.done >= limit:
                break
            if time.monotonic() > self._deadline:
                report.unfinished = True
                break
        if isinstance(policy, Bury) and not report.dry_run:
            report.trimmed = self._dead_letters.trim(queue, lock, policy.max_count)

    def _act(
        self, policy: Requeue | Bury | Purge, lock: SweepLock, jobs: list[FailedJob], report: Report, clock: float
    ) -> list[str]:
        """Change these jobs with one command, or report what it would do."""
        queue = report.queue
        if report.dry_run:
            times = policy.times if isinstance(policy, Requeue) else None
            return [
                "ghost" if not job.exists else "spent" if times and job.requeues >= times else "done" for job in jobs
            ]
        fenced = [(job.id, job.ended_at) for job in jobs]
        if isinstance(policy, Bury):
            return self._store.bury(queue, lock, fenced, policy.max_age)
        if isinstance(policy, Purge):
            return self._store.purge(queue, lock, fenced)
        words = []
        for number, job in enumerate(jobs, report.done):
            wait = policy.delay.delay(job.requeues) if policy.delay else 0
            due = clock + wait + (number / policy.rate if policy.rate else 0)
            words.append((job.id, job.ended_at, due_at(due) if due >= clock + 1 else ""))
        return self._store.requeue(
            queue, lock, words, times=policy.times, retries=policy.retries, at_front=policy.at_front
        )

    def _drop_ghosts(self, store: FailedJobs, lock: SweepLock, report: Report, progress: Progress) -> None:
        start, total = 0, report.looked_at + store.count(report.queue)
        while True:
            looked_at, ghosts = store.ghosts(report.queue, lock, start, report.dry_run)
            start += looked_at - (0 if report.dry_run else ghosts)
            report.looked_at += looked_at
            report.done += ghosts
            progress(report.looked_at, max(total, report.looked_at))
            if looked_at < GHOST_PAGE:
                return
            if time.monotonic() > self._deadline:
                report.unfinished = True
                return

    def _time_of_last_kept(self, policy: Requeue | Bury | Purge, queue: str, lock: SweepLock) -> float | None:
        """Return when the oldest job failed that a Purge keeps by number; None if the Purge counts no jobs.

        The registry stands in the order of expiry, so all jobs are read. The times of the kept jobs are in memory.
        """
        number = policy.beyond if isinstance(policy, Purge) else None
        if number is None:
            return None
        if number == 0 or self._store.count(queue) <= number:
            return -_FOREVER if number else _FOREVER
        newest: list[float] = []
        for _clock, page, _keep in self._store.pages(queue, lock, policy.wants_data):
            for job in page:
                if job.exists and policy.is_meant(job):
                    heapq.heappush(newest, job.failed_at or 0)
                    if len(newest) > number:
                        heapq.heappop(newest)
        return newest[0] if len(newest) == number else -_FOREVER


def _is_due(policy: Requeue | Bury | Purge, job: FailedJob, began: float, threshold: float | None) -> bool:
    """Tell whether a sweep that began at this time takes the job.

    Jobs that fail during a sweep are left to the next one, else jobs that fail at once would never let it end.
    """
    if job.status not in ("failed", "stopped") or (job.failed_at or 0) > began or not policy.is_meant(job):
        return False
    if threshold is not None and (job.failed_at or 0) < threshold:
        return True
    counts_only = threshold is not None and policy.older_than is None
    return not counts_only and policy.is_old_enough(job, began)


def sweep(queues: Any, policy: str, dry_run: bool = False, **options: Any) -> list[dict[str, Any]]:
    """Sweep once with plain arguments and return plain data: to be enqueued or scheduled as a job.

    Args:
        queues: as for Sweeper.
        policy: ``requeue``, ``bury``, ``purge`` or ``ghosts``.
        dry_run: change nothing.
        options: the arguments of the policy.

    Raises:
        ConfigurationError, UnknownQueue, SweepUnderWay: see Sweeper.
    """
    if policy not in POLICIES:
        raise ConfigurationError(f"there is no policy {policy!r}: use {', '.join(POLICIES)}")
    try:
        wanted = POLICIES[policy](**options)
    except TypeError as error:
        raise ConfigurationError(f"the policy {policy!r} cannot be made: {error}") from None
    return [report.as_dict() for report in Sweeper(queues, policies=wanted).run(dry_run)]
