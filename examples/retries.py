"""Enqueue jobs that fail at first, and print the history of each.

Needs a server (RQ_POOLED_URL, redis://localhost:6379/0 if unset) and, from this folder, a worker:

    rq-pooled worker --concurrency 4
    python retries.py
"""

from __future__ import annotations

import sys
import time

from shop import charge

from rq_pooled import Backoff, Queue


def main(patience: float = 60) -> int:
    """Charge three customers; return 1 if not all jobs are over after ``patience`` seconds."""
    # Two more tries, some seconds later, for all jobs of this queue; but not where somebody else's code is wrong.
    queue = Queue("default", retry=Backoff(max=2, base=1, cap=2, jitter="equal", give_up_on=(TypeError, KeyError)))
    jobs = [queue.enqueue(charge, customer) for customer in ("ada", "offline", "nobody")]
    deadline = time.monotonic() + patience
    while any(job.get_status() not in ("finished", "failed") for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.1)
    for job in jobs:
        print(f"{job.args[0]}: {job.get_status(refresh=False).value}")
        for result in reversed(job.results()):
            last = (result.exc_string or str(result.return_value)).strip().splitlines()[-1]
            print(f"  {result.created_at:%H:%M:%S} {result.type.name.lower()}: {last}")
    return 0 if all(job.get_status() in ("finished", "failed") for job in jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
