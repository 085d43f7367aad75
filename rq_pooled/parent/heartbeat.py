"""What a worker does for Redis at intervals: heartbeat, promotion of scheduled jobs, maintenance of registries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from ..errors import BudgetExceeded
from ..multiplexer.multiplexer import Multiplexer
from ..store.claim import Claim
from .context import Parent
from .exchange import Exchange
from .slots import Slots, Task
from .statistics import report

#: Seconds until a promotion that the server refused is tried again.
PROMOTE_RETRY = 15.0
#: Seconds until what is refused for the same reason is said again.
SAY_AGAIN = 600.0


class Upkeep:
    """Says what is due, and makes the exchanges.

    Args:
        parent, slots: as the names say.
        waiting: returns the claims whose outcomes wait to be committed; they are renewed too.
        suspended: tells whether RQ is suspended, which idle workers show as their state.
        on_unknown: called when the server has noted claims of which nobody here knows.
        on_answered: called when a heartbeat has been answered: who could renew a lease has done so now.
        multiplexer: whose connections are told of in the statistics.
    """

    def __init__(
        self,
        parent: Parent,
        slots: Slots,
        waiting: Callable[[], list[Claim]],
        suspended: Callable[[], bool],
        on_unknown: Callable[[], None],
        on_answered: Callable[[], None],
        multiplexer: Multiplexer | None,
    ) -> None:
        self._parent = parent
        self._slots = slots
        self._waiting = waiting
        self._suspended = suspended
        self._on_unknown = on_unknown
        self._on_answered = on_answered
        self._multiplexer = multiplexer
        #: Since when nothing has kept this worker, and so perhaps others, from renewing leases: by the monotonic clock.
        self._good_since = time.monotonic()
        #: When the last heartbeat was answered: by the server's clock, and by the monotonic one.
        self._answered_at: float | None = None
        self._answered = 0.0
        #: What was refused, for which reason, and when that was said.
        self._said: dict[str, tuple[str, float]] = {}
        self.heartbeat_due = False
        self.promote_due = True

    def _complain(self, what: str, error: ResponseError) -> None:
        """Log what is refused: once for each reason, and again after SAY_AGAIN."""
        now, text = time.monotonic(), str(error)
        said, at = self._said.get(what, ("", 0.0))
        if said != text or now - at >= SAY_AGAIN:
            self._said[what] = text, now
            self._parent.log.error("Worker %s: %s: %s", self._parent.name, what, text)

    def start(self) -> None:
        """Begin: maintenance at once, as RQ, then everything at its interval."""
        loop = self._parent.loop
        # RQ's --job-monitoring-interval is its heartbeat while a job runs: whoever wants it shorter gets it.
        worker, settings = self._parent.worker, self._parent.settings
        loop.call_every(min(settings.heartbeat_interval, max(1, worker.job_monitoring_interval)), self.beat)
        self._parent.command.submit(
            Exchange([report(self._parent, self._slots, self._multiplexer)])
        )  # at once: who is there
        self._maintain()
        loop.call_every(max(1, self._parent.worker.maintenance_interval), self._maintain)

    def settled(self) -> bool:
        """Tell whether leases of others that are over can be trusted to be: see Stalls."""
        settings = self._parent.settings
        # Others may come back later than this worker did, by the longest pause between two attempts.
        good_for = time.monotonic() - self._good_since if self._parent.command.connected else 0.0
        return good_for >= settings.heartbeat_ttl + settings.reconnect_cap

    def trusted_until(self) -> float | None:
        """Return until when, by the server's clock, what this worker sends now may judge others; None if it may not.

        A server may be frozen already when a call is sent, and do it long after: then everybody's leases are over. And
        after an outage or a pause the next heartbeat has to be answered first: only its reply tells how long it was.
        """
        elapsed = time.monotonic() - self._answered
        if self._answered_at is None or elapsed > self._parent.settings.heartbeat_ttl / 2 or not self.settled():
            return None
        return self._answered_at + elapsed + self._parent.settings.socket_timeout

    def _note_answer(self, clock: float) -> None:
        last, self._answered_at, self._answered = self._answered_at, clock, time.monotonic()
        # At least twice the interval: the server was away, this process was stopped, or the whole machine was asleep.
        # Then everybody's leases may be over, not only those of the dead. Before the first answer nothing is known.
        if last is None or clock - last > self._parent.settings.heartbeat_ttl / 2:
            self._good_since = time.monotonic()

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
        running = self._slots.claims()
        claims = running + self._waiting()

        def on_replies(replies: list[Any]) -> None:
            log, name = self._parent.log, self._parent.name
            if self._parent.lease is not None and not self._parent.lease.accept(replies[-1]):
                log.warning("Worker %s: its place in the budget was taken meanwhile; closing its connections", name)
                self._parent.command.lose(BudgetExceeded("no place in the budget"))
                return
            if isinstance(replies[0], ResponseError):
                self._complain("heartbeat refused", replies[0])
                return
            self._said.pop("heartbeat refused", None)
            forgotten, handed_on, noted, milliseconds = replies[0]
            self._note_answer(milliseconds / 1000)
            self._on_answered()
            # Not those whose outcomes wait: the commit, next in line, finds out and says so.
            for claim in (claims[number - 1] for number in handed_on if number <= len(running)):
                self._parent.counters.lost_claims += 1
                log.warning(
                    "Worker %s: job %s was handed on while this worker could not renew its lease; ending its horse",
                    claim.worker_name,
                    claim.job_id,
                )
                self._slots.hand_on(claim)
            if noted > len(claims):
                self._on_unknown()
            if forgotten:
                missing = {name.decode() for name in forgotten}
                log.warning(
                    "Worker %s: the server has forgotten %s; registering again", name, ", ".join(sorted(missing))
                )
                states = {slot.name: "busy" if slot.claim else idle for slot in self._slots.regular()}
                again = {name: state for name, state in states.items() if name in missing}
                self._parent.command.submit(Exchange([self._parent.worker.registration(again, again=True)]))

        renewal = self._parent.ledger.heartbeat(self._parent.worker.worker_ttl + 60, slots, claims)
        lease = (
            [self._parent.lease.command(self._multiplexer.places if self._multiplexer else None)]
            if self._parent.lease is not None
            else []
        )
        return Exchange([renewal, report(self._parent, self._slots, self._multiplexer), *lease], on_replies)

    def promotion(self) -> Exchange:
        """Return the exchange that enqueues scheduled jobs which are due."""
        self.promote_due = False

        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError):
                self._complain("cannot enqueue scheduled jobs", replies[0])
                delay = PROMOTE_RETRY
            else:
                self._said.pop("cannot enqueue scheduled jobs", None)
                _locks, _moved, more, wait = replies[0]
                delay = 0.0 if more else wait / 1000
            self._parent.loop.call_later(delay, self._promote)

        return Exchange([self._parent.worker.promotion()], on_replies, lambda _error: self._promote())

    def _promote(self) -> None:
        self.promote_due = True

    def _maintain(self) -> None:
        if not any(task.kind == "maintain" for task in self._slots.tasks):
            keys = [queue.key for queue in self._parent.worker.queues]
            command = self._parent.scripts.postpone(keys, math.ceil(self._parent.settings.abandon_after))
            self._slots.tasks.append(Task("maintain", arguments=(tuple(command),)))
