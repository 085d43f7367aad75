"""Failed jobs as plain dictionaries, page by page; nothing of a job is unpickled, so no user code runs."""

from __future__ import annotations

import re
import zlib
from base64 import b64decode
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from redis import Redis
from rq.registry import FailedJobRegistry
from rq.results import Result

from .kinds import recorded_end
from .pool import get_connection

#: Failed jobs that one call looks at when it has to choose among them, and how many it fetches at once.
MAX_SCANNED, _PAGE = 1000, 100
_FRAME = re.compile(r'^  File ".*", line \d+', re.MULTILINE)
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?::|$)", re.MULTILINE)


def failed_jobs(
    queue: str | None = None,
    exception: str | None = None,
    offset: int = 0,
    limit: int = 50,
    connection: Redis | None = None,
) -> dict[str, Any]:
    """Return failed jobs, those that expire last (the newest, if all have one failure_ttl) first; those kept for ever last.

    Blocks for two round trips, and one more per hundred jobs. With ``exception`` at most 1 000 jobs are looked at;
    ``next_offset`` says where to go on.

    Args:
        queue: of this queue only.
        exception: only those whose exception's name, with or without its module, is this.
        offset, limit: how many to pass over, and how many to return at most.

    Returns:
        ``total`` (in the registries, whatever their exception), ``offset``, ``limit``, ``next_offset`` (None at the
        end), and ``jobs``: each ``id``, ``queue``, ``description``, ``exception`` (its name with module, "" if it
        cannot be told), ``reason`` (one line), ``failed_at``, ``enqueued_at`` (seconds since the epoch or None),
        ``retries_left``, ``exists`` (False: an entry whose job is gone).
    """
    client = connection or get_connection()
    names = [queue] if queue is not None else [_text(key).rpartition("rq:queue:")[2] for key in client.smembers("rq:queues")]
    scanned = limit if exception is None else max(limit, MAX_SCANNED)
    total, entries = _entries(client, sorted(names), offset, scanned)
    jobs: list[dict[str, Any]] = []
    looked = 0
    for start in range(0, len(entries), _PAGE):
        for job in _fetch(client, entries[start : start + _PAGE]):
            if len(jobs) < limit:
                looked += 1
                if exception is None or exception in (job["exception"], job["exception"].rpartition(".")[2]):
                    jobs.append(job)
        if len(jobs) >= limit:
            break
    after = offset + looked
    return {
        "total": total,
        "offset": offset,
        "limit": limit,
        "next_offset": after if looked and after < total else None,
        "jobs": jobs,
    }


def _entries(client: Redis, names: Sequence[str], offset: int, count: int) -> tuple[int, list[tuple[str, str]]]:
    """Return how many entries all registries have, and (queue, job id) of a window over all, latest expiry first."""
    pipeline = client.pipeline(transaction=False)
    for name in names:
        key = FailedJobRegistry.key_template.format(name)
        pipeline.zcard(key)
        pipeline.zrevrange(key, 0, max(0, offset + count - 1), withscores=True)  # -1 would be all
    replies = pipeline.execute() if names else []
    rows = [
        (score, name, _text(job_id))
        for name, reply in zip(names, replies[1::2])
        for job_id, score in reply
    ]
    # Stable, so that equal scores stay in the order of their registry, and each page goes on where the last ended.
    rows.sort(key=lambda row: -row[0])
    return sum(replies[::2]), [(name, job_id) for _, name, job_id in rows[offset : offset + count]]


def _fetch(client: Redis, entries: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    pipeline = client.pipeline(transaction=False)
    for _queue, job_id in entries:
        fields = ("data", "description", "ended_at", "enqueued_at", "retries_left", "exc_info")
        pipeline.hmget(f"rq:job:{job_id}", fields)
        pipeline.xrevrange(Result.get_key(job_id), count=1)
    replies = pipeline.execute() if entries else []
    jobs = []
    for (queue, job_id), values, results in zip(entries, replies[::2], replies[1::2]):
        data, description, ended_at, enqueued_at, retries_left, exc_info = values
        result = {_text(key): value for key, value in results[0][1].items()} if results else {}
        text = _unpacked(result.get("exc_string")) or _unpacked(exc_info, encoded=False)
        name, reason = exception_of(text)
        jobs.append(
            {
                "id": job_id,
                "queue": queue,
                "description": _text(description or b""),
                "exception": name,
                "reason": reason,
                "failed_at": seconds_of(ended_at),
                "enqueued_at": seconds_of(enqueued_at),
                "retries_left": int(retries_left) if retries_left and _text(retries_left).isdigit() else 0,
                "exists": data is not None,
            }
        )
    return jobs


def _unpacked(value: Any, encoded: bool = True) -> str:
    if not value:
        return ""
    raw = value if isinstance(value, bytes) else str(value).encode()
    try:
        return zlib.decompress(b64decode(raw) if encoded else raw).decode(errors="replace")
    except (ValueError, zlib.error):
        return raw.decode(errors="replace")


def exception_of(text: str) -> tuple[str, str]:
    """Return (name of the exception with its module, or "", and what it says, as one line) of a traceback."""
    name, said = recorded_end(text)  # the same name by which the sweeper selects
    if said:
        return name, said.strip()[:500]
    frames = list(_FRAME.finditer(text))
    start = frames[-1].end() if frames else 0
    match = _EXCEPTION.search(text, start) if frames else None
    said = text[match.start() :] if match else text
    line = next((line for line in said.splitlines() if line.strip()), "")
    return name or (match.group(1) if match else ""), line.strip()[:500]


def seconds_of(raw: Any) -> float | None:
    """Return a date as RQ writes it as seconds since the epoch, None if it is not one."""
    try:
        return datetime.fromisoformat(_text(raw).rstrip("Z")).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
