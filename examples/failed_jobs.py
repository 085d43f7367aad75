"""Let jobs fail, and then do something about them: requeue, bury, bring back, delete.

Needs a server (RQ_POOLED_URL, redis://localhost:6379/0 if unset) and, from this folder, a worker:

    rq-pooled worker --concurrency 4
    python failed_jobs.py
"""

from __future__ import annotations

import sys
import time

from shop import charge

from rq_pooled import Queue, Sweeper
from rq_pooled.failed import Bury, DeadLetterRegistry, Ghosts, Purge, Requeue


def main(patience: float = 60) -> int:
    """Take four jobs through a life of failures; return 1 if they do not get there in ``patience`` seconds."""
    queue = Queue("default")
    jobs = [queue.enqueue(charge, customer) for customer in ("ada", "offline", "offline", "nobody")]
    deadline = time.monotonic() + patience

    def wait() -> None:
        while any(job.get_status() not in ("finished", "failed") for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.1)

    def sweep(policy: Requeue | Bury | Purge | Ghosts, dry_run: bool = False) -> None:
        for report in Sweeper(queue, policies=policy).run(dry_run):
            print(f"{report.policy}{' (dry run)' if dry_run else ''}: {report.done} of {report.looked_at}")

    wait()
    busy = Requeue(exceptions="RetryAfter", functions="shop.*", times=3)
    sweep(busy, dry_run=True)
    sweep(busy)
    wait()
    sweep(Bury(exceptions=ConnectionError, max_age=86_400))
    dead = DeadLetterRegistry(queue=queue)
    print(f"dead letters: {len(dead)}")
    print(f"brought back: {dead.requeue_many(Requeue(limit=1)).done}")
    wait()
    sweep(Purge(everything=True))
    sweep(Ghosts())
    print(f"dead letters deleted: {dead.trim(0)}")
    return 0 if time.monotonic() < deadline else 1


if __name__ == "__main__":
    sys.exit(main())
