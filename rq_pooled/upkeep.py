"""What a worker does for Redis at intervals: heartbeat, promotion of scheduled jobs, maintenance of registries."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from .claims import Claim
from .connections import Exchange
from .parent import Parent
from .slots import Slots, Task

#: Seconds until a promotion that the server refused is tried again.
PROMOTE_RETRY = 15.0


class Upkeep:
    """Says what is due, and makes the exchanges.

    Args:
        parent, slots: as the names say.
        waiting: returns the claims whose outcomes wait to be committed; they are renewed too.
        suspended: tells whether RQ is suspended, which idle workers show as their state.
    """

    def __init__(
        self, parent: Parent, slots: Slots, waiting: Callable[[], list[Claim]], suspended: Callable[[], bool]
    ) -> None:
        self._parent = parent
        self._slots = slots
        self._waiting = waiting
        self._suspended = suspended
        self.heartbeat_due = False
        self.promote_due = True

    def start(self) -> None:
        """Begin: maintenance at once, as RQ, then everything at its interval."""
        loop = self._parent.loop
        # RQ's --job-monitoring-interval is its heartbeat while a job runs: whoever wants it shorter gets it.
        worker, settings = self._parent.worker, self._parent.settings
        loop.call_every(min(settings.heartbeat_interval, max(1, worker.job_monitoring_interval)), self.beat)
        self._maintain()
        loop.call_every(max(1, self._parent.worker.maintenance_interval), self._maintain)

    def beat(self) -> None:
        """Have a heartbeat sent with the next exchange."""
        self.heartbeat_due = True

    def heartbeat(self) -> Exchange:
        """Return the exchange that renews slots and claims, and registers again what the server has forgotten."""
        self.heartbeat_due = False
        now = time.monotonic()
        idle = "suspended" if self._suspended() else "idle"
        slots = [
            (slot.name, "" if slot.claim else idle, round(now - slot.since, 3) if slot.claim else 0.0)
            for slot in self._slots.regular()
        ]
        claims = self._slots.claims() + self._waiting()

        def on_replies(replies: list[Any]) -> None:
            log, name = self._parent.log, self._parent.name
            if isinstance(replies[0], ResponseError):
                log.error("Worker %s: heartbeat refused: %s", name, replies[0])
            elif replies[0][0]:
                missing = {name.decode() for name in replies[0][0]}
                log.warning(
                    "Worker %s: the server has forgotten %s; registering again", name, ", ".join(sorted(missing))
                )
                states = {slot.name: "busy" if slot.claim else idle for slot in self._slots.regular()}
                again = {name: state for name, state in states.items() if name in missing}
                self._parent.command.submit(Exchange([self._parent.worker.registration(again, again=True)]))

        return Exchange([self._parent.ledger.heartbeat(self._parent.worker.worker_ttl + 60, slots, claims)], on_replies)

    def promotion(self) -> Exchange:
        """Return the exchange that enqueues scheduled jobs which are due."""
        self.promote_due = False

        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError):
                self._parent.log.error("Worker %s: cannot enqueue scheduled jobs: %s", self._parent.name, replies[0])
                delay = PROMOTE_RETRY
            else:
                _locks, _moved, more, wait = replies[0]
                delay = 0.0 if more else wait / 1000
            self._parent.loop.call_later(delay, self._promote)

        return Exchange([self._parent.worker.promotion()], on_replies, lambda _error: self._promote())

    def _promote(self) -> None:
        self.promote_due = True

    def _maintain(self) -> None:
        if not any(task.kind == "maintain" for task in self._slots.tasks):
            self._slots.tasks.append(Task("maintain"))
