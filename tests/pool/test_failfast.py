"""No request hangs on Redis: one deadline for an enqueue, the breaker, and what an error says about the job."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from keys import named
from proxy import CutProxy
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from support import drop_pools, wait_until

from rq_pooled import Queue
from rq_pooled.config import Settings
from rq_pooled.deadline import current, within
from rq_pooled.errors import EnqueueUnconfirmed, PoolExhausted, RedisUnavailable, ServerUnreachable
from rq_pooled.pool import Pool
from rq_pooled.pool.breaker import Breaker, BreakerOpen

JOB = "math.factorial"
#: What a loaded machine may add to a deadline.
SLACK = 3.0


def pooled(url: str, role: str = "web", **settings: Any) -> Queue:
    """A queue on a pool of its own."""
    pool = Pool(Settings(**{"url": url, "max_connections": 5, **settings}), role)
    return Queue("default", Redis(connection_pool=pool))


def breaker_of(queue: Queue) -> Breaker:
    """The breaker of a queue's pool."""
    breaker: Breaker = queue.connection.connection_pool.breaker
    return breaker


def outcome(enqueue: Callable[[], Any]) -> tuple[Any, float]:
    """Call, and return the job or the error, and how long it took."""
    started = time.monotonic()
    try:
        result = enqueue()
    except RedisUnavailable as error:
        result = error
    return result, time.monotonic() - started


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and never says a word."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=50)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("threads", [1, 12])
def test_a_budget_keeps_the_deadline(silent: int, threads: int) -> None:
    """Asking a silent server for a place in the budget ends with ENQUEUE_DEADLINE, for each of many threads."""
    settings = {"enqueue_deadline": 1.0, "breaker_delay": 30, "socket_timeout": 20, "socket_connect_timeout": 20}
    queue = pooled(
        f"redis://127.0.0.1:{silent}", budget=99, budget_name="shop", max_connections=max(3, threads), **settings
    )
    breaker_of(queue)._delay = 0  # as for those who were let in before it opened

    def call(number: int) -> tuple[Any, float]:
        time.sleep(number * 0.07)  # so that their deadlines end one after another
        return outcome(lambda: queue.enqueue(JOB, 3))

    with ThreadPoolExecutor(threads) as executor:
        results = list(executor.map(call, range(threads)))
    assert {type(error) for error, _ in results} == {ServerUnreachable}
    assert max(took for _, took in results) < 1.0 + SLACK


def test_first_call_within_the_deadline_and_the_next_at_once(silent: int) -> None:
    """The first enqueue tries until ENQUEUE_DEADLINE; while the breaker is open the next ones fail without trying."""
    queue = pooled(f"redis://127.0.0.1:{silent}", enqueue_deadline=0.5, breaker_delay=30)
    error, took = outcome(lambda: queue.enqueue(JOB, 3))
    assert type(error) is ServerUnreachable and took < 0.5 + SLACK
    errors = [outcome(lambda: queue.enqueue(JOB, 3)) for _ in range(20)]
    assert {type(error) for error, _ in errors} == {RedisUnavailable}
    assert sum(took for _, took in errors) < 0.5
    assert isinstance(errors[0][0], RedisConnectionError) and errors[0][0].exit_code == 75
    assert "BREAKER_DELAY" in str(errors[0][0]) and "not enqueued" in str(errors[0][0])


def test_a_server_that_comes_back_is_found_by_the_next_trial(start_server: Any) -> None:
    """After BREAKER_DELAY one call tries the server, and when that succeeds all go on as before."""
    one = start_server()
    queue = pooled(one.url, breaker_delay=0.2)
    one.stop()
    with pytest.raises(ServerUnreachable):
        queue.enqueue(JOB, 3)
    assert breaker_of(queue).state == "open"
    with pytest.raises(RedisUnavailable):
        queue.enqueue(JOB, 3)
    wait_until(lambda: breaker_of(queue).state == "half-open")
    with pytest.raises(ServerUnreachable):  # still away: open again
        queue.enqueue(JOB, 3)
    assert breaker_of(queue).state == "open"
    one.start()
    wait_until(lambda: breaker_of(queue).state == "half-open")
    queue.enqueue(JOB, 3)
    assert breaker_of(queue).state == "closed"
    queue.enqueue(JOB, 3)
    assert len(queue) == 2


