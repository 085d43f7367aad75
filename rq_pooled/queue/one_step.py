"""Enqueues in one round trip, where RQ takes two.

RQ writes the queue's name to the set of all queues before it saves the job, and uses a given pipeline for that. So
``begin`` returns a pipeline, and ``enqueue_new.lua`` does its commands and saves the job.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import rq
from redis.client import Pipeline
from rq.exceptions import DuplicateJobError
from rq.job import Job
from rq.scripts import _build_hset_args

from ..store.enqueue import enqueue_new
from ..store.keys import QUEUES, job_key, queue_key
from ..store.scripts import run_script
from .asked import asked_by
from .conditions import AdmittingQueue
from .handlers import is_recording
from .refused_scripts import refuses_scripts

#: The methods that RQ calls. A subclass that replaces one must see the pipeline that it was given.
_STEPS = ("_enqueue_async_job", "_enqueue_job", "enqueue_job", "setup_dependencies")


def begin(queue: AdmittingQueue, job: Job) -> Pipeline | None:
    """Return the pipeline to give to RQ's ``enqueue_job``; None if the job must be enqueued in RQ's own steps."""
    connection = queue.connection
    kind: Any = type(queue)
    admitted = asked_by(job) is not None or queue.max_length is not None
    if admitted or job._dependency_ids or getattr(job, "has_rate_limit", False) or not _is_known(kind):
        return None
    if is_recording(connection) or refuses_scripts(connection):
        return None
    # Classes with their own prefixes use other keys.
    if job.key != job_key(job.id) or queue.key != queue_key(queue.name):
        return None
    pipeline = connection.pipeline()
    pipeline.rq_pooled_one_step = True  # type: ignore[attr-defined]
    return pipeline


def is_begun(pipeline: Pipeline | None) -> bool:
    """Tell whether this is a pipeline that ``begin`` has returned."""
    return getattr(pipeline, "rq_pooled_one_step", False)


def save(queue: rq.Queue, pipeline: Pipeline, job: Job, at_front: bool) -> None:
    """Enqueue a job whose queue's name stands in the pipeline.

    Raises:
        DuplicateJobError: a job with its id is there; nothing was done.
        redis.exceptions.RedisError: as any command.
    """
    command = enqueue_new(job.key, queue.key, job.id, at_front, job.ttl, _build_hset_args(job))
    if not run_script(queue.connection, command):
        raise DuplicateJobError(f"Job with ID '{job.id}' already exists")
    named = ("SADD", QUEUES, queue.key)
    pipeline.command_stack = [entry for entry in pipeline.command_stack if entry[0] != named]


def end(pipeline: Pipeline | None) -> None:
    """Run the commands left in a pipeline: a job with that id existed, or a subclass has written more."""
    if pipeline is not None and pipeline.command_stack:
        pipeline.execute()


@cache
def _is_known(queue_class: type[Any]) -> bool:
    """Tell whether only RQ and this package define the steps of an enqueue."""
    owners = [next(cls for cls in queue_class.__mro__ if step in vars(cls)) for step in _STEPS]
    return all(owner.__module__.partition(".")[0] in ("rq", "rq_pooled") for owner in owners)
