"""The Lua scripts, one typed method each.

A method only builds the command (a tuple of words for one EVALSHA); who sends it, and when, is the caller's affair:
several can travel in one round trip.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .. import rq_api
from ..durations import LONGEST
from ..wire import Command, Packed, Word, pack_runs
from .keys import (
    DECLARED_LIMITS,
    LIMITS,
    RIGHTS,
    RIGHTS_OF_OURS,
    RIGHTS_OF_RQ,
    SAMPLES,
    SCHEDULED_JOBS,
    SCHEDULER_LOCK,
    STARTING,
    aside_key,
    claims_key,
    registry_key,
)

RawCommand = Sequence[bytes]

_FOLDER = Path(__file__).parent / "lua"
_NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.lua")))

#: Scripts without which a worker is no worker, and what RQ's own handlers write besides.
_WORKING = ("admit", "aside", "claim", "commit", "heartbeat", "promote", "push_back", "register", "stalled")
_OF_RQ = {"XADD"}
#: Command -> whether it takes a key, and how many words behind it make the server look at the user's rights.
_WORDS: dict[str, tuple[bool, int]] = {
    "TIME": (False, 0),
    "SCAN": (False, 1),
    **dict.fromkeys(("DEL", "EXISTS", "GET", "HGETALL", "HKEYS", "HLEN", "LLEN", "LPOP", "PERSIST", "PTTL"), (True, 0)),
    **dict.fromkeys(("SCARD", "SRANDMEMBER", "TTL", "TYPE", "UNLINK", "ZCARD", "ZPOPMIN"), (True, 0)),
    **dict.fromkeys(("EXPIRE", "HDEL", "HEXISTS", "HGET", "HMGET", "HSTRLEN", "LINDEX", "LPOS", "LPUSH"), (True, 1)),
    **dict.fromkeys(("LPUSHX", "PEXPIRE", "RPUSH", "SADD", "SET", "SISMEMBER", "SREM", "ZRANK", "ZREM"), (True, 1)),
    **dict.fromkeys(("ZSCAN", "ZSCORE"), (True, 1)),
    **dict.fromkeys(("HINCRBY", "HINCRBYFLOAT", "HSET", "LRANGE", "LREM", "LTRIM", "XREVRANGE", "ZADD"), (True, 2)),
    **dict.fromkeys(("ZCOUNT", "ZRANGE", "ZRANGEBYSCORE", "ZREMRANGEBYSCORE"), (True, 2)),
    **dict.fromkeys(("EXPIREAT", "HMSET", "HSETNX", "XTRIM", "ZINCRBY"), (True, 2)),
    "XADD": (True, 3),
}


class SweepLock(NamedTuple):
    """The lock of a sweep, as its scripts check and renew it; an empty owner holds none and needs none."""

    key: str
    owner: str
    ttl: int


def _text(name: str) -> str:
    """Return a script whole: a line ``-- include name`` stands for a function that it shares with others."""
    text = (_FOLDER / f"{name}.lua").read_text()
    line = re.compile("^-- include (.+)\n", re.MULTILINE)
    text = line.sub(lambda found: (_FOLDER / "shared" / f"{found[1]}.lua").read_text(), text)
    text = _ask_rights(text)
    # What a script knows of the installed RQ.
    return text.replace("-- RQ\n", rq_api.lua_prelude()).replace("-- RQ limits\n", _limits())


def _limits() -> str:
    """Return what scripts that deal with rate limits know of the installed RQ."""
    guarded = (_FOLDER / "shared" / "guarded_limit.lua").read_text()
    of_rq = rq_api.lua_limits()
    return rq_api.lua_prelude() + _ask_rights(guarded, of_rq) + of_rq


def commands_of(text: str) -> list[str]:
    """Return the commands that a script's text names, in order; DEL last, which ends the key they are tried on."""
    code = re.sub("--.*", "", text)
    return sorted(set(re.findall("[A-Z]{3,}", code)) & _WORDS.keys(), key=lambda name: (name == "DEL", name))


#: Where a script asks for rights: ``-- rights first``, then of which commands, if not of all that follow, and a key. A
#: server that can only try is not asked again while that key exists; it tries all that follow.
_RIGHTS_LINE = re.compile(r"^ *-- rights first(?: of ([A-Z ]+))?(?:: (.+))?\n", re.MULTILINE)


