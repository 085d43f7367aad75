"""Fetches jobs without unpickling their data, for web processes and schedulers, which run no jobs."""

from __future__ import annotations

import pickle
from typing import Any

from redis import Redis
from rq.job import Job
from rq.serializers import DefaultSerializer, resolve_serializer

from ..signing.serializer import Sealed
from .unpickling import loads_inert


class _Inert:
    """RQ's default serializer, whose ``loads`` loads no classes."""

    dumps = staticmethod(pickle.dumps)
    loads = staticmethod(loads_inert)


def fetch_inert(job_class: type[Job], job_id: str, connection: Redis, serializer: Any = None) -> Job:
    """Return a job whose ``meta`` has plain values and Inert objects; ``job.get_meta()`` loads the real ones.

    Serializers other than RQ's default one are used as they are.

    Raises:
        rq.exceptions.NoSuchJobError: the job is gone.
    """
    used: Any = resolve_serializer(serializer)
    is_sealed = isinstance(used, Sealed) and used.inner is DefaultSerializer
    if used is not DefaultSerializer and not is_sealed:
        return job_class.fetch(job_id, connection=connection, serializer=serializer)
    inert: Any = Sealed(_Inert, used.bound) if is_sealed else _Inert
    job = job_class.fetch(job_id, connection=connection, serializer=inert)
    job.serializer = used
    return job
