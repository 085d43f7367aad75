"""Redis in jobs: how fast it is through ``rq_pooled.get_connection()``, and how many connections it takes.

Both sides of a ratio run in the same horses of the same worker and take turns: ``plain`` is redis-py with a connection
of its own in each process, which stays open.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from redis import Redis
from rq import Queue
from rq.registry import FinishedJobRegistry

from rq_pooled.embedded import EmbeddedServer, EmbeddedServerError

from .common import (
    QUEUE,
    Contender,
    Table,
    Tables,
    client,
    main,
    ours,
    run_jobs,
    stock_pool,
    stock_worker,
    wait_until,
    worker,
)
from .stream_jobs import LARGE, PIPELINE, SMALL

#: Rounds of each kind of call. Many short ones: what else the machine does then meets both sides.
ROUNDS = {"get": 15, "pipeline": 5, "large": 6}
SECONDS = 0.25
SIDES = ("plain", "ours")
MEGABYTES = 10
#: Jobs of the table of connections.
JOBS = 400

#: One measurement of all horses: kind -> side -> one value per round.
Series = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Row:
    """A line of the table of speed: what it shows of which series, and what is to be reached with 1 and 10 horses."""

    what: str
    series: str
    scale: float
    form: str
    targets: tuple[str, str]


ROWS = [
    Row("GET of 100 bytes, median us", "get median", 1e6, ",.0f", ("<= 1.7", "<= 1.3")),
    Row("GET of 100 bytes, per second", "get rate", 1, ",.0f", (">= 0.55", ">= 0.8")),
    Row(f"pipeline of {PIPELINE}, commands per second", "pipeline rate", PIPELINE, ",.0f", (">= 0.7", ">= 0.7")),
    Row(f"{MEGABYTES} MB value, first GET of a job, ms", "large first", 1e3, ",.1f", ("<= 2", "<= 2")),
    Row(f"{MEGABYTES} MB value, further GETs, MB per second", "large rate", MEGABYTES, ",.0f", (">= 0.5", ">= 0.5")),
]
#: Microseconds of the parent's processor time per GET that are to be reached, with 1 and 10 horses.
PARENT_TARGETS = ("<= 50", "<= 20")


# -- speed -------------------------------------------------------------------------------------------------------


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used until now; 0 where the system does not tell (not Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Horses:
    """Runs the same measurement in all horses of a worker at once."""

    def __init__(self, redis: Redis, url: str, number: int, parent: int, hiredis: bool) -> None:
        self._redis, self._url, self._number, self._parent, self._hiredis = redis, url, number, parent, hiredis
        self._queue = Queue(QUEUE, connection=redis)
        self._finished = FinishedJobRegistry(QUEUE, redis).key

    def measure(self, side: str, kind: str) -> tuple[list[dict[str, Any]], float]:
        """Return what each horse reports, and the parent's processor time meanwhile."""
        before = self._redis.zcard(self._finished)
        with ExitStack() as stack:
            path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "benchmark")
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(path)
            listener.listen(64)
            listener.settimeout(30)
            arguments = (path, side, kind, SECONDS, self._url)
            data = [Queue.prepare_data("benchmarks.stream_jobs.measure", arguments) for _ in range(self._number)]
            self._queue.enqueue_many(data)
            try:
                jobs = [stack.enter_context(listener.accept()[0]) for _ in range(self._number)]
                lines = []
                for job in jobs:
                    job.settimeout(60)
                    lines.append(stack.enter_context(job.makefile("rb")))
                ready = [line.readline() for line in lines]
                if any(word != b"ready\n" for word in ready):
                    raise SystemExit(f"a job of the benchmark failed: {ready}")
                used = processor_seconds(self._parent)
                for job in jobs:
                    job.sendall(b"g")
                reports = [json.loads(line.readline()) for line in lines]
                used = processor_seconds(self._parent) - used
                for job in jobs:
                    job.sendall(b"b")
            except (TimeoutError, ValueError) as error:
                raise SystemExit(f"jobs of the benchmark did not answer ({side}, {kind}): {error}") from None
        errors = [report["error"] for report in reports if "error" in report]
        if errors or len({report["pid"] for report in reports}) < self._number:
            raise SystemExit(f"jobs of the benchmark went wrong ({side}, {kind}): {errors or 'a horse ran two'}")
        if {report["hiredis"] for report in reports} != {self._hiredis}:
            raise SystemExit(f"the horses of a benchmark {'lack' if self._hiredis else 'have'} hiredis")
        wait_until(lambda: self._redis.zcard(self._finished) >= before + self._number)
        return reports, used


def speed_of(redis: Redis, url: str, parent: int, number: int, hiredis: bool) -> Series:
    """Measure both sides in turn, in a worker with ``number`` horses."""
    horses = Horses(redis, url, number, parent, hiredis)
    series: Series = defaultdict(lambda: defaultdict(list))
    for turn in range(max(ROUNDS.values())):
        for kind in (kind for kind, rounds in ROUNDS.items() if turn < rounds):
            for side in SIDES if turn % 2 == 0 else reversed(SIDES):
                reports, used = horses.measure(side, kind)
                series[f"{kind} median"][side].append(median(report["median"] for report in reports))
                series[f"{kind} first"][side].append(median(report["first"] for report in reports))
                series[f"{kind} rate"][side].append(sum(report["rate"] for report in reports))
                series[f"{kind} parent"][side].append(used)
                series[f"{kind} number"][side].append(sum(report["number"] for report in reports))
    return series


