"""Jobs that use Redis through their worker, on servers of all kinds: TLS, Sentinel, Unix socket, frozen, strict."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import own_way_worker
import pytest
import stream_jobs
from commands import start
from conftest import KIND
from redis import Redis
from rq import Queue
from rq.job import Job
from sampling import Sampler, ended, finished, of_worker, outcome, received, roles
from support import running_worker, wait_until
from tls_server import TLSServer
from topology import Topology, replicated

from rq_pooled.embedded import EmbeddedServer

pytestmark = pytest.mark.timeout(180)
#: What a call under way may raise when a server goes.
GONE = {"ConnectionError", "TimeoutError", "ReadOnlyError", "ServerUnreachable"}

# -- TLS ---------------------------------------------------------------------------------------------------------------


def test_jobs_over_tls_need_three_handshakes(tls: TLSServer, tmp_path: Path) -> None:
    """Ten horses, 200 jobs of many commands over TLS: never above 3 connections, one handshake for all jobs."""
    redis = tls.server.client()
    with running_worker(tls.url, "a", log=tmp_path / "log", concurrency=10), Sampler(tls.server.url) as sampler:
        wait_until(lambda: len(of_worker(redis)) == 2, what="both connections")
        before = received(redis)
        finished([Queue("a", connection=redis).enqueue(stream_jobs.busy) for _ in range(200)], redis, timeout=100)
        assert received(redis) - before <= 2
        assert sampler.most == 3
        assert tls.ours() == ["command", "jobs", "listen"]
        assert redis.get("jobs") == redis.get("scripts") == b"200"


def test_what_cannot_be_shared_over_tls_is_bounded_and_reused(tls: TLSServer, tmp_path: Path) -> None:
    """WATCH and depends_on in every job over TLS: at most ten handshakes for 200 jobs, and none for more of them."""
    redis = tls.server.client()
    queue = Queue("a", connection=redis)
    with running_worker(tls.url, "a", log=tmp_path / "log", concurrency=10), Sampler(tls.server.url) as sampler:
        wait_until(lambda: len(of_worker(redis)) == 2, what="both connections")
        before = received(redis)
        finished([queue.enqueue(stream_jobs.watching) for _ in range(200)], redis, timeout=100)
        assert sampler.most <= 3 + 10
        finished([queue.enqueue(stream_jobs.watching) for _ in range(50)], redis, timeout=100)
        assert received(redis) - before <= 1 + 10
        assert redis.get("watched") == b"250"
        assert set(tls.ours()) == {"command", "exclusive", "jobs", "listen"}


def test_everything_works_over_tls(tls: TLSServer, tmp_path: Path) -> None:
    """Long values, threads and children, PubSub and blocking commands get their own replies over TLS."""
    redis = tls.server.client()
    with running_worker(tls.url, "a", log=tmp_path / "log", concurrency=4) as worker:
        queue = Queue("a", connection=redis)
        jobs = [queue.enqueue(stream_jobs.large, 5_000_000), queue.enqueue(stream_jobs.everything, "key")]
        jobs += [queue.enqueue(stream_jobs.echo_many, 50, seed) for seed in range(8)]
        ended(jobs, redis)
        assert outcome(jobs[0]) == [True, True, True]
        assert len(outcome(jobs[1])) == 17
        assert [outcome(job) for job in jobs[2:]] == [250] * 8
        assert worker.stop() == 0


# -- the server changes, or is silent ----------------------------------------------------------------------------------


class Counting:
    """Jobs that count, and what is known of them."""

    def __init__(self, redis: Redis, gate: Path, number: int) -> None:
        self.gate = gate
        self.keys = [f"n{i}" for i in range(number)]
        queue = Queue("a", connection=redis)
        self.jobs = [queue.enqueue(stream_jobs.count_up, key, 100_000, str(gate)) for key in self.keys]
        wait_until(lambda: all(redis.mget(self.keys)), what="all jobs")

    def goes_on(self, redis: Redis) -> None:
        """Wait until each has counted on."""
        before = redis.mget(self.keys)
        wait_until(lambda: all(a != b for a, b in zip(before, redis.mget(self.keys))), 30, "all jobs to go on")

    def end(self, redis: Redis) -> set[str]:
        """Let them end well; return the kinds of errors that they have met."""
        self.gate.touch()
        jobs = [Job.fetch(job.id, connection=redis) for job in self.jobs]
        finished(jobs, redis)
        return {error for job in jobs for error in outcome(job)}


@pytest.mark.parametrize("way", ["on demand", "killed"])
def test_a_failover_while_jobs_use_redis(start_server: Callable[..., EmbeddedServer], tmp_path: Path, way: str) -> None:
    """After a failover jobs go on at the new master, over as few connections; none is left at the old one."""
    topology = Topology(start_server, tmp_path, KIND)
    worker = start(tmp_path / "log", "--url", topology.url, "--concurrency", "3", "a")
    try:
        worker.wait_for("connections: command")
        counting = Counting(topology.master.client(), tmp_path / "gate", 3)
        if way == "killed":
            assert replicated(topology)
            topology.kill_master()
        else:
            topology.fail_over()
        worker.wait_for("the server is back", 60)
        redis = topology.master.client()
        counting.goes_on(redis)
        assert roles(redis) == ["command", "jobs", "listen"]
        if way == "on demand":
            wait_until(lambda: not of_worker(topology.replica.client()), what="the old master to be left")
        assert counting.end(redis) <= GONE
        assert worker.stop() == 0
        assert "Traceback" not in worker.output()
    finally:
        worker.kill()
        topology.close()


def test_a_server_that_is_silent_for_a_moment_costs_nothing(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """A pause that is shorter than SOCKET_TIMEOUT fails no call and opens no connection."""
    server = start_server()
    redis = server.client()
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=3, RQ_POOLED_SOCKET_TIMEOUT="15"):
        counting = Counting(redis, tmp_path / "gate", 3)
        before = received(redis)
        for _ in range(3):
            server.pause()
            time.sleep(0.7)  # how long it is silent, not a wait for anything
            server.resume()
            counting.goes_on(redis)
        assert counting.end(redis) == set()
        assert received(redis) == before


def test_a_server_that_is_silent_for_long_fails_the_calls_under_way(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """A frozen server: calls end by SOCKET_TIMEOUT, commands that wait in Redis too, and all goes on afterwards."""
    server = start_server()
    redis = server.client()
    settings = {"RQ_POOLED_SOCKET_TIMEOUT": "1", "RQ_POOLED_SOCKET_CONNECT_TIMEOUT": "1"}
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=4, **settings) as worker:
        counting = Counting(redis, tmp_path / "gate", 3)
        waiting = Queue("a", connection=redis).enqueue(stream_jobs.wait_in_redis, "never", 0.5)
        server.pause()
        worker.wait_for("lost the server")
        server.resume()
        worker.wait_for("the server is back")
        counting.goes_on(redis)
        wait_until(lambda: roles(redis).count("jobs") == 1 and len(roles(redis)) <= 4, what="few connections")
        ended([waiting], redis)
        assert counting.end(redis) <= GONE
        assert worker.stop() == 0


# -- other ways to a server --------------------------------------------------------------------------------------------


def test_a_server_on_a_unix_socket(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """Over unix:// jobs share as over TCP."""
    server = start_server(unix_socket=True)
    redis = server.client()
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=4), Sampler(server.url) as sampler:
        queue = Queue("a", connection=redis)
        finished([queue.enqueue(stream_jobs.busy) for _ in range(50)], redis)
        assert sampler.most == 3 and roles(redis) == ["command", "jobs", "listen"]
        finished([queue.enqueue(stream_jobs.watching) for _ in range(20)], redis)
        assert sampler.most <= 3 + 4


