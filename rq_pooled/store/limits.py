"""Changes the limits of queues, see queue/limits.py."""

from __future__ import annotations

from ..wire import Command
from .keys import DECLARED_LIMITS, LIMITS
from .scripts import call


def change_limit(queue: str, who: str, written: str) -> Command:
    """Set the limit of a queue, as its ``code`` or an ``operator``, or ``clear`` it."""
    return call("limit", (LIMITS, DECLARED_LIMITS), queue, who, written)
