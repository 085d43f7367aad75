"""A Redis client that can write down what RQ's handlers want to change instead of doing it.

A horse runs RQ's own success, failure and retry handlers. Meanwhile the client *records*. Writes go to a tape, which is
the outcome of the job. Reads are answered from what the claim is known to have written. All others go to the server
through the parent, each with a digest that guards the commit against a change in between. Outside of a recording the
client is a plain one: user code that is handed ``job.connection`` reaches the real server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from threading import get_ident, main_thread
from typing import Any

from redis import Redis
from redis.client import Pipeline

from ..rq_api import RATE_LIMIT_HASHES, dependents_at_once
from .pipeline import HandedPipeline
from .tape import Tape

#: Commands that change nothing. What is not listed counts as a write, and is recorded.
READS = frozenset(
    b"EXISTS GET GETRANGE HEXISTS HGET HGETALL HKEYS HLEN HMGET HSTRLEN HVALS INFO LINDEX LLEN LPOS LRANGE MGET PTTL "
    b"SCARD SISMEMBER SMEMBERS SMISMEMBER STRLEN TIME TTL TYPE XLEN XRANGE XREVRANGE ZCARD ZCOUNT ZMSCORE ZRANGE "
    b"ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYSCORE ZREVRANK ZSCORE".split()
)
#: Commands that no outcome can hold, since the script that records it cannot run them: sent at once.
_NEVER_RECORDED = frozenset(b"EVAL EVAL_RO EVALSHA EVALSHA_RO FCALL FCALL_RO FUNCTION SCRIPT XREAD XREADGROUP".split())


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

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Relay nothing inside the block: a user's code has the rights of jobs, and not those of the worker."""
        relay, self.relay = self.relay, None
        try:
            yield
        finally:
            self.relay = relay

    @property
    def recording(self) -> bool:
        """Tell whether commands of this thread are recorded."""
        return self._recording_in == get_ident()

    @property
    def _relays(self) -> bool:
        return self.relay is not None and self.relay.thread == get_ident()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Record, relay, or send to the server."""
        if self.recording:
            return self.answer(args, options)
        if self._relays and self.relay.takes(args):
            return self.relay.answer(args, options)
        if args[0] == "PERSIST" and args[1] == self.running:
            return 1
        if self.outcome is not None and self.outcome.decided:
            return self._after_decision(self.outcome, args, options)
        return super().execute_command(*args, **options)

    def _after_decision(self, outcome: Tape, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Do a command of code that runs after RQ's handler: to it the job's outcome is a fact.

        A pipeline is answered by the server: RQ uses one for the status of dependencies. A job that is enqueued with
        ``depends_on`` this one waits for the record, which finds it among the dependents.
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
        if self._relays:
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
        """Record what a pipeline has queued.

        Its reads are asked for together, since RQ queues one for each dependency.
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
        # redis-py's own client-side cache reads them, its callbacks do not.
        options.pop("keys", None)
        return callback(reply, **options)


def make_recorder(client_class: type[Redis], connection_pool: Any, server_version: tuple[int, int, int]) -> Recorder:
    """Return a recorder that is also an instance of ``client_class``; it connects only when user code uses it."""
    kind = Recorder if client_class is Redis else type("Recorder", (Recorder, client_class), {})
    recorder: Recorder = kind(connection_pool=connection_pool)
    # Where RQ's get_version keeps what it has asked INFO for, so that it does not ask.
    setattr(recorder, "__rq_redis_server_version", server_version)
    return recorder
