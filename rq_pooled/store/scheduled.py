"""Moves RQ's scheduled jobs into their queues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rq.utils import now, utcformat

from ..wire import Command
from .keys import registry_key
from .scripts import call

#: Seconds that a scheduler lock lives, as RQ's own: its interval of one second plus 60.
SCHEDULER_LOCK_TTL = 61
#: Jobs per queue that one promotion moves; when there are more, it is called again at once.
MAX_PROMOTED = 100
#: The timeout that RQ's scheduler gives to a job without one.
DEFAULT_TIMEOUT = 180


def promote(queues: Iterable[str], name: str, fields: Mapping[str, str], asked: Sequence[Any] = ()) -> Command:
    """Return the command that moves due scheduled jobs, as the scheduler with this name and these hash fields.

    Its reply ends with how many of the keys ``asked`` for exist then.
    """
    keys = [registry_key("scheduled", queue) for queue in queues]
    words = [word for field in fields.items() for word in field]
    settings = (SCHEDULER_LOCK_TTL, utcformat(now()), DEFAULT_TIMEOUT, MAX_PROMOTED, len(keys))
    return call("promote", [*keys, *asked], name, *settings, *words)
