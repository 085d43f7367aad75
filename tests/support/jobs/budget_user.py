"""A process of an application with a budget: uses its pool of one connection for a while, again and again."""

from __future__ import annotations

import random
import sys
import time

from redis import Redis
from redis.exceptions import RedisError

from rq_pooled.config import Settings
from rq_pooled.errors import BudgetExceeded
from rq_pooled.pool import Pool


def main(url: str, seed: int) -> None:
    """Run until killed; a line for each time that it was admitted."""
    chance = random.Random(seed)
    settings = Settings(url=url, budget=20, budget_name="shop", heartbeat_interval=0.3, heartbeat_ttl=1.0)
    while True:
        pool = Pool(settings, max_connections=1)
        client = Redis(connection_pool=pool)
        over = time.monotonic() + chance.uniform(0.3, 3.0)
        while time.monotonic() < over:
            try:
                client.ping()
                client.incr(f"used:{seed}")
            except BudgetExceeded:
                pass
            except RedisError as error:
                print("lost", error, flush=True)
            time.sleep(chance.uniform(0.02, 0.08))
        pool.disconnect()
        time.sleep(chance.uniform(0.0, 0.2))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
