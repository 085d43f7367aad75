"""Runs the tests of tests/cluster in processes whose keys have a hash tag: RQ reads its prefix once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import PYTHONPATH, TESTS

from rq_pooled.rq_api import RQ3

FILES = sorted((TESTS / "cluster").glob("test_*.py"))

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(not RQ3, reason="RQ 2 has one prefix, without a hash tag")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_a_cluster(file: Path) -> None:
    """With a hash tag in the prefix, an application works on a cluster."""
    env = {**os.environ, "RQ_KEY_PREFIX": "{app}", "PYTHONPATH": PYTHONPATH}
    ended = subprocess.run(  # noqa: PLW1510 - its output is the message
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env=env,
        capture_output=True,
        text=True,
        timeout=580,
        cwd=TESTS.parent,
    )
    assert ended.returncode == 0 and " skipped" not in ended.stdout, ended.stdout[-8000:] + ended.stderr[-2000:]
