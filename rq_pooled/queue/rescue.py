"""Finds queued jobs that stand in no list, on demand; a stock worker that dies after its BLPOP loses the id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import ResponseError

from ..config.describing import shown_description
from ..foreign import is_wrong_type, seconds_of
from ..store.keys import JOB, job_key, literal, queue_key
from ..store.queues import queue_names
from ..store.repair import rescue_jobs
from ..store.scripts import run_script
from ..wire import raw, text

#: The ids or keys of one command.
PAGE = 1000
#: The worker name that RQ writes for a job that runs in the enqueueing process.
SYNC = "sync"
#: The jobs of one command that searches whole queues for each: 20 times 300 000 ids hold the server 60 ms.
FEW = 20


class Lost(NamedTuple):
    """A job that no worker would ever run."""

    id: str
    queue: str
    enqueued_at: str
    description: str


def find_lost(
    connection: Redis,
    min_age: float,
    queues: set[str] | None = None,
    progress: Callable[[int], None] = lambda _n: None,
    skipped: set[str] | None = None,
) -> Iterator[Lost]:
    """Yield queued jobs that stand in no list, from pages of SCAN; keeps the ids of all lists in memory.

    Jobs of ``Queue(is_async=False)`` look the same while stock RQ runs them (ours writes that they have started). So
    a queue with any job that ran that way is left out, unless it is named; see ``skipped``.

    Args:
        connection: to the server.
        min_age: seconds, by the server's clock, since the job was enqueued.
        queues: names of queues to look at; None for all.
        progress: called with the approximate number of keys that were read.
        skipped: receives the names of queues that were left out.
    """
    listed = set(_listed(connection))
    found: list[Lost] = []
    run_here: set[str] = set()
    now = connection.time()[0]
    cursor = 0
    while True:
        cursor, keys = connection.scan(cursor, match=f"{literal(JOB)}*", count=PAGE)
        ids = [text(key).removeprefix(JOB) for key in keys]
        ids = [
            job_id for job_id in ids if job_id not in listed and not job_id.endswith((":dependents", ":dependencies"))
        ]
        with connection.pipeline(transaction=False) as pipeline:
            for job_id in ids:
                pipeline.hmget(raw(job_key(job_id)), "status", "origin", "enqueued_at", "description", "worker_name")
            replies = pipeline.execute(raise_on_error=False)
        for job_id, reply in zip(ids, replies):
            if isinstance(reply, Exception) or not reply[1] or not reply[2]:
                continue
            origin, enqueued_at, description, ran_on = (text(value or b"") for value in reply[1:])
            if ran_on == SYNC:
                run_here.add(origin)
            named = queues is None or origin in queues
            if reply[0] == b"queued" and named and now - (seconds_of(enqueued_at) or now) >= min_age:
                found.append(Lost(job_id, origin, enqueued_at, shown_description(description)))
        progress(PAGE)
        if not cursor:
            break
    left_out = run_here if queues is None else set()
    if skipped is not None:
        skipped |= {job.queue for job in found} & left_out
    yield from (job for job in found if job.queue not in left_out)


def put_back(connection: Redis, lost: list[Lost], apply: bool) -> list[Lost]:
    """Put jobs back at the end of their queues if they are still lost, atomically per page; return those that were.

    Args:
        connection: to the server.
        lost: as found.
        apply: False only tells which would be.
    """
    back = set()
    for start in range(0, len(lost), FEW):
        command = rescue_jobs(apply, ((job.id, job.enqueued_at) for job in lost[start : start + FEW]))
        back |= {text(job_id) for job_id in run_script(connection, command)}
    return [job for job in lost if job.id in back]


def _listed(connection: Redis) -> Iterator[str]:
    """Yield the ids in all queues and intermediate lists."""
    for name in queue_names(connection.execute_command):
        queue = raw(queue_key(name))
        for key in (queue, queue + b":intermediate"):
            start = 0
            # Pages overlap, because ids that others pop meanwhile move the rest to the front.
            while ids := _page(connection, key, start):
                yield from map(text, ids)
                start += PAGE


def _page(connection: Redis, key: bytes, start: int) -> list[Any]:
    try:
        return connection.lrange(key, start, start + 2 * PAGE)
    except ResponseError as error:
        if not is_wrong_type(error):
            raise
        # A key of another type holds no jobs, and rescue.lua puts none back there.
        return []
