"""Lists the queues of a server and what stands in them; in a request of the page only those that it may show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, NamedTuple

from ..foreign import names_key
from ..wire import Command, text
from .keys import QUEUE, QUEUES
from .scripts import call

#: Queues in one call, which takes the server about 2 ms.
PAGE = 100
#: Queues that pages, commands and metrics look at, the first by name, and characters of a name. Others are counted.
MAX_QUEUES, MAX_NAME = 2_000, 1_000
#: Names among which these are looked for, and how many are read in one call, which takes the server 10 ms.
MAX_NAMES, _AT_ONCE = 100_000, 20_000
#: Seconds for asking who may see them, and how many are asked about nevertheless.
ASKING, AT_LEAST = 1.0, 200


class _Names(NamedTuple):
    """Names of queues that the server knows, in order, and how many others there are."""

    read: list[str]
    others: int


class _Viewer:
    """Says of queues whether they may be shown to one whose views are restricted, and remembers it."""

    def __init__(self, may_show: Callable[[str], bool]) -> None:
        self._may_show = may_show
        self._said: dict[str, bool] = {}
        self._left = ASKING
        #: The queues about which there was no time to ask.
        self.unasked: set[str] = set()
        #: What the server has said, once per request.
        self.names: list[_Names] = []

    def may(self, queue: str) -> bool:
        """Ask, once. What there is no time to ask about may not be shown: others choose how many names there are."""
        if queue not in self._said:
            if self._left <= 0 and len(self._said) >= AT_LEAST:
                self.unasked.add(queue)
                return False
            begun = time.monotonic()
            self._said[queue] = self._may_show(queue)
            self._left -= time.monotonic() - begun
        return self._said[queue]


#: Who is shown something; each thread, greenlet and task has its own.
_viewer: ContextVar[_Viewer | None] = ContextVar("rq_pooled_viewer", default=None)
#: Keeps what the server has said, where it is asked once.
_said: ContextVar[list[_Names] | None] = ContextVar("rq_pooled_said", default=None)


def show_only(may_show: Callable[[str], bool] | None) -> None:
    """Have ``queue_names`` and statistics leave out other queues, until this is called with None.

    It stands here, below all that reads queues, so that no list or sum can forget it.
    """
    _viewer.set(_Viewer(may_show) if may_show is not None else None)


@contextmanager
def asked_once() -> Iterator[None]:
    """Ask one server once for its queues while the block lasts, so that all parts of a view are of the same ones."""
    token = _said.set([])
    try:
        yield
    finally:
        _said.reset(token)


def is_shown(queue: str) -> bool:
    """Tell whether a queue may be shown to whom it is read for."""
    viewer = _viewer.get()
    return viewer is None or viewer.may(queue)


def asked_all() -> bool:
    """Tell whether each queue was read, and asked about; what shows others has to say if not."""
    viewer = _viewer.get()
    return viewer is None or not (viewer.unasked or any(names.others for names in viewer.names))


def is_restricted() -> bool:
    """Tell whether single queues may be hidden from whom is read for."""
    return _viewer.get() is not None


def all_shown(ask: Callable[..., Any]) -> bool:
    """Tell whether every queue may be shown, and so what is known of all together.

    A queue that was deleted is not asked about: what names a queue is to be asked about by its name.
    """
    if not is_restricted():
        return True
    names = _read(ask)
    return not names.others and all(map(is_shown, names.read))


def queue_names(ask: Callable[..., Any]) -> list[str]:
    """Return the names of all queues that the server knows, in order, for what has to look at each; see ``show_only``.

    Views take ``first_queues``, which bounds how long is asked.

    Args:
        ask: sends a command, such as a client's ``execute_command``.
    """
    with names_key(QUEUES):
        names = {text(key).removeprefix(QUEUE) for key in ask("SMEMBERS", QUEUES)}
    return sorted(name for name in names if len(name) <= MAX_NAME and is_shown(name))


def first_queues(ask: Callable[..., Any]) -> list[str]:
    """Return the first MAX_QUEUES by name, for views of all of them at once; of MAX_NAMES where there are more."""
    names = (name for name in _read(ask).read if len(name) <= MAX_NAME and is_shown(name))
    return list(islice(names, MAX_QUEUES))


def left_out(ask: Callable[..., Any]) -> int:
    """Return how many queues that may be shown ``first_queues`` leaves out, or of which that is not known."""
    names, viewer = _read(ask), _viewer.get()
    shown = list(filter(is_shown, names.read))
    others = names.others + (len(viewer.unasked) if viewer is not None else 0)
    return len(shown) - min(MAX_QUEUES, sum(len(name) <= MAX_NAME for name in shown)) + others


def _read(ask: Callable[..., Any]) -> _Names:
    viewer = _viewer.get()
    said = _said.get() if viewer is None else viewer.names
    if said:
        return said[0]
    found: set[str] = set()
    cursor: Any = 0
    with names_key(QUEUES):
        while True:
            cursor, keys = ask("SSCAN", QUEUES, cursor, "COUNT", _AT_ONCE)
            found.update(text(key).removeprefix(QUEUE) for key in keys)
            if int(cursor) == 0 or len(found) >= MAX_NAMES:
                break
        others = max(0, ask("SCARD", QUEUES) - len(found)) if int(cursor) else 0
    names = _Names(sorted(found), others)
    if said is not None:
        said.append(names)
    return names


def queue_states(names: Sequence[str], heads: int) -> Command:
    """Count what stands in these queues, see queue_states.lua; ``heads`` jobs of each tell since when they wait."""
    return call("queue_states", (), heads, *names)
