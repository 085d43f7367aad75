"""The history of a job: its tries as RQ's results stream and ``Backoff`` keep them, and what else its keys say.

Nothing is unpickled, arguments are not read, and a value that is too large is named by its size.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.results import Result

from ..config.describing import current
from ..foreign import LAST_TIME, seconds_of, unpacked_error, whole_number
from ..retry.attempts import NEXT_AT
from ..store.keys import dead_letters_key, registry_key
from ..wire import raw, text
from .description import described, function_of
from .listing import MAX_FIELD, MAX_RESULTS
from .tracebacks import recorded_end

#: The fields of a job's hash that are told as they are.
NAMES = (
    *("status", "origin", "retries_left", "created_at", "enqueued_at", "started_at", "ended_at", "timeout"),
    *("worker_name", "group_id", "dependency_id"),
)
#: Fields that may be of any size, and what is read of a job's results and dependents.
_LONG, _TRIES, _DEPENDENTS = ("description", "exc_info", "meta"), 20, 20


def history(connection: Redis, job_id: str) -> dict[str, Any]:
    """Return a job with its tries and their outcomes, the oldest first; times are ISO 8601, in UTC.

    Blocks for two round trips.

    Returns:
        ``id``, RQ's fields of NAMES as texts or None, ``data_bytes`` (of its arguments), ``meta`` (JSON, or its size as
        text), ``dependents`` (ids, at most 20) and ``dependent_count``, ``place`` (``failed``, ``dead`` or ""), and
        ``tries``: each ``at``, ``result``, ``worker``, ``seconds``, ``exception``, ``error`` (one line), ``next_try``,
        ``traceback``.

    Raises:
        rq.exceptions.NoSuchJobError: the job is gone (deleted, or expired).
    """
    key, results = raw(Job.key_for(job_id)), raw(Result.get_key(job_id))
    pipeline: Any = connection.pipeline(transaction=False)
    pipeline.hexists(key, "data")
    pipeline.hmget(key, NAMES)
    for name in ("data", *_LONG):
        pipeline.hstrlen(key, name)
    pipeline.scard(key + b":dependents")
    pipeline.srandmember(key + b":dependents", _DEPENDENTS)
    pipeline.memory_usage(results)
    exists, values, data_bytes, *sizes, count, dependents, memory = pipeline.execute(raise_on_error=False)
    for reply in (exists, values):
        if isinstance(reply, Exception):
            raise reply
    if not exists:
        raise no_job(job_id)
    fields = {name: text(value) if value else None for name, value in zip(NAMES, values)}
    large = isinstance(memory, int) and memory > MAX_RESULTS
    pipeline.hmget(key, [name if size <= MAX_FIELD else "" for name, size in zip(_LONG, sizes)])
    for registry in (registry_key("failed", fields["origin"] or ""), dead_letters_key(fields["origin"] or "")):
        pipeline.zscore(raw(registry), raw(job_id))
    if not large:
        pipeline.xrevrange(results, count=_TRIES)
    (description, exc_info, meta), failed, dead, *rest = pipeline.execute(raise_on_error=False)
    if rest and isinstance(rest[0], Exception):
        raise rest[0]
    tries = [_try(text(entry_id), entry) for entry_id, entry in reversed(rest[0] if rest else [])]
    if large:
        tries = [_made(None, "failed", f"results of {memory} bytes, which are not read")]
    elif not tries and (error := unpacked_error(exc_info)):
        # RQ before 1.12 had no results.
        tries = [_made(seconds_of(fields["ended_at"]), "failed", error)]
    called = text(description or b"") if sizes[0] <= MAX_FIELD else f"(a description of {sizes[0]} bytes)"
    return {
        "id": job_id,
        **fields,
        "description": described(called),
        "function": function_of(called),
        "data_bytes": data_bytes,
        "meta": _meta(meta, sizes[2]),
        "dependents": sorted(map(text, dependents)) if isinstance(dependents, list) else [],
        "dependent_count": count if isinstance(count, int) else 0,
        "place": "failed" if isinstance(failed, float) else "dead" if isinstance(dead, float) else "",
        "tries": tries,
    }


def no_job(job_id: str) -> NoSuchJobError:
    """Return the error for a job that is gone."""
    return NoSuchJobError(f"there is no job {job_id}: it was deleted, has expired, or never was")


def _meta(value: bytes | None, size: int) -> str:
    """Return a job's meta where it is JSON, else its size: a pickle is never loaded, and DESCRIBE speaks of calls."""
    if current() is not None:
        return f"{size} bytes" if size else ""
    try:
        return json.dumps(json.loads(value or b"")) if value else f"{size} bytes" if size else ""
    except (ValueError, RecursionError):
        return f"{size} bytes"


def _try(entry_id: str, entry: dict[bytes, bytes]) -> dict[str, Any]:
    traceback = unpacked_error(entry.get(b"exc_string", b""))
    kind = whole_number(entry.get(b"type"))
    times = (b"execution_started_at", b"execution_ended_at", NEXT_AT.encode())
    started, ended, next_at = (_seconds(entry.get(name)) for name in times)
    result = next((one.name.lower() for one in Result.Type if one.value == kind), str(kind))
    return {
        **_made(_seconds(entry_id.partition("-")[0], 1000), result, traceback),
        "worker": text(entry.get(b"worker_name", b"")),
        "seconds": round(ended - started, 3) if started and ended else None,
        "next_try": _iso(next_at) if next_at else None,
    }


def _made(at: float | None, result: str, traceback: str) -> dict[str, Any]:
    """Return a try of which only these values are known."""
    exception, said = recorded_end(traceback)
    return {
        "at": None if at is None else _iso(at),
        "result": result,
        "worker": "",
        "seconds": None,
        "exception": exception,
        # The first line is taken, as everywhere, because notes and a longer message follow it. A text that is no
        # traceback ends with its reason.
        "error": said.strip() or next((line.strip() for line in reversed(traceback.splitlines()) if line.strip()), ""),
        "next_try": None,
        "traceback": traceback,
    }


def _seconds(value: bytes | str | None, of: int = 1) -> float | None:
    """Return seconds since the epoch, None for a time outside the calendar."""
    try:
        seconds = float(value or "nan") / of
    except ValueError:
        return None
    return seconds if 0 <= seconds < LAST_TIME else None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
