"""No-op jobs per second, results stored, without start-up: medians of rounds in which the contenders take turns."""

from __future__ import annotations

from statistics import median

from rq_pooled.embedded import EmbeddedServer

from .common import Table, client, main, ours, run_jobs, stock_pool, stock_worker, worker

ROUNDS = 3
CONTENDERS = [(ours(10), 6000), (ours(1), 3000), (stock_pool(4, "rq.SimpleWorker"), 1500), (stock_worker(), 120)]


def run(server: EmbeddedServer) -> Table:
    """Measure."""
    rates: dict[str, list[float]] = {contender.name: [] for contender, _ in CONTENDERS}
    for _ in range(ROUNDS):
        for contender, jobs in CONTENDERS:
            with client(server) as redis, worker(server, redis, contender):
                rates[contender.name].append(jobs / run_jobs(redis, jobs, "benchmarks.jobs.nothing"))
    best = median(rates[CONTENDERS[0][0].name])
    rows = [
        (
            contender.name,
            f"{median(rates[contender.name]):,.0f}",
            f"{min(rates[contender.name]):,.0f}-{max(rates[contender.name]):,.0f}",
            f"{best / median(rates[contender.name]):.1f}",
        )
        for contender, _ in CONTENDERS
    ]
    note = f"Median of {ROUNDS} rounds. Target: 2,000 jobs/s, and 5 times the pool of four SimpleWorkers."
    return Table(
        "Throughput", ["no-op jobs, results stored", "jobs/s", "from-to", "ours is × faster"], rows, note, "jobs/s"
    )


if __name__ == "__main__":
    main(run)
