"""Claims ahead while jobs are short: how many, which of them wait at a horse, and when they are taken back."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

from ..config.settings import Settings
from ..process.runnable import is_runnable, processor_time
from ..store.claim import Claim
from .context import Context
from .events import Events
from .expected import Expected
from .slot import Slot
from .slots import Slots

#: Seconds of expected work that a slot is given at once, and jobs.
BUDGET, MAX_JOBS = 0.005, 16
#: Descriptors per slot that the system must allow.
DESCRIPTORS = 10
#: Seconds between two looks at slots where jobs wait.
LOOK = 0.003
#: Seconds for which a job may run before what waits is taken back, or use a processor since it was first looked at.
PATIENCE, PROCESSOR_TIME = 0.006, 0.004
#: The same for a job that may only wait for a processor: as long as free slots find other jobs, and otherwise.
WHILE_OTHERS, WHILE_NONE = 0.05, 0.014


def is_ahead(settings: Settings) -> bool:
    """Tell whether jobs may wait at horses. One job at a time is RQ's strict order.

    Each horse takes five descriptors of the parent then, instead of three.
    """
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    enough = descriptors == resource.RLIM_INFINITY or descriptors >= DESCRIPTORS * settings.concurrency
    return bool(settings.claim_ahead) and settings.concurrency > 1 and enough


class Ahead:
    """Keeps the time of jobs that wait at horses.

    Args:
        context, events, slots, expected: as the names say.
        allowed: whether to claim ahead at all.
    """

    def __init__(self, context: Context, events: Events, *, slots: Slots, expected: Expected, allowed: bool) -> None:
        self._context = context
        self._slots = slots
        self._expected = expected
        self._allowed = allowed and is_ahead(context.settings)
        self._looking = False
        #: The last claim found as many jobs as it asked for.
        self.found_all = False
        #: By slot: since when its job runs, and its horse's processor time when that job was first looked at.
        self._seen: dict[Slot, tuple[float, float]] = {}
        events.shutdown_began.append(self.put_back)
        for changed in (events.suspension_changed, events.hold_changed):
            changed.append(lambda _stopped: self.put_back())

    def per_slot(self, slots: Sequence[Slot]) -> int:
        """Return how many jobs each of these free slots may be given."""
        mean = self._expected.mean
        if not self._allowed or mean is None or mean * 2 > BUDGET:
            return 1
        until_replaced = min(self._context.settings.max_jobs_per_horse - slot.jobs for slot in slots)
        return max(1, min(MAX_JOBS, int(BUDGET / max(mean, 1e-6)), until_replaced))

    def share(self, claims: Sequence[Claim]) -> tuple[list[Claim], list[Claim]]:
        """Return which of a slot's claims it is given, in this order, and which go back.

        A job that is expected to be long comes last, so that none waits behind it.
        """
        if len(claims) == 1:
            return list(claims), []
        given: list[Claim] = []
        back: list[Claim] = []
        last: Claim | None = None
        total = 0.0
        for claim in claims:
            seconds = self._expected.of(claim)
            if seconds > BUDGET and last is None:
                last = claim
            elif (given or last is not None) and total + seconds > BUDGET:
                back.append(claim)
            else:
                total += seconds
                given.append(claim)
        return given + ([last] if last is not None else []), back

    def watch(self) -> None:
        """Look soon at slots where jobs wait, and until none waits."""
        if not self._looking:
            self._looking = True
            self._context.loop.call_later(LOOK, self._look)

    def _look(self) -> None:
        self._looking = False
        now = time.monotonic()
        overdue = []
        for slot in self._slots:
            if slot.waiting:
                # What has ended is recorded now.
                self._slots.receive(slot)
                if self._is_overdue(slot, now - slot.since):
                    overdue.append(slot)
        if overdue:
            self._slots.waiting.put_back(*overdue)
        if any(slot.waiting for slot in self._slots):
            self.watch()
        else:
            self._seen.clear()

    def _is_overdue(self, slot: Slot, seconds: float) -> bool:
        if not slot.waiting or slot.horse is None:
            return False
        used = processor_time(slot.horse.pid)
        since, before = self._seen.get(slot, (0.0, 0.0))
        if since != slot.since:
            self._seen[slot] = (slot.since, used)
            before = used
        if seconds < PATIENCE:
            return False
        if used - before >= PROCESSOR_TIME or not is_runnable(slot.horse.pid):
            return True
        return seconds >= (WHILE_OTHERS if self.found_all else WHILE_NONE)

    def put_back(self) -> None:
        """Put back all that waits."""
        if slots := [slot for slot in self._slots if slot.waiting]:
            self._slots.waiting.put_back(*slots)
