"""The budget: all processes of an application together never hold more connections than it says."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import stats_jobs
from budgets import HELD, LEASES, ORDER, WAITING, ours, shop
from engine import engine
from keys import named
from redis import Redis
from rq import Queue
from support import JOBS, PYTHONPATH, ROOT, drop_pools, running_worker, wait_until

from rq_pooled import Queue as OurQueue
from rq_pooled.capacity.budget import Lease, _dropped
from rq_pooled.capacity.reservation import Reservation
from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import BudgetExceeded, ConfigurationError, PoolExhausted
from rq_pooled.metrics import metrics
from rq_pooled.pool import Pool
from rq_pooled.pool.budgeted import Budgeted
from rq_pooled.store.scripts import scripts


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """The connections of a test that failed are no part of the next one's budget."""
    yield
    drop_pools()


def lease_of(pool: Pool) -> Lease:
    """Return the lease of a pool with a budget."""
    (lease,) = (hook.lease for hook in pool.hooks if isinstance(hook, Budgeted))
    return lease


def test_pools_take_what_they_need_then_are_refused(redis: Redis, server: EmbeddedServer) -> None:
    """A connection takes one place when it is opened; where none is left, the error says who holds what."""
    first, second, third = (Pool(shop(server, 5), max_connections=3, timeout=0.2) for _ in range(3))
    held = [first.get_connection() for _ in range(2)]
    assert redis.hvals(HELD) == [b"2"], "not its MAX_CONNECTIONS"
    held += [first.get_connection()] + [second.get_connection() for _ in range(2)]
    with pytest.raises(
        PoolExhausted, match=r"all 2 \(BUDGET\) are in use.*No further one can be opened: 5 of the 5 conn"
    ):
        second.get_connection()
    assert (first.stats()["max"], second.stats()["max"]) == (3, 2)
    with pytest.raises(
        BudgetExceeded, match=r"5 of the 5 connections of the budget 'shop' are reserved \(by .* 3, .* 2\)"
    ):
        third.get_connection()
    assert len(ours(redis)) == 5
    assert sum(int(count) for count in redis.hvals(HELD)) == 5
    for pool, connection in zip([first] * 3 + [second] * 2, held):
        pool.release(connection)
    for pool in (first, second, third):
        pool.disconnect()
    assert not redis.exists(LEASES, HELD, ORDER)


def test_a_place_that_others_wrote_is_given_away_too(redis: Redis, server: EmbeddedServer) -> None:
    """A lease that ended, and whose token is no text, keeps its place no longer than any other."""
    token = b"shop:\xffhost:77:abc"
    redis.zadd(LEASES, {token: 1})
    redis.hset(HELD, token, 1)
    pool = Pool(shop(server, 1), max_connections=1, timeout=0.2)
    connection = pool.get_connection()
    assert redis.hlen(HELD) == 1 and not redis.hexists(HELD, token)
    pool.release(connection)
    pool.disconnect()


def test_a_place_is_given_away_only_when_its_sockets_are_gone(redis: Redis, server: EmbeddedServer) -> None:
    """A lease that ended keeps its place while its process has connections, and loses it when they are closed."""
    # Two processes to the server: the first speaks under the name of another program.
    settings = shop(server, 1, heartbeat_interval=0.1, heartbeat_ttl=0.5)
    paused = Redis.from_url(server.url, client_name=named("rq_pooled:shop:elsewhere:77:web"))
    paused.ping()
    redis.zadd(LEASES, {"rq_pooled-is-not-asked": 0, "shop:elsewhere:77:abc": 1.0})
    redis.zrem(LEASES, "rq_pooled-is-not-asked")
    redis.hset(HELD, "shop:elsewhere:77:abc", 1)
    pool = Pool(settings, max_connections=1, timeout=0.2)
    with pytest.raises(BudgetExceeded):
        pool.get_connection()
    paused.close()
    connection = wait_until(lambda: _try(pool), what="the place")
    assert redis.hlen(HELD) == 1 and not redis.hexists(HELD, "shop:elsewhere:77:abc")
    pool.release(connection)
    pool.disconnect()


