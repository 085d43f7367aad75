"""Claims jobs for free slots, hands them out, and puts back those that it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from ..config.secrets import message_of
from ..connection.away import NEEDED_RIGHTS, is_blamed, is_forbidden
from ..errors import TRY_AGAIN, USAGE
from ..foreign import MAX_VALUE, printable
from ..store.claim import Claim
from ..store.ledger import MAX_CLAIM_JOBS, Claimed, ClaimRequest
from ..wire import Command
from .committer import Outcomes
from .context import Parent
from .exchange import Exchange
from .slots import Slot, Slots, Task
from .wakeup import Wakeup

#: Seconds after which a claim is tried again that the server refused (out of memory), or that found only ids whose
#: other execution is running.
REFUSED_RETRY, HELD_RETRY = 1.0, 0.25
#: How often the connection may be lost before a claim of a job is answered, and bytes of its data from which on the
#: answer may be the reason: then the job fails.
MAX_UNANSWERED, BLAMED_FROM = 4, 64 * 1024
#: Jobs of which that is counted.
MAX_COUNTED = 1000
#: Longest such pause in seconds where the user lacks a right, and seconds between two lines about one reason.
FORBIDDEN_RETRY, SAY_AGAIN = 30.0, 60.0


class Claiming:
    """Says whether a claim may be sent, makes it, and acts on its reply.

    Args:
        parent, slots, outcomes, wakeup: as the names say.
        max_jobs: claim so many in all; None for ever.
        stopping: tells whether a shutdown has begun.
        on_dispatched: called with each job that is handed to a horse.
        on_suspension: called when RQ was suspended or resumed.
        burst: end instead of trying again for longer than GUARD_WAIT.
        on_refused: called with a reason and an exit code where trying again is no use.
    """

    def __init__(
        self,
        parent: Parent,
        slots: Slots,
        outcomes: Outcomes,
        wakeup: Wakeup,
        max_jobs: int | None,
        stopping: Callable[[], bool],
        on_dispatched: Callable[[], None],
        on_suspension: Callable[[], None],
        burst: bool,
        on_refused: Callable[[str, int], None],
    ) -> None:
        self._parent = parent
        self._slots = slots
        self._outcomes = outcomes
        self._wakeup = wakeup
        self._max_jobs = max_jobs
        self._stopping = stopping
        self._on_dispatched = on_dispatched
        self._on_suspension = on_suspension
        self._queues = {queue.key: queue for queue in parent.worker.queues}
        #: Job -> how often its claim was not answered. So many claims take one job each, to find out which one is to
        #: blame.
        self._unanswered: dict[str, int] = {}
        self._singly = 0
        #: Why the last claim was not answered.
        self._loss = ""
        self._burst = burst
        self._on_refused = on_refused
        #: Refusals in a row, when the first came, and when which reason was logged last.
        self._refusals = 0
        self._refused_since = 0.0
        self._said: tuple[str, float] | None = None
        #: A claim has been answered: the user had every right.
        self._worked = False
        #: The server may have noted claims of which nobody here knows.
        self.recover_due = False
        #: Jobs handed to horses.
        self.dispatched = 0

    @property
    def exhausted(self) -> bool:
        """Tell whether all jobs that may be claimed have been."""
        return self._max_jobs is not None and self.dispatched >= self._max_jobs

    def _free_slots(self) -> list[Slot]:
        free = [slot for slot in self._slots if slot.free and not slot.spare][: 1 if self._singly else MAX_CLAIM_JOBS]
        if self._max_jobs is None:
            return free
        under_way = sum(slot.reserved for slot in self._slots)
        return free[: max(0, self._max_jobs - self.dispatched - under_way)]

    @property
    def due(self) -> bool:
        """Tell whether a claim may be sent and may find something."""
        # Not while outcomes wait that did not fit into the commit: they would clear what a slot's next claim writes.
        waiting = self._slots.starting or self._slots.tasks or self._outcomes
        return self._wakeup.awake and not self._stopping() and not waiting and bool(self._free_slots())

    def exchange(self) -> Exchange:
        """Return the exchange that claims up to one job for each free slot."""
        worker, slots = self._parent.worker, self._free_slots()
        strategy = getattr(worker._dequeue_strategy, "value", worker._dequeue_strategy) or "default"
        keys = [queue.key for queue in worker._ordered_queues]
        command, request = self._parent.ledger.claim(keys, strategy, [slot.name for slot in slots])
        for slot in slots:
            slot.reserved = True

        def release() -> None:
            for slot in slots:
                slot.reserved = False

        def on_replies(replies: list[Any]) -> None:
            release()
            self._singly = max(0, self._singly - 1)
            self._slots.renew_worn()
            self._on_claimed(slots, request, replies[0])

        def on_lost(error: Exception) -> None:
            release()
            if is_blamed(error):
                self._loss = message_of(error)
            self.recover()  # what it may have taken is found in the claims hash when the server is back

        return Exchange([command], on_replies, on_lost)

    def _on_claimed(self, slots: list[Slot], request: ClaimRequest, reply: Any) -> None:
        parent, wakeup = self._parent, self._wakeup
        if isinstance(reply, ResponseError):  # out of memory, usually: commits go on
            wakeup.sleep()
            self.refuse(reply)
            return
        self._worked = True
        if self._refusals:
            self._refusals, self._said = 0, None
            parent.log.info("Worker %s: claiming jobs again", parent.name)
        claimed = request.read(reply)
        self._note_suspension(claimed)
        if claimed.stale:
            parent.counters.stale_ids += len(claimed.stale)
            parent.log.warning(
                "Worker %s: dropped %d ids without a job (deleted or expired while queued), such as %s",
                parent.name,
                len(claimed.stale),
                claimed.stale[0],
            )
        unwanted = []
        for slot, claim in zip(slots, claimed.claims):
            if slot.ready and not self._stopping():
                self._dispatch(slot, claim)
            else:  # its horse died meanwhile, or a shutdown began
                unwanted.append(claim)
        if unwanted:
            self._push_back(unwanted)
        wakeup.on_claimed(bool(claimed.claims))
        wakeup.leave_out(claimed.limited)
        if len(claimed.claims) < len(slots) and not claimed.stale:
            wakeup.sleep()
            if claimed.held:
                wakeup.wake_later(HELD_RETRY)

    def refuse(self, error: ResponseError) -> None:
        """Act on the refusal of a claim, or of a look at the queues: try again later, or end where that is no use."""
        parent, now, text = self._parent, time.monotonic(), message_of(error).rstrip(".")
        forbidden = is_forbidden(error)
        if not self._refusals:
            self._refused_since = now
        self._refusals += 1
        if forbidden and (self._burst or not self._worked):
            self._on_refused(f"the server's access control refuses what a worker does: {text}; {NEEDED_RIGHTS}", USAGE)
            return
        if self._burst and now - self._refused_since > parent.settings.guard_wait:
            self._on_refused(
                f"cannot claim jobs: {text}; tried {self._refusals} times in {now - self._refused_since:.0f} s "
                "(GUARD_WAIT)",
                TRY_AGAIN,
            )
            return
        if self._said is None or self._said[0] != text or now - self._said[1] >= SAY_AGAIN:
            self._said = text, now
            pace = "more and more rarely" if forbidden else "every second"
            hint = f"; {NEEDED_RIGHTS}" if forbidden else ""
            parent.log.error("Worker %s: cannot claim jobs: %s; trying again %s%s", parent.name, text, pace, hint)
        delay = min(REFUSED_RETRY * 2 ** min(self._refusals - 1, 10), FORBIDDEN_RETRY) if forbidden else REFUSED_RETRY
        self._wakeup.wake_later(delay)

    def _dispatch(self, slot: Slot, claim: Claim) -> None:
        queue = self._queues.get(claim.queue_key)
        if queue is not None:
            self._parent.worker.reorder_queues(reference_queue=queue)
        self._parent.worker.log_claimed(claim)
        self._parent.counters.claimed(claim.queue_key, claim.raw.get(b"enqueued_at"), claim.created_at)
        self.dispatched += 1
        self._unanswered.pop(claim.job_id, None)
        self._on_dispatched()
        self._slots.give(slot, Task("perform", claim))

    def _push_back(self, claims: Sequence[Claim]) -> None:
        self._parent.command.submit(
            Exchange([self._parent.ledger.push_back(claims)], lambda _replies: self._wakeup.wake())
        )

    def _note_suspension(self, claimed: Claimed) -> None:
        if claimed.suspended == self._wakeup.suspended:
            return
        self._wakeup.suspended = claimed.suspended
        text = "suspended, run `rq resume` to resume" if claimed.suspended else "resumed"
        self._parent.log.info("Worker %s: %s", self._parent.name, text)
        self._on_suspension()

    # -- recovery ------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Have the server asked, with the next exchange, which claims it has noted."""
        self.recover_due = True

    def recovery(self, more: Sequence[Claim] = ()) -> Exchange:
        """Put back what a claim took whose reply was lost: what is noted of this worker, and not known here.

        Args:
            more: claims that are known, too.
        """
        self.recover_due = False
        known = [claim.member for claim in (*self._slots.claims(), *self._outcomes.claims(), *more)]
        commands: list[Command] = [self._parent.ledger.known_claims()]

        def on_replies(replies: list[Any]) -> None:
            strange: list[bytes] = []
            ledger = self._parent.ledger
            unknown = [] if isinstance(replies[0], ResponseError) else ledger.unknown(replies[0], known, strange)
            if strange:  # dropped, or each heartbeat would count them as claims of which nobody knows
                self._parent.log.warning(
                    "Worker %s: dropping %d notes that are no claims, such as %s",
                    *(self._parent.name, len(strange), printable(strange[0], MAX_VALUE)),
                )
                self._parent.command.submit(Exchange([ledger.drop_notes(strange)]))
            if unknown:
                self._parent.log.warning(
                    "Worker %s: putting back %d jobs whose claim was not answered", self._parent.name, len(unknown)
                )
                self._on_unanswered(unknown)

        def on_lost(_error: Exception) -> None:
            self.recover_due = True

        return Exchange(commands, on_replies, on_lost)

    def _on_unanswered(self, claims: Sequence[Claim]) -> None:
        """Put claims back whose reply was lost, and claim one job at a time until it is known whether one is to
        blame.
        """
        self._singly = len(claims)
        if len(self._unanswered) > MAX_COUNTED:  # others have claimed them since
            self._unanswered.clear()
        for claim in claims:
            self._unanswered[claim.job_id] = self._unanswered.get(claim.job_id, 0) + 1
        first = claims[0]
        if len(claims) > 1 or self._unanswered[first.job_id] < MAX_UNANSWERED:
            self._push_back(claims)
            return

        def on_replies(replies: list[Any]) -> None:
            size = replies[0] if isinstance(replies[0], int) else 0
            lost = self._unanswered.pop(first.job_id, 0)
            if size < BLAMED_FROM:
                self._push_back(claims)
                return
            reason = (
                f"the connection was lost {lost} times while the job, with {size} bytes of arguments, was read "
                f"({self._loss}): "
                "keep large arguments elsewhere, or raise the server's client-output-buffer-limit"
            )
            self._parent.log.error("Worker %s: job %s: %s; failing it", first.worker_name, first.job_id, reason)
            self._outcomes.add(self._parent.ledger.bare_failure(first, reason))
            self._wakeup.wake()

        def on_lost(_error: Exception) -> None:
            self.recover_due = True

        self._parent.command.submit(Exchange([("HSTRLEN", f"rq:job:{first.job_id}", "data")], on_replies, on_lost))