def _ask_rights(text: str, more: str = "") -> str:
    """Return a text that asks, at its lines ``-- rights first``, for the rights of what follows, and of ``more``."""
    asked = (_FOLDER / "shared" / "rights_first.lua").read_text()

    def ask(line: re.Match[str]) -> str:
        every = commands_of(text[line.end() :] + more)
        chosen = line[1].split() if line[1] else every
        every = every if line[2] else chosen
        # One question for our own keys; all others are for RQ's.
        ours = (chosen[0], RIGHTS_OF_OURS)
        questions = [f"may('{name}', '{key}')" for name, key in [*((name, RIGHTS_OF_RQ) for name in chosen), ours]]
        tries = [_try(name, key) for name, key in [*((name, RIGHTS_OF_RQ) for name in every), ours]]
        filled = asked.replace("QUESTIONS", " and ".join(questions)).replace("COMMANDS", ", ".join(tries))
        return filled.replace("NOW_AND_THEN", line[2] or "nil")

    return _RIGHTS_LINE.sub(ask, text)


def _try(command: str, key: str) -> str:
    """Return the words with which a command is tried, as a Lua table: itself, a key if it takes one, and more."""
    takes_key, more = _WORDS[command]
    words = [f"'{command}'", f"'{key}'" if takes_key else "false", *["'1'"] * more]
    return "{ " + ", ".join(words) + " }"


