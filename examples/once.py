"""Pay an order once, however often it is asked for; and keep one recount per shop in the queue.

Needs a server (RQ_POOLED_URL, redis://localhost:6379/0 if unset); runs its own worker, from this folder:

    python once.py
"""

from __future__ import annotations

import logging
import sys
from uuid import uuid4

from tasks import checksum

import rq_pooled
from rq_pooled.errors import AlreadyQueued, AlreadySpent, QueueFull


def main() -> int:
    """Show what becomes of second calls; return 0 if it is what the documentation says."""
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
    order = f"order-{uuid4()}"
    queue = rq_pooled.Queue(f"example-{uuid4()}", max_length=3)

    first = queue.enqueue(checksum, __file__, once=order, once_ttl="30d")
    second = queue.enqueue(checksum, __file__, once=order, once_ttl="30d")  # the key is not spent yet: both wait
    recount = queue.enqueue(checksum, sys.executable, unique_for="10m")
    print("the same job:", queue.enqueue(checksum, sys.executable, unique_for="10m") == recount)
    try:
        queue.enqueue(checksum, sys.executable, unique_for="10m", on_duplicate="raise")
    except AlreadyQueued as error:
        print("already queued:", error.job_id == recount.id)
    try:
        queue.enqueue(checksum, __file__)
    except QueueFull as error:
        print("full:", error.length, "of", error.max_length)

    rq_pooled.Worker([queue], connection=queue.connection).work(burst=True, logging_level="WARNING")
    print("first:", first.return_value() is not None, "second:", second.return_value())
    print("afterwards:", queue.enqueue(checksum, __file__, once=order) == first)
    try:
        queue.enqueue(checksum, __file__, once=order, on_duplicate="raise")
    except AlreadySpent as error:
        print("spent by the first:", error.job_id == first.id)
    return 0 if first.is_finished and second.is_finished and second.return_value() is None else 1


if __name__ == "__main__":
    sys.exit(main())
