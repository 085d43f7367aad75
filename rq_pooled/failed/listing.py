"""Failed jobs as plain dictionaries, page by page; nothing of a job is unpickled, so no user code runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from redis import Redis
from rq.registry import FailedJobRegistry

from ..deadline import current
from ..errors import ConfigurationError
from ..foreign import plain, replies_of, seconds_of, unpacked_error, whole_number
from ..pool.registry import get_connection
from ..rq_version import check_prefix
from ..store.failed import failed_look
from ..store.keys import dead_letters_key, job_key
from ..store.queues import first_queues
from ..store.scripts import run_script
from ..store.views import is_shown
from ..wire import raw, text
from .description import described, function_of
from .tracebacks import exception_of

#: The failed jobs that one call reads when it has to choose among them, and the number fetched at once.
MAX_SCANNED, _PAGE = 1000, 100
#: The largest offset over several queues, since so many entries of each are read to merge them.
MAX_OFFSET = 10_000
#: Bytes of a description, or of an error in a job's hash, above which it is not fetched.
MAX_FIELD = 64 * 1024
#: Bytes of a job's results in the server's memory above which its newest is not fetched.
MAX_RESULTS = 4 * 1024 * 1024
#: Seconds of the caller's deadline that are left for its other work.
_RESERVE = 1.0


def failed_jobs(
    queue: str | None = None,
    exception: str | None = None,
    offset: int = 0,
    limit: int = 50,
    connection: Redis | None = None,
    *,
    dead: bool = False,
) -> dict[str, Any]:
    """Return failed jobs, the last to expire first (the newest, if all share one failure_ttl); those kept for ever
    last.

    Blocks for three round trips, and one more per hundred jobs. With ``exception`` at most 1 000 jobs are read;
    ``next_offset`` says where to go on. Inside a deadline it ends a second early, with the jobs found so far.

    Args:
        queue: the only queue to list; without it, the first 2,000 are, see ``first_queues``.
        exception: the name, with or without its module, that a listed job's exception must have.
        offset, limit: the jobs to skip, and the most to return. Without ``queue`` the offset has a limit.
        dead: list the dead letters instead.

    Returns:
        ``total`` (in the registries, whatever their exception), ``offset``, ``limit``, ``next_offset`` (None at the
        end), ``unreadable`` (queues whose registry is a key of another type), and ``jobs``: each ``id``, ``queue``,
        ``description``, ``function`` (as the description names it, or ""), ``exception`` (its name with module, "" if
        it cannot be told), ``reason`` (one line), ``failed_at``, ``enqueued_at`` (seconds since the epoch or None),
        ``retries_left``, ``exists`` (False: an entry whose job is gone).

    Raises:
        ConfigurationError: the offset is too large, or RQ keeps its data under another prefix.
    """
    check_prefix()
    client = connection or get_connection()
    if queue is None and offset > MAX_OFFSET:
        raise ConfigurationError(f"offset is {offset}: give at most {MAX_OFFSET}, or name a queue")
    known = first_queues(client.execute_command) if queue is None else [queue] if is_shown(queue) else []
    scanned = limit if exception is None else max(limit, MAX_SCANNED)
    total, unreadable, entries = _entries(client, known, offset, scanned, dead)
    jobs: list[dict[str, Any]] = []
    looked = 0
    for job in _jobs(client, entries):
        looked += 1
        if job is not None and exception in (None, job["exception"], job["exception"].rpartition(".")[2]):
            jobs.append(job)
        if len(jobs) >= limit:
            break
    after = offset + looked
    return {
        "total": total,
        "offset": offset,
        "limit": limit,
        "next_offset": after if looked and after < total else None,
        "unreadable": plain(unreadable),
        "jobs": plain(jobs),
    }


def _entries(
    client: Redis, names: Sequence[str], offset: int, count: int, dead: bool
) -> tuple[int, list[str], list[tuple[str, str]]]:
    """Return the number of entries, the queues whose registry is of another type, and (queue, job id) of a window,
    latest expiry first.
    """
    keys = {
        name: raw(dead_letters_key(name) if dead else FailedJobRegistry.key_template.format(name)) for name in names
    }
    pipeline: Any = client.pipeline(transaction=False)
    for key in keys.values():
        pipeline.zcard(key)
    sizes = dict(zip(names, replies_of(pipeline)))
    unreadable = [name for name in names if sizes[name] is None]
    full = [name for name in names if sizes[name]]
    total = sum(sizes[name] for name in full)
    if offset >= total or count <= 0:
        return total, unreadable, []
    # A window over n entries takes them from at most n registries: those whose first entries come first.
    if len(full) > offset + count:
        firsts = {name: row[0][0] for name, row in zip(full, _ranges(client, keys, full, 0, 0)) if row}
        full = sorted(sorted(firsts, key=lambda name: -firsts[name])[: offset + count])
    # In a single registry the window is a plain range.
    start = offset if len(full) == 1 else 0
    rows = [
        (score, name, job_id)
        for name, row in zip(full, _ranges(client, keys, full, start, offset + count - 1))
        for score, job_id in row
    ]
    # The sort is stable, so equal scores keep their registry's order, and each page goes on where the last ended.
    rows.sort(key=lambda row: -row[0])
    return total, unreadable, [(name, job_id) for _, name, job_id in rows[offset - start : offset - start + count]]


def _ranges(
    client: Redis, keys: dict[str, bytes], names: Sequence[str], start: int, end: int
) -> list[list[tuple[float, str]]]:
    pipeline: Any = client.pipeline(transaction=False)
    for name in names:
        pipeline.zrevrange(keys[name], start, end, withscores=True)
    return [[(float(score), text(job_id)) for job_id, score in reply or ()] for reply in replies_of(pipeline)]


def _jobs(client: Redis, entries: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any] | None]:
    """Yield the jobs until the caller's deadline is near, because a large error takes a while to unpack.

    None stands for one that is another queue's, which may not be shown.
    """
    deadline = current()
    for start in range(0, len(entries), _PAGE):
        for job in _page(client, entries[start : start + _PAGE]):
            yield job
            if deadline is not None and deadline.left() < _RESERVE:
                return


def _page(client: Redis, entries: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any] | None]:
    rows = run_script(client, failed_look([job_id for _queue, job_id in entries], MAX_FIELD, MAX_RESULTS))
    for (queue, job_id), (exists, ended_at, enqueued_at, left, description, error, older, origin) in zip(entries, rows):
        if origin and not is_shown(text(origin)):
            # The entry is left from before it was enqueued in another queue.
            yield None
            continue
        large = isinstance(description, int)
        called = f"(a description of {description} bytes)" if large else text(description)
        if isinstance(error, int):
            error = f"results of {error} bytes, which are not read"
        name, reason = exception_of(unpacked_error(error) or unpacked_error(older))
        yield {
            "id": job_id,
            "queue": queue,
            "description": described(called),
            "function": function_of(called),
            "exception": name,
            "reason": reason,
            "failed_at": seconds_of(ended_at),
            "enqueued_at": seconds_of(enqueued_at),
            "retries_left": whole_number(left),
            "exists": bool(exists),
        }


def origins_of(client: Redis, ids: Sequence[str]) -> list[str]:
    """Return the queue of each job, "" for one that is gone."""
    pipeline = client.pipeline(transaction=False)
    for job_id in ids:
        pipeline.hget(raw(job_key(job_id)), "origin")
    return [text(origin or b"") for origin in (replies_of(pipeline) if ids else ())]
