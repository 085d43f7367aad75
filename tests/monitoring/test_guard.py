"""The guard: workers start only where they fit, see a full server coming, and tell who holds its connections."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stats_jobs
from keys import named
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue
from support import PYTHONPATH, WorkerProcess, running_worker, wait_until

from rq_pooled import ConnectionGuard
from rq_pooled.capacity.level import level_of
from rq_pooled.capacity.stop_flag import Brake
from rq_pooled.capacity.trend import Sample, trend
from rq_pooled.config import Settings
from rq_pooled.connection.options import make_connection
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import PoolExhausted
from rq_pooled.log_lines import WorkerLog
from rq_pooled.parent.command_connection import CommandConnection
from rq_pooled.parent.guard import Guard
from rq_pooled.pool import Pool
from rq_pooled.store.keys import EVENTS, STARTING
from rq_pooled.store.scripts import load
from rq_pooled.store.workers import admit
from rq_pooled.worker.admission import Admission

FAST = {"RQ_POOLED_GUARD_INTERVAL": "0.1", "RQ_POOLED_HEARTBEAT_INTERVAL": "0.2"}


class Crowd:
    """Connections that somebody else holds."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._clients: list[Redis] = []

    def grow(self, count: int, name: str = "greedy") -> None:
        """Open more."""
        for _ in range(count):
            client = Redis.from_url(self._url, client_name=name, single_connection_client=True)
            client.ping()
            self._clients.append(client)

    def shrink(self, count: int) -> None:
        """Close some."""
        for _ in range(count):
            self._clients.pop().close()

    def __enter__(self) -> Crowd:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.shrink(len(self._clients))


def guard_of(server: EmbeddedServer, client: Redis | None = None, **settings: Any) -> ConnectionGuard:
    """Return a guard that asks with a client of its own."""
    return ConnectionGuard(Settings(url=server.url, **settings), client or server.client())


def test_levels_and_hysteresis() -> None:
    """The level rises at the thresholds and falls only clearly below them; without numbers it is unknown."""
    settings = Settings()
    rising = [level_of(settings, n, 100).name for n in (79, 80, 94, 95, 100)]
    assert rising == ["ok", "warn", "warn", "stop", "stop"]
    assert [level_of(settings, n, 100, "stop").name for n in (94, 88, 87, 76, 75)] == [
        "stop",
        "stop",
        "warn",
        "warn",
        "ok",
    ]
    assert [level_of(settings, n, 100, "warn").name for n in (79, 76, 75)] == ["warn", "warn", "ok"]
    assert level_of(settings, None, 100).name == level_of(settings, 5, None).name == "unknown"


def test_a_trend_is_a_leak_only_if_it_is_steady() -> None:
    """Steady growth is told from a deploy, which ends, from a busy hour, which also shrinks, and from silence."""
    leak = [Sample(15.0 * i, 100 + i, 1000) for i in range(30)]
    assert trend(leak).steady and trend(leak).per_minute == pytest.approx(4.0)
    assert trend(leak).minutes_left(129, 1000) == pytest.approx(217.8, abs=0.1)
    deploy = [Sample(15.0 * i, 100 + min(i, 5) * 2, 1000) for i in range(30)]
    busy = [Sample(15.0 * i, 100 + i + (i % 3) * 7, 1000) for i in range(30)]
    for samples in (deploy, busy, leak[:10], [], [Sample(1.0, 5, 10)] * 30):
        assert not trend(samples).steady


def test_check_counts_ours_and_others(start_server: Callable[..., EmbeddedServer]) -> None:
    """Ours are told by role and process, others by name and address, and the sum is what the server counts."""
    server = start_server({"maxclients": 40})
    pool = Pool(Settings(url=server.url, budget_name="shop"))
    with Crowd(server.url) as crowd:
        crowd.grow(3)
        crowd.grow(2, "dashboard")
        held = [pool.get_connection() for _ in range(4)]
        found = guard_of(server).describe()
        assert found["ours"] == 4 and found["roles"] == {"web": 4}
        (process,) = found["processes"]
        assert (process["app"], process["total"], process["address"]) == ("shop", 4, "127.0.0.1")
        others = {(other["name"], other["total"]) for other in found["others"]}
        assert {("greedy", 3), ("dashboard", 2), ("", 1)} == others
        assert found["connected"] == 10 and found["maxclients"] == 40 and found["level"] == "ok"
        assert found["share"] == 0.25 and not found["refused"]
        assert json.loads(json.dumps(found)) == found
        crowd.grow(22)
        assert guard_of(server).level().name == "warn"
        crowd.grow(6)
        assert guard_of(server).level().name == "stop"
        for connection in held:
            pool.release(connection)
    pool.disconnect()


