"""What the parts of the parent tell each other within one turn of the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec

P = ParamSpec("P")


class Event(list[Callable[P, None]]):
    """Who listens, in the order of being called. A listener notes what happened, and leaves acting on it to its
    duty.
    """

    #: It has happened at least once.
    happened = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Tell all of them."""
        self.happened = True
        for listener in self:
            listener(*args, **kwargs)


@dataclass(frozen=True)
class Events:
    """All events of one parent."""

    #: With the error. What was under way has been told already, see Exchange.
    server_lost: Event[[Exception]] = field(default_factory=Event)
    server_back: Event[[]] = field(default_factory=Event)
    #: Leases could be renewed just now: by this worker, and so by others.
    heartbeat_answered: Event[[]] = field(default_factory=Event)
    #: The server has noted claims that nothing in this process holds.
    claims_unknown: Event[[]] = field(default_factory=Event)
    #: The server refuses what this worker needs, and trying again is no use: with the reason and an exit code.
    work_refused: Event[[str, int]] = field(default_factory=Event)
    #: RQ was suspended (True) or resumed.
    suspension_changed: Event[[bool]] = field(default_factory=Event)
    #: This worker is to claim nothing more (True), or to claim again.
    hold_changed: Event[[bool]] = field(default_factory=Event)
    #: A job was handed to a horse.
    job_dispatched: Event[[]] = field(default_factory=Event)
    #: A job is over: recorded, or dropped because its claim is gone.
    job_done: Event[[]] = field(default_factory=Event)
    #: Nothing new is begun from now on.
    shutdown_began: Event[[]] = field(default_factory=Event)
