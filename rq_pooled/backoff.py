"""Delay arithmetic: how long to wait before trying again. Pure functions; redis-py's backoff classes do the curve."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from redis.backoff import EqualJitterBackoff

#: redis-py computes ``base * 2 ** failures``: past 1 024 failures, an hour of outage at the default cap, that no longer
#: fits a float. At 2 ** 48 any cap has long been reached.
_LARGEST_EXPONENT = 48


def jittered_delay(failures: int, base: float, cap: float) -> float:
    """Return how many seconds to wait after ``failures`` earlier waits: it doubles from ``base`` up to ``cap``.

    The delay is drawn from the upper half of the step, ``[step / 2, step]``. The jitter is applied after the cap, so
    clients that all reached the cap stay spread (dramatiq's ``compute_backoff`` does the same).

    Args:
        failures: how often was waited before in a row, from 0.
        base: the first step in seconds.
        cap: the longest step in seconds, at least ``base``.
    """
    return float(EqualJitterBackoff(cap=cap, base=base).compute(min(failures, _LARGEST_EXPONENT)))


def reconnect_delays(base: float, cap: float) -> Iterator[float]:
    """Yield, for ever, the seconds to wait before each new attempt to connect; make a new iterator after a success.

    Args:
        base: RECONNECT_BASE, the first step in seconds.
        cap: RECONNECT_CAP, the longest step in seconds.
    """
    for failures in count():
        yield jittered_delay(failures, base, cap)
