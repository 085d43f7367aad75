"""Reads registries of failed jobs in pages, and changes them by scripts that check each job first.

The sweeper decides which jobs are changed, and how.
"""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import rq
from rq.registry import FailedJobRegistry
from rq.utils import now, utcformat

from ..errors import SweepUnderWay, UnknownQueue
from ..foreign import MAX_VALUE, names_key, printable
from ..store.failed import failed_bury, failed_ghosts, failed_page, failed_purge, failed_requeue
from ..store.keys import QUEUES, dead_letters_key, queue_key, sweep_lock_key
from ..store.locks import SweepLock, unlock
from ..store.queues import first_queues, queue_names
from ..store.scripts import run
from ..wire import Command, encoded, text
from .selection import FailedJob, Selection

#: The jobs that one command reads or changes, and the entries that one checks for ghosts; a command takes about 1 ms.
PAGE, GHOST_PAGE = 25, 500
#: Queues that are looked at in one round trip.
_QUEUES = 500
#: Bytes of errors and data after which a page ends. A job with larger data is known by its description.
PAGE_BYTES = 256 * 1024
#: Seconds without a page after which another sweep may begin.
LOCK_TTL = 30
#: The timeout that RQ gives to a job without one.
DEFAULT_TIMEOUT = rq.Queue.DEFAULT_TIMEOUT
#: Stands for whatever ``ended_at`` a job has.
ANY = "any"
_EMPTY = zlib.compress(b"")

#: Sends commands in one round trip and returns raw replies, including errors.
Execute = Callable[[Sequence[Command]], list[Any]]
#: A job's id, and its ``ended_at`` as it was read, or ANY.
Fenced = tuple[str, str]


