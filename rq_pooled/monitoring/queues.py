"""The state of every queue, of RQ's own as of ours, as plain dictionaries; docs/monitoring.md has their keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from redis import Redis

from ..foreign import is_number, plain, replies_of, seconds_of
from ..pool.registry import get_connection
from ..queue.limits import read_limit
from ..queue.pause import known, paused_since
from ..rq_version import check_prefix
from ..store.keys import LIMITS, PAUSED, RATE_LIMITS, SUSPENDED, job_key, waiting_key
from ..store.queues import PAGE, first_queues, queue_states
from ..store.scripts import run_script
from ..wire import raw, text

#: What is counted besides jobs and workers, in the order of queue_states.lua.
_STATES = ("started", "scheduled", "deferred", "failed", "finished", "canceled", "dead", "ready")
#: Ids at the head of a queue among which the oldest job is looked for; some may have no job any more.
_HEAD = 10
#: Rate limits of RQ 3, and jobs that wait at each, whose queues are looked up.
_LIMITS, _COUNTED = 100, 200


def queues(connection: Redis | None = None, only: str | None = None) -> list[dict[str, Any]]:
    """Return the state of the first 2,000 queues (``first_queues``), or ``only`` of this one; changes nothing.

    Blocks for two round trips, one for each 100 queues, and two more where jobs wait at rate limits.

    Each has ``name``, ``length``, ``workers``, ``suspended``, and ``oldest_age`` (seconds that the job at the head has
    been queued, None if there is none). The numbers of jobs are ``started``, ``scheduled``, ``deferred``, ``failed``,
    ``finished``, ``canceled`` and ``dead`` (buried failures). ``paused_for`` is for how many seconds it has been
    paused, None if it is not. ``limit`` is its limit in words, or None. ``schedule_lag`` is for how many seconds the
    first scheduled job has been due. RQ 3 adds ``ready`` (dependents that a stock worker has
    still to queue) and ``rate_limited`` (of 100 limits, 200 jobs each). A key that is of another type than RQ's counts
    as empty, and ``unreadable`` names it: ``queued``, ``workers`` or a registry. A name that is no text is shown
    with escapes such as ``\\xff``.

    Raises:
        ConfigurationError: RQ keeps its data under another prefix.
        UnknownQueue: there is none of this name.
    """
    check_prefix()
    client = connection or get_connection()
    names = first_queues(client.execute_command) if only is None else [known(client, only)]
    pipeline: Any = client.pipeline(transaction=False)
    pipeline.time()
    pipeline.exists(SUSPENDED)
    pipeline.srandmember(RATE_LIMITS, _LIMITS)
    pipeline.hmget(PAUSED, [raw(name) for name in names] or [b""])
    pipeline.hmget(LIMITS, [raw(name) for name in names] or [b""])
    (seconds, microseconds), suspended, limits, pauses, own_limits = replies_of(pipeline)
    own = {name: str(limit.limit) for name, limit in zip(names, map(read_limit, own_limits or ())) if limit}
    paused = {name: paused_since(since) for name, since in zip(names, pauses or ()) if since is not None}
    held, now = _held_back(client, limits or ()), seconds + microseconds / 1e6
    found = []
    for start in range(0, len(names), PAGE):
        page = names[start : start + PAGE]
        for name, (length, workers, *others) in zip(page, run_script(client, queue_states(page, _HEAD))):
            counts = dict(zip(_STATES, others))
            due, *heads = others[len(_STATES) :]
            times = [when for when in map(seconds_of, heads) if when is not None]
            found.append(
                {
                    "name": plain(name),
                    "length": max(0, length),
                    "oldest_age": round(max(0.0, now - min(times)), 3) if times else None,
                    "workers": max(0, workers),
                    "schedule_lag": _lag(due, now),
                    "suspended": bool(suspended),
                    "paused_for": round(max(0.0, now - paused[name]), 3) if name in paused else None,
                    "limit": own.get(name),
                    **{state: max(0, count) for state, count in counts.items()},
                    "rate_limited": held[name],
                    "unreadable": [
                        state for state, count in {"queued": length, "workers": workers, **counts}.items() if count < 0
                    ],
                }
            )
    return found


def _lag(due: bytes, now: float) -> float:
    """Return for how many seconds a job has been due by its score; what is due at minus infinity is not late."""
    score = float(due or "inf")
    return round(max(0.0, now - score), 3) if is_number(score) else 0.0


def _held_back(client: Redis, limits: Sequence[bytes]) -> Counter[str]:
    """Return how many jobs of each queue wait at these rate limits: RQ keeps them by limit."""
    pipeline = client.pipeline(transaction=False)
    for limit in limits:
        pipeline.zrange(raw(waiting_key(text(limit))), 0, _COUNTED - 1)
    waiting = [job_id for ids in (replies_of(pipeline) if limits else ()) for job_id in ids or ()]
    for job_id in waiting:
        pipeline.hget(raw(job_key(text(job_id))), "origin")
    return Counter(text(origin) for origin in (replies_of(pipeline) if waiting else ()) if origin is not None)