def test_two_hundred_requests_on_five_connections_lose_none(server: Any, redis: Redis) -> None:
    """200 enqueues at once on a pool of 5 are all done, on 5 connections."""
    queue = pooled(server.url, enqueue_deadline=20)
    start = threading.Barrier(200)

    def request() -> str:
        start.wait()
        return queue.enqueue(JOB, 3).id

    with ThreadPoolExecutor(200) as threads:
        ids = [future.result() for future in [threads.submit(request) for _ in range(200)]]
    assert sorted(ids) == sorted(queue.job_ids) and len(set(ids)) == 200
    assert queue.connection.connection_pool.stats()["created"] <= 5


def test_with_a_frozen_server_all_answer_within_the_deadline(start_server: Any) -> None:
    """Redis frozen, 200 requests on 5 connections: each has an answer in time, and the answers are true."""
    one = start_server()
    queue = pooled(one.url, enqueue_deadline=1.0, breaker_delay=30)
    queue.enqueue(JOB, 1, job_id="before")
    one.pause()
    start = threading.Barrier(200)

    def request() -> tuple[Any, float]:
        start.wait()
        return outcome(lambda: queue.enqueue(JOB, 3))

    try:
        with ThreadPoolExecutor(200) as threads:
            answers = [future.result() for future in [threads.submit(request) for _ in range(200)]]
    finally:
        one.resume()
    assert max(took for _, took in answers) < 1.0 + SLACK
    kinds = Counter(type(error) for error, _ in answers)
    assert set(kinds) <= {EnqueueUnconfirmed, ServerUnreachable, PoolExhausted, RedisUnavailable}
    assert kinds[PoolExhausted] > 0 and kinds[EnqueueUnconfirmed] <= 5
    exhausted = next(str(error) for error, _ in answers if isinstance(error, PoolExhausted))
    assert "ENQUEUE_DEADLINE" in exhausted
    doubtful = {error.job_id for error, _ in answers if isinstance(error, EnqueueUnconfirmed)}
    redis = one.client()
    wait_until(redis.ping)
    queued = {job_id.decode() for job_id in redis.lrange(named("rq:queue:default"), 0, -1)}
    assert queued - {"before"} <= doubtful


def test_a_reply_that_trickles_does_not_stretch_the_deadline() -> None:
    """A server that sends its reply byte by byte, each in time, is given up when the deadline is over."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def trickle() -> None:
            connection = listener.accept()[0]
            with connection:
                for byte in b"$100000\r\n" + b"x" * 1000:
                    try:
                        connection.send(bytes([byte]))
                    except OSError:
                        return
                    time.sleep(0.05)

        thread = threading.Thread(target=trickle)
        thread.start()
        pool = Pool(
            Settings(url=f"redis://127.0.0.1:{listener.getsockname()[1]}"),
            redis_connect_func=lambda one: one._parser.on_connect(one),
        )
        connection = pool.make_connection()
        started = time.monotonic()
        with within(0.5, "ENQUEUE_DEADLINE"), pytest.raises(RedisTimeoutError):
            connection.connect()
            connection.read_response()
        assert time.monotonic() - started < 0.5 + SLACK
        connection.disconnect()
        thread.join()


def test_a_lost_reply_says_that_the_job_may_be_there(start_server: Any) -> None:
    """An enqueue sent to a server that then falls silent ends as "may have been enqueued", and was enqueued."""
    one = start_server()
    with closing(CutProxy(one.port)) as proxy:
        queue = pooled(proxy.url, enqueue_deadline=5)
        queue.enqueue(JOB, 1)
        proxy.cut_on(b"EVALSHA")
        with pytest.raises(EnqueueUnconfirmed, match="may have been enqueued") as caught:
            queue.enqueue(JOB, 3)
        assert isinstance(caught.value, RedisUnavailable)
        # One lost connection does not mean that the server is away.
        assert breaker_of(queue).state == "closed"
        assert queue.enqueue(JOB, 3, job_id=caught.value.job_id).id == caught.value.job_id
        assert len(queue) == 2


def test_an_unconfirmed_job_stays_unconfirmed_while_the_breaker_is_open(start_server: Any) -> None:
    """Repeating an unconfirmed enqueue while Redis is away never claims that the job was not enqueued."""
    one = start_server()
    queue = pooled(one.url, enqueue_deadline=0.5, breaker_delay=30)
    queue.enqueue(JOB, 1)
    connection = queue.connection.connection_pool.get_connection()
    queue.connection.connection_pool.release(connection)
    one.pause()
    try:
        first, _ = outcome(lambda: queue.enqueue(JOB, 3, job_id="doubtful"))
        second, _ = outcome(lambda: queue.enqueue(JOB, 3, job_id="doubtful"))
    finally:
        one.resume()
    assert type(first) is type(second) is EnqueueUnconfirmed


def test_an_exhausted_pool_does_not_open_the_breaker(server: Any, redis: Redis) -> None:
    """Where all connections are in use and the server is well, the next enqueue tries again."""
    queue = pooled(server.url, enqueue_deadline=0.1)
    pool = queue.connection.connection_pool
    taken = [pool.get_connection() for _ in range(5)]
    for _ in range(2):
        with pytest.raises(PoolExhausted, match=r"ENQUEUE_DEADLINE"):
            queue.enqueue(JOB, 3)
    for connection in taken:
        pool.release(connection)
    queue.enqueue(JOB, 3)


@pytest.mark.parametrize(("role", "settings"), [("job", {}), ("web", {"enqueue_deadline": 0})])
def test_who_has_time_is_not_hurried(start_server: Any, role: str, settings: dict[str, Any]) -> None:
    """In a job, and with ENQUEUE_DEADLINE=0, there is neither deadline nor breaker: every call tries."""
    one = start_server()
    queue = pooled(one.url, role, **settings)
    one.stop()
    for _ in range(2):
        with pytest.raises(ServerUnreachable):
            queue.enqueue(JOB, 3)


def test_synchronous_jobs_and_pipelines_have_no_deadline(redis: Redis, server: Any) -> None:
    """A job that runs inside enqueue, and what the caller's own pipeline sends, are not cut short."""
    queue = pooled(server.url, enqueue_deadline=0.001)
    queue._is_async = False
    assert queue.enqueue(time.sleep, 0.05).get_status() == "finished"


