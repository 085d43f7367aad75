"""What jobs say about themselves: one line per event in a file that every process appends to.

It is independent of Redis and of the worker: a run that nobody recorded stands here too.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

#: The environment variable with the path of the file.
VARIABLE = "CHAOS_JOURNAL"


@dataclass
class Run:
    """One run of a job, in time.time() as the server's TIME."""

    job_id: str
    execution: str
    pid: int
    parent: int
    start: float
    #: The last sign of life; the end where there was one.
    last: float
    #: "ok", "raised", or "" when the process ended before the job did.
    end: str = ""
    events: list[str] = field(default_factory=list)

    def milestones(self) -> list[str]:
        """Return its events without the signs of life but the last."""
        return [event for i, event in enumerate(self.events) if " alive " not in event or i == len(self.events) - 1]


def write(event: str, job_id: str, execution: str) -> None:
    """Append one event of the calling process, in one write that cannot mix with those of others."""
    line = f"{time.time():.6f} {event} {job_id} {execution} {os.getpid()} {os.getppid()}\n"
    path = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(path, line.encode())
    finally:
        os.close(path)


@contextmanager
def running(job_id: str, execution: str) -> Iterator[None]:
    """Write when the block begins and how it ends."""
    write("start", job_id, execution)
    try:
        yield
    except BaseException:
        write("raised", job_id, execution)
        raise
    write("ok", job_id, execution)


def read(path: Path) -> dict[str, list[Run]]:
    """Return the runs of each job in the order in which they began."""
    runs: dict[str, list[Run]] = defaultdict(list)
    current: dict[tuple[str, str, int], Run] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        at, event, job_id, execution, pid, parent = line.split(" ")
        key = (job_id, execution, int(pid))
        if event == "start":
            current[key] = Run(job_id, execution, int(pid), int(parent), float(at), float(at))
            runs[job_id].append(current[key])
        run = current[key]
        run.last = float(at)
        run.events.append(line)
        if event in ("ok", "raised"):
            run.end = event
    return runs
