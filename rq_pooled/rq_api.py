"""The seam to RQ: what RQ 2 and RQ 3 do in different ways, each under one name.

All that differs between RQ's major versions stands here, found by feature and not by number.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import rq.defaults
import rq.registry
from redis.exceptions import ResponseError
from rq.group import Group
from rq.queue import Queue

#: Executions are arguments, workers list theirs in a set, dependents pass a registry of their own, rate limits exist.
RQ3 = hasattr(Queue, "move_dependents_to_ready")
#: Methods of workers that RQ 3 calls with the execution.
HANDLERS_OF_EXECUTIONS = (
    ("perform_job", "handle_job_success", "handle_job_failure", "handle_job_retry", "cleanup_execution") if RQ3 else ()
)


def _module(name: str) -> Any:
    """Return a module that only RQ 3 has."""
    return importlib.import_module(name)


def key_prefix() -> str:
    """Return the prefix of all of RQ's keys, which the environment sets for RQ 3."""
    return str(getattr(rq.defaults, "RQ_KEY_PREFIX", "rq"))


def with_execution(execution: Any) -> dict[str, Any]:
    """Return the argument by which RQ 3's handlers are told the execution; RQ 2's ask their worker."""
    return {"execution": execution} if RQ3 else {}


def hold(worker: Any, execution: Any) -> None:
    """Have the worker hold one execution, or none."""
    worker.held = execution
    if RQ3:
        worker.executions = {} if execution is None else {execution.id: execution}
    else:
        worker.execution = execution


def stopped_callback(job: Any, penalty: Any) -> None:
    """Call a job's callback for a stop."""
    if RQ3:
        _module("rq.callbacks").execute_stopped_callback(job, penalty)
    else:
        job.execute_stopped_callback(penalty)


def failure_callback(job: Any, penalty: Any, *exc_info: Any) -> None:
    """Call a job's callback for a failure."""
    if RQ3:
        _module("rq.callbacks").execute_failure_callback(job, penalty, *exc_info)
    else:
        job.execute_failure_callback(penalty, *exc_info)


def on_abandoned(call: Any) -> None:
    """Have RQ's clean-up call ``call(job, run)`` instead of a job's failure callback; RQ 3 only."""
    registry: Any = rq.registry
    original = registry.execute_failure_callback

    def execute(job: Any, _penalty: Any, *exc_info: Any) -> None:
        call(job, lambda penalty: original(job, penalty, *exc_info))

    registry.execute_failure_callback = execute


def survive_spoilt_limits(log: Any) -> None:
    """Have RQ's handlers and maintenance of this process go on where a limit's key is something else; RQ 3 only.

    A handler frees the slot of a job that has succeeded as its last act: its success must not fail with it. In its
    maintenance RQ looks at every limit, then at groups; sweeps come last.
    """
    if not RQ3:
        return
    base, registry = _module("rq.worker.base"), _module("rq.registry")
    limits = _module("rq.rate_limit").RateLimitRegistry
    release_slot, clean_up, read_all = base.release_slot, limits.cleanup, limits.all

    def release(job: Any) -> Any:
        try:
            return release_slot(job)
        except ResponseError as error:
            log.warning("job %s: its rate limit %r cannot be read: %s", job.id, job.rate_limit_key, error)
            return []

    def clean_up_if_read(limit: Any) -> None:
        try:
            clean_up(limit)
        except ResponseError as error:
            log.warning("rate limit %r is not cleaned up: %s", limit.key, error)

    def read_all_if_read(connection: Any) -> Any:
        try:
            return read_all(connection)
        except ResponseError as error:
            log.warning("no rate limit is cleaned up: %s", error)
            return []

    base.release_slot = registry.release_slot = release
    limits.cleanup, limits.all = clean_up_if_read, staticmethod(read_all_if_read)


def traceback_of_abandoned(stack: Any) -> Any:
    """Return what RQ passes in the place of a traceback."""
    return None if RQ3 else stack


