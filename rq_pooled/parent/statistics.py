"""What a worker publishes about itself with each heartbeat: its counters, connections and horses."""

from __future__ import annotations

import time

from ..capacity.clients import process_name
from ..multiplexer.multiplexer import Multiplexer
from ..process.memory import resident_megabytes, resident_of
from ..signing.policy import current
from ..store.statistics import publish
from ..wire import Command
from .context import Context
from .slots import Slots


def last_report(context: Context) -> Command:
    """Return the command that publishes what was counted since the last heartbeat, before the worker withdraws."""
    counters = context.counters
    fields = {"uptime": time.time() - counters.started_at, "finished": counters.finished, "failed": counters.failed}
    return publish(process_name(context.settings), context.settings.heartbeat_ttl, fields)


def report(context: Context, slots: Slots, multiplexer: Multiplexer | None, held: bool = False) -> Command:
    """Return the command that publishes this worker's statistics; they last as long as its leases."""
    counters, horses = context.counters, slots.pids()
    fields = {
        "kind": "worker",
        "uptime": round(time.time() - counters.started_at, 3),
        "worker": context.identity.name,
        "queues": context.identity.queue_names,
        "concurrency": context.settings.concurrency,
        "busy": sum(slot.claim is not None for slot in slots),
        "held": held,
        "signing": current().mode,
        "horses": horses,
        "memory": [round(size, 1) for size in (resident_megabytes(), *resident_of(horses))],
        "connections": {
            "command": int(context.command.connected),
            "listen": int(context.listen.connected),
            **(multiplexer.connections() if multiplexer is not None else {}),
        },
        "rates": counters.rates(),
        **counters.fields(),
    }
    return publish(process_name(context.settings), context.settings.heartbeat_ttl, fields)
