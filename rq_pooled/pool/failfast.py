"""No request hangs on Redis: one deadline for all of an enqueue, and an answer at once while the server is away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import TimeoutError as RedisTimeoutError

from ..connection.cluster import said
from ..deadline import within
from ..errors import RedisUnavailable, ServerFull, ServerUnreachable
from .breaker import BreakerOpen
from .pool import Pool

#: Roles that wait: a job is run again if it fails, and survives a restart of the server better by waiting.
PATIENT_ROLES = ("job",)


@contextmanager
def failing_fast(client: Any, more_time: float = 0.0) -> Iterator[None]:
    """Give the commands inside ENQUEUE_DEADLINE in all, and do not begin them while the pool's breaker is open.

    For a client of another pool than ours, and in jobs, nothing changes.

    Args:
        more_time: seconds beyond ENQUEUE_DEADLINE.

    Raises:
        RedisUnavailable: the server could not be used a moment ago (BREAKER_DELAY); nothing was sent.
    """
    pool = client.connection_pool
    seconds = pool.settings.enqueue_deadline if isinstance(pool, Pool) else 0.0
    if not isinstance(pool, Pool) or not seconds or pool.role in PATIENT_ROLES:
        yield
        return
    breaker = pool.breaker
    try:
        trial = breaker.admit()
    except BreakerOpen as refused:
        raise RedisUnavailable(
            f"{pool.address} could not be used {refused.failed_ago:.1f} s ago: {refused.reason.rstrip('.')}. Tried "
            "again in "
            f"{max(0.0, refused.again_in):.1f} s (BREAKER_DELAY); nothing was sent"
        ) from None
    try:
        with within(seconds + more_time, "ENQUEUE_DEADLINE"):
            yield
    except (ServerUnreachable, RedisTimeoutError) as error:
        if not isinstance(error, ServerFull):
            # A full server is there, and the next call may find a place.
            breaker.failed(said(error.__cause__ if isinstance(error.__cause__, Exception) else error))
        elif trial:
            breaker.undecided()
        raise
    except BaseException:
        # The server may be well: one connection was lost, all are in use, the reply is an error, or this thread is to
        # end.
        if trial:
            breaker.undecided()
        raise
    else:
        breaker.succeeded()
