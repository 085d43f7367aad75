"""The chart of the last hour's connections, as SVG coordinates: no library, no script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Units of the SVG; it is scaled to the width of the page.
WIDTH, HEIGHT = 720, 180
_HOUR = 3600.0
#: Samples further apart than this many seconds are not joined: nobody was looking.
_GAP = 180.0
#: A limit is drawn if it is at most this many times the highest value; else the values would be a flat line.
_IN_SIGHT = 3.0


def chart(samples: Sequence[dict[str, Any]], now: float, limits: dict[str, int | None]) -> dict[str, Any] | None:
    """Return the areas and lines of the chart, None without samples.

    Args:
        samples: dictionaries with ``time`` and ``connected``, oldest first.
        now: seconds since the epoch; the right edge.
        limits: name -> number of connections, or None.

    Returns:
        ``areas`` and ``lines`` (SVG paths, one for each stretch without a gap), ``grid`` (``y``, ``label``), ``limits`` (``name``,
        ``value``, ``y``), ``hidden`` (name and value of limits far above), ``ticks`` (``x``, ``label``), ``lowest``, ``highest``,
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

    lines, areas = [], []
    for stretch in _stretches(recent):
        points = [(x(sample["time"]), y(sample["connected"])) for sample in stretch]
        # A single look is a dash, not nothing.
        points = points if len(points) > 1 else [(max(0, points[0][0] - 4), points[0][1]), points[0]]
        path = "L".join(f"{px} {py}" for px, py in points)
        lines.append(f"M{path}")
        areas.append(f"M{points[0][0]} {HEIGHT}L{path}L{points[-1][0]} {HEIGHT}Z")
    return {
        "lines": lines,
        "areas": areas,
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
