"""Delay arithmetic: how long to wait before trying again. Pure functions; redis-py's backoff classes do the curve
of connecting again."""

from __future__ import annotations

import random
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


def retry_delays(count: int, base: float, factor: float, cap: float, jitter: str | None) -> list[int]:
    """Return ``count`` delays before the tries of one job, in whole seconds.

    The curve is ``base``, ``base * factor``, ``base * factor ** 2`` … up to ``cap``; redis-py's classes know only the
    factor 2, and their decorrelated jitter ends at the cap with all clients in step. Here each delay is drawn below
    the cap, not cut off at it, so jobs that have all reached the cap stay spread.

    Args:
        count: how many.
        base: the first step in seconds.
        factor: by which a step grows, at least 1.
        cap: the longest step in seconds.
        jitter: ``full`` draws from [0, step], ``equal`` from [step / 2, step], ``decorrelated`` from [base, the delay
            before times (factor + 1)]; None takes the step itself.
    """
    delays = []
    step = previous = min(base, cap)
    for _ in range(count):
        if jitter == "full":
            delay = random.uniform(0, step)
        elif jitter == "equal":
            delay = random.uniform(step / 2, step)
        elif jitter == "decorrelated":
            delay = previous = random.uniform(min(base, cap), min(cap, previous * (factor + 1)))
        else:
            delay = step
        delays.append(min(int(delay + 0.5), int(cap)))
        step = min(cap, step * factor)
    return delays
