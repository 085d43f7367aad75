"""How the number of connections developed: samples of the last hour in one list, and the trend in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from redis import Redis

from ..foreign import is_number, plain
from ..store.keys import SAMPLES

#: Seconds of samples that count for the trend, and how many it takes at least.
TREND_SECONDS, TREND_SAMPLES = 600.0, 20
#: The most samples that are read: one per second of an hour.
_MOST = 3600
#: Share of the steps between samples that may go down while the growth is still called steady.
_DIPS = 0.1


class Sample(NamedTuple):
    """One look at the server: server time, its clients, how many it allows (0: unknown), those of ours by role."""

    time: float
    connected: int
    maxclients: int
    roles: Mapping[str, int] = MappingProxyType({})

    def as_dict(self) -> dict[str, Any]:
        """Return it as a plain dictionary."""
        return {
            "time": self.time,
            "connected": self.connected,
            "maxclients": self.maxclients or None,
            "roles": dict(self.roles),
        }


class Trend(NamedTuple):
    """Connections per minute, positive while they grow, None without enough samples; ``steady`` tells a leak's
    shape.
    """

    per_minute: float | None
    steady: bool

    def minutes_left(self, connected: int | None, maxclients: int | None) -> float | None:
        """Return the minutes until the server is full if it goes on like this, None if it does not grow."""
        if not self.steady or not self.per_minute or connected is None or not maxclients:
            return None
        return round(max(0, maxclients - connected) / self.per_minute, 1)


def read_samples(client: Redis) -> list[Sample]:
    """Return the samples of the last hour, oldest first; what is none is left out."""
    samples = (_sample(entry) for entry in reversed(client.lrange(SAMPLES, 0, _MOST)))
    return [sample for sample in samples if sample is not None]


def _sample(entry: bytes | str) -> Sample | None:
    try:
        sample = Sample(*json.loads(entry))
    except (ValueError, TypeError, RecursionError):
        return None
    *numbers, roles = sample
    fits = all(map(is_number, numbers)) and isinstance(roles, Mapping) and all(map(is_number, roles.values()))
    return sample._replace(roles=plain(dict(roles))) if fits else None


def trend(samples: Sequence[Sample]) -> Trend:
    """Return the growth from the first to the last sample of the last ten minutes.

    The growth is steady if it is seen over at least 20 samples: five minutes, at the default interval. The number goes
    up in half of the steps, and down in a tenth at most: a deploy ends sooner, and a busy hour also shrinks.
    """
    recent = [sample for sample in samples if sample.time >= samples[-1].time - TREND_SECONDS]
    if len(recent) < TREND_SAMPLES:
        return Trend(None, False)
    first, last = recent[0], recent[-1]
    if last.time <= first.time:
        return Trend(None, False)
    slope = (last.connected - first.connected) / (last.time - first.time) * 60
    steps = [after.connected - before.connected for before, after in pairwise(recent)]
    downs, ups = sum(step < 0 for step in steps), sum(step > 0 for step in steps)
    steady = slope > 0 and downs <= _DIPS * len(steps) and 2 * ups >= len(steps)
    return Trend(round(slope, 1), steady)
