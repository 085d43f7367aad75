"""Schedule a job for later and one for every two seconds, and let a worker do the scheduling.

Needs a server (RQ_POOLED_URL, redis://localhost:6379/0 if unset); runs its own worker, from this folder:

    python schedule.py
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone

from tasks import checksum

import rq_pooled


def main() -> int:
    """Schedule, work, and return how often the periodic job ran."""
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
    scheduler = rq_pooled.Scheduler("scheduled")
    later = scheduler.enqueue_in(timedelta(seconds=1), checksum, __file__)
    often = scheduler.schedule(datetime.now(timezone.utc), checksum, [__file__], interval=2, repeat=3)
    nightly = scheduler.cron("0 3 * * *", checksum, [__file__])

    worker = rq_pooled.Worker(["scheduled"], connection=scheduler.connection)
    worker.work(with_scheduler=True, max_jobs=4, logging_level="WARNING")  # or: rq-pooled scheduler

    print("later:", later.get_status(), "often:", len(often.results()), "nightly waits:", nightly in scheduler)
    scheduler.cancel(nightly)
    return len(often.results())


if __name__ == "__main__":
    main()