def test_a_worker_waits_until_it_fits(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """On a server with 12 clients a worker waits without holding a connection, and starts when there is room."""
    server = start_server({"maxclients": 12})
    admin = server.client()
    admin.ping()
    with Crowd(server.url) as crowd:
        crowd.grow(9)
        with running_ours(server.url, tmp_path) as worker:
            worker.wait_for("waiting up to 60 s for a place")
            wait_until(lambda: not [c for c in admin.client_list() if c["name"].startswith(named("rq_pooled:"))])
            assert worker.process.poll() is None
            crowd.shrink(1)
            worker.wait_for("connections: command")
            Queue("a", connection=admin).enqueue(stats_jobs.succeed, str(tmp_path))
            wait_until(lambda: list(tmp_path.glob("ran.*")), what="a job")
            assert worker.stop() == 0


@pytest.mark.parametrize("came_first", [True, False])
def test_of_two_that_took_the_last_place_the_later_gives_way(
    start_server: Callable[..., EmbeddedServer], came_first: bool
) -> None:
    """At its second look a starting worker passes over the connection of one that came later, and of no other."""
    server = start_server({"maxclients": 20})
    settings = Settings(url=server.url, guard_warn=0.4, guard_stop=0.5)
    command = CommandConnection(lambda: make_connection(settings, "command"), load(), 5)
    other = server.client()

    def reserve() -> None:
        other.execute_command(*admit("another worker", True, 30.0))

    with Crowd(server.url) as crowd:

        def open_rest() -> None:
            # Else it had reserved before, and what connects now is no worker that starts.
            if came_first:
                reserve()
            crowd.grow(10 - other.info("clients")["connected_clients"] + 1)

        log = WorkerLog(logging.getLogger("test"), "w")
        context: Any = SimpleNamespace(settings=settings, command=command, log=log, lease=None)
        admission = Admission(context, command.connect, open_rest, command.close)
        command.connect()
        if not came_first:
            reserve()
        reason = admission._attempt(last=False)
        assert (reason is None) is came_first, reason
        assert other.zrange(STARTING, 0, -1) == [b"another worker"], "its own reservation is given back"
        command.close()


def test_a_worker_that_died_while_it_started_is_forgotten(redis: Redis, server: EmbeddedServer) -> None:
    """A reservation that nobody gives back holds up no other worker for longer than its life, whoever else starts."""
    settings = Settings(url=server.url)
    command = CommandConnection(lambda: make_connection(settings, "command"), load(), 5)
    command.connect()
    # What others wrote for a time to come would hold up all who start until then.
    redis.zadd(STARTING, {"forged": 4e9, "never": float("inf")})
    assert command.execute([admit("dead", True, 30.0)]) == [[0, 0]]
    assert command.execute([admit("next", True, 30.0)]) == [[1, 0]]
    wait_until(lambda: command.execute([admit("last", True, 0.3)]) == [[0, 0]], 5, "both to be forgotten")
    command.close()


@pytest.mark.parametrize("taken", [9, 11], ids=["above the ceiling", "every one"])
def test_giving_up_is_75_with_a_table(start_server: Callable[..., EmbeddedServer], tmp_path: Path, taken: int) -> None:
    """After GUARD_WAIT the worker ends with 75 and says who holds the connections, without a traceback."""
    server = start_server({"maxclients": 12})
    admin = server.client()
    admin.ping()
    with Crowd(server.url) as crowd:
        crowd.grow(taken)
        with running_ours(server.url, tmp_path, RQ_POOLED_GUARD_WAIT="1") as worker:
            assert worker.wait() == 75
            assert "Traceback" not in worker.output()
            assert "not admitted within 1 s (GUARD_WAIT)" in worker.output()
            if taken == 9:
                assert f"{taken}  greedy  (from 127.0.0.1)" in worker.output()
                assert "nothing is opened above 11 (GUARD_STOP)" in worker.output()
            else:
                assert "max number of clients reached" in worker.output()
    assert not admin.keys(named("rq_pooled:*"))


@contextmanager
def running_ours(url: str, folder: Path, *, log: str = "log", **environment: str) -> Iterator[WorkerProcess]:
    """Run ``rq-pooled worker``, which connects to nothing before it is admitted, as ``rq worker`` does."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH, **environment}
    worker = WorkerProcess([sys.executable, "-m", "rq_pooled", "worker", "--url", url, "a"], env, folder / log)
    try:
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.stop()


def test_waiting_ends_at_a_stop_signal(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """SIGTERM ends a worker that waits to be admitted at once, and with 0."""
    server = start_server({"maxclients": 12})
    with Crowd(server.url) as crowd:
        crowd.grow(10)
        with running_ours(server.url, tmp_path) as worker:
            worker.wait_for("waiting up to 60 s for a place")
            worker.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert worker.wait() == 0
            assert time.monotonic() - began < 10
            assert "stopped while waiting for a place" in worker.output()


@pytest.mark.timeout(120)
def test_workers_that_start_together_do_not_overrun(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """Of 12 workers those stay that fit below GUARD_STOP (12 of 40 clients here), jobs run, the others give up with
    75.
    """
    server = start_server({"maxclients": 40})
    admin = server.client()
    admin.ping()
    settings = {"RQ_POOLED_GUARD_WAIT": "6", "RQ_POOLED_GUARD_WARN": "0.2", "RQ_POOLED_GUARD_STOP": "0.3"}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(running_ours(server.url, tmp_path, log=f"log{i}", **settings)) for i in range(12)
        ]
        wait_until(
            lambda: all("connections: command" in w.output() or w.process.poll() is not None for w in workers),
            80,
            "all workers to start or to give up",
        )
        admitted = [w for w in workers if w.process.poll() is None]
        refused = [w for w in workers if w.process.poll() is not None]
        # 12 may be connected, one of them is the test's: five workers with two each.
        assert 4 <= len(admitted) <= 5
        assert {w.process.returncode for w in refused} == {75}
        assert all("Traceback" not in w.output() for w in workers)
        wait_until(lambda: len(admin.client_list()) == 1 + 2 * len(admitted), what="two connections each")
        Queue("a", connection=admin).enqueue(stats_jobs.succeed, str(tmp_path))
        wait_until(lambda: list(tmp_path.glob("ran.*")), what="a job")


def test_a_running_worker_sees_the_server_fill_up(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """At warn and stop there is one log line each with who holds most, an event each, and it goes back by
    hysteresis.
    """
    server = start_server({"maxclients": 40})
    admin = server.client()
    events = admin.pubsub(ignore_subscribe_messages=True)
    events.subscribe(EVENTS)
    with (
        running_worker(server.url, "a", log=tmp_path / "log", concurrency=2, **FAST) as worker,
        Crowd(server.url) as crowd,
    ):
        crowd.grow(31)
        worker.wait_for("guard warn: ")
        message = wait_until(lambda: events.get_message(timeout=1), what="an event")
        assert json.loads(message["data"])["event"] == "warn"
        assert re.search(r"\d\d greedy \(from 127.0.0.1\)", worker.output())
        crowd.grow(4)
        worker.wait_for("nothing new is opened")
        crowd.shrink(10)
        worker.wait_for("guard ok")
        assert worker.output().count("guard warn: ") <= 2 and worker.output().count("guard stop: ") == 1
        assert "Traceback" not in worker.output()


def test_at_stop_jobs_open_nothing_new(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """A job that uses Redis waits while the server is full, runs when there is room, and costs no failure."""
    server = start_server({"maxclients": 40})
    admin = server.client()
    with (
        running_worker(server.url, "a", log=tmp_path / "log", concurrency=2, **FAST) as worker,
        Crowd(server.url) as crowd,
    ):
        crowd.grow(36)
        worker.wait_for("guard stop: ")
        job = Queue("a", connection=admin).enqueue(stats_jobs.hold_redis, str(tmp_path), "go")
        wait_until(lambda: job.get_status() == "started", what="the job")
        over = time.monotonic() + 0.5
        while time.monotonic() < over:
            assert not [c for c in admin.client_list() if c["name"].endswith((":job", ":jobs", ":exclusive"))]
        assert not list(tmp_path.glob("ran.*"))
        crowd.shrink(20)
        wait_until(lambda: list(tmp_path.glob("ran.*")), what="the job to get its connection")
        (tmp_path / "go").touch()
        wait_until(lambda: job.get_status() == "finished", what="its end")


def test_a_guard_that_becomes_blind_lets_go(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """Where INFO is refused from some moment on, which an ACL may do any time, nobody is held at stop for ever."""
    server = start_server({"maxclients": 40})
    admin = server.client()
    admin.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all")
    url = f"redis://app:secret@{server.host}:{server.port}/0"
    pool = Pool(Settings(url=url, heartbeat_interval=0.1))
    client = Redis(connection_pool=pool)
    with running_worker(url, "a", log=tmp_path / "log", **FAST) as worker, Crowd(server.url) as crowd:
        crowd.grow(35)
        worker.wait_for("guard stop: ")
        wait_until(lambda: client.ping() and pool.stats()["max"] == 1, what="a pool made smaller")
        admin.execute_command("ACL", "SETUSER", "app", "-info")
        worker.wait_for("it is not guarded from now on")
        wait_until(lambda: client.ping() and pool.stats()["max"] == pool.max_connections, what="the pool's own size")
        crowd.shrink(20)
        job = Queue("a", connection=admin).enqueue(stats_jobs.hold_redis, str(tmp_path), "go")
        (tmp_path / "go").touch()
        wait_until(lambda: job.get_status() == "finished", what="a job that uses Redis")
        assert worker.output().count("not guarded") == 1
    pool.disconnect()


def test_at_stop_a_web_pool_makes_do_with_what_it_uses(start_server: Callable[..., EmbeddedServer]) -> None:
    """A web process closes idle connections and opens none while the server is full, and goes on when it is not."""
    server = start_server({"maxclients": 40})
    pool = Pool(Settings(url=server.url, heartbeat_interval=0.05), timeout=0.2)
    client = Redis(connection_pool=pool)
    with Crowd(server.url) as crowd:
        for connection in [pool.get_connection() for _ in range(4)]:
            pool.release(connection)
        assert pool.stats()["created"] == 4
        crowd.grow(35)
        wait_until(lambda: client.ping() and pool.stats()["max"] == 1, what="the pool to shrink")
        assert pool.stats()["created"] == 1
        held = pool.get_connection()
        with pytest.raises(PoolExhausted, match=r"all 1 \(GUARD_STOP\) are in use"):
            pool.get_connection()
        pool.release(held)
        crowd.shrink(15)
        wait_until(lambda: client.ping() and pool.stats()["max"] == 10, what="the pool to grow")
    pool.disconnect()


def test_a_leak_is_reported(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """Connections that only grow are called a leak, once, with the pace and who holds most; ``describe`` says so
    too.
    """
    server = start_server({"maxclients": 400})
    over = threading.Event()
    with running_worker(server.url, "a", log=tmp_path / "log", **FAST) as worker, Crowd(server.url) as crowd:

        def leak() -> None:
            while not over.wait(0.08):
                crowd.grow(1, "leaky")

        thread = threading.Thread(target=leak)
        thread.start()
        try:
            worker.wait_for("connections grow steadily", 40)
            assert "leaky" in worker.output()
            found = wait_until(lambda: (d := guard_of(server).describe())["steady_growth"] and d, 30, "the trend")
            assert found["trend_per_minute"] > 0 and found["minutes_left"] > 0
            assert len(found["history"]) >= 20
        finally:
            over.set()
            thread.join()
        assert worker.output().count("connections grow steadily") == 1


def test_restricted_servers_degrade_with_one_warning(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """Where CONFIG, CLIENT and INFO are refused workers work on, unguarded, and say so once; check names what is
    refused.
    """
    server = start_server({"maxclients": 40})
    admin = server.client()
    admin.execute_command(
        "ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all", "-config", "-client", "-info"
    )
    url = f"redis://worker:secret@{server.host}:{server.port}/0"
    with running_worker(url, "a", log=tmp_path / "log", **FAST) as worker:
        job = Queue("a", connection=admin).enqueue(stats_jobs.succeed, str(tmp_path))
        wait_until(lambda: job.get_status() == "finished", what="a job")
        # Some more looks that must not be said again.
        wait_until(lambda: admin.info("commandstats")["cmdstat_evalsha"]["calls"] > 12, what="some heartbeats")
        assert worker.output().count("it is not guarded") == 1
        assert "secret" not in worker.output() and "Traceback" not in worker.output()
        found = guard_of(server, Redis.from_url(url)).describe()
        assert found["level"] == "unknown" and found["connected"] is None and found["processes"] == []
        assert {"INFO", "CONFIG GET", "CLIENT LIST"} <= set(found["refused"])


def test_where_only_config_is_refused_info_suffices(start_server: Callable[..., EmbeddedServer]) -> None:
    """A managed server that refuses CONFIG and CLIENT is still counted; GUARD_MAXCLIENTS says what it does not tell."""
    server = start_server({"maxclients": 40})
    server.client().execute_command(
        "ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all", "-config", "-client"
    )
    client = Redis.from_url(f"redis://worker:secret@{server.host}:{server.port}/0")
    found = guard_of(server, client).describe()
    assert found["maxclients"] == 40 and found["level"] == "ok" and found["refused"] == ["CLIENT LIST"]
    assert guard_of(server, client, guard_maxclients=2).describe()["level"] == "stop"


def test_orphans_are_listed_and_reaped_on_request(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """Connections with our names whose process is silent are listed after a lease's time, and closed only by reap."""
    server = start_server({"maxclients": 40})
    settings = {"heartbeat_interval": 0.2, "heartbeat_ttl": 1.0}
    with running_worker(server.url, "a", log=tmp_path / "log", RQ_POOLED_HEARTBEAT_TTL="1", **FAST) as worker:
        left = [
            Redis.from_url(server.url, client_name=named(f"rq_pooled:shop:gone:77:{role}"))
            for role in ("command", "web")
        ]
        for client in left:
            client.ping()
        guard = guard_of(server, **settings)
        orphans = wait_until(lambda: guard.describe()["orphans"], 20, "an orphan")
        # A web process without requests is silent for long, and lives.
        assert [orphan["name"] for orphan in orphans] == [named("rq_pooled:shop:gone:77:command")]
        assert [orphan["id"] for orphan in guard.reap()] == [orphans[0]["id"]]
        assert not guard.describe()["orphans"]
        assert "lost the server" not in worker.output()
        names = [entry["name"] for entry in server.client().client_list()]
        assert named("rq_pooled:shop:gone:77:web") in names and named("rq_pooled:shop:gone:77:command") not in names


def test_nobody_is_called_gone_by_who_may_not_read_statistics(start_server: Callable[..., EmbeddedServer]) -> None:
    """A user without the right to read what processes publish sees no orphans, and reaps nobody."""
    server = start_server({"maxclients": 40})
    admin = server.client()
    admin.execute_command("ACL", "SETUSER", "watch", "on", ">secret", "resetkeys", "~other", "&*", "+@all")
    left = Redis.from_url(server.url, client_name=named("rq_pooled:shop:host:77:command"))
    left.ping()
    settings = {"heartbeat_interval": 0.2, "heartbeat_ttl": 1.0}
    guard = guard_of(server, **settings)
    wait_until(lambda: guard.describe()["orphans"], 20, "an orphan")
    blind = guard_of(server, Redis.from_url(f"redis://watch:secret@{server.host}:{server.port}/0"), **settings)
    found = blind.describe()
    assert found["orphans"] == [] and "ZRANGEBYSCORE" in found["refused"] and found["ours"] >= 1
    assert blind.reap() == []
    left.close()


def test_a_connection_in_use_is_no_orphan(start_server: Callable[..., EmbeddedServer]) -> None:
    """A process that is not published, but whose connection speaks more often than a lease lasts, is not called
    gone.
    """
    server = start_server()
    busy = Redis.from_url(server.url, client_name=named("rq_pooled:shop:gone:77:command"))
    silent = Redis.from_url(server.url, client_name=named("rq_pooled:shop:gone:78:command"))
    silent.ping()
    guard = guard_of(server, heartbeat_interval=0.2, heartbeat_ttl=1.0)

    def orphans() -> list[str]:
        busy.ping()
        return [orphan["name"] for orphan in guard.describe()["orphans"]]

    # CLIENT LIST counts whole seconds: by the time that silence is noticed, a connection in use would have been, too.
    assert wait_until(orphans, 20, "the silent one") == [named("rq_pooled:shop:gone:78:command")]
    for client in (busy, silent):
        client.close()


def test_a_lost_server_is_an_error_not_a_refusal(start_server: Callable[..., EmbeddedServer]) -> None:
    """Whoever asks a dead server hears ConnectionError, which the commands turn into 75."""
    server = start_server()
    guard = guard_of(server)
    guard.check()
    server.kill()
    with pytest.raises(RedisConnectionError):
        guard.check()


def test_the_brake_is_engaged_at_stop_and_released_below() -> None:
    """Horses open nothing above GUARD_STOP, and all they need below it, where only what is idle is closed."""
    brake = Brake()
    parent: Any = SimpleNamespace(
        settings=Settings(),
        brake=brake,
        identity=SimpleNamespace(name="w"),
        log=WorkerLog(logging.getLogger("rq.worker"), "w"),
        loop=SimpleNamespace(call_later=lambda *_: None),
        command=SimpleNamespace(submit=lambda *_: None),
        token="token",
    )
    guarding = Guard(parent)
    for connected, engaged, tight in ((50, False, False), (85, False, True), (97, True, True), (50, False, False)):
        guarding._judge(connected, 100)
        assert (brake.engaged, brake.tight) == (engaged, tight), connected
    guarding._judge(97, 100)
    guarding._judge(None, 100)
    assert not brake.engaged and not brake.tight, "who cannot look any more would never release it"
