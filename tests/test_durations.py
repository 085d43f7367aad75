"""Durations as people write them."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rq_pooled.durations import parse_duration, show_duration
from rq_pooled.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("45s", 45), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("1w", 604_800), ("0.5", 0.5), (7, 7)],
)
def test_parses_what_people_write(text: str | float, seconds: float) -> None:
    """Each accepted form gives its seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "m", "-5", "10 minutes", "30m1h", "1h1h", "nan", "inf", "1e400", "ten", "9" * 400 + "d", "9" * 5000 + "m"],
)
def test_refuses_everything_else_in_words(text: str) -> None:
    """What cannot be understood is refused with the text, what it was for, and how to write it."""
    with pytest.raises(ConfigurationError, match="--older-than is .*write it as 45s, 10m, 1h30m or 2d"):
        parse_duration(text, "--older-than")


@pytest.mark.parametrize("text", ["36526d", 1e300, sys.maxsize, "999999999999999w"])
def test_refuses_more_than_a_hundred_years(text: str | float) -> None:
    """What no server keeps is refused here, with the longest that is taken."""
    assert parse_duration("36525d") == 36_525 * 86_400
    with pytest.raises(ConfigurationError, match=r"once_ttl is .* at most 100 years \(36525d\)"):
        parse_duration(text, "once_ttl")


def test_what_is_shown_is_in_days_at_most() -> None:
    """Who wrote 30d reads 30d again, not weeks."""
    assert [show_duration(n * 86_400) for n in (7, 30, 90)] == ["7d", "30d", "90d"]


@given(st.integers(0, 10_000_000))
def test_what_is_shown_can_be_parsed_and_is_close(seconds: int) -> None:
    """A shown duration reads back as the same one, less what is smaller than its second unit."""
    again = parse_duration(show_duration(seconds))
    assert again <= seconds
    assert seconds - again < max(1, seconds / 7)
