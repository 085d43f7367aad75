"""A failover is ridden out: by running jobs, by a web process, and by a worker that starts in the middle of it."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash_jobs
import psutil
import pytest
from commands import free_port, run, start
from conftest import KIND
from keys import named
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from rq import Queue
from rq.job import Job
from support import WorkerProcess, running_worker, wait_until
from topology import Topology, replicated, role

import rq_pooled
from rq_pooled.config import Settings
from rq_pooled.connection.away import ServerAway, check_away
from rq_pooled.connection.finder import beside
from rq_pooled.connection.options import make_connection
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ServerUnreachable
from rq_pooled.pool import Pool, get_connection

pytestmark = pytest.mark.timeout(180)

LOST, BACK = "lost the server", "the server is back"


@pytest.fixture
def topology(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> Iterator[Topology]:
    """A master, a replica and three sentinels."""
    one = Topology(start_server, tmp_path, KIND, count=3)
    yield one
    one.close()


@pytest.fixture
def worker(topology: Topology, tmp_path: Path) -> Iterator[WorkerProcess]:
    """A worker of three horses that finds its server by Sentinel."""
    one = start(tmp_path / "log", "--url", topology.url, "--concurrency", "3", "--name", "w", "q")
    one.wait_for("connections: command")
    yield one
    one.kill()


def queue_on(server: EmbeddedServer) -> Queue:
    """Return the queue as a server has it."""
    return Queue("q", connection=server.client())


def running(server: EmbeddedServer, gate: Path, count: int) -> list[Job]:
    """Enqueue jobs that wait for a file; return when they run."""
    queue = queue_on(server)
    jobs = [queue.enqueue(crash_jobs.wait_for_file, str(gate), 90) for _ in range(count)]
    wait_until(lambda: len(list(gate.parent.glob(f"{gate.name}.*.pid"))) == count, what="running jobs")
    return jobs


def enqueued(queue: Queue) -> Job | None:
    """Enqueue a job, if that works."""
    try:
        return queue.enqueue(crash_jobs.nothing)
    except RedisError:
        return None


def check_outcomes(topology: Topology, worker: WorkerProcess, jobs: list[Job]) -> None:
    """Check that the master of now has exactly one result of each job, and that the worker goes on working."""
    client = topology.master.client()
    there = [Job.fetch(job.id, connection=client) for job in jobs]
    wait_until(lambda: all(job.get_status() == "finished" for job in there), 60, "outcomes on the new master")
    assert [len(job.results()) for job in there] == [1] * len(jobs)
    more = [queue_on(topology.master).enqueue(crash_jobs.nothing) for _ in range(10)]
    wait_until(lambda: all(job.get_status() == "finished" for job in more), 60, "work after the failover")
    assert not client.zcard(named("rq:wip:q")) and not client.keys(named("rq_pooled:claims:*"))
    assert client.smembers(named("rq:workers")) == {
        named(b"rq:worker:w"),
        named(b"rq:worker:w-1"),
        named(b"rq:worker:w-2"),
    }
    names = sorted(
        entry["name"].rpartition(":")[2] for entry in client.client_list() if named("rq_pooled:") in entry["name"]
    )
    assert names == ["command", "listen"]
    output = worker.output()
    assert "Traceback" not in output and "could not be recorded" not in output
    assert output.count(LOST) == output.count(BACK) <= 5, output


def test_a_master_that_is_killed(topology: Topology, worker: WorkerProcess, tmp_path: Path) -> None:
    """SIGKILL of the master: running jobs run on, their outcomes are recorded on the new master, once each."""
    gate = tmp_path / "gate"
    jobs = running(topology.master, gate, 3)
    assert replicated(topology)
    topology.master.kill()
    worker.wait_for(LOST)
    gate.touch()  # they end while there is no master at all
    topology.wait_for_master(topology.replica)
    topology.master, topology.replica = topology.replica, topology.master
    worker.wait_for(BACK, 60)
    check_outcomes(topology, worker, jobs)
    assert worker.stop() == 0


def test_a_failover_on_demand(topology: Topology, worker: WorkerProcess, tmp_path: Path) -> None:
    """SENTINEL FAILOVER: the worker follows, its jobs end on the new master, and the old one is left."""
    gate = tmp_path / "gate"
    jobs = running(topology.master, gate, 2)
    assert replicated(topology)
    topology.fail_over()
    wait_until(lambda: role(topology.replica) == "slave", 60, "the old master's demotion")
    worker.wait_for(BACK, 60)
    gate.touch()
    check_outcomes(topology, worker, jobs)
    old = topology.replica.client().client_list()
    assert not [entry for entry in old if entry["name"].startswith(named("rq_pooled:"))]
    assert worker.stop() == 0


def test_a_worker_that_starts_in_the_middle_of_it(topology: Topology, tmp_path: Path) -> None:
    """A master that sentinels name and nobody reaches, and one that they know to be down, are waited for at boot."""
    job = queue_on(topology.master).enqueue(crash_jobs.nothing)
    assert replicated(topology)
    topology.master.kill()
    worker = start(tmp_path / "log", "--url", topology.url, "q")
    try:
        worker.wait_for("trying again for up to")
        topology.wait_for_master(topology.replica)
        worker.wait_for("the server is ready after", 60)
        there = Job.fetch(job.id, connection=topology.replica.client())
        wait_until(lambda: there.get_status() == "finished", what="work on the new master")
        assert worker.output().count("trying again") == 1
        assert worker.stop() == 0
    finally:
        worker.kill()


def test_a_web_process_follows(topology: Topology) -> None:
    """After a failover the pool enqueues on the new master, without a restart, also with connections from before."""
    connection = get_connection(Settings(url=topology.url, reconnect_base=0.05))
    queue = rq_pooled.Queue("q", connection=connection)
    pool: Any = connection.connection_pool
    kept = [pool.get_connection() for _ in range(4)]
    for one in kept:
        pool.release(one)
    topology.fail_over()
    wait_until(lambda: role(topology.replica) == "slave", 60, "the old master's demotion")

    job = wait_until(lambda: enqueued(queue), 30, "an enqueue that works")
    assert topology.master.client().exists(job.key)
    for _ in range(5):  # every connection of the pool is good now
        assert queue.enqueue(crash_jobs.nothing)
    topology.kill_master()
    assert wait_until(lambda: enqueued(queue), 30, "an enqueue that works")
    pool.disconnect()


def test_a_pool_closes_connections_to_a_former_master(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """When one connection finds another master, idle ones that lead to the former are not used again."""
    topology = Topology(start_server, tmp_path, KIND)
    try:
        pool = Pool(Settings(url=topology.url))
        closed: list[str] = []
        pool.subscribe(lambda event, details: closed.append(details["reason"]) if event == "close" else None)
        first, second = pool.get_connection(), pool.get_connection()
        pool.release(first)
        pool.release(second)
        old = topology.master
        topology.fail_over()
        old.pause()  # whoever asks the former master anything waits in vain
        try:
            one = pool.get_connection() if old.pid else None
            assert one is second
            one.disconnect()
            one.connect()
            pool.release(one)
            began = time.monotonic()
            both = [pool.get_connection(), pool.get_connection()]
            assert {connection.port for connection in both} == {topology.master.port}
            assert time.monotonic() - began < pool.settings.socket_timeout
            for connection in both:
                pool.release(connection)
            assert "another server has become the master" in closed
        finally:
            old.resume()
            pool.disconnect()
    finally:
        topology.close()


def test_the_coming_master_is_found_before_the_failover_is_over(topology: Topology, start_server: Any) -> None:
    """While a replica has still to change sides, nobody is sent to the master that is being abandoned."""
    extra = start_server({"replicaof": (topology.master.host, topology.master.port), "replica-priority": 0})
    asked = topology.sentinels[0].client()
    wait_until(lambda: topology.sentinels[0].ready(replicas=2), 40, "a sentinel that knows both replicas")
    pool = Pool(Settings(url=f"sentinel://127.0.0.1:{topology.sentinels[0].port}/mymaster"))
    masters = pool.connection_kwargs["connection_pool"]
    assert masters.get_master_address()[1] == topology.master.port
    extra.pause()
    try:
        asked.execute_command("SENTINEL FAILOVER", "mymaster")
        coming = topology.replica.port
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        wait_until(lambda: int(asked.execute_command(*command)[1]) == coming, 40, "the coming master")
        assert masters.get_master_address() == ("127.0.0.1", coming)
    finally:
        extra.resume()
        asked.close()


def test_two_connections_that_belong_together_meet(topology: Topology) -> None:
    """A connection beside another goes where that one went, whatever the sentinels say by then."""
    settings = Settings(url=topology.url)
    first, second = make_connection(settings, "command"), make_connection(settings, "listen")
    first.connect()
    topology.fail_over()
    old = (first.host, first.port)
    beside(second, lambda: old).connect()
    assert (second.host, second.port) == old
    third = make_connection(settings, "listen")
    third.connect()
    assert third.port == topology.master.port != old[1]
    with pytest.raises(RedisConnectionError, match="was lost"):
        beside(make_connection(settings, "listen"), lambda: None).connect()
    for connection in (first, second, third):
        connection.disconnect()


# -- without Sentinel: an address behind which the server changes -----------------------------------------------------


@pytest.fixture
def pair(start_server: Callable[..., EmbeddedServer]) -> tuple[EmbeddedServer, EmbeddedServer]:
    """Two masters; a test makes one a replica of the other and back."""
    return start_server({"repl-diskless-sync-delay": 0}), start_server({"repl-diskless-sync-delay": 0})


def demote(server: EmbeddedServer, master: EmbeddedServer) -> None:
    """Make a server a replica without closing any of its connections."""
    server.client().execute_command("REPLICAOF", master.host, master.port)


def promote(server: EmbeddedServer) -> None:
    """Make a server a master."""
    server.client().execute_command("REPLICAOF", "NO", "ONE")


def test_a_pool_drops_a_connection_that_cannot_write(pair: tuple[EmbeddedServer, EmbeddedServer]) -> None:
    """READONLY on a plain URL: the caller is told, and the connection is closed; the next caller gets a new one."""
    server, other = pair
    pool = Pool(Settings(url=server.url))
    with Redis(connection_pool=pool) as client:
        client.set("a", 1)
        demote(server, other)
        with pytest.raises(ReadOnlyError):
            client.set("a", 2)
        assert pool.stats()["created"] == 0
        with client.pipeline() as pipeline:
            pipeline.set("a", 2).set("b", 2)
            with pytest.raises((ReadOnlyError, ResponseError)):
                pipeline.execute()
        assert pool.stats()["created"] == 0
        promote(server)
        assert client.set("a", 3)
        assert pool.stats()["created"] == 1 and pool.stats()["in_use"] == 0
    pool.disconnect()


def test_a_worker_waits_while_its_server_is_a_replica(
    pair: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path
) -> None:
    """READONLY in claims, commits and heartbeats is a lost server: no exit, no spin, two log lines, nothing dropped."""
    server, other = pair
    gate = tmp_path / "gate"
    with running_worker(
        server.url,
        "q",
        log=tmp_path / "log",
        concurrency=2,
        RQ_POOLED_HEARTBEAT_INTERVAL="0.5",
        RQ_POOLED_RECONNECT_CAP="1",
    ) as worker:
        (job,) = running(server, gate, 1)
        server.client().execute_command("BGSAVE")
        demote(server, other)
        worker.wait_for(LOST)
        process = psutil.Process(worker.pid)
        before, began = process.cpu_times(), time.monotonic()
        connects = int(server.client().info("stats")["total_connections_received"])
        gate.touch()
        wait_until(lambda: time.monotonic() - began > 6, what="some seconds without a master")
        after = process.cpu_times()
        assert (after.user + after.system) - (before.user + before.system) < 0.5
        assert int(server.client().info("stats")["total_connections_received"]) - connects < 60
        assert worker.output().count(LOST) == 1 and BACK not in worker.output()
        promote(server)
        worker.wait_for(BACK, 30)
        # The replica took over the other's data: the job is gone, as with any server that comes back empty.
        assert not server.client().exists(job.key)
        again = queue_on(server).enqueue(crash_jobs.nothing)
        wait_until(lambda: again.get_status() == "finished", what="work after the promotion")
        assert "heartbeat refused" not in worker.output() and "could not be recorded" not in worker.output()
        assert worker.stop() == 0


@pytest.mark.parametrize(
    "text",
    [
        "READONLY You can't write against a read only replica.",
        "ERR Error running script (call to f_1): @user_script:1: READONLY You can't write against a read only replica.",
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "LOADING Redis is loading the dataset in memory",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Redis is configured to save RDB snapshots",
        "BUSY Redis is busy running a script.",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "ERR max number of clients reached",
    ],
)
def test_every_reply_of_a_server_that_is_away(text: str) -> None:
    """Whatever class redis-py has for it and however much of the text it cuts off, the reply is known as a loss."""
    from redis._parsers.base import BaseParser

    error = BaseParser.parse_error(text)
    with pytest.raises(ServerAway):
        check_away(error)


@pytest.mark.parametrize(
    "text",
    ["BUSYGROUP Consumer Group name already exists", "BUSYKEY Target key name already exists.", 
     "OOM command not allowed", "WRONGTYPE Operation against a key", "NOSCRIPT No matching script."],
)  # fmt: skip
def test_replies_that_are_answers(text: str) -> None:
    """Errors of a command are answers to it, whatever they begin like."""
    from redis._parsers.base import BaseParser

    check_away(BaseParser.parse_error(text))


# -- at boot
# -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def loading(server: EmbeddedServer) -> Iterator[None]:
    """Have a server load its data for the length of the block, as after a start with a large file."""
    with Redis.from_url(server.url) as client:
        for name, value in (
            ("rdbcompression", "no"),
            ("loading-process-events-interval-bytes", 1024),
            ("key-load-delay", 10_000),  # microseconds
        ):
            client.config_set(name, value)
        client.mset({f"ballast:{i}": "x" * 2048 for i in range(3000)})
        connection = client.connection_pool.make_connection()
        connection.connect()
        connection.send_command("DEBUG", "RELOAD")  # answered when the block is long over
        try:
            wait_until(lambda: client.info("persistence")["loading"], what="a server that loads")
            yield
        finally:
            client.config_set("key-load-delay", 0)
            wait_until(lambda: not client.info("persistence")["loading"], what="the end of loading")
            connection.disconnect()


@contextlib.contextmanager
def full(server: EmbeddedServer) -> Iterator[None]:
    """Have a server refuse new connections, since it has as many as it may, for the length of the block."""
    with Redis.from_url(server.url) as client:
        client.config_set("maxclients", 1)
        yield
        client.config_set("maxclients", 1000)


@contextlib.contextmanager
def replica(server: EmbeddedServer) -> Iterator[None]:
    """Make a server a replica of nobody for the length of the block: READONLY."""
    server.client().execute_command("REPLICAOF", "127.0.0.1", free_port())
    yield
    promote(server)


@contextlib.contextmanager
def orphan(server: EmbeddedServer) -> Iterator[None]:
    """As ``replica``, but serving no stale data: MASTERDOWN to reads."""
    server.client().config_set("replica-serve-stale-data", "no")
    with replica(server):
        yield


@contextlib.contextmanager
def lonely(server: EmbeddedServer) -> Iterator[None]:
    """Have a master refuse writes because it has no replica: NOREPLICAS."""
    with Redis.from_url(server.url) as client:
        client.config_set("min-replicas-to-write", 1)
        yield
        client.config_set("min-replicas-to-write", 0)


TROUBLES = {"loading": loading, "full": full, "replica": replica, "orphan": orphan, "lonely": lonely}
WORDS = {
    "loading": "loading",
    "replica": "read only",
    "orphan": "read only",
    "lonely": "NOREPLICAS",
}
BOOT_TROUBLES = [trouble for trouble in TROUBLES if trouble != "full"]  # which is the guard's: test_guard.py
OPTIONS = {"enable-debug-command": "yes", "rdb-save-incremental-fsync": "no"}


@pytest.mark.parametrize("trouble", BOOT_TROUBLES)
def test_a_worker_that_starts_too_early_waits(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path, trouble: str
) -> None:
    """What passes is waited for at boot: one line when it begins, one when it is over, then work."""
    server = start_server(OPTIONS)
    job = queue_on(server).enqueue(crash_jobs.nothing)
    with TROUBLES[trouble](server):
        worker = start(tmp_path / "log", "--url", server.url, "q")
        worker.wait_for("trying again for up to 60 s")
        assert WORDS[trouble] in worker.output()
    try:
        worker.wait_for("the server is ready after")
        wait_until(lambda: job.get_status() == "finished", what="work")
        assert worker.output().count("trying again") == 1
        assert worker.stop() == 0
    finally:
        worker.kill()


@pytest.mark.parametrize("trouble", BOOT_TROUBLES)
def test_a_worker_that_waits_can_be_stopped(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path, trouble: str
) -> None:
    """SIGTERM while it waits for the server at boot ends the worker at once, in order."""
    server = start_server(OPTIONS)
    with TROUBLES[trouble](server):
        worker = start(tmp_path / "log", "--url", server.url, "q", RQ_POOLED_RECONNECT_BASE="30",
                       RQ_POOLED_RECONNECT_CAP="30")  # fmt: skip
        worker.wait_for("trying again for up to")
        assert worker.stop(10) == 0
        assert "stopping on request" in worker.output()
    assert not server.client().keys("rq*")


def test_a_worker_that_starts_before_the_server_waits(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """A server that is down at the start is waited for, one line for the wait; SIGTERM ends the wait with 0."""
    server = start_server({"appendonly": "yes", "appendfsync": "always"})
    job = queue_on(server).enqueue(crash_jobs.nothing)
    server.kill()
    stopped = start(tmp_path / "stopped", "--url", server.url, "q", RQ_POOLED_RECONNECT_BASE="30",
                    RQ_POOLED_RECONNECT_CAP="30")  # fmt: skip
    worker = start(tmp_path / "log", "--url", server.url, "q")
    try:
        stopped.wait_for("trying again for up to 60 s")
        assert stopped.stop(10) == 0
        worker.wait_for("check that the server runs, and RQ_POOLED_URL (or --url); trying again for up to 60 s")
        server.start()
        worker.wait_for("the server is ready after")
        wait_until(lambda: job.get_status() == "finished", what="work")
        assert worker.output().count("trying again") == 1
        assert worker.stop() == 0
    finally:
        worker.kill()
        stopped.kill()


@pytest.mark.parametrize("budget", [{}, {"RQ_POOLED_BUDGET": "20", "RQ_POOLED_BUDGET_NAME": "shop"}])
def test_what_is_not_waited_for_at_boot(budget: dict[str, str]) -> None:
    """An address that nobody has ends the worker at once with 75, and a server that stays down after GUARD_WAIT."""
    way = ["-m", "rq_pooled", "worker", "q"]
    result = run(way, RQ_POOLED_URL="redis://no-such-host.invalid:1/0", **budget)
    assert result.returncode == 75 and "check the host in URL" in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1
    began = time.monotonic()
    url = f"redis://127.0.0.1:{free_port()}/0"
    result = run(way, RQ_POOLED_URL=url, RQ_POOLED_GUARD_WAIT="1", **budget)
    assert result.returncode == 75 and time.monotonic() - began > 1
    (first,), (last,) = result.stdout.splitlines(), result.stderr.splitlines()
    assert "trying again for up to 1 s" in first and re.search(r"tried \d+ times in 1 s \(GUARD_WAIT\)", last)


@contextlib.contextmanager
def saying_nothing(accepts: bool) -> Iterator[int]:
    """Give a port where connections are taken and never answered, or where what is sent to it vanishes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(50 if accepts else 0)
        for _ in range(0 if accepts else 2):  # the kernel drops what does not fit
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("accepts", [True, False], ids=["accepts and says nothing", "packets vanish"])
@pytest.mark.parametrize("budget", [{}, {"RQ_POOLED_BUDGET": "20", "RQ_POOLED_BUDGET_NAME": "shop"}])
def test_guard_wait_bounds_the_wait_for_silence(accepts: bool, budget: dict[str, str]) -> None:
    """A server that says nothing is waited for as long as GUARD_WAIT says, not as long as the timeouts of sockets."""
    with saying_nothing(accepts) as port:
        began = time.monotonic()
        way = ["-m", "rq_pooled", "worker", "q"]
        sockets = {"RQ_POOLED_SOCKET_CONNECT_TIMEOUT": "15", "RQ_POOLED_SOCKET_TIMEOUT": "15"}
        result = run(way, RQ_POOLED_URL=f"redis://127.0.0.1:{port}/0", RQ_POOLED_GUARD_WAIT="1", **sockets, **budget)
    assert result.returncode == 75 and "imeout" in result.stderr and "(GUARD_WAIT)" in result.stderr, result.stderr
    assert time.monotonic() - began < 10


