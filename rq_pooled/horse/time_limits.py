"""A horse tells its parent how long each phase may take, so that the parent knows when to kill it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .worker import HorseMixin

#: Seconds that what follows a failed job may take: exception handlers. RQ kills a work horse 60 seconds past its
#: timeout.
HANDLER_TIME = 60.0


def announcing(penalty: Any, worker: HorseMixin) -> Any:
    """Return ``penalty``, RQ's class of a time limit, with each phase announced.

    The first phase, the job itself, is not: the parent knows its timeout from the job's hash. Exception handlers come
    after a callback, and have no limit of their own.
    """

    class Announcing(penalty):  # type: ignore[misc]
        def setup_death_penalty(self) -> None:
            self._of_callback = not worker.begins
            worker.begins = False
            if self._of_callback:
                worker.announce(self._timeout)
            super().setup_death_penalty()

        def cancel_death_penalty(self) -> None:
            super().cancel_death_penalty()
            if self._of_callback:
                worker.announce(HANDLER_TIME)

        def handle_death_penalty(self, *args: Any) -> None:
            worker.alarm_fired = True
            super().handle_death_penalty(*args)

    return Announcing
