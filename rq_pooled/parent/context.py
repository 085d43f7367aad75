"""What the parts of the parent share: one object each of what there is one of in the process."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..capacity.budget import Lease
from ..capacity.stop_flag import Brake
from ..config.settings import Settings
from ..process.event_loop import Loop
from ..store.counters import Counters
from ..store.ledger import Ledger
from ..store.scripts import Scripts
from .command_connection import CommandConnection
from .listen_connection import ListenConnection

if TYPE_CHECKING:
    from ..worker.worker import Worker


@dataclass(frozen=True)
class Parent:
    """The parent process of one worker."""

    #: RQ's side: name, queues, strategy, what is logged and registered.
    worker: Worker
    settings: Settings
    scripts: Scripts
    ledger: Ledger
    command: CommandConnection
    listen: ListenConnection
    loop: Loop
    counters: Counters = field(default_factory=Counters)
    brake: Brake = field(default_factory=Brake)
    #: Its place in the application's budget, if there is one.
    lease: Lease | None = None

    @property
    def log(self) -> logging.Logger:
        """The worker's logger."""
        return self.worker.log

    @property
    def name(self) -> str:
        """The worker's name, which most log lines begin with."""
        return self.worker.name
