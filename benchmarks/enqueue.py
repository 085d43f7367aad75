"""What it costs a program to enqueue: processor time and time of one call, in one thread and in eight."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from threading import Thread

import rq
from redis import Redis

import rq_pooled
from rq_pooled.embedded import EmbeddedServer

from .common import QUEUE, Table, client, main

ROUNDS, JOBS, THREADS = 9, 800, 8


def _one_by_one(queue: rq.Queue, jobs: int) -> None:
    for _ in range(jobs):
        queue.enqueue("benchmarks.jobs.nothing")


def _in_threads(queue: rq.Queue, jobs: int) -> None:
    threads = [Thread(target=_one_by_one, args=(queue, jobs // THREADS)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _at_once(queue: rq.Queue, jobs: int) -> None:
    queue.enqueue_many([queue.prepare_data("benchmarks.jobs.nothing") for _ in range(jobs)])


#: Name, how it is done, jobs of a turn, turns that count.
WAYS: list[tuple[str, Callable[[rq.Queue, int], None], int, int]] = [
    ("one thread", _one_by_one, JOBS, ROUNDS),
    (f"{THREADS} threads", _in_threads, JOBS, ROUNDS),
    ("enqueue_many", _at_once, JOBS, ROUNDS),
    ("enqueue_many of 100 000", _at_once, 100_000, 1),
]


def _measure(
    way: Callable[[rq.Queue, int], None], queues: list[rq.Queue], jobs: int, rounds: int
) -> list[tuple[float, float]]:
    """Return, per queue, the medians of processor time and of time per job, in microseconds; they take turns."""
    taken: list[list[tuple[float, float]]] = [[] for _ in queues]
    for turn in range(rounds + 1):
        for queue, times in zip(queues, taken):
            cpu, began = time.process_time(), time.perf_counter()
            way(queue, jobs)
            if turn:  # the first one is for warming up
                times.append(((time.process_time() - cpu) / jobs * 1e6, (time.perf_counter() - began) / jobs * 1e6))
            queue.connection.flushdb()
    return [(median(cpu for cpu, _ in times), median(wall for _, wall in times)) for times in taken]


def run(server: EmbeddedServer) -> Table:
    """Measure."""
    os.environ["RQ_POOLED_URL"] = server.url
    rows = []
    with client(server) as redis:
        ours, stock = rq_pooled.Queue(QUEUE), rq.Queue(QUEUE, connection=Redis.from_url(server.url))
        for name, way, jobs, rounds in WAYS:
            (cpu, wall), (stock_cpu, stock_wall) = _measure(way, [ours, stock], jobs, rounds)
            figures = (f"{cpu:.0f}", f"{stock_cpu:.0f}", f"{wall:.0f}", f"{stock_wall:.0f}")
            rows.append((name, *figures, f"{stock_cpu / cpu:.2f}", f"{stock_wall / wall:.2f}"))
        redis.flushall()
    header = ["enqueue, us per job", "CPU, ours", "CPU, rq.Queue", "time, ours", "time, rq.Queue"]
    return Table("Enqueueing", [*header, "ours is × cheaper", "ours is × faster"], rows)


if __name__ == "__main__":
    main(run)
