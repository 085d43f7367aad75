"""Kinds of short jobs beside an earlier version: ``BENCH_BASE`` is a checkout of it with an environment of its own.

Both take turns on one server. Without ``BENCH_BASE`` only this version is measured.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from redis import Redis
from rq import Queue, Retry
from rq.registry import FinishedJobRegistry

from rq_pooled.embedded import EmbeddedServer

from .common import BASE, QUEUE, ROOT, Table, client, main, python_of, stop, wait_until
from .measured import Rate, rate

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))


@dataclass(frozen=True)
class Kind:
    """A kind of job, and how its worker is started."""

    name: str
    function: str
    jobs: int
    concurrency: int = 10
    level: str = "WARNING"
    arguments: tuple[Any, ...] = ()
    retry: bool = False


KINDS = [
    Kind("no-op, concurrency 10", "jobs.nothing", 8000),
    Kind("no-op, concurrency 2", "jobs.nothing", 8000, 2),
    Kind("no-op, concurrency 1", "jobs.nothing", 3000, 1),
    Kind("no-op, concurrency 10, INFO logs", "jobs.nothing", 6000, 10, "INFO"),
    Kind("1 kB in and out", "jobs.kilobyte", 6000, arguments=(b"x" * 1024,)),
    Kind("saves its meta", "jobs.keep_meta", 5000),
    Kind("one retry", "jobs.second_time", 3000, retry=True),
]


def _measure(server: EmbeddedServer, redis: Redis, kind: Kind, tree: Path) -> Rate:
    redis.flushall()
    queue, finished = Queue(QUEUE, connection=redis), FinishedJobRegistry(QUEUE, redis)
    retry = Retry(max=1) if kind.retry else None
    env = {**os.environ, "RQ_POOLED_CONCURRENCY": str(kind.concurrency)}
    # Jobs come from this folder for both, as module `jobs`: the root would hide the earlier version's package.
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), str(tree)])
    command = [python_of(tree), "-m", "rq.cli", "worker", "--worker-class", "rq_pooled.Worker", "--url", server.url]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--logging_level", kind.level, QUEUE],
            env=env, cwd=tree, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            queue.enqueue_many([Queue.prepare_data("jobs.nothing") for _ in range(200)])
            wait_until(lambda: redis.zcard(finished.key) >= 200)
            data = [Queue.prepare_data(kind.function, kind.arguments, retry=retry) for _ in range(kind.jobs)]
            with redis.pipeline() as pipe:
                queue.enqueue_many(data, pipeline=pipe)
                pipe.execute()
            return rate(redis, process, lambda: redis.zcard(finished.key) - 200, kind.jobs)
        finally:
            stop(process)


def run(server: EmbeddedServer) -> Table:
    """Measure, taking turns."""
    trees = [ROOT, *([BASE] if BASE else [])]
    rates: dict[tuple[str, Path], list[Rate]] = {}
    with client(server) as redis:
        for _ in range(ROUNDS):
            for kind in KINDS:
                for tree in trees:
                    rates.setdefault((kind.name, tree), []).append(_measure(server, redis, kind, tree))
    rows = []
    for kind in KINDS:
        now, then = rates[kind.name, ROOT], rates.get((kind.name, trees[-1]), [])
        jobs, cpu = median(one.jobs for one in now), median(one.sum for one in now)
        parts = " / ".join(
            f"{median(getattr(one, part) for one in now):.0f}" for part in ("server", "parent", "horses")
        )
        row = [kind.name, f"{jobs:,.0f}", f"{min(o.jobs for o in now):,.0f}-{max(o.jobs for o in now):,.0f}", parts]
        if BASE:
            before, spent = median(one.jobs for one in then), median(one.sum for one in then)
            row += [f"{before:,.0f}", f"{spent:.0f}", f"{jobs / before:.2f}", f"{spent / cpu:.2f}"]
        rows.append(row)
    header = ["jobs", "jobs/s", "from-to", "CPU us: server / parent / horses"]
    if BASE:
        header += ["before, jobs/s", "CPU us", "faster ×", "cheaper ×"]
    note = f"Median of {ROUNDS} rounds in turns; results are stored; logs are quiet but where it says INFO."
    return Table("Versions", header, rows, note)


if __name__ == "__main__":
    main(run)
