"""Fetches jobs without unpickling their data, for web processes and schedulers, which run no jobs."""

from __future__ import annotations

import pickle
from typing import Any

from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.serializers import resolve_serializer

from ..signing.envelope import unpacked
from ..signing.serializer import Sealed
from ..wire import raw
from .unpickling import loads_inert

#: What ``restore`` would load, or unpack, and no caller needs.
_LEFT_OUT = (b"result", b"exc_info")


class _Inert:
    """RQ's default serializer, whose ``loads`` loads no classes."""

    dumps = staticmethod(pickle.dumps)
    loads = staticmethod(loads_inert)


def fetch_inert(job_class: type[Job], job_id: str, connection: Redis, serializer: Any = None) -> Job:
    """Return a job whose ``meta`` has plain values and Inert objects; ``job.get_meta()`` loads the real ones.

    Serializers that are no pickle are used as they are. For the rest, see ``fetch_bounded``.
    """
    used: Any = resolve_serializer(serializer)
    job = fetch_bounded(job_class, job_id, connection, _inert(used))
    job.serializer = used
    return job


def fetch_bounded(job_class: type[Job], job_id: str, connection: Redis, serializer: Any) -> Job:
    """Return a job, without an old result, which RQ would load, and an error; its data are not loaded.

    RQ unpacks without a bound: 1 MB may stand for 1 GB.

    Raises:
        rq.exceptions.NoSuchJobError: the job is gone.
        NotVerified: its data are too large to be unpacked.
    """
    job = job_class(job_id, connection=connection, serializer=serializer)
    fields: Any = connection.hgetall(raw(job.key))
    if not fields:
        raise NoSuchJobError(f"No such job: {job.key}")
    unpacked(fields.get(b"data", b""))
    job.restore({name: value for name, value in fields.items() if name not in _LEFT_OUT})
    return job


def _inert(serializer: Any) -> Any:
    """Return what reads as this serializer does, and loads no classes."""
    if isinstance(serializer, Sealed):
        return Sealed(_Inert, serializer.bound) if serializer.inner.loads is pickle.loads else serializer
    return _Inert if serializer.loads is pickle.loads else serializer
