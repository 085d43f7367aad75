"""A server and workers of the harness's own, and what can be done to them. Keeps a log of what was done to whom."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from support import TESTS, WorkerProcess

from rq_pooled.embedded import EmbeddedServer

from .jobs import QUEUE
from .plan import Fault

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
#: Jobs at once in one worker.
CONCURRENCY = 3


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
        self.server = EmbeddedServer({"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"})
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
        name = f"chaos-{len(self.members) + 1}"
        path = [str(self._engine)] if self._engine else []
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "CHAOS_JOURNAL": str(self._journal)}
        env["PYTHONPATH"] = os.pathsep.join([*path, str(TESTS), str(TESTS.parent), env.get("PYTHONPATH", "")])
        env |= {f"RQ_POOLED_{name}": str(value) for name, value in SETTINGS.items()}
        env["RQ_POOLED_CONCURRENCY"] = str(CONCURRENCY)
        command = [sys.executable, "-m", "rq.cli", "worker", "--url", self.server.url, "--name", name]
        command += ["--worker-class", "rq_pooled.Worker", QUEUE]
        # Not in the current directory: its rq_pooled would come before that of ``engine``.
        member = Member(name, WorkerProcess(command, env, self.directory / f"{name}.log", self.directory))
        self.members.append(member)
        return member

    # -- faults --------------------------------------------------------------------------------------------------

    def do(self, fault: Fault) -> tuple[float, Callable[[], None]] | None:
        """Do it; return after how many seconds to do what, where it has an end."""
        return getattr(self, "_" + fault.kind.replace(" ", "_"))(fault)

    def _note(self, kind: str, pid: int = 0, length: float = 0.0) -> Deed:
        now = time.time()
        deed = Deed(now, now + length, kind, pid)
        self.deeds.append(deed)
        return deed

    def _ended(self, deed: Deed) -> None:
        deed.until = time.time()

    def _pick(self, fault: Fault) -> Member | None:
        able = [member for member in self.members if member.alive and not member.leaving and not member.frozen]
        return able[int(fault.pick * len(able))] if able else None

    def _replacement(self, fault: Fault) -> tuple[float, Callable[[], None]]:
        return fault.length, lambda: void(self.start_worker())

    def _kill_worker(self, fault: Fault) -> tuple[float, Callable[[], None]] | None:
        member = self._pick(fault)
        if member is None:
            return None
        member.leaving = True
        self._note("kill worker", member.process.pid)
        member.process.kill()
        return self._replacement(fault)

    def _kill_horse(self, fault: Fault) -> None:
        with contextlib.suppress(psutil.Error):
            horses = [
                child
                for member in self.members
                if member.alive and not member.leaving
                for child in psutil.Process(member.process.pid).children()
            ]
            if horses:
                horse = horses[int(fault.pick * len(horses))]
                self._note("kill horse", horse.pid)
                horse.kill()

    def _freeze_worker(self, fault: Fault) -> tuple[float, Callable[[], None]] | None:
        member = self._pick(fault)
        if member is None:
            return None
        member.frozen = True
        deed = self._note("freeze worker", member.process.pid, fault.length)
        member.process.process.send_signal(signal.SIGSTOP)

        def thaw() -> None:
            member.process.process.send_signal(signal.SIGCONT)
            member.frozen = False
            self._ended(deed)

        return fault.length, thaw

    def _replace_worker(self, fault: Fault) -> tuple[float, Callable[[], None]] | None:
        member = self._pick(fault)
        if member is None:
            return None
        member.leaving = True
        self._note("stop worker", member.process.pid)
        member.process.process.send_signal(signal.SIGTERM)
        return self._replacement(fault)

    def _freeze_server(self, fault: Fault) -> tuple[float, Callable[[], None]]:
        deed = self._note("freeze server", 0, fault.length)
        self.server.pause()
        return fault.length, lambda: (self.server.resume(), self._ended(deed))[1]

    def _crash_server(self, fault: Fault) -> tuple[float, Callable[[], None]]:
        deed = self._note("crash server", 0, fault.length)
        self.server.kill()
        return fault.length, lambda: (self.server.start(), self._ended(deed))[1]

    def _restart_server(self, fault: Fault) -> tuple[float, Callable[[], None]]:
        deed = self._note("restart server", 0, fault.length)
        self.server.stop()
        return fault.length, lambda: (self.server.start(), self._ended(deed))[1]

    def _demote_server(self, fault: Fault) -> tuple[float, Callable[[], None]]:
        """Make it a replica, as during a failover: it answers READONLY."""
        deed = self._note("demote server", 0, fault.length)
        self._ask(lambda: self.admin.replicaof("127.0.0.1", 1))

        def promote() -> None:
            self._ask(lambda: self.admin.replicaof("NO", "ONE"))
            self._ended(deed)

        return fault.length, promote

    def _fill_memory(self, fault: Fault) -> tuple[float, Callable[[], None]]:
        deed = self._note("fill memory", 0, fault.length)
        self._ask(lambda: self.admin.config_set("maxmemory", "1"))

        def free() -> None:
            self._ask(lambda: self.admin.config_set("maxmemory", "0"))
            self._ended(deed)

        return fault.length, free

    def _cut_connections(self, fault: Fault) -> None:
        """Cut those of one worker, or everybody's."""

        def cut() -> None:
            member = self._pick(fault) if fault.pick > 0.5 else None
            pid = f":{member.process.pid}:" if member else ""
            self._note("cut connections", member.process.pid if member else 0)
            for entry in self.admin.client_list():
                if pid in entry["name"] and entry["name"] != "chaos-admin":
                    self.admin.client_kill_filter(_id=entry["id"])

        self._ask(cut)

    def _flush_scripts(self, _fault: Fault) -> None:
        self._note("flush scripts")
        self._ask(lambda: self.admin.script_flush())

    def _ask(self, call: Callable[[], object]) -> None:
        """Ask the server, which answers; one that has just come back may have closed this connection."""
        for attempt in range(3):
            try:
                call()
                return
            except (RedisError, OSError):
                if attempt == 2:
                    raise
                time.sleep(0.1)

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


def void(_value: object) -> None:
    """Return nothing."""
