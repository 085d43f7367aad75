"""Lists the queues of a server and what stands in them; of those, a view lists what it may show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ..foreign import names_key
from ..wire import Command, text
from .keys import QUEUE, QUEUES
from .scripts import call, run
from .views import MAX_NAME, current_view, is_shown, note_cut

#: Queues in one call, which takes the server about 2 ms.
PAGE = 100
#: Queues that pages, commands and metrics look at. Others are counted.
MAX_QUEUES = 2_000
#: Names among which these are looked for, and how many are read in one call, which takes the server 10 ms.
MAX_NAMES, _AT_ONCE = 100_000, 20_000
#: Beyond so many names, those that workers serve come first; and how many workers are asked for them.
_FEW, _WORKERS = 200, 2_000


class _Names(NamedTuple):
    """Names of queues that the server knows, in the order in which they are looked at, and how many others there are.

    Many processes may write names, and few may register workers: who writes many names crowds no queue out of views
    that a worker serves.
    """

    read: list[str]
    others: int


def all_shown(ask: Callable[..., Any]) -> bool:
    """Tell whether every queue may be shown, and so what is known of all together.

    A queue that was deleted is not asked about: what names a queue is to be asked about by its name.
    """
    if not current_view().is_restricted:
        return True
    names = _read(ask)
    if names.others:
        note_cut()
    return not names.others and all(map(is_shown, names.read))


def queue_names(ask: Callable[..., Any]) -> list[str]:
    """Return the names of all queues that the server knows, in order, for what has to look at each.

    Views take ``first_queues``, which bounds how long is asked.

    Args:
        ask: sends a command, such as a client's ``execute_command``.
    """
    with names_key(QUEUES):
        names = {text(key).removeprefix(QUEUE) for key in ask("SMEMBERS", QUEUES)}
    return sorted(name for name in names if len(name) <= MAX_NAME and is_shown(name))


def first_queues(ask: Callable[..., Any]) -> list[str]:
    """Return at most MAX_QUEUES in order, for views of all of them at once; notes if there are more.

    Where there are many, those that workers serve come before others.
    """
    names = _read(ask)
    shown = list(islice((name for name in names.read if len(name) <= MAX_NAME and is_shown(name)), MAX_QUEUES + 1))
    if len(shown) > MAX_QUEUES or names.others or any(len(name) > MAX_NAME and is_shown(name) for name in names.read):
        note_cut()
    return sorted(shown[:MAX_QUEUES])


def left_out(ask: Callable[..., Any]) -> int:
    """Return how many queues that may be shown ``first_queues`` leaves out, or of which that is not known."""
    names = _read(ask)
    shown = list(filter(is_shown, names.read))
    others = names.others + len(current_view().unknown)
    return len(shown) - min(MAX_QUEUES, sum(len(name) <= MAX_NAME for name in shown)) + others


def _read(ask: Callable[..., Any]) -> _Names:
    view = current_view()
    if view.names is not None:
        known: _Names = view.names
        return known
    found: set[str] = set()
    cursor: Any = 0
    with names_key(QUEUES):
        while True:
            cursor, keys = ask("SSCAN", QUEUES, cursor, "COUNT", _AT_ONCE)
            found.update(text(key).removeprefix(QUEUE) for key in keys)
            if int(cursor) == 0 or len(found) >= MAX_NAMES:
                break
        others = max(0, ask("SCARD", QUEUES) - len(found)) if int(cursor) else 0
    replies = run(lambda command: ask(*command), served_queues()) if len(found) > _FEW else []
    served = {name for reply in replies for name in text(reply).split(",") if name}
    # One of the others may be served, too: an unknown one shows as an empty queue.
    served &= found if not others else served
    view.names = names = _Names([*sorted(served), *sorted(found - served)], others)
    return names


def served_queues() -> Command:
    """Name the queues that registered workers serve, see served_queues.lua."""
    return call("served_queues", (), _WORKERS)


def queue_states(names: Sequence[str], heads: int) -> Command:
    """Count what stands in these queues, see queue_states.lua; ``heads`` jobs of each tell since when they wait."""
    return call("queue_states", (), heads, *names)
