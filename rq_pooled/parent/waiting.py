"""Jobs that wait at a horse behind the one that runs, see Ahead: how they are given, taken back and put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..process.prefork import Horse, Prefork
from ..store.claim import Claim
from .slot import Slot, Task


class Waiting:
    """Knows for each slot which of its jobs have not begun.

    Args:
        prefork: reads what horses have said.
        on_untouched: called with claims whose jobs never began, and are to be put back.
        on_begun: the same of jobs that may have begun, which counts as a stall.
        on_not_begun: called where one of them was noted as running.
    """

    def __init__(
        self,
        prefork: Prefork,
        on_untouched: Callable[[list[Claim]], None],
        on_begun: Callable[[list[Claim]], None],
        on_not_begun: Callable[[], None],
    ) -> None:
        self._prefork = prefork
        self._on_untouched = on_untouched
        self._on_begun = on_begun
        self._on_not_begun = on_not_begun

    def add(self, slot: Slot, claims: Sequence[Claim]) -> None:
        """Note claims that the slot's horse is about to be told of, with a permit for each.

        Permits come first, since a horse that finds none thinks that all was taken back.
        """
        slot.waiting.extend(claims)
        if claims and slot.horse is not None and slot.horse.channel.side is not None:
            slot.horse.channel.side.permit(len(claims))

    def take_back(self, slot: Slot) -> list[Claim]:
        """Take and return what waits; afterwards the slot's claim is that of the job that runs, if any.

        A horse says that a job is over before it takes the permit of the next. So what is not taken is running.
        """
        if slot.horse is None:
            return []
        taken: list[Claim] = []
        if slot.waiting and slot.horse.channel.side is not None:
            taken = self._last(slot, slot.horse.channel.side.take_back())
        self._prefork.receive_last(slot.horse)
        return taken

    def put_back(self, *slots: Slot) -> None:
        """Take what waits, and have it put back in one step, since a queue keeps its order then."""
        if taken := [claim for slot in slots for claim in self.take_back(slot)]:
            self._on_untouched(taken)

    def take_one(self, slot: Slot, claim: Claim) -> bool:
        """Take what waits, and have it put back but for one; return whether that one was still there."""
        taken = self.take_back(slot)
        if others := [one for one in taken if one is not claim]:
            self._on_untouched(others)
        return len(others) < len(taken)

    def end(self, slot: Slot) -> bool:
        """Have put back what still waits though the horse begins no more of it; return whether there was any."""
        side = slot.horse.channel.side if slot.horse is not None else None
        if side is not None:
            side.in_use = False
        claims = list(slot.waiting)
        running = slot.claim if slot.task is not None and slot.task.kind == "perform" else None
        if not (claims or running):
            return False
        permits = side.take_back() if side is not None else 0
        slot.waiting.clear()
        if running is not None:
            # It was noted as running.
            self._on_not_begun()
        if running is not None and permits > len(claims):
            claims.insert(0, running)
            running = None
        if claims:
            self._on_untouched(claims)
        if running is not None:
            # It had no permit, or that is gone. So putting back has an end, whatever code of a job says to the parent.
            self._on_begun([running])
        return True

    def task_at_death(self, slot: Slot, horse: Horse) -> Task | None:
        """Return the task during which the slot's horse died, and have put back what it never began."""
        task = slot.task
        untouched = list(slot.waiting)
        slot.waiting.clear()
        if slot.claim is not None and horse.channel.untaken > len(untouched):
            # The job before it has ended, and its own permit was never taken.
            untouched.insert(0, slot.claim)
            self._on_not_begun()
            task = None
        if untouched:
            self._on_untouched(untouched)
        return task

    def _last(self, slot: Slot, count: int) -> list[Claim]:
        """Remove and return the slot's last ``count`` claims. The first of them may be noted as running already."""
        taken = [slot.waiting.pop() for _ in range(min(count, len(slot.waiting)))]
        if count > len(taken) and slot.claim is not None:
            taken.append(slot.claim)
            self._on_not_begun()
            # Its horse finds no permit, and says that it is free.
            slot.end()
        return taken[::-1]
