"""A no-op job for one of the peers, PEER, on the server PEER_URL; runs in .venv-peers, where only peers are installed.

The peer's own worker imports this module, and names its jobs after it.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

PEER, URL = os.environ["PEER"], os.environ["PEER_URL"]
SLOTS = 10
app: Any
enqueue: Any

if PEER == "huey":
    from huey import RedisHuey

    app = RedisHuey("bench", url=URL)

    @app.task()
    def nothing() -> int:
        return 1

    enqueue = nothing
elif PEER == "dramatiq":
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    broker = RedisBroker(url=URL)
    broker.add_middleware(Results(backend=RedisBackend(url=URL)))
    dramatiq.set_broker(broker)

    @dramatiq.actor(store_results=True)
    def quiet() -> int:
        return 1

    enqueue = quiet.send
elif PEER == "celery":
    from celery import Celery

    app = Celery("peer_app", broker=URL, backend=URL)

    @app.task
    def noop() -> int:
        return 1

    enqueue = noop.delay
else:

    async def job(_context: Any) -> int:
        return 1

    if PEER == "arq":
        from arq.connections import RedisSettings, create_pool

        class WorkerSettings:
            functions = (job,)
            redis_settings = RedisSettings.from_dsn(URL)
            max_jobs = SLOTS
            poll_delay = 0.01

        async def many(number: int) -> None:
            pool = await create_pool(WorkerSettings.redis_settings)
            for _ in range(number):
                await pool.enqueue_job("job")
    else:
        from saq import Queue

        queue = Queue.from_url(URL)
        settings = {"queue": queue, "functions": [job], "concurrency": SLOTS}

        async def many(number: int) -> None:
            for _ in range(number):
                await queue.enqueue("job")


def enqueue_many(count: int) -> None:
    """Enqueue so many."""
    if PEER in ("arq", "saq"):
        asyncio.run(many(count))
    else:
        for _ in range(count):
            enqueue()
