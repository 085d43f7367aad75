"""Has a signed job that is saved under the id of an older one take nothing of it over.

RQ's ``save`` leaves the fields that it does not write. What an older job's producer decided would be taken for a part
of the new one, which does not verify then: the id would fail until its hash expires. Scripts that enqueue see to it
themselves.
"""

from __future__ import annotations

import weakref
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError
from rq.job import Job
from rq.utils import utcformat

from ..store.enqueue import forget
from ..store.keys import NONE
from ..store.scripts import run_script, with_text
from .handlers import is_recording
from .refused_scripts import refuses_scripts

#: Pools whose server has run a script.
_running: weakref.WeakSet[Any] = weakref.WeakSet()


def forget_older(job: Job) -> None:
    """Have a job that was just created do so whenever it is saved; a hash that is its own is left alone."""
    save = job.save

    def saved(pipeline: Pipeline | None = None, *args: Any, **kwargs: Any) -> None:
        target: Any = job.connection if pipeline is None else pipeline
        if not is_recording(target) and not is_recording(job.connection) and _runs_scripts(job.connection):
            target.execute_command(*with_text(forget(job.key, utcformat(job.created_at))))
        save(pipeline, *args, **kwargs)

    job.save = saved  # type: ignore[method-assign]


def _runs_scripts(connection: Redis) -> bool:
    """Tell whether this server runs scripts; a refusal inside a transaction would end that. Asks once per pool."""
    if refuses_scripts(connection):
        return False
    if connection.connection_pool not in _running:
        try:
            run_script(connection, forget(NONE, ""))
        except ResponseError as error:
            if not refuses_scripts(connection, error):
                raise
            return False
        _running.add(connection.connection_pool)
    return True
