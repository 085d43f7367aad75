"""The chart of connections, and how what the page shows is written for people."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keys import named
from redis import Redis

from rq_pooled.capacity.trend import read_samples
from rq_pooled.flask.chart import HEIGHT, WIDTH, bars, chart
from rq_pooled.monitoring.words import number, span
from rq_pooled.store.keys import SAMPLES
from rq_pooled.store.scripts import load
from rq_pooled.store.statistics import note_clients

NOW = 1_800_000_000.0
SAMPLE = st.builds(
    lambda ago, connected, roles: {"time": NOW - ago, "connected": connected, "roles": roles},
    st.floats(0, 3600),
    st.integers(0, 20_000),
    st.dictionaries(st.sampled_from(["web", "command", "listen", "job", "cli", "odd <role>"]), st.integers(0, 20_000)),
)


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


@given(st.lists(SAMPLE, min_size=1, max_size=30), st.one_of(st.none(), st.integers(1, 100_000)))
def test_everything_is_inside_and_bands_add_up(samples: list[dict[str, Any]], ceiling: int | None) -> None:
    """Whatever was published: nothing leaves the chart, and the bands' latest sizes are the latest total."""
    samples.sort(key=lambda sample: float(sample["time"]))
    found = chart(samples, NOW, {"ceiling": ceiling, "budget": None})
    assert found is not None
    paths = [area for band in found["bands"] for area in band["areas"]] + found["lines"]
    for x, y in (point for path in paths for point in points(path)):
        assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    assert sum(band["latest"] for band in found["bands"]) == found["latest"] == samples[-1]["connected"]
    assert len(found["bands"]) <= 5 and found["bands"][-1]["name"] == "others"
    assert bool(found["limits"]) != ("ceiling" in found["hidden"]) or ceiling is None


def test_gaps_stay_gaps() -> None:
    """Where nobody looked for some minutes there is no line; old samples are left out; none at all is None."""
    times = [NOW - 4000, NOW - 3000, NOW - 2985, NOW - 1000, NOW - 985]
    found = chart([{"time": time, "connected": 5, "roles": {}} for time in times], NOW, {"ceiling": 10})
    assert found is not None and len(found["lines"]) == 2
    assert found["limits"] == [{"name": "ceiling", "value": 10, "y": pytest.approx(HEIGHT * (1 - 10 / 20))}]
    assert chart([], NOW, {}) is None


@given(st.floats(1, 3600))
def test_the_axis_fits_the_data(age: float) -> None:
    """Jobs that ended over the last minutes fill at least the right half of the chart, once there are two minutes."""
    slots = [{"time": NOW - age + at, "finished": 3, "failed": 1} for at in range(0, int(age), 15)]
    found = bars({"since": NOW - age, "slots": slots}, NOW)
    assert found is not None and found["minutes"] * 60 >= age
    assert found["minutes"] * 60 <= max(age * 2, 240) and found["most"] <= 32


def test_samples_hold_the_roles_that_processes_published(redis: Redis) -> None:
    """One look notes how many connections of each role our processes have, whatever odd hash is among them."""
    for name, held in (("a", '{"web":3}'), ("b", '{"web":2,"command":1}'), ("c", "nonsense"), ("d", None)):
        redis.zadd(named("rq_pooled:stats"), {named(f"rq_pooled:stats:{name}"): 9e12})
        if held:
            redis.hset(named(f"rq_pooled:stats:{name}"), "connections", held)
    for words in load():
        redis.execute_command(*words)
    assert redis.execute_command(*note_clients(40, 100, 15)) == 1
    assert redis.execute_command(*note_clients(41, 100, 15)) == 0
    (sample,) = read_samples(redis)
    assert (sample.connected, sample.maxclients, dict(sample.roles)) == (40, 100, {"web": 5, "command": 1})
    redis.rpush(SAMPLES, json.dumps([1.0, 2, 3]))  # as it was written before roles were
    assert read_samples(redis)[0].as_dict()["roles"] == {}


def test_numbers_are_for_people() -> None:
    """Durations and numbers are short, and never a bare float."""
    shown = [span(s) for s in (None, 0.004, 0.4, 1, 59.6, 99, 101, 5999, 6001, 172_799, 200_000)]
    assert shown == ["–", "4 ms", "0.4 s", "1 s", "60 s", "99 s", "2 min", "100 min", "2 h", "48 h", "2 d"]
    assert number(1234567) == "1\u202f234\u202f567" and number(None) == "–"
