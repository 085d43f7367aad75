"""The state of every queue, of RQ's own as of ours, as plain dictionaries; docs/monitoring.md has their keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from redis import Redis
from rq.registry import (
    BaseRegistry,
    CanceledJobRegistry,
    DeferredJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ScheduledJobRegistry,
    StartedJobRegistry,
)

from ..foreign import plain, replies_of, seconds_of
from ..pool.registry import get_connection
from ..rq_version import check_prefix
from ..store.keys import (
    RATE_LIMITS,
    SUSPENDED,
    dead_letters_key,
    job_key,
    queue_key,
    registry_key,
    waiting_key,
    workers_key,
)
from ..store.queues import queue_names
from ..wire import raw, text

_REGISTRIES: dict[str, type[BaseRegistry]] = {
    "started": StartedJobRegistry,
    "scheduled": ScheduledJobRegistry,
    "deferred": DeferredJobRegistry,
    "failed": FailedJobRegistry,
    "finished": FinishedJobRegistry,
    "canceled": CanceledJobRegistry,
}
#: What is counted besides, in the order in which it is asked for.
_COUNTED_STATES = (*_REGISTRIES, "dead", "ready")
#: Ids at the head of a queue among which the oldest job is looked for; some may have no job any more.
_HEAD = 10
#: Rate limits of RQ 3, and jobs that wait at each, whose queues are looked up.
_LIMITS, _COUNTED = 100, 200


def queues(connection: Redis | None = None) -> list[dict[str, Any]]:
    """Return the state of every queue, by name; changes nothing, and cleans nothing up.

    Blocks for three round trips, and for two more where jobs wait at rate limits.

    Each has ``name``, ``length``, ``workers``, ``suspended``, and ``oldest_age`` (seconds that the job at the head has
    been queued, None if there is none). The numbers of jobs are ``started``, ``scheduled``, ``deferred``, ``failed``,
    ``finished``, ``canceled`` and ``dead`` (buried failures). RQ 3 adds ``ready`` (dependents that a stock worker has
    still to queue) and ``rate_limited`` (of 100 limits, 200 jobs each). A key that is of another type than RQ's counts
    as empty, and ``unreadable`` names it: ``queued``, ``workers`` or a registry. A name that is no text is shown
    with escapes such as ``\\xff``.

    Raises:
        ConfigurationError: RQ keeps its data under another prefix.
    """
    check_prefix()
    client = connection or get_connection()
    names = queue_names(client.execute_command)
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    pipeline.exists(SUSPENDED)
    for name in names:
        pipeline.llen(raw(queue_key(name)))
        pipeline.lrange(raw(queue_key(name)), 0, _HEAD - 1)
        pipeline.scard(raw(workers_key(name)))
        for registry in _REGISTRIES.values():
            pipeline.zcard(raw(registry.key_template.format(name)))
        pipeline.zcard(raw(dead_letters_key(name)))
        pipeline.zcard(raw(registry_key("ready", name)))
    pipeline.srandmember(RATE_LIMITS, _LIMITS)
    (seconds, microseconds), suspended, *replies, limits = replies_of(pipeline)
    held = _held_back(client, limits or ())
    now, width = seconds + microseconds / 1e6, 3 + len(_COUNTED_STATES)
    heads = [replies[at + 1] or [] for at in range(0, len(replies), width)]
    ages = _queued_for(client, heads, now)
    return [
        {
            "name": plain(name),
            "length": replies[at] or 0,
            "oldest_age": age,
            "workers": replies[at + 2] or 0,
            "suspended": bool(suspended),
            **dict(zip(_COUNTED_STATES, [count or 0 for count in replies[at + 3 : at + width]])),
            "rate_limited": held[name],
            "unreadable": [
                state
                for state, reply in zip(
                    ("queued", "workers", *_COUNTED_STATES), (replies[at], *replies[at + 2 : at + width])
                )
                if reply is None
            ],
        }
        for name, at, age in zip(names, range(0, len(replies), width), ages)
    ]


def _held_back(client: Redis, limits: Sequence[bytes]) -> Counter[str]:
    """Return how many jobs of each queue wait at these rate limits: RQ keeps them by limit."""
    pipeline = client.pipeline(transaction=False)
    for limit in limits:
        pipeline.zrange(raw(waiting_key(text(limit))), 0, _COUNTED - 1)
    waiting = [job_id for ids in (replies_of(pipeline) if limits else ()) for job_id in ids or ()]
    for job_id in waiting:
        pipeline.hget(raw(job_key(text(job_id))), "origin")
    return Counter(text(origin) for origin in (replies_of(pipeline) if waiting else ()) if origin is not None)


def _queued_for(client: Redis, heads: Sequence[Sequence[Any]], now: float) -> list[float | None]:
    pipeline = client.pipeline(transaction=False)
    for head in heads:
        for job_id in head:
            pipeline.hget(raw(job_key(text(job_id))), "enqueued_at")
    replies = iter(replies_of(pipeline) if any(heads) else ())
    ages: list[float | None] = []
    for head in heads:
        times = [when for when in (seconds_of(next(replies)) for _ in head) if when is not None]
        ages.append(round(max(0.0, now - min(times)), 3) if times else None)
    return ages
