"""A prefix of keys: all that RQ and rq_pooled keep in Redis begins with it, and what could mix two is refused."""

from __future__ import annotations

from typing import Any

import pytest
from commands import WAYS, refusal, run
from redis import Redis

from rq_pooled.errors import ConfigurationError
from rq_pooled.rq_api import RQ3
from rq_pooled.rq_version import check_rq

only_3 = pytest.mark.skipif(not RQ3, reason="RQ 2 has no prefix of keys")
ENQUEUE = "import sys; from redis import Redis; from rq import Queue; q = Queue('q', Redis.from_url(sys.argv[1])); "


@only_3
@pytest.mark.parametrize("prefix", ["{app}", "my.app-1{x}"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_worker_runs_jobs_under_a_prefix(server: Any, redis: Redis, way: list[str], prefix: str) -> None:
    """A worker takes the jobs that were enqueued under its prefix, and writes no key outside of it."""
    enqueue = ENQUEUE + "q.enqueue('jobs.nothing', job_id='j')"
    assert run(["-c", enqueue, "{url}"], server.url, RQ_KEY_PREFIX=prefix).returncode == 0
    ended = run(way, server.url, RQ_KEY_PREFIX=prefix)
    assert ended.returncode == 0, ended.stderr
    assert redis.hget(f"{prefix}:job:j", "status") == b"finished"
    assert [
        key for key in redis.keys("*") if not key.startswith((f"{prefix}:".encode(), f"{prefix}_pooled:".encode()))
    ] == []


@only_3
@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("{}", "its hash tag is empty: write '{app}'"),
        ("a{}b", "its hash tag is empty"),
        ("a{b", "its brace is open: write '{app}'"),
        ("app_pooled", "choose another name"),
        ("app_pooled:x", "choose another name"),
    ],
)
def test_a_prefix_that_would_mix_keys_is_refused(prefix: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix under which one slot is not certain, or that begins as our keys of another do, is refused in words."""
    monkeypatch.setattr("rq.defaults.RQ_KEY_PREFIX", prefix)
    monkeypatch.delenv("RQ_KEY_PREFIX", raising=False)
    with pytest.raises(ConfigurationError, match="RQ_KEY_PREFIX is") as refused:
        check_rq()
    assert words in str(refused.value)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_prefix_that_rq_does_not_use_is_refused(server: Any, redis: Redis, way: list[str]) -> None:
    """RQ 2 knows no prefix, and RQ 3 none that is set after it was imported: one line says so, and no job is taken."""
    late = [
        "-c",
        "import os, rq; os.environ['RQ_KEY_PREFIX'] = 'app'; import rq_pooled.cli.main as m; m.main(['worker'])",
    ]
    line = refusal(run(late if RQ3 else way, server.url, RQ_KEY_PREFIX="rq" if RQ3 else "app"))
    assert "RQ_KEY_PREFIX is 'app', and " in line and redis.keys("*") == []
