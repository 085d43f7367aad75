"""How a process publishes its statistics: one hash with expiry, under its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..wire import Command
from .keys import STATS, stats_key
from .scripts import Scripts

#: Seconds that the statistics of a web process are kept: one without requests is silent, which is no fault.
WEB_TTL = 3600.0


def publish(scripts: Scripts, process: str, ttl: float, fields: Mapping[str, Any]) -> Command:
    """Return the command that publishes ``fields`` for ``ttl`` seconds; values are stored as JSON."""
    words = {name: json.dumps(value, separators=(",", ":")) for name, value in fields.items()}
    return scripts.publish(stats_key(process), ttl, words)


def withdraw(process: str) -> list[Command]:
    """Return the commands that remove what a process has published: it ends."""
    return [("DEL", stats_key(process)), ("ZREM", STATS, stats_key(process))]
