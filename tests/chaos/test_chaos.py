"""Everything breaks at once, for a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.run import run

#: Seeds that found something once come first.
SEED = 7


@pytest.mark.timeout(420)
def test_a_minute_of_chaos_loses_nothing_and_counts_nothing_twice(_server_available: None, tmp_path: Path) -> None:
    """Kills, freezes, restarts, cut connections and full memory at random: every job ends, recorded once, see
    verdict.py.
    """
    report = run(SEED, 60, directory=tmp_path)
    assert report.ok, report.text()
    assert report.verdict.figures["looks at connections"] > 100
    assert report.verdict.figures["jobs"] > 50 and report.verdict.figures["faults"] > 10
