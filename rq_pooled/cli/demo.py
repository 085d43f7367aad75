"""``rq-pooled demo``: real jobs on a server of its own, and what they cost in connections.

The job functions come first; below them server, jobs, the two workers started by their commands, and a table.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NoReturn

from redis import Redis
from rq import Queue, Retry, get_current_job
from rq.job import Job

from ..embedded import EmbeddedServer
from ..errors import TRY_AGAIN, RQPooledError

#: One job in so many fails the first time; one in so many fails for good.
FLAKY_EVERY, BROKEN_EVERY = 10, 25
RETRIES = 3

_OURS = "demo"


def measure(path: str) -> dict[str, int | str]:
    """Hash, compress and count the words of a file. Raises OSError where it cannot be read, as jobs do."""
    data = Path(path).read_bytes()
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "compressed": len(zlib.compress(data, level=9)),
        "words": len(data.split()),
    }


def measure_flaky(path: str) -> dict[str, int | str]:
    """Do as ``measure``, but fail the first time, like a file on a busy share."""
    job = get_current_job()
    if job is not None and job.retries_left == RETRIES:
        raise BlockingIOError(f"{path} is busy: this one succeeds when it is tried again")
    return measure(path)


def source_files(count: int) -> list[str]:
    """Return ``count`` paths of the standard library's sources, the largest first, repeated where there are fewer."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [path for path in library.rglob("*.py") if "site-packages" not in path.parts and path.is_file()]
    found.sort(key=lambda path: (-path.stat().st_size, str(path)))
    return [str(path) for path in itertools.islice(itertools.cycle(found), count)]


@dataclass(frozen=True)
class Cost:
    """What the jobs took with one of the two workers: seconds, and connections of the server."""

    finished: int
    failed: int
    retries: int
    seconds: float
    jobs_per_second: float
    most_connections: int
    connections_opened: int


@dataclass(frozen=True)
class Report:
    """What a demo run has to tell: the same jobs with rq_pooled and with ``rq worker-pool``."""

    jobs: int
    bytes: int
    words: int
    concurrency: int
    server: str
    rq_version: str
    rq_pooled: Cost
    stock_rq: Cost

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a plain dictionary, for JSON."""
        return asdict(self)

    def as_table(self) -> str:
        """Return the report as lines of text, 80 columns wide at most."""
        rows = [
            ("seconds", "seconds"),
            ("jobs per second", "jobs_per_second"),
            ("most connections at once", "most_connections"),
            ("connections opened", "connections_opened"),
            ("retries", "retries"),
            ("failures, as planned", "failed"),
        ]
        ours, stock = asdict(self.rq_pooled), asdict(self.stock_rq)
        lines = [f"{'':<26}{'rq_pooled':>10}{'stock RQ*':>12}", "-" * 48]
        lines += [f"{label:<26}{ours[name]:>10}{stock[name]:>12}" for label, name in rows]
        return "\n".join(
            [
                *lines,
                "",
                f"{self.jobs} files, {self.bytes / 1e6:.1f} MB, {self.words} words; {self.concurrency} at once.",
                f"* rq worker-pool -n {self.concurrency}, RQ {self.rq_version}, on the same server ({self.server}).",
                "It shows connections, not speed: on few cores the jobs' own work decides that.",
            ]
        )


class DemoFailed(RQPooledError, RuntimeError):
    """The demo's worker ended early or got stuck. A RuntimeError: nothing that the user typed was wrong."""

    exit_code = TRY_AGAIN


def run(jobs: int, concurrency: int, progress: Callable[[int], object], stalled_after: float = 60) -> Report:
    """Run the demo and return its report; blocks until all jobs have ended with both workers.

    ``progress`` is called with the number of jobs that have ended since the last call: twice ``jobs`` in all. Raises
    DemoFailed when a worker ends early or no job ends for ``stalled_after`` seconds, EmbeddedServerError without a
    server.
    """
    # A terminated demo takes worker and server along, too.
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        with EmbeddedServer() as server:
            # The name lets our own connections be left out of the count.
            connection = Redis.from_url(server.url, client_name=_OURS)
            try:
                costs: list[Cost] = []
                for command in (_rq_pooled(concurrency), _stock_rq(concurrency)):
                    connection.flushall()
                    ids = _enqueue(connection, jobs)
                    with tempfile.TemporaryFile() as log:
                        costs.append(_cost(command, server.url, connection, ids, log, progress, stalled_after))
                    results: list[Any] = [job.return_value() for job in _fetch(connection, ids) if job.is_finished]
                return Report(
                    jobs=jobs,
                    bytes=sum(result["bytes"] for result in results),
                    words=sum(result["words"] for result in results),
                    concurrency=concurrency,
                    server=f"{server.kind} {server.version}",
                    rq_version=version("rq"),
                    rq_pooled=costs[0],
                    stock_rq=costs[1],
                )
            finally:
                connection.close()
    finally:
        signal.signal(signal.SIGTERM, previous)


