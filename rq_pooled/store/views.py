"""What one reader is shown: which queues that may be, what may be done to them, and whether anything was left out.

It stands here, below all that reads queues, so that no list or sum can forget it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

#: Seconds for asking about queues, whose names others choose, and how many questions may take twice as long.
ASKING, AT_LEAST = 1.0, 200
#: Characters of a queue's name above which it is not asked about, and left out.
MAX_NAME = 1_000
_VIEW = "view"

_log = logging.getLogger("rq_pooled")

#: ``ask(action, queue)`` tells whether the reader may do it; ``view`` is one of the actions.
Ask = Callable[[str, str], bool]


class View:
    """What one reader is shown.

    Args:
        ask: see ``Ask``, called once for each action and queue. Without it, all may be shown and done.
    """

    def __init__(self, ask: Ask | None) -> None:
        self._ask = ask
        self._said: dict[tuple[str, str], bool | None] = {}
        self._left = ASKING
        self._has_failed = False
        #: The queues of which it is not known whether they may be shown.
        self.unknown: set[str] = set()
        self.is_whole = True
        #: What the server has said, read once.
        self.names: Any = None

    @property
    def is_restricted(self) -> bool:
        """Tell whether single queues may be hidden."""
        return self._ask is not None

    def may(self, action: str, queue: str) -> bool:
        """Ask. What there is no time to ask about, or no answer, may not be, and the view is noted as cut."""
        if self._ask is None:
            return True
        about = (action, queue)
        if about not in self._said:
            if len(queue) > MAX_NAME or self._left <= (-ASKING if len(self._said) < AT_LEAST else 0):
                said = None
            else:
                said = self._said[about] = self._asked(self._ask, *about)
            if said is None:
                self.is_whole = False
            if said is None and action == _VIEW:
                self.unknown.add(queue)
            return bool(said)
        return bool(self._said[about])

    def _asked(self, ask: Ask, action: str, queue: str) -> bool | None:
        begun = time.monotonic()
        try:
            return ask(action, queue)
        except Exception:  # noqa: BLE001 - a user's code, which may not take any name, such as one that is no text
            if not self._has_failed:
                _log.exception("it is not known whether %s is allowed in the queue %r: it is left out", action, queue)
            self._has_failed = True
            return None
        finally:
            self._left -= time.monotonic() - begun


#: Each thread, greenlet and task has its own.
_view: ContextVar[View | None] = ContextVar("rq_pooled_view", default=None)


@contextmanager
def viewing(ask: Ask | None = None) -> Iterator[None]:
    """Have all that reads queues show only what may be while the block lasts; without a view, all may be."""
    token = _view.set(View(ask))
    try:
        yield
    finally:
        _view.reset(token)


@contextmanager
def one_view() -> Iterator[None]:
    """Have the parts of a block be of the same queues: in the view that there is, or else in one of its own."""
    with viewing() if _view.get() is None else nullcontext():
        yield


def current_view() -> View:
    """Return the view that was begun, or one of its own in which all may be shown."""
    return _view.get() or View(None)


def is_shown(queue: str) -> bool:
    """Tell whether a queue may be shown to whom it is read for."""
    return current_view().may(_VIEW, queue)


def is_whole() -> bool:
    """Tell whether nothing was left out of the view that may be shown; what shows it has to say if not."""
    return current_view().is_whole


def note_cut() -> None:
    """Note that something was left out of the view that may be shown."""
    current_view().is_whole = False
