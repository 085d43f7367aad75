"""A master, a replica and sentinels that watch them: real processes on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import free_port
from redis import Redis
from redis.exceptions import RedisError
from support import wait_until

from rq_pooled.embedded import _LAUNCHER, EmbeddedServer, find_server

SERVICE = "mymaster"


class Sentinel:
    """One sentinel process; ``redis-server --sentinel`` is what Debian's redis-sentinel runs, too."""

    def __init__(self, directory: Path, kind: str | None, host: str, port: int, quorum: int, options: str) -> None:
        self.port = free_port()
        directory.mkdir()
        self._log = directory / "log"
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor {SERVICE} {host} {port} {quorum}\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 3000\n{options}"
        )
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), find_server(kind), str(configuration)]
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, "--sentinel"], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def client(self, **kwargs: Any) -> Redis:
        """Return a client; close it."""
        return Redis(port=self.port, socket_timeout=5, **kwargs)

    def ready(self, replicas: int = 1, **kwargs: Any) -> bool:
        """Tell whether it reaches the master and knows its replicas."""
        assert self.process.poll() is None, self._log.read_text()
        try:
            with self.client(**kwargs) as client:
                state = client.sentinel_masters()[SERVICE]
        except (RedisError, KeyError):
            return False
        return state["num-slaves"] == replicas and not state["is_sdown"] and not state["is_odown"]

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(10)


class Topology:
    """A master with a replica, watched by ``count`` sentinels.

    Args:
        start_server: the fixture.
        directory: for the sentinels' files.
        kind: which server.
        password: of both servers.
        sentinel_password: of the sentinels.
    """

    def __init__(
        self,
        start_server: Callable[..., EmbeddedServer],
        directory: Path,
        kind: str | None,
        count: int = 1,
        password: str = "",
        sentinel_password: str = "",
    ) -> None:
        secret = {"requirepass": password, "masterauth": password} if password else {}
        common = {
            "repl-diskless-sync-delay": 0,
            "repl-timeout": 5,
            "appendonly": "yes",
            "appendfsync": "always",
            **secret,
        }
        self.master = start_server(common)
        self.replica = start_server({**common, "replicaof": (self.master.host, self.master.port)})
        self._kwargs = {"password": sentinel_password} if sentinel_password else {}
        options = f"sentinel auth-pass {SERVICE} {password}\n" if password else ""
        if sentinel_password:
            options += f"requirepass {sentinel_password}\nsentinel sentinel-pass {sentinel_password}\n"
        wait_until(lambda: self.replica.client().info("replication")["master_link_status"] == "up", what="the replica")
        self.sentinels = [
            Sentinel(directory / f"sentinel{i}", kind, self.master.host, self.master.port, count // 2 + 1, options)
            for i in range(count)
        ]
        wait_until(lambda: all(one.ready(**self._kwargs) for one in self.sentinels), 40, "sentinels that know all")

    @property
    def hosts(self) -> str:
        """The sentinels as in a URL."""
        return ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)

    @property
    def url(self) -> str:
        """The URL of the service, without passwords."""
        return f"sentinel://{self.hosts}/{SERVICE}/0"

    def fail_over(self) -> None:
        """Have a sentinel make the replica the master, as an operator does; return when it is."""

        def ask() -> bool:
            with self.sentinels[0].client(**self._kwargs) as client:
                try:
                    client.execute_command("SENTINEL FAILOVER", SERVICE)
                except RedisError:  # right after another one
                    return False
            return True

        wait_until(ask, 30, "a sentinel that begins a failover")
        self.wait_for_master(self.replica)
        self.master, self.replica = self.replica, self.master

    def kill_master(self) -> None:
        """Kill the master; return when the replica has become the master."""
        self.master.kill()
        self.wait_for_master(self.replica)
        self.master, self.replica = self.replica, self.master

    def wait_for_master(self, server: EmbeddedServer) -> None:
        """Wait until ``server`` is a master and all sentinels say so."""

        def told() -> bool:
            for one in self.sentinels:
                with one.client(**self._kwargs) as client:
                    if client.sentinel_masters()[SERVICE]["port"] != server.port:
                        return False
            return True

        wait_until(lambda: role(server) == "master", 40, "a new master")
        wait_until(told, 30, "sentinels that know the new master")

    def close(self) -> None:
        """End the sentinels; the fixture ends the servers."""
        for one in self.sentinels:
            one.end()


def role(server: EmbeddedServer) -> str:
    """Return what a server is; nothing while it closes connections because that changes."""
    try:
        with Redis.from_url(server.url, socket_timeout=5) as client:
            return str(client.info("replication")["role"])
    except RedisError:
        return ""


def replicated(topology: Topology) -> bool:
    """Wait until the replica has all that was written until now; tell whether it came to that."""
    with Redis.from_url(topology.master.url, single_connection_client=True) as client:
        client.set("barrier", 1)  # WAIT is about the writes of its own connection, and so of all before them
        return bool(client.execute_command("WAIT", 1, 10_000))
