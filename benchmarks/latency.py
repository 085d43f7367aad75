"""From the call of enqueue to the first line of the job, with a worker that sleeps."""

from __future__ import annotations

import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import quantiles

from redis import Redis
from rq import Queue

from rq_pooled.embedded import EmbeddedServer

from .common import QUEUE, Contender, Table, client, main, ours, stock_pool, stock_worker, wait_until, worker

CONTENDERS = [(ours(1), 300), (ours(10), 300), (stock_worker(), 100), (stock_pool(1, "rq.SimpleWorker"), 100)]


class Inbox:
    """A socket to which a job sends the time of its first line."""

    def __init__(self, folder: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._path = os.path.join(folder, "inbox")
        self._socket.bind(self._path)
        self._socket.settimeout(30)

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Inbox]:
        """One of its own, closed with the block."""
        with tempfile.TemporaryDirectory() as folder:
            inbox = cls(folder)
            with inbox._socket:
                yield inbox

    def delay(self, queue: Queue) -> float:
        """Enqueue a job and return the milliseconds until its first line."""
        start = time.time_ns()
        self.job = queue.enqueue("benchmarks.jobs.stamp", self._path)
        return (int(self._socket.recv(100).split()[0]) - start) / 1e6


def _measure(redis: Redis, jobs: int) -> list[float]:
    queue, delays = Queue(QUEUE, connection=redis), []
    with Inbox.open() as inbox:
        for i in range(jobs + 10):
            time.sleep(random.uniform(0.005, 0.02))  # so that it does not beat with anybody's timer
            delay = inbox.delay(queue)
            if i >= 10:
                delays.append(delay)
            wait_until(lambda: redis.hget(inbox.job.key, "status") == b"finished")
    return delays


def run(server: EmbeddedServer) -> Table:
    """Measure."""
    results: list[tuple[Contender, float, float]] = []
    for contender, jobs in CONTENDERS:
        with client(server) as redis, worker(server, redis, contender):
            cuts = quantiles(_measure(redis, jobs), n=100)
            results.append((contender, cuts[49], cuts[98]))
    best = results[0][1]
    rows = [(c.name, f"{p50:.1f}", f"{p99:.1f}", f"{p50 / best:.1f}") for c, p50, p99 in results]
    note = "Target: p50 under 3 ms."
    return Table(
        "Idle latency", ["enqueue to first line of the job", "p50 ms", "p99 ms", "p50 is × ours"], rows, note, "p50 ms"
    )


if __name__ == "__main__":
    main(run)
