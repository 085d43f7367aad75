"""No-op jobs per second beside other queues on Redis, with ten slots each; ``make bench-peers`` installs those.

A backlog is enqueued while no worker runs. What counts is how fast its middle part is taken, so starting costs nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from redis import Redis
from rq import Queue

from rq_pooled.embedded import EmbeddedServer

from .common import QUEUE, ROOT, Contender, Table, client, main, ours, stock_pool, stop, wait_until

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
#: Parts of the backlog that are left when the time begins and ends.
BEGIN, END = 0.8, 0.1
PEERS = ROOT / ".venv-peers"
#: Checkout of an earlier version, with an environment of its own, to be measured beside this one.
BASE = os.environ.get("BENCH_BASE")


@dataclass(frozen=True)
class Peer:
    """A peer: its worker's command in .venv-peers, the key of its backlog, and how many jobs it is given."""

    name: str
    command: tuple[str, ...]
    backlog: str
    jobs: int

    @property
    def programs(self) -> Path:
        """Where its programs are; arq needs an older redis-py than Celery does."""
        return PEERS / "arq" / "bin" if self.name == "arq" else PEERS / "bin"


INSTALLED = [
    Peer("huey", ("huey_consumer", "peer_app.app", "-w", "10", "-k", "process", "-q"), "huey.redis.bench", 8000),
    Peer("dramatiq", ("dramatiq", "peer_app", "-p", "2", "-t", "5"), "dramatiq:default.msgs", 4000),
    Peer("celery", ("celery", "-A", "peer_app", "worker", "-c", "10", "-l", "ERROR"), "celery", 2500),
    Peer("arq", ("arq", "peer_app.WorkerSettings"), "arq:queue", 3000),
    Peer("saq", ("saq", "peer_app.settings"), "saq:default:queued", 3000),
]


def _left(redis: Redis, key: str) -> int:
    kind = redis.type(key)
    if kind == b"none":
        return 0
    sizes: dict[bytes, Callable[[str], int]] = {b"list": redis.llen, b"zset": redis.zcard, b"hash": redis.hlen}
    return sizes[kind](key)


def _rate(redis: Redis, key: str, jobs: int) -> float:
    """Return how many jobs per second the workers that were just started take."""
    marks = []
    for part in (BEGIN, END):
        wait_until(lambda part=part: _left(redis, key) <= part * jobs)  # type: ignore[misc]
        marks.append((time.perf_counter(), _left(redis, key)))
    (began, before), (ended, after) = marks
    return (before - after) / (ended - began)


def _of_rq(server: EmbeddedServer, redis: Redis, contender: Contender, jobs: int, tree: str) -> float:
    queue = Queue(QUEUE, connection=redis)
    queue.enqueue_many([Queue.prepare_data("benchmarks.jobs.nothing") for _ in range(jobs)])
    verb, *options = contender.command
    level = "--logging-level" if verb == "worker-pool" else "--logging_level"
    command = [sys.executable, "-m", "rq.cli", verb, "--url", server.url, level, "WARNING", *options, QUEUE]
    env = {**os.environ, "RQ_POOLED_CONCURRENCY": str(contender.concurrency), "PYTHONPATH": tree}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=env, cwd=tree, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return _rate(redis, queue.key, jobs)
        finally:
            stop(process)


def _of_peer(server: EmbeddedServer, redis: Redis, peer: Peer) -> float:
    env = {**os.environ, "PEER": peer.name, "PEER_URL": server.url, "PYTHONPATH": str(ROOT / "benchmarks")}
    here = ROOT / "benchmarks"
    code = f"import peer_app; peer_app.enqueue_many({peer.jobs})"
    subprocess.run([peer.programs / "python", "-c", code], env=env, cwd=here, check=True)
    with tempfile.TemporaryFile() as log:
        command = [str(peer.programs / peer.command[0]), *peer.command[1:]]
        process = subprocess.Popen(
            command, env=env, cwd=here, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return _rate(redis, peer.backlog, peer.jobs)
        finally:
            stop(process)


def _contenders(server: EmbeddedServer) -> list[tuple[str, Callable[[Redis], float]]]:
    found: list[tuple[str, Callable[[Redis], float]]] = []

    def add(contender: Contender, jobs: int, name: str = "", tree: str = str(ROOT)) -> None:
        found.append((name or contender.name, lambda redis: _of_rq(server, redis, contender, jobs, tree)))

    add(ours(10), 8000)
    add(ours(2), 8000)
    if BASE:
        for slots in (10, 2):
            add(ours(slots), 5000, f"BENCH_BASE, concurrency {slots}", BASE)
    add(stock_pool(4, "rq.SimpleWorker"), 2000)
    for peer in INSTALLED:
        if (peer.programs / peer.command[0]).exists():
            found.append((peer.name, lambda redis, peer=peer: _of_peer(server, redis, peer)))  # type: ignore[misc]
    return found


def run(server: EmbeddedServer) -> Table:
    """Measure, taking turns."""
    contenders = _contenders(server)
    rates: dict[str, list[float]] = {name: [] for name, _ in contenders}
    for _ in range(ROUNDS):
        for name, measure in contenders:
            with client(server) as redis:
                try:
                    rates[name].append(measure(redis))
                except (SystemExit, subprocess.CalledProcessError) as error:
                    print(f"{name} is left out: {error}", file=sys.stderr)
    best = median(rates[contenders[0][0]] or [0.0])
    rows = [
        (name, f"{median(taken):,.0f}", f"{min(taken):,.0f}-{max(taken):,.0f}", f"{best / median(taken):.2f}")
        for name, taken in rates.items()
        if taken
    ]
    note = f"Median of {ROUNDS} rounds in turns. Results are stored by all but where a peer has none; logs are quiet."
    return Table("Peers", ["no-op jobs, ten slots", "jobs/s", "from-to", "ours is × faster"], rows, note)


if __name__ == "__main__":
    main(run)
