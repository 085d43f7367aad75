"""A server and workers of the harness's own, and the log of what was done to whom."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from support import PYTHONPATH, TESTS, WorkerProcess

from rq_pooled.config import Settings
from rq_pooled.config.cluster_url import is_cluster_url
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.pool import Pool

from .jobs import QUEUE

#: Life of a lease, and time between its renewals, in seconds.
TTL, INTERVAL = 3.0, 0.5
SETTINGS = {
    "HEARTBEAT_INTERVAL": INTERVAL,
    "HEARTBEAT_TTL": TTL,
    "STALLED_INTERVAL": 1,
    # Chaos stalls a job more often than any production does; the bound has tests of its own.
    "MAX_STALLS": 100,
    "KILL_GRACE": 1,
    "SHUTDOWN_TIMEOUT": 2,
    # A frozen server is noticed before leases end, as with the defaults; and all are back well before that, too.
    "SOCKET_TIMEOUT": 1,
    "SOCKET_CONNECT_TIMEOUT": 1,
    "RECONNECT_CAP": 0.5,
    # Workers of a harness that was killed end by themselves, within minutes.
    "RECONNECT_ATTEMPTS": 300,
}
#: Jobs at once in one worker, by turns: one, several and many take ways of their own through the engine.
CONCURRENCIES = (3, 1, 10)


@dataclass
class Deed:
    """What was done: when (time.time()), until when, its kind, and the process it was done to (0: the server)."""

    at: float
    until: float
    kind: str
    pid: int

    def __str__(self) -> str:
        whom = f" of process {self.pid}" if self.pid else ""
        return f"{self.at:.3f} to {self.until:.3f}  {self.kind}{whom}"


@dataclass
class Member:
    """A worker and what the harness expects of it."""

    name: str
    process: WorkerProcess
    #: Told to end, or killed.
    leaving: bool = False
    frozen: bool = False

    @property
    def alive(self) -> bool:
        """Tell whether its process has not ended."""
        return self.process.process.poll() is None

    @property
    def began(self) -> bool:
        """Tell whether it has ever been registered and connected."""
        return "connections: command" in self.process.output()


def client(url: str, timeout: float = 2.0) -> Redis:
    """Return a client that never sends anything twice."""
    if is_cluster_url(url):
        settings = Settings(url=url, socket_timeout=timeout, socket_connect_timeout=timeout)
        return Redis(connection_pool=Pool(settings, "harness"))
    return Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0))


class Stage:
    """One server (AOF, fsync always) and some workers.

    Args:
        directory: for logs and the journal.
        journal: the file that jobs write to.
        engine: a directory with another copy of the package rq_pooled for the workers; None takes the one in use.
    """

    def __init__(self, directory: Path, journal: Path, engine: Path | None = None) -> None:
        self.directory = directory
        self.server = EmbeddedServer(
            {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}, password=False
        )
        self.members: list[Member] = []
        self.deeds: list[Deed] = []
        self._journal = journal
        self._engine = engine
        self._admin: Redis | None = None

    def start(self, workers: int) -> None:
        """Start the server and so many workers."""
        self.server.start()
        self._admin = self.server.client(
            socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0), client_name="chaos-admin"
        )
        for _ in range(workers):
            self.start_worker()

    @property
    def admin(self) -> Redis:
        """A client for the harness itself."""
        assert self._admin is not None
        return self._admin

    def start_worker(self) -> Member:
        """Start one more worker, without waiting for it."""
        number = len(self.members)
        name = f"chaos-{number + 1}"
        path = [str(self._engine)] if self._engine else []
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "CHAOS_JOURNAL": str(self._journal)}
        env["PYTHONPATH"] = os.pathsep.join([*path, str(TESTS), PYTHONPATH, env.get("PYTHONPATH", "")])
        env |= {f"RQ_POOLED_{name}": str(value) for name, value in SETTINGS.items()}
        env["RQ_POOLED_CONCURRENCY"] = str(CONCURRENCIES[number % len(CONCURRENCIES)])
        command = self.command(name)
        # Not in the current directory: its rq_pooled would come before that of ``engine``.
        member = Member(name, WorkerProcess(command, env, self.directory / f"{name}.log", self.directory))
        self.members.append(member)
        return member

    @property
    def url(self) -> str:
        """Where the server is found."""
        return self.server.url

    def command(self, name: str) -> list[str]:
        """Return what runs a worker."""
        command = [sys.executable, "-m", "rq.cli", "worker", "--url", self.url, "--name", name]
        return [*command, "--worker-class", "rq_pooled.Worker", QUEUE]

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything that this stage started."""
        for member in self.members:
            if member.alive:
                member.process.process.send_signal(signal.SIGCONT)
                member.process.kill()
        if self.server.pid is not None:
            self.server.resume()
        self.server.close()
