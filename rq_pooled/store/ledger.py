"""A job's transitions in Redis: which script with which arguments, and what the replies mean.

It sends nothing by itself: each method returns a command or reads a reply, so that the parent decides what shares a
round trip.
"""

from __future__ import annotations

import math
import random
import time
import zlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import uuid4

from rq.defaults import DEFAULT_FAILURE_TTL
from rq.registry import FailedJobRegistry
from rq.results import Result
from rq.utils import now, utcformat

from ..config.settings import Settings
from ..durations import LONGEST
from ..rq_api import release_commands
from ..wire import Command, Packed, Word, pack_runs, text
from .claim import STALLS, Claim
from .keys import claims_key, job_key, worker_key
from .scripts import Scripts

#: Bytes of job data after which one claim takes no further job.
MAX_CLAIM_BYTES = 1024 * 1024
#: Most jobs of one claim: 200 small ones hold the server for 5 to 8 ms.
MAX_CLAIM_JOBS = 50
#: Life of a scheduler lock, as RQ's own: its interval of one second plus 60.
SCHEDULER_LOCK_TTL = 61
#: Jobs per queue that one promotion moves; when there are more, it is called again at once.
MAX_PROMOTED = 100
#: Expired leases that one look deals with, and jobs among them that it fails: each of these needs a horse.
MAX_STALLED, MAX_STALLED_FAILURES = 100, 5
#: What RQ's scheduler gives to a job without a timeout.
DEFAULT_TIMEOUT = 180


NOTHING = (0, Packed(0, b""))


@dataclass
class Outcome:
    """What is to be recorded for a claim, packed: the parent only passes it on."""

    claim: Claim
    #: The job's status after it: only whether it is ``failed`` matters here.
    status: str
    #: Reads that have to give the same reply still, as commit.lua takes them, and how many.
    guards: tuple[int, Packed]
    #: The commands that RQ's handler chose, likewise.
    commands: tuple[int, Packed]
    #: Further commands, which enqueue dependents; they are made anew when a guard's reply has changed.
    dependents: tuple[int, Packed] = NOTHING
    #: The slot and its task whose horse waits to hear that it was recorded, if one does.
    receipt_for: Any = None
    #: How often its guards' replies had changed.
    changes: int = 0
    #: How often the server was asked to record it.
    attempts: int = 0
    #: How often the server refused it.
    refusals: int = 0
    #: How often the connection was lost while it was on its way.
    losses: int = 0
    #: It was recorded once already, by a server that may have lost its last seconds since.
    again: bool = False

    def words(self) -> list[Word | Packed]:
        """Return it as commit.lua takes it."""
        claim = self.claim
        counts = (self.guards[0], self.commands[0] + self.dependents[0])
        packed = (self.guards[1], self.commands[1], self.dependents[1])
        # What is sent again says nothing about what its worker does now.
        name = "" if self.again else claim.worker_name
        return [claim.job_id, claim.execution_id, claim.queue, name, *counts, *packed]

    def size(self) -> int:
        """Return about how many bytes it holds."""
        return 1000 + sum(len(part[1].data) for part in (self.guards, self.commands, self.dependents))

    def on_recorded(self) -> None:
        """Keep what is needed to record it again; not the job's data, which may be large."""
        self.claim, self.again = self.claim._replace(raw={}), True


def flat(part: tuple[int, Packed]) -> tuple[int, int, bytes]:
    """Return a part of an outcome as it travels between parent and horse."""
    return (part[0], *part[1])


def packed(part: Sequence[Any]) -> tuple[int, Packed]:
    """Return what ``flat`` was given."""
    number, count, data = part
    return number, Packed(count, data)


class Limited(NamedTuple):
    """A queue that has jobs and may not start one, see queue/limits.py."""

    key: str
    #: Seconds until it may; None where it waits for a running job to end.
    wait: float | None
    #: A key that exists until that may have changed.
    watch: str


class Claimed(NamedTuple):
    """The reply to a claim."""

    suspended: bool
    #: How many ids stayed in their queue because an execution of the same job is running.
    held: int
    #: Ids that were dropped because their job has no data.
    stale: list[str]
    claims: list[Claim]
    limited: list[Limited]


class Stalled(NamedTuple):
    """The reply to a look for expired leases."""

    #: There may be more.
    more: bool
    #: What went back: job id, queue, worker that had it, how often it has stalled.
    returned: list[tuple[str, str, str, int]]
    #: What has stalled too often and is to be failed: claim, how often.
    taken: list[tuple[Claim, int]]


