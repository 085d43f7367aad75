"""``python -m benchmarks``: all of them, and one summary."""

from __future__ import annotations

import sys

from . import (
    connections,
    enqueue,
    latency,
    memory,
    page,
    scaling,
    signing,
    startup,
    steady,
    streams,
    sweeper,
    throughput,
    versions,
)
from .common import machine, server

ALL = [
    throughput,
    versions,
    enqueue,
    latency,
    steady,
    memory,
    startup,
    connections,
    streams,
    sweeper,
    page,
    signing,
    scaling,
]


def main() -> None:
    """Run all, or those named on the command line."""
    names = sys.argv[1:]
    with server() as running:
        print(machine(running), end="\n\n", flush=True)
        for module in ALL:
            if not names or module.__name__.rpartition(".")[2] in names:
                print(module.run(running).text(), flush=True)


if __name__ == "__main__":
    main()
