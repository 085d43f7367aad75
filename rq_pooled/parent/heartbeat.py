"""Renews this worker's registration and leases, and tells from the replies whether it may judge other workers."""

from __future__ import annotations

import time
from typing import Any

from redis.exceptions import ResponseError

from ..durations import since_boot
from ..errors import BudgetExceeded
from ..multiplexer.multiplexer import Multiplexer
from ..store.leases import heartbeat
from .committer import Committer
from .complaint import Complaint
from .context import Context
from .events import Events
from .exchange import Exchange
from .slots import Slots
from .statistics import report


class Heartbeat:
    """Renews slots and claims, and registers again what the server has forgotten.

    Args:
        context, events, slots: as the names say.
        committer: its claims, whose outcomes wait, are renewed too.
        multiplexer: whose connections the statistics tell of.
    """

    def __init__(
        self, context: Context, events: Events, *, slots: Slots, committer: Committer, multiplexer: Multiplexer | None
    ) -> None:
        self._context = context
        self._events = events
        self._slots = slots
        self._committer = committer
        self._multiplexer = multiplexer
        self._suspended = self._held = False
        #: Since when nothing has kept this worker, and so perhaps others, from renewing leases: by the monotonic clock.
        self._good_since = time.monotonic()
        #: When the last heartbeat was answered: by the server's clock, and by the monotonic one.
        self._answered_at: float | None = None
        self._answered = 0.0
        #: The outages that ended within the life of a lease: when, by the server's clock, and for how long nothing was
        #: answered. A worker that could not use the time between two of them was away for both.
        self._outages: list[tuple[float, float]] = []
        self._is_back = False
        #: When the last heartbeat that was answered was sent, or this worker began.
        self._renewed = since_boot()
        self._complaint = Complaint()
        self.due = False
        events.server_back.append(self._on_back)
        events.suspension_changed.append(self._on_suspension)
        events.hold_changed.append(self._on_hold)

    def start(self) -> None:
        """Publish at once who is there, and beat at intervals."""
        context = self._context
        # RQ's own interval holds where it is shorter.
        interval = min(context.settings.heartbeat_interval, context.identity.monitoring_interval)
        context.loop.call_every(interval, self.beat)
        context.command.submit(Exchange([report(context, self._slots, self._multiplexer)]))

    @property
    def is_recent(self) -> bool:
        """Tell whether no lease that was renewed can be over: otherwise others may have been given its job."""
        return since_boot() - self._renewed <= self._context.settings.heartbeat_ttl / 2

    def settled(self) -> bool:
        """Tell whether leases of others that are over can be trusted to be."""
        settings = self._context.settings
        # Others may come back later than this worker did, by the longest pause between two attempts.
        good_for = time.monotonic() - self._good_since if self._context.command.connected else 0.0
        return good_for >= settings.heartbeat_ttl + settings.reconnect_cap

    def trusted_until(self) -> float | None:
        """Return until when, by the server's clock, what this worker sends now may judge others; None if it may not.

        A server may be frozen already when a call is sent, and do it long after: then everybody's leases are over. And
        after an outage or a pause the next heartbeat has to be answered first: only its reply tells how long it was.
        """
        elapsed = time.monotonic() - self._answered
        if self._answered_at is None or elapsed > self._context.settings.heartbeat_ttl / 2 or not self.settled():
            return None
        return self._answered_at + elapsed + self._context.settings.socket_timeout

    def _note_answer(self, clock: float) -> None:
        last, self._answered_at, self._answered = self._answered_at, clock, time.monotonic()
        ttl, gap = self._context.settings.heartbeat_ttl, 0.0 if last is None else clock - last
        if self._is_back:
            self._outages = [(ended, away) for ended, away in self._outages if clock - ended <= ttl] + [(clock, gap)]
            self._is_back, gap = False, sum(away for _, away in self._outages)
        # At least twice the interval: the server was away, this process was stopped, or the whole machine was asleep.
        # Then everybody's leases may be over, not only those of the dead. Before the first answer nothing is known.
        if last is None or gap > ttl / 2:
            self._good_since = time.monotonic()

    def _on_back(self) -> None:
        self._is_back = True
        self.beat()

    def beat(self) -> None:
        """Have a heartbeat sent with the next exchange."""
        self.due = True

    def _on_suspension(self, suspended: bool) -> None:
        self._suspended = suspended
        self.beat()

    def _on_hold(self, held: bool) -> None:
        self._held = held
        self.beat()

    def exchanges(self) -> list[Exchange]:
        """Return the exchange that renews slots and claims, and registers again what the server has forgotten."""
        self.due = False
        context, now, sent = self._context, time.monotonic(), since_boot()
        # The state that slots without a job show.
        idle = "suspended" if self._suspended or self._held else "idle"
        slots = [
            (slot.name, "" if slot.claim else idle, round(now - slot.since, 3) if slot.claim else 0.0)
            for slot in self._slots.regular()
        ]
        running = self._slots.claims()
        claims = running + self._committer.renewed()

        def on_replies(replies: list[Any]) -> None:
            log = context.log
            if context.lease is not None and not context.lease.accept(replies[-1]):
                log.warning("its place in the budget was taken meanwhile; closing its connections")
                context.command.lose(BudgetExceeded("no place in the budget"))
                return
            if isinstance(replies[0], ResponseError):
                if self._complaint.add(str(replies[0])):
                    log.error("heartbeat refused: %s", replies[0])
                return
            self._complaint.end()
            forgotten, handed_on, noted, milliseconds = replies[0]
            self._note_answer(milliseconds / 1000)
            self._renewed = sent
            self._events.heartbeat_answered()
            # Not those whose outcomes wait: the commit, next in line, finds out and says so.
            for claim in (claims[number - 1] for number in handed_on if number <= len(running)):
                context.counters.lost_claims += 1
                log.warning(
                    "job %s was handed on while this worker could not renew its lease; ending its horse",
                    claim.job_id,
                    worker=claim.worker_name,
                )
                self._slots.hand_on(claim)
            if noted > len(claims):
                self._events.claims_unknown()
            if forgotten:
                missing = {name.decode() for name in forgotten}
                log.warning("the server has forgotten %s; registering again", ", ".join(sorted(missing)))
                states = {slot.name: "busy" if slot.claim else idle for slot in self._slots.regular()}
                again = {name: state for name, state in states.items() if name in missing}
                context.command.submit(Exchange([context.identity.registration(again, again=True)]))

        renewal = heartbeat(context.settings, context.token, context.identity.ttl, slots, claims)
        lease = (
            [context.lease.command(self._multiplexer.places if self._multiplexer else None)]
            if context.lease is not None
            else []
        )
        return [Exchange([renewal, report(context, self._slots, self._multiplexer, self._held), *lease], on_replies)]
