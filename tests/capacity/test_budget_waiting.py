"""Waiting for a connection that cannot be opened now: places of the budget go round, and a full server is waited
for.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import stats_jobs
import stream_jobs
from budgets import HELD, ORDER, WAITING, ours, shop
from keys import named
from redis import Connection, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.job import JobStatus
from support import drop_pools, running_worker, wait_until
from tls_server import TLSServer

from rq_pooled import Queue
from rq_pooled.capacity.budget import Lease
from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import BudgetExceeded, ServerFull
from rq_pooled.pool import Pool
from rq_pooled.pool.places import Places, owing
from rq_pooled.store.scripts import scripts

if TYPE_CHECKING:
    from typing_extensions import Self


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """The connections of a test that failed are no part of the next one's budget."""
    yield
    drop_pools()


def opened(pool: Pool, count: int) -> None:
    """Have a pool open so many connections, all idle then."""
    held = [pool.get_connection() for _ in range(count)]
    for connection in held:
        pool.release(connection)


class Calls:
    """Threads that make one call after another until the end of the block; what they raise is kept."""

    def __init__(self, pool: Pool, threads: int, hold: float = 0.0) -> None:
        self._over = threading.Event()
        self._pool, self._hold = pool, hold
        self.errors: list[Exception] = []
        self.done = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                connection = self._pool.get_connection()
                try:
                    connection.send_command("PING")
                    assert connection.read_response() == b"PONG"
                    self._over.wait(self._hold)
                finally:
                    self._pool.release(connection)
                self.done += 1
            except Exception as error:  # noqa: BLE001 - the test tells
                self.errors.append(error)
                return

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_idle_connections_are_closed_while_another_waits(redis: Redis, server: EmbeddedServer) -> None:
    """A process that makes calls over one connection gives the idle others to a process that waits, within a second."""
    rich, poor = Pool(shop(server, 4), max_connections=4), Pool(shop(server, 4), max_connections=4)
    held = [rich.get_connection() for _ in range(3)] + [poor.get_connection()]
    with Calls(rich, 1):
        for connection in held[:3]:
            rich.release(connection)
        started = time.monotonic()
        second = poor.get_connection()
        assert time.monotonic() - started < 3
    assert sum(int(count) for count in redis.hvals(HELD)) <= 4 and len(ours(redis)) <= 4
    for connection in (held[3], second):
        poor.release(connection)


def test_a_process_without_any_gets_one_from_those_that_are_busy(redis: Redis, server: EmbeddedServer) -> None:
    """Connections that are always in demand are given up, too, while a process has none at all."""
    rich, poor = (Pool(shop(server, 4, enqueue_deadline=2.0), max_connections=8) for _ in range(2))
    with Calls(rich, 8, hold=0.005) as calls:
        wait_until(lambda: len(ours(redis)) == 4, what="a budget that is used up")
        poor.release(poor.get_connection())
        assert poor.stats()["longest_wait"] < 3
    assert not calls.errors


def test_calls_that_cease_leave_one_connection(redis: Redis, server: EmbeddedServer) -> None:
    """A process that makes no calls keeps one connection and one place, whether or not another waits; the thread
    ends.
    """
    pool = Pool(shop(server, 9), max_connections=5)
    opened(pool, 5)
    wait_until(lambda: redis.hvals(HELD) == [b"1"] and len(ours(redis)) == 1, 5, "one connection")
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "rq_pooled-idle"], 5, "the end of the thread")
    opened(pool, 5)
    wait_until(lambda: redis.hvals(HELD) == [b"1"], 5, "one connection again")


def test_a_budget_costs_calls_no_round_trip(redis: Redis, server: EmbeddedServer) -> None:
    """A thousand calls over open connections are a thousand commands, and ten looks a second where there are
    several.
    """
    pool = Pool(shop(server, 9), max_connections=3)
    client = Redis(connection_pool=pool)
    client.ping()

    def commands() -> int:
        return int(redis.info("stats")["total_commands_processed"])

    before = commands()
    for _ in range(1000):
        client.incr("x")
    assert commands() - before <= 1001
    held = pool.get_connection()
    client.ping()
    before, started = commands(), time.monotonic()
    for _ in range(1000):
        client.incr("x")
    assert commands() - before <= 1002 + 11 * (time.monotonic() - started)
    assert redis.get("x") == b"2000"
    pool.release(held)


