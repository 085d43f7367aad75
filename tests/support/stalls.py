"""What dead workers leave, and looking for it."""

from __future__ import annotations

import time
from typing import Any

from engine import Engine
from keys import named
from redis import Redis
from rq.executions import Execution
from rq.job import Job, JobStatus

from rq_pooled.store.leases import find_stalled, stalled_of


def look(ours: Engine, name: str = "y", unlock: bool = True, valid_for: float = 5) -> Any:
    """Look for expired leases once, whoever looked last."""
    if unlock:
        ours.run(("DEL", named("rq_pooled:lock:stalled")))
    valid_until = int(ours.run(("TIME",))[0]) + valid_for
    return stalled_of(
        ours.run(find_stalled(ours.settings, ours.token, [named("rq:queue:default")], name, valid_until)), name
    )


def end_lease(redis: Redis, *members: str, queue: str = "default") -> None:
    """Let leases be over, the first one first."""
    redis.zadd(named(f"rq_pooled:leases:{queue}"), {member: 1 + i for i, member in enumerate(members)})


def abandon(redis: Redis, *jobs: Job) -> None:
    """Make of queued jobs what a stock worker that died leaves, 10 seconds after its last sign of life expired.

    RQ lets the job's own list of executions outlive its claim by a minute.
    """
    with redis.pipeline() as pipeline:
        for job in jobs:
            pipeline.lrem(named("rq:queue:default"), 1, job.id)
            execution = Execution.create(job, ttl=-10, pipeline=pipeline)
            job.set_status(JobStatus.STARTED, pipeline=pipeline)
            pipeline.zadd(named("rq:wip:default"), {execution.composite_key: time.time() - 10})
        pipeline.delete(named("rq:clean_registries:default"))  # RQ cleans a queue every 15 minutes
        pipeline.execute()
