"""Jobs that fail in the usual ways: a service that is busy, one that is away, a request that makes no sense."""

from __future__ import annotations

from rq import get_current_job

from rq_pooled import RetryAfter
from rq_pooled.retry import GiveUp


def charge(customer: str) -> str:
    """Charge a customer; the first try of each meets a busy service."""
    job = get_current_job()
    assert job is not None
    job.meta["tries"] = tries = job.meta.get("tries", 0) + 1
    job.save_meta()
    if customer == "nobody":
        raise GiveUp(f"there is no customer {customer}")
    if tries == 1:
        raise RetryAfter(1, "HTTP 429, too many requests")
    if customer == "offline" and tries < 5:
        raise ConnectionError("the bank does not answer")
    return f"charged {customer} with try {tries}"
