"""Defines claims: how jobs are claimed, and how the server notes it.

A claim is one job, popped and marked started by one script, and fenced by its execution id.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rq.utils import now, utcformat

from ..config.settings import Settings
from ..durations import LONGEST
from ..wire import Command, text
from .keys import claims_key
from .scripts import call
from .sentries import SENTRY_LIFE

#: Bytes of job data after which one claim takes no further job.
MAX_CLAIM_BYTES = 1024 * 1024
#: Most slots of one claim, and jobs: 200 small ones hold the server for 5 to 8 ms.
MAX_CLAIM_JOBS, MAX_CLAIM_AHEAD = 50, 100
#: Field of a job's hash: how often its execution ended without an outcome. The next outcome removes it.
STALLS = b"rq_pooled_stalls"


class Claim(NamedTuple):
    """One execution of one job, as parent and horse know it."""

    job_id: str
    execution_id: str
    #: The queue whose started registry lists the claim, from the job's ``origin``.
    queue: str
    #: The queue that the job was popped from, to which it returns when it is put back.
    queue_key: str
    #: The RQ worker (one per slot) that has the claim.
    worker_name: str
    #: Seconds since the epoch by the worker's clock, as RQ's executions keep it.
    created_at: float
    #: The job's hash as it was before the claim.
    raw: Mapping[bytes, bytes]
    #: Large fields that ``raw`` lacks; the horse reads them, see horse/large.py.
    left_out: tuple[bytes, ...] = ()
    #: What ``raw`` was read from, if that was one text: what stands between two words, the text, and words before.
    packed: tuple[bytes, bytes, int] | None = None

    @classmethod
    def from_message(cls, fields: Sequence[Any]) -> Claim:
        """Return what ``message`` was called on."""
        raw = fields[6]
        if type(raw) is tuple:
            between, words, start = raw
            words = words.split(between)
            raw = dict(zip(words[start::2], words[start + 1 :: 2]))
        return cls._make((*fields[:6], raw, fields[7], None))

    def message(self) -> tuple[Any, ...]:
        """Return it as it travels to a horse, which cuts the text of a hash itself."""
        return (*self[:6], self.raw if self.packed is None else self.packed, self.left_out)

    def time_limit(self, default: int) -> float:
        """Return the seconds that RQ allows the job, -1 for ever, as written in its hash."""
        try:
            timeout = float(self.raw[b"timeout"]) or default
        except (KeyError, ValueError):
            return default
        return default if math.isnan(timeout) else min(timeout, float(LONGEST))

    def is_stale(self, lease: float) -> bool:
        """Tell whether the job must not begin any more: this process, or its machine, has stood still since the claim.

        Its lease of ``lease`` seconds may be over then, and the job handed on. The clock is one that runs on meanwhile.
        """
        return time.time() - self.created_at > lease / 2

    @property
    def member(self) -> str:
        """The member of ``rq:wip:<queue>`` that is the claim itself: the claim stands as long as it is there."""
        return f"{self.job_id}:{self.execution_id}"


class Limited(NamedTuple):
    """A queue with jobs that its limit keeps from starting, see queue/limits.py, or that is paused."""

    key: str
    #: Seconds until a job may start; None where the queue waits for a running job to end.
    wait: float | None
    #: A key that exists until a job may be able to start.
    watch: str
    #: It is paused, see queue/pause.py.
    paused: bool = False


class Claimed(NamedTuple):
    """The reply to a claim."""

    suspended: bool
    #: How many ids stayed in their queue because an execution of the same job is running.
    held: int
    #: Ids that were dropped because their job has no data.
    stale: list[str]
    claims: list[Claim]
    limited: list[Limited]
    #: Jobs may wait that it could have taken, had it had more free slots.
    left: bool
    #: The worker is the sentry of its queues, see store/sentries.py.
    sentry: bool


class ClaimRequest(NamedTuple):
    """The arguments of a claim that are needed to read its reply."""

    created_at: float
    #: The ids of executions begin with it, and end with their number.
    executions: str
    names: Sequence[str]
    #: How many jobs were asked for.
    most: int

    def read(self, reply: Any) -> Claimed:
        """Return the reply of claim.lua in our terms."""
        suspended, held, stale, jobs, closed, left, sentry, between = reply
        claims = []
        for number, job in enumerate(jobs):
            words = job.split(between)
            key, job_id, queue, lacking = words[:4]
            start = 4 + int(lacking)
            claims.append(
                Claim(
                    text(job_id),
                    f"{self.executions}{number:08x}",
                    text(queue),
                    text(key),
                    self.names[number % len(self.names)],
                    self.created_at,
                    dict(zip(words[start::2], words[start + 1 :: 2])),
                    tuple(words[4:start]),
                    (between, job, start),
                )
            )
        limited = [
            Limited(text(key), None if wait < 0 else wait / 1e6, text(watch), wait == -2) for key, wait, watch in closed
        ]
        shown = [job_id.decode(errors="backslashreplace") for job_id in stale]  # only logged
        return Claimed(bool(suspended), held, shown, claims, limited, bool(left), bool(sentry))


def claim_jobs(
    settings: Settings,
    token: str,
    queue_keys: Sequence[str],
    strategy: str,
    names: Sequence[str],
    per_name: int = 1,
    crew: str = "",
    sentry: bool = False,
    behind: bool = False,
) -> tuple[Command, ClaimRequest]:
    """Return the command that claims jobs for worker names, and the object that reads its reply.

    Args:
        settings, token: of the worker.
        queue_keys, strategy: which queue is served before which.
        names: of the free slots; without any a sentry only hands on its post.
        per_name: most jobs of a name; those after the first round are claimed ahead.
        crew: the workers of which it wakes the next one, see store/sentries.py.
        sentry: the worker is their sentry.
        behind: it takes nothing, and is answered by None, while a claim of this worker stands.
    """
    created_at, names = time.time(), names[:MAX_CLAIM_JOBS]
    most = max(len(names), min(MAX_CLAIM_AHEAD, per_name * len(names)))
    executions = os.urandom(12).hex()
    command = call(
        "claim",
        queue_keys,
        utcformat(now()),
        created_at,
        settings.heartbeat_ttl,
        math.ceil(settings.abandon_after),
        MAX_CLAIM_BYTES,
        strategy,
        random.randrange(2**31),
        claims_key(token),
        executions,
        most,
        crew,
        int(sentry),
        SENTRY_LIFE,
        int(behind),
        *names,
    )
    return command, ClaimRequest(created_at, executions, names, most)


def known_claims(token: str) -> Command:
    """Return the command that asks for all claims of a process; its reply is read by ``unknown_claims``."""
    return ("HGETALL", claims_key(token))


def drop_notes(token: str, members: Sequence[bytes]) -> Command:
    """Return the command that removes at most a thousand notes that are no claims."""
    return ("HDEL", claims_key(token), *members[:1000])


def forget(token: str, claim: Claim) -> Command:
    """Return the command that removes the server's note of a claim for a process."""
    return ("HDEL", claims_key(token), claim.member)


def unknown_claims(reply: Sequence[bytes], known: Iterable[str], unreadable: list[bytes] | None = None) -> list[Claim]:
    """Return the claims in the server's note that are not among ``known`` members, because their reply was lost.

    Args:
        unreadable: gets the members of notes that no claim has written.
    """
    members = set(known)
    claims = []
    for member, note in zip(reply[::2], reply[1::2]):
        if text(member) not in members:
            job_id, _, execution_id = text(member).rpartition(":")
            try:
                queue, key, name = _note_of(note)
            except ValueError:
                if unreadable is not None:
                    unreadable.append(member)
                continue
            claims.append(Claim(job_id, execution_id, queue, key, name, 0.0, {}))
    return claims


def _note_of(note: bytes) -> tuple[str, str, str]:
    """Return queue, key and worker name of a claim's note, led by two lengths, since a name may have any bytes."""
    of_queue, of_key, words = note.split(b" ", 2)
    end = int(of_queue)
    return text(words[:end]), text(words[end : end + int(of_key)]), text(words[end + int(of_key) :])
