"""The history of a job: its tries as RQ's results stream and ``Backoff`` keep them, without unpickling anything."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.results import Result

from ..config.describing import shown_description
from ..foreign import seconds_of, unpacked_error, whole_number
from ..retry.attempts import NEXT_AT
from ..wire import raw, text
from .tracebacks import recorded_end

#: Seconds since the epoch at which datetime ends.
_YEAR_9999 = 253_370_764_800


def history(connection: Redis, job_id: str) -> dict[str, Any]:
    """Return a job's tries with their outcomes, the oldest first; times are ISO 8601, in UTC.

    Raises:
        rq.exceptions.NoSuchJobError: the job is gone (deleted, or expired).
    """
    key = raw(Job.key_for(job_id))
    names = ("status", "origin", "description", "retries_left", "created_at", "enqueued_at", "ended_at", "exc_info")
    *values, ended_at, exc_info = connection.hmget(key, names)
    if not connection.hexists(key, "data"):
        raise NoSuchJobError(f"there is no job {job_id}: it was deleted, has expired, or never was")
    fields = {name: text(value) if value else None for name, value in zip(names, values)}
    fields["description"] = shown_description(fields["description"] or "") or None
    entries: Any = connection.xrange(raw(Result.get_key(job_id)))
    tries = [_try(text(entry_id), entry) for entry_id, entry in entries]
    if not tries and (error := unpacked_error(exc_info)):
        # RQ before 1.12 had no results.
        tries = [_made(seconds_of(ended_at), "failed", error)]
    return {"id": job_id, **fields, "tries": tries}


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
    return seconds if 0 <= seconds < _YEAR_9999 else None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