def _try(pool: Pool) -> Any:
    try:
        return pool.get_connection()
    except BudgetExceeded:
        return None


@pytest.mark.parametrize("word", ["abc", "-1000000", "nan", "inf", "", "9" * 400, b"\xff"])
def test_what_is_no_number_of_connections_holds_up_nobody(
    redis: Redis, server: EmbeddedServer, word: str | bytes
) -> None:
    """A process takes its place, and another is refused one beyond the budget, though others wrote nonsense there."""
    redis.hset(HELD, "forged", word)
    redis.hset(ORDER, "forged", word)
    if word in ("inf", "9" * 400):
        # More than any budget: all of it is held, and that is said.
        with pytest.raises(BudgetExceeded):
            Pool(shop(server, 1), max_connections=1, timeout=0.2).get_connection()
        return
    first, second = (Pool(shop(server, 1), max_connections=1, timeout=0.2) for _ in range(2))
    connection = first.get_connection()
    with pytest.raises(BudgetExceeded):
        second.get_connection()
    first.release(connection)


@pytest.mark.parametrize("key", [LEASES, HELD, ORDER, WAITING])
def test_keys_of_another_type_hold_up_nobody(redis: Redis, server: EmbeddedServer, key: str) -> None:
    """A process takes its place, though another program wrote the keys of the budget, and metrics are told."""
    redis.set(key, "x")
    settings = shop(server, 1)
    assert "rq_pooled_budget_held 0.0" in metrics(redis, settings)
    pool = Pool(settings, max_connections=1, timeout=0.2)
    connection = pool.get_connection()
    assert redis.hvals(HELD) == [b"1"]
    pool.release(connection)


def test_a_lease_that_stands_keeps_its_place_whoever_calls_it_gone(redis: Redis, server: EmbeddedServer) -> None:
    """A process that CLIENT LIST does not show yet, or no more, keeps its place until its lease has ended."""
    with engine(server.url) as one:
        first, second = (Lease(shop(server, 1), 1, 1, lambda: None) for _ in range(2))
        assert first.accept(one.run(first.command()))
        assert not second.accept(one.run(second.command(gone=redis_tokens(redis))))
        assert (first.granted, second.granted, redis.hlen(HELD)) == (1, 0, 1)


def redis_tokens(redis: Redis) -> list[str]:
    """Return the tokens of all leases."""
    return [token.decode() for token in redis.hkeys(HELD)]


def test_what_a_budget_leaves_behind_expires(redis: Redis, server: EmbeddedServer) -> None:
    """Both keys of a budget end by themselves when nobody is left who renews them, and not before a lease can have
    ended.
    """
    with engine(server.url) as one:
        lease = Lease(shop(server, 1, heartbeat_interval=5, heartbeat_ttl=20), 1, 1, lambda: None)
        assert lease.accept(one.run(lease.command()))
    assert all(3600 < redis.ttl(key) <= 3620 for key in (LEASES, HELD))


def test_a_budget_that_was_lowered_takes_no_open_connection(redis: Redis, server: EmbeddedServer) -> None:
    """A process keeps at a renewal what it has opened, though a new release has lowered BUDGET; others get nothing."""
    with engine(server.url) as one:
        before = Lease(shop(server, 4), 3, 1, lambda: None)
        assert before.accept(one.run(before.command())) and before.granted == 3
        lowered = shop(server, 2)
        before._settings = lowered
        assert before.accept(one.run(before.command())) and before.granted == 3
        new = Lease(lowered, 3, 1, lambda: None)
        assert not new.accept(one.run(new.command()))
        assert redis.hvals(HELD) == [b"3"]
        for command in before.release():
            one.run(command)
        assert new.accept(one.run(new.command())) and new.granted == 2


