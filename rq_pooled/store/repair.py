"""Finds and mends what dead processes have left half done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..wire import Command
from .scripts import call


def remove_ghosts(registry: str, cursor: str, count: int, owner: str, lock_ttl: int) -> Command:
    """Remove one page of a registry's entries without a job."""
    return call("ghosts", (registry,), cursor, count, owner, lock_ttl)


def remove_executions(cursor: str, count: int, owner: str, lock_ttl: int) -> Command:
    """Remove one page of executions that are half deleted or without a job."""
    return call("executions", (), cursor, count, owner, lock_ttl)


def clean_groups(cursor: bytes, *group: bytes) -> Command:
    """Clean one page of RQ's groups, or of one of them."""
    return call("groups", (), cursor, *group)


def rescue_intermediate(queue_keys: Sequence[str], age: float) -> Command:
    """Rescue ids that were left in intermediate lists for ``age`` seconds."""
    return call("intermediate", queue_keys, age)


def queue_ready(queue_keys: Sequence[str], age: float, now: str) -> Command:
    """Queue dependents that have been ready for ``age`` seconds; only stock workers of RQ 3 leave them."""
    return call("ready", queue_keys, age, now)


def rescue_jobs(apply: bool, jobs: Iterable[tuple[str, str]]) -> Command:
    """Put back queued jobs that stand in no list, each (id, its enqueued_at), or only return which they are."""
    return call("rescue", (), int(apply), *(word for job in jobs for word in job))
