"""How the limits of queues are changed, see queue/limits.py."""

from __future__ import annotations

from ..wire import Command
from .keys import DECLARED_LIMITS, LIMITS
from .scripts import call


def change_limit(queue: str, who: str, written: str) -> Command:
    """Change the limit of a queue: by its ``code``, an ``operator``, or ``clear`` it."""
    return call("limit", (LIMITS, DECLARED_LIMITS), queue, who, written)