def test_a_refusal_is_logged_once(redis: Redis, server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    """However many calls are refused, the log says once who holds the budget."""
    full, refused = Pool(shop(server, 1), max_connections=1), Pool(shop(server, 1), max_connections=1, timeout=0.1)
    full.release(full.get_connection())
    with caplog.at_level(logging.WARNING, "rq_pooled.pool"):
        for _ in range(5):
            with pytest.raises(BudgetExceeded):
                refused.get_connection()
    (line,) = [record.getMessage() for record in caplog.records if "of the budget 'shop'" in record.getMessage()]
    assert "1 of the 1 connections" in line and "(by shop:" in line


def test_commands_that_overtake_each_other_lose_no_place(redis: Redis, server: EmbeddedServer) -> None:
    """A command that gives places back and arrives after a later one changes nothing; no reply may be missed."""
    lease = Lease(shop(server, 9), 3, 3, lambda: None)
    assert lease.accept(redis.execute_command(*by_text(lease.command()))) and lease.granted == 3
    grown = lease.command(5)
    assert lease.granted == 3, "growing counts when it is granted"
    assert lease.accept(redis.execute_command(*by_text(grown))) and lease.granted == 5
    late, later = lease.command(3), lease.command(4)
    assert lease.granted == 3, "what is on its way may arrive"
    replies = [redis.execute_command(*by_text(command)) for command in (later, late)]
    assert redis.hvals(HELD) == [b"4"]
    assert lease.accept(replies[0]) and lease.accept(replies[1]) and lease.granted == 4
    refused = redis.execute_command(*by_text(lease.command(10)))
    assert lease.accept(refused) and lease.granted == 9
    for command in lease.release():
        redis.execute_command(*command)
    assert not redis.exists(HELD, ORDER, WAITING)


def test_replies_that_overtake_each_other_grant_nothing_that_is_gone(redis: Redis, server: EmbeddedServer) -> None:
    """The reply to an earlier command says nothing once that to a later one was read."""
    lease = Lease(shop(server, 9), 3, 3, lambda: None)
    replies = [redis.execute_command(*by_text(lease.command(number))) for number in (5, 4)]
    assert lease.accept(replies[1]) and lease.accept(replies[0])
    assert lease.granted == 4 and redis.hvals(HELD) == [b"4"]


def test_a_wish_that_nobody_repeats_is_forgotten(redis: Redis, server: EmbeddedServer) -> None:
    """Who waited for a place, and died, crowds nobody for longer than its wish stands."""
    lease = Lease(shop(server, 9), 3, 3, lambda: None)
    for wish, crowded in ((redis.time()[0] + 100, True), (redis.time()[0] - 1, False)):
        redis.zadd(WAITING, {"shop:host:1:dead": wish})
        assert lease.accept(redis.execute_command(*by_text(lease.command()))) and lease.crowded == crowded
    assert not redis.exists(WAITING)


def test_a_pool_keeps_its_only_connection(redis: Redis, server: EmbeddedServer) -> None:
    """Where a process waits that has no connection a pool gives one up that is in demand, but not its last one."""
    places = Places(shop(server, 9), lambda: None)
    for used, sheds in ((1, False), (2, True)):
        places._placed = {object() for _ in range(used)}
        redis.zadd(WAITING, {"shop:host:1:starving": redis.time()[0] + 100})
        assert places.accept(redis.execute_command(*by_text(places.command(used)))) and places.starving
        assert places.may_shed() is sheds
        assert not places.may_shed(), "once per reply"


def test_a_connection_that_is_lost_ahead_of_a_reply_is_lost() -> None:
    """The server closes while it owes the reply to a look at the budget: the caller is told, in redis-py's words."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connect = {"port": listener.getsockname()[1], "redis_connect_func": lambda made: made._parser.on_connect(made)}
        connection = owing(Connection)(host="127.0.0.1", **connect)
        connection.connect()
        served, _ = listener.accept()
        read: list[Any] = []
        connection.send_ahead(("EXISTS", "x"), read.append)
        connection.send_command("GET", "y", check_health=False)
        served.shutdown(socket.SHUT_WR)
        with pytest.raises(RedisConnectionError):
            connection.read_response()
        served.close()
        assert read == []


def by_text(command: Any) -> list[Any]:
    """Return a command with its script instead of the hash."""
    return ["EVAL", scripts()["budget"].text, *command[2:]]


def test_the_next_place_is_for_one_that_has_none(redis: Redis, server: EmbeddedServer) -> None:
    """While a process without any waits, no other grows; a wish is forgotten when it is fulfilled or nobody repeats
    it.
    """
    rich, worker = Lease(shop(server, 5), 1, 1, lambda: None), Lease(shop(server, 5), 3, 3, lambda: None)
    rich.accept(redis.execute_command(*by_text(rich.command(4))))
    assert not worker.accept(redis.execute_command(*by_text(worker.command())))
    assert redis.zcard(WAITING) == 1 and 0 < redis.pttl(WAITING) <= 6000
    rich.accept(redis.execute_command(*by_text(rich.command(5))))
    assert rich.granted == 4 and rich.crowded and rich.starving
    rich.accept(redis.execute_command(*by_text(rich.command(2))))
    assert worker.accept(redis.execute_command(*by_text(worker.command()))) and worker.granted == 3
    rich.accept(redis.execute_command(*by_text(rich.command(2))))
    assert not rich.crowded
    assert redis.hlen(ORDER) == 2


def test_a_full_server_is_waited_for(start_server: Callable[..., EmbeddedServer]) -> None:
    """Callers on a server that is full succeed when a connection is closed; each command is done once."""
    server = start_server()
    admin = server.client()
    admin.ping()
    pool = Pool(Settings(url=server.url, pool_timeout=20))
    client = Redis(connection_pool=pool)
    done: list[Any] = []
    admin.config_set("maxclients", 1)
    threads = [threading.Thread(target=lambda: done.append(client.incr("x"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: int(admin.info("stats")["rejected_connections"]) > 6, what="several tries each")
    assert not done
    admin.config_set("maxclients", 2)  # room for one: the four share it
    for thread in threads:
        thread.join(20)
    assert sorted(done) == [1, 2, 3, 4] and pool.stats()["created"] == 1
    assert pool.stats()["max"] in (1, 10)


def test_a_server_that_stays_full_ends_a_call_at_its_deadline(start_server: Callable[..., EmbeddedServer]) -> None:
    """Then the error says that it is full, nothing was enqueued, and the next call tries again: no breaker opens."""
    server = start_server()
    admin = server.client()
    admin.ping()
    queue = Queue(
        "a", connection=Redis(connection_pool=Pool(Settings(url=server.url, enqueue_deadline=0.5, breaker_delay=30)))
    )
    admin.config_set("maxclients", 1)
    started = time.monotonic()
    with pytest.raises(ServerFull, match="max number of clients"):
        queue.enqueue(stats_jobs.succeed, "x")
    assert 0.3 < time.monotonic() - started < 1.5
    admin.config_set("maxclients", 100)
    queue.enqueue(stats_jobs.succeed, "x")
    assert admin.llen(named("rq:queue:a")) == 1


def test_a_full_server_is_waited_for_over_tls(tls: TLSServer) -> None:
    """Over TLS, where a full server hangs up without a word, too."""
    admin = tls.server.client()
    admin.ping()
    pool = Pool(Settings(url=tls.url, pool_timeout=20))
    client = Redis(connection_pool=pool)
    admin.config_set("maxclients", 1)
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(client.incr("x")))
    thread.start()
    wait_until(
        lambda: int(admin.info("stats")["rejected_connections"]) > 4 or not thread.is_alive(), what="several tries"
    )
    assert not done and thread.is_alive()
    admin.config_set("maxclients", 10)
    thread.join(20)
    assert done == [1]


def test_a_job_for_which_the_budget_has_no_place_is_told_so(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """Where the budget has no place for a connection of a job's own, its call raises BudgetExceeded and names who has
    one.
    """
    settings = {"RQ_POOLED_BUDGET": "4", "RQ_POOLED_BUDGET_NAME": "shop", "RQ_POOLED_POOL_TIMEOUT": "1"}
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2, **settings):
        queue = Queue("a", connection=redis)
        first = queue.enqueue(stream_jobs.wait_in_redis, "list0", 8)
        wait_until(lambda: any(entry["cmd"] == "blpop" for entry in redis.client_list()), what="the first one's wait")
        second = queue.enqueue(stream_jobs.wait_in_redis, "list1", 8)
        wait_until(lambda: second.get_status() == JobStatus.FAILED, what="the second one's failure")
        result = second.latest_result()
        assert result is not None and "BudgetExceeded" in str(result.exc_string)
        assert f"Lent by this worker: job {first.id}" in str(result.exc_string)
        redis.rpush("list0", "x")
        wait_until(lambda: first.get_status() == JobStatus.FINISHED)
