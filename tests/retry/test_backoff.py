"""Delays: they grow from base to cap and stay spread there."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from rq_pooled.config import Settings
from rq_pooled.delays import jittered_delay, reconnect_delays


@given(
    base=st.floats(0.001, 10),
    factor=st.floats(1, 1000),
    failures=st.integers(0, 10**9),
)
def test_delay_lies_in_the_upper_half_of_its_step(base: float, factor: float, failures: int) -> None:
    """A delay is never above its step, base doubled up to the cap, nor below half of it, however long the outage."""
    cap = base * factor
    step = min(cap, base * 2 ** min(failures, 64))
    assert step / 2 <= jittered_delay(failures, base, cap) <= step


def test_default_delays_grow_to_the_cap() -> None:
    """With the default settings reconnecting begins within 100 ms and ends up between 1.5 and 3 seconds."""
    settings = Settings()
    delays = list(islice(reconnect_delays(settings.reconnect_base, settings.reconnect_cap), 12))
    assert 0.05 <= delays[0] <= 0.1 and 0.1 <= delays[1] <= 0.2
    assert all(1.5 <= delay <= 3 for delay in delays[5:])


def test_jitter_is_kept_at_the_cap() -> None:
    """Clients that all wait for the longest time do not come back together."""
    delays = {round(next(islice(reconnect_delays(0.1, 3), 20, None)), 3) for _ in range(50)}
    assert len(delays) > 25 and max(delays) - min(delays) > 0.5