class Scripts:
    """Knows the scripts' texts and hashes, and what each takes. Arguments are as in the header of its file."""

    def __init__(self) -> None:
        self._texts = {name: _text(name) for name in _NAMES}
        self._hashes = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in self._texts.items()}

    def load(self) -> list[Command]:
        """Return the commands that make the server know all scripts; needed once, and after a SCRIPT FLUSH."""
        texts = [*self._texts.values(), *rq_api.rate_limit_scripts().values()]  # the latter for maintenance
        return [("SCRIPT", "LOAD", text) for text in texts]

    def text(self, name: str) -> str:
        """Return the text of a script, for a caller that has to use EVAL."""
        return self._texts[name]

    def _call(self, name: str, keys: Sequence[str], *arguments: Word | Packed) -> Command:
        return ("EVALSHA", self._hashes[name], len(keys), *keys, *arguments)

    def claim(
        self,
        queue_keys: Sequence[str],
        now: str,
        now_seconds: float,
        lease: float,
        abandon_after: int,
        max_bytes: int,
        strategy: str,
        seed: int,
        token: str,
        slots: Iterable[tuple[str, str]],
    ) -> Command:
        """Pop up to one job per slot, each slot given as (worker name, execution id)."""
        words = [word for slot in slots for word in slot]
        limits = (lease, abandon_after, max_bytes, strategy, seed, claims_key(token))
        return self._call("claim", queue_keys, now, now_seconds, *limits, *words)

    def commit(self, now: str, token: str, outcomes: Iterable[Sequence[Word | Packed]]) -> Command:
        """Record outcomes, each given as the words that commit.lua takes per outcome."""
        return self._call("commit", (), now, claims_key(token), *(word for outcome in outcomes for word in outcome))

    def aside(self, member: str, queue: str, life: int, values: Iterable[tuple[str, Word]]) -> Command:
        """Put large values of a claim's outcome aside, each (field, value), for so many seconds."""
        words = [word for value in values for word in value]
        return self._call("aside", (aside_key(member), registry_key("wip", queue)), member, life, *words)

    def reads(self, commands: Iterable[RawCommand]) -> Command:
        """Read, with a digest per reply."""
        return self._call("reads", (), pack_runs(commands))

    def heartbeat(
        self,
        now: str,
        now_seconds: float,
        lease: float,
        abandon_after: int,
        worker_ttl: int,
        token: str,
        slots: Sequence[tuple[str, str, float]],
        claims: Iterable[tuple[str, str, str]],
    ) -> Command:
        """Renew slots, each (worker name, state or '', seconds its job has run), and claims (job, execution, queue)."""
        words: list[Word] = [word for slot in slots for word in slot]
        words += [word for claim in claims for word in claim]
        limits = (lease, abandon_after, worker_ttl, len(slots), claims_key(token))
        return self._call("heartbeat", (), now, now_seconds, *limits, *words)

    def promote(
        self,
        queues: Iterable[str],
        name: str,
        lock_ttl: int,
        now: str,
        default_timeout: int,
        limit: int,
        fields: Mapping[str, str],
    ) -> Command:
        """Move due scheduled jobs of these queues, as the scheduler with this name and these hash fields."""
        keys = [registry_key("scheduled", queue) for queue in queues]
        words = [word for field in fields.items() for word in field]
        return self._call("promote", keys, name, lock_ttl, now, default_timeout, limit, *words)

    def publish(self, key: str, ttl: float, fields: Mapping[str, Word]) -> Command:
        """Publish the statistics of a process for ``ttl`` seconds."""
        return self._call("publish", [key], ttl, *(word for field in fields.items() for word in field))

    def admit(self, token: str, keep: bool, life: float) -> Command:
        """Reserve the connections of a starting worker for ``life`` seconds, or give them back."""
        return self._call("admit", [STARTING], token, int(keep), life)

    def rights(self) -> Command:
        """Ask which commands of a worker's scripts this user may not run; see rights.lua."""
        words: list[Word] = []
        for command in self.needed():
            filler = ["1"] * _WORDS[command][1]
            tried = [*([RIGHTS] if _WORDS[command][0] else []), *filler]
            words += [command, len(tried), *tried]
        return self._call("rights", [RIGHTS], *words)

    def needed(self) -> list[str]:
        """Return the commands that a worker's scripts run, in order; DEL last, which ends the key they are tried on."""
        named = {name for script in _WORKING for name in re.findall(r"'([A-Z]{3,})'", self._texts[script])}
        return sorted((named & _WORDS.keys()) | _OF_RQ, key=lambda name: (name == "DEL", name))

    def budget(
        self,
        keys: Sequence[str],
        token: str,
        number: int,
        wanted: int,
        least: int,
        budget: int,
        term: float,
        wish: float,
        gone: Iterable[str],
    ) -> Command:
        """Reserve ``wanted`` connections of a budget, or at least ``least``; ``gone`` are tokens of ended processes."""
        return self._call("budget", keys, token, number, wanted, least, budget, term, wish, *gone)

    def sample(self, connected: int, maxclients: int, interval: float) -> Command:
        """Note the number of clients, unless that was done less than ``interval`` seconds ago."""
        return self._call("sample", [SAMPLES], connected, maxclients, interval)

    def scheduler_due(self, token: str, lock_ttl: int) -> Command:
        """Take rq-scheduler's lock with this value if one of its jobs is due."""
        return self._call("scheduler_due", (SCHEDULED_JOBS, SCHEDULER_LOCK), token, lock_ttl)

    def move(
        self,
        queue_key: str,
        lock: tuple[str, int] | None,
        job_id: str,
        due: float | None,
        next_time: int | None,
        at_front: bool,
        ttl: int | None,
        dependencies: Sequence[str],
        fields: Sequence[Word],
    ) -> Command:
        """Move a job of rq-scheduler, if it is still due then and the lock, (its value, seconds), is still ours."""
        token, life = lock or ("", 0)
        times = ("" if due is None else repr(float(due)), "" if next_time is None else next_time)
        words = (token, life, job_id, *times, "L" if at_front else "R", ttl or -1, len(dependencies), *dependencies)
        return self._call("move", (SCHEDULED_JOBS, SCHEDULER_LOCK, queue_key), *words, *fields)

    def unlock(self, lock: str, token: str) -> Command:
        """Give back a lock that has this value while it is ours."""
        return self._call("unlock", (lock,), token)

    def limit(self, queue: str, who: str, written: str) -> Command:
        """Change the limit of a queue: by its ``code``, an ``operator``, or ``clear`` it."""
        return self._call("limit", (LIMITS, DECLARED_LIMITS), queue, who, written)

    def enqueue(
        self,
        queue_key: str,
        max_length: int | None,
        replace: bool,
        once: str | None,
        unique: str | None,
        unique_for: float,
        now: str,
        jobs: Iterable[tuple[str, bool, int | None, Sequence[Word], tuple[str, int]]],
    ) -> Command:
        """Enqueue jobs, each (id, at front, ttl, field and value ..., limit), all or none; the keys are as in the
        header.
        """
        limit = -1 if max_length is None else max_length
        words: list[Word] = [limit, int(replace), once or "", unique or "", max(1, round(unique_for * 1000)), now]
        for job_id, at_front, ttl, fields, limit_of_job in jobs:
            words += [job_id, "L" if at_front else "R", ttl or -1, len(fields), *fields, *limit_of_job]
        return self._call("enqueue", (queue_key,), *words)

    def register(
        self,
        worker_ttl: int,
        again: bool,
        dead: tuple[str, int],
        queues: Sequence[str],
        slots: Iterable[tuple[str, Mapping[str, Word]]],
    ) -> Command:
        """Register slots, each (worker name, its hash); ``dead`` is (host, pid) of a process whose names are free."""
        words: list[Word] = []
        for name, fields in slots:
            words += [name, 2 * len(fields), *(word for field in fields.items() for word in field)]
        return self._call("register", (), min(worker_ttl, LONGEST), int(again), *dead, len(queues), *queues, *words)

    def unregister(self, now: str, scheduler: str, queues: Sequence[str], names: Iterable[str]) -> Command:
        """Register the death of these workers and release the scheduler's locks."""
        return self._call("unregister", (), now, scheduler, len(queues), *queues, *names)

    def push_back(self, now: str, token: str, max_stalls: int, begun: bool, claims: Iterable[Sequence[str]]) -> Command:
        """Undo claims, each (job, execution, wip queue, worker name, queue key); ``begun`` counts as a stall."""
        words = (word for claim in claims for word in claim)
        return self._call("push_back", (), now, claims_key(token), max_stalls, int(begun), *words)

    def stalled(
        self,
        queue_keys: Sequence[str],
        now: str,
        now_seconds: float,
        lease: float,
        abandon_after: int,
        max_stalls: int,
        interval: float,
        token: str,
        name: str,
        limit: int,
        valid_until: float,
        executions: Iterable[str],
    ) -> Command:
        """Put jobs back whose lease is over; claim those that stalled too often, under these execution ids."""
        limits = (lease, abandon_after, max_stalls, max(1, int(interval * 1000)), claims_key(token), name, limit)
        return self._call("stalled", queue_keys, now, now_seconds, *limits, valid_until, *executions)

    def intermediate(self, queue_keys: Sequence[str], age: float) -> Command:
        """Rescue ids that were left in intermediate lists for ``age`` seconds."""
        return self._call("intermediate", queue_keys, age)

    def ready(self, queue_keys: Sequence[str], age: float, now: str) -> Command:
        """Queue dependents that have been ready for ``age`` seconds; only stock workers of RQ 3 leave such."""
        return self._call("ready", queue_keys, age, now)

    def postpone(self, queue_keys: Sequence[str], abandon_after: int) -> Command:
        """Keep RQ's clean-up from claims with a lease of ours, once each."""
        return self._call("postpone", queue_keys, abandon_after)

    def ghosts(self, registry: str, cursor: str, count: int, owner: str, lock_ttl: int) -> Command:
        """Remove one page of a registry's entries without a job."""
        return self._call("ghosts", (registry,), cursor, count, owner, lock_ttl)

    def executions(self, cursor: str, count: int, owner: str, lock_ttl: int) -> Command:
        """Remove one page of executions that are half deleted or without a job."""
        return self._call("executions", (), cursor, count, owner, lock_ttl)

    def rescue(self, apply: bool, jobs: Iterable[tuple[str, str]]) -> Command:
        """Put queued jobs that stand in no list back, each (id, its enqueued_at); or only tell which."""
        return self._call("rescue", (), int(apply), *(word for job in jobs for word in job))

    # -- failed jobs ---------------------------------------------------------------------------------------------

    def failed_page(
        self, registry: str, lock: SweepLock, place: tuple[str, int, str], limit: int, max_bytes: int, with_data: bool
    ) -> Command:
        """Read the entries after ``place``: (score, entries with it that were seen, the last of them)."""
        return self._call(
            "failed_page", (registry, lock.key), lock.owner, lock.ttl, *place, limit, max_bytes, int(with_data)
        )

    def failed_requeue(
        self,
        registry: str,
        lock: SweepLock,
        now: str,
        empty: bytes,
        default_timeout: int,
        at_front: bool,
        times: int | None,
        queue: str,
        retries: int | None,
        jobs: Iterable[tuple[str, str, str]],
    ) -> Command:
        """Requeue jobs, each (id, its ended_at or 'any', when it is due or '')."""
        limits = ("" if times is None else times, queue, "" if retries is None else retries)
        words = [word for job in jobs for word in job]
        head = (lock.owner, lock.ttl, now, empty, default_timeout, int(at_front), *limits)
        return self._call("failed_requeue", (registry, lock.key), *head, *words)

    def failed_bury(
        self, registry: str, lock: SweepLock, dead: str, age: int, jobs: Iterable[tuple[str, str]]
    ) -> Command:
        """Move jobs, each (id, its ended_at or 'any'), to the dead letters for ``age`` seconds."""
        words = [word for job in jobs for word in job]
        return self._call("failed_bury", (registry, lock.key, dead), lock.owner, lock.ttl, age, *words)

    def failed_purge(self, registry: str, lock: SweepLock, jobs: Iterable[tuple[str, str]]) -> Command:
        """Delete jobs, each (id, its ended_at or 'any')."""
        words = [word for job in jobs for word in job]
        return self._call("failed_purge", (registry, lock.key), lock.owner, lock.ttl, *words)

    def failed_ghosts(self, registry: str, lock: SweepLock, start: int, limit: int, dry_run: bool) -> Command:
        """Remove entries without a job among those from rank ``start`` on."""
        return self._call("failed_ghosts", (registry, lock.key), lock.owner, lock.ttl, start, limit, int(dry_run))

    def failed_unlock(self, lock: SweepLock) -> Command:
        """Give up the lock."""
        return self._call("failed_unlock", (lock.key,), lock.owner)


@cache
def shared_scripts() -> Scripts:
    """Return the scripts, read once per process; for whoever sends one now and then."""
    return Scripts()
