"""Lets a horse talk to Redis through the parent's command connection, for RQ's maintenance code.

Maintenance has to run where user code may run (RQ calls failure callbacks of abandoned jobs in it), and must not cost
a connection. The horse sends simple commands to the parent, which executes them between its own; everything else
(blocking commands, PubSub, scripts that a callback might use) goes over a connection of the horse's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError, WatchError

from .channel import ChildChannel
from .recorder import READS, Recorder

#: Commands that return at once and change what RQ's registries are made of.
_SIMPLE = READS | frozenset(
    b"DEL EXPIRE HDEL HSET LPUSH LREM PERSIST RPUSH SADD SET SREM XADD ZADD ZREM ZREMRANGEBYRANK ZREMRANGEBYSCORE "
    b"WATCH UNWATCH MULTI EXEC".split()
)


class Relay:
    """Carries a recorder's commands to the parent and back.

    WATCH works since only one horse at a time does maintenance, and the parent itself never uses MULTI.
    """

    def __init__(self, channel: ChildChannel) -> None:
        self._channel = channel

    @contextlib.contextmanager
    def carry(self, recorder: Recorder) -> Iterator[None]:
        """Send the recorder's simple commands through the parent inside the block."""
        recorder.relay = self
        try:
            yield
        finally:
            recorder.relay = None

    def pipeline(self, recorder: Recorder) -> Pipeline:
        """Return a pipeline that travels this way."""
        return RelayPipeline(recorder, self)

    def takes(self, name: str) -> bool:
        """Tell whether the command is a simple one."""
        return name.encode() in _SIMPLE

    def execute(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Have the parent execute ``commands`` in one round trip; error replies are returned as ResponseError.

        Raises:
            redis.exceptions.ConnectionError: the parent has lost the server.
        """
        self._channel.send(("relay", [list(words) for words in commands]))
        _kind, replies = self._channel.receive()
        if isinstance(replies, str):
            raise RedisConnectionError(replies)
        return [ResponseError(reply[1]) if isinstance(reply, tuple) else reply for reply in replies]


class RelayPipeline(Pipeline):
    """A MULTI/EXEC pipeline whose commands travel through the relay."""

    def __init__(self, recorder: Recorder, relay: Relay) -> None:
        super().__init__(recorder.connection_pool, recorder.response_callbacks, True, None)
        self._recorder = recorder
        self._relay = relay

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Answer at once between WATCH and MULTI, as redis-py does; queue otherwise."""
        if self.watching and not self.explicit_transaction:
            return self._recorder.relay_command(self._relay, args, options)
        self.command_stack.append((args, options))
        return self

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        """Return another pipeline of this kind."""
        return RelayPipeline(self._recorder, self._relay)

    def watch(self, *names: Any) -> bool:
        """Watch keys until ``execute`` or ``reset``."""
        self._recorder.relay_command(self._relay, ("WATCH", *names), {})
        self.watching = True
        return True

    def multi(self) -> None:
        """Queue from here on."""
        self.explicit_transaction = True

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send what was queued as one transaction. Raises WatchError when a watched key changed."""
        stack, self.command_stack = list(self.command_stack), []
        if not stack:
            self.reset()
            return []
        self.watching = self.explicit_transaction = False
        words = [self._recorder.encode(args) for args, _ in stack]
        replies = self._relay.execute([[b"MULTI"], *words, [b"EXEC"]])[-1]
        if isinstance(replies, Exception):
            raise replies
        if replies is None:
            raise WatchError("a watched key changed")
        return [self._recorder.parse(args, options, reply) for (args, options), reply in zip(stack, replies)]

    def reset(self) -> None:
        """Forget what was queued and watched."""
        if getattr(self, "watching", False):
            self._recorder.relay_command(self._relay, ("UNWATCH",), {})
        self.command_stack: list[Any] = []
        self.watching = False
        self.explicit_transaction = False
