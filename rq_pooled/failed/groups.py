"""Failed jobs and dead letters as people ask about them: which exception in which function, how often, since when."""

from __future__ import annotations

from typing import Any

from redis import Redis

from .listing import MAX_SCANNED, failed_jobs

#: The failed jobs that are grouped: the newest ones, because each costs some reading.
NEWEST = MAX_SCANNED
#: The exception that an entry without a job counts as.
GHOST = "ghost"


def failure_groups(connection: Redis, queue: str | None = None, dead: bool = False) -> dict[str, Any]:
    """Return the newest failed jobs by queue, exception and function, the largest groups first.

    Blocks for about thirty round trips, or until a second before the caller's deadline.

    Returns:
        ``total`` (of the registries), ``looked_at`` (how many of them are grouped), ``unreadable``, and ``groups``:
        each ``queue``, ``exception`` (``ghost``: an entry without a job), ``function``, ``count``, ``first`` and
        ``last`` (seconds since the epoch or None), and of the latest ``id``, ``description`` and ``reason``.
    """
    found = failed_jobs(queue, limit=NEWEST, connection=connection, dead=dead)
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for job in found["jobs"]:
        key = group_of(job)
        group = groups.setdefault(
            key, {"queue": key[0], "exception": key[1], "function": key[2], "count": 0, "first": None, "last": None}
        )
        when = job["failed_at"]
        group["count"] += 1
        if group["count"] == 1 or (when or 0.0) > (group["last"] or 0.0):
            group.update(last=when, id=job["id"], description=job["description"], reason=job["reason"])
        if when is not None:
            group["first"] = min(when, group["first"] or when)
    ordered = sorted(groups.values(), key=lambda one: (-one["count"], one["queue"], one["exception"], one["function"]))
    return {
        "total": found["total"],
        "looked_at": len(found["jobs"]),
        "unreadable": found["unreadable"],
        "groups": ordered,
    }


def jobs_of_group(
    connection: Redis, queue: str, exception: str, function: str, dead: bool = False
) -> tuple[int, list[dict[str, Any]]]:
    """Return how many of the queue's newest failed jobs were looked at, and those of one group, the newest first."""
    found = failed_jobs(queue, limit=NEWEST, connection=connection, dead=dead)["jobs"]
    return len(found), [job for job in found if group_of(job) == (queue, exception, function)]


def group_of(job: dict[str, Any]) -> tuple[str, str, str]:
    """Return the queue, exception and function by which a job of ``failed_jobs`` is grouped."""
    return job["queue"], job["exception"] if job["exists"] else GHOST, job["function"]
