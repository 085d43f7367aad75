"""Decides whether an enqueue happened: what a connection error means, and which job an unconfirmed call has left."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple

import rq
from redis import Redis
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError
from rq.job import UNEVALUATED, Job, JobStatus
from rq.utils import now

from ..connection.away import LOST
from ..errors import ConfigurationError, EnqueueUnconfirmed, RedisUnavailable
from ..foreign import MAX_VALUE, printable
from ..pool.failfast import failing_fast
from .unique import call_key
from .verdict import GONE, earlier_job

#: The number of unconfirmed ids that a process remembers; the oldest are forgotten first.
_REMEMBERED = 10_000
_SHOWN = 10
#: Seconds that each further job adds to ENQUEUE_DEADLINE.
_TIME_PER_JOB = 0.002
#: Connection errors that are replies of the server, by which it refused the command.
_REFUSALS = (AuthenticationError, AuthorizationError, BusyLoadingError)


class _Doubt(NamedTuple):
    """What is known of a job with an unconfirmed enqueue."""

    #: When the first of them began: UTC, this process's clock, which also writes the job's ``created_at``.
    began: datetime
    #: The digest of the data that an enqueue has sent -> the key of its call, "" where calls cannot be compared.
    sent: dict[bytes, str]


#: Id of a job with an unconfirmed enqueue. The process keeps it, because web code makes a new Queue for each request.
_unconfirmed: OrderedDict[str, _Doubt] = OrderedDict()


@contextmanager
def confirming(
    queue: str,
    connection: Redis,
    ids: list[str],
    job: Job | None = None,
    steps: bool = False,
    calls: Iterable[Job] = (),
) -> Iterator[None]:
    """Turn a connection error into what it means for these jobs, and remember those that are in doubt.

    Args:
        queue: its name, for messages.
        connection: of the queue.
        ids: of the jobs.
        job: the only one of them.
        steps: some of the jobs may have been written before the last connection was asked for.
        calls: the jobs, where they are several; read after an error only.
    """
    began = job.created_at if job is not None and job.created_at is not None else now()
    shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
    what, verb = (f"job {shown}", "was") if len(ids) == 1 else (f"jobs {shown}", "were")
    try:
        with failing_fast(connection, more_time=(len(ids) - 1) * _TIME_PER_JOB):
            yield
    except _REFUSALS:
        raise
    except LOST as error:
        # The status deferred means that the job is written, waits for its dependencies and will be enqueued.
        saved = steps or (job is not None and job.get_status(refresh=False) == JobStatus.DEFERRED)
        doubtful = saved or any(map(is_unconfirmed, ids))
        if isinstance(error, RedisUnavailable) and not doubtful:
            raise type(error)(f"{what} {verb} not enqueued in {queue!r}: {error}") from error
        for job_id in ids:
            _unconfirmed.setdefault(job_id, _Doubt(began, {}))
            _unconfirmed.move_to_end(job_id)
        for one in calls if job is None else (job,):
            _unconfirmed[one.id].sent.update(_call(one))
        while len(_unconfirmed) > max(_REMEMBERED, len(ids)):
            # All ids of one call are remembered, because a repeat would double the forgotten ones.
            _unconfirmed.popitem(last=False)
        raise EnqueueUnconfirmed(
            f"{what} may have been enqueued in {queue!r}: the connection was lost before the server confirmed "
            f"it ({error}). Repeat the call with the same job id: that cannot double the job (in another process "
            "pass unique=True, too)",
            ids[0],
            tuple(ids),
        ) from error
    for job_id in ids:
        _unconfirmed.pop(job_id, None)


def is_unconfirmed(job_id: str) -> bool:
    """Tell whether an earlier enqueue with this id is in doubt."""
    return job_id in _unconfirmed


def landed(queue: rq.Queue, wanted: Job) -> Job | None:
    """Return the job that an unconfirmed enqueue of the same call left in Redis, or None.

    Raises:
        ConfigurationError: what is there cannot be read.
    """
    doubt = _unconfirmed.get(wanted.id)
    if doubt is None:
        return None
    job = earlier_job(queue, wanted.id)
    if job == GONE:
        return None
    if not isinstance(job, Job):
        raise ConfigurationError(
            f"job {printable(wanted.id, MAX_VALUE)} may have been enqueued by an earlier call, and {job}: not enqueued "
            f"again; delete the key {printable(wanted.key, MAX_VALUE)}, or choose another job id"
        )
    # An older job has this id, so the lost enqueue, which would have replaced it, did not happen.
    if job.created_at is None or job.created_at < doubt.began:
        return None
    # RQ's enqueue_many saves jobs as deferred, registers them later, and enqueues them later still. A job whose call
    # broke off in between would never be enqueued.
    if job.get_status(refresh=False) == JobStatus.DEFERRED and not (
        job in queue.deferred_job_registry and not job.dependencies_are_met()
    ):
        return None
    if not _is_repeat(wanted, doubt.sent, job.data):
        # This call differs from the earlier one, so it is no repeat.
        return None
    queue.log.info("Job %s was enqueued by an earlier call whose reply was lost", job.id)
    return job


def _is_repeat(wanted: Job, sent: dict[bytes, str], landed: bytes) -> bool:
    """Tell whether a job's data are what this process has sent for the same call.

    What stands in Redis is compared as bytes, and never loaded: others may have written it.
    """
    found = hashlib.sha256(landed).digest()
    key = sent.get(found)
    # Equal calls may be pickled differently.
    return key is not None and any(found == digest or (key and key == other) for digest, other in _call(wanted).items())


def _call(job: Job) -> dict[bytes, str]:
    """Return the digest of a job's data with the key of its call; nothing where it cannot be pickled."""
    try:
        digest = hashlib.sha256(job.data).digest()
    except Exception:  # noqa: BLE001 - it was not sent, and pickling runs users' code
        return {}
    if job._func_name is UNEVALUATED:
        # It was fetched, and the key would have to be computed from what is loaded.
        return {digest: ""}
    try:
        return {digest: call_key(job)}
    except Exception:  # noqa: BLE001 - an argument that cannot be described may raise anything
        return {digest: ""}
