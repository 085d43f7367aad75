"""Spent-once keys: what is written where.

A job with a key carries it in its hash. ``rq_pooled:once:<key>`` holds the id of the job that spent it: the first that
succeeded, in the step that records its result. While a job with the key runs, ``rq_pooled:once-running:<key>`` names
its claim, so that no other job with that key runs beside it; it counts only as long as that claim stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..durations import LONGEST
from ..wire import raw, text
from .keys import job_key, once_key, once_running_key

#: Fields of a job's hash: its key, and the seconds for which it stays spent (0: for ever).
FIELD, TTL_FIELD = "rq_pooled_once", "rq_pooled_once_ttl"
#: Field of a job's hash: when the job was created that has the key. Another one that takes its id has another time, and
#: not its key, although RQ leaves the fields of the old hash.
OF_FIELD = "rq_pooled_once_of"
#: Field of the hash of a job that was not run: the id of the job that spent its key.
DUPLICATE_FIELD = "rq_pooled_duplicate_of"
#: Field of a claim, not of the hash, where it may be from an earlier run: the same.
SPENDER_FIELD = "rq_pooled_once_spender"
#: Field of a claim, not of the hash: the key that says who runs was written by it.
RUNNING_FIELD = "rq_pooled_once_running"


def duplicate_of(raw: Mapping[bytes, bytes]) -> str | None:
    """Return the id of the job that spent the key of a claimed job, None if it is to be run."""
    found = raw.get(SPENDER_FIELD.encode())
    return text(found) if found else None


def closing_commands(fields: Mapping[bytes, bytes], job_id: str, succeeded: bool) -> list[list[Any]]:
    """Return what is to be recorded together with the outcome of a job, nothing for one that has no key.

    NX: what is spent stays spent by whom it was spent, whatever happened to the claim of this job meanwhile.
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
    """Return the life of a spent key as the server takes it, 0 for ever; what is no number is for ever."""
    try:
        return max(0, min(int(field), LONGEST))
    except ValueError:
        return 0
