"""What stays the same: jobs that wait, backlogs of any length, and latency while half of the capacity is used."""

from __future__ import annotations

import itertools
import time
from statistics import quantiles

from redis import Redis
from rq import Queue as RQQueue
from rq.registry import FinishedJobRegistry

from rq_pooled import Queue
from rq_pooled.embedded import EmbeddedServer

from .common import BASE, QUEUE, Table, Tables, client, main, ours, run_jobs, spawn, stop, wait_until, worker
from .latency import Inbox
from .measured import rate

BACKLOGS = [1_000, 10_000, 100_000, 1_000_000]
#: So many jobs of a long backlog are measured.
MEASURED = 10_000


def _ideal(server: EmbeddedServer) -> Table:
    """Jobs of 10 ms in 50 slots."""
    jobs, seconds, slots = 5000, 0.01, 50
    with client(server) as redis, worker(server, redis, ours(slots)):
        run_jobs(redis, 500, "benchmarks.jobs.doze", seconds)
        taken = run_jobs(redis, jobs, "benchmarks.jobs.doze", seconds)
    ideal = jobs * seconds / slots
    row = (f"{jobs:,}", f"{slots}", f"{ideal:.2f}", f"{taken:.2f}", f"{ideal / taken:.0%}")
    header = ["jobs that sleep 10 ms", "slots", "ideal, s", "taken, s", "of the ideal"]
    return Table("Waiting jobs", header, [row], "Target: 95 %, where the cores carry 5,000 jobs a second.")


def _backlog(server: EmbeddedServer) -> Table:
    """A backlog of a thousand, and of a million."""
    rows = []
    for waiting in BACKLOGS:
        with client(server) as redis:
            queue = Queue(QUEUE, connection=redis)
            data = RQQueue.prepare_data("benchmarks.jobs.nothing")
            queue.enqueue_many(itertools.repeat(data, waiting))
            jobs = min(waiting, MEASURED)
            with open("/dev/null", "w") as log:
                process = spawn(server, ours(10), log)
                try:
                    left = rate(redis, process, lambda: waiting - redis.llen(queue.key), jobs)  # noqa: B023
                finally:
                    stop(process)
        rows.append((waiting, left))
    first = rows[0][1].sum
    cells = [(f"{waiting:,}", f"{one.jobs:,.0f}", f"{one.sum:.0f}", f"{one.sum / first:.2f}") for waiting, one in rows]
    return Table(
        "Backlog", ["jobs that wait", "jobs/s", "CPU us per job", "× the first"], cells, "Target: within 10 %."
    )


def _under_load(server: EmbeddedServer) -> Table:
    """Delay of one job while jobs arrive at half the rate that ten slots reach; with an earlier version, at its own
    half, and of this version at that rate.
    """
    rows = []
    then = ours(10, BASE) if BASE else None
    half = None
    for contender in (then, ours(10)) if then else (ours(10),):
        with client(server) as redis, worker(server, redis, contender), Inbox.open() as inbox:
            jobs = 6000
            own = jobs / run_jobs(redis, jobs, "benchmarks.jobs.nothing") / 2
            for rate_of in dict.fromkeys((own, half or own)):
                cuts = quantiles(_delays(redis, inbox, rate_of), n=100)
                rows.append((contender.name, f"{rate_of:,.0f}", f"{cuts[49]:.1f}", f"{cuts[98]:.1f}"))
            half = own
    header = ["half of what is possible", "jobs/s that arrive", "p50 ms", "p99 ms"]
    return Table("Latency under load", header, rows[1:] + rows[:1] if then else rows)


def _delays(redis: Redis, inbox: Inbox, per_second: float, seconds: float = 6.0, portion: int = 25) -> list[float]:
    """Return the delays, in ms, of jobs that each stand at the end of a portion of no-op jobs."""
    queue, finished = Queue(QUEUE, connection=redis), FinishedJobRegistry(QUEUE, redis)
    data = RQQueue.prepare_data("benchmarks.jobs.nothing")
    delays, before, sent = [], redis.zcard(finished.key), 0
    begin = time.perf_counter()
    for number in range(int(seconds * per_second / portion)):
        time.sleep(max(0.0, begin + number * portion / per_second - time.perf_counter()))
        queue.enqueue_many([data] * (portion - 1))
        delays.append(inbox.delay(queue))
        sent += portion
    wait_until(lambda: redis.zcard(finished.key) >= before + sent)
    return delays


def run(server: EmbeddedServer) -> Tables:
    """Measure."""
    return Tables([_ideal(server), _backlog(server), _under_load(server)])


if __name__ == "__main__":
    main(run)
