"""Enqueue a few jobs and wait for what comes of them.

Needs a server (RQ_POOLED_URL, redis://localhost:6379/0 if unset) and, from this folder, a worker:

    rq-pooled worker --concurrency 4
    python enqueue.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rq import Retry
from tasks import checksum

import rq_pooled


def main(patience: float = 30) -> int:
    """Enqueue one job per file of this folder; return 1 if one has no result after ``patience`` seconds."""
    # No connection argument: the queue shares this process's one bounded pool.
    queue = rq_pooled.Queue("default")
    paths = sorted(Path(__file__).resolve().parent.glob("*.py"))
    jobs = [queue.enqueue(checksum, str(path), retry=Retry(max=2)) for path in paths]
    deadline = time.monotonic() + patience
    while any(job.get_status() not in ("finished", "failed") for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.1)
    for path, job in zip(paths, jobs, strict=True):
        print(path.name, job.return_value() or job.get_status(refresh=False))
    return 0 if all(job.is_finished for job in jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