def test_less_than_is_of_use_is_given_back(redis: Redis, server: EmbeddedServer) -> None:
    """Who gets fewer connections than it needs holds none, so that others may use them."""
    with engine(server.url) as one:
        first, second = Lease(shop(server, 4), 3, 1, lambda: None), Lease(shop(server, 4), 4, 2, lambda: None)
        assert first.accept(one.run(first.command()))
        assert not second.accept(one.run(second.command()))
        assert redis.hlen(HELD) == redis.zcard(LEASES) == 1
        third = Lease(shop(server, 4), 4, 1, lambda: None)
        assert third.accept(one.run(third.command())) and third.granted == 1


def test_enqueueing_over_budget_was_certainly_not_done(redis: Redis, server: EmbeddedServer) -> None:
    """enqueue raises BudgetExceeded, not that the job may have been enqueued; the job is not there."""
    first, second = (Pool(shop(server, 1, enqueue_deadline=0.3), max_connections=3) for _ in range(2))
    first.release(first.get_connection())
    with pytest.raises(BudgetExceeded):
        OurQueue("a", connection=Redis(connection_pool=second)).enqueue(stats_jobs.succeed, "x")
    assert not redis.exists(named("rq:queue:a")) and not redis.keys(named("rq:job:*"))
    first.disconnect()
    OurQueue("a", connection=Redis(connection_pool=second)).enqueue(stats_jobs.succeed, "x")
    assert redis.llen(named("rq:queue:a")) == 1
    second.disconnect()


def test_a_refused_pool_grows_when_there_is_room(redis: Redis, server: EmbeddedServer) -> None:
    """A caller that finds no place waits, gets what another pool gives back, and no idle connection or waiter is
    lost.
    """
    big, small = (Pool(shop(server, 4), max_connections=3) for _ in range(2))
    held = [big.get_connection() for _ in range(3)]
    mine = [small.get_connection()]
    thread = threading.Thread(target=lambda: mine.append(small.get_connection()))
    thread.start()
    wait_until(lambda: redis.zcard(WAITING) == 1, what="its wish")
    wait_until(lambda: small.stats()["max"] == 1, what="its bound")
    assert len(mine) == 1
    for connection in held:
        big.release(connection)
    big.disconnect()
    thread.join(10)
    assert len(mine) == 2 and len(ours(redis)) == 2 and not redis.exists(WAITING)
    mine.append(small.get_connection())
    assert small.stats()["max"] == 3
    # Made smaller while all are in use: they are closed as they come back.
    small.resize("test", 1)
    for connection in mine:
        small.release(connection)
    assert small.stats()["created"] == 1
    small.resize("test", None)
    assert small.stats()["max"] == 3
    for pool in (big, small):
        pool.disconnect()


def test_places_of_dropped_pools_come_back(redis: Redis, server: EmbeddedServer) -> None:
    """A pool that nobody holds any more gives its place back to other processes, too, while its process lives on."""
    settings = shop(server, 9, heartbeat_interval=0.1, heartbeat_ttl=0.5)
    kept = Pool(settings, max_connections=3)
    client = Redis(connection_pool=kept)
    client.ping()
    (token,) = redis.hkeys(HELD)
    for _ in range(2):
        Redis(connection_pool=Pool(settings, max_connections=3)).ping()
    gc.collect()
    assert redis.hlen(HELD) == 3
    child = os.fork()
    if child == 0:  # drops its copy of a pool that is in use
        del client, kept
        gc.collect()
        os._exit(any(entry[1] == token.decode() for entry in _dropped))
    assert os.waitpid(child, 0)[1] == 0, "the child does not take its parent's lease for one that was dropped"
    wait_until(lambda: client.ping() and redis.hkeys(HELD) == [token], what="the places of the dropped pools")
    kept.disconnect()


def test_a_refused_caller_counts_those_that_wait(redis: Redis, server: EmbeddedServer) -> None:
    """The error of a caller that is refused a further connection says how many others wait: none."""
    pool = Pool(shop(server, 1), max_connections=2, timeout=0.0)
    held = pool.get_connection()
    with pytest.raises(PoolExhausted, match=r"all 1 \(BUDGET\) are in use, 0 others are waiting"):
        pool.get_connection()
    pool.release(held)
    pool.disconnect()


