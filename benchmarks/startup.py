"""From the start of the process to its "Listening on", and to the first line of a job that waited for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from statistics import median

from rq import Queue

from rq_pooled.embedded import EmbeddedServer

from .common import QUEUE, ROOT, Table, client, main, ours, spawn, stock_pool, stock_worker, stop

ROUNDS = 5
CONTENDERS = [ours(10), ours(1), stock_worker(), stock_pool(10)]


def _start(server: EmbeddedServer, contender: object) -> tuple[float, float]:
    with client(server) as redis, tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "inbox")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
            inbox.bind(path)
            inbox.settimeout(60)
            Queue(QUEUE, connection=redis).enqueue("benchmarks.jobs.stamp", path)
            begin = time.time_ns()
            process = spawn(server, contender, subprocess.PIPE)  # type: ignore[arg-type]
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if b"Listening on" in line:
                        break
                listening = (time.time_ns() - begin) / 1e6
                first = (int(inbox.recv(100).split()[0]) - begin) / 1e6
            finally:
                stop(process)
                if process.stdout is not None:
                    process.stdout.close()
    return listening, first


def _import_time() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import os, rq.cli; os._exit(0)"], check=True, cwd=ROOT)
    return (time.perf_counter() - begin) * 1000


def run(server: EmbeddedServer) -> Table:
    """Measure."""
    times: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in CONTENDERS}
    imports = []
    for _ in range(ROUNDS):
        imports.append(_import_time())
        for contender in CONTENDERS:
            times[contender.name].append(_start(server, contender))
    medians = {name: (median(t[0] for t in all_), median(t[1] for t in all_)) for name, all_ in times.items()}
    best = medians[CONTENDERS[0].name][1]
    rows = [(n, f"{listen:.0f}", f"{first:.0f}", f"{first / best:.1f}") for n, (listen, first) in medians.items()]
    note = (
        f"Median of {ROUNDS} starts; {median(imports):.0f} ms of each are Python and `import rq.cli`. Target: "
        "listening "
        "within 1,000 ms."
    )
    header = ["process start to", "listening, ms", "first line of a waiting job, ms", "× ours"]
    return Table("Start", header, rows, note)


if __name__ == "__main__":
    main(run)
