"""What the page's buttons do to failed jobs: requeue some, sweep a queue. Bounded, so that a request ends soon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from redis import Redis

from ..durations import parse_duration
from ..errors import ConfigurationError
from ..failed.policies import Bury, Ghosts, Policy, Purge, Requeue
from ..failed.sweeper import Sweeper
from ..foreign import printable

#: Jobs that one request changes, and seconds after which it stops: press again for more.
MOST, SECONDS = 1000, 2.0


def requeue(
    client: Redis, queue: str, exception: str | None = None, limit: int = MOST, exactly: bool = False
) -> dict[str, Any]:
    """Put failed jobs of a queue back into it, the oldest first; atomic for each job. Blocks for about SECONDS.

    Args:
        exception: only those with this exception, with or without its module.
        limit: jobs at most.
        exactly: only those whose recorded exception is just that: no others of that name, no descendants.

    Returns:
        The sweeper's report as a dictionary: ``done``, ``ghosts``, ``changed``, ``unfinished`` …

    Raises:
        UnknownQueue, SweepUnderWay: see the sweeper.
        ConfigurationError: an argument cannot be used.
    """
    if exactly and exception is None:
        raise ConfigurationError("exactly means nothing without exception")
    return _run(client, queue, Requeue(exceptions=exception or (), limit=min(limit, MOST), exactly=exactly))


def sweep(
    client: Redis,
    queue: str,
    policy: str = "ghosts",
    exception: str | None = None,
    older_than: str | None = None,
    exactly: bool = False,
    everything: bool = False,
    confirmed: int | None = None,
) -> dict[str, Any]:
    """Drop entries without a job (``ghosts``), or move failed jobs to the dead letters (``bury``), or delete them
    (``purge``).

    Args:
        policy: as above.
        exception, exactly: as for ``requeue``; not for ghosts.
        older_than: a duration such as ``10m``: only jobs that failed so long ago; not for ghosts.
        everything: has to be said for a ``purge`` that leaves nothing out, see ``Purge``.
        confirmed: for a ``purge``: the jobs that it may delete. Where it would delete more, none is deleted.

    Returns:
        As ``requeue``.

    Raises:
        UnknownQueue, SweepUnderWay: see the sweeper.
        ConfigurationError: an argument cannot be used.
    """
    if policy not in ("ghosts", "bury", "purge"):
        raise ConfigurationError(f"policy is {printable(policy, 50)!r}: give ghosts, bury or purge")
    chosen = exception is not None or older_than is not None
    if exactly and exception is None:
        raise ConfigurationError("exactly means nothing without exception")
    if policy == "ghosts" and (chosen or everything):
        raise ConfigurationError(
            "exception, older_than and all mean nothing for ghosts: give policy=bury or policy=purge"
        )
    if (everything or confirmed is not None) and policy != "purge":
        raise ConfigurationError("all=1 and confirm are for purge")
    if policy == "ghosts":
        return _run(client, queue, Ghosts())
    age = parse_duration(older_than) if older_than else None
    if policy == "bury":
        return _run(client, queue, Bury(exceptions=exception or (), older_than=age, limit=MOST, exactly=exactly))
    purge = Purge(exceptions=exception or (), older_than=age, limit=MOST, exactly=exactly, everything=True)
    if not purge.chooses and not everything:
        raise ConfigurationError(
            "this purge deletes every failed job of the queue: say which (exception, older_than above 0), or all=1"
        )
    if purge.chooses and everything:
        raise ConfigurationError("all=1 is for a purge that exception and older_than do not narrow: leave one out")
    (report,) = Sweeper(queue, client, purge).run(dry_run=True, max_seconds=SECONDS)
    if not report.done:
        return {**report.as_dict(), "dry_run": False}
    if confirmed is None or report.done > confirmed:
        jobs = f"{report.done} job{'' if report.done == 1 else 's'}"
        raise ConfigurationError(
            f"this deletes {jobs} of {printable(queue, 50)!r} for ever, and nothing is deleted yet: "
            f"confirm={report.done} says that you mean them"
        )
    return _run(client, queue, replace(purge, limit=min(MOST, confirmed)))


def _run(client: Redis, queue: str, policy: Policy) -> dict[str, Any]:
    (report,) = Sweeper(queue, client, policy).run(max_seconds=SECONDS)
    return report.as_dict()