def _exit(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _enqueue(connection: Redis, count: int) -> list[str]:
    queue = Queue("demo", connection=connection)
    ids = []
    for number, path in enumerate(source_files(count), start=1):
        if number % BROKEN_EVERY == 0:
            job = queue.enqueue(measure, path + ".missing", result_ttl=3600)
        elif number % FLAKY_EVERY == 0:
            job = queue.enqueue(measure_flaky, path, retry=Retry(RETRIES), result_ttl=3600)
        else:
            job = queue.enqueue(measure, path, result_ttl=3600)
        ids.append(job.id)
    return ids


def _rq_pooled(concurrency: int) -> list[str]:
    return ["-m", "rq_pooled", "worker", "--quiet", "--concurrency", str(concurrency), "demo"]


def _stock_rq(concurrency: int) -> list[str]:
    return ["-c", "from rq.cli import main; main()", "worker-pool", "--quiet", "-n", str(concurrency), "demo"]


def _cost(
    command: list[str],
    url: str,
    connection: Redis,
    ids: list[str],
    log: IO[bytes],
    progress: Callable[[int], object],
    stalled_after: float,
) -> Cost:
    """Run all jobs with a worker that ``command`` starts; return what they took, its start included."""
    before = _opened(connection)
    started = time.monotonic()
    # If the demo is killed its server dies with it: a worker that reconnected for ever would be left behind.
    environ = {**os.environ, "RQ_POOLED_URL": url, "RQ_REDIS_URL": url, "RQ_POOLED_RECONNECT_ATTEMPTS": "20"}
    worker = subprocess.Popen(
        [sys.executable, *command], env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        most = _watch(connection, worker, log, len(ids), progress, stalled_after)
        seconds = time.monotonic() - started
        opened = _opened(connection) - before
    finally:
        _end(worker)
    found = _fetch(connection, ids)
    return Cost(
        finished=sum(job.is_finished for job in found),
        failed=sum(job.is_failed for job in found),
        retries=sum(RETRIES - (job.retries_left or 0) for job in found if job.retries_left is not None),
        seconds=round(seconds, 1),
        jobs_per_second=round(len(ids) / seconds, 1),
        most_connections=most,
        connections_opened=opened,
    )


def _watch(
    connection: Redis,
    worker: subprocess.Popen[bytes],
    log: IO[bytes],
    jobs: int,
    progress: Callable[[int], object],
    stalled_after: float,
) -> int:
    """Wait until all jobs have ended; return the most connections seen besides our own."""
    queue = Queue("demo", connection=connection)
    ended, most, last_news = 0, 0, time.monotonic()
    while ended < jobs:
        most = max(most, sum(client["name"] != _OURS for client in connection.client_list()))
        # The registries' own cleanup is left to the worker.
        count = sum(
            registry.get_job_count(cleanup=False)
            for registry in (queue.finished_job_registry, queue.failed_job_registry)
        )
        if count > ended:
            progress(count - ended)
            ended, last_news = count, time.monotonic()
        elif worker.poll() is not None:
            raise DemoFailed(f"the worker ended with code {worker.returncode}: {_last_line(log)}")
        elif time.monotonic() - last_news > stalled_after:
            raise DemoFailed(f"no job ended for {stalled_after:g} s, {jobs - ended} are left: {_last_line(log)}")
        time.sleep(0.05)
    return most


def _fetch(connection: Redis, ids: list[str]) -> list[Job]:
    return [job for job in Job.fetch_many(ids, connection=connection) if job is not None]


def _opened(connection: Redis) -> int:
    return int(connection.info("stats")["total_connections_received"])


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it logged nothing"


def _end(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        worker.terminate()
        try:
            worker.wait(15)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
