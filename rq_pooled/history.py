"""The history of a job: its tries as RQ's results stream and ``Backoff`` keep them, without unpickling anything."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.results import Result
from rq.utils import as_text

from .attempts import NEXT_AT
from .kinds import recorded_end
from .selection import unpacked_error


def history(connection: Redis, job_id: str) -> dict[str, Any]:
    """Return what became of a job, try by try, the oldest first; times are ISO 8601, in UTC.

    Raises:
        rq.exceptions.NoSuchJobError: the job is gone (deleted, or expired).
    """
    names = ("data", "status", "origin", "description", "retries_left", "created_at", "enqueued_at")
    _data, *values = connection.hmget(Job.key_for(job_id), names)
    if _data is None:
        raise NoSuchJobError(f"there is no job {job_id}: it was deleted, has expired, or never was")
    fields = {name: as_text(value) if value else None for name, value in zip(names[1:], values)}
    entries: Any = connection.xrange(Result.get_key(job_id))
    return {"id": job_id, **fields, "tries": [_try(as_text(entry_id), entry) for entry_id, entry in entries]}


def _try(entry_id: str, entry: dict[bytes, bytes]) -> dict[str, Any]:
    text = unpacked_error(entry.get(b"exc_string", b""))
    exception, said = recorded_end(text)
    next_at = entry.get(NEXT_AT.encode())
    kind = int(entry.get(b"type", b"0"))
    started, ended = entry.get(b"execution_started_at"), entry.get(b"execution_ended_at")
    return {
        "at": _iso(int(entry_id.partition("-")[0]) / 1000),
        "result": next((one.name.lower() for one in Result.Type if one.value == kind), str(kind)),
        "worker": as_text(entry.get(b"worker_name", b"")),
        "seconds": round(float(ended) - float(started), 3) if started and ended else None,
        "exception": exception,
        # Its first line, as everywhere: notes and a longer message follow it. What is no traceback ends with its reason.
        "error": said.strip() or next((line.strip() for line in reversed(text.splitlines()) if line.strip()), ""),
        "next_try": _iso(float(next_at)) if next_at else None,
        "traceback": text,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
