"""``Sweeper``: requeues, buries and purges failed jobs, page by page, with bounded memory and short server commands.

What a sweep has done stands in Redis after each page, and nothing else has to be remembered: one that is killed is
resumed by the next. Each job changes in one atomic step that first looks whether it still is as it was when it was
chosen, so a sweep may race with workers, other tools and people.
"""

from __future__ import annotations

import heapq
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import Logger
from typing import Any
from uuid import uuid4

import rq
from redis import Redis
from redis.exceptions import NoScriptError, ResponseError
from rq.registry import FailedJobRegistry
from rq.utils import as_text, now, utcformat

from .errors import ConfigurationError, SweepUnderWay, UnknownQueue
from .policies import Bury, Ghosts, Policy, Purge, Requeue
from .pool import get_connection
from .resp import Command
from .scripts import Lock, Scripts, dead_letters_key, sweep_lock_key
from .selection import FailedJob, Selection

#: Jobs that one command reads or changes, and entries that one looks at for ghosts: each takes 1 to 3 ms.
PAGE, GHOST_PAGE = 50, 500
#: Bytes of errors and data after which a page ends. A job whose data are larger is known by its description.
PAGE_BYTES = 256 * 1024
#: Seconds without a page after which another sweep may begin.
LOCK_TTL = 30
#: Seconds that a worker's maintenance gives to a queue: one of its horses runs no jobs meanwhile.
MAINTENANCE_SECONDS = 5
DEFAULT_TIMEOUT = rq.Queue.DEFAULT_TIMEOUT
GHOSTS = Ghosts()
_EMPTY = zlib.compress(b"")

#: Sends commands in one round trip and returns raw replies, error replies among them.
Execute = Callable[[Sequence[Command]], list[Any]]


@dataclass
class Report:
    """What one policy did to one queue, or would have done in a dry run."""

    queue: str
    policy: str
    dry_run: bool = False
    #: Entries of the registry that were looked at.
    looked_at: int = 0
    #: Jobs requeued, buried or purged, or ghosts dropped.
    done: int = 0
    #: Ghosts that were met, and their entries dropped, on the way to something else.
    ghosts: int = 0
    #: Jobs that were chosen, but had been requeued, deleted or changed by somebody else meanwhile.
    changed: int = 0
    #: Jobs that had been requeued as often as the policy allows.
    spent: int = 0
    #: Dead letters that were deleted to keep their number bounded.
    trimmed: int = 0
    #: True where the sweep ended because its time was over.
    unfinished: bool = False
    #: Some of the jobs.
    examples: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return dict(vars(self))


