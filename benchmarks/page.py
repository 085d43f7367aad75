"""The page with 1 000 queues, 1 000 000 failed jobs and 50 workers: milliseconds and bytes of each view."""

from __future__ import annotations

import statistics
import time
from typing import Any

from flask import Flask
from redis import Redis
from rq.job import Job
from rq.results import Result
from rq.utils import now, utcformat

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.flask import RQPooled
from rq_pooled.store import keys
from rq_pooled.store.counters import Counters
from rq_pooled.store.scripts import load
from rq_pooled.store.statistics import publish

from .common import QUEUE, Table, client, main

QUEUES, FAILED, REAL, WORKERS, SLOTS = 1000, 1_000_000, 3000, 50, 10
#: Bytes of the arguments of the jobs that a view may meet, of which none is to be read.
ARGUMENTS = 1_000_000
VIEWS = {
    "the page": "/",
    "failed jobs, the newest 50": "/failed",
    "the 50 after 900 000": f"/failed?queue={QUEUE}&offset=900000",
    "a group": f"/failed?queue={QUEUE}&exception=ValueError&function=tasks.send_mail",
    "one job": "/job?id=real-1",
}
_ERROR = 'Traceback (most recent call last):\n  File "tasks.py", line 7, in send_mail\n    go()\nValueError: no card\n'


def fill(redis: Redis) -> None:
    """Write what a large shop has: most failed jobs are entries alone, since no view reads further."""
    job = Job.create("tasks.send_mail", args=("somebody@example.org", 1), connection=redis, origin=QUEUE, id="x")
    job.timeout, job.ended_at, job.enqueued_at = 180, now(), now()
    fields: dict[str, Any] = {name: value for name, value in job.to_dict().items() if value is not None}
    fields.update(status="failed")
    result = Result("x", Result.Type.FAILED, redis, exc_string=_ERROR).serialize()
    registry = keys.registry_key("failed", QUEUE)
    pipe = redis.pipeline(transaction=False)
    for number in range(FAILED):
        pipe.zadd(registry, {f"entry-{number}": number})
        if number % 10_000 == 0:
            pipe.execute()
    for number in range(REAL):
        data = b"y" * ARGUMENTS if number % 100 == 0 else fields["data"]
        pipe.hset(keys.job_key(f"real-{number}"), mapping={**fields, "data": data})
        pipe.xadd(keys.results_key(f"real-{number}"), result)
        pipe.zadd(registry, {f"real-{number}": 2_000_000_000 + number})
        if number % 100 == 0:
            pipe.execute()
    for number in range(QUEUES):
        name = QUEUE if number == 0 else f"queue-{number}"
        pipe.sadd(keys.QUEUES, keys.queue_key(name))
        pipe.rpush(keys.queue_key(name), f"queued-{number}")
        pipe.hset(keys.job_key(f"queued-{number}"), mapping={"data": b"", "enqueued_at": utcformat(now())})
    for words in load():
        pipe.execute_command(*words)
    for number in range(WORKERS):
        name = f"worker-{number}"
        about = {"kind": "worker", "uptime": 100.0, "worker": name, "queues": [QUEUE], "concurrency": SLOTS, "busy": 3}
        more = {"horses": [*range(1000, 1000 + SLOTS)], "connections": {"command": 1, "listen": 1}}
        pipe.execute_command(
            *publish(f"shop:host-{number}:{number + 1}", 600, {**about, **more, **Counters().fields()})
        )
        for slot in range(SLOTS):
            pipe.hset(keys.worker_key(f"{name}-{slot}" if slot else name), "state", "busy")
    pipe.execute()


def run(running: EmbeddedServer) -> Table:
    """Ask for each view some times, over a Flask test client on a real server."""
    app = Flask("benchmark")
    app.config["RQ_POOLED_URL"] = running.url
    app.register_blueprint(RQPooled(app).blueprint(lambda: "write"))
    browser = app.test_client()
    rows = []
    with client(running) as redis:
        redis.flushdb()
        fill(redis)
        for name, address in VIEWS.items():
            times, size = [], 0
            for _ in range(7):
                began = time.perf_counter()
                answer = browser.get(address)
                times.append(1000 * (time.perf_counter() - began))
                assert answer.status_code == 200, answer.text
                size = len(answer.data)
            rows.append([name, f"{times[0]:.0f} ms", f"{statistics.median(times):.0f} ms", f"{size / 1000:.0f} kB"])
        redis.flushdb()
    note = f"{QUEUES} queues, {FAILED} failed jobs (some with arguments of 1 MB), {WORKERS} workers."
    return Table("The page", ["view", "first", "median", "size"], rows, note)


if __name__ == "__main__":
    main(run)
