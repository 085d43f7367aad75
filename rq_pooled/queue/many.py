"""Writes many jobs, packed here and not by redis-py: of what such an enqueue costs its process, that is the half."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, cast

import rq
from redis.exceptions import ResponseError
from rq.job import Job, JobStatus

from ..pool.pool import Pool
from ..store.enqueue import MANY, MANY_BYTES, enqueue_many
from ..store.keys import job_key, queue_key
from ..store.scripts import run, run_script
from ..wire import Command, pack
from .handlers import is_recording
from .refused_scripts import refuses_scripts

#: Jobs, each with whether it goes to the front of its queue.
Batch = Sequence[tuple[Job, bool]]


@cache
def _is_known(queue_class: type[Any]) -> bool:
    """Tell whether only RQ and this package define how such a queue enqueues."""
    steps = ("_enqueue_async_job", "_enqueue_job", "_persist_job", "enqueue_many", "push_job_id")
    owners = [next((cls for cls in queue_class.__mro__ if step in vars(cls)), rq.Queue) for step in steps]
    return all(owner.__module__.partition(".")[0] in ("rq", "rq_pooled") for owner in owners)


def may_write(queue: rq.Queue) -> bool:
    """Tell whether ``write`` does what RQ would: with RQ's own steps and keys, on a server that runs scripts."""
    own_keys = queue.key == queue_key(queue.name) and queue.job_class.key_for("a") == job_key("a")
    connection, kind = queue.connection, cast(Any, type(queue))
    return own_keys and _is_known(kind) and not is_recording(connection) and not refuses_scripts(connection)


def write(queue: rq.Queue, batch: Batch) -> None:
    """Write jobs that are ready to be enqueued, in chunks of one step each.

    Raises:
        redis.exceptions.RedisError: as any command; earlier chunks are written.
    """
    written = 0
    for command, size in _chunks(queue.key, batch):
        try:
            _run(queue, command)
        except ResponseError as error:
            if not refuses_scripts(queue.connection, error):
                raise
            _write_as_rq(queue, batch[written:])
            return
        written += size


def _write_as_rq(queue: rq.Queue, batch: Batch) -> None:
    with queue.connection.pipeline() as pipe:
        for job, at_front in batch:
            rq.Queue._enqueue_async_job(queue, job, pipeline=pipe, at_front=at_front)
        pipe.execute()


def _chunks(queue_key: str, batch: Batch) -> Iterator[tuple[Command, int]]:
    """Return the commands that write jobs, each with how many."""
    jobs: list[tuple[str, bool, int | None, list[Any]]] = []
    size = 0
    for job, at_front in batch:
        fields: list[Any] = []
        for name, value in job.to_dict().items():
            if value is not None:
                # An enum's member writes itself in another way than its value.
                fields += (name, value.value if type(value) is JobStatus else value)
        jobs.append((job.id, at_front, job.ttl, fields))
        size += 500 + len(job.data)
        if len(jobs) == MANY or size > MANY_BYTES:
            yield enqueue_many(queue_key, jobs), len(jobs)
            jobs, size = [], 0
    if jobs:
        yield enqueue_many(queue_key, jobs), len(jobs)


def _run(queue: rq.Queue, command: Command) -> None:
    pool: Any = queue.connection.connection_pool
    if not isinstance(pool, Pool):
        run_script(queue.connection, command)
        return

    def send(words: Any) -> Any:
        connection = pool.get_connection()
        try:
            connection.send_packed_command([b"*%d\r\n%b" % pack(words)])
            return connection.read_response()
        finally:
            pool.release(connection)

    run(send, command)
