"""Many jobs through one worker: its parent neither grows nor leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chaos.soak import soak
from redis import Redis


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
def test_hundreds_of_replaced_horses_leave_no_descriptor(server: Any, redis: Redis, tmp_path: Path) -> None:
    """With a fresh process per job, 300 jobs later the parent holds what it held before."""
    result = soak(server.url, 300, tmp_path / "log", RQ_POOLED_MAX_JOBS_PER_HORSE="1")
    assert result.recorded == 300
    assert result.last.descriptors <= result.first.descriptors, f"{result.first}\n{result.last}"
    assert result.growth < 10, f"{result.first}\n{result.last}"
