"""What tests share: waiting for conditions, and real worker processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from keys import named

from rq_pooled.pool import local, registry

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
#: Modules that workers load.
JOBS = SUPPORT / "jobs"
#: For processes that tests start: what the tests share, what workers load, and this repository.
PYTHONPATH = os.pathsep.join([str(SUPPORT), str(JOBS), str(ROOT)])


def wait_until(condition: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
    """Return the first true value of ``condition``, asked again and again; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what or condition}")
        time.sleep(0.005)


def keys_of_jobs(redis: Any) -> list[bytes]:
    """Return the keys of ours that jobs need: gone when the jobs are. What processes publish about themselves is
    not.
    """
    return [
        key
        for key in redis.scan_iter(named("rq_pooled:*"), count=1000)
        if not key.startswith(named(b"rq_pooled:stats"))
    ]


def drop_pools() -> None:
    """Close and forget all pools of this process: what a test leaves open, others would count."""
    registry._registry.clear()
    for one in local.local_pools():
        one.disconnect()
        local.pools.discard(one)


class WorkerProcess:
    """A real ``rq worker --worker-class rq_pooled.Worker`` and what it has printed."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path, cwd: Path | None = None) -> None:
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def output(self) -> str:
        """Return all that it has printed until now."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = 20.0) -> None:
        """Wait until it has printed ``text``."""
        wait_until(lambda: text in self.output() or self.process.poll() is not None, timeout, text)
        assert text in self.output(), self.output()

    def wait(self, timeout: float = 30.0) -> int:
        """Wait until it has ended and return its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end within {timeout:g} s:\n{self.output()}") from None

    def stop(self, timeout: float = 20.0) -> int:
        """Send SIGTERM and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """Send SIGKILL to the parent process only."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def running_worker(
    url: str,
    *arguments: str,
    log: Path,
    concurrency: int = 1,
    worker_class: str = "rq_pooled.Worker",
    command: tuple[str, ...] = ("worker",),
    ready: str | None = "connections: command",
    **environment: str,
) -> Iterator[WorkerProcess]:
    """Run ``rq worker`` with our class (or ``rq worker-pool``, see ``command``) for the length of the block.

    ``arguments`` are queues and options; ``environment`` are settings such as ``RQ_POOLED_KILL_GRACE="1"``. Waits until
    it has printed ``ready``. At the end it is stopped by SIGTERM, then by SIGKILL.
    """
    env = {**os.environ, **environment}
    env["PYTHONPATH"] = os.pathsep.join([PYTHONPATH, env.get("PYTHONPATH", "")])
    env["RQ_POOLED_CONCURRENCY"] = str(concurrency)
    env["PYTHONUNBUFFERED"] = "1"
    line = [sys.executable, "-m", "rq.cli", *command, "--url", url, "--worker-class", worker_class, *arguments]
    worker = WorkerProcess(line, env, log)
    try:
        if ready is not None:
            worker.wait_for(ready)
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.process.terminate()
            try:
                worker.process.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()


def started(directory: Path, number: int) -> None:
    """Wait until so many jobs wait for the gate."""
    wait_until(lambda: len(list(directory.glob("gate.*.pid"))) == number, what=f"{number} running jobs")


#: The death of a worker is noticed within seconds.
QUICK = {
    "RQ_POOLED_HEARTBEAT_INTERVAL": "0.3",
    "RQ_POOLED_HEARTBEAT_TTL": "1.5",
    "RQ_POOLED_STALLED_INTERVAL": "0.5",
    "RQ_POOLED_RECONNECT_CAP": "0.3",
    "RQ_POOLED_MAX_STALLS": "20",
}
