"""What a claim is: one job, popped and marked started by one script, and fenced by its execution id."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ..durations import LONGEST

#: Field of a job's hash: how often its execution ended without an outcome. Gone with the next outcome, and with the
#: job.
STALLS = b"rq_pooled_stalls"


class Claim(NamedTuple):
    """One execution of one job, as parent and horse know it."""

    job_id: str
    execution_id: str
    #: The queue in whose started registry it stands, from the job's ``origin``.
    queue: str
    #: The queue that it was popped from: where it goes when it is put back.
    queue_key: str
    #: The RQ worker (one per slot) that it was given to.
    worker_name: str
    #: Seconds since the epoch by the worker's clock, which is what RQ's executions keep.
    created_at: float
    #: The job's hash as it was before the claim.
    raw: Mapping[bytes, bytes]
    #: Fields that ``raw`` lacks since they are large: the horse reads them, see horse/large.py.
    left_out: tuple[bytes, ...] = ()

    def time_limit(self, default: int) -> float:
        """Return the seconds that RQ allows the job, -1 for ever, as written in its hash."""
        try:
            timeout = float(self.raw[b"timeout"]) or default
        except (KeyError, ValueError):
            return default
        return default if math.isnan(timeout) else min(timeout, float(LONGEST))

    @property
    def member(self) -> str:
        """Its name in ``rq:wip:<queue>``, which is the claim itself: test it, remove it, and the claim is gone."""
        return f"{self.job_id}:{self.execution_id}"
