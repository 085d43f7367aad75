"""The steady middle of a backlog: jobs per second, and what server, parent and horses spend for each job."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from .common import family, wait_until

#: Parts of the jobs that are done when the measurement begins and ends: starting and ending cost nothing.
BEGIN, END = 0.1, 0.9
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Rate:
    """What one round gave: jobs per second, and microseconds of processor time per job (0 where there is no /proc)."""

    jobs: float
    server: float
    parent: float
    horses: float

    @property
    def sum(self) -> float:
        """Processor time of all three."""
        return self.server + self.parent + self.horses


def _spent(pid: int) -> tuple[float, float]:
    """Return the seconds of processor time that a process has used, and its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    own, ended = fields[11:13], fields[13:15]
    return sum(map(int, own)) / _TICK, sum(map(int, ended)) / _TICK


def _mark(redis: Redis, process: subprocess.Popen[bytes], done: Callable[[], int]) -> tuple[float, int, list[float]]:
    parent, *horses = family(process.pid) or [process.pid]
    cpu = redis.info("cpu")
    server = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
    own, ended = _spent(parent)
    return time.perf_counter(), done(), [server, own, ended + sum(_spent(horse)[0] for horse in horses)]


def rate(redis: Redis, process: subprocess.Popen[bytes], done: Callable[[], int], jobs: int) -> Rate:
    """Measure while a worker runs so many jobs; ``done`` tells how many it has run.

    Raises:
        SystemExit: it takes longer than two minutes.
    """
    marks = []
    for part in (BEGIN, END):
        wait_until(lambda part=part: done() >= part * jobs, pause=0.01)  # type: ignore[misc]
        marks.append(_mark(redis, process, done))
    (began, before, first), (ended, after, last) = marks
    per_job = [(b - a) / (after - before) * 1e6 for a, b in zip(first, last, strict=True)]
    return Rate((after - before) / (ended - began), *per_job)
