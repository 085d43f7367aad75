"""A worker with ``--with-scheduler`` does rq-scheduler's work too, under its lock and on the connection that it has.

The parent only asks, each second, whether a job is due, and takes the lock if one is. A horse moves what is due, since
reading a job's meta unpickles what users have put there. Its commands go through the parent's connection.
"""

from __future__ import annotations

import math
from typing import Any

from redis.exceptions import ResponseError

from ..store.rq_scheduler import scheduler_due
from .complaint import Complaint
from .context import Context
from .events import Events
from .exchange import Exchange
from .slot import Task
from .slots import Slots

#: Seconds between two looks, and life of the lock, which each move renews.
INTERVAL, LOCK_LIFE = 1.0, 60


class Scheduling:
    """Says when to look, and makes the exchange. Without ``--with-scheduler`` nothing is ever due."""

    def __init__(self, context: Context, events: Events, *, slots: Slots, wanted: bool) -> None:
        self._context = context
        self._slots = slots
        self._wanted = wanted
        self.due = False
        #: It looks once a second, and the same reason is not said again.
        self._complaint = Complaint(math.inf)
        events.shutdown_began.append(self._stop)

    def start(self) -> None:
        """Look at once, and then at intervals."""
        if self._wanted:
            self._look()
            self._context.loop.call_every(INTERVAL, self._look)

    def _stop(self) -> None:
        self._wanted = self.due = False

    def _look(self) -> None:
        # While a horse is at it, it sees by itself what becomes due.
        tasks = [*self._slots.tasks, *(slot.task for slot in self._slots if slot.task is not None)]
        self.due = self._wanted and not any(task.kind == "schedule" for task in tasks)

    def exchanges(self) -> list[Exchange]:
        """Return the exchange that takes the lock if a job is due; a horse is given the work then."""
        self.due = False
        token = f"{self._context.identity.name}:{self._context.token}"

        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError):
                if self._complaint.add(str(replies[0])):
                    self._context.log.error("cannot look at rq-scheduler's jobs: %s", replies[0])
                return
            self._complaint.end()
            if replies[0]:
                self._slots.tasks.append(Task("schedule", None, (token, LOCK_LIFE)))

        return [Exchange([scheduler_due(token, LOCK_LIFE)], on_replies)]
