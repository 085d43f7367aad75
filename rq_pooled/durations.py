"""Durations as people write them, ``10m`` or ``1h30m``, and as they are shown, and a clock for long ones."""

from __future__ import annotations

import re
import time

from .errors import ConfigurationError

_UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_WRITTEN = re.compile("".join(rf"(?:(\d{{1,15}}){unit})?" for unit in _UNITS), re.IGNORECASE)
#: 100 years. Who writes more means for ever, or has slipped; Redis takes no time whose milliseconds exceed 64 bits.
LONGEST = 36_525 * 86_400
#: Counts while the machine sleeps, where the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def parse_duration(text: str | float, what: str = "the duration") -> float:
    """Return the seconds that ``text`` says: ``90``, ``45s``, ``10m``, ``1h30m``, ``2d``, ``1w``.

    Args:
        text: units from the longest to the shortest, each at most once; a bare number is seconds.
        what: how the error names it.

    Raises:
        ConfigurationError: it is written otherwise, negative, or longer than 100 years; the message shows how to write
            it.
    """
    written = str(text).strip()
    try:
        seconds = float(written)
    except ValueError:
        match = _WRITTEN.fullmatch(written)
        if not written or match is None:
            seconds = -1.0
        else:
            seconds = sum(float(n) * unit for n, unit in zip(match.groups(), _UNITS.values()) if n)
    if not 0 <= seconds < float("inf"):
        raise ConfigurationError(f"{what} is {written or 'empty'}: write it as 45s, 10m, 1h30m or 2d")
    if seconds > LONGEST:
        raise ConfigurationError(f"{what} is {written}: at most 100 years ({show_duration(LONGEST)}) can be kept")
    return seconds


def show_duration(seconds: float) -> str:
    """Return ``seconds``, of at least 0, with its two largest units: ``1h30m``, ``30d``, ``0.5s``.

    Weeks are understood, but not shown: who wrote ``30d`` is not to read ``4w2d``.
    """
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    left, parts = int(seconds), []
    for unit, size in _UNITS.items():
        if unit == "w":
            continue
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts[:2]) or "0s"


def since_boot() -> float:
    """Return seconds of a clock that only moves forward, also while the machine sleeps."""
    return time.clock_gettime(_CLOCK)
