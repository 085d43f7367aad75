"""A short way to record a plain success: the same state in Redis as RQ's ``handle_job_success``, with fewer commands.

Most jobs of most queues end like this, and RQ's handler spends more time on them than they run. It rewrites the whole
hash, the job's data included; here only what has changed is written. Whatever is not plain goes the long way, and a
test compares the two. The server puts the commands together, see commit.lua. Packing their fifty words here, copying
them in the parent and cutting them up there took longer than running them.
"""

from __future__ import annotations

import operator
import time
from base64 import b64encode
from collections.abc import Mapping
from types import MethodType
from typing import Any

from rq.defaults import UNSERIALIZABLE_RETURN_VALUE_PAYLOAD
from rq.job import Job
from rq.registry import FinishedJobRegistry
from rq.results import Result

from ..originals import is_rqs_own
from ..rq_api import enqueues_dependents
from ..wire import Packed, pack
from .dates import write_date

#: Attributes that running a job changes; what else differs from the moment it was rebuilt, its code has changed.
_CHANGED_BY_RUNNING = frozenset(
    (
        *("_args", "_cached_result", "_func_name", "_instance", "_kwargs", "_result", "_status", "_success_callback"),
        *("connection", "ended_at", "last_heartbeat", "meta", "started_at", "worker_name"),
    )
)
#: What stands for them in a snapshot.
_CHANGED: dict[str, Any] = dict.fromkeys(_CHANGED_BY_RUNNING)
#: Attributes that code may change in place. Not ``_dependency_ids``: who has any is not plain.
_LISTS = ("webhooks", "retry_intervals", "repeat_intervals")
#: Fields that RQ always writes: a hash that lacks one was written by another version, and RQ's handler completes it.
ALWAYS_WRITTEN = frozenset(
    (
        *(b"created_at", b"data", b"description", b"ended_at", b"enqueued_at", b"failure_callback_name", b"group_id"),
        *(b"last_heartbeat", b"origin", b"started_at", b"status", b"stopped_callback_name", b"success_callback_name"),
        *(b"timeout", b"worker_name"),
    )
)
#: What a command of commit.lua is called that stands for all commands of a plain success.
PLAIN_SUCCESS = "PLAIN_SUCCESS"


_OF_WORKERS = operator.attrgetter("increment_successful_job_count", "increment_total_working_time")
_OF_JOBS = operator.attrgetter("_handle_success", "set_status", "save", "to_dict", "cleanup")


class ShortWay:
    """Tells whether the short way passes over nothing but RQ's own functions.

    What a subclass overrides or an instrumentation wraps is to be called; that may begin with any import in a job.
    """

    _functions: tuple[Any, ...] = (None,)
    _is_open = False

    def is_open(self, handler: Any, worker_class: Any, queue_class: Any) -> bool:
        """Tell it of the worker's inherited ``handle_job_success`` and of all that RQ's calls."""
        functions = (
            # A bound method is a new object at each access.
            handler.__func__ if type(handler) is MethodType else handler,
            *_OF_WORKERS(worker_class),
            *enqueues_dependents(queue_class, failed=False),
            *_OF_JOBS(Job),
            *(vars(Result)["create"], Result.save, Result.serialize, FinishedJobRegistry.add),
        )
        # By identity, since wrapt's wrappers equal what they wrap.
        if not all(map(operator.is_, functions, self._functions)):
            self._functions = functions
            self._is_open = all(map(is_rqs_own, functions))
        return self._is_open


def snapshot(job: Job) -> dict[str, Any]:
    """Return what ``is_plain`` later compares the job with; to be taken right after it was rebuilt."""
    attributes = {**vars(job), **_CHANGED}
    for name in _LISTS:
        if type(value := attributes.get(name)) is list:
            attributes[name] = value.copy()
    return attributes


def is_plain(job: Job, raw: Mapping[bytes, bytes], before: Mapping[str, Any], result_ttl: int) -> bool:
    """Tell whether the short way leaves what RQ's handler would.

    Args:
        job: of RQ's own class; it has succeeded.
        raw: its hash as it was claimed.
        before: its snapshot.
        result_ttl: seconds for which its result is kept; -1 for ever.
    """
    return (
        type(job) is Job
        and result_ttl != 0
        and not job.repeats_left
        and not getattr(job, "has_rate_limit", False)
        and not job._dependency_ids
        and raw.keys() >= ALWAYS_WRITTEN
        and is_as_before(job, before)
    )


