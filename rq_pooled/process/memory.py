"""Reads how much memory this process holds."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident_megabytes() -> float:
    """Return the RSS of this process in MB: its memory in RAM, including shared pages.

    If the system does not tell the present figure (macOS), the largest one of the process's life is returned.
    """
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
    return pages * resource.getpagesize() / (1024 * 1024)
