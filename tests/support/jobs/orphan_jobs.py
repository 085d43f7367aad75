"""Job functions of the tests about orphans."""

from __future__ import annotations

from rq import get_current_job


def own_status() -> str:
    """Return what Redis says of the job that runs."""
    job = get_current_job()
    assert job is not None
    return job.connection.hget(job.key, "status").decode()