def enqueue_dependents(queue: Any, job: Any) -> None:
    """Have the dependents of a job that has ended enqueued, in one transaction also with RQ 3, which takes two."""
    if not RQ3:
        queue.enqueue_dependents(job)
        return
    with queue.connection.pipeline() as pipe, dependents_at_once():
        pipe.watch(job.dependents_key)
        queue.move_dependents_to_ready(job, pipeline=pipe)
        pipe.execute()


def enqueues_dependents(queue_class: Any, failed: bool) -> list[Any]:
    """Return the functions by which RQ's handler of a success, or of a failure, enqueues dependents."""
    if not RQ3:
        return [queue_class.enqueue_dependents]
    steps = [queue_class.move_dependents_to_ready, queue_class.enqueue_ready_jobs_by_queue]
    return [queue_class.enqueue_dependents, *steps] if failed else steps


@contextlib.contextmanager
def dependents_at_once() -> Iterator[None]:
    """Have jobs queued where RQ 3 would note that they are ready, and queue them in a second step."""
    if not RQ3:
        yield
        return
    registry: Any = getattr(rq.registry, "ReadyJobRegistry")  # noqa: B009
    originals = registry.register_jobs, registry.enqueue_jobs

    def enqueue(self: Any, jobs: Any, pipeline: Any) -> None:
        queue: Any = Queue(self.name, self.connection, job_class=self.job_class, serializer=self.serializer)
        for job in jobs:
            if job.has_rate_limit:
                queue.deferred_job_registry.remove(job, pipeline=pipeline)
                queue._enqueue_rate_limited_job(job, pipeline=pipeline)
            else:
                queue._enqueue_job(job, pipeline=pipeline, at_front=job.should_enqueue_at_front())

    registry.register_jobs, registry.enqueue_jobs = enqueue, lambda _self, _ids: []
    try:
        yield
    finally:
        registry.register_jobs, registry.enqueue_jobs = originals


@contextlib.contextmanager
def groups_cleaned_by(clean: Callable[[], None]) -> Iterator[None]:
    """Have RQ's maintenance call this where it would clean all groups, two round trips for each."""
    group: Any = Group
    original = vars(Group)["clean_registries"]
    group.clean_registries = lambda *_args, **_kwargs: clean()
    try:
        yield
    finally:
        group.clean_registries = original


def rate_limit_scripts() -> dict[str, str]:
    """Return RQ's scripts for rate limits that its handlers call, name -> text; none with RQ 2."""
    if not RQ3:
        return {}
    rate_limit = _module("rq.rate_limit")
    return {
        "acquire": rate_limit.ACQUIRE_AND_ENQUEUE_SCRIPT,
        "release": rate_limit.RELEASE_AND_ENQUEUE_SCRIPT,
        "release_stale": rate_limit.RELEASE_STALE_AND_ENQUEUE_SCRIPT,
        "cleanup": rate_limit.CLEANUP_REGISTRY_SCRIPT,
    }


#: By their hashes, RQ's scripts for rate limits: an outcome may hold calls of them, and the parent carries these.
RATE_LIMIT_HASHES = frozenset(
    hashlib.sha1(text.encode()).hexdigest().encode() for text in rate_limit_scripts().values()
)


def lua_prelude() -> str:
    """Return the Lua that tells our scripts RQ's major version."""
    return f"local RQ3 = {str(RQ3).lower()}\n"


def lua_limits() -> str:
    """Return RQ's scripts for rate limits as Lua functions, by SHA1 and by name; our scripts call them in their own
    step.

    ``guarded`` is that of shared/guarded_limit.lua.
    """
    lines = ["local rq_scripts, rq_named = {}, {}"]
    for name, text in rate_limit_scripts().items():
        function = f"function(KEYS, ARGV)\n{text}\nend"
        lines.append(f"rq_named['{name}'] = " + (function if name == "cleanup" else f"guarded({function})"))
        lines.append(f"rq_scripts['{hashlib.sha1(text.encode()).hexdigest()}'] = rq_named['{name}']")
    return "\n".join(lines) + "\n"
