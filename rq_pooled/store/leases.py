"""Renews the leases of claims, gives claims back, and finds expired leases."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from rq.utils import now, utcformat

from ..config.settings import Settings
from ..wire import Command, Word, text
from .claim import Claim
from .keys import claims_key
from .scripts import call

#: Expired leases that one search handles, and jobs among them that it fails, each of which needs a horse.
MAX_STALLED, MAX_STALLED_FAILURES = 100, 5


class Stalled(NamedTuple):
    """The reply to a search for expired leases."""

    #: There may be more expired leases.
    more: bool
    #: Jobs that were put back: job id, queue, last worker, number of stalls.
    returned: list[tuple[str, str, str, int]]
    #: Jobs that have stalled too often and must be failed: claim, number of stalls.
    taken: list[tuple[Claim, int]]


def heartbeat(
    settings: Settings, token: str, worker_ttl: int, slots: Sequence[tuple[str, str, float]], claims: Iterable[Claim]
) -> Command:
    """Return the command that renews slots, each (name, state or '', seconds its job has run), and claims."""
    words: list[Word] = [word for slot in slots for word in slot]
    for claim in claims:
        words += (claim.job_id, claim.execution_id, claim.queue)
    limits = (settings.heartbeat_ttl, math.ceil(settings.abandon_after), worker_ttl, len(slots), claims_key(token))
    return call("heartbeat", (), utcformat(now()), time.time(), *limits, *words)


def push_back(settings: Settings, token: str, claims: Iterable[Claim], begun: bool = False) -> Command:
    """Return the command that puts claimed jobs back at the front of their queues; a begun job counts as stalled."""
    words: list[Word] = []
    # The ids of one claim's executions end with their number.
    for claim in sorted(claims, key=lambda claim: (claim.created_at, claim.execution_id)):
        words += (claim.job_id, claim.execution_id, claim.queue, claim.worker_name, claim.queue_key)
    return call("push_back", (), utcformat(now()), claims_key(token), settings.max_stalls, int(begun), *words)


def find_stalled(settings: Settings, token: str, queue_keys: Sequence[str], name: str, valid_until: float) -> Command:
    """Return the command that finds expired leases; after ``valid_until``, server time, it finds none.

    Jobs go back. One that stalled too often is claimed for the worker of this name, to be failed.
    """
    limits = (settings.heartbeat_ttl, math.ceil(settings.abandon_after), settings.max_stalls)
    # The lock lives a little less than the interval, so that the next round does not find it.
    lock_life = max(1, int(settings.stalled_interval * 0.9 * 1000))
    executions = [uuid4().hex for _ in range(MAX_STALLED_FAILURES)]
    words: Iterable[Word] = (*limits, lock_life, claims_key(token), name, MAX_STALLED, valid_until, *executions)
    return call("stalled", queue_keys, utcformat(now()), time.time(), *words)


def stalled_of(reply: Any, name: str) -> Stalled:
    """Read the reply to ``find_stalled``."""
    more, back, failed = reply
    returned = [(text(job), text(queue), text(holder), stalls) for job, queue, holder, stalls in back]
    taken = []
    for key, job_id, queue, stalls, execution, raw, *left_out in failed:
        fields = dict(zip(raw[::2], raw[1::2]))
        ids = (text(job_id), text(execution), text(queue), text(key))
        taken.append((Claim(*ids, name, time.time(), fields, *map(tuple, left_out)), stalls))
    return Stalled(bool(more), returned, taken)


def postpone(queue_keys: Sequence[str], abandon_after: int) -> Command:
    """Keep RQ's clean-up away from claims with a lease of ours, once per claim."""
    return call("postpone", queue_keys, abandon_after)
