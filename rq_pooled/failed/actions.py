"""What one request does to failed jobs: requeue, bury or delete some, sweep a queue. Bounded: it ends soon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from redis import Redis

from ..durations import parse_duration
from ..errors import ConfigurationError
from ..foreign import printable
from .policies import Bury, Ghosts, Policy, Purge, Requeue
from .sweeper import Sweeper

#: Jobs that one request changes, and seconds after which it stops: press again for more.
MOST, SECONDS = 1000, 2.0

#: What can be done to jobs, and by which policy.
ACTS: dict[str, Callable[[], Policy]] = {"requeue": Requeue, "bury": Bury, "delete": lambda: Purge(everything=True)}


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


def counted(client: Redis, queue: str, act: str) -> dict[str, Any]:
    """Return what ``requeue`` or a ``sweep`` of ghosts would do, as a report; changes nothing. Blocks for SECONDS.

    Raises:
        UnknownQueue, SweepUnderWay: see the sweeper.
        ConfigurationError: ``act`` is another word.
    """
    if act not in ("requeue", "sweep"):
        raise ConfigurationError(f"act is {printable(act, 50)!r}: give requeue or sweep")
    return _run(client, queue, Ghosts() if act == "sweep" else Requeue(limit=MOST), dry_run=True)


def _run(client: Redis, queue: str, policy: Policy, dry_run: bool = False) -> dict[str, Any]:
    (report,) = Sweeper(queue, client, policy).run(dry_run=dry_run, max_seconds=SECONDS)
    return report.as_dict()


def act_on(
    client: Redis,
    act: str,
    by_queue: Mapping[str, Sequence[str]],
    dead: bool,
    count_done: Callable[[int, int], None],
) -> dict[str, Any]:
    """Requeue, bury or delete jobs by id, each in one atomic step that checks that it still has failed.

    Args:
        client: of the server.
        act: of ACTS.
        by_queue: ids of failed jobs; of dead letters with ``dead``.
        count_done: called after each queue with its place among them, and how many were done.

    Returns:
        ``done``, ``gone`` (not there any more), ``changed`` (not failed any more), and ``queues`` that changed.
    """
    if dead and act == "bury":
        raise ConfigurationError("dead letters are buried already: requeue or delete them")
    words: list[str] = []
    for at, (name, of_queue) in enumerate(by_queue.items()):
        said = Sweeper(name, client, (), dead=dead).act_on(name, of_queue, ACTS[act]())  # type: ignore[arg-type]
        words += said.values()
        count_done(at, list(said.values()).count("done"))
    gone = words.count("gone") + words.count("ghost")
    return {
        "done": words.count("done"),
        "gone": gone,
        "changed": len(words) - gone - words.count("done"),
        "queues": [name for name in by_queue if name],
    }
