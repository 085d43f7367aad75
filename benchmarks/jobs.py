"""What the benchmarks run."""

from __future__ import annotations

import os
import socket
import time


def nothing() -> int:
    """Return something that is stored."""
    return 1


def doze(seconds: float) -> None:
    """Take a while."""
    time.sleep(seconds)


def stamp(path: str) -> None:
    """Send the time of this function's first line to a datagram socket."""
    now = time.time_ns()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.sendto(f"{now} {os.getpid()}".encode(), path)
