"""Lists the queues of a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..foreign import names_key
from ..wire import text
from .keys import QUEUE, QUEUES


def queue_names(ask: Callable[[str, str], Any]) -> list[str]:
    """Return the names of all queues that the server knows, in order.

    Args:
        ask: sends a command, such as a client's ``execute_command``.
    """
    with names_key(QUEUES):
        return sorted({text(key).removeprefix(QUEUE) for key in ask("SMEMBERS", QUEUES)})
