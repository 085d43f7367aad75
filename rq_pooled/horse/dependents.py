"""Dependents that RQ's handlers cannot read: each is named and passed over, and the others are enqueued.

RQ reads all dependents of a job at once, so one damaged hash, or one member that is no text, would leave all of them
deferred for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import ResponseError
from rq.job import Job
from rq.timeouts import BaseTimeoutException

from ..foreign import MAX_VALUE, error_words, is_text, is_wrong_type, printable
from ..queue.handlers import is_of_handlers
from ..store.keys import queue_key
from .tolerant_maintenance import check_unreadable

log = logging.getLogger("rq.worker")
#: Names in one line of the log.
_SHOWN = 5


def use_in_handlers() -> None:
    """Have RQ's handlers and maintenance of this process pass over what they cannot read; what jobs call stays RQ's."""
    inherited, inherited_met = vars(Job)["fetch_many"], Job.dependencies_are_met

    def fetch_many(cls: type[Job], job_ids: Iterable[str], connection: Any, *args: Any, **kwargs: Any) -> list[Any]:
        fetch = inherited.__get__(None, cls)
        if not is_of_handlers(connection):
            found: list[Any] = fetch(job_ids, connection, *args, **kwargs)
            return found
        strange: list[str] = []
        jobs = _fetched(lambda ids: fetch(ids, connection, *args, **kwargs), list(job_ids), strange)
        if strange:
            more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
            log.warning("%d jobs cannot be read and are passed over: %s%s", len(strange), "; ".join(strange[:5]), more)
        return jobs

    def dependencies_are_met(self: Job, *args: Any, **kwargs: Any) -> bool:
        try:
            return inherited_met(self, *args, **kwargs) and (not is_of_handlers(self.connection) or _has_queue(self))
        except Exception as error:
            if not is_of_handlers(self.connection):
                raise
            _check(error)
            log.warning("what job %s depends on cannot be read, it stays deferred: %s", self.id, error_words(error))
            return False

    Job.fetch_many = classmethod(fetch_many)  # type: ignore[assignment, method-assign]
    Job.dependencies_are_met = dependencies_are_met  # type: ignore[method-assign]


def members_of(key: str, ask: Callable[[], Any]) -> Any:
    """Return the members of a set that are text; none of a key that is no set."""
    try:
        found = ask()
    except ResponseError as error:
        if not is_wrong_type(error):
            raise
        log.warning("%s is no set: no job is enqueued by it", key)
        return set()
    strange = {member for member in found if not is_text(member)}
    if strange:
        shown = ", ".join(printable(member, MAX_VALUE) for member in sorted(strange)[:_SHOWN])
        log.warning("%d members of %s are no text and are passed over: %s", len(strange), key, shown)
    return found - strange


def _has_queue(job: Job) -> bool:
    """Tell whether a job can be queued. Else the outcome of the job that it depends on could not be recorded."""
    key = queue_key(job.origin)
    kind = job.connection.type(key)
    if kind in (b"list", b"none"):
        return True
    log.warning("%s is no list: job %s stays deferred", printable(key, MAX_VALUE), job.id)
    return False


def _fetched(fetch: Callable[[list[str]], list[Any]], ids: list[str], strange: list[str]) -> list[Any]:
    """Return the jobs, None where RQ fails to make one; halves are tried until what it fails at is alone."""
    try:
        return fetch(ids)
    except Exception as error:  # noqa: BLE001 - a damaged hash may raise anything
        _check(error)
        if len(ids) < 2:
            strange.append(f"{printable(ids[0], MAX_VALUE)} ({error_words(error)})")
            return [None]
    half = len(ids) // 2
    return _fetched(fetch, ids[:half], strange) + _fetched(fetch, ids[half:], strange)


def _check(error: Exception) -> None:
    """Raise what is no matter of one job."""
    if isinstance(error, (BaseTimeoutException, MemoryError)):
        raise error
    check_unreadable(error)
