"""The delays of Backoff: what each shape keeps to, whatever its arguments."""

from __future__ import annotations

import itertools
import pickle
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rq import Retry

from rq_pooled import Backoff, RetryAfter
from rq_pooled.errors import ConfigurationError

shapes = st.fixed_dictionaries(
    {
        "max": st.integers(1, 40),
        "base": st.one_of(st.integers(1, 50), st.floats(0.1, 50)),
        "factor": st.one_of(st.integers(1, 10), st.floats(1, 10)),
        "cap": st.integers(50, 100_000),
        "jitter": st.sampled_from(["full", "equal", "decorrelated", None]),
    }
)


def steps(shape: dict[str, Any]) -> list[float]:
    """The curve without jitter."""
    step, curve = min(shape["base"], shape["cap"]), []
    for _ in range(shape["max"]):
        curve.append(step)
        step = min(shape["cap"], step * shape["factor"])
    return curve


@given(shapes)
def test_delays_are_max_whole_seconds_within_their_step(shape: dict[str, Any]) -> None:
    """Exactly ``max`` whole seconds, none outside of what its shape allows for its step."""
    delays = Backoff(**shape).intervals
    assert len(delays) == shape["max"]
    assert all(type(delay) is int and 0 <= delay <= shape["cap"] for delay in delays)
    previous = min(shape["base"], shape["cap"])
    for delay, step in zip(delays, steps(shape)):
        low, high = {
            None: (step, step),
            "full": (0, step),
            "equal": (step / 2, step),
            "decorrelated": (shape["base"], (previous + 0.5) * (shape["factor"] + 1)),
        }[shape["jitter"]]
        assert low - 0.5 <= delay <= high + 0.5
        previous = delay


@settings(max_examples=15, deadline=None)
@given(shapes)
def test_mean_delay_never_shrinks(shape: dict[str, Any]) -> None:
    """Each try waits as long as the one before, or longer, on average."""
    shape["max"] = min(shape["max"], 12)
    drawn = [Backoff(**shape).intervals for _ in range(600)]
    means = [statistics.fmean(column) for column in zip(*drawn)]
    for shorter, longer in itertools.pairwise(means):
        assert longer >= shorter * 0.85 - 0.6  # some 4 standard errors of 600 draws, and the rounding


@pytest.mark.parametrize("jitter", ["full", "equal", "decorrelated"])
def test_jitter_stays_spread_at_the_cap(jitter: str) -> None:
    """Jobs that have all reached the cap do not come back together."""
    backoff = Backoff(max=30, cap=600, jitter=jitter)
    last = [backoff.intervals[-1] for _ in range(2000)]
    assert max(last.count(value) for value in set(last)) < 100  # of 2000
    assert max(last) - min(last) > 250


def test_each_job_draws_its_own_delays() -> None:
    """One Backoff serves many jobs, and each gets other delays."""
    backoff = Backoff(max=10, cap=3600)
    assert len({tuple(backoff.intervals) for _ in range(50)}) == 50
    assert isinstance(backoff, Retry)


@settings(max_examples=20)
@given(shapes)
def test_backoff_survives_pickling(shape: dict[str, Any]) -> None:
    """A job may return one, which RQ pickles."""
    backoff = pickle.loads(pickle.dumps(Backoff(**shape, on=OSError)))
    assert vars(backoff) == vars(Backoff(**shape, on=OSError))


class Private(Exception):
    """Made to look as if the running program had defined it."""


Private.__module__ = "__main__"


@pytest.mark.parametrize(
    "arguments",
    [
        {"max": 0},
        {"max": 1.5},
        {"max": True},
        {"max": 1001},
        {"max": "3"},
        {"base": 0},
        {"base": -1},
        {"base": float("nan")},
        {"base": "1"},
        {"factor": 0.5},
        {"factor": float("inf")},
        {"cap": 0.5, "base": 0.1},
        {"cap": 5, "base": 6},
        {"cap": 1e12},
        {"cap": None},
        {"jitter": "Full"},
        {"jitter": True},
        {"on": 5},
        {"on": (int,)},
        {"on": "no name"},
        {"on": ("",)},
        {"give_up_on": [None]},
        {"give_up_on": ValueError("an instance")},
        {"on": Private},
    ],
)
def test_bad_arguments_are_refused_when_built(arguments: dict[str, Any]) -> None:
    """No Backoff exists that could not be obeyed; the error names the argument and what was given."""
    with pytest.raises(ConfigurationError) as caught:
        Backoff(**arguments)
    assert "\n" not in str(caught.value) and next(iter(arguments)) in str(caught.value)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "5", None, True, 1e12])
def test_bad_retry_after_is_refused(seconds: Any) -> None:
    """A time that cannot be kept is an error where it is written."""
    with pytest.raises(ConfigurationError):
        RetryAfter(seconds)