def test_another_database_and_password(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """Jobs are in the worker's database, with its password, on the shared connection and on those that are lent."""
    server = start_server({"requirepass": "s3cr3t"})
    redis = Redis(host=server.host, port=server.port, password="s3cr3t", db=7)
    url = server.url.removesuffix("/0") + "/7"
    with running_worker(url, "a", log=tmp_path / "log", concurrency=2) as worker:
        queue = Queue("a", connection=redis)
        finished([queue.enqueue(stream_jobs.busy) for _ in range(5)], redis)
        finished([queue.enqueue(stream_jobs.watching) for _ in range(5)], redis)
        assert redis.get("jobs") == redis.get("watched") == b"5"
        assert redis.info("keyspace").keys() == {"db7"}
        assert {entry["db"] for entry in redis.client_list() if entry["name"].endswith((":jobs", ":exclusive"))} == {
            "7"
        }
        assert "s3cr3t" not in worker.output()
    redis.close()


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_worker_of_either_protocol(server: EmbeddedServer, redis: Redis, tmp_path: Path, protocol: int) -> None:
    """A worker that speaks RESP3 to the server shares as one that speaks RESP2 does."""
    with running_worker(f"{server.url}?protocol={protocol}", "a", log=tmp_path / "log", concurrency=4):
        queue = Queue("a", connection=redis)
        finished([queue.enqueue(stream_jobs.busy) for _ in range(30)], redis)
        assert roles(redis) == ["command", "jobs", "listen"]
        jobs = [queue.enqueue(stream_jobs.watching), queue.enqueue(stream_jobs.everything, "key")]
        ended(jobs, redis)
        assert len(outcome(jobs[1])) == 17 and redis.get("watched") == b"1"
        (shared,) = (entry for entry in redis.client_list() if entry["name"].endswith(":jobs"))
        assert shared["resp"] == str(protocol)


class Gate:
    """Lets connections through to a local server that begin with a word."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.passed = self.refused = 0
        self._over, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        while True:
            ready = select.select([self._listener, self._over, *peers], [], [])[0]
            if self._over in ready:
                break
            if self._listener in ready:
                self._let_in(self._listener.accept()[0], peers)
            for source in [one for one in ready if one in peers]:
                if source not in peers:
                    continue
                data = b""
                with contextlib.suppress(OSError):
                    data = source.recv(65536)
                    peers[source].sendall(data)
                if not data:
                    other = peers.pop(source)
                    del peers[other]
                    source.close()
                    other.close()
        for one in peers:
            one.close()

    def _let_in(self, client: socket.socket, peers: dict[socket.socket, socket.socket]) -> None:
        client.settimeout(5)
        word = b""
        with contextlib.suppress(OSError):
            word = client.recv(len(own_way_worker.WORD), socket.MSG_WAITALL)
        if word != own_way_worker.WORD:
            self.refused += 1
            client.close()
            return
        self.passed += 1
        client.settimeout(None)
        server = socket.create_connection(("127.0.0.1", self._port))
        peers[client], peers[server] = server, client

    def close(self) -> None:
        """Let nobody in any more."""
        self._end.send(b".")
        self._thread.join()
        for one in (self._listener, self._over, self._end):
            one.close()


@pytest.fixture
def gate(server: EmbeddedServer) -> Iterator[Gate]:
    """A gate before the session's server."""
    one = Gate(server.port)
    yield one
    one.close()


def test_a_connection_class_with_a_way_of_its_own(
    server: EmbeddedServer, redis: Redis, gate: Gate, tmp_path: Path
) -> None:
    """Where a subclass of redis-py's Connection has its own _connect, the shared and the lent connections go that way
    too.
    """
    environment: dict[str, Any] = {own_way_worker.GATE_PORT: str(gate.port)}
    with running_worker(
        server.url, "a", log=tmp_path / "log", concurrency=3, worker_class="own_way_worker.Worker", **environment
    ):
        queue = Queue("a", connection=redis)
        finished([queue.enqueue(stream_jobs.busy) for _ in range(50)], redis)
        assert roles(redis) == ["command", "jobs", "listen"]
        finished([queue.enqueue(stream_jobs.watching) for _ in range(20)], redis)
        assert gate.passed >= len(of_worker(redis)) >= 4 and gate.refused == 0


# -- users who may little ----------------------------------------------------------------------------------------------


def limited(start_server: Callable[..., EmbeddedServer], *rules: str) -> tuple[EmbeddedServer, str, Redis]:
    """Return a server, the URL of a user for whom these rules hold, and a client."""
    server = start_server()
    redis = server.client()
    redis.execute_command("ACL", "SETUSER", "worker", "on", ">s3cr3t", "~*", "&*", "+@all", *rules)
    return server, f"redis://worker:s3cr3t@{server.host}:{server.port}/0", redis


def of_user(redis: Redis) -> int:
    """Return how many connections the user has."""
    return sum(entry["user"] == "worker" for entry in redis.client_list())


def test_a_user_who_may_not_ask_about_commands(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """Where COMMAND is refused the built-in table decides: jobs share all the same."""
    _server, url, redis = limited(start_server, "-command")
    with running_worker(url, "a", log=tmp_path / "log", concurrency=4):
        queue = Queue("a", connection=redis)
        finished([queue.enqueue(stream_jobs.busy) for _ in range(50)], redis)
        assert roles(redis) == ["command", "jobs", "listen"]
        jobs = [queue.enqueue(stream_jobs.watching), queue.enqueue(stream_jobs.everything, "key")]
        ended(jobs, redis)
        assert len(outcome(jobs[1])) == 17 and redis.get("watched") == b"1"


def test_a_user_who_may_not_use_client(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """Where CLIENT is refused connections have no names, and are as few."""
    _server, url, redis = limited(start_server, "-client")
    with running_worker(url, "a", log=tmp_path / "log", concurrency=4) as worker:
        queue = Queue("a", connection=redis)
        finished([queue.enqueue(stream_jobs.busy) for _ in range(50)], redis)
        assert of_user(redis) == 3 and not of_worker(redis)
        finished([queue.enqueue(stream_jobs.watching) for _ in range(20)], redis)
        assert 4 <= of_user(redis) <= 3 + 4
        assert worker.stop() == 0 and "s3cr3t" not in worker.output()


def test_a_command_that_a_user_may_not_use_fails_its_own_call(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """NOPERM is the reply to the call that asked, in its place; a connection goes on."""
    _server, url, redis = limited(start_server, "-echo", "-blpop")
    with running_worker(url, "a", log=tmp_path / "log", concurrency=2):
        queue = Queue("a", connection=redis)
        jobs = [queue.enqueue(stream_jobs.echo, "x"), queue.enqueue(stream_jobs.wait_in_redis, "never", 1)]
        ended(jobs, redis)
        for job in jobs:
            result = job.latest_result()
            assert result is not None and "NoPermissionError" in str(result.exc_string)
        finished([queue.enqueue(stream_jobs.busy) for _ in range(10)], redis)
        assert roles(redis).count("jobs") == 1
