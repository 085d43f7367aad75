"""Defines sentries: which of the idle workers of a set of queues hears of a job, and how the others are told.

One worker of each set of queues has the server say when they change. The others sleep in a sorted set. A claim that
gives the sentry a job, or leaves work, takes the next one off that set and makes it the sentry, by a message over its
control channel; see hand_on.lua.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from ..wire import Command
from .keys import SENTRY, SLEEPERS, commands_channel
from .scripts import call

#: Milliseconds for which a sentry is one after its last sign of life.
SENTRY_LIFE = 7500
#: Milliseconds after which a set of sleepers is removed that no worker joined.
SLEEPERS_LIFE = 3_600_000


class Post(NamedTuple):
    """The sentry's post of a set of queues, as one worker sees it."""

    #: Names the workers of a set of queues, in whatever order they serve these.
    crew: str
    #: The control channel by which the worker is told.
    channel: str

    @classmethod
    def of(cls, queues: Sequence[str], name: str) -> Post:
        """Return the post of the worker with this name, which serves these queues."""
        words = "\0".join(sorted(set(queues)))
        return cls(hashlib.sha1(words.encode(errors="surrogatepass")).hexdigest()[:16], commands_channel(name))

    @property
    def sentry_key(self) -> str:
        """The text that names the sentry's channel."""
        return f"{SENTRY}{self.crew}"

    @property
    def sleepers_key(self) -> str:
        """The sorted set of the channels of those who sleep."""
        return f"{SLEEPERS}{self.crew}"

    def doze(self, busy: int) -> Command:
        """Become the sentry where there is none, else a sleeper; those with fewer ``busy`` slots are woken first."""
        return call("doze", [self.sentry_key, self.sleepers_key], self.channel, busy, SENTRY_LIFE, SLEEPERS_LIFE)

    def stay(self) -> list[Command]:
        """Ask who is the sentry, and give it time."""
        return [("GET", self.sentry_key), ("PEXPIRE", self.sentry_key, SENTRY_LIFE)]

    def take(self) -> Command:
        """Be the sentry in the place of one that heard of nothing."""
        return ("SET", self.sentry_key, self.channel, "PX", SENTRY_LIFE)

    def leave(self) -> Command:
        """Sleep no more."""
        return ("ZREM", self.sleepers_key, self.channel)
