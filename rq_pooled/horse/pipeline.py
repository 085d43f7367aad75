"""A redis-py pipeline that never uses a connection: it hands what is queued to a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from redis import Redis
from redis.client import Pipeline

from .dependents import members_of


class Backend(Protocol):
    """What a pipeline hands its commands to; each is given as redis-py's (arguments, options)."""

    def answer(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Return the reply to one command, at once."""

    def play(self, stack: list[tuple[Sequence[Any], dict[str, Any]]]) -> list[Any]:
        """Do what was queued and return the replies; may raise WatchError."""

    def watch(self, names: Sequence[Any]) -> None:
        """Guard these keys until the next ``play`` or ``unwatch``."""

    def unwatch(self) -> None:
        """Guard nothing any more."""


class HandedPipeline(Pipeline):
    """Queues and answers as redis-py's Pipeline does, between WATCH and MULTI at once, on a backend."""

    def __init__(self, client: Redis, backend: Backend) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, True, None)
        self._client = client
        self._backend = backend

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Answer at once or queue."""
        if self.watching and not self.explicit_transaction:
            return self._backend.answer(args, options)
        self.command_stack.append((args, options))
        return self

    def smembers(self, name: str) -> Any:  # type: ignore[override] # RQ's sets are of ids, which are text
        """Answer or queue; what is answered at once are dependents and dependencies, and those that are text."""
        if self.watching and not self.explicit_transaction:
            return members_of(name, lambda: super(HandedPipeline, self).smembers(name))
        return super().smembers(name)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        """Return another pipeline of this kind; RQ asks a watching pipeline for one."""
        return HandedPipeline(self._client, self._backend)

    def watch(self, *names: Any) -> None:
        """Answer at once from here on."""
        self._backend.watch(names)
        self.watching = True

    def unwatch(self) -> Any:
        """Queue from here on; as in redis-py the return value says nothing."""
        if self.watching:
            self._backend.unwatch()
        self.watching = False
        return True

    def multi(self) -> None:
        """Queue from here on, under what is watched."""
        self.explicit_transaction = True

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Hand over what was queued and return the replies."""
        stack, self.command_stack = list(self.command_stack), []
        if not stack:
            self.reset()
            return []
        self.watching = self.explicit_transaction = False
        return self._backend.play(stack)

    def reset(self) -> None:  # type: ignore[override] # redis-py's annotations mix it up with the RESET command
        """Forget what was queued and watched."""
        if getattr(self, "watching", False):
            self._backend.unwatch()
        self.command_stack: list[Any] = []
        self.watching = False
        self.explicit_transaction = False
