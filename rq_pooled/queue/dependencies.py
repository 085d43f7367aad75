"""Registers a job with its dependencies: one WATCH over one connection, repeated only after a real change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import rq
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import WatchError
from rq.job import Job, JobStatus

from ..connection.away import LOST
from ..errors import ServerUnreachable
from ..originals import rqs_own
from ..wire import text


def set_up_watching(queue: Any, job: Job, setup: Callable[..., Job]) -> Job:
    """Call ``setup``, RQ's ``setup_dependencies``, until no other client has changed a dependency meanwhile.

    It gets a pipeline of its own, for two reasons. Without one, it reads over a second connection while the first one
    watches, so callers that hold all connections of a bounded pool would wait for each other. And redis-py turns a
    connection lost during WATCH into a WatchError, after which RQ would repeat a MULTI that may have been done.
    """
    # An instrumentation around rq's method sees one call, however many tries there are.
    own = rqs_own(rq.Queue, "setup_dependencies")
    status = job.get_status(refresh=False)
    while True:
        with _watching(queue.connection) as pipe:
            try:
                with asking_over(pipe, job):
                    setup(job, pipeline=pipe)
            except BaseException as error:
                # Nothing was sent.
                job._status = status
                if not isinstance(error, WatchError):
                    raise
                if _is_lost(error):
                    raise ServerUnreachable(f"the connection was lost: {error.__context__}") from error
                continue
            if job.get_status(refresh=False) != JobStatus.DEFERRED:
                return job
            try:
                pipe.execute()
                return job
            except WatchError as error:
                if _is_lost(error):
                    raise RedisConnectionError(str(error.__context__)) from error
                job._status = status
        if own is not None:
            setup = own.__get__(queue)


@contextmanager
def asking_over(pipe: Pipeline, job: Job) -> Iterator[None]:
    """Let RQ read the job's dependencies over the pipeline that watches them.

    The method is set on the object, because job classes are the user's.
    """
    fetch = job.fetch_dependencies

    def fetch_over_pipe(watch: bool = False, pipeline: Pipeline | None = None) -> list[Any]:
        if pipeline is not pipe:
            # An instrumentation reads this, too.
            return fetch(watch=watch, pipeline=pipeline)
        keys = [job.key_for(job_id) for job_id in job._dependency_ids]
        pipe.watch(*keys)  # type: ignore[no-untyped-call] # redis-py's
        # They are read one by one, because a watching connection allows no other way. A missing job does not count; a
        # job that was only saved has no status yet.
        found: Any = [pipe.hmget(key, "created_at", "status") for key in keys]
        return [_Dependency(text(status or b"")) for created, status in found if created or status]

    job.fetch_dependencies = fetch_over_pipe  # type: ignore[method-assign]
    try:
        yield
    finally:
        del job.fetch_dependencies


class _Dependency(NamedTuple):
    """The part of a dependency that RQ reads."""

    status: str | None

    def get_status(self, refresh: bool = False) -> str | None:
        """Return the status as it was read."""
        return self.status


def _is_lost(error: WatchError) -> bool:
    """Tell whether redis-py raised this WatchError while it handled a lost connection."""
    return isinstance(error.__context__, LOST)


@contextmanager
def _watching(client: Redis) -> Iterator[Pipeline]:
    """Give a pipeline for WATCH; after an error its connection is closed, which ends the WATCH as well.

    redis-py would send UNWATCH instead, and where that fails too, say at the end of a deadline, hide the first error.
    """
    pipe = client.pipeline()
    try:
        yield pipe
    except BaseException:
        pipe.watching = False
        if pipe.connection is not None:
            pipe.connection.disconnect()  # type: ignore[no-untyped-call] # redis-py's
        raise
    finally:
        pipe.reset()
