"""The chart of the last hour's connections, as SVG coordinates: no library, no script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Units of the SVG; it is scaled to the width of the page.
WIDTH, HEIGHT = 720, 180
_HOUR = 3600.0
#: Samples further apart than this many seconds are not joined: no process measured meanwhile.
_GAP = 180.0
#: A limit is drawn if it is at most this many times the highest value; else the values would be a flat line.
_IN_SIGHT = 3.0
#: Roles that have a band of their own, those with most connections; the band of all others comes last.
BANDS = 4
OTHERS = "others"


def chart(samples: Sequence[dict[str, Any]], now: float, limits: dict[str, int | None]) -> dict[str, Any] | None:
    """Return the bands and lines of the chart, None without samples.

    Args:
        samples: dictionaries with ``time``, ``connected`` and ``roles`` (ours, role -> connections), oldest first.
        now: seconds since the epoch; the right edge.
        limits: name -> number of connections, or None.

    Returns:
        ``bands``: from the bottom up, each ``name``, ``latest``, and ``areas`` (SVG paths, one for each stretch without
        a gap); ``lines`` (paths of the total), ``grid`` (``y``, ``label``), ``limits`` (``name``, ``value``, ``y``),
        ``hidden`` (name and value of limits far above), ``ticks`` (``x``, ``label``), ``lowest``, ``highest``,
        ``latest``.
    """
    recent = [sample for sample in samples if now - _HOUR <= sample["time"] <= now + 60]
    if not recent:
        return None
    values = [sample["connected"] for sample in recent]
    known = {name: value for name, value in limits.items() if value}
    shown = {name: value for name, value in known.items() if value <= max(4, max(values)) * _IN_SIGHT}
    step = _step(max([4, *values, *shown.values()]) * 1.05)
    top = step * 4

    def x(when: float) -> float:
        return round(WIDTH * min(1.0, max(0.0, 1 - (now - when) / _HOUR)), 1)

    def y(value: float) -> float:
        return round(HEIGHT * (1 - value / top), 1)

    def path(stretch: list[tuple[float, float]]) -> str:
        # A single look is a dash, not nothing.
        stretch = stretch if len(stretch) > 1 else [(max(0.0, stretch[0][0] - 4), stretch[0][1]), *stretch]
        return "L".join(f"{px} {py}" for px, py in stretch)

    names = _names(recent)
    bands: list[dict[str, Any]] = [{"name": name, "latest": 0, "areas": []} for name in names]
    lines = []
    for stretch in _stretches(recent):
        times = [x(sample["time"]) for sample in stretch]
        lower = [0] * len(stretch)
        for name, band in zip(names, bands):
            sizes = [_size(sample, name, names) for sample in stretch]
            # What was published may be a little older than the total: no band goes above it.
            upper = [min(low + size, sample["connected"]) for low, size, sample in zip(lower, sizes, stretch)]
            band["latest"] = upper[-1] - lower[-1]
            there = path([(px, y(value)) for px, value in zip(times, upper)])
            back = path([(px, y(value)) for px, value in zip(times, lower)])
            band["areas"].append(f"M{there}L{'L'.join(reversed(back.split('L')))}Z")
            lower = upper
        lines.append("M" + path([(px, y(sample["connected"])) for px, sample in zip(times, stretch)]))
    return {
        "bands": bands,
        "lines": lines,
        "grid": [{"y": y(step * i), "label": step * i} for i in range(5)],
        "limits": [{"name": name, "value": value, "y": y(value)} for name, value in shown.items()],
        "hidden": {name: value for name, value in known.items() if name not in shown},
        "ticks": [
            {"x": round(WIDTH * i / 4, 1), "label": "now" if i == 4 else f"−{60 - 15 * i} min"} for i in range(5)
        ],
        "lowest": min(values),
        "highest": max(values),
        "latest": values[-1],
    }


def _names(samples: Sequence[dict[str, Any]]) -> list[str]:
    most: dict[str, int] = {}
    for sample in samples:
        for role, count in sample["roles"].items():
            most[role] = max(most.get(role, 0), int(count))
    named = sorted(sorted(most, key=lambda role: -most[role])[:BANDS])
    return [*named, OTHERS]


def _size(sample: dict[str, Any], name: str, names: Sequence[str]) -> int:
    if name != OTHERS:
        return int(sample["roles"].get(name, 0))
    ours = sum(int(count) for role, count in sample["roles"].items() if role in names)
    return max(0, int(sample["connected"]) - ours)


def _step(most: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50 … of which four reach ``most``."""
    step = 1
    while step * 4 < most:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return step


def _stretches(samples: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    result: list[list[dict[str, Any]]] = []
    for sample in samples:
        if not result or sample["time"] - result[-1][-1]["time"] > _GAP:
            result.append([])
        result[-1].append(sample)
    return result
