"""Frees the slot that a job holds at a rate limit of RQ 3, where RQ's own code does not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping

from .. import rq_api
from ..wire import Word
from .keys import JOB, QUEUE, RATE_LIMIT


def closing_commands(raw: Mapping[bytes, bytes], job_id: str, status: bytes) -> list[list[bytes]]:
    """Return the command that frees the slot of a rate-limited job under RQ 2, which knows no limits.

    An RQ 3 worker admits the waiting jobs in its maintenance, because only RQ 3 has the script for it.
    """
    key = raw.get(b"rate_limit_key")
    if rq_api.RQ3 or not key or status in (b"queued", b"started"):
        return []
    return [[b"ZREM", _sets(key)[0], job_id.encode()]]


def release_commands(raw: Mapping[bytes, bytes], job_id: str, ended_at: str) -> list[tuple[Word, ...]]:
    """Return the command that frees a job's slot, for an outcome that is written without RQ's code."""
    key, concurrency = raw.get(b"rate_limit_key"), raw.get(b"rate_limit_concurrency", b"")
    if not key:
        return []
    allowed, waiting = _sets(key)
    if not rq_api.RQ3 or not concurrency.isdigit():
        return [("ZREM", allowed, job_id)]
    sha1 = hashlib.sha1(rq_api.rate_limit_scripts()["release"].encode()).hexdigest()
    return [("EVALSHA", sha1, 2, allowed, waiting, concurrency, time.time(), ended_at, QUEUE, JOB, job_id)]


def _sets(key: bytes) -> tuple[bytes, bytes]:
    """Return a limit's sorted sets of admitted and of waiting jobs."""
    limit = RATE_LIMIT.encode() + key
    return limit + b":allowed", limit + b":rate_limited"
