"""Has horses killed that are past their deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from .context import Context
from .slot import Slot
from .waiting import Waiting

#: Seconds between looks whether a horse is past its deadline.
DEADLINE_INTERVAL = 0.25


class Deadlines:
    """Sets deadlines of slots, and looks at all of them at once: a timer for each job would stay long after the job.

    Args:
        context: as the name says.
        slots: to be looked at.
        waiting: what waits behind a job is put back before its horse is killed.
        kill: ends the horse of a slot.
    """

    def __init__(
        self, context: Context, *, slots: Iterable[Slot], waiting: Waiting, kill: Callable[[Slot], None]
    ) -> None:
        self._context = context
        self._slots = slots
        self._waiting = waiting
        self._kill = kill

    def start(self) -> None:
        """Begin to look."""
        self._context.loop.call_every(DEADLINE_INTERVAL, self._look)

    def set(self, slot: Slot, timeout: float) -> None:
        """Have the horse killed KILL_GRACE seconds after ``timeout``; -1 never, or now if its slot is dismissed."""
        slot.deadline = None if timeout < 0 else time.monotonic() + timeout + self._context.settings.kill_grace
        if timeout < 0 and slot.dismissed:
            self._kill(slot)

    def _look(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.deadline is not None and slot.deadline <= now and slot.waiting:
                # The job may have ended.
                self._waiting.put_back(slot)
            if slot.deadline is not None and slot.deadline <= now:
                slot.deadline = None
                self._context.log.warning(
                    "killing its horse, %g s past its timeout", self._context.settings.kill_grace, worker=slot.name
                )
                self._kill(slot)