def test_waiting_at_boot_is_bounded(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """After GUARD_WAIT the worker gives up with exit code 75, and names what the server said and the setting."""
    server = start_server()
    with replica(server):
        result = run(["-m", "rq_pooled", "worker", "--url", server.url, "--guard-wait", "0.5", "q"])
        assert result.returncode == 75
        last = result.stderr.strip().splitlines()[-1]
        assert "read only" in last and "GUARD_WAIT" in last and "Traceback" not in result.stderr
        result = run(["-m", "rq_pooled", "worker", "--url", server.url, "--reconnect-attempts", "2", "q"])
        assert result.returncode == 75 and "tried 2 times" in result.stderr and "RECONNECT_ATTEMPTS" in result.stderr


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_worker_comes_back_to_a_server_in_trouble(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path, trouble: str
) -> None:
    """The same replies when connecting again: it keeps trying, keeps the outcome, and records it in the end."""
    server = start_server(OPTIONS)
    gate = tmp_path / "gate"
    with running_worker(server.url, "q", log=tmp_path / "log", RQ_POOLED_HEARTBEAT_INTERVAL="0.5") as worker:
        (job,) = running(server, gate, 1)
        client = server.client()  # connected from here on: a full server would refuse it
        client.ping()
        with TROUBLES[trouble](server):
            for entry in client.client_list():
                if entry["name"].startswith(named("rq_pooled:")):
                    client.client_kill_filter(_id=entry["id"])
            worker.wait_for(LOST)
            gate.touch()
        worker.wait_for(BACK, 30)
        wait_until(lambda: job.get_status() == "finished", what="the outcome")
        assert len(job.results()) == 1
        assert worker.output().count(LOST) == 1, worker.output()
        assert worker.stop() == 0


def test_a_web_process_waits_for_nobody(start_server: Callable[..., EmbeddedServer]) -> None:
    """Enqueueing on a full server fails in words, soon, and works when there is room again."""
    server = start_server(OPTIONS)
    queue = rq_pooled.Queue("q", connection=Redis(connection_pool=Pool(Settings(url=server.url, reconnect_base=0.01))))
    with full(server), pytest.raises(ServerUnreachable, match="max number of clients"):
        queue.enqueue(crash_jobs.nothing)
    assert wait_until(lambda: enqueued(queue), what="an enqueue that works")
    queue.connection.connection_pool.disconnect()
