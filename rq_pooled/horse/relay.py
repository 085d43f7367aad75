"""Lets a horse talk to Redis through the parent's command connection, for RQ's maintenance code.

Maintenance has to run where user code may run (RQ calls failure callbacks of abandoned jobs in it), and must not cost
a connection. The horse sends simple commands to the parent, which executes them between its own. Everything else
(blocking commands, PubSub, all that a user's callback or handler sends) goes over a connection of the horse's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from threading import get_ident
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError, WatchError
from rq.job import Job

from ..process.channel import ChildChannel
from ..rq_api import RATE_LIMIT_HASHES
from ..store.commit import guarded_reads
from ..wire import Command, pack_commands
from .large import LARGE, LargeValues
from .recorder import READS, Recorder

#: Commands that return at once and change what RQ's registries are made of.
_SIMPLE = READS | frozenset(
    b"DEL EXPIRE HDEL HSET LPUSH LREM PERSIST RPUSH SADD SET SREM XADD ZADD ZREM ZREMRANGEBYRANK ZREMRANGEBYSCORE "
    b"WATCH UNWATCH MULTI EXEC".split()
)
_JOB = Job.redis_job_namespace_prefix.encode()


class Relay:
    """Carries a recorder's commands to the parent and back; the backend of its pipelines meanwhile.

    WATCH works since only one horse at a time does maintenance, and the parent itself never uses MULTI.

    Args:
        channel, recorder: as the names say.
        large: for what would hold up the parent's connection; None where nothing large is asked for.
    """

    def __init__(self, channel: ChildChannel, recorder: Recorder, large: LargeValues | None = None) -> None:
        self._channel = channel
        self._recorder = recorder
        self._large = large
        #: The thread whose commands are carried: those that a job has left behind talk to the server themselves.
        self.thread: int | None = None

    @contextlib.contextmanager
    def carry(self) -> Iterator[None]:
        """Send the recorder's simple commands through the parent inside the block."""
        self._recorder.relay, self.thread = self, get_ident()
        try:
            yield
        finally:
            self._recorder.relay = None

    def takes(self, args: Sequence[Any]) -> bool:
        """Tell whether the command is a simple one, or a call of RQ's own scripts for rate limits."""
        if args[0] == "EVALSHA":
            return str(args[1]).encode() in RATE_LIMIT_HASHES
        return str(args[0]).encode() in _SIMPLE

    def answer(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Have one command executed by the parent."""
        words = self._recorder.encode(args)
        if self._large is not None and words[0] == b"HGETALL" and words[1].startswith(_JOB):
            return self._recorder.parse(args, options, self._read_job(words, self._large))
        (reply,) = self._execute([words])
        if isinstance(reply, Exception):
            raise reply
        return self._recorder.parse(args, options, reply)

    def _read_job(self, words: list[bytes], large: LargeValues) -> Any:
        """Return a job's hash, its large fields over another connection."""
        evalsha, script, *_ = guarded_reads(())
        (reply,) = self._execute([self._recorder.encode([evalsha, script, 0, len(words), *words])])
        if isinstance(reply, Exception):
            raise reply
        _digest, found, *left_out = reply[0]
        return large.complete(found, words[1], *left_out) if left_out else found

    def run_script(self, command: Command) -> Any:
        """Have the parent send the call of a script; one that is large goes another way, and may be done twice."""
        if self._large is not None and len(pack_commands([command])) > LARGE:
            return self._large.run(command)
        (reply,) = self._execute([self._recorder.encode(command)])
        if isinstance(reply, Exception):
            raise reply
        return reply

    def play(self, stack: list[tuple[Sequence[Any], dict[str, Any]]]) -> list[Any]:
        """Have a transaction executed by the parent. Raises WatchError when a watched key has changed."""
        words = [self._recorder.encode(args) for args, _ in stack]
        replies = self._execute([[b"MULTI"], *words, [b"EXEC"]])[-1]
        if self._large is not None:
            # RQ reads jobs, then writes them in one transaction.
            self._large.known.clear()
        if isinstance(replies, Exception):
            raise replies
        if replies is None:
            raise WatchError("a watched key has changed")
        # As redis-py does; the others have been executed.
        if error := next((reply for reply in replies if isinstance(reply, Exception)), None):
            raise error
        return [self._recorder.parse(args, options, reply) for (args, options), reply in zip(stack, replies)]

    def execute(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Have the parent execute any commands that return soon, and return raw replies; see ``_execute``."""
        return self._execute([self._recorder.encode(words) for words in commands])

    def watch(self, names: Sequence[Any]) -> None:
        """Have keys watched on the parent's connection."""
        self.answer(("WATCH", *names), {})

    def unwatch(self) -> None:
        """End that."""
        self.answer(("UNWATCH",), {})

    def _execute(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Have the parent execute ``commands`` in one write; error replies are returned as ResponseError.

        Raises:
            redis.exceptions.ConnectionError: the parent has lost the server.
        """
        if self._large is not None:
            commands = [self._large.lighten(words) for words in commands]
        _kind, replies = self._channel.ask(("relay", [list(words) for words in commands]))
        if isinstance(replies, str):
            raise RedisConnectionError(replies)
        return [_raisable(reply) for reply in replies]


def _raisable(reply: Any) -> Any:
    """Return a reply with the errors in it, which came as tuples."""
    if isinstance(reply, list):
        return [_raisable(one) for one in reply]
    return ResponseError(reply[1]) if isinstance(reply, tuple) else reply