class Ledger:
    """Builds the commands of one worker process.

    Args:
        scripts: the scripts.
        settings: leases and limits.
        token: of this process; names its claims hash.
    """

    def __init__(self, scripts: Scripts, settings: Settings, token: str) -> None:
        self._scripts = scripts
        self._settings = settings
        self.token = token

    # -- claim ---------------------------------------------------------------------------------------------------

    def claim(self, queue_keys: Sequence[str], strategy: str, names: Sequence[str]) -> tuple[Command, ClaimRequest]:
        """Return the command that claims up to one job for each worker name, and what its reply is read with."""
        created_at = time.time()
        slots = [(name, uuid4().hex) for name in names[:MAX_CLAIM_JOBS]]
        command = self._scripts.claim(
            queue_keys,
            utcformat(now()),
            created_at,
            self._settings.heartbeat_ttl,
            math.ceil(self._settings.abandon_after),
            MAX_CLAIM_BYTES,
            strategy,
            random.randrange(2**31),
            self.token,
            slots,
        )
        return command, ClaimRequest(created_at, slots)

    def push_back(self, claims: Iterable[Claim], begun: bool = False) -> Command:
        """Return the command that puts claimed jobs back at the front of their queues; ``begun`` counts as a stall."""
        words = [(c.job_id, c.execution_id, c.queue, c.worker_name, c.queue_key) for c in claims]
        return self._scripts.push_back(utcformat(now()), self.token, self._settings.max_stalls, begun, words)

    def known_claims(self) -> Command:
        """Return the command that asks for all claims of this process; its reply is read by ``unknown``."""
        return ("HGETALL", claims_key(self.token))

    def drop_notes(self, members: Sequence[bytes]) -> Command:
        """Return the command that removes notes which are no claims, a thousand at most."""
        return ("HDEL", claims_key(self.token), *members[:1000])

    def forget(self, claim: Claim) -> Command:
        """Return the command that has the server no longer note a claim for this process."""
        return ("HDEL", claims_key(self.token), claim.member)

    @staticmethod
    def unknown(reply: Sequence[bytes], known: Iterable[str], unreadable: list[bytes] | None = None) -> list[Claim]:
        """Return the claims in the server's note that are not among ``known`` members: their reply was lost.

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

    # -- stalls ----------------------------------------------------------------------------------------------------

    def stalled(self, queue_keys: Sequence[str], name: str, valid_until: float) -> Command:
        """Return the command that finds expired leases; after ``valid_until``, server time, it finds none."""
        executions = [uuid4().hex for _ in range(MAX_STALLED_FAILURES)]
        return self._scripts.stalled(
            queue_keys,
            utcformat(now()),
            time.time(),
            self._settings.heartbeat_ttl,
            math.ceil(self._settings.abandon_after),
            self._settings.max_stalls,
            # A little less than the interval: whoever is next does not find the lock of the round before.
            self._settings.stalled_interval * 0.9,
            self.token,
            name,
            MAX_STALLED,
            valid_until,
            executions,
        )

    @staticmethod
    def stalled_reply(reply: Any, name: str) -> Stalled:
        """Return the reply to ``stalled`` in our terms."""
        more, back, failed = reply
        returned = [(text(job), text(queue), text(holder), stalls) for job, queue, holder, stalls in back]
        taken = []
        for key, job_id, queue, stalls, execution, raw, *left_out in failed:
            fields = dict(zip(raw[::2], raw[1::2]))
            ids = (text(job_id), text(execution), text(queue), text(key))
            taken.append((Claim(*ids, name, time.time(), fields, *map(tuple, left_out)), stalls))
        return Stalled(bool(more), returned, taken)

    # -- commit --------------------------------------------------------------------------------------------------

    def commit(self, outcomes: Iterable[Outcome]) -> Command:
        """Return the command that records outcomes; its reply has one word for each, see commit.lua."""
        return self._scripts.commit(utcformat(now()), self.token, [outcome.words() for outcome in outcomes])

    def bare_failure(self, claim: Claim, reason: str) -> Outcome:
        """Return the plainest failure of a job that RQ's own code cannot even be given.

        Only for jobs whose hash makes every horse fail that rebuilds it: without this, they would be claimed and
        buried for ever. Written as RQ writes a failed job, but for the fields that only a Job could compute.
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

    # -- alive ---------------------------------------------------------------------------------------------------

    def heartbeat(self, worker_ttl: int, slots: Sequence[tuple[str, str, float]], claims: Iterable[Claim]) -> Command:
        """Return the command that renews slots, each (name, state or '', seconds its job has run), and claims."""
        return self._scripts.heartbeat(
            utcformat(now()),
            time.time(),
            self._settings.heartbeat_ttl,
            math.ceil(self._settings.abandon_after),
            worker_ttl,
            self.token,
            slots,
            [(claim.job_id, claim.execution_id, claim.queue) for claim in claims],
        )

    def promote(self, queues: Iterable[str], name: str, fields: Mapping[str, str]) -> Command:
        """Return the command that moves due scheduled jobs, as the scheduler of this name."""
        return self._scripts.promote(
            queues, name, SCHEDULER_LOCK_TTL, utcformat(now()), DEFAULT_TIMEOUT, MAX_PROMOTED, fields
        )


class ClaimRequest(NamedTuple):
    """What a claim was asked with, needed to read its reply."""

    created_at: float
    slots: list[tuple[str, str]]

    def read(self, reply: Any) -> Claimed:
        """Return the reply of claim.lua in our terms."""
        suspended, held, stale, jobs, closed = reply
        claims = []
        for (name, execution_id), (key, job_id, queue, raw, *left_out) in zip(self.slots, jobs):
            fields = dict(zip(raw[::2], raw[1::2]))
            claims.append(
                Claim(
                    text(job_id),
                    execution_id,
                    text(queue),
                    text(key),
                    name,
                    self.created_at,
                    fields,
                    *map(tuple, left_out),
                )
            )
        limited = [Limited(text(key), None if wait < 0 else wait / 1e6, text(watch)) for key, wait, watch in closed]
        shown = [job_id.decode(errors="backslashreplace") for job_id in stale]  # only logged
        return Claimed(bool(suspended), held, shown, claims, limited)


def _note_of(note: bytes) -> tuple[str, str, str]:
    """Return queue, key and worker name of a claim's note: two lengths go first, since a name may have any bytes."""
    of_queue, of_key, words = note.split(b" ", 2)
    end = int(of_queue)
    return text(words[:end]), text(words[end : end + int(of_key)]), text(words[end + int(of_key) :])


def _failure_score(raw: Mapping[bytes, bytes]) -> int:
    """Return the score of a failed job as RQ's registry computes it: a negative one, which its clean-up leaves, for
    ever.
    """
    try:
        ttl = min(int(raw[b"failure_ttl"]), LONGEST)
    except (KeyError, ValueError):
        ttl = DEFAULT_FAILURE_TTL
    return max(ttl, -LONGEST) if ttl < 0 else int(time.time()) + ttl