def test_a_large_batch_has_time_for_each_of_its_jobs(redis: Redis, server: Any) -> None:
    """enqueue_many may take longer than one enqueue, in proportion to its jobs."""
    queue = pooled(server.url, enqueue_deadline=0.05)
    jobs = queue.enqueue_many([queue.prepare_data(JOB, (3,)) for _ in range(3000)])
    assert len(jobs) == len(queue) == 3000


def test_of_many_callers_one_tries() -> None:
    """When the delay is over exactly one of many threads gets the trial, and its report decides for all."""
    breaker = Breaker(0.05, 60)
    breaker.failed("gone")
    wait_until(lambda: breaker.state == "half-open")
    start = threading.Barrier(50)

    def ask() -> bool:
        start.wait()
        try:
            return breaker.admit()
        except BreakerOpen:
            return False

    with ThreadPoolExecutor(50) as threads:
        assert sum(future.result() for future in [threads.submit(ask) for _ in range(50)]) == 1
    with pytest.raises(BreakerOpen, match="gone"):
        breaker.admit()
    breaker.undecided()
    assert breaker.admit()
    breaker.succeeded()
    assert breaker.state == "closed" and not breaker.admit()


def test_a_trial_that_never_reports_is_replaced() -> None:
    """A trial whose thread was killed blocks the others only for the breaker's patience."""
    breaker = Breaker(0.01, 0.05)
    breaker.failed("gone")
    wait_until(lambda: breaker.state == "half-open")
    assert breaker.admit()
    with pytest.raises(BreakerOpen):
        breaker.admit()
    wait_until(lambda: breaker.state == "half-open")
    assert breaker.admit()


def test_a_forked_child_starts_with_a_closed_breaker(start_server: Any) -> None:
    """What the parent knew about the server, and locks that its threads held, do not reach a forked child."""
    one = start_server()
    queue = pooled(one.url, breaker_delay=60)
    one.stop()
    with pytest.raises(ServerUnreachable):
        queue.enqueue(JOB, 3)
    one.start()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            queue.enqueue(JOB, 3, job_id="child")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert one.client().lrange(named("rq:queue:default"), 0, -1) == [b"child"]


def test_the_earlier_deadline_counts() -> None:
    """A deadline inside another cannot give more time, and each ends with its block."""
    assert current() is None
    with within(5, "OUTER"):
        outer = current()
        with within(50, "LATER"):
            assert current() is outer
        with within(1, "INNER"):
            inner = current()
            assert inner is not None and inner.setting == "INNER" and inner.left() <= 1
        assert current() is outer
    assert current() is None


