"""The examples of docs/limits.md, docs/once-and-unique.md and docs/scheduling.md do what these say."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from redis import Redis
from support import ROOT

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("limited.py", ["other: JobStatus.FINISHED"]),
        ("once.py", ["the same job: True", "already queued: True", "full: 3 of 3", "first: True second: None",
                     "spent by the first: True"]),
        ("schedule.py", ["later: JobStatus.FINISHED often: 3 nightly waits: True"]),
    ],
)  # fmt: skip
def test_example_runs_as_the_documentation_says(server: Any, redis: Redis, name: str, expected: list[str]) -> None:
    """Each example runs by itself against a server, without a warning."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-W", "error", name],
        cwd=EXAMPLES, env={**os.environ, "RQ_POOLED_URL": server.url, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert set(expected) <= set(lines), result.stdout
    if name == "limited.py":
        starts = [float(word) for word in lines[0].removeprefix("slow: ").split()]
        assert len(starts) == 9 and all(later - earlier >= 0.8 for earlier, later in zip(starts, starts[3:]))
