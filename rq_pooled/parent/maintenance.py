"""Has a horse do RQ's maintenance of registries, which runs users' failure callbacks."""

from __future__ import annotations

import math
from collections import deque

from ..store.leases import postpone
from .context import Context
from .slot import Task


class Maintenance:
    """Adds the task at the start, as RQ, and then at RQ's interval."""

    def __init__(self, context: Context, *, tasks: deque[Task]) -> None:
        self._context = context
        self._tasks = tasks

    def start(self) -> None:
        """Begin at once."""
        self._add_task()
        self._context.loop.call_every(self._context.identity.maintenance_interval, self._add_task)

    def _add_task(self) -> None:
        if not any(task.kind == "maintain" for task in self._tasks):
            context = self._context
            command = postpone(context.identity.queue_keys, math.ceil(context.settings.abandon_after))
            self._tasks.append(Task("maintain", arguments=(tuple(command),)))
