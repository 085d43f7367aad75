"""Lists the queues of a server, and counts what stands in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..foreign import names_key
from ..wire import Command, text
from .keys import QUEUE, QUEUES
from .scripts import call

#: Queues in one call, which takes the server about 2 ms.
PAGE = 100


def queue_names(ask: Callable[[str, str], Any]) -> list[str]:
    """Return the names of all queues that the server knows, in order.

    Args:
        ask: sends a command, such as a client's ``execute_command``.
    """
    with names_key(QUEUES):
        return sorted({text(key).removeprefix(QUEUE) for key in ask("SMEMBERS", QUEUES)})


def queue_states(names: Sequence[str], heads: int) -> Command:
    """Count what stands in these queues, see queue_states.lua; ``heads`` jobs of each tell since when they wait."""
    return call("queue_states", (), heads, *names)
