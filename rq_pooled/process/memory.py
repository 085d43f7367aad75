"""Reads how much memory this process and its children hold."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from pathlib import Path


def resident_megabytes() -> float:
    """Return the RSS of this process in MB: its memory in RAM, including shared pages.

    If the system does not tell the present figure (macOS), the largest one of the process's life is returned.
    """
    found = _resident("self")
    if found is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
    return found


def resident_of(pids: Iterable[int]) -> list[float]:
    """Return the RSS of each of these processes in MB, 0 of one that has ended; empty if the system tells none."""
    return [] if _resident("self") is None else [_resident(pid) or 0.0 for pid in pids]


def _resident(pid: int | str) -> float | None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize() / (1024 * 1024)
