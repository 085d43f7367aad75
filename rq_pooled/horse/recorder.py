"""A Redis client that can write down what RQ's handlers want to change instead of doing it.

A horse runs RQ's own success, failure and retry handlers; while it does, the client *records*: writes go to a tape,
reads are answered from what the claim is known to have written or else by the server (through the parent, each with a
digest that guards the commit against a change in between). The tape is the outcome of the job. Outside of a recording
the same client is a plain one: user code that is handed ``job.connection`` reaches the real server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from threading import get_ident, main_thread
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq.job import Job
from rq.results import Result

from ..rq_api import RATE_LIMIT_HASHES, dependents_at_once
from .effects import Effects
from .pipeline import HandedPipeline

#: Answers reads on behalf of a recording: takes encoded commands, returns (digest, raw reply) for each.
Reader = Callable[[Sequence[Sequence[bytes]]], list[tuple[bytes, Any]]]

#: Commands that change nothing. What is not listed counts as a write, and is recorded.
READS = frozenset(
    b"EXISTS GET GETRANGE HEXISTS HGET HGETALL HKEYS HLEN HMGET HSTRLEN HVALS INFO LINDEX LLEN LPOS LRANGE MGET PTTL "
    b"SCARD SISMEMBER SMEMBERS SMISMEMBER STRLEN TIME TTL TYPE XLEN XRANGE XREVRANGE ZCARD ZCOUNT ZMSCORE ZRANGE "
    b"ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYSCORE ZREVRANK ZSCORE".split()
)
#: Commands that no outcome can hold, since the script that records it cannot run them: sent at once.
_NEVER_RECORDED = frozenset(b"EVAL EVAL_RO EVALSHA EVALSHA_RO FCALL FCALL_RO FUNCTION SCRIPT XREAD XREADGROUP".split())
#: Writes to its own hash of a job whose outcome is decided: they join it, since it would write over them.
_JOINING = frozenset(b"HSET HMSET HDEL".split())
#: Reads that are asked for in one step.
_MAX_READS = 200
#: Most words of one recorded command: Lua cannot unpack more than some 8000 values at once.
_MAX_WORDS = 4000
_SPLITTABLE = frozenset((b"SREM", b"SADD", b"ZREM", b"DEL", b"UNLINK"))


class Tape:
    """What one execution's handlers wrote, and what they relied on.

    Args:
        job_id, execution_id: the claim.
        execution: gives the fields of the execution's hash, as the claim script wrote them.
        read: answers all other reads.
    """

    def __init__(
        self,
        job_id: str,
        execution_id: str,
        execution: Callable[[], dict[str, Any]],
        read: Reader,
    ) -> None:
        #: The job succeeded; its status does not tell, for one that repeats is scheduled then.
        self.succeeded = False
        #: A handler of RQ's has returned: what the tape holds is a whole outcome.
        self.complete = False
        self.commands: list[list[Any]] = []
        self.guards: list[tuple[bytes, list[bytes]]] = []
        self.job_id = job_id
        self._read = read
        self._job_key = Job.key_for(job_id).encode()
        self._dependents_key = Job.dependents_key_for(job_id).encode()
        self.status = b"started"
        self._execution_id = execution_id
        self._execution = execution
        #: Guard only what RQ itself watches: the dependents, and the status of other jobs.
        self.tolerant = False
        #: It has been handed to the parent: nothing can be added any more.
        self.delivered = False
        #: What the job is read by.
        self._own_keys = (self._job_key, Result.get_key(job_id).encode())
        #: The command of a plain success, and what returns those that it stands for.
        self._plain: tuple[list[Any], Callable[[], list[list[bytes]]]] = ([], list)
        #: The effects of the commands, and of how many.
        self._effects, self._followed = Effects(), 0
        #: Replies to reads that were asked for together: (what guards the commit, its digest, the reply).
        self._ahead: dict[tuple[bytes, ...], tuple[list[bytes], bytes, Any]] = {}

    @cached_property
    def _known(self) -> dict[tuple[bytes, ...], Any]:
        """The replies to reads that need not be sent; made when there is a first read, since most jobs need none."""
        job_id, execution_id = self.job_id.encode(), self._execution_id.encode()
        flat = [part.encode() for field in self._execution().items() for part in map(str, field)]
        return {
            (b"ZRANGE", b"rq:executions:" + job_id, b"0", b"-1"): [execution_id],
            (b"HGETALL", b"rq:execution:" + job_id + b":" + execution_id): flat,
            # Dependents are enqueued in a step of their own, see expect_dependents: here there are none, and the commit
            # looks whether that is true.
            (b"SMEMBERS", self._dependents_key): [],
        }

    def answer(self, words: list[bytes]) -> Any:
        """Return the raw reply to a read."""
        command = tuple(words)
        if command == (b"HGET", self._job_key, b"status"):
            return self.status
        if command in self._known:
            none = (b"0", [b"EXISTS", self._dependents_key])
            if words[1] == self._dependents_key and none not in self.guards:
                self.guards.append(none)
            return self._known[command]
        if command not in self._ahead:
            self._ask([words])
        guard, digest, reply = self._ahead.pop(command)
        if words[0] != b"TIME" and not (self.tolerant and not _is_watched(guard)):
            self.guards.append((digest, guard))
        return reply

    def foresee(self, reads: Sequence[list[bytes]]) -> None:
        """Ask for all of these reads that are not known in few steps; ``answer`` then gives the replies."""
        known = (b"HGET", self._job_key, b"status")
        unknown = [words for words in reads if tuple(words) not in self._known and tuple(words) != known]
        for start in range(0, len(unknown), _MAX_READS):
            self._ask(unknown[start : start + _MAX_READS])

    def _ask(self, reads: Sequence[list[bytes]]) -> None:
        """Ask the server, and note what guards the commit: the read itself, but of a whole job its status.

        RQ reads the dependents' hashes and does not watch them: who writes to their meta all the time must not keep
        them from being enqueued. That one was cancelled or deleted meanwhile does count.
        """
        statuses = [[b"HGET", words[1], b"status"] for words in reads if _is_job(words)]
        answers = iter(self._read([*reads, *statuses]))
        replies = [next(answers) for _ in reads]
        guards = zip(statuses, answers)
        for words, (digest, reply) in zip(reads, replies):
            guard = words
            if _is_job(words):
                guard, (digest, _status) = next(guards)
            self._ahead[tuple(words)] = (guard, digest, reply)

    def read(self, words: list[bytes], ask: Callable[[], Any]) -> Any:
        """Return the reply to a read as redis-py returns it, by what is on the tape and what ``ask`` gives."""
        plain, written = self._plain
        for command in self.commands[self._followed :]:
            for done in written() if command is plain else [command]:
                self._effects.write(done)
        self._followed = len(self.commands)
        return self._effects.read(words, ask)

    @property
    def decided(self) -> bool:
        """Tell whether it holds an outcome."""
        return bool(self.commands)

    def is_own(self, words: Sequence[bytes]) -> bool:
        """Tell whether a command is about the job's hash or its results."""
        return any(key in words[1:] for key in self._own_keys)

    def joins(self, words: Sequence[bytes]) -> bool:
        """Tell whether a write is to become part of the outcome that is decided."""
        return not self.delivered and words[0] in _JOINING and words[1] == self._job_key

    def plain(self, command: list[Any], written: Callable[[], list[list[bytes]]] = list) -> None:
        """Take the command of a success that knows of no dependents; its words need no encoding yet.

        Args:
            written: returns the commands that it stands for.
        """
        self._plain = (command, written)
        self._effects, self._followed = Effects(), 0
        self.guards = [(b"0", [b"EXISTS", self._dependents_key])]
        self.commands = [command]
        self.status = b"finished"
        self.succeeded = True

    def ask_for_dependents(self) -> None:
        """From here on ask the server for the dependents, and let what it says guard the commit."""
        self._known.pop((b"SMEMBERS", self._dependents_key), None)

    def expect_dependents(self) -> None:
        """Begin anew, and ask for the dependents."""
        self.ask_for_dependents()
        self.guards, self.commands = [], []
        self._effects, self._followed = Effects(), 0

    def write_first(self, words: list[bytes]) -> None:
        """Record a write that is done before all others."""
        self.commands.insert(0, words)
        self._effects, self._followed = Effects(), 0

    def write(self, words: list[bytes]) -> None:
        """Record a write."""
        if words[1:2] == [self._job_key] and words[0] in (b"HSET", b"HMSET") and b"status" in words[2::2]:
            self.status = words[words.index(b"status", 2) + 1]
        if len(words) > _MAX_WORDS and words[0] in _SPLITTABLE:
            head = 1 if words[0] in (b"DEL", b"UNLINK") else 2
            for start in range(head, len(words), _MAX_WORDS):
                self.commands.append(words[:head] + words[start : start + _MAX_WORDS])
        else:
            self.commands.append(words)


