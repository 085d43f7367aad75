"""Everything breaks at once, for a minute; and the harness that says so is no yes-man."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from chaos import plan
from chaos.run import run
from chaos.soak import soak
from redis import Redis

import rq_pooled

#: Seeds that found something once come first.
SEED = 7


@pytest.mark.timeout(420)
def test_a_minute_of_chaos_loses_nothing_and_counts_nothing_twice(_server_available: None, tmp_path: Path) -> None:
    """Kills, freezes, restarts, cut connections and full memory at random: every job ends, recorded once, see verdict.py."""
    report = run(SEED, 60, directory=tmp_path)
    assert report.ok, report.text()
    assert report.verdict.figures["jobs"] > 50 and report.verdict.figures["faults"] > 10


@pytest.mark.timeout(300)
def test_the_harness_sees_a_missing_fence(_server_available: None, tmp_path: Path) -> None:
    """With an engine that records outcomes whose claim is gone, and does not ask whether it was handed on, the same
    harness finds jobs that were recorded twice."""
    engine = tmp_path / "engine"
    shutil.copytree(Path(rq_pooled.__file__).parent, engine / "rq_pooled")
    for name, guard, instead in (
        ("commit.lua", "result = 'lost'", "result = 'ok'"),
        ("heartbeat.lua", "handed_on[#handed_on + 1] = number", ""),
    ):
        script = engine / "rq_pooled" / "lua" / name
        text = script.read_text()
        assert guard in text
        script.write_text(text.replace(guard, instead))
    report = run(1, 30, engine, frozenset({"freeze worker"}), tmp_path)
    assert any("not one" in problem for _, problem in report.verdict.problems), report.text()


def test_a_seed_is_a_schedule() -> None:
    """The same seed gives the same faults, another seed others; each is over in time, and the server has one at a time."""
    assert plan.make(7, 300) == plan.make(7, 300) != plan.make(8, 300)
    for seed in range(50):
        faults = plan.make(seed, 300)
        assert {fault.kind for fault in faults} <= set(plan.KINDS) and len(faults) > 60
        assert all(fault.at + fault.length <= 300 for fault in faults)
        on_server = [fault for fault in faults if fault.kind in plan.ON_SERVER]
        assert all(a.at + a.length < b.at for a, b in zip(on_server, on_server[1:]))  # noqa: RUF007
    assert {fault.kind for fault in plan.make(7, 300)} == set(plan.KINDS)


@pytest.mark.timeout(180)
def test_many_jobs_leave_nothing_in_the_parent(server: Any, redis: Redis, tmp_path: Path) -> None:
    """The parent's memory grows under 10 MB, and descriptors, connections and threads do not grow at all."""
    result = soak(server.url, 8000, tmp_path / "log")
    assert result.recorded == 8000
    assert result.growth < 10, f"{result.first}\n{result.last}"
    assert result.last.descriptors <= result.first.descriptors
    assert result.last.connections <= result.first.connections
    assert result.last.threads == 1


@pytest.mark.timeout(300)
def test_a_thousand_replaced_horses_leave_no_descriptor(server: Any, redis: Redis, tmp_path: Path) -> None:
    """With a fresh process per job, a thousand jobs later the parent holds what it held before, and no zombie is left."""
    result = soak(server.url, 1000, tmp_path / "log", RQ_POOLED_MAX_JOBS_PER_HORSE="1")
    assert result.recorded == 1000
    assert result.last.descriptors <= result.first.descriptors, f"{result.first}\n{result.last}"
    assert result.growth < 10, f"{result.first}\n{result.last}"


