"""``python -m benchmarks``: all of them but ``peers``, which needs ``make bench-peers`` to install those."""

from __future__ import annotations

import sys

from . import (
    connections,
    enqueue,
    latency,
    memory,
    page,
    peers,
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
from .report import write

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
    """Run all, or those named on the command line; ``--write`` puts what they find into docs/benchmarks.md."""
    names = [word for word in sys.argv[1:] if word != "--write"]
    with server() as running:
        print(machine(running), end="\n\n", flush=True)
        for module in ALL + [peers]:
            name = module.__name__.rpartition(".")[2]
            if name in names or (not names and module is not peers):
                where, found = machine(running), module.run(running)
                print(found.text(), flush=True)
                if "--write" in sys.argv:
                    for table in getattr(found, "tables", [found]):
                        write(table, f"{where}, by `python -m benchmarks {name}`")


if __name__ == "__main__":
    main()