def _is_job(words: Sequence[bytes]) -> bool:
    return words[0] == b"HGETALL" and words[1].startswith(Job.redis_job_namespace_prefix.encode())


def _is_watched(words: Sequence[bytes]) -> bool:
    return words[0] == b"SMEMBERS" or (words[0] == b"HGET" and words[2:] == [b"status"])


class Recorder(Redis):
    """A Redis client with a switch: live, recording, or relayed. Mixed over the user's own client class."""

    tape: Tape | None = None
    #: The tape of the job that runs, also when nothing is being recorded.
    outcome: Tape | None = None
    #: The thread whose commands are recorded; those of others, which a job has left behind, go to the server.
    _recording_in: int | None = None
    relay: Any = None
    #: Key of the job that runs: RQ makes it persistent when it begins, which the claim has already done.
    running: str | None = None

    @contextlib.contextmanager
    def record_to(self, tape: Tape) -> Iterator[Tape]:
        """Record inside the block; RQ's second step for dependents would read what the tape only holds."""
        self.tape, self._recording_in, outer = tape, get_ident(), self._recording_in
        try:
            with dependents_at_once():
                yield tape
        finally:
            self._recording_in = outer

    @property
    def recording(self) -> bool:
        """Tell whether commands of this thread are recorded."""
        return self._recording_in == get_ident()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Record, relay, or send to the server."""
        if self.recording:
            return self.answer(args, options)
        if self.relay is not None and self.relay.takes(args):
            return self.relay.answer(args, options)
        if args[0] == "PERSIST" and args[1] == self.running:
            return 1
        if self.outcome is not None and self.outcome.decided:
            return self._after_decision(self.outcome, args, options)
        return super().execute_command(*args, **options)

    def _after_decision(self, outcome: Tape, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Do a command of code that runs after RQ's handler: to it the job's outcome is a fact.

        Not in pipelines, which RQ uses for the status of dependencies: a job that is enqueued with ``depends_on`` this
        one now waits for the record, which finds it among the dependents.
        """
        words = self.encode(args)
        if outcome.is_own(words):
            if words[0] in READS or words[0] == b"XREAD":
                return outcome.read(words, lambda: super(Recorder, self).execute_command(*args, **options))
            if outcome.joins(words) and get_ident() == main_thread().ident:
                outcome.write(words)
                return 1
        return super().execute_command(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        """Return a pipeline of the kind that the switch asks for."""
        if self.recording:
            return HandedPipeline(self, self)
        if self.relay is not None:
            return HandedPipeline(self, self.relay)
        return super().pipeline(transaction, shard_hint)

    def answer(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Answer a read, or record a write and answer 1, which RQ's handlers never look at."""
        assert self.tape is not None
        tape, words = self.tape, self.encode(args)
        if words[0] in READS:
            return tape.read(words, lambda: self.parse(args, options, tape.answer(words)))
        if words[0] in _NEVER_RECORDED and not (words[0] == b"EVALSHA" and words[1] in RATE_LIMIT_HASHES):
            return tape.read(words, lambda: super(Recorder, self).execute_command(*args, **options))
        tape.write(words)
        # A list is what RQ's own scripts for rate limits answer, see rq_api.py.
        return [] if words[0] == b"EVALSHA" else 1

    def play(self, stack: list[tuple[Sequence[Any], dict[str, Any]]]) -> list[Any]:
        """Record what a pipeline has queued; its reads are asked for together, for RQ queues one for each
        dependency.
        """
        assert self.tape is not None
        reads = [self.encode(args) for args, _ in stack if self.encode(args[:1])[0] in READS]
        if len(reads) > 1:
            self.tape.foresee(reads)
        return [self.answer(args, options) for args, options in stack]

    def watch(self, names: Sequence[Any]) -> None:  # type: ignore[override] # of a pipeline, which gives one list
        """Do nothing: the claim fences the commit, and guards take the place of watched keys."""

    def unwatch(self) -> None:
        """Do nothing, see ``watch``."""

    def encode(self, args: Sequence[Any]) -> list[bytes]:
        """Return the words as they would be sent."""
        encode = self.connection_pool.get_encoder().encode
        return [encode(arg) for arg in args]

    def parse(self, args: Sequence[Any], options: dict[str, Any], reply: Any) -> Any:
        """Return a raw reply as redis-py returns it to callers."""
        callback = self.response_callbacks.get(args[0])
        if callback is None:
            return reply
        options.pop("keys", None)  # for redis-py's own client-side cache
        return callback(reply, **options)


def make_recorder(client_class: type[Redis], connection_pool: Any, server_version: tuple[int, int, int]) -> Recorder:
    """Return a recorder that is also an instance of ``client_class``; it connects only when user code uses it."""
    kind = Recorder if client_class is Redis else type("Recorder", (Recorder, client_class), {})
    recorder: Recorder = kind(connection_pool=connection_pool)
    # Where RQ's get_version keeps what it has asked INFO for, so that it does not ask.
    setattr(recorder, "__rq_redis_server_version", server_version)
    return recorder
