"""Publishes a process's statistics: one hash with expiry, under its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..wire import Command
from .keys import SAMPLES, STATS, stats_key
from .scripts import call

#: Seconds that the statistics of a web process are kept, long because a process without requests is silent.
WEB_TTL = 3600.0


def publish(process: str, ttl: float, fields: Mapping[str, Any]) -> Command:
    """Return the command that publishes ``fields`` for ``ttl`` seconds; values are stored as JSON."""
    words = {name: json.dumps(value, separators=(",", ":")) for name, value in fields.items()}
    return call("publish", [stats_key(process)], ttl, *(word for field in words.items() for word in field))


def withdraw(process: str) -> list[Command]:
    """Return the commands that remove the statistics of a process that ends."""
    return [("DEL", stats_key(process)), ("ZREM", STATS, stats_key(process))]


def note_clients(connected: int, maxclients: int, interval: float) -> Command:
    """Note the number of clients, unless it was noted less than ``interval`` seconds ago."""
    return call("sample", [SAMPLES], connected, maxclients, interval)
