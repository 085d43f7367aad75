"""What a page's commands find on the server: `python -m stage failed ID` makes a failed job of that id."""

from __future__ import annotations

import sys

from rq_pooled import Queue, Worker


def queues(*names: str) -> None:
    """Make queues that the server knows, and that are empty."""
    for name in names:
        Queue(name).enqueue("tasks.work")
    Worker(names).work(burst=True, logging_level="ERROR")


def failed(job_id: str) -> None:
    """Make a failed job of the queue default."""
    queues("high", "default", "mail")
    queue = Queue("default")
    queue.enqueue("tasks.refuse", job_id=job_id)
    Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert queue.fetch_job(job_id).is_failed


def dead(job_id: str) -> None:
    """Make a dead letter of the queue default."""
    from rq_pooled import Sweeper
    from rq_pooled.failed import Bury

    failed(job_id)
    Sweeper("default", policies=Bury(exceptions=ConnectionError)).run()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
