"""Claims jobs for free slots, hands them out, and puts back those that it cannot."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError

from ..store.claim import MAX_CLAIM_JOBS, Claim, Claimed, ClaimRequest, claim_jobs
from .ahead import Ahead
from .committer import Committer
from .context import Context
from .events import Events
from .exchange import Exchange
from .recovery import Recovery
from .refusals import Refusals
from .slot import Slot, Task
from .slots import Slots
from .wakeup import Wakeup

#: Seconds after which a claim is tried again that found only ids whose other execution is running.
HELD_RETRY = 0.25


class Claimer:
    """Says whether a claim may be sent, makes it, and acts on its reply.

    Args:
        context, events, slots, committer, wakeup, refusals: as the names say.
        recovery: finds what a claim took whose reply was lost.
        ahead: says how many jobs a slot may be given at once.
        max_jobs: claim so many in all; None for ever.
    """

    def __init__(
        self,
        context: Context,
        events: Events,
        *,
        slots: Slots,
        committer: Committer,
        wakeup: Wakeup,
        recovery: Recovery,
        refusals: Refusals,
        ahead: Ahead,
        max_jobs: int | None,
    ) -> None:
        self._context = context
        self._events = events
        self._slots = slots
        self._committer = committer
        self._wakeup = wakeup
        self._recovery = recovery
        self._refusals = refusals
        self._ahead = ahead
        self._max_jobs = max_jobs
        #: Jobs handed to horses.
        self.dispatched = 0
        self._held = False
        events.hold_changed.append(self._on_hold)

    def _on_hold(self, held: bool) -> None:
        self._held = held

    @property
    def _closed(self) -> bool:
        """Tell whether nothing more is begun: a shutdown began, or an operator has said so."""
        return self._events.shutdown_began.happened or self._held

    @property
    def exhausted(self) -> bool:
        """Tell whether all jobs that may be claimed have been."""
        return self._max_jobs is not None and self.dispatched >= self._max_jobs

    def _free_slots(self) -> list[Slot]:
        most = MAX_CLAIM_JOBS
        if self._recovery.singly:
            # Of claims that are lost together none could be blamed: what was lost is found first, then one is sent.
            most = 0 if self._recovery.pending or any(slot.reserved for slot in self._slots) else 1
        free = [slot for slot in self._slots if slot.free and not slot.spare][:most]
        if self._max_jobs is None:
            return free
        under_way = sum(slot.reserved for slot in self._slots)
        return free[: max(0, self._max_jobs - self.dispatched - under_way)]

    def _places(self) -> list[Slot]:
        """Return the slots that may be given a job now; without any a sentry only hands on its post."""
        return [] if self._closed else self._free_slots()

    @property
    def due(self) -> bool:
        """Tell whether a claim may be sent and may find something."""
        if self._wakeup.handing_on and not self._places():
            return not any(slot.reserved for slot in self._slots)
        if self._closed:
            return False
        # No claim is sent while outcomes wait that did not fit into the commit: they would clear what a slot's next
        # claim writes.
        waiting = self._slots.starting or self._slots.tasks or self._committer
        return self._wakeup.awake and not waiting and bool(self._free_slots())

    def exchanges(self) -> list[Exchange]:
        """Return the exchange that claims a job for each free slot, or several while they are short."""
        slots = self._places()
        per_slot = self._ahead.per_slot(slots) if slots and not self._recovery.singly else 1
        keys, strategy = self._context.identity.order()
        names = [slot.name for slot in slots]
        # One job at a time is RQ's strict order: what a job enqueues when it ends stands before the next claim. That
        # of dependents needs a second outcome, so behind the first one nothing is taken unless it has ended the claim.
        behind = self._committer.under_way and self._context.settings.concurrency == 1
        command, request = claim_jobs(
            self._context.settings, self._context.token, keys, strategy, names, per_slot, *self._wakeup.post(), behind
        )
        for slot in slots:
            slot.reserved = True

        def release() -> None:
            for slot in slots:
                slot.reserved = False

        def on_replies(replies: list[Any]) -> None:
            release()
            self._recovery.on_claim_answered()
            self._slots.renew_worn()
            # Where a claim stood the next one is sent when that has ended.
            if replies[0] is not None:
                self._on_claimed(slots, request, replies[0])

        def on_lost(error: Exception) -> None:
            release()
            self._recovery.on_claim_lost(error)

        return [Exchange([command], on_replies, on_lost)]

    def _on_claimed(self, slots: list[Slot], request: ClaimRequest, reply: Any) -> None:
        context, wakeup = self._context, self._wakeup
        # The server is usually out of memory; commits go on.
        if isinstance(reply, ResponseError):
            wakeup.sleep()
            wakeup.on_refused(reply)
            return
        self._refusals.end()
        claimed = request.read(reply)
        self._ahead.found_all = len(claimed.claims) == request.most
        self._note_suspension(claimed)
        if claimed.stale:
            context.counters.stale_ids += len(claimed.stale)
            context.log.warning(
                "dropped %d ids without a job (deleted or expired while queued), such as %s",
                len(claimed.stale),
                claimed.stale[0],
            )
        unwanted = []
        stale = bool(claimed.claims) and claimed.claims[0].is_stale(context.settings.heartbeat_ttl)
        if stale:
            count = len(claimed.claims)
            context.log.warning("putting back %d jobs: this worker stood still after it claimed them", count)
        for number, slot in enumerate(slots[: len(claimed.claims)]):
            claims = claimed.claims[number :: len(slots)]
            if slot.ready and not stale and not self._closed:
                given, back = self._ahead.share(claims)
                unwanted += back
                self._dispatch(slot, given)
            else:
                # Its horse died meanwhile, the worker begins nothing more, or others have been given the jobs, perhaps.
                unwanted += claims
        if unwanted:
            self._recovery.push_back(unwanted)
        wakeup.on_claimed(bool(claimed.claims))
        wakeup.leave_out(claimed.limited)
        wakeup.note_post(claimed.sentry and bool(slots))
        if not claimed.left or (len(claimed.claims) < len(slots) and not claimed.stale):
            wakeup.sleep()
            if claimed.held:
                wakeup.wake_later(HELD_RETRY)

    def _dispatch(self, slot: Slot, claims: list[Claim]) -> None:
        for claim in claims:
            self._context.identity.note_claim(claim)
            self.dispatched += 1
            self._recovery.forget(claim.job_id)
            self._events.job_dispatched()
        self._slots.give(slot, Task("perform", claims[0]), claims[1:])
        if len(claims) > 1:
            self._ahead.watch()

    def _note_suspension(self, claimed: Claimed) -> None:
        if claimed.suspended == self._wakeup.suspended:
            return
        self._wakeup.suspended = claimed.suspended
        text = "suspended, run `rq resume` to resume" if claimed.suspended else "resumed"
        self._context.log.info(text)
        self._events.suspension_changed(claimed.suspended)