class FailedJobs:
    """Reads and changes one kind of registry, failed or dead letters, of any queue.

    Args:
        execute: sends commands, see ``Execute``.
        dead: the dead letters instead of the failed registry.

    Methods raise redis-py's ConnectionError if the server is lost, and SweepUnderWay if the given lock has been lost.
    Methods that change jobs return a word for each, see the headers of the scripts.
    """

    def __init__(self, execute: Execute, dead: bool = False) -> None:
        self._execute = execute
        self._dead = dead

    def registry(self, queue: str) -> str:
        """Return the registry's key."""
        return dead_letters_key(queue) if self._dead else FailedJobRegistry.key_template.format(queue)

    def count(self, queue: str) -> int:
        """Return the number of entries, ghosts included."""
        return int(self._one(("ZCARD", self.registry(queue))))

    def filled(self, names: Sequence[str]) -> list[str]:
        """Return those of these queues that have entries or dead letters, or a key of another type in their place."""
        found: list[str] = []
        for start in range(0, len(names), _QUEUES):
            some = names[start : start + _QUEUES]
            keys = [(self.registry(name), dead_letters_key(name)) for name in some]
            replies = self._execute([("ZCARD", key) for pair in keys for key in pair])
            found += [name for name, *counts in zip(some, replies[::2], replies[1::2]) if counts != [0, 0]]
        return found

    def queues(self, names: Sequence[str] | None) -> list[str]:
        """Return these queues, each once, or all that the server knows. Raises UnknownQueue."""

        def ask(*command: Any) -> Any:
            return self._one(command)

        if names is None:
            return queue_names(ask)
        for name in sorted(set(names)):
            keys = FailedJobRegistry.key_template.format(name), dead_letters_key(name)
            if not any(self._many([("SISMEMBER", QUEUES, queue_key(name)), ("EXISTS", *keys)])):
                shown = ", ".join(first_queues(ask)[:10]) or "none"
                raise UnknownQueue(f"there is no queue {name!r}; the server knows: {shown}")
        return list(dict.fromkeys(names))

    # -- the lock ------------------------------------------------------------------------------------------------

    @staticmethod
    def no_lock(queue: str) -> SweepLock:
        """Return a stand-in for a lock where none is needed."""
        return SweepLock(sweep_lock_key(queue), "", LOCK_TTL)

    @contextmanager
    def locked(self, queue: str) -> Iterator[SweepLock]:
        """Hold the lock of the queue's sweeps; each command renews it. Raises SweepUnderWay."""
        lock = SweepLock(sweep_lock_key(queue), f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex}", LOCK_TTL)
        if not self._one(("SET", lock.key, lock.owner, "NX", "EX", lock.ttl)):
            with names_key(lock.key):
                owner, left = self._many([("GET", lock.key), ("TTL", lock.key)])
            who = text(owner).rpartition(":")[0] or text(owner) if owner else "one that has just ended"
            shown = printable(who, MAX_VALUE)
            if left == -1:
                raise SweepUnderWay(f"the lock {lock.key} ({shown}) never ends, so no sweep has written it: delete it")
            raise SweepUnderWay(
                f"a sweep of queue {queue!r} is under way ({shown}); try again when it is over, or {max(left, 0)} s "
                "after it was killed"
            )
        try:
            yield lock
        finally:
            self._one(unlock(lock.key, lock.owner))

    # -- reading -------------------------------------------------------------------------------------------------

    def pages(
        self, queue: str, lock: SweepLock, with_data: bool
    ) -> Iterator[tuple[float, list[FailedJob], Callable[[list[FailedJob]], None]]]:
        """Yield (server's time, entries, ``keep``) until the end; call ``keep`` with the entries that still exist.

        If ``keep`` is not called, all entries count as kept.
        """
        score, seen, last = "", 0, ""
        registry = self.registry(queue)
        while True:
            command = failed_page(registry, lock, (score, seen, last), PAGE, PAGE_BYTES, with_data)
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

    def select(self, queue: str, selection: Selection, with_data: bool = False) -> Iterator[FailedJob]:
        """Yield the selected jobs in the order of the registry, without ghosts."""
        left = selection.limit or float("inf")
        for clock, page, _keep in self.pages(queue, self.no_lock(queue), with_data or selection.wants_data):
            for job in page:
                if left > 0 and job.exists and selection.is_meant(job) and selection.is_old_enough(job, clock):
                    left -= 1
                    yield job
            if left <= 0:
                return

    # -- changing ------------------------------------------------------------------------------------------------

    def requeue(
        self,
        queue: str,
        lock: SweepLock,
        jobs: Sequence[tuple[str, str, str]],
        *,
        times: int | None = None,
        retries: int | None = None,
        at_front: bool = False,
    ) -> list[str]:
        """Put jobs back, each (id, its ended_at or ANY, its due time or '' for now)."""
        registry, began = self.registry(queue), utcformat(now())
        command = failed_requeue(registry, lock, began, _EMPTY, DEFAULT_TIMEOUT, at_front, times, queue, retries, jobs)
        return self._words(command, queue)

    def bury(self, queue: str, lock: SweepLock, jobs: Sequence[Fenced], max_age: float) -> list[str]:
        """Move jobs to the dead letters for ``max_age`` seconds."""
        dead = dead_letters_key(queue)
        return self._words(failed_bury(self.registry(queue), lock, dead, int(max_age), jobs), queue)

    def purge(self, queue: str, lock: SweepLock, jobs: Sequence[Fenced]) -> list[str]:
        """Delete jobs."""
        return self._words(failed_purge(self.registry(queue), lock, jobs), queue)

    def ghosts(self, queue: str, lock: SweepLock, start: int, dry_run: bool) -> tuple[int, int]:
        """Drop ghosts from rank ``start`` on; return (entries looked at, ghosts)."""
        command = failed_ghosts(self.registry(queue), lock, start, GHOST_PAGE, dry_run)
        _, looked_at, ghosts = self._fenced(command, queue)
        return looked_at, ghosts

    def trim(self, queue: str, lock: SweepLock, max_count: int) -> int:
        """Delete the entries beyond ``max_count`` whose time ends first; return how many."""
        key, trimmed = self.registry(queue), 0
        while True:
            excess = self.count(queue) - max_count
            if excess <= 0:
                return trimmed
            ids = [text(job_id) for job_id in self._one(("ZRANGE", key, 0, min(excess, PAGE) - 1))]
            words = self.purge(queue, lock, [(job_id, ANY) for job_id in ids])
            # The entry of a job that is no longer failed goes, too; the job stays.
            changed = [job_id for job_id, word in zip(ids, words) if word == "changed"]
            if changed:
                self._one(("ZREM", key, *changed))
            trimmed += len(ids) - len(changed)

    # -- the server ----------------------------------------------------------------------------------------------

    def _words(self, command: Command, queue: str) -> list[str]:
        return [text(word) for word in self._fenced(command, queue)[1]]

    def _fenced(self, command: Command, queue: str) -> list[Any]:
        """Return the reply of a script that checks the lock."""
        reply: list[Any] = self._one(command)
        if reply[0] == b"lost":
            raise SweepUnderWay(
                f"the sweep of queue {queue!r} was stopped for more than {LOCK_TTL} s and lost its lock"
            )
        return reply

    def _one(self, command: Command) -> Any:
        return run(lambda command: self._many([command])[0], command)

    def _many(self, commands: Sequence[Command]) -> list[Any]:
        replies = self._execute(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


def through(connection: Any) -> Execute:
    """Return a function that sends commands over a client's pool."""

    def execute(commands: Sequence[Command]) -> list[Any]:
        with connection.pipeline(transaction=False) as pipe:
            for words in commands:
                pipe.execute_command(*encoded(words))
            replies: list[Any] = pipe.execute(raise_on_error=False)
        return replies

    return execute
