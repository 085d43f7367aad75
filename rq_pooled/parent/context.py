"""What the parts of the parent share: the one loop, log, connection of each role, and so on, of the process."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..capacity.budget import Lease
from ..capacity.stop_flag import Brake
from ..config.settings import Settings
from ..log_lines import WorkerLog
from ..process.event_loop import Loop
from ..store.counters import Counters
from .command_connection import CommandConnection
from .identity import Identity
from .listen_connection import ListenConnection


@dataclass(frozen=True)
class Context:
    """What the parent of one worker consists of. RQ's worker is not in it; ``identity`` speaks for it."""

    identity: Identity
    settings: Settings
    #: Of this process: it names the hash of its claims, and the locks that it holds.
    token: str
    command: CommandConnection
    listen: ListenConnection
    loop: Loop
    #: Its lines begin with the worker's name, or with that of one of its slots.
    log: WorkerLog
    counters: Counters = field(default_factory=Counters)
    brake: Brake = field(default_factory=Brake)
    #: Its place in the application's budget, if there is one.
    lease: Lease | None = None
