"""Reads and changes failed jobs and dead letters, under the lock of a sweep."""

from __future__ import annotations

from collections.abc import Iterable

from ..wire import Command
from .locks import SweepLock
from .scripts import call


def failed_page(
    registry: str, lock: SweepLock, place: tuple[str, int, str], limit: int, max_bytes: int, with_data: bool
) -> Command:
    """Read the entries after ``place``: (score, number of entries seen with this score, the last of them)."""
    return call("failed_page", (registry, lock.key), lock.owner, lock.ttl, *place, limit, max_bytes, int(with_data))


def failed_requeue(
    registry: str,
    lock: SweepLock,
    now: str,
    empty: bytes,
    default_timeout: int,
    at_front: bool,
    times: int | None,
    queue: str,
    retries: int | None,
    jobs: Iterable[tuple[str, str, str]],
) -> Command:
    """Requeue jobs, each (id, its ended_at or 'any', its due time or '')."""
    limits = ("" if times is None else times, queue, "" if retries is None else retries)
    words = [word for job in jobs for word in job]
    head = (lock.owner, lock.ttl, now, empty, default_timeout, int(at_front), *limits)
    return call("failed_requeue", (registry, lock.key), *head, *words)


def failed_bury(registry: str, lock: SweepLock, dead: str, age: int, jobs: Iterable[tuple[str, str]]) -> Command:
    """Move jobs, each (id, its ended_at or 'any'), to the dead letters for ``age`` seconds."""
    words = [word for job in jobs for word in job]
    return call("failed_bury", (registry, lock.key, dead), lock.owner, lock.ttl, age, *words)


def failed_purge(registry: str, lock: SweepLock, jobs: Iterable[tuple[str, str]]) -> Command:
    """Delete jobs, each (id, its ended_at or 'any')."""
    words = [word for job in jobs for word in job]
    return call("failed_purge", (registry, lock.key), lock.owner, lock.ttl, *words)


def failed_ghosts(registry: str, lock: SweepLock, start: int, limit: int, dry_run: bool) -> Command:
    """Remove entries without a job, from rank ``start`` on."""
    return call("failed_ghosts", (registry, lock.key), lock.owner, lock.ttl, start, limit, int(dry_run))


def failed_look(ids: Iterable[str], max_field: int, max_results: int) -> Command:
    """Read what lists show of failed jobs, see failed_look.lua."""
    return call("failed_look", (), max_field, max_results, *ids)
