"""Jobs rebuilt from their hashes: like the one before but for its call, a job takes over what RQ has read of that one.

RQ's ``restore`` reads forty fields, most of which all jobs of a queue share. Whatever differs in another field is read
by RQ, and so are jobs of other classes, or where anything wraps what RQ reads with.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rq.job import UNEVALUATED, Job, JobStatus

from ..originals import is_rqs_own
from .dates import read_date

#: The fields that differ from job to job.
OWN = (b"created_at", b"enqueued_at", b"data", b"description")
#: Types of attributes that may be shared, since nothing changes them in place.
_SHARED = frozenset((type(None), bool, bytes, datetime, float, int, str, JobStatus, type(UNEVALUATED)))
#: Attributes that are the same object in all jobs of a horse.
_SAME = frozenset(("connection", "log", "serializer"))
#: What RQ takes as an id without another look.
_ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(slots=True)
class Kind:
    """What jobs of a queue have in common."""

    #: All fields but those that differ from job to job.
    fields: dict[bytes, bytes]
    #: Of a job that RQ has read; of lists and dictionaries each job gets a copy.
    attributes: dict[str, Any]
    changeable: list[str]
    #: Whether such jobs are plain, see short.py, and for how long their results are kept; None: not looked at yet.
    is_plain: bool | None = None
    result_ttl: int = 0

    def rebuild(self, job_id: str, raw: Mapping[bytes, bytes]) -> Job | None:
        """Return the job, None where it is of another kind, and RQ is to read it."""
        others = dict(raw)
        take = others.pop
        created_at, enqueued_at, data, description = [take(name, b"") for name in OWN]
        if others != self.fields or not (created_at and enqueued_at and data and description):
            return None
        if not _ID.fullmatch(job_id):
            return None
        job = Job.__new__(Job)
        mine = vars(job)
        mine.update(self.attributes)
        for name in self.changeable:
            mine[name] = mine[name].copy()
        try:
            mine["created_at"], mine["enqueued_at"] = read_date(created_at), read_date(enqueued_at)
            mine["description"] = description.decode()
        except ValueError:
            return None
        try:
            mine["_data"] = zlib.decompress(data)
        except zlib.error:
            mine["_data"] = data
        mine["_id"] = job_id
        return job


class Kinds:
    """Rebuilds the jobs of one horse.

    All of them have one connection and one serializer.
    """

    def __init__(self) -> None:
        #: By queue, that of the last job.
        self._known: dict[str, Kind] = {}
        self._functions: tuple[Any, ...] = ()
        self._is_rqs = False

    def _reads_as_rq(self) -> bool:
        functions: tuple[Any, ...] = (Job.__init__, Job.restore, Job.data)
        seen = self._functions
        # By identity, since wrapt's wrappers equal what they wrap.
        if not (seen and functions[0] is seen[0] and functions[1] is seen[1] and functions[2] is seen[2]):
            self._functions, self._is_rqs = functions, all(map(is_rqs_own, functions))
            self._known.clear()
        return self._is_rqs

    def of(self, queue_key: str) -> Kind | None:
        """Return the kind that the queue's jobs seem to have."""
        return self._known.get(queue_key) if self._reads_as_rq() else None

    def rebuild(self, queue_key: str, job_id: str, raw: Mapping[bytes, bytes]) -> Job | None:
        """Return the job, None where RQ is to read it."""
        kind = self.of(queue_key)
        return None if kind is None else kind.rebuild(job_id, raw)

    def note(self, queue_key: str, job: Job, raw: Mapping[bytes, bytes]) -> None:
        """Remember a job that RQ has just read, if others can be made of it."""
        self._known.pop(queue_key, None)
        if type(job) is not Job or not self._reads_as_rq():
            return
        # The arguments may be large, and each job has its own.
        attributes: dict[str, Any] = {**vars(job), "_data": None, "description": None}
        changeable: list[str] = []
        for name, value in list(attributes.items()):
            kind = type(value)
            if (kind is list and all(type(item) in _SHARED for item in value)) or (kind is dict and not value):
                # As it is now, since the job itself changes its own.
                attributes[name] = value.copy()
                changeable.append(name)
            elif kind not in _SHARED and name not in _SAME:
                return
        fields = {name: raw[name] for name in raw if name not in OWN}
        self._known[queue_key] = Kind(fields, attributes, changeable)
