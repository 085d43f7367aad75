"""Has a horse do RQ's maintenance of registries, which runs users' failure callbacks."""

from __future__ import annotations

import math

from ..store.leases import postpone
from .context import Context
from .events import Events
from .slot import Task
from .slots import Slots

#: Seconds that a shutdown waits for maintenance.
PATIENCE = 5.0


class Maintenance:
    """Begins it at the start, as RQ, and then at RQ's interval; ends it at a shutdown."""

    def __init__(self, context: Context, events: Events, *, slots: Slots) -> None:
        self._context = context
        self._slots = slots
        self._shutdown_began = events.shutdown_began
        events.shutdown_began.append(self._on_shutdown)

    def start(self) -> None:
        """Begin at once."""
        self._begin()
        self._context.loop.call_every(self._context.identity.maintenance_interval, self._begin)

    def _begin(self) -> None:
        context = self._context
        if self._slots.maintaining():
            context.log.warning("maintenance takes longer than its interval")
        elif not self._shutdown_began.happened:
            command = postpone(context.identity.queue_keys, math.ceil(context.settings.abandon_after))
            self._slots.maintenance = Task("maintain", arguments=(tuple(command),))

    def _on_shutdown(self) -> None:
        """Drop what waits and belongs to no job, and end what runs after a while: neither is waited for at the end."""
        self._slots.maintenance = None
        for task in [task for task in self._slots.tasks if task.claim is None]:
            self._slots.tasks.remove(task)
        self._context.loop.call_later(PATIENCE, self._end)

    def _end(self) -> None:
        """Kill the horse that is still at it, or have it killed after the callback that it has begun, which has a time
        limit of its own; what is left is cleaned up by the next one.
        """
        for slot in self._slots.maintaining():
            self._context.log.warning("maintenance takes longer than %g s after the stop; ending it", PATIENCE)
            slot.handed_on = slot.dismissed = True
            if slot.deadline is None:
                self._slots.kill(slot)
