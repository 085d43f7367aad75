"""Numbers, durations and moments as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from ..foreign import LAST_TIME, MAX_VALUE, printable

#: Names in a list of some.
_NAMED = 5


def number(value: float | None) -> str:
    """Return 1234567 as 1 234 567 with narrow spaces, None as a dash."""
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def count(value: int, noun: str, many: str = "") -> str:
    """Return ``1 job``, ``2 jobs``; ``many`` is said of two where that is not the noun with an s."""
    return f"{number(value)} {noun if value == 1 else many or noun + 's'}"


def some(names: Sequence[str]) -> str:
    """Return the first of these names, and ``…`` where there are more."""
    return ", ".join(printable(name, MAX_VALUE) for name in names[:_NAMED]) + (" …" if len(names) > _NAMED else "")


def rate(per_minute: float) -> str:
    """Return how often something happens: 2.4, and from 10 on whole numbers."""
    return number(round(per_minute)) if per_minute >= 10 else f"{per_minute:g}"


def span(seconds: float | None) -> str:
    """Return a duration as people say it: 20 ms, 0.4 s, 12 s, 3 min, 5 h, 2 d; None as a dash."""
    if seconds is None:
        return "–"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    for size, most, unit in ((1, 100, "s"), (60, 100, "min"), (3600, 48, "h")):
        if seconds / size < most:
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds / 86400)} d"


def ago(seconds: float) -> str:
    """Return how long ago something was; a moment that another clock puts into the future is now."""
    return "now" if seconds < 1 else f"{span(seconds)} ago"


def due(seconds: float) -> str:
    """Return when something is to come, in so many seconds; what is a little late comes now."""
    return f"in {span(seconds)}" if seconds > 0 else "now" if seconds > -5 else f"late by {span(-seconds)}"


def moment(seconds: float | None, now: float) -> dict[str, Any] | None:
    """Return how long ago a moment was (``ago``), and itself for a reader (``full``) and a script (``iso``).

    None, and what Python has no date for, is None.
    """
    if seconds is None or not 0 <= seconds <= LAST_TIME:
        return None
    when = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return {"ago": ago(now - seconds), "full": f"{when:%Y-%m-%d %H:%M:%S} UTC", "iso": f"{when:%Y-%m-%dT%H:%M:%SZ}"}
