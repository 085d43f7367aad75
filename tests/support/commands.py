"""Programs that tests run to their end or start, what they say when they refuse, and free ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import forked
from support import PYTHONPATH, ROOT, WorkerProcess

PASSWORD = "gAngenHeim"
SCRIPT = """
import sys
from redis import Redis
from rq_pooled import Worker
Worker(["q"], connection=Redis.from_url(sys.argv[1])).work(burst=True)
"""


WAYS = {
    "rq worker": ["-m", "rq.cli", "worker", "--worker-class", "rq_pooled.Worker", "--burst", "--url", "{url}", "q"],
    "rq-pooled worker": ["-m", "rq_pooled", "worker", "--burst", "--url", "{url}", "q"],
    "script": ["-c", SCRIPT, "{url}"],
}


def run(way: list[str], url: str = "", timeout: float = 20, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    line = [sys.executable, *(word.format(url=url) if word == "{url}" else word for word in way)]
    return forked.run(line, {**os.environ, "PYTHONPATH": PYTHONPATH, **environment}, timeout)


def refusal(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """Check that a program was refused in one line, without traceback and password, and return the line."""
    output = result.stdout + result.stderr
    assert result.returncode == code, output
    assert "Traceback" not in output, output
    assert PASSWORD not in output
    lines = [line for line in output.splitlines() if line.strip()]
    assert len(lines) == 1, output
    return lines[0]


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(url: str) -> dict[str, str]:
    """Return the environment of a command."""
    return {**os.environ, "RQ_POOLED_URL": url, "PYTHONPATH": PYTHONPATH}


def run_command(url: str, *words: str, timeout: float = 40, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``rq-pooled`` to its end."""
    return forked.run([sys.executable, "-m", "rq_pooled", *words], {**environment(url), **more}, timeout)


def start(log: Path, *arguments: str, **environment: str) -> WorkerProcess:
    """Start `rq-pooled worker`."""
    path = PYTHONPATH
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment}
    return WorkerProcess([sys.executable, "-m", "rq_pooled", "worker", *arguments], env, log)


def rq_pooled_command(*words: str, url: str) -> subprocess.CompletedProcess[str]:
    """Run ``rq-pooled`` with these words against a server; warnings are errors."""
    line = [sys.executable, "-W", "error", "-m", "rq_pooled", *words, "--url", url]
    return forked.run(line, os.environ, 40, ROOT)
