"""Memory of job slots: PSS, which counts a page that several processes share once, of all processes together."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rq_pooled.embedded import EmbeddedServer

from .common import Table, client, family, main, ours, run_jobs, stock_pool, worker

CONTENDERS = [ours(10), ours(20), stock_pool(10)]
#: For ten slots; twice as many slots run twice as many.
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
        "slots, idle",
        "processes",
        *(f"PSS MB after {jobs // 10:,} jobs a slot" for jobs in JOBS),
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
                jobs = min(jobs, JOBS[0]) if contender is CONTENDERS[-1] else jobs * contender.workers // 10
                run_jobs(redis, jobs, "benchmarks.jobs.nothing")
                pids = family(process.pid)
                taken.append(sum(map(pss, pids)))
            results.append((contender, len(pids), taken))
    best = results[0][2][-1]
    rows = [
        (c.name, str(n), *(f"{mb:.1f}" for mb in taken), f"{taken[-1] / c.workers:.1f}", f"{taken[-1] / best:.1f}")
        for c, n, taken in results
    ]
    beyond = (results[1][2][-1] - best) / 10
    note = f"Each slot beyond ten: {beyond:.1f} MB. While busy, `rq worker-pool` adds a process per job."
    return Table("Memory", header, rows, note)


if __name__ == "__main__":
    main(run)
