"""The job slots of a worker: each is one RQ worker to the outside, and at any time has one horse and one task."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from .claims import Claim
from .loop import Timer
from .prefork import Horse


@dataclass
class Task:
    """Something for a horse to do: ``perform``, ``bury``, ``settle``, ``fail`` or ``maintain``; see horse.py."""

    kind: str
    claim: Claim | None = None
    arguments: tuple[Any, ...] = ()
    #: How many horses have died of it.
    deaths: int = 0

    def message(self) -> tuple[Any, ...]:
        """Return it as the horse reads it."""
        return (self.kind, *(() if self.claim is None else (tuple(self.claim),)), *self.arguments)


@dataclass
class Slot:
    """One slot. ``ready`` means that its horse waits for a task."""

    name: str
    #: Forked for a task while all others were busy; ends when there are no more.
    spare: bool = False
    horse: Horse | None = None
    ready: bool = False
    task: Task | None = None
    #: A claim for it is under way.
    reserved: bool = False
    #: The outcome of the task has arrived; the horse is still cleaning up.
    delivered: bool = False
    #: A stop-job command ended the horse.
    stopped: bool = False
    since: float = field(default_factory=time.monotonic)
    deadline: Timer | None = None
    #: Horses in a row that died before they were ever ready.
    stillborn: int = 0

    @property
    def claim(self) -> Claim | None:
        """The claim whose job it is running and whose outcome has not arrived yet."""
        return self.task.claim if self.task is not None and not self.delivered else None

    def begin(self, task: Task) -> None:
        """Note that the horse was given ``task``."""
        self.task, self.ready, self.delivered, self.stopped = task, False, False, False
        self.since = time.monotonic()

    def end(self) -> None:
        """Note that the horse has nothing to do any more."""
        self.task, self.delivered, self.stopped = None, False, False
        self.set_deadline(None)

    def set_deadline(self, timer: Timer | None) -> None:
        """Replace the timer that would kill the horse."""
        if self.deadline is not None:
            self.deadline.cancel()
        self.deadline = timer


def job_timeout(claim: Claim, default: int) -> float:
    """Return the seconds that RQ allows the job, -1 for ever, as written in its hash."""
    try:
        return float(claim.raw[b"timeout"]) or default
    except (KeyError, ValueError):
        return default
