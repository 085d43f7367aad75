"""Memory of ten job slots: PSS, which counts a page that several processes share once, of all processes together."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rq_pooled.embedded import EmbeddedServer

from .common import Table, client, family, main, ours, run_jobs, stock_pool, worker

CONTENDERS = [ours(10), stock_pool(10)]
JOBS = 200


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
    title, header = "Memory", [f"ten slots, idle after {JOBS} jobs", "processes", "PSS MB", "MB per slot", "× ours"]
    if not sys.platform.startswith("linux"):
        return Table(title, header, [], "Needs Linux.")
    results = []
    for contender in CONTENDERS:
        with client(server) as redis, worker(server, redis, contender) as process:
            run_jobs(redis, JOBS, "benchmarks.jobs.nothing")
            pids = family(process.pid)
            results.append((contender, len(pids), sum(map(pss, pids))))
    best = results[0][2]
    rows = [(c.name, str(n), f"{mb:.1f}", f"{mb / 10:.1f}", f"{mb / best:.1f}") for c, n, mb in results]
    return Table(title, header, rows, "Target: under 100 MB. While busy, `rq worker-pool` adds a process per job.")


if __name__ == "__main__":
    main(run)
