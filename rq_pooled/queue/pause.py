"""Pauses queues: workers of ours begin no further job of a paused one, and go on with those that run.

claim.lua treats a paused queue like one whose limit is reached. So a worker that sleeps watches the key that ``resume``
deletes, and wakes at once. Stock workers know no pauses.
"""

from __future__ import annotations

import re

from redis import Redis

from ..errors import UnknownQueue
from ..foreign import MAX_VALUE, names_key, printable, replies_of
from ..store.keys import FULL, PAUSED, QUEUES, queue_key
from ..wire import raw, text


def pause(connection: Redis, queue: str) -> bool:
    """Pause a queue until it is resumed; return False if it was paused already. Blocks for three round trips.

    Raises:
        UnknownQueue: nothing was ever enqueued in it.
    """
    known(connection, queue)
    seconds, microseconds = connection.time()
    with names_key(PAUSED):
        return bool(connection.hsetnx(PAUSED, raw(queue), f"{seconds}.{microseconds:06}"))


def known(connection: Redis, queue: str) -> str:
    """Return the name of a queue that there is. Blocks for a round trip.

    Raises:
        UnknownQueue: nothing was ever enqueued in it.
    """
    if not connection.sismember(QUEUES, raw(queue_key(queue))):  # type: ignore[arg-type] # it takes bytes, too
        raise UnknownQueue(f"there is no queue {printable(queue, MAX_VALUE)!r}: nothing was ever enqueued in it")
    return queue


def resume(connection: Redis, queue: str) -> bool:
    """Resume a queue and wake the workers that wait for it; return False if it was not paused. Blocks."""
    pipeline = connection.pipeline(transaction=True)
    pipeline.hdel(PAUSED, raw(queue))
    pipeline.delete(raw(f"{FULL}{queue}"))
    with names_key(PAUSED):
        return bool(pipeline.execute()[0])


def paused(connection: Redis) -> dict[str, float]:
    """Return the paused queues, and since when, seconds since the epoch. A key of another type pauses none.

    Blocks for a round trip.
    """
    pipeline = connection.pipeline(transaction=False)
    pipeline.hgetall(PAUSED)
    (found,) = replies_of(pipeline)
    return {text(name): paused_since(since) for name, since in sorted((found or {}).items())}


def paused_since(written: bytes | None) -> float:
    """Return since when a queue is paused by what stands in the hash; 0 where that is no time."""
    word = text(written or b"")
    return float(word) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", word) else 0.0
