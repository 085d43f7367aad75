"""A budget that is just large enough is enough: each process reserves what it opens, when it opens it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import free_port
from redis import Redis
from sampling import Sampler
from support import JOBS, PYTHONPATH, running_worker, wait_until
from webserver import request, running

from rq_pooled.embedded import EmbeddedServer

# A connection that asks for a place is named probe, and is none of the budget's: docs/monitoring.md.
pytestmark = pytest.mark.timeout(120)


def environment(server: EmbeddedServer, budget: int) -> dict[str, str]:
    """Return the settings that all processes of the application share."""
    settings = {"URL": server.url, "BUDGET": str(budget), "BUDGET_NAME": "shop"}
    return {"PYTHONPATH": PYTHONPATH, **{f"RQ_POOLED_{name}": value for name, value in settings.items()}}


def test_a_worker_and_four_web_processes_need_seven(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """BUDGET=7, ten horses whose jobs save meta, four processes that enqueue: none is refused, and 7 are never
    exceeded.
    """
    settings = environment(server, 7)
    line = [sys.executable, str(JOBS / "budget_web.py"), "60"]
    with (
        running_worker(server.url, "a", log=tmp_path / "log", concurrency=10, **settings),
        Sampler(server.url, but="probe") as sampler,
    ):
        webs = [
            subprocess.Popen(line, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True) for _ in range(4)
        ]
        said = [web.communicate(timeout=60)[0] for web in webs]
        assert said == ["refused 0\n"] * 4
        wait_until(lambda: redis.get("jobs") == b"240", 60, "the end of all jobs")
        assert sampler.most <= 7


def test_threads_of_two_web_workers_share_what_the_budget_leaves(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """BUDGET=18, one worker, gunicorn with two workers of twenty threads: of 600 requests none gets 503."""
    pytest.importorskip("gunicorn")
    settings, port = environment(server, 18), free_port()
    settings["PYTHONPATH"] = PYTHONPATH
    address = f"http://127.0.0.1:{port}/"
    command = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "2", "--threads", "20"]
    with (
        running_worker(server.url, "a", log=tmp_path / "log", concurrency=10, **settings),
        running([*command, "--pythonpath", str(JOBS), "budget_app:app"], address, tmp_path / "web", **settings),
        Sampler(server.url, but="probe") as sampler,
        ThreadPoolExecutor(40) as callers,
    ):
        answers = Counter(status for status, _ in callers.map(lambda _: request(address), range(600)))
        assert answers == {202: 600}
        assert sampler.most <= 18
