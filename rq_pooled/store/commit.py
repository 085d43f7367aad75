"""Defines what is recorded of a job that ran, and the scripts that prepare and record it."""

from __future__ import annotations

import time
import zlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rq.defaults import DEFAULT_FAILURE_TTL
from rq.registry import FailedJobRegistry
from rq.results import Result
from rq.utils import now, utcformat

from ..durations import LONGEST
from ..wire import Command, Packed, Word, pack_runs, pack_words
from .claim import STALLS, Claim
from .keys import aside_key, claims_key, job_key, registry_key, worker_key
from .rate_limits import release_commands
from .scripts import call

RawCommand = Sequence[bytes]

NOTHING = (0, Packed(0, b""))


@dataclass
class Outcome:
    """The record of a claim's end, packed, since the parent only passes it on."""

    claim: Claim
    #: The job's status afterwards; only whether it is ``failed`` matters here.
    status: str
    #: The number of reads whose replies must not have changed, and the reads as commit.lua takes them.
    guards: tuple[int, Packed]
    #: The number of commands that RQ's handler chose, and the commands in the same form.
    commands: tuple[int, Packed]
    #: Further commands, which enqueue dependents; they are made anew when a guard's reply has changed.
    dependents: tuple[int, Packed] = NOTHING
    #: The slot and task whose horse waits for the confirmation, if one does.
    receipt_for: Any = None
    #: How often its guards' replies had changed.
    changes: int = 0
    #: How often the server was asked to record it.
    attempts: int = 0
    #: How often the server refused it.
    refusals: int = 0
    #: How often the connection was lost while it was on its way.
    losses: int = 0
    #: It was recorded once already, by a server that may have lost its last seconds of writes.
    again: bool = False

    def words(self) -> list[Word | Packed]:
        """Return it as commit.lua takes it."""
        claim = self.claim
        counts = (self.guards[0], self.commands[0] + self.dependents[0])
        packed = (self.guards[1], self.commands[1], self.dependents[1])
        # An outcome that is sent again must not change what its worker says of itself.
        name = "" if self.again else claim.worker_name
        return [pack_words((claim.job_id, claim.execution_id, claim.queue, name, *counts)), *packed]

    def size(self) -> int:
        """Return its approximate size in bytes."""
        return 1000 + len(self.guards[1].data) + len(self.commands[1].data) + len(self.dependents[1].data)

    def on_recorded(self) -> None:
        """Note that it was recorded, and drop the job's data, which recording it again does not need."""
        self.claim, self.again = self.claim._replace(raw={}, packed=None), True


def flat(part: tuple[int, Packed]) -> tuple[int, int, bytes]:
    """Return a part of an outcome as it travels between parent and horse."""
    return (part[0], *part[1])


def packed(part: Sequence[Any]) -> tuple[int, Packed]:
    """Return what ``flat`` was given."""
    number, count, data = part
    return number, Packed(count, data)


def commit_outcomes(token: str, outcomes: Iterable[Outcome]) -> Command:
    """Return the command that records outcomes; its reply has one word for each, see commit.lua."""
    words = [word for outcome in outcomes for word in outcome.words()]
    return call("commit", (), utcformat(now()), claims_key(token), *words)


def set_aside(member: str, queue: str, life: int, values: Iterable[tuple[str, Word]]) -> Command:
    """Put large values of a claim's outcome aside, each (field, value), for ``life`` seconds."""
    words = [word for value in values for word in value]
    return call("aside", (aside_key(member), registry_key("wip", queue)), member, life, *words)


def guarded_reads(commands: Iterable[RawCommand]) -> Command:
    """Return the command that runs reads and digests each reply."""
    return call("reads", (), pack_runs(commands))


def bare_failure(claim: Claim, reason: str) -> Outcome:
    """Return a minimal failure of a job whose hash RQ's own code cannot read.

    Every horse that rebuilds such a job fails, so it would be claimed again without end. The failure is written as RQ
    writes one, without the fields that only a Job can compute.
    """
    job, registry = job_key(claim.job_id), FailedJobRegistry.key_template.format(claim.queue)
    ended = utcformat(now())
    error = zlib.compress(reason.encode(errors="backslashreplace"))
    commands: list[tuple[Word, ...]] = [
        ("HSET", job, "status", "failed", "ended_at", ended, "exc_info", error),
        ("ZADD", registry, _failure_score(claim.raw), claim.job_id),
        ("XADD", Result.get_key(claim.job_id), "MAXLEN", "~", 10, "*", "type", Result.Type.FAILED.value)
        + ("worker_name", claim.worker_name, "exc_string", b64encode(error)),
        ("HINCRBY", worker_key(claim.worker_name), "failed_job_count", 1),
        ("HDEL", job, STALLS),
        *release_commands(claim.raw, claim.job_id, ended),
    ]
    return Outcome(claim, "failed", NOTHING, (len(commands), pack_runs(commands)))


def _failure_score(raw: Mapping[bytes, bytes]) -> int:
    """Return the score of a failed job as RQ's registry computes it; a negative score means for ever."""
    try:
        ttl = min(int(raw[b"failure_ttl"]), LONGEST)
    except (KeyError, ValueError):
        ttl = DEFAULT_FAILURE_TTL
    return max(ttl, -LONGEST) if ttl < 0 else int(time.time()) + ttl
