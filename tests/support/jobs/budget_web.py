"""A web process of an application with a budget: enqueues steadily, over the pool that its environment describes."""

from __future__ import annotations

import sys
import time

import stream_jobs

import rq_pooled
from rq_pooled.errors import RedisUnavailable


def main(count: int) -> None:
    """Enqueue so many jobs, a few a second; say at the end how many were refused."""
    queue, refused = rq_pooled.Queue("a"), 0
    for _ in range(count):
        try:
            queue.enqueue(stream_jobs.busy, 5)
        except RedisUnavailable as error:
            refused += 1
            print(error, flush=True)
        time.sleep(0.02)
    print("refused", refused, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