class Sweeper:
    """Carries out policies over the failed jobs of queues; one sweep at a time per queue.

    Args:
        queues: names or queues, one or several; None means all that the server knows when a sweep begins.
        connection: of the server; else that of the given queue, else the process's pool.
        policies: in this order; see rq_pooled.policies.
        dead: work on the dead letters instead of the failed registry.

    Raises:
        ConfigurationError: no connection is given and the settings cannot be used; something is no policy.
    """

    def __init__(
        self,
        queues: str | rq.Queue | Iterable[str | rq.Queue] | None = None,
        connection: Redis | None = None,
        policies: Sequence[Policy] | Policy = (GHOSTS,),
        *,
        dead: bool = False,
        execute: Execute | None = None,
    ) -> None:
        given = [queues] if isinstance(queues, (str, rq.Queue)) else None if queues is None else list(queues)
        if connection is None and execute is None:
            found = [queue.connection for queue in given or () if isinstance(queue, rq.Queue)]
            connection = found[0] if found else get_connection()
        self._names = None if given is None else [q.name if isinstance(q, rq.Queue) else str(q) for q in given]
        self._execute = execute or _through(connection)
        self._policies = (policies,) if isinstance(policies, (Selection, Ghosts)) else tuple(policies)
        for policy in self._policies:
            if not isinstance(policy, (Requeue, Bury, Purge, Ghosts)) or (dead and isinstance(policy, Bury)):
                raise ConfigurationError(f"{policy!r} is no policy for {'dead letters' if dead else 'failed jobs'}")
        self._dead = dead
        self._scripts = Scripts()
        self._deadline = float("inf")

    def run(
        self,
        dry_run: bool = False,
        *,
        progress: Callable[[int, int], Any] | None = None,
        max_seconds: float | None = None,
        check_queues: bool = True,
    ) -> list[Report]:
        """Sweep once and return a report for each queue and policy.

        Args:
            dry_run: change nothing, and tell what would be done. Takes no lock.
            progress: called with (entries looked at, entries in all) after each page.
            max_seconds: end after the page in which this time is over; the next sweep goes on.
            check_queues: refuse queues that the server does not know.

        Raises:
            UnknownQueue: there is no such queue.
            SweepUnderWay: another sweep works on one of the queues.
            redis.exceptions.ConnectionError: the server was lost; what was done until then is done.
        """
        self._deadline = time.monotonic() + (float("inf") if max_seconds is None else max_seconds)
        queues = self.queues(check_queues)
        reports = []
        for queue in queues:
            # Most often there is nothing, and then nothing is locked for it.
            if not any(self._many([("ZCARD", self.registry(queue)), ("ZCARD", dead_letters_key(queue))])):
                reports += [Report(queue, type(policy).__name__.lower(), dry_run) for policy in self._policies]
                continue
            with self._locked(queue, dry_run) as lock:
                for policy in self._policies:
                    report = Report(queue, type(policy).__name__.lower(), dry_run)
                    reports.append(report)
                    self._apply(policy, queue, lock, report, progress or (lambda _done, _total: None))
        return reports

    def jobs(self, queue: str, selection: Selection | None = None, with_data: bool = False) -> Iterator[FailedJob]:
        """Yield the failed jobs of a queue that are meant, in the order of the registry; ghosts are left out.

        ``with_data`` reads what tells the function's name for certain.
        """
        selection = selection or Selection()
        left = selection.limit or float("inf")
        for clock, page, _keep in self._pages(
            queue, Lock(sweep_lock_key(queue), "", LOCK_TTL), with_data or selection.wants_data
        ):
            for job in page:
                if left > 0 and job.exists and selection.is_meant(job) and selection.is_old_enough(job, clock):
                    left -= 1
                    yield job
            if left <= 0:
                return

    def requeue_ids(self, queue: str, ids: Sequence[str], policy: Requeue | None = None) -> dict[str, str]:
        """Requeue single jobs of a queue, whatever else is under way; return a word for each id.

        The words: ``done``, ``ghost`` (its job is gone, the entry is removed), ``gone`` (not in the registry),
        ``changed`` (it is not failed any more).
        """
        lock = Lock(sweep_lock_key(queue), "", LOCK_TTL)
        words: dict[str, str] = {}
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            command = self._requeue_command(policy or Requeue(), queue, lock, [(one, "any", "") for one in page])
            words.update(zip(page, map(as_text, self._fenced(command, queue)[1])))
        return words

    # -- queues and their locks ----------------------------------------------------------------------------------

    def registry(self, queue: str) -> str:
        """Return the key of the registry that is worked on."""
        return dead_letters_key(queue) if self._dead else FailedJobRegistry.key_template.format(queue)

    def queues(self, check: bool = True) -> list[str]:
        """Return the names of the queues that are worked on. Raises UnknownQueue."""
        if self._names is not None and not check:
            return self._names
        prefix = rq.Queue.redis_queue_namespace_prefix
        known = sorted(as_text(key).removeprefix(prefix) for key in self._one(("SMEMBERS", rq.Queue.redis_queues_keys)))
        if self._names is None:
            return known
        for name in set(self._names) - set(known):
            if not self._one(("EXISTS", FailedJobRegistry.key_template.format(name), dead_letters_key(name))):
                names = ", ".join(known[:10]) or "none"
                raise UnknownQueue(f"there is no queue {name!r}; the server knows: {names}")
        return self._names

    @contextmanager
    def _locked(self, queue: str, dry_run: bool) -> Iterator[Lock]:
        lock = Lock(
            sweep_lock_key(queue), "" if dry_run else f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex}", LOCK_TTL
        )
        if dry_run:
            yield lock
            return
        if not self._one(("SET", lock.key, lock.owner, "NX", "EX", lock.ttl)):
            owner, left = self._many([("GET", lock.key), ("TTL", lock.key)])
            who = as_text(owner).rpartition(":")[0] if owner else "one that has just ended"
            raise SweepUnderWay(
                f"a sweep of queue {queue!r} is under way ({who}); try again when it is over, or {max(left, 0)} s after "
                "it was killed"
            )
        try:
            yield lock
        finally:
            self._one(self._scripts.failed_unlock(lock))

    # -- policies ------------------------------------------------------------------------------------------------

    def _apply(
        self, policy: Policy, queue: str, lock: Lock, report: Report, progress: Callable[[int, int], Any]
    ) -> None:
        if isinstance(policy, Ghosts):
            for registry in {self.registry(queue), dead_letters_key(queue)}:
                self._drop_ghosts(registry, lock, report, progress)
            return
        threshold = None
        if isinstance(policy, Purge) and policy.beyond is not None:
            threshold = self._time_of_nth(policy, queue, lock, policy.beyond)
        total = self._one(("ZCARD", self.registry(queue)))
        began: float | None = None
        for clock, page, keep in self._pages(queue, lock, policy.wants_data):
            began = clock if began is None else began
            chosen: list[FailedJob] = []
            for job in page:
                # What fails while we sweep is left to the next one: else a job that fails fast would never end it.
                wanted = (job.failed_at or 0) <= began and (report.done + len(chosen) < (policy.limit or float("inf")))
                if not job.exists or (wanted and self._is_due(policy, job, began, threshold)):
                    chosen.append(job)
            words = self._act(policy, queue, lock, chosen, report, clock)
            gone = {job.id for job, word in zip(chosen, words) if word in ("done", "ghost", "gone")}
            keep([job for job in page if job.id not in gone or report.dry_run])
            report.looked_at += len(page)
            progress(report.looked_at, max(total, report.looked_at))
            if report.done >= (policy.limit or float("inf")):
                break
            if time.monotonic() > self._deadline:
                report.unfinished = True
                break
        if isinstance(policy, Bury) and not report.dry_run:
            report.trimmed = self.trim(queue, policy.max_count, lock)

    def _is_due(self, policy: Requeue | Bury | Purge, job: FailedJob, clock: float, threshold: float | None) -> bool:
        if job.status not in ("failed", "stopped") or not policy.is_meant(job):
            return False
        if threshold is not None and (job.failed_at or 0) < threshold:
            return True
        if isinstance(policy, Purge) and policy.beyond is not None and policy.older_than is None:
            return False
        return policy.is_old_enough(job, clock)

    def _act(
        self,
        policy: Requeue | Bury | Purge,
        queue: str,
        lock: Lock,
        jobs: list[FailedJob],
        report: Report,
        clock: float,
    ) -> list[str]:
        """Change these jobs with one command; count and return what became of each."""
        if not jobs:
            return []
        if report.dry_run:
            spent = isinstance(policy, Requeue) and policy.times
            words = ["ghost" if not j.exists else "spent" if spent and j.requeues >= spent else "done" for j in jobs]
        else:
            registry = self.registry(queue)
            fenced = [(job.id, job.ended_at) for job in jobs]
            if isinstance(policy, Requeue):
                command = self._requeue(policy, queue, lock, jobs, report.done, clock)
            elif isinstance(policy, Bury):
                command = self._scripts.failed_bury(
                    registry, lock, dead_letters_key(queue), int(policy.max_age), fenced
                )
            else:
                command = self._scripts.failed_purge(registry, lock, fenced)
            words = [as_text(word) for word in self._fenced(command, queue)[1]]
        for job, word in zip(jobs, words):
            if word == "done":
                report.done += 1
                if len(report.examples) < 10:
                    report.examples.append(job.id)
            elif word == "ghost":
                report.ghosts += 1
            elif word == "spent":
                report.spent += 1
            else:
                report.changed += 1
        return words

    def _requeue(
        self, policy: Requeue, queue: str, lock: Lock, jobs: list[FailedJob], before: int, clock: float
    ) -> Command:
        words = []
        for number, job in enumerate(jobs, before):
            wait = (policy.delay.delay(job.requeues) if policy.delay else 0) + (
                number / policy.rate if policy.rate else 0
            )
            words.append((job.id, job.ended_at, str(int(clock + wait)) if wait >= 1 else ""))
        return self._requeue_command(policy, queue, lock, words)

    def _requeue_command(
        self, policy: Requeue, queue: str, lock: Lock, words: Sequence[tuple[str, str, str]]
    ) -> Command:
        return self._scripts.failed_requeue(
            self.registry(queue),
            lock,
            utcformat(now()),
            _EMPTY,
            DEFAULT_TIMEOUT,
            policy.at_front,
            policy.times,
            queue,
            policy.retries,
            words,
        )

    def _drop_ghosts(self, registry: str, lock: Lock, report: Report, progress: Callable[[int, int], Any]) -> None:
        start, total = 0, self._one(("ZCARD", registry))
        while True:
            command = self._scripts.failed_ghosts(registry, lock, start, GHOST_PAGE, report.dry_run)
            _, looked_at, ghosts = self._fenced(command, report.queue)
            start += looked_at - (0 if report.dry_run else ghosts)
            report.looked_at += looked_at
            report.done += ghosts
            progress(report.looked_at, max(total, report.looked_at))
            if looked_at < GHOST_PAGE:
                return
            if time.monotonic() > self._deadline:
                report.unfinished = True
                return

    def trim(self, queue: str, max_count: int, lock: Lock | None = None) -> int:
        """Delete the oldest dead letters of a queue beyond ``max_count``; return how many."""
        key, trimmed = dead_letters_key(queue), 0
        lock = lock or Lock(sweep_lock_key(queue), "", LOCK_TTL)
        while True:
            excess = self._one(("ZCARD", key)) - max_count
            if excess <= 0:
                return trimmed
            ids = [as_text(job_id) for job_id in self._one(("ZRANGE", key, 0, min(excess, PAGE) - 1))]
            words = self._fenced(self._scripts.failed_purge(key, lock, [(job_id, "any") for job_id in ids]), queue)[1]
            # One that is not failed any more is no dead letter either: its entry goes, the job stays.
            changed = [job_id for job_id, word in zip(ids, words) if word == b"changed"]
            if changed:
                self._one(("ZREM", key, *changed))
            trimmed += len(ids) - len(changed)

    def _time_of_nth(self, policy: Purge, queue: str, lock: Lock, number: int) -> float:
        """Return when the job failed that is the last of the newest ``number`` which are meant."""
        if number == 0:
            return float("inf")
        if self._one(("ZCARD", self.registry(queue))) <= number:
            return float("-inf")
        newest: list[float] = []
        for _clock, page, keep in self._pages(queue, lock, policy.wants_data):
            keep(page)
            for job in page:
                if job.exists and policy.is_meant(job):
                    heapq.heappush(newest, job.failed_at or 0)
                    if len(newest) > number:
                        heapq.heappop(newest)
        return newest[0] if len(newest) == number else float("-inf")

    # -- the server ----------------------------------------------------------------------------------------------

    def _pages(
        self, queue: str, lock: Lock, with_data: bool
    ) -> Iterator[tuple[float, list[FailedJob], Callable[[list[FailedJob]], None]]]:
        """Yield (server's time, entries, ``keep``) until the end; say with ``keep`` which entries are still there.

        Whoever does not say it keeps all.
        """
        score, seen, last = "", 0, ""
        registry = self.registry(queue)
        while True:
            command = self._scripts.failed_page(registry, lock, (score, seen, last), PAGE, PAGE_BYTES, with_data)
            _, clock, seen, entries = self._fenced(command, queue)
            page = [FailedJob.read(entry) for entry in entries]
            if not page:
                return
            kept = page

            def keep(jobs: list[FailedJob]) -> None:
                nonlocal kept
                kept = jobs

            yield float(clock), page, keep
            for job in kept:
                score, seen, last = job.score, (seen + 1 if job.score == score else 1), job.id

    def _fenced(self, command: Command, queue: str) -> list[Any]:
        """Return the reply of a script that looks at the lock. Raises SweepUnderWay where it is not ours any more."""
        reply: list[Any] = self._one(command)
        if reply[0] == b"lost":
            raise SweepUnderWay(
                f"the sweep of queue {queue!r} was stopped for more than {LOCK_TTL} s and lost its lock"
            )
        return reply

    def _one(self, command: Command) -> Any:
        return self._many([command])[0]

    def _many(self, commands: Sequence[Command]) -> list[Any]:
        replies = self._execute(commands)
        if any(isinstance(reply, ResponseError) and _is_unknown_script(reply) for reply in replies):
            self._execute(self._scripts.load())
            replies = self._execute(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


def sweep_in_maintenance(queues: Sequence[str], policies: Sequence[Policy], execute: Execute, log: Logger) -> None:
    """Sweep these queues for at most ``MAINTENANCE_SECONDS`` each; a queue that others sweep is left to them.

    Raises:
        redis.exceptions.ConnectionError: the server was lost.
    """
    for queue in queues if policies else ():
        try:
            sweeper = Sweeper(queue, policies=policies, execute=execute)
            reports = sweeper.run(max_seconds=MAINTENANCE_SECONDS, check_queues=False)
        except SweepUnderWay as error:
            log.debug("not swept: %s", error)
        except ResponseError as error:
            log.warning("the failed jobs of queue %s cannot be swept: %s", queue, error)
        else:
            for report in reports:
                if report.done:
                    examples = ", ".join(report.examples[:3])
                    log.info("Failed jobs of %s: %s did %d, such as %s", queue, report.policy, report.done, examples)


def _is_unknown_script(error: ResponseError) -> bool:
    return isinstance(error, NoScriptError) or "NOSCRIPT" in str(error)


def _through(connection: Any) -> Execute:
    """Return what sends commands over a client's pool, without redis-py's view of the replies."""

    def execute(commands: Sequence[Command]) -> list[Any]:
        with connection.pipeline(transaction=False) as pipe:
            for words in commands:
                pipe.execute_command(*words)
            replies: list[Any] = pipe.execute(raise_on_error=False)
        return replies

    return execute