@contextmanager
def without_hiredis() -> Iterator[str]:
    """Return a PYTHONPATH on which hiredis cannot be imported: neither its parser nor its packer is used then."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "hiredis.py").write_text('raise ImportError("hidden by the benchmark")\n')
        yield os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))


def speed(server: EmbeddedServer) -> Table:
    """Measure the speed with 1 and 10 horses, with and without hiredis where it is installed."""
    rows = []
    installed = importlib.util.find_spec("hiredis") is not None
    with without_hiredis() as hidden:
        for hiredis in (False, True) if installed else (False,):
            for column, number in enumerate((1, 10)):
                contender = ours(number)
                if not hiredis:
                    contender = replace(contender, environment=(("PYTHONPATH", hidden),))
                with client(server) as redis, worker(server, redis, contender) as process:
                    redis.set(SMALL, b"x" * 100)
                    redis.set(LARGE, b"x" * (MEGABYTES * 1_000_000))
                    series = speed_of(redis, server.url, process.pid, number, hiredis)
                rows += list(_speed_rows(series, number, "hiredis" if hiredis else "Python", column))
    note = (
        f"Medians of {', '.join(map(str, ROUNDS.values()))} rounds of {SECONDS:g} s in which both sides take turns in "
        "the same "
        "horses, all horses at once; the ratio is ours to plain. Plain: redis-py, RESP2, a connection per process."
    )
    if not installed:
        note += " hiredis is not installed here: see docs/benchmarks.md."
    header = ["Redis in jobs", "horses", "parser", "plain", "ours", "ratio", "from-to", "target"]
    return Table("Speed of Redis in jobs", header, rows, note)


def _speed_rows(series: Series, number: int, parser: str, column: int) -> Iterator[list[str]]:
    for row in ROWS:
        plain, mine = (series[row.series][side] for side in SIDES)
        ratios = sorted(b / a for a, b in zip(plain, mine))
        values = [f"{median(values) * row.scale:{row.form}}" for values in (plain, mine)]
        ratio = f"{median(mine) / median(plain):.2f}"
        yield [row.what, str(number), parser, *values, ratio, f"{ratios[0]:.2f}-{ratios[-1]:.2f}", row.targets[column]]
    used = [sum(series["get parent"][side]) / sum(series["get number"][side]) * 1e6 for side in SIDES]
    yield [
        "parent's processor time per GET, us",
        str(number),
        parser,
        *(f"{one:.1f}" for one in used),
        "",
        "",
        PARENT_TARGETS[column],
    ]


# -- connections -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TLS:
    """A server that listens with TLS, too, and where."""

    server: EmbeddedServer
    url: str


@contextmanager
def tls_server() -> Iterator[TLS]:
    """Start a server with a certificate of its own.

    Raises:
        EmbeddedServerError: there is no openssl, or no server that can do TLS.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        raise EmbeddedServerError("no openssl on PATH")
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
        command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        subprocess.run(
            [*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        files = {"tls-cert-file": certificate, "tls-key-file": key, "tls-ca-cert-file": certificate}
        with EmbeddedServer({"tls-port": port, **files, "tls-auth-clients": "no"}, kind="redis") as running:
            yield TLS(running, f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}")


def count(redis: Redis) -> int:
    """Return how many clients the server has besides this one."""
    return len(redis.client_list()) - 1


def connections_of(server: EmbeddedServer, url: str, contender: Contender, way: str) -> list[str]:
    """Run the jobs, and count. Over TLS a connection opened is a handshake: this client uses the plain port."""
    with client(server) as redis, worker(server, redis, contender, url=url):
        time.sleep(1)  # those of the warm-up have closed
        idle, most = count(redis), 0

        def look() -> None:
            nonlocal most
            most = max(most, count(redis))

        opened = redis.info("stats")["total_connections_received"]
        seconds = run_jobs(redis, JOBS, "benchmarks.stream_jobs.use_redis", 0.01, each=look)
        opened = redis.info("stats")["total_connections_received"] - opened
    return [contender.name, way, str(idle), str(most), str(opened), f"{opened / JOBS:.2g}", f"{JOBS / seconds:.0f}"]


def connections(server: EmbeddedServer) -> Table:
    """Count the connections for jobs that use Redis, in the open and over TLS."""
    rows = [connections_of(server, server.url, one, "TCP") for one in (ours(10), stock_worker(), stock_pool(10))]
    note = (
        "Each job saves its meta, reads, writes in a transaction, enqueues another job, and takes 10 ms more. Over TLS "
        "each connection "
        "that is opened is a handshake. Target: idle 2, at most 3, none opened per job."
    )
    try:
        with tls_server() as tls:
            rows += [connections_of(tls.server, tls.url, one, "TLS") for one in (ours(10), stock_pool(10))]
    except (EmbeddedServerError, subprocess.SubprocessError) as error:
        note += f" TLS was not measured: {error}."
    header = [f"{JOBS} jobs that use Redis", "over", "idle", "most while busy", "newly opened", "per job", "jobs/s"]
    return Table("Connections of jobs that use Redis", header, rows, note)


def run(server: EmbeddedServer) -> Tables:
    """Measure."""
    parts: dict[str, Callable[[EmbeddedServer], Table]] = {"speed": speed, "connections": connections}
    asked = [name for name in sys.argv[1:] if name in parts] if __name__ == "__main__" else []
    return Tables([parts[name](server) for name in asked or parts])


if __name__ == "__main__":
    main(run)
