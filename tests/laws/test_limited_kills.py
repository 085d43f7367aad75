"""A thousand jobs of one rate limit, workers that are killed on the way: the limit holds, and nothing is lost or
leaks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from keys import named
from redis import Redis
from rq import Queue
from support import QUICK, WorkerProcess, running_worker, wait_until

from rq_pooled.rq_api import RQ3

#: LIMITED_JOBS=1000 in the environment runs as many.
NUMBER, LIMIT, WORKERS, KILLS = int(os.environ.get("LIMITED_JOBS", "300")), 3, 4, 5


class Most(threading.Thread):
    """Looks again and again how many jobs are admitted, and for how long one waits beside a free slot."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(daemon=True)
        self.redis, self.over, self.admitted, self.free, self.looks = redis, threading.Event(), 0, 0, 0
        self._both = redis.register_script(
            named("return {redis.call('ZCARD', 'rq:rl:k:allowed'), redis.call('ZCARD', 'rq:rl:k:rate_limited')}")
        )

    def run(self) -> None:
        """Look."""
        while not self.over.wait(0.002):
            found: Any = self._both()
            self.admitted = max(self.admitted, found[0])
            self.free += found[0] < LIMIT and found[1] > 0
            self.looks += 1


@pytest.mark.skipif(not RQ3, reason="of RQ 3")
@pytest.mark.timeout(240)
def test_killed_workers_neither_exceed_nor_leak_a_limit(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Of many jobs of a limit of three on four workers, five of which are killed: each ends, at most three are admitted
    at any look, none waits beside a free slot, and no slot is left."""
    from rq import RateLimit

    numbers = itertools.count()
    with contextlib.ExitStack() as stack, Redis.from_url(server.url) as other:

        def start() -> WorkerProcess:
            log = tmp_path / str(next(numbers))
            return stack.enter_context(running_worker(server.url, log=log, concurrency=2, ready=None, **QUICK))

        workers = [start() for _ in range(WORKERS)]
        watch = Most(other)
        queue, limit = Queue(connection=redis), RateLimit("k", LIMIT)
        for number in range(NUMBER):
            queue.enqueue("fleet_jobs.note", 0.01, job_id=f"j{number}", rate_limit=limit)
        watch.start()
        for kill in range(KILLS):
            wait_until(
                lambda kill=kill: redis.zcard(named("rq:finished:default")) >= NUMBER * (kill + 1) // (KILLS + 2), 60
            )
            # One that has claimed something: its jobs hold slots.
            busy = wait_until(lambda: [w for w in workers if _holds(redis, w)])[0]
            busy.kill()
            workers[workers.index(busy)] = start()
        wait_until(lambda: redis.zcard(named("rq:finished:default")) == NUMBER, 120, "all jobs")
        wait_until(
            lambda: not redis.exists(named("rq:rl:k:allowed"), named("rq:rl:k:rate_limited"), named("rq:wip:default")),
            what="free slots",
        )
        watch.over.set()
        watch.join()
    assert watch.looks > 100 and watch.admitted == LIMIT
    # An enqueue's two steps are over before the first look.
    assert watch.free == 0
    assert all(redis.xlen(named(f"rq:results:j{number}")) == 1 for number in range(NUMBER))


def _holds(redis: Redis, worker: WorkerProcess) -> bool:
    """Tell whether a worker's slots run a job."""
    for key in redis.smembers(named("rq:workers")):
        if redis.hget(key, "pid") == str(worker.pid).encode() and redis.exists(key + b":executions"):
            return True
    return False
