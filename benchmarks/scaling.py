"""What one server carries: its commands and processor time by workers, by slots and by queues, idle and busy.

The workers are real ``rq-pooled worker`` processes. ``python -m benchmarks.scaling short`` is a quick look with few of
them and short windows.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from redis import Redis
from rq import Queue
from rq.registry import FinishedJobRegistry

from rq_pooled.embedded import EmbeddedServer

from .common import QUEUE, ROOT, Table, Tables, client, main, stop, wait_until

#: Workers and the CONCURRENCY of each. The last row has the slots of the one before in fewer processes.
FLEETS = [(1, 1), (4, 1), (16, 1), (64, 1), (4, 16)]
QUEUES, SERVING = (1, 10, 100, 1000), 4
#: Seconds of an idle window: each worker sends one heartbeat in it.
SECONDS = 15.0
JOBS, WAKES = 2000, 10
#: Seconds in which all go to sleep again after a job.
PAUSE = 0.2
#: Bytes of memory that a worker and its horse are counted with.
MEMORY = 60e6
WAIT = 110


@dataclass(frozen=True)
class Sample:
    """What the server has done until a moment."""

    time: float
    commands: int
    scripts: int
    cpu: float

    @classmethod
    def take(cls, redis: Redis) -> Sample:
        """Ask the server; its answer counts commands inside scripts as well."""
        info: dict[str, Any] = redis.info("everything")
        calls = {name: entry["calls"] for name, entry in info.items() if name.startswith("cmdstat_")}
        cpu = info["used_cpu_user"] + info["used_cpu_sys"]
        return cls(time.perf_counter(), sum(calls.values()), calls.get("cmdstat_evalsha", 0), cpu)

    def __sub__(self, other: Sample) -> Sample:
        return Sample(
            self.time - other.time,
            # The first INFO is counted after its answer.
            self.commands - other.commands - 1,
            self.scripts - other.scripts,
            self.cpu - other.cpu,
        )


@dataclass(frozen=True)
class Costs:
    """What a fleet costs the server: idle per second and worker, busy per job, and a job while all are idle."""

    idle: Sample
    busy: Sample
    jobs: int
    wake_commands: float
    wake_ms: float

    @property
    def job_us(self) -> float:
        """Return the server's processor time per job."""
        return self.busy.cpu / self.jobs * 1e6