def test_a_pause_is_noticed_before_a_socket_is_used(redis: Redis, server: EmbeddedServer) -> None:
    """After more than half a term the lease is renewed first; where its place is gone, the sockets are closed."""
    settings = shop(server, 1, heartbeat_interval=0.1, heartbeat_ttl=0.6)
    pool = Pool(settings, max_connections=1, timeout=0.2)
    client = Redis(connection_pool=pool)
    client.ping()
    lease = lease_of(pool)
    wait_until(lambda: lease.overdue, what="half a term without use")
    client.set("x", 1)
    assert not lease.overdue
    wait_until(lambda: lease.overdue, what="another pause")
    (token,) = redis.hkeys(HELD)
    redis.delete(LEASES, HELD)
    redis.hset(HELD, "shop:elsewhere:1:abc", 1)
    redis.zadd(LEASES, {"shop:elsewhere:1:abc": time.time() + 60})
    with pytest.raises(BudgetExceeded):
        client.set("x", 2)
    assert client.connection_pool.stats()["created"] == 0
    assert redis.get("x") == b"1" and not ours(redis)
    assert not redis.hexists(HELD, token)


def test_a_pause_before_connecting_opens_nothing_that_has_no_place(redis: Redis, server: EmbeddedServer) -> None:
    """A pool whose place was given away while its connection was closed finds out before it opens another one."""
    quick = shop(server, 1, heartbeat_interval=0.3, heartbeat_ttl=1.0)
    paused, other = (Pool(quick, max_connections=1, timeout=0.3) for _ in range(2))
    opened: list[str] = []
    paused.release(paused.get_connection())
    paused.subscribe(lambda event, _details: opened.append(event))
    redis.client_kill_filter(_type="normal", skipme=True)
    assert redis.hlen(HELD) == 1
    wait_until(lambda: float(redis.zrange(LEASES, 0, 0, withscores=True)[0][1]) < redis.time()[0])
    held = other.get_connection()
    with pytest.raises(BudgetExceeded):
        paused.get_connection()
    assert "connect" not in opened and len(ours(redis)) == 1
    other.release(held)
    other.disconnect()


def test_a_pause_while_connecting_is_noticed_before_the_connection_is_used(
    redis: Redis, server: EmbeddedServer
) -> None:
    """A place whose lease has nearly ended while its connection was being opened is renewed before anything is sent."""
    pool = Pool(shop(server, 1, heartbeat_interval=0.3, heartbeat_ttl=1.5), max_connections=1)

    def pause(event: str, _details: Any) -> None:
        if event == "connect":
            wait_until(lambda: float(redis.zrange(LEASES, 0, 0, withscores=True)[0][1]) - time_of(redis) < 0.6)

    pool.subscribe(pause)
    connection = pool.get_connection()
    assert float(redis.zrange(LEASES, 0, 0, withscores=True)[0][1]) - time_of(redis) > 0.7
    pool.release(connection)


def time_of(redis: Redis) -> float:
    """The server's time."""
    seconds, microseconds = redis.time()
    return seconds + microseconds / 1e6


