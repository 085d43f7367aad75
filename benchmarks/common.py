"""Servers, workers as a user starts them, tables."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Queue
from rq.registry import FinishedJobRegistry

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.store.keys import WORKERS

ROOT = Path(__file__).resolve().parent.parent
QUEUE = "bench"
#: A checkout of an earlier version with an environment of its own, None where nothing is compared with one.
BASE = Path(os.environ["BENCH_BASE"]).resolve() if os.environ.get("BENCH_BASE") else None


@dataclass(frozen=True)
class Contender:
    """A way to run jobs: its name in the table, its command, how many RQ workers it registers, what its environment
    adds, and the checkout whose package it runs.
    """

    name: str
    command: tuple[str, ...]
    workers: int
    concurrency: int = 1
    environment: tuple[tuple[str, str], ...] = ()
    tree: Path = ROOT


def ours(concurrency: int, tree: Path = ROOT) -> Contender:
    """``rq worker`` with our class; of an earlier version where ``tree`` is a checkout of it."""
    command = ("worker", "--worker-class", "rq_pooled.Worker")
    which = "rq_pooled" if tree == ROOT else f"version {tree.name}"
    return Contender(f"{which}, concurrency {concurrency}", command, concurrency, concurrency, tree=tree)


def python_of(tree: Path) -> str:
    """Return the interpreter of a checkout's own environment, this one where it has none."""
    own = tree / ".venv" / "bin" / "python"
    return str(own) if tree != ROOT and own.exists() else sys.executable


def stock_worker() -> Contender:
    """``rq worker``."""
    return Contender("rq worker", ("worker",), 1)


def stock_pool(number: int, worker_class: str = "rq.Worker") -> Contender:
    """``rq worker-pool``."""
    kind = "" if worker_class == "rq.Worker" else f" of {worker_class.removeprefix('rq.')}"
    command = ("worker-pool", "-n", str(number), "--worker-class", worker_class)
    return Contender(f"rq worker-pool -n {number}{kind}", command, number)


@dataclass
class Table:
    """One benchmark's result; the first row is ours, and what others are compared with. ``plot``: column to draw."""

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]]
    note: str = ""
    plot: str = ""

    def text(self) -> str:
        """Return heading, table and note as Markdown."""
        return f"### {self.title}\n\n{self.markdown()}" + (f"\n{self.note}\n" if self.note else "")

    def markdown(self) -> str:
        """Return the table alone, with aligned columns."""
        rows = [list(self.header), *map(list, self.rows)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.header))]
        pad = [str.ljust] + [str.rjust] * (len(widths) - 1)
        lines = ["| " + " | ".join(pad[i](row[i], widths[i]) for i in range(len(widths))) + " |" for row in rows]
        rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
        return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


@dataclass
class Tables:
    """The results of a benchmark that has several."""

    tables: list[Table]

    def text(self) -> str:
        """Return them one below the other."""
        return "\n".join(table.text() for table in self.tables)


def machine(server: EmbeddedServer) -> str:
    """Say where and with what these numbers were made."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    packages = ", ".join(f"{name} {version(name)}" for name in ("rq", "redis"))
    return (
        f"{date.today()} · {platform.system()} {platform.machine()}, {cores} cores, load before the run {load} · "
        f"Python {platform.python_version()}, {packages} · {server.kind} {server.version} on loopback"
    )


@contextmanager
def server() -> Iterator[EmbeddedServer]:
    """A server of its own."""
    with EmbeddedServer() as running:
        yield running


@contextmanager
def client(running: EmbeddedServer) -> Iterator[Redis]:
    """A client on an empty database."""
    with Redis.from_url(running.url) as redis:
        redis.flushall()
        yield redis


def spawn(running: EmbeddedServer, contender: Contender, log: Any, url: str | None = None) -> subprocess.Popen[bytes]:
    """Start a contender on the queue, and return at once.

    Args:
        url: how it reaches the server, if not by the plain port.
    """
    env = {**os.environ, "RQ_POOLED_CONCURRENCY": str(contender.concurrency), "PYTHONUNBUFFERED": "1"}
    env.update(contender.environment)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(contender.tree), env.get("PYTHONPATH")]))
    verb, *options = contender.command
    command = [python_of(contender.tree), "-m", "rq.cli", verb, "--url", url or running.url, *options, QUEUE]
    return subprocess.Popen(
        command, cwd=contender.tree, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


@contextmanager
def worker(
    running: EmbeddedServer, redis: Redis, contender: Contender, url: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A contender that has registered all its workers and run some jobs; ended with the block. ``url``: see
    ``spawn``.
    """
    with tempfile.TemporaryFile() as log:
        process = spawn(running, contender, log, url)
        try:
            wait_until(lambda: redis.scard(WORKERS) >= contender.workers)
            run_jobs(redis, 4 * contender.workers, "benchmarks.jobs.nothing")
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a contender and everything that it has started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    # RQ's pool, told to end while it starts, leaves workers behind, which would take the next contender's jobs.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_jobs(redis: Redis, number: int, function: str, *args: Any, each: Callable[[], Any] | None = None) -> float:
    """Enqueue jobs in one step and return the seconds until all are finished; ``each`` is called while waiting."""
    queue, registry = Queue(QUEUE, connection=redis), FinishedJobRegistry(QUEUE, redis)
    before = redis.zcard(registry.key)
    with redis.pipeline() as pipe:
        queue.enqueue_many([Queue.prepare_data(function, args) for _ in range(number)], pipeline=pipe)
        pipe.execute()
    start = time.perf_counter()
    wait_until(lambda: (each and each()) or redis.zcard(registry.key) >= before + number)
    return time.perf_counter() - start


def wait_until(condition: Callable[[], Any], timeout: float = 120, pause: float = 0.002) -> None:
    """Wait; a benchmark that takes longer is broken. ``pause``: seconds between two looks, which cost the server."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"a benchmark took longer than {timeout:g} s")
        time.sleep(pause)


def family(pid: int) -> list[int]:
    """Return a process and all its descendants (Linux)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def main(run: Callable[[EmbeddedServer], Table | Tables]) -> None:
    """Run one benchmark by itself."""
    with server() as running:
        print(machine(running), end="\n\n", flush=True)
        print(run(running).text())
