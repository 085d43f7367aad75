"""``python -m tests.chaos.soak --jobs 50000``: many jobs through one worker; its parent process must not grow."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from keys import named
from redis import Redis
from rq import Queue
from support import ROOT, TESTS, WorkerProcess, running_worker

from rq_pooled.embedded import EmbeddedServer

QUEUE = "soak"
#: Jobs enqueued at once, and how many may wait.
BATCH, BACKLOG = 500, 2000
#: Jobs and seconds after which the first look is taken: by then what is kept of the last seconds' outcomes is as large
#: as it gets, and imports and caches are.
WARM, WARM_SECONDS = 3000, 5.0
#: Seconds without any progress after which it gives up.
STUCK = 60.0


@dataclass(frozen=True)
class Look:
    """What a worker's parent process holds at one moment."""

    jobs: int
    #: Megabytes.
    rss: float
    pss: float
    descriptors: int
    #: Connections that the server sees of the worker and its horses.
    connections: int
    threads: int

    def __str__(self) -> str:
        return (
            f"after {self.jobs} jobs: RSS {self.rss:.1f} MB, PSS {self.pss:.1f} MB, {self.descriptors} descriptors, "
            f"{self.connections} connections, {self.threads} thread{'s' * (self.threads != 1)}"
        )


@dataclass(frozen=True)
class Outcome:
    """The first look (warm) and the last one, with jobs per second."""

    first: Look
    last: Look
    speed: float
    recorded: int

    @property
    def growth(self) -> float:
        """Megabytes of PSS or RSS, whichever grew more."""
        return max(self.last.rss - self.first.rss, self.last.pss - self.first.pss)


def nothing() -> None:
    """Do nothing."""


def look(worker: WorkerProcess, redis: Redis, jobs: int) -> Look:
    """Measure the parent process of a worker."""
    process = Path("/proc", str(worker.pid))
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", (process / "smaps_rollup").read_text(), re.MULTILINE))
    threads = int(re.search(r"^Threads:\s+(\d+)", (process / "status").read_text(), re.MULTILINE)[1])  # type: ignore[index]
    descriptors = len(os.listdir(process / "fd"))
    connections = sum(entry["name"] != "soak" for entry in redis.client_list())
    return Look(jobs, int(sizes["Rss"]) / 1024, int(sizes["Pss"]) / 1024, descriptors, connections, threads)


def soak(
    url: str,
    jobs: int,
    log: Path,
    concurrency: int = 4,
    say: Callable[[str], None] = lambda _line: None,
    **settings: str,
) -> Outcome:
    """Run so many jobs through one worker; blocks until they are recorded.

    Args:
        settings: of the worker, such as ``RQ_POOLED_MAX_JOBS_PER_HORSE="1"``.

    Raises:
        AssertionError: no job was recorded for STUCK seconds.
    """
    redis = Redis.from_url(url, client_name="soak")
    queue = Queue(QUEUE, connection=redis)
    first: Look | None = None
    enqueued = recorded = 0
    # Its jobs are those of this folder.
    settings = {"PYTHONPATH": str(TESTS), **settings}
    with running_worker(url, QUEUE, log=log, concurrency=concurrency, **settings) as worker:
        began = progress = time.monotonic()
        next_word = jobs // 10
        while recorded < jobs or first is None:
            if enqueued < jobs and enqueued - recorded < BACKLOG:
                number = min(BATCH, jobs - enqueued)
                with redis.pipeline() as pipe:
                    queue.enqueue_many(
                        [Queue.prepare_data("chaos.soak.nothing", result_ttl=0) for _ in range(number)], pipeline=pipe
                    )
                    pipe.execute()
                enqueued += number
            before, recorded = recorded, _recorded(redis)
            if recorded != before:
                progress = time.monotonic()
            assert recorded == jobs or time.monotonic() - progress < STUCK, (
                f"{recorded} of {jobs} recorded, then nothing:\n{worker.output()[-3000:]}"
            )
            if first is None and recorded >= min(WARM, jobs // 2) and time.monotonic() - began >= WARM_SECONDS:
                first = look(worker, redis, recorded)
                say(str(first))
            if recorded >= next_word:
                say(str(look(worker, redis, recorded)))
                next_word += jobs // 10
            time.sleep(0.02)
        speed = jobs / (time.monotonic() - began)
        assert first is not None
        settle = time.monotonic() + 10  # horses that leave take their connections with them
        while time.monotonic() < settle and (last := look(worker, redis, recorded)).descriptors > first.descriptors:
            time.sleep(0.1)
        redis.close()
        return Outcome(first, last, speed, recorded)


def _recorded(redis: Redis) -> int:
    """Return how many jobs the worker's slots have recorded."""
    with redis.pipeline(transaction=False) as pipe:
        for key in redis.smembers(named("rq:workers")):
            pipe.hget(key, "successful_job_count")
        return sum(int(count or 0) for count in pipe.execute())


def main() -> int:
    """Soak a worker; return 1 if its parent grew by 10 MB or more, or left descriptors or connections behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="write the result into docs/reliability.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer() as server:
        log = Path(directory, "log")
        result = soak(server.url, options.jobs, log, options.concurrency, lambda line: print(line, flush=True))
    print(f"{result.last}\n{result.growth:+.1f} MB, {result.speed:.0f} jobs per second")
    ok = (
        result.growth < 10
        and result.last.descriptors <= result.first.descriptors
        and result.last.connections <= result.first.connections
    )
    if options.write:
        page = ROOT / "docs" / "reliability.md"
        text = (
            f"On {date.today()}, {options.jobs} jobs, concurrency {options.concurrency}:\n\n- {result.first}\n- "
            f"{result.last}\n"
            f"- growth {result.growth:+.1f} MB"
        )
        begin, end = "<!-- soak: begin -->", "<!-- soak: end -->"
        head, _, rest = page.read_text().partition(begin)
        page.write_text(f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