def is_as_before(job: Job, before: Mapping[str, Any]) -> bool:
    """Tell whether a job's code has left the job as its snapshot shows it."""
    return type(job) is Job and {**vars(job), **_CHANGED} == before


def plain_success(job: Job, begun: float, worker_name: str, result_ttl: int) -> list[Any]:
    """Return the one command that records a plain success, as commit.lua takes it; words are bytes, text or numbers.

    It stands for RQ's handle_job_success, Job._handle_success, Job.save, Result.save and Job.cleanup. Left out, since
    they would change nothing: fields of the hash that are as they were, and the expiry of the set of dependencies,
    which a plain job does not have.

    Args:
        begun: when its execution began, seconds since the epoch.
    """
    assert job.started_at and job.ended_at and job.last_heartbeat
    ended_at = write_date(job.ended_at)
    heartbeat = ended_at if job.last_heartbeat is job.ended_at else write_date(job.last_heartbeat)
    # RQ's registry takes -1 for ever as the score +inf, and any other negative number as it is.
    score: Any = int(time.time()) + result_ttl if result_ttl > 0 else "+inf" if result_ttl == -1 else result_ttl
    return [
        *(PLAIN_SUCCESS, worker_name, job.origin),
        *(write_date(job.started_at), ended_at, heartbeat),
        *(
            round(begun, 6),
            job.ended_at.timestamp(),
            repr((job.ended_at - job.started_at).total_seconds()),
        ),
        *(score, result_ttl),
        *(() if job._result is None else (b64encode(_serialized(job)).decode(),)),
    ]


def packed_head(worker_name: str, origin: str) -> str:
    """Return the first words of ``plain_success``, packed, one character for each byte."""
    return pack((PLAIN_SUCCESS, worker_name, origin)).data.decode("latin-1")


def packed_success(job: Job, begun: float, head: str, result_ttl: int) -> Packed:
    """Return what ``pack_runs`` makes of ``plain_success``, in a quarter of the time; both times are ``ended_at``."""
    assert job.started_at and job.ended_at
    ended_at, began, ended = write_date(job.ended_at), str(round(begun, 6)), str(job.ended_at.timestamp())
    seconds, ttl = repr((job.ended_at - job.started_at).total_seconds()), str(result_ttl)
    score = str(int(time.time()) + result_ttl) if result_ttl > 0 else "+inf" if result_ttl == -1 else ttl
    count, last = "11", ""
    if job._result is not None:
        result = b64encode(_serialized(job)).decode()
        count, last = "12", f"${len(result)}\r\n{result}\r\n"
    words = (
        f"$2\r\n{count}\r\n{head}$27\r\n{write_date(job.started_at)}\r\n$27\r\n{ended_at}\r\n$27\r\n{ended_at}\r\n"
        f"${len(began)}\r\n{began}\r\n${len(ended)}\r\n{ended}\r\n${len(seconds)}\r\n{seconds}\r\n"
        f"${len(score)}\r\n{score}\r\n${len(ttl)}\r\n{ttl}\r\n{last}"
    )
    return Packed(int(count) + 1, words.encode("latin-1"))


def written_by(command: list[Any], job_key: str, results_key: str, execution_id: str) -> list[list[Any]]:
    """Return what ``plain_success`` stands for, as far as it can be read of the job.

    commit.lua writes it.
    """
    _name, worker_name, _origin, started_at, ended_at, heartbeat, began, ended, _time, _score, result_ttl, *result = (
        command
    )
    fields = {"status": "finished", "started_at": started_at, "ended_at": ended_at, "last_heartbeat": heartbeat}
    entry = {"type": 1, "worker_name": worker_name}
    if result:
        entry["return_value"] = result[0]
    entry.update(execution_id=execution_id, execution_started_at=began, execution_ended_at=ended)
    return [
        ["HSET", job_key, *(word for item in fields.items() for word in item), "worker_name", worker_name],
        ["XADD", results_key, "*", *(word for item in entry.items() for word in item)],
        *([["EXPIRE", results_key, result_ttl]] if result_ttl < -1 else []),
    ]


def _serialized(job: Job) -> bytes:
    try:
        serialized: bytes = job.serializer.dumps(job._result)
    except BaseException:  # noqa: BLE001 - also SystemExit, as RQ's bare except: the job itself has succeeded
        serialized = job.serializer.dumps(UNSERIALIZABLE_RETURN_VALUE_PAYLOAD)
    return serialized
