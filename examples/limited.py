"""Nine jobs through a queue that may start three in a second, and one through a queue behind it.

Needs a server (RQ_POOLED_URL, redis://localhost:6379/0 if unset); runs its own worker, from this folder:

    python limited.py
"""

from __future__ import annotations

import logging

from tasks import checksum

import rq_pooled


def main() -> list[float]:
    """Return when the jobs of the limited queue started, in seconds from the first."""
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
    slow = rq_pooled.Queue("slow", limit="3/1s", max_running=2)
    jobs = [slow.enqueue(checksum, __file__) for _ in range(9)]
    other = rq_pooled.Queue("other").enqueue(checksum, __file__)
    # A burst ends when the queues are empty, so it waits for the limit.
    rq_pooled.Worker(["slow", "other"], concurrency=4).work(burst=True, logging_level="WARNING")
    for job in jobs:
        job.refresh()
    starts = sorted(job.started_at for job in jobs if job.started_at)
    seconds = [round((start - starts[0]).total_seconds(), 1) for start in starts]
    print("slow:", *seconds)
    print("other:", other.get_status())
    return seconds


if __name__ == "__main__":
    main()
