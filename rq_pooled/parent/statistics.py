"""What a worker publishes about itself with each heartbeat: its counters, connections and horses."""

from __future__ import annotations

import time

from ..capacity.clients import process_name
from ..multiplexer.multiplexer import Multiplexer
from ..store.statistics import publish
from ..wire import Command
from .context import Parent
from .slots import Slots


def report(parent: Parent, slots: Slots, multiplexer: Multiplexer | None) -> Command:
    """Return the command that publishes this worker's statistics; they last as long as its leases."""
    counters = parent.counters
    fields = {
        "kind": "worker",
        "uptime": round(time.time() - counters.started_at, 3),
        "worker": parent.name,
        "queues": parent.worker.queue_names(),
        "concurrency": parent.settings.concurrency,
        "busy": sum(slot.claim is not None for slot in slots),
        "horses": slots.pids(),
        "connections": {
            "command": int(parent.command.connected),
            "listen": int(parent.listen.connected),
            **(multiplexer.connections() if multiplexer is not None else {}),
        },
        "rates": counters.rates(),
        **counters.fields(),
    }
    return publish(parent.scripts, process_name(parent.settings), parent.settings.heartbeat_ttl, fields)
