"""Failed jobs: a few that really failed, or very many that look as if they had."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

import retry_jobs
from keys import named
from redis import Redis
from rq import Queue as StockQueue
from rq import SimpleWorker
from rq.job import Job
from rq.results import Result
from rq.utils import now

from rq_pooled import Queue

_numbers = itertools.count()


def fail(redis: Redis, *kinds: str, queue: str = "default", **options: Any) -> list[Job]:
    """Enqueue a job for each kind of error and let a stock worker fail it, in this order."""
    prefix = options.pop("prefix", "job")
    options.setdefault("job_id", None)
    jobs = []
    for kind in kinds:
        job_id = options["job_id"] or f"{prefix}-{next(_numbers)}"
        jobs.append(Queue(queue, redis).enqueue(retry_jobs.fail, kind, **{**options, "job_id": job_id}))
    work(redis, queue)
    return jobs


def work(redis: Redis, *queues: str) -> None:
    """Let a stock worker do what there is."""
    logging.getLogger("rq.worker").setLevel(logging.CRITICAL)
    SimpleWorker([StockQueue(name, redis) for name in queues], connection=redis, name="stock").work(
        burst=True, logging_level="CRITICAL"
    )


def make_older(redis: Redis, job: Job, seconds: float) -> None:
    """Have a job failed so long ago, for everybody who asks."""
    ((entry_id, fields),) = redis.xrevrange(Result.get_key(job.id), count=1)
    redis.delete(Result.get_key(job.id))
    redis.xadd(Result.get_key(job.id), fields, id=f"{int(entry_id.split(b'-')[0]) - int(seconds * 1000)}-0")
    redis.zincrby(named("rq:failed:") + job.origin, -seconds, job.id)


TRACEBACK = (
    "Traceback (most recent call last):\n"
    + "".join(f'  File "/srv/app/part{i}.py", line {i}, in step{i}\n    return step{i + 1}(order)\n' for i in range(8))
    + "redis.exceptions.ConnectionError: Error 111 connecting to cache:6379. Connection refused.\n"
)


def fill(redis: Redis, number: int, queue: str = "default", age: float = 3600, prefix: str = "f") -> list[str]:
    """Write jobs as RQ leaves failed ones, all from ``age`` seconds ago on, a millisecond apart; return their ids."""
    job = Job.create("tasks.send_mail", args=("somebody@example.org", 1), connection=redis, origin=queue, id="x")
    job.timeout, job.started_at, job.ended_at, job.enqueued_at = 180, now(), now(), now()
    fields = {name: value for name, value in job.to_dict().items() if value is not None}
    fields["status"] = "failed"
    result = Result("x", Result.Type.FAILED, redis, exc_string=TRACEBACK).serialize()
    began = time.time() - age
    ids = [f"{prefix}{number:06d}" for number in range(number)]
    redis.sadd(named("rq:queues"), named(f"rq:queue:{queue}"))
    for start in range(0, number, 1000):
        with redis.pipeline(transaction=False) as pipe:
            for offset, job_id in enumerate(ids[start : start + 1000], start):
                pipe.hset(named(f"rq:job:{job_id}"), mapping=fields)
                pipe.expire(named(f"rq:job:{job_id}"), 31_536_000)
                pipe.xadd(named(f"rq:results:{job_id}"), result, id=f"{int(began * 1000) + offset}-0")
                pipe.zadd(named(f"rq:failed:{queue}"), {job_id: int(began + offset / 1000) + 31_536_000})
            pipe.execute()
    return ids


def ids_in(redis: Redis, key: str) -> list[str]:
    """The members of a sorted set or list."""
    found: Sequence[bytes] = redis.lrange(key, 0, -1) if redis.type(key) == b"list" else redis.zrange(key, 0, -1)
    return [job_id.decode() for job_id in found]


FACTORIAL = "math.factorial"


def fail_jobs(redis: Redis, name: str, errors: list[str], prefix: str = "q") -> list[str]:
    """Put failed jobs with these tracebacks' last lines into a queue's failed registry; return their ids."""
    queue = StockQueue(name, connection=redis)
    ids = []
    for number, error in enumerate(errors):
        job = Job.create(FACTORIAL, (3,), id=f"{prefix}-{number}", connection=redis, origin=name, timeout=60)
        job.ended_at = job.created_at
        job.save()
        job.set_status("failed")  # type: ignore[arg-type]
        text = f'Traceback (most recent call last):\n  File "jobs.py", line {number}, in run\n    run()\n{error}\n'
        queue.failed_job_registry.add(job, ttl=1000)
        Result.create_failure(job, 1000, exc_string=text)
        ids.append(job.id)
    redis.sadd(named("rq:queues"), queue.key)
    return ids


HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'
