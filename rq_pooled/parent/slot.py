"""One slot of a worker, with its horse and the task that it has."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..multiplexer.streams import Guest
from ..process.prefork import Horse, Unexpected
from ..store.claim import Claim

#: The tasks in which RQ's own code asks the server through the parent; in others a horse asks this about large values.
_RELAYED, _ABOUT_LARGE = ("maintain", "schedule"), (b"HSTRLEN", b"PING")


@dataclass
class Task:
    """Something for a horse to do: ``perform``, ``bury``, ``settle``, ``fail``, ``maintain`` or ``schedule``; see
    horse/messages.py.
    """

    kind: str
    claim: Claim | None = None
    arguments: tuple[Any, ...] = ()
    #: How many horses have died of it.
    deaths: int = 0
    #: How often what it relies on had changed when its outcome was to be recorded.
    changes: int = 0
    #: The slot, and its task, whose horse waits to hear that the outcome of this task was recorded.
    receipt_for: tuple[Slot, Task] | None = None

    def message(self) -> tuple[Any, ...]:
        """Return it as the horse reads it."""
        return (self.kind, *(() if self.claim is None else (self.claim.message(),)), *self.arguments)


@dataclass(eq=False)
class Slot:
    """One slot. ``ready`` means that its horse waits for a task."""

    name: str
    #: Sends a message to a horse without waiting.
    send: Callable[[Horse, tuple[Any, ...]], None]
    #: Forked for maintenance, or for a task while all others were busy; ends when no task waits.
    spare: bool = False
    horse: Horse | None = None
    ready: bool = False
    task: Task | None = None
    #: Claims whose jobs wait at its horse, each with a permit, and begin after the present one.
    waiting: deque[Claim] = field(default_factory=deque)
    #: Jobs that its horse was given.
    jobs: int = 0
    #: A claim for it is under way.
    reserved: bool = False
    #: Its job has waited at the horse, which may not have begun it.
    waited: bool = False
    #: The outcome of the task has arrived; the horse is still cleaning up.
    delivered: bool = False
    #: A stop-job command ended the horse.
    stopped: bool = False
    #: Another worker has been given its job, or goes on with its task: nothing of it is to be recorded.
    handed_on: bool = False
    #: Its horse was sent SIGKILL: whatever it still says, it is given nothing more.
    killed: bool = False
    #: Its horse is to be killed when the callback that it has begun has ended.
    dismissed: bool = False
    #: Its horse waits for the answer to read or relay.
    asks: bool = False
    #: Its horse is to be replaced once it has nothing to do.
    worn: bool = False
    since: float = field(default_factory=time.monotonic)
    #: When its horse is killed, by the monotonic clock.
    deadline: float | None = None
    #: Horses in a row that died before they were ever ready.
    stillborn: int = 0
    #: Who its horse is to the multiplexer, if jobs use Redis through the parent.
    guest: Guest | None = None
    #: One of its horses has been ready.
    begun: bool = False

    @property
    def claim(self) -> Claim | None:
        """The claim whose job it is running and whose outcome has not arrived yet."""
        if self.task is None or self.delivered or self.handed_on:
            return None
        return self.task.claim

    @property
    def free(self) -> bool:
        """Tell whether it can be given a task."""
        return self.ready and not self.reserved

    @property
    def token(self) -> bytes | None:
        """The token of its horse for the multiplexer."""
        return self.guest.token if self.guest is not None else None

    def check(self, kind: str, rest: Sequence[Any], lease: float) -> None:
        """Raise Unexpected where its horse says that its task is over, and has not said how it ended, or asks twice.

        Answers that it does not read would stay in the parent. It says nothing of a job that it does not begin: one
        that waited, or, before it leaves, one that is stale.

        Args:
            kind, rest: what it says.
            lease: seconds for which a claim stands unless it is renewed.
        """
        if kind in ("read", "relay"):
            if self.asks or self.task is None:
                raise Unexpected("it asks for something, and has no task, or has not waited for the last answer")
            self.asks = True
            may_ask = kind == "read" or self.task.kind in _RELAYED
            if not may_ask and (len(rest[0]) > 1 or any(words[0] not in _ABOUT_LARGE for words in rest[0])):
                raise Unexpected("it asks the server for what no job has to know")
        if kind not in ("next", "free") or (claim := self.claim) is None or self.task is None:
            return
        if kind == "free" and self.task.kind == "perform" and (self.waited or (rest[0] and claim.is_stale(lease))):
            return
        raise Unexpected(f"it says {kind}, and has not said how its task ended")

    def begin(self, task: Task, waited: bool) -> None:
        """Note what its horse is at; a job may have ``waited`` there."""
        self.task, self.waited, self.ready = task, waited, False
        self.jobs += task.kind == "perform"
        self.delivered, self.stopped, self.since = False, False, time.monotonic()

    def end(self) -> None:
        """Note that the horse has nothing to do any more."""
        self.task, self.delivered, self.stopped, self.handed_on, self.deadline = None, False, False, False, None
        self.asks = False

    def reply(self, message: tuple[Any, ...]) -> None:
        """Send the answer that the horse waits for, if it still lives."""
        self.asks = self.asks and message[0] != "reply"
        if self.horse is not None and self.task is not None:
            self.send(self.horse, message)

    def describe(self) -> str:
        """Say what it does, for a message about who holds what."""
        task = self.task
        if task is None or task.claim is None:
            return f"{self.name}, between jobs" if task is None else f"{self.name}: {task.kind}"
        return f"job {task.claim.job_id} of {self.name} for {time.monotonic() - self.since:.1f} s"


def send_receipt(receipt_for: tuple[Slot, Task] | None, recorded: bool) -> None:
    """Tell the horse that waits for the record of an outcome what became of it; one that has died since hears
    nothing.
    """
    if receipt_for is not None:
        slot, task = receipt_for
        if slot.task is task:
            slot.reply(("committed", recorded))
