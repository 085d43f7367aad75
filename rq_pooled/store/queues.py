"""Lists the queues of a server and what stands in them; in a request of the page only those that it may show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..foreign import names_key
from ..wire import Command, text
from .keys import QUEUE, QUEUES
from .scripts import call

#: Queues in one call, which takes the server about 2 ms.
PAGE = 100
#: Queues that pages, commands and metrics look at, the first by name, and characters of a name. Others are counted.
MAX_QUEUES, MAX_NAME = 2_000, 1_000

#: Tells of a queue whether it may be shown; each thread, greenlet and task has its own.
_may_show: ContextVar[Callable[[str], bool] | None] = ContextVar("rq_pooled_may_show", default=None)
#: Keeps what the server has said, where it is asked once.
_said: ContextVar[list[set[str]] | None] = ContextVar("rq_pooled_said", default=None)


def show_only(may_show: Callable[[str], bool] | None) -> None:
    """Have ``queue_names`` and statistics leave out other queues, until this is called with None.

    It stands here, below all that reads queues, so that no list or sum can forget it.
    """
    _may_show.set(may_show)


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
    may_show = _may_show.get()
    return may_show is None or may_show(queue)


def is_restricted() -> bool:
    """Tell whether single queues may be hidden from whom is read for."""
    return _may_show.get() is not None


def all_shown(ask: Callable[[str, str], Any]) -> bool:
    """Tell whether every queue may be shown, and so what is known of all together.

    A queue that was deleted is not asked about: what names a queue is to be asked about by its name.
    """
    return not is_restricted() or all(map(is_shown, _known(ask)))


def queue_names(ask: Callable[[str, str], Any]) -> list[str]:
    """Return the names of all queues that the server knows, in order; see ``show_only``.

    Args:
        ask: sends a command, such as a client's ``execute_command``.
    """
    return sorted(name for name in _known(ask) if len(name) <= MAX_NAME and is_shown(name))


def first_queues(ask: Callable[[str, str], Any]) -> list[str]:
    """Return the first MAX_QUEUES of ``queue_names``, for views of all of them at once."""
    return queue_names(ask)[:MAX_QUEUES]


def left_out(ask: Callable[[str, str], Any]) -> int:
    """Return how many queues that may be shown ``first_queues`` leaves out."""
    shown = list(filter(is_shown, _known(ask)))
    return len(shown) - min(MAX_QUEUES, sum(len(name) <= MAX_NAME for name in shown))


def _known(ask: Callable[[str, str], Any]) -> set[str]:
    said = _said.get()
    if said:
        return said[0]
    with names_key(QUEUES):
        known = {text(key).removeprefix(QUEUE) for key in ask("SMEMBERS", QUEUES)}
    if said is not None:
        said.append(known)
    return known


def queue_states(names: Sequence[str], heads: int) -> Command:
    """Count what stands in these queues, see queue_states.lua; ``heads`` jobs of each tell since when they wait."""
    return call("queue_states", (), heads, *names)
