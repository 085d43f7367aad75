"""A horse tells its parent how long each phase may take, so that the parent knows when to kill it."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # CPython and PyPy have it, typeshed does not
import signal
from typing import TYPE_CHECKING, Any

from rq.timeouts import UnixSignalDeathPenalty

from ..originals import is_rqs_own

if TYPE_CHECKING:
    from .worker import HorseMixin

#: What stands behind signal.signal, which looks up an enum's member for what was set before.
_set_handler: Any = _signal.signal
_DEFAULT = int(signal.SIG_DFL)
#: Seconds that what follows a failed job may take: exception handlers. RQ kills a work horse 60 seconds past its
#: timeout.
HANDLER_TIME = 60.0


def announcing(penalty: Any, worker: HorseMixin) -> Any:
    """Return ``penalty``, RQ's class of a time limit, with each phase announced.

    The first phase, the job itself, is not: the parent knows its timeout from the job's hash. Exception handlers come
    after a callback, and have no limit of their own.
    """

    is_usual = penalty is UnixSignalDeathPenalty and is_rqs_own(penalty.setup_death_penalty)
    is_usual = is_usual and is_rqs_own(penalty.cancel_death_penalty)

    class Announcing(penalty):  # type: ignore[misc]
        def setup_death_penalty(self) -> None:
            self._of_callback = not worker.begins
            worker.begins = False
            if self._of_callback:
                worker.announce(self._timeout)
            if not is_usual:
                super().setup_death_penalty()
                return
            _set_handler(signal.SIGALRM, self.handle_death_penalty)
            signal.alarm(self._timeout)

        def cancel_death_penalty(self) -> None:
            if is_usual:
                signal.alarm(0)
                _set_handler(signal.SIGALRM, _DEFAULT)
            else:
                super().cancel_death_penalty()
            if self._of_callback:
                worker.announce(HANDLER_TIME)

        def handle_death_penalty(self, *args: Any) -> None:
            worker.alarm_fired = True
            super().handle_death_penalty(*args)

    return Announcing
