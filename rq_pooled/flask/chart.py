"""The charts of the last hour, of connections and of jobs that ended, as SVG coordinates: no library, no script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

#: Units of the SVG; it is scaled to the width of the page.
WIDTH, HEIGHT, BARS = 720, 120, 90
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
        ``bands``: from the bottom up, each ``name``, ``class``, ``latest``, and ``areas`` (SVG paths, one for each
        stretch without a gap); ``lines`` (paths of the total), ``grid`` (``y``, ``label``), ``limits`` (``name``,
        ``value``, ``y``), ``hidden`` (name and value of limits far above), ``ticks`` (``x``, ``label``), ``lowest``,
        ``highest``, ``latest``, ``minutes``.
    """
    recent = [sample for sample in samples if now - _HOUR <= sample["time"] <= now + 60]
    if not recent:
        return None
    values = [sample["connected"] for sample in recent]
    minutes = _minutes(now - recent[0]["time"])
    known = {name: value for name, value in limits.items() if value}
    shown = {name: value for name, value in known.items() if value <= max(4, max(values)) * _IN_SIGHT}
    step = _step(max([4, *values, *shown.values()]) * 1.05)
    top = step * 4

    def x(when: float) -> float:
        return round(WIDTH * min(1.0, max(0.0, 1 - (now - when) / (60 * minutes))), 1)

    def y(value: float) -> float:
        return round(HEIGHT * (1 - value / top), 1)

    bands: list[dict[str, Any]] = [
        {"name": name, "class": name if name == OTHERS else f"b{place}", "latest": 0, "areas": []}
        for place, name in enumerate(_names(recent))
    ]
    lines = []
    for stretch in _stretches(recent):
        times = [x(sample["time"]) for sample in stretch]
        if len(stretch) == 1:
            # A single look is a dash, not nothing.
            stretch, times = stretch * 2, [max(0.0, times[0] - 4), *times]
        lower = [0] * len(stretch)
        for band in bands:
            # What was published may be a little older than the total: no band goes above it, and the last up to it.
            sizes = [{**sample["roles"], OTHERS: sample["connected"]}.get(band["name"], 0) for sample in stretch]
            upper = [min(low + int(size), sample["connected"]) for low, size, sample in zip(lower, sizes, stretch)]
            band["latest"] = upper[-1] - lower[-1]
            there, back = ([f"{px} {y(value)}" for px, value in zip(times, edge)] for edge in (upper, lower))
            band["areas"].append(f"M{'L'.join([*there, *reversed(back)])}Z")
            lower = upper
        lines.append(f"M{'L'.join(there)}")
    return {
        "bands": bands,
        "lines": lines,
        "grid": [{"y": y(step * i), "label": step * i} for i in range(5)],
        "limits": [{"name": name, "value": value, "y": y(value)} for name, value in shown.items()],
        "hidden": {name: value for name, value in known.items() if name not in shown},
        "ticks": _ticks(minutes),
        "minutes": minutes,
        "lowest": min(values),
        "highest": max(values),
        "latest": values[-1],
    }


def bars(ended: dict[str, Any], now: float) -> dict[str, Any] | None:
    """Return the chart of ``throughput``: bars of jobs per minute, over a time that fits the data; None without any.

    Returns:
        ``bars``: each ``x``, ``width``, and ``y`` and ``height`` of ``finished`` and of ``failed`` on top of it, with
        ``label``; ``grid`` and ``ticks`` as above, ``minutes`` (of the whole), and ``most`` (jobs a minute).
    """
    if ended["since"] is None:
        return None
    minutes = _minutes(now - ended["since"])
    width = 15 if minutes <= 8 else 60
    sums: dict[int, list[float]] = {}
    for slot in ended["slots"]:
        place = int((now - slot["time"]) // width)
        if place * width < minutes * 60:
            of = sums.setdefault(place, [0.0, 0.0])
            of[0] += slot["finished"] * 60 / width
            of[1] += slot["failed"] * 60 / width
    most = max((sum(of) for of in sums.values()), default=0.0)
    step = _step(max(4.0, most))
    scale, wide = BARS / (step * 4), WIDTH * width / (minutes * 60)
    found = []
    for place, (finished, failed) in sorted(sums.items()):
        high, bad = round(finished * scale, 1), round(max(failed * scale, 2 if failed else 0), 1)
        found.append(
            {
                "x": round(WIDTH - (place + 1) * wide, 1),
                "width": round(max(1.0, wide - 1.5), 1),
                "finished": {"y": round(BARS - high, 1), "height": high},
                "failed": {"y": round(max(0.0, BARS - high - bad), 1), "height": bad},
                "label": f"{place * width // 60} min ago: {finished:g} finished, {failed:g} failed a minute",
            }
        )
    return {
        "bars": found,
        "grid": [{"y": round(BARS * (1 - i / 2), 1), "label": step * 2 * i} for i in range(3)],
        "ticks": _ticks(minutes),
        "minutes": minutes,
        "most": round(most),
    }


def _minutes(age: float) -> int:
    """Return the minutes that a chart shows: the least of these into which all data fit."""
    return next((minutes for minutes in (4, 8, 12, 20, 32, 44) if age <= 60 * minutes), 60)


def _ticks(minutes: int) -> list[dict[str, Any]]:
    return [
        {"x": round(WIDTH * i / 4, 1), "label": "now" if i == 4 else f"−{minutes * (4 - i) // 4} min"} for i in range(5)
    ]


def _names(samples: Sequence[dict[str, Any]]) -> list[str]:
    most: Counter[str] = Counter()
    for sample in samples:
        # Of each role the most that it had.
        most |= Counter({role: int(count) for role, count in sample["roles"].items()})
    return [*sorted(name for name, _ in most.most_common(BANDS)), OTHERS]


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
