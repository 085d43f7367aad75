"""One server, one kind of worker, four jobs: what is needed to look at one fault at a time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from keys import named
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue
from support import PYTHONPATH, TESTS, WorkerProcess, wait_until

from rq_pooled.embedded import EmbeddedServer

from . import journal
from .jobs import QUEUE

#: Jobs that run while the fault happens.
JOBS = 4
#: Seconds to wait for all of them to be recorded, and for one more that is enqueued then.
WINDOW, PROBE = 30.0, 10.0
#: Shorter leases than the defaults of a minute, so that a measurement ends.
OURS: dict[str, float] = {
    "CONCURRENCY": JOBS,
    "HEARTBEAT_INTERVAL": 1,
    "HEARTBEAT_TTL": 5,
    "STALLED_INTERVAL": 2,
    "SHUTDOWN_TIMEOUT": 3,
}


@dataclass
class Result:
    """What a fault has done."""

    fault: str
    contender: str
    enqueued: int = 0
    #: Jobs that ran to their end; that began more than once; whose end stands in Redis.
    ran: int = 0
    again: int = 0
    recorded: int = 0
    failed: int = 0
    #: Where the others are: status, or "lost" for what stands in no queue and no registry -> how many.
    others: dict[str, int] = field(default_factory=dict)
    #: Seconds from the end of the fault until all were recorded.
    seconds: float | None = None
    #: One entry per worker that was there before the fault: "alive" or its exit code.
    workers: list[str] = field(default_factory=list)
    #: A job that was enqueued afterwards ended well.
    works: bool = False

    def text(self) -> str:
        """Return it in words."""
        parts = []
        if self.enqueued:
            parts.append(f"{self.recorded} of {self.enqueued} recorded")
            if self.failed:
                parts[-1] += f" ({self.failed} failed)"
            if self.ran != self.recorded - self.failed:
                parts.append(f"{self.ran} ran to the end")
            parts += [f"{number} {where}" for where, number in self.others.items()]
            if self.again:
                parts.append(f"{self.again} ran again")
            if self.seconds is not None and self.recorded:
                parts.append("at once" if self.seconds < 1 else f"after {self.seconds:.0f} s")
        alive = self.workers.count("alive")
        dead = sorted({code for code in self.workers if code != "alive"})
        if len(self.workers) == 1:
            parts.append("worker alive" if alive else f"worker dead ({dead[0]})")
        else:
            parts.append(f"{alive} of {len(self.workers)} workers alive" + (f" ({', '.join(dead)})" if dead else ""))
        parts.append("the next job runs" if self.works else "the next job does not run")
        return "; ".join(parts)

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "text": self.text()}


class Scene:
    """Where a fault happens.

    Args:
        contender: "stock" for ``rq worker`` (one process per job at once), "ours" for one ``rq-pooled worker``.
        directory: for logs and the journal.
        options: of the server, beyond AOF with fsync always.
    """

    def __init__(self, contender: str, directory: Path, options: dict[str, Any] | None = None) -> None:
        self.contender = contender
        self.directory = directory
        self.journal = self.directory / "journal"
        self.server = EmbeddedServer(
            {"appendonly": "yes", "appendfsync": "always", **(options or {})}, password=False
        ).start()
        self.admin = self.server.client(retry=Retry(NoBackoff(), 2), client_name="chaos-admin")
        self.queue = Queue(QUEUE, connection=self.admin)
        self.first: list[WorkerProcess] = []
        self.every: list[WorkerProcess] = []
        self.ids: list[str] = []
        self.fault_over = time.time()

    # -- workers -------------------------------------------------------------------------------------------------

    def start(self, number: int = JOBS, *, queues: tuple[str, ...] = (QUEUE,), worker_class: str = "") -> None:
        """Start workers for ``number`` jobs at once, without waiting for them."""
        env = {**os.environ, "PYTHONUNBUFFERED": "1", journal.VARIABLE: str(self.journal)}
        env["PYTHONPATH"] = os.pathsep.join([str(TESTS), PYTHONPATH, env.get("PYTHONPATH", "")])
        env |= {f"RQ_POOLED_{name}": str(value) for name, value in OURS.items()}
        ours = self.contender == "ours"
        if ours:
            env["RQ_POOLED_CONCURRENCY"] = str(number)
        command = [sys.executable, "-m", "rq_pooled" if ours else "rq.cli", "worker", "--url", self.server.url, *queues]
        if worker_class:
            command += ["--worker-class", worker_class]
        workers = [
            WorkerProcess(command, env, self.directory / f"worker-{len(self.every) + i}.log")
            for i in range(1 if ours else number)
        ]
        self.first = self.first or workers
        self.every += workers

    def horses(self) -> list[psutil.Process]:
        """Return the processes that run jobs now."""
        pids = {run.pid for runs in journal.read(self.journal).values() for run in runs if not run.end}
        return [
            child
            for worker in self.every
            if worker.process.poll() is None
            for child in psutil.Process(worker.pid).children()
            if child.pid in pids
        ]

    # -- jobs ----------------------------------------------------------------------------------------------------

    def enqueue(self, seconds: float, number: int = JOBS, timeout: int = 180) -> None:
        """Enqueue jobs that take so long."""
        for _ in range(number):
            job = self.queue.enqueue(
                "chaos.jobs.sleep", seconds, job_id=f"job-{len(self.ids)}", job_timeout=timeout, result_ttl=86400
            )
            self.ids.append(job.id)

    def run_jobs(self, seconds: float, number: int = JOBS) -> None:
        """Start workers, and jobs that all run when this returns."""
        self.start(number)
        self.enqueue(seconds, number)
        wait_until(lambda: len(journal.read(self.journal)) == number, 30, "the jobs to run")

    def over(self) -> None:
        """Note that the fault itself is over: from now on all is well but for what it has left behind."""
        self.fault_over = time.time()

    # -- what became of it ---------------------------------------------------------------------------------------

    def _status(self, job_id: str) -> str:
        """Return where a job is: finished, failed, another status, or lost where nothing leads to it any more."""
        status = self.admin.hget(named(f"rq:job:{job_id}"), "status")
        if status is None:
            return "gone"
        name = str(status.decode())
        if name in ("finished", "failed"):
            return name
        if job_id.encode() in self.admin.lrange(named(f"rq:queue:{QUEUE}"), 0, -1):
            return "queued"
        if any(
            member.startswith(f"{job_id}:".encode()) for member in self.admin.zrange(named(f"rq:wip:{QUEUE}"), 0, -1)
        ):
            return "left as started"
        if job_id.encode() in self.admin.lrange(named(f"rq:queue:{QUEUE}:intermediate"), 0, -1):
            return "left in the intermediate list"
        return "lost"

    def result(self, fault: str, window: float = WINDOW) -> Result:
        """Wait until all are recorded, at most ``window`` seconds, then see whether one more job runs."""
        result = Result(fault, self.contender, len(self.ids))
        deadline = time.monotonic() + window
        statuses: list[str] = []
        while time.monotonic() < deadline:
            try:
                statuses = [self._status(job_id) for job_id in self.ids]
            except (RedisError, OSError):
                continue
            if all(status in ("finished", "failed", "gone") for status in statuses):
                if self.ids:
                    result.seconds = max(0.0, time.time() - self.fault_over)
                break
            time.sleep(0.1)
        runs = journal.read(self.journal)
        result.ran = sum(any(run.end == "ok" for run in runs.get(job_id, [])) for job_id in self.ids)
        result.again = sum(len(runs.get(job_id, [])) > 1 for job_id in self.ids)
        result.failed = statuses.count("failed")
        result.recorded = statuses.count("finished") + result.failed
        result.others = {s: statuses.count(s) for s in dict.fromkeys(statuses) if s not in ("finished", "failed")}
        result.workers = [
            "alive" if code is None else f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            for code in (worker.process.poll() for worker in self.first)
        ]
        probe = self.queue.enqueue("chaos.jobs.ok", job_id="probe", result_ttl=86400)
        result.works = until(lambda: self._status(probe.id) == "finished", PROBE)
        return result

    def close(self) -> None:
        """End everything that was started here."""
        for worker in self.every:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                for horse in psutil.Process(worker.pid).children():
                    horse.kill()
                worker.kill()
        if self.server.pid is not None:
            self.server.resume()
        self.server.close()


def until(condition: Callable[[], bool], timeout: float) -> bool:
    """Tell whether it came true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