def test_a_deadline_that_has_passed_is_not_waited_beyond(server: Any) -> None:
    """A reply is not awaited when the deadline is over before the command: the connection is not used any more."""
    pool = Pool(Settings(url=server.url))
    connection = pool.get_connection()
    with within(0.05, "X"), pytest.raises(RedisTimeoutError):
        ended = time.monotonic() + 0.05
        wait_until(lambda: time.monotonic() > ended)
        connection.send_command("PING")
        connection.read_response()
    connection.disconnect()
    pool.release(connection)
    pool.disconnect()


def test_connecting_ends_at_the_deadline() -> None:
    """A host that does not answer the handshake costs what is left of the deadline, not SOCKET_CONNECT_TIMEOUT."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # its queue is full from then on: further handshakes wait
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        connection = Pool(Settings(url=f"redis://127.0.0.1:{listener.getsockname()[1]}")).make_connection()
        began = time.monotonic()
        with within(0.3, "X"), pytest.raises((RedisError, OSError)):
            connection.connect()
        assert time.monotonic() - began < 1.0


_GREENLETS = """
import gevent.monkey
gevent.monkey.patch_all()
import sys, time, gevent
from redis import Redis
from rq_pooled.config import Settings
from rq_pooled.errors import RedisUnavailable
from rq_pooled.pool import Pool
from rq_pooled.queue import Queue
queue = Queue("default", Redis(connection_pool=Pool(Settings(url=sys.argv[1], max_connections=5, enqueue_deadline=1))))
def request():
    try:
        queue.enqueue("math.factorial", 3)
    except RedisUnavailable as error:
        return type(error).__name__
started = time.monotonic()
tasks = [gevent.spawn(request) for _ in range(100)]
gevent.joinall(tasks)
print(len([t for t in tasks if t.value]), time.monotonic() - started)
"""


def test_greenlets_share_deadlines_as_little_as_threads(silent: int, server: Any, redis: Redis) -> None:
    """Under gevent each greenlet has its own deadline: 100 wait for a silent server together, not one after another."""
    pytest.importorskip("gevent")
    for url, expected in ((f"redis://127.0.0.1:{silent}", 100), (server.url, 0)):
        run = [sys.executable, "-c", _GREENLETS, url]
        out = subprocess.run(run, capture_output=True, text=True, timeout=50, check=True).stdout.split()
        assert int(out[0]) == expected and float(out[1]) < 1 + SLACK


def test_idle_connections_that_died_without_a_word_cost_no_enqueue(redis: Redis, server: Any) -> None:
    """An enqueue that draws a connection which a firewall has forgotten gets through on a new one, within its
    deadline.
    """
    with closing(CutProxy(server.port)) as proxy:
        queue = pooled(proxy.url, health_check_interval=1, enqueue_deadline=8, socket_timeout=20)
        pool: Any = queue.connection.connection_pool
        taken = [pool.get_connection() for _ in range(4)]
        for connection in taken:
            pool.release(connection)
        wait_until(lambda: all(connection.next_health_check < time.monotonic() for connection in taken))
        proxy.forget()
        for number in range(4):
            queue.enqueue(JOB, number)
        assert pool.stats()["reconnects"] <= 4
    assert redis.llen(named("rq:queue:default")) == 4


def test_a_busy_pool_says_nothing_about_the_server(redis: Redis, server: Any) -> None:
    """Whenever before the end of its deadline an enqueue gets a connection, it works or says that the pool is full."""
    queue = pooled(server.url, max_connections=3, enqueue_deadline=1.0)
    pool: Any = queue.connection.connection_pool
    queue.enqueue(JOB, 0)
    for before_the_end in (0.1, 0.03, 0.005, 0.002, 0.001):
        taken = [pool.get_connection() for _ in range(3)]
        with ThreadPoolExecutor(1) as threads:
            started = time.monotonic()
            call = threads.submit(outcome, lambda: queue.enqueue(JOB, 1))
            time.sleep(max(0.0, started + 1.0 - before_the_end - time.monotonic()))  # the moment is what this is about
            for connection in taken:
                pool.release(connection)
            result, _took = call.result()
        assert not isinstance(result, Exception) or isinstance(result, PoolExhausted), result
        queue.enqueue(JOB, 2)  # raises where the breaker is open
