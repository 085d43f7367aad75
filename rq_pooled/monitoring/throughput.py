"""How many jobs ended lately: what workers of ours add to one bounded list with their heartbeats."""

from __future__ import annotations

import re
from typing import Any

from redis import Redis

from ..foreign import is_wrong_type
from ..pool.registry import get_connection
from ..store.keys import ENDED
from ..store.queues import all_shown
from ..wire import text
from .processes import server_time

#: Seconds of one slot, see publish.lua, and of what the list keeps.
SLOT, HOUR = 15, 3600
_SLOT = re.compile(r"(\d{1,15}) (\d{1,15}) (\d{1,15})")


def throughput(connection: Redis | None = None, now: float | None = None) -> dict[str, Any]:
    """Return how many jobs ended on workers of rq_pooled during the last hour. Blocks for two round trips.

    Args:
        connection: a client of the server.
        now: the server's time where it is known.

    Returns:
        ``finished`` and ``failed`` (of the last hour), ``finished_per_minute`` and ``failed_per_minute`` (of the last
        five minutes, or since the first job ended), ``since`` (when the first of them ended, seconds since the epoch,
        or None), and ``slots``: each ``time`` (its begin), ``finished`` and ``failed``, the oldest first, those without
        any left out.
    """
    client = connection or get_connection()
    now = server_time(client) if now is None else now
    entries: list[Any] = []
    try:
        # The numbers are of all queues together.
        entries = client.lrange(ENDED, 0, HOUR // SLOT - 1) if all_shown(client.execute_command) else []
    except Exception as error:
        if not is_wrong_type(error):
            raise
    numbers = [tuple(map(int, found.groups())) for found in (_SLOT.fullmatch(text(one)) for one in entries) if found]
    slots = [
        {"time": slot * SLOT, "finished": finished, "failed": failed}
        for slot, finished, failed in sorted(numbers)
        if now - HOUR < slot * SLOT <= now
    ]
    return {
        **{name: sum(slot[name] for slot in slots) for name in ("finished", "failed")},
        **{f"{name}_per_minute": _rate(slots, name, now) for name in ("finished", "failed")},
        "since": slots[0]["time"] if slots else None,
        "slots": slots,
    }


def _rate(slots: list[dict[str, int]], name: str, now: float) -> float:
    recent = [slot for slot in slots if slot["time"] > now - 300]
    if not recent:
        return 0.0
    # The first job may have ended a moment ago: a minute is the least that is told of.
    span = max(60.0, now - slots[0]["time"]) if slots[0] is recent[0] else 300.0
    return round(float(sum(slot[name] for slot in recent)) / span * 60, 1)
