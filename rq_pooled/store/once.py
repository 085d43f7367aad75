"""Defines where spent-once keys are written.

A job with a key carries it in its hash. ``rq_pooled:once:<key>`` holds the id of the job that spent it: the first job
that succeeded; the step that records its result writes the id. While a job with the key runs,
``rq_pooled:once-running:<key>`` names its claim, so that no other job with that key runs. It counts only while that
claim stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..durations import LONGEST
from ..wire import raw, text
from .keys import job_key, once_key, once_running_key

#: Fields of a job's hash: its key, and the seconds for which it stays spent (0: for ever).
FIELD, TTL_FIELD = "rq_pooled_once", "rq_pooled_once_ttl"
#: Field of a job's hash: the time at which the key's job was created. A later job with the same id has another time,
#: so a key that RQ left in the old hash is not its own.
OF_FIELD = "rq_pooled_once_of"
#: Field of the hash of a job that was not run: the id of the job that spent its key.
DUPLICATE_FIELD = "rq_pooled_duplicate_of"
#: Field of a claim: the same id. The hash is not read for it, because its value may be from an earlier run.
SPENDER_FIELD = "rq_pooled_once_spender"
#: Field of a claim, not of the hash: this claim has written the key of the running job.
RUNNING_FIELD = "rq_pooled_once_running"


def duplicate_of(raw: Mapping[bytes, bytes]) -> str | None:
    """Return the id of the job that spent a claimed job's key, None if the claimed job must run."""
    found = raw.get(SPENDER_FIELD.encode())
    return text(found) if found else None


def closing_commands(fields: Mapping[bytes, bytes], job_id: str, succeeded: bool) -> list[list[Any]]:
    """Return the commands to record with the outcome of a job, none for a job without a key.

    NX keeps the first spender of a key, even if this job's claim was lost meanwhile.
    """
    key = fields.get(FIELD.encode())
    if key is None or RUNNING_FIELD.encode() not in fields:  # a duplicate, or the key is not its own
        return []
    commands: list[list[Any]] = []
    if succeeded:
        ttl = _seconds(fields.get(TTL_FIELD.encode(), b"0"))
        commands.append(["SET", raw(once_key(text(key))), job_id, "NX", *(["EX", ttl] if ttl else [])])
    commands.append(["DEL", raw(once_running_key(text(key)))])
    if DUPLICATE_FIELD.encode() in fields:
        commands.append(["HDEL", job_key(job_id), DUPLICATE_FIELD])
    return commands


def _seconds(field: bytes) -> int:
    """Return the life of a spent key as the server takes it; 0, and any text that is no number, means for ever."""
    try:
        return max(0, min(int(field), LONGEST))
    except ValueError:
        return 0
