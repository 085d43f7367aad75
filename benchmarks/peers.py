"""No-op jobs per second beside other queues on Redis, with ten slots each; ``make bench-peers`` installs those.

A backlog is enqueued while no worker runs. What counts is how fast its middle part is taken, so starting costs nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from redis import Redis
from rq import Queue

from rq_pooled.embedded import EmbeddedServer

from .common import QUEUE, ROOT, Contender, Table, client, main, ours, stock_pool, stop
from .measured import Rate, rate

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
PEERS = ROOT / ".venv-peers"


NODE = PEERS / "node" / "node_modules"


@dataclass(frozen=True)
class Peer:
    """A peer: its worker's command in .venv-peers, the key of its backlog, and how many jobs it is given."""

    name: str
    command: tuple[str, ...]
    backlog: str
    jobs: int

    @property
    def _programs(self) -> Path:
        """Where its programs are; arq needs an older redis-py than Celery does."""
        return PEERS / "arq" / "bin" if self.name == "arq" else PEERS / "bin"

    @property
    def there(self) -> bool:
        """Whether it is installed."""
        return (NODE / "bullmq").exists() if self.name == "bullmq" else (self._programs / self.command[0]).exists()

    @property
    def enqueuer(self) -> list[str]:
        """The command that enqueues its jobs."""
        if self.name == "bullmq":
            return ["node", "peer_bullmq.cjs", "enqueue", str(self.jobs)]
        return [str(self._programs / "python"), "-c", f"import peer_app; peer_app.enqueue_many({self.jobs})"]

    @property
    def worker(self) -> list[str]:
        """The command of its worker."""
        if self.name == "bullmq":
            return list(self.command)
        return [str(self._programs / self.command[0]), *self.command[1:]]


INSTALLED = [
    Peer("huey", ("huey_consumer", "peer_app.app", "-w", "10", "-k", "process", "-q"), "huey.redis.bench", 8000),
    Peer("dramatiq", ("dramatiq", "peer_app", "-p", "2", "-t", "5"), "dramatiq:default.msgs", 4000),
    Peer("celery", ("celery", "-A", "peer_app", "worker", "-c", "10", "-l", "ERROR"), "celery", 2500),
    Peer("arq", ("arq", "peer_app.WorkerSettings"), "arq:queue", 3000),
    Peer("saq", ("saq", "peer_app.settings"), "saq:default:queued", 3000),
    Peer("bullmq", ("node", "peer_bullmq.cjs", "work"), "bull:bench:wait", 20000),
]


def _left(redis: Redis, key: str) -> int:
    kind = redis.type(key)
    if kind == b"none":
        return 0
    sizes: dict[bytes, Callable[[str], int]] = {b"list": redis.llen, b"zset": redis.zcard, b"hash": redis.hlen}
    return sizes[kind](key)


def _of_rq(server: EmbeddedServer, redis: Redis, contender: Contender, jobs: int) -> Rate:
    queue = Queue(QUEUE, connection=redis)
    queue.enqueue_many([Queue.prepare_data("benchmarks.jobs.nothing") for _ in range(jobs)])
    verb, *options = contender.command
    level = "--logging-level" if verb == "worker-pool" else "--logging_level"
    command = [sys.executable, "-m", "rq.cli", verb, "--url", server.url, level, "WARNING", *options, QUEUE]
    env = {**os.environ, "RQ_POOLED_CONCURRENCY": str(contender.concurrency), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return rate(redis, process, lambda: jobs - _left(redis, queue.key), jobs)
        finally:
            stop(process)


def _of_peer(server: EmbeddedServer, redis: Redis, peer: Peer) -> Rate:
    here = ROOT / "benchmarks"
    env = {**os.environ, "PEER": peer.name, "PEER_URL": server.url, "PYTHONPATH": str(here), "NODE_PATH": str(NODE)}
    subprocess.run(peer.enqueuer, env=env, cwd=here, check=True)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            peer.worker, env=env, cwd=here, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return rate(redis, process, lambda: peer.jobs - _left(redis, peer.backlog), peer.jobs)
        finally:
            stop(process)


def _contenders(server: EmbeddedServer) -> list[tuple[str, Callable[[Redis], Rate]]]:
    found: list[tuple[str, Callable[[Redis], Rate]]] = []
    for contender, jobs in ((ours(10), 10_000), (ours(2), 10_000), (stock_pool(4, "rq.SimpleWorker"), 2000)):
        found.append((contender.name, partial(_of_rq, server, contender=contender, jobs=jobs)))
    for peer in INSTALLED:
        if peer.there:
            found.append((peer.name, partial(_of_peer, server, peer=peer)))
    return found


def run(server: EmbeddedServer) -> Table:
    """Measure, taking turns."""
    contenders = _contenders(server)
    rates: dict[str, list[Rate]] = {name: [] for name, _ in contenders}
    for _ in range(ROUNDS):
        for name, measure in contenders:
            with client(server) as redis:
                try:
                    rates[name].append(measure(redis))
                except (SystemExit, subprocess.CalledProcessError) as error:
                    print(f"{name} is left out: {error}", file=sys.stderr)
    best = median(one.jobs for one in rates[contenders[0][0]])
    rows = []
    for name, taken in rates.items():
        if taken:
            jobs = [one.jobs for one in taken]
            cpu = f"{median(one.sum for one in taken):.0f}"
            ratio = f"{best / median(jobs):.2f}"
            rows.append((name, f"{median(jobs):,.0f}", f"{min(jobs):,.0f}-{max(jobs):,.0f}", cpu, ratio))
    header = ["no-op jobs, ten slots", "jobs/s", "from-to", "CPU us per job", "ours is × faster"]
    note = f"Median of {ROUNDS} rounds in turns. Results are stored by all; logs are quiet."
    return Table("Peers", header, rows, note, "jobs/s")


if __name__ == "__main__":
    main(run)
