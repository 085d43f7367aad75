"""Touches once, before the first fork, what every job touches: caches filled here are shared by all horses.

A horse that fills them itself has them in memory of its own: 1.4 MB each, measured with Python 3.11.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rq.executions import Execution
from rq.job import Job
from rq.utils import now

from ..originals import is_rqs_own, rqs_own
from ..process.channel import Inbox, encode
from ..wire import pack_runs
from .recorder import Recorder
from .success import is_plain, plain_success, snapshot

#: What is called here besides ``Job.perform``.
_USED: dict[type, tuple[str, ...]] = {
    Job: (
        *("__init__", "create", "to_dict", "restore", "_execute", "_deserialize_data", "get_call_string", "key_for"),
        *("args", "data", "func", "func_name", "id", "instance", "key", "kwargs"),
        *(("has_rate_limit",) if hasattr(Job, "has_rate_limit") else ()),
    ),
    Execution: ("__init__", "serialize"),
}
#: After so many calls CPython 3.11 and newer have rewritten a function's bytecode in place (PEP 659). This happens
#: before the fork, so that the pages stay shared.
ROUNDS = 20


def nothing() -> None:
    """Be a job."""


def warm_up(recorder: Recorder) -> None:
    """Rebuild, perform and record a job of our own that exists nowhere; sends nothing, runs no user code.

    RQ's own classes are used throughout, not the worker's: those may be the user's. Where something wraps one of their
    functions, RQ's own below it is used, or nothing: an instrumentation would tell of jobs that were never enqueued.
    """
    perform = rqs_own(Job, "perform")
    used = [inspect.getattr_static(owner, name) for owner, names in _USED.items() for name in names]
    if perform is None or not all(map(is_rqs_own, used)):
        return
    for _ in range(ROUNDS):
        _run(recorder, perform)


def _run(recorder: Recorder, perform: Callable[[Job], Any]) -> None:
    job = Job.create(nothing, connection=recorder, id="warm-up", origin="warm-up", timeout=180)
    job.enqueued_at = now()
    raw = {name.encode(): _bytes(value) for name, value in job.to_dict().items()}
    job = Job("warm-up", connection=recorder)
    job.restore(raw)
    before = snapshot(job)
    job.started_at = job.ended_at = job.last_heartbeat = now()
    recorder.running = job.key
    perform(job)
    recorder.running = None
    execution = Execution("warm-up", job.id, recorder, worker_name="warm-up")
    execution.serialize()
    if is_plain(job, raw, before, 500):
        command = plain_success(job, execution.created_at.timestamp(), "warm-up", 500)
        Inbox().feed(encode(("outcome", "finished", (1, *pack_runs([command])))))


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(getattr(value, "value", value)).encode()