@pytest.mark.timeout(120)
def test_thirty_processes_fight_for_twenty_places(redis: Redis, server: EmbeddedServer) -> None:
    """With crashes and pauses at any moment, CLIENT LIST never shows more than 20; every process gets its turn."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    chance, seeds = random.Random(1), iter(range(10_000))

    def spawn() -> forked.Process:
        line = [sys.executable, str(JOBS / "budget_user.py"), server.url, str(next(seeds))]
        with open(os.devnull, "wb") as nothing:
            return forked.start(line, env, nothing)

    over, counts = threading.Event(), list[int]()

    def sample() -> None:
        with Redis.from_url(server.url) as client:
            while not over.wait(0.002):
                counts.append(len(ours(client)))

    sampler = threading.Thread(target=sample)
    sampler.start()
    processes = [spawn() for _ in range(30)]
    paused: list[tuple[float, forked.Process]] = []
    try:
        wait_until(lambda: counts and max(counts) >= 15, 60, "some competition")
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            time.sleep(0.1)
            for entry in [entry for entry in paused if entry[0] < time.monotonic()]:
                paused.remove(entry)
                entry[1].send_signal(signal.SIGCONT)
            awake = [process for process in processes if process not in [entry[1] for entry in paused]]
            if chance.random() < 0.4 and len(paused) < 6:
                victim = chance.choice(awake)
                victim.send_signal(signal.SIGSTOP)
                paused.append((time.monotonic() + chance.uniform(0.2, 3.0), victim))
            elif chance.random() < 0.3:
                victim = chance.choice(awake)
                victim.kill()
                victim.wait()
                processes[processes.index(victim)] = spawn()
        for _, process in paused:
            process.send_signal(signal.SIGCONT)
        last = {int(str(process.args[3])) for process in processes}  # type: ignore[index]
        wait_until(lambda: all(redis.exists(f"used:{seed}") for seed in last), 40, "everybody's turn")
    finally:
        over.set()
        sampler.join()
        for process in processes:
            process.kill()
            process.wait()
    assert max(counts) <= 20


def test_places_come_back_at_a_regular_end(redis: Redis, server: EmbeddedServer) -> None:
    """A process that ends gives its place back at once."""
    code = "from rq_pooled import get_connection; get_connection().ping()"
    env = {**os.environ, "RQ_POOLED_URL": server.url, "PYTHONPATH": str(ROOT)}
    env.update(RQ_POOLED_BUDGET="10", RQ_POOLED_BUDGET_NAME="shop")
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=30)
    assert not redis.exists(LEASES, HELD)


WORKER = {
    "RQ_POOLED_BUDGET": "5",
    "RQ_POOLED_BUDGET_NAME": "shop",
    "RQ_POOLED_MAX_CONNECTIONS": "4",
    "RQ_POOLED_HEARTBEAT_INTERVAL": "0.3",
    "RQ_POOLED_HEARTBEAT_TTL": "1.2",
}


def test_workers_wait_for_a_place(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """A second worker waits, or gives up with 75 and says who holds the budget; it starts when the first is gone."""
    with running_worker(server.url, "a", log=tmp_path / "log1", **WORKER) as first:
        assert redis.hvals(HELD) == [b"3"]
        with running_worker(
            server.url, "a", log=tmp_path / "log2", ready=None, RQ_POOLED_GUARD_WAIT="1", **WORKER
        ) as second:
            assert second.wait() == 75
            assert re.search(
                r"3 of the 5 connections of the budget 'shop' are reserved \(by shop:\S+:\d+ 3\)", second.output()
            )
            assert "Traceback" not in second.output()
        with running_worker(server.url, "a", log=tmp_path / "log3", ready=None, **WORKER) as third:
            third.wait_for("waiting up to 60 s for a place")
            assert len(ours(redis)) == 2
            first.kill()
            third.wait_for("connections: command")
            Queue("a", connection=redis).enqueue(stats_jobs.succeed, str(tmp_path))
            wait_until(lambda: list(tmp_path.glob("ran.*")), what="a job")
            assert third.stop() == 0
        assert not redis.exists(LEASES, HELD)


def test_a_paused_worker_renews_before_it_goes_on(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """A stopped worker closes its connections when it goes on, asks for its place, and then works as before."""
    with running_worker(server.url, "a", log=tmp_path / "log", **WORKER) as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(lambda: redis.zscore(LEASES, redis.hkeys(HELD)[0]) < time.time(), what="the end of its lease")
        pool = Pool(shop(server, 5), max_connections=3, timeout=0.1)
        held = [pool.get_connection() for _ in range(2)]
        with pytest.raises(PoolExhausted):  # the place of a process with open sockets is not given away
            pool.get_connection()
        for connection in held:
            pool.release(connection)
        os.kill(worker.pid, signal.SIGCONT)
        worker.wait_for("paused for longer than half")
        worker.wait_for("the server is back")
        Queue("a", connection=redis).enqueue(stats_jobs.succeed, str(tmp_path))
        wait_until(lambda: list(tmp_path.glob("ran.*")), what="a job")
        assert redis.hget(HELD, lease_of(pool)._token) in (b"1", b"2")
        pool.disconnect()
        wait_until(lambda: redis.hvals(HELD) == [b"3"], what="the pool's place to be given back")


def test_a_worker_whose_place_is_taken_stays_away(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """A worker that finds its place taken closes its connections and comes back when there is one."""
    with running_worker(server.url, "a", log=tmp_path / "log", **WORKER) as worker:
        redis.delete(LEASES, HELD)
        redis.hset(HELD, "shop:elsewhere:1:abc", 5)
        redis.zadd(LEASES, {"shop:elsewhere:1:abc": time.time() + 60})
        worker.wait_for("its place in the budget was taken meanwhile")
        wait_until(lambda: not ours(redis), what="closed connections")
        redis.delete(LEASES, HELD)
        worker.wait_for("the server is back")
        wait_until(lambda: redis.hvals(HELD) == [b"3"], what="its place")
        assert "Traceback" not in worker.output()


def test_jobs_are_in_the_place_of_their_worker(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """A job that uses Redis takes none of its own: its worker has one reserved, and reserves one more for what needs
    its own.
    """
    with running_worker(server.url, "a", log=tmp_path / "log", **WORKER):
        job = Queue("a", connection=redis).enqueue(stats_jobs.hold_redis, str(tmp_path), "go")
        wait_until(lambda: list(tmp_path.glob("ran.*")), what="the job")
        assert redis.hvals(HELD) == [b"4"] and len(ours(redis)) == 4
        (tmp_path / "go").touch()
        wait_until(lambda: job.get_status() == "finished")


def test_a_worker_reserves_one_place_after_the_other_and_gives_them_back(redis: Redis, server: EmbeddedServer) -> None:
    """Each connection that is lent has a place first, also the second; what is not lent any more has none."""
    lease = Lease(shop(server, 6), 3, 3, lambda: None)
    asked: list[tuple[Any, Any]] = []

    def answer() -> bytes:
        (command, accept), asked[:] = asked[0], asked[1:]
        text = scripts()["budget"].text
        accept(redis.execute_command("EVAL", text, *command[2:]))
        return redis.hvals(HELD)[0]

    reservation = Reservation(lease, lambda command, accept: asked.append((command, accept)))
    asked.append((lease.command(), lease.accept))
    assert answer() == b"3"
    for number in (1, 2):
        assert not reservation.may_lend(number) and not reservation.may_lend(number) and len(asked) == 1
        reservation.lend(0)  # nothing is given back while it is asked for
        assert len(asked) == 1
        assert answer() == b"%d" % (3 + number) and reservation.may_lend(number)
    reservation.lend(1)
    assert answer() == b"4" and reservation.wanted == 4
    reservation.lend(1)
    assert not asked
    for command in lease.release():
        redis.execute_command(*command)


def test_what_cannot_work_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    """A budget without a name, and one that a single worker exceeds, are errors in the settings: 2."""
    with pytest.raises(ConfigurationError, match="set BUDGET_NAME"):
        Settings(budget=5)
    # With JOBS_SHARE=no one job and RQ's maintenance may have two each.
    for share, budget, need in (("yes", 2, 3), ("no", 5, 6)):
        settings = {**WORKER, "RQ_POOLED_BUDGET": str(budget), "RQ_POOLED_JOBS_SHARE": share}
        settings["RQ_POOLED_MAX_CONNECTIONS"] = "3"
        with running_worker(server.url, "a", log=tmp_path / share, ready=None, **settings) as worker:
            assert worker.wait() == 2
            assert f"BUDGET is {budget}, and a worker needs {need} connections" in worker.output()


def test_a_lost_server_is_no_question_of_the_budget(start_server: Callable[..., EmbeddedServer]) -> None:
    """With the server away the error says so, and what was not sent."""
    server = start_server()
    pool = Pool(shop(server, 5, socket_connect_timeout=1, pool_timeout=1))
    pool.release(pool.get_connection())
    server.kill()
    with pytest.raises(Exception, match="nothing was sent"):
        pool.get_connection()
