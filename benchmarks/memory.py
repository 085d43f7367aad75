"""Memory of ten job slots: PSS, which counts a page that several processes share once, of all processes together."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rq_pooled.embedded import EmbeddedServer

from .common import Table, client, family, main, ours, run_jobs, stock_pool, worker

CONTENDERS = [ours(10), stock_pool(10)]
JOBS = (200, 6000)


def pss(pid: int) -> float:
    """Return the megabytes of one process, 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


def run(server: EmbeddedServer) -> Table:
    """Measure."""
    header = [
        "ten slots, idle",
        "processes",
        *(f"PSS MB after {jobs:,} jobs" for jobs in JOBS),
        "MB per slot",
        "× ours",
    ]
    if not sys.platform.startswith("linux"):
        return Table("Memory", header, [], "Needs Linux.")
    results = []
    for contender in CONTENDERS:
        with client(server) as redis, worker(server, redis, contender) as process:
            taken = []
            for jobs in JOBS:
                # Stock RQ forks for each job: its memory depends on one job only.
                run_jobs(redis, jobs if contender is CONTENDERS[0] else min(jobs, JOBS[0]), "benchmarks.jobs.nothing")
                pids = family(process.pid)
                taken.append(sum(map(pss, pids)))
            results.append((contender, len(pids), taken))
    best = results[0][2][-1]
    rows = [
        (c.name, str(n), *(f"{mb:.1f}" for mb in taken), f"{taken[-1] / 10:.1f}", f"{taken[-1] / best:.1f}")
        for c, n, taken in results
    ]
    return Table("Memory", header, rows, "While busy, `rq worker-pool` adds a process per job.")


if __name__ == "__main__":
    main(run)