class Fleet:
    """Workers of their own, on an empty server."""

    def __init__(self, running: EmbeddedServer, redis: Redis, log: Any) -> None:
        self._running, self._redis, self._log = running, redis, log
        self.processes: list[subprocess.Popen[bytes]] = []
        self._slots = 0

    def grow(self, number: int, concurrency: int, queues: list[str]) -> None:
        """Start workers, and wait until there are so many, all registered."""
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        words = ["-m", "rq_pooled", "worker", "--url", self._running.url, "--concurrency", str(concurrency), "--quiet"]
        for _ in range(number - len(self.processes)):
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *words, *queues],
                    env=env, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip
            self._slots += concurrency
        wait_until(lambda: _nap(0.1) or self._redis.scard("rq:workers") >= self._slots, WAIT)

    def stop(self) -> None:
        """End all at once, then wait for each."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            stop(process)


@contextmanager
def fleet(running: EmbeddedServer) -> Iterator[tuple[Redis, Fleet]]:
    """A client on an empty server, and workers to be started; ended with the block."""
    with client(running) as redis, tempfile.TemporaryFile() as log:
        one = Fleet(running, redis, log)
        try:
            yield redis, one
        finally:
            one.stop()


def _nap(seconds: float) -> None:
    time.sleep(seconds)


def _idle(redis: Redis, seconds: float) -> Sample:
    before = Sample.take(redis)
    time.sleep(seconds)
    return Sample.take(redis) - before


def _busy(redis: Redis, queue: str, number: int) -> tuple[Sample, int]:
    """Run jobs that are all there before the first sample; return the cost of those that ended after it."""
    registry = FinishedJobRegistry(queue, redis)
    goal = redis.zcard(registry.key) + number
    with redis.pipeline() as pipe:
        data = [Queue.prepare_data("benchmarks.jobs.nothing") for _ in range(number)]
        Queue(queue, connection=redis).enqueue_many(data, pipeline=pipe)
        pipe.execute()
    looks = [0]

    def done() -> bool:
        looks[0] += 1
        # An answer that is a little late changes the rate by less than a hundredth, and asking costs the server time.
        _nap(0.05)
        return bool(redis.zcard(registry.key) >= goal)

    begun, before = redis.zcard(registry.key), Sample.take(redis)
    wait_until(done, WAIT)
    cost = Sample.take(redis) - before
    return Sample(cost.time, cost.commands - looks[0], cost.scripts, cost.cpu), goal - begun


def _wake(redis: Redis, queue: str, idle: Sample | None = None) -> tuple[float, float]:
    """Return the commands of one job while all workers are idle, and the median of milliseconds until its first line.

    Without ``idle`` there are no workers: the commands are those of the program that enqueues.
    """
    delays: list[float] = []
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        path = os.path.join(folder, "inbox")
        inbox.bind(path)
        inbox.settimeout(30)

        def enqueue() -> None:
            start = time.time_ns()
            Queue(queue, connection=redis).enqueue("benchmarks.jobs.stamp", path)
            if idle:
                delays.append((int(inbox.recv(100).split()[0]) - start) / 1e6)
            _nap(PAUSE + random.uniform(0, 0.02) if idle else 0)

        # The first job of a queue writes its name, and finds cold caches.
        enqueue()
        before = Sample.take(redis)
        for _ in range(WAKES):
            enqueue()
        spent = Sample.take(redis) - before
    if idle is None:
        return spent.commands / WAKES, 0
    return (spent.commands - idle.commands / idle.time * spent.time) / WAKES, median(delays[1:])


def measure(redis: Redis, queue: str, seconds: float, jobs: int) -> Costs:
    """Measure a fleet that serves a queue."""
    _busy(redis, queue, jobs // 4)
    # What follows the last job of the warm-up is over.
    _nap(1)
    idle = _idle(redis, seconds)
    busy, done = _busy(redis, queue, jobs)
    _nap(PAUSE)
    commands, delay = _wake(redis, queue, idle)
    return Costs(idle, busy, done, commands - _wake(redis, "nobody")[0], delay)


def by_workers(running: EmbeddedServer, fleets: list[tuple[int, int]], seconds: float, jobs: int) -> Tables:
    """Grow a fleet, and measure at each size."""
    idle_rows, busy_rows = [], []

    def add(redis: Redis, number: int, concurrency: int) -> None:
        costs = measure(redis, QUEUE, seconds, jobs)
        name = f"{number} of {concurrency}"
        idle = costs.idle
        idle_rows.append(
            (
                name,
                f"{idle.commands / idle.time:,.1f}",
                f"{idle.commands / idle.time / number:.1f}",
                f"{idle.cpu / idle.time * 1000:.1f}",
                f"{idle.cpu / idle.time * 1000 / number:.2f}",
                f"{costs.wake_commands:,.0f}",
                f"{costs.wake_ms:.1f}",
            )
        )
        busy = costs.busy
        busy_rows.append(
            (
                name,
                f"{costs.jobs / busy.time:,.0f}",
                f"{busy.scripts / busy.time:,.0f}",
                f"{busy.scripts / costs.jobs:.2f}",
                f"{busy.commands / costs.jobs:.1f}",
                f"{busy.cpu / busy.time * 100:.0f} %",
                f"{costs.job_us:.0f}",
                f"{1e6 / costs.job_us:,.0f}",
            )
        )

    growing = [one for one in fleets if one[1] == 1]
    with fleet(running) as (redis, workers):
        for number, concurrency in growing:
            workers.grow(number, concurrency, [QUEUE])
            add(redis, number, concurrency)
    for number, concurrency in [one for one in fleets if one not in growing]:
        with fleet(running) as (redis, workers):
            workers.grow(number, concurrency, [QUEUE])
            add(redis, number, concurrency)
    idle_header = ["workers of CONCURRENCY", "commands/s", "per worker", "server CPU, ms/s", "per worker"]
    idle_header += ["commands of a job", "p50 to its first line, ms"]
    busy_header = ["workers of CONCURRENCY", "jobs/s", "scripts/s", "scripts per job", "commands per job"]
    busy_header += ["server CPU", "us per job", "jobs/s of one core"]
    return Tables(
        [
            Table(
                "Idle workers",
                idle_header,
                idle_rows,
                f"Windows of {seconds:g} s, in which each worker sends a heartbeat. Commands inside scripts count.",
            ),
            Table(
                "Busy workers",
                busy_header,
                busy_rows,
                "No-op jobs, results stored. A script commits outcomes or claims jobs. The last column is a second "
                "divided by the server's time per job: what the server carries if the workers have machines of their "
                "own.",
            ),
        ]
    )


def by_queues(running: EmbeddedServer, numbers: tuple[int, ...], seconds: float, jobs: int) -> Table:
    """Measure workers that serve ever more queues, with the jobs in the last one."""
    rows = []
    for number in numbers:
        queues = [f"q{each}" for each in range(number)]
        with fleet(running) as (redis, workers):
            workers.grow(SERVING, 1, queues)
            # A window need not hold a whole heartbeat: promotion costs more here.
            costs = measure(redis, queues[-1], min(seconds, 10), jobs)
        rows.append(
            (
                str(number),
                f"{costs.idle.commands / costs.idle.time / SERVING:,.1f}",
                f"{costs.idle.cpu / costs.idle.time * 1000 / SERVING:.2f}",
                f"{costs.busy.commands / costs.jobs:,.1f}",
                f"{costs.job_us:,.0f}",
                f"{costs.wake_commands:,.0f}",
                f"{costs.wake_ms:.1f}",
            )
        )
    header = ["queues per worker", "idle commands/s per worker", "idle server CPU, ms/s per worker"]
    header += ["commands per job", "server CPU per job, us", "commands of a job"]
    header += ["p50 to its first line, ms"]
    return Table("Queues", header, rows, f"{SERVING} workers of CONCURRENCY 1; all jobs are in the last queue.")


def run(running: EmbeddedServer, short: bool = False) -> Tables:
    """Measure, with as many workers as the memory holds."""
    fleets, queues = (FLEETS[:2], QUEUES[:2]) if short else (FLEETS, QUEUES)
    seconds, jobs = (3.0, JOBS // 4) if short else (SECONDS, JOBS)
    fleets = [one for one in fleets if one[0] * one[1] * MEMORY < _memory()]
    workers = by_workers(running, fleets, seconds, jobs)
    return Tables([*workers.tables, by_queues(running, queues, seconds, jobs)])


def _memory() -> float:
    """Return the free bytes of memory, or infinity where that is not told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), float("inf"))


if __name__ == "__main__":
    main(lambda running: run(running, "short" in sys.argv[1:]))
