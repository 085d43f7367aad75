"""Server connections: the most that were seen at once, and how many were opened while 400 jobs ran."""

from __future__ import annotations

import time

from rq_pooled.embedded import EmbeddedServer

from .common import Table, client, main, ours, run_jobs, stock_pool, stock_worker, worker

CONTENDERS = [ours(10), stock_worker(), stock_pool(10)]
JOBS = 400


def run(server: EmbeddedServer) -> Table:
    """Measure."""
    rows = []
    for contender in CONTENDERS:
        with client(server) as redis, worker(server, redis, contender):
            time.sleep(1)  # those of the warm-up have closed
            idle = redis.info("clients")["connected_clients"] - 1
            opened = redis.info("stats")["total_connections_received"]
            most = [0]

            def look(most: list[int] = most) -> None:
                most[0] = max(most[0], redis.info("clients")["connected_clients"] - 1)

            run_jobs(redis, JOBS, "benchmarks.jobs.doze", 0.01, each=look)
            opened = redis.info("stats")["total_connections_received"] - opened
            rows.append((contender.name, str(idle), str(most[0]), str(opened)))
    header = [f"{JOBS} jobs of 10 ms", "idle", "most while busy", "newly opened"]
    return Table("Connections", header, rows)


if __name__ == "__main__":
    main(run)
