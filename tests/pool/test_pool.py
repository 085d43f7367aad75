"""The pool: bounds, statistics, events, renewal, forks, names. What the server sees is what counts."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from keys import named
from proxy import CutProxy
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rq_pooled.config import Settings
from rq_pooled.connection.defaults import keepalive_options
from rq_pooled.connection.names import client_name
from rq_pooled.connection.options import connection_options, make_connection
from rq_pooled.errors import ConfigurationError, PoolExhausted, ServerUnreachable
from rq_pooled.pool import Pool, get_connection, get_pool
from rq_pooled.pool.hooks import NotNow
from rq_pooled.pool.waiting import patience

SECRET = "s3cr3t"


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for a condition, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.005)
    return value


def pool_at(server: Any, role: str = "test", **settings: Any) -> Pool:
    """A pool of at least 3 connections to a server."""
    return Pool(Settings(**{"url": server.url, "max_connections": 3, "pool_timeout": 5, **settings}), role)


def seen(redis: Redis, role: str = "test") -> list[dict[str, str]]:
    """This process's connections of a role, as the server lists them."""
    ending = f":{os.getpid()}:{role}"
    return [client for client in redis.client_list() if client["name"].endswith(ending)]


def received(redis: Redis) -> int:
    """How many connections the server has ever accepted."""
    return int(redis.info("stats")["total_connections_received"])


def test_connections_never_exceed_the_bound(server: Any, redis: Redis) -> None:
    """However many threads use the pool, the server never sees more than MAX_CONNECTIONS, and none is opened anew."""
    pool = pool_at(server)
    client = Redis(connection_pool=pool)
    before = received(redis)
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda n: client.incr("counter"), range(500)))
    assert int(client.get("counter") or 0) == 500
    assert len(seen(redis)) <= 3 and received(redis) - before <= 3
    stats = pool.stats()
    assert stats["created"] == stats["available"] == len(seen(redis)) and stats["in_use"] == stats["waiting"] == 0
    pool.disconnect()
    until(lambda: not seen(redis))


def test_stats_have_stable_keys(server: Any, redis: Redis) -> None:
    """Statistics have the documented keys, and count what is taken and idle."""
    pool = pool_at(server)
    assert pool.stats() == {
        "max": 3,
        "created": 0,
        "available": 0,
        "in_use": 0,
        "waiting": 0,
        "longest_wait": 0.0,
        "timeouts": 0,
        "reconnects": 0,
        "oldest_age": 0.0,
    }
    one, two = pool.get_connection(), pool.get_connection()
    pool.release(one)
    stats = pool.stats()
    assert (stats["created"], stats["available"], stats["in_use"]) == (2, 1, 1) and stats["oldest_age"] > 0
    pool.release(two)
    pool.release(two)  # twice: it must not be handed to two callers
    assert pool.stats()["available"] == 2 and pool.get_connection() is not pool.get_connection()
    pool.disconnect()


def test_exhausted_names_the_limit_and_the_holders(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An exhausted pool raises within POOL_TIMEOUT; the error names limit, numbers, holders and settings."""
    pool = pool_at(server, pool_timeout=0.1)
    events: list[tuple[str, dict[str, Any]]] = []
    pool.subscribe(lambda event, details: events.append((event, details)))

    def hold_in_a_view() -> Any:
        return Redis(connection_pool=pool, single_connection_client=True)

    clients: list[Any] = []
    thread = threading.Thread(target=lambda: clients.append(hold_in_a_view()), name="web-7")
    thread.start()
    thread.join()
    clients += [hold_in_a_view(), hold_in_a_view()]
    started = time.monotonic()
    with pytest.raises(PoolExhausted) as caught:
        Redis(connection_pool=pool).ping()
    assert time.monotonic() - started < 3
    message = str(caught.value)
    for words in (
        "0.1 s (POOL_TIMEOUT)",
        "all 3 (MAX_CONNECTIONS)",
        "0 others",
        "web-7 for",
        "MainThread for",
        "Raise",
    ):
        assert words in message
    assert f"{__file__}:" in message and "in hold_in_a_view" in message and "\n" not in message
    assert isinstance(caught.value, RedisConnectionError)
    assert pool.stats()["timeouts"] == 1 and pool.stats()["longest_wait"] >= 0.1
    exhausted = dict(events)["exhausted"]
    assert exhausted["max"] == 3 and len(exhausted["holders"]) == 3
    assert any(r.levelno == logging.WARNING and "exhausted" in r.getMessage() for r in caplog.records)
    for client in clients:
        client.close()


def test_waiting_ends_when_a_connection_is_returned(server: Any) -> None:
    """A caller that waits gets the connection that another returns, and is counted meanwhile."""
    pool = pool_at(server)
    taken = [pool.get_connection() for _ in range(3)]
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(pool.get_connection)
        until(lambda: pool.stats()["waiting"] == 1)
        pool.release(taken[0])
        assert waiter.result(5) is taken[0]
    assert pool.stats()["waiting"] == 0 and pool.stats()["longest_wait"] > 0
    pool.disconnect()


def test_unreachable_server(caplog: pytest.LogCaptureFixture) -> None:
    """A server that refuses ends in ServerUnreachable, in words, after a few tries, and the slot is free again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    pool = Pool(Settings(url=f"redis://:{SECRET}@127.0.0.1:{port}/3", max_connections=3))
    events: list[str] = []
    pool.subscribe(lambda event, details: events.append(event))
    client = Redis(connection_pool=pool)
    for _ in range(4):  # more often than there are slots
        with pytest.raises(ServerUnreachable) as caught:
            client.ping()
    message = str(caught.value)
    assert f"redis://127.0.0.1:{port}/3" in message and "nothing was sent" in message and "refused" in message
    assert isinstance(caught.value, RedisConnectionError)
    assert events == ["error"] * 12 and pool.stats()["in_use"] == 0
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 1
    assert SECRET not in message + caplog.text + repr(pool)


def test_silent_server_is_given_up_within_the_bound() -> None:
    """A server that accepts and never answers is given up after the socket timeout, and before POOL_TIMEOUT plus
    one.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        pool = Pool(Settings(url=url, socket_timeout=0.1, socket_connect_timeout=0.1, pool_timeout=0.15))
        started = time.monotonic()
        with pytest.raises(ServerUnreachable):
            pool.get_connection()
        assert time.monotonic() - started < 5


def test_wrong_password_is_not_tried_again(start_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A refused password is said at once, and appears nowhere."""
    caplog.set_level(logging.DEBUG)
    one = start_server({"requirepass": "right"})
    pool = Pool(Settings(url=f"redis://:{SECRET}@{one.host}:{one.port}/0"))
    errors: list[str] = []
    pool.subscribe(lambda event, details: errors.append(str(details)))
    with pytest.raises(ServerUnreachable, match=r"tried 1 time\).*Check user and password in URL") as caught:
        pool.get_connection()
    assert SECRET not in str(caught.value) + repr(pool) + caplog.text + "".join(errors)


def test_a_command_is_never_sent_twice(server: Any, redis: Redis) -> None:
    """A command whose reply is lost raises and was done once: neither the pool nor redis-py sends it again."""
    with closing(CutProxy(server.port)) as proxy:
        pool = Pool(Settings(url=proxy.url))
        client = Redis(connection_pool=pool)
        client.set("counter", 0)
        proxy.cut_on(b"INCR")
        with pytest.raises((RedisConnectionError, RedisTimeoutError)) as caught:
            client.incr("counter")
        assert not isinstance(caught.value, ServerUnreachable)
        assert redis.get("counter") == b"1"
        assert client.incr("counter") == 2 and pool.stats()["reconnects"] == 1
        pool.disconnect()


def test_restarted_server_is_met_before_use(start_server: Any) -> None:
    """A connection that the server closed while idle is replaced before a command is sent on it."""
    one = start_server()
    pool = pool_at(one)
    client = Redis(connection_pool=pool)
    events: list[str] = []
    pool.subscribe(lambda event, details: events.append(event))
    client.ping()
    one.stop()
    one.start()
    assert client.ping() and events == ["connect", "close", "connect"] and pool.stats()["reconnects"] == 1


def test_idle_surplus_is_closed_on_release(server: Any, redis: Redis) -> None:
    """Connections that the last MAX_IDLE did not need are closed when somebody returns one; the one in use stays."""
    pool = pool_at(server, max_idle=0.05)
    closed: list[str] = []
    pool.subscribe(lambda event, details: closed.extend([details["reason"]] if event == "close" else []))
    taken = [pool.get_connection() for _ in range(3)]
    for connection in taken:
        pool.release(connection)
    assert len(seen(redis)) == 3
    client = Redis(connection_pool=pool)
    until(lambda: client.ping() and len(seen(redis)) == 1)
    assert closed == ["max_idle"] * 2 and pool.stats()["created"] == 1
    taken = [pool.get_connection() for _ in range(3)]  # all three slots are still there
    pool.disconnect()


def test_connections_are_renewed_between_uses(server: Any, redis: Redis) -> None:
    """After MAX_LIFETIME a connection is opened anew between uses; that is no reconnect."""
    pool = pool_at(server, max_lifetime=0.05)
    client = Redis(connection_pool=pool)
    first = client.client_id()
    until(lambda: client.client_id() != first)
    assert pool.stats()["reconnects"] == 0 and len(seen(redis)) == 1
    pool.disconnect()


def test_lifetimes_are_spread(server: Any) -> None:
    """Connections that were opened together do not all end together."""
    pool = pool_at(server, max_connections=20, max_lifetime=1000)
    taken = [pool.get_connection() for _ in range(20)]
    ends = [pool.book.lines[connection].expires_at - pool.book.lines[connection].opened_at for connection in taken]
    assert all(800 <= end <= 1000 for end in ends) and max(ends) - min(ends) > 20
    pool.disconnect()


def test_leak_is_logged_once_with_its_holder(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A connection held for longer than LEAK_WARN is logged once, with thread and place, whoever uses the pool next."""
    pool = pool_at(server, leak_warn=0.05)
    client = Redis(connection_pool=pool)

    def forgotten() -> Any:
        return pool.get_connection()

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if "LEAK_WARN" in record.getMessage()]

    held = forgotten()
    until(lambda: client.ping() and warnings())
    client.ping()
    pool.release(held)
    assert len(warnings()) == 1
    assert "MainThread" in warnings()[0] and f"{__file__}:" in warnings()[0] and "in forgotten" in warnings()[0]
    held = forgotten()
    until(lambda: time.monotonic() - pool.book.holds[held].since > 0.05)
    pool.release(held)  # nobody else used the pool meanwhile
    assert len(warnings()) == 2


def test_events_and_subscribers(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Each opening and closing is told once to subscribers and to the log; one that fails harms nobody."""
    caplog.set_level(logging.INFO, "rq_pooled.pool")
    pool = pool_at(server)
    events: list[str] = []

    def broken(event: str, details: dict[str, Any]) -> None:
        raise RuntimeError("subscriber")

    pool.subscribe(broken)
    unsubscribe = pool.subscribe(lambda event, details: events.append(f"{event} {details['role']}"))
    client = Redis(connection_pool=pool)
    client.ping()
    client.ping()
    pool.disconnect()
    assert events == ["connect test", "close test"]
    assert f"pool test redis://{server.host}:{server.port}/0: connect" in caplog.text
    unsubscribe()
    unsubscribe()
    client.ping()
    assert len(events) == 2
    pool.disconnect()


def test_statistics_are_logged_from_calls(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The statistics are logged at the pace of HEALTH_CHECK_INTERVAL by those who use the pool."""
    caplog.set_level(logging.DEBUG, "rq_pooled.pool")
    client = Redis(connection_pool=pool_at(server, health_check_interval=0.02))
    until(lambda: client.ping() and "'in_use': " in caplog.text)


def test_dead_idle_connection_is_found_by_its_health_check(server: Any, redis: Redis) -> None:
    """A connection idle for HEALTH_CHECK_INTERVAL is PINGed when taken; one that is dead is replaced, not handed
    out.
    """
    with closing(CutProxy(server.port)) as proxy:
        pool = Pool(Settings(url=proxy.url, health_check_interval=0.01, socket_timeout=1))
        client = Redis(connection_pool=pool)
        client.ping()
        until(lambda: time.monotonic() - next(iter(pool.book.lines.values())).released_at > 0.05)
        proxy.cut_on(b"PING")
        assert client.echo("x") == b"x"
        assert proxy.done.is_set() and pool.stats()["reconnects"] == 1
        pool.disconnect()


def test_what_a_firewall_forgot_costs_one_timeout(server: Any) -> None:
    """When an idle connection does not answer in time, the other idle ones are closed too: the next calls do not wait
    for them one by one."""
    with closing(CutProxy(server.port)) as proxy:
        pool = Pool(Settings(url=proxy.url, health_check_interval=0.01, socket_timeout=0.5, max_connections=4))
        taken = [pool.get_connection() for _ in range(4)]
        for connection in taken:
            pool.release(connection)
        until(lambda: time.monotonic() - max(line.released_at for line in pool.book.lines.values()) > 0.05)
        proxy.forget()
        began = time.monotonic()
        assert Redis(connection_pool=pool).echo("x") == b"x"
        assert time.monotonic() - began < 1.5
        assert pool.stats()["created"] == 1
        pool.disconnect()


def test_unread_data_never_reaches_the_next_caller(server: Any) -> None:
    """A connection returned with a reply still unread gives the next caller its own reply."""
    pool = pool_at(server)
    connection = pool.get_connection()
    connection.send_command("ECHO", "stale")
    until(connection.can_read)
    pool.release(connection)
    assert Redis(connection_pool=pool).echo("fresh") == b"fresh"
    pool.disconnect()


def test_unread_data_does_not_renew_a_lease(server: Any, redis: Redis) -> None:
    """With a BUDGET, too, an idle connection with unread data is replaced before anything is asked over it."""
    settings = {"budget": 9, "budget_name": "shop", "heartbeat_interval": 0.4, "heartbeat_ttl": 1.2, "pool_timeout": 1}
    pool = pool_at(server, **settings)
    for _ in range(4):
        connection = pool.get_connection()
        connection.send_command("GET", "stale")
        until(connection.can_read)
        pool.release(connection)
        time.sleep(0.7)  # more than half of the lease's term
        assert Redis(connection_pool=pool).echo("fresh") == b"fresh"
    assert pool.pool.qsize() == 3
    pool.disconnect()


TIMED_OUT = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, os, signal, sys, time
from redis import Redis
from rq_pooled.config import Settings
from rq_pooled.pool import Pool
pool = Pool(Settings(url=sys.argv[1], max_connections=3, heartbeat_interval=0.1, heartbeat_ttl=10))
client = Redis(connection_pool=pool)
connection = pool.get_connection()
time.sleep(0.2)
os.kill(int(sys.argv[2]), signal.SIGSTOP)
try:
    with gevent.Timeout(0.5):
        pool.release(connection)
    print("no timeout")
except gevent.Timeout:
    pass
finally:
    os.kill(int(sys.argv[2]), signal.SIGCONT)
print(pool.pool.qsize(), pool.stats()["in_use"], client.echo("mine"))
"""


def test_timeout_while_publishing_loses_no_slot(start_server: Any) -> None:
    """A greenlet that is timed out while it returns a connection gives its slot back, without the reply to come."""
    pytest.importorskip("gevent")
    one = start_server()
    pid = str(one.client().info("server")["process_id"])
    done = subprocess.run(
        [sys.executable, "-c", TIMED_OUT, one.url, pid], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout.strip() == "3 0 b'mine'", done.stdout + done.stderr


def test_connections_are_named(server: Any, redis: Redis) -> None:
    """Each connection is rq_pooled:<app>:<host>:<pid>:<role> in CLIENT LIST."""
    pool = pool_at(server, role="named", budget_name="shop")
    Redis(connection_pool=pool).ping()
    host = socket.gethostname().replace(":", "_")
    assert [client["name"] for client in seen(redis, "named")] == [named(f"rq_pooled:shop:{host}:{os.getpid()}:named")]
    pool.disconnect()


@pytest.mark.parametrize("argv0", ["/srv/my app: v2\n.py", "", "-c", "/x/päckage/__main__.py"])
def test_any_program_name_makes_a_name(monkeypatch: pytest.MonkeyPatch, server: Any, argv0: str) -> None:
    """Whatever the program is called, the name has five parts that the server accepts."""
    monkeypatch.setattr(sys, "argv", [argv0])
    name = client_name(Settings(), "web")
    assert len(name.split(":")) == 5 and all(name.split(":"))
    with Redis.from_url(server.url) as client:
        assert client.client_setname(name)


def test_server_that_refuses_names_is_usable(start_server: Any) -> None:
    """A user who may not use CLIENT SETNAME can still use the pool."""
    one = start_server()
    with one.client() as admin:
        admin.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "+@all", "-client")
    pool = Pool(Settings(url=f"redis://limited:pw@{one.host}:{one.port}/0"))
    assert Redis(connection_pool=pool).ping()
    pool.disconnect()


def test_options_are_explicit(server: Any) -> None:
    """Nothing that redis-py versions differ in is left to them: timeouts, retries, keepalive, protocol, decoding."""
    pool = pool_at(server, socket_timeout=4, socket_connect_timeout=3, keepalive_idle=70)
    connection = pool.get_connection()
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (4, 3)
    assert connection.retry._retries == 0 and not connection.retry_on_error and connection.protocol == 2
    assert connection.encoder.decode_responses is False and connection.encoder.encoding == "utf-8"
    assert connection.health_check_interval == 30
    if hasattr(pool, "maint_notifications_enabled"):
        assert not pool.maint_notifications_enabled()  # type: ignore[no-untyped-call]
    sock = connection._sock
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if hasattr(socket, "TCP_KEEPIDLE"):
        options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [70, 10, 3]
    pool.release(connection)
    pool.disconnect()


def test_keepalive_skips_what_the_platform_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only socket options that the platform has are set; macOS calls the idle time TCP_KEEPALIVE."""
    for name in ("TCP_KEEPIDLE", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name, raising=False)
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", 0x10, raising=False)
    monkeypatch.setattr(socket, "TCP_KEEPINTVL", 0x101, raising=False)
    assert keepalive_options(Settings()) == {0x10: 60, 0x101: 10}


def test_url_parameters(server: Any) -> None:
    """Parameters of the URL win over settings, but none can make redis-py send a command again or decode replies."""
    url = server.url + "?socket_timeout=7&max_connections=2&timeout=1&retry_on_timeout=1&decode_responses=1&protocol=3"
    pool = Pool(Settings(url=url))
    connection = pool.get_connection()
    assert (pool.max_connections, pool.timeout, connection.socket_timeout, connection.protocol) == (2, 1, 7, 3)
    assert connection.retry._retries == 0 and connection.encoder.decode_responses is False
    if hasattr(pool, "maint_notifications_enabled"):
        assert not pool.maint_notifications_enabled()  # type: ignore[no-untyped-call]
    pool.release(connection)
    pool.disconnect()
    for bad, words in (("protocol=x", "protocol"), ("nonsense=1", "nonsense"), ("max_connections=0", "at least 1")):
        with pytest.raises(ConfigurationError, match=words):
            Pool(Settings(url=f"{server.url}?{bad}"))


def test_unix_socket(start_server: Any, tmp_path: Any) -> None:
    """A unix:// URL works, with its database and its name."""
    path = tmp_path / "s.sock"
    start_server({"unixsocket": str(path)})
    pool = Pool(Settings(url=f"unix://{path}?db=2"))
    client = Redis(connection_pool=pool)
    client.set("key", "value")
    assert pool.address == f"unix://{path}?db=2" and client.client_list()[0]["db"] == "2"
    pool.disconnect()


def test_from_an_existing_client(start_server: Any) -> None:
    """A pool made from a client takes its server, password, database and class, and none of its timeouts or retries."""
    one = start_server({"requirepass": SECRET})
    stock = Redis(host=one.host, port=one.port, password=SECRET, db=4, socket_timeout=415, decode_responses=True)
    pool = Pool(Settings(), client=stock)
    client = Redis(connection_pool=pool)
    client.set("key", "value")
    assert client.client_list()[0]["db"] == "4" and stock.get("key") == "value" and client.get("key") == b"value"
    connection = pool.get_connection()
    assert connection.socket_timeout == 5 and connection.retry._retries == 0
    pool.release(connection)
    own = make_connection(Settings(), "listen", stock, socket_timeout=9)
    own.connect()
    assert own.socket_timeout == 9
    assert any(c["name"].endswith(f":{os.getpid()}:listen") for c in stock.client_list())
    own.disconnect()
    again = connection_options(Settings(), "other", client)[1]["redis_connect_func"]
    assert again.role == "other" and again.before is None
    pool.disconnect()
    stock.close()


def test_pubsub_and_pipelines_return_what_they_took(server: Any) -> None:
    """Pipelines, WATCH and pubsub of redis-py work on the pool and leave nothing taken."""
    pool = pool_at(server)
    client: Any = Redis(connection_pool=pool)
    with client.pubsub() as pubsub:
        pubsub.subscribe("channel")
        until(lambda: (pubsub.get_message(timeout=0.1) or {}).get("type") == "subscribe")
        client.publish("channel", "x")
        until(lambda: (pubsub.get_message(timeout=0.1) or {}).get("data") == b"x")
    with client.pipeline() as pipe:
        pipe.watch("key")
        pipe.multi()
        pipe.set("key", 1)
        pipe.execute()
    with pytest.raises(ResponseError):
        client.lpush("key", 1)
    assert pool.stats()["in_use"] == 0
    pool.disconnect()


def test_one_pool_per_process_and_server(server: Any, redis: Redis) -> None:
    """get_pool and get_connection return the same objects for one server, and others for another database."""
    settings = Settings(url=server.url)
    assert get_pool(settings) is get_pool(settings, "other") is get_connection(settings).connection_pool
    assert get_connection(settings) is get_connection(settings)
    assert get_pool(Settings(url=server.url.replace("/0", "/1"))) is not get_pool(settings)
    assert get_pool(settings, client=redis) is get_pool(settings)
    with ThreadPoolExecutor(8) as threads:
        many = set(threads.map(lambda n: get_pool(Settings(url=server.url.replace("/0", "/7"))), range(50)))
    assert len(many) == 1
    get_connection(settings).close()
    assert get_connection(settings).ping()
    get_pool(settings).disconnect()


def test_a_horse_limits_the_pool_it_inherited(server: Any, redis: Redis) -> None:
    """limit() gives the same pool object another bound and role, so that code which kept it obeys them too."""
    pool = pool_at(server, pool_timeout=0.05)
    client: Any = Redis(connection_pool=pool)
    client.ping()
    pool.become("job", 1)
    assert client.client_list()[-1]["name"].endswith(f":{os.getpid()}:job")
    taken = pool.get_connection()
    with pytest.raises(PoolExhausted, match=r"all 1 \(MAX_CONNECTIONS\)"):
        client.ping()
    pool.release(taken)
    until(lambda: not seen(redis) and len(seen(redis, "job")) == 1)
    pool.disconnect()


def test_options_travel_to_other_processes(server: Any) -> None:
    """RQ pickles a pool's options for its scheduler and worker pool: they must survive that."""
    pool = pool_at(server)
    from rq.connections import get_connection_kwargs

    options = pickle.loads(pickle.dumps(get_connection_kwargs(Redis(connection_pool=pool))))
    rebuilt = Redis(**{name: options[name] for name in ("host", "port", "redis_connect_func")})
    assert rebuilt.ping()
    rebuilt.close()


FORK = """
import os, socket, sys, time
from redis import Redis
from rq_pooled.config import Settings
from rq_pooled.pool import Pool, get_connection
settings = Settings(url=sys.argv[1], max_connections=3, pool_timeout=2)
client = get_connection(settings)
pool = client.connection_pool
client.set('key', 'parent')
first = client.client_id()
held = pool.get_connection()            # in use while forking
pipe = client.pipeline(); pipe.watch('key')
fds = {c._sock.fileno() for c in pool._connections}
pid = os.fork()
if pid == 0:
    status = 1
    try:
        for fd in fds:                  # closed at once, before the pool is touched
            try: os.fstat(fd)
            except OSError: continue
            raise AssertionError('inherited socket is open')
        assert pool.stats()['created'] == 0
        assert client.get('key') == b'parent'
        assert client.client_id() != first
        assert get_connection(settings) is client
        assert client.client_getname().endswith(':%d:web' % os.getpid())
        pool.release(held)              # inherited: not pooled here
        taken = [pool.get_connection() for _ in range(3)]
        assert held not in taken
        for connection in taken: pool.release(connection)
        pool.disconnect()
        status = 0
    except BaseException:
        import traceback; traceback.print_exc()
    os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
held.send_command('ECHO', 'alive'); assert held.read_response() == b'alive'
pipe.multi(); pipe.set('key', 'again'); pipe.execute()
pool.release(held)
assert client.client_id() == first or client.client_getname().endswith(':%d:web' % os.getpid())
assert pool.stats()['reconnects'] == 0 and pool.stats()['in_use'] == 0
print('ok')
"""


def test_fork(server: Any, redis: Redis) -> None:
    """A child closes its copies of the sockets, opens its own under its own name, and never harms the parent's."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, server.url], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout.strip() == "ok", done.stderr


COLLECTED = """
import faulthandler, gc, sys
from rq_pooled import get_connection
from rq_pooled.config import Settings
faulthandler.dump_traceback_later(15, exit=True)
redis = get_connection(Settings(url=sys.argv[1], max_connections=3))
redis.ping()
gc.freeze()  # makes a collection quick
gc.disable()
left = 0
def trace(frame, event, arg):
    global left
    name = frame.f_code.co_filename
    if "/rq_pooled/pool/" not in name and not name.endswith("/queue.py"):
        return None
    left -= 1
    if left == 0:
        gc.collect()
    return trace
for line in range(1, 300):
    pubsub = redis.pubsub()
    pubsub.subscribe("x")
    pubsub.itself = pubsub
    del pubsub
    left = line
    sys.settrace(trace)
    redis.connection_pool.stats(), redis.connection_pool.in_use, redis.ping()
    sys.settrace(None)
    if left > 0:
        break
    assert redis.connection_pool.stats()["in_use"] == 0
gc.collect()
print("in use:", redis.connection_pool.stats()["in_use"], "free:", redis.connection_pool.pool.qsize(), line > 100)
"""

SIGNALLED = """
import faulthandler, signal, sys, time
from rq_pooled import get_connection
from rq_pooled.config import Settings
faulthandler.dump_traceback_later(15, exit=True)
redis = get_connection(Settings(url=sys.argv[1], max_connections=3))
def look(*_):
    redis.connection_pool.stats()
    signal.setitimer(signal.ITIMER_REAL, 0.0003)
signal.signal(signal.SIGALRM, look)
look()
over = time.monotonic() + 3
while time.monotonic() < over:
    redis.ping()
signal.setitimer(signal.ITIMER_REAL, 0)
print("in use:", redis.connection_pool.stats()["in_use"], "free:", redis.connection_pool.pool.qsize(), True)
"""


@pytest.mark.parametrize("program", [COLLECTED, SIGNALLED])
def test_a_thread_never_waits_for_itself(server: Any, program: str) -> None:
    """A pubsub collected as garbage, at any line of the pool and its queue, and a signal handler's stats() do no
    harm.
    """
    done = subprocess.run(
        [sys.executable, "-c", program, server.url], capture_output=True, text=True, check=False, timeout=40
    )
    assert done.stdout.strip() == "in use: 0 free: 3 True", done.stderr


def test_interrupted_wait_leaves_no_slot_taken(server: Any) -> None:
    """An exception that a signal raises while connecting or handing out gives the slot back."""
    pool = pool_at(server)

    class Alarm(Exception):
        pass

    def interrupt(event: str, details: dict[str, Any]) -> None:
        raise Alarm

    original = pool._make_ready
    pool._make_ready = lambda connection, deadline: interrupt("connect", {})  # type: ignore[method-assign]
    for _ in range(4):
        with pytest.raises(Alarm):
            pool.get_connection()
    pool._make_ready = original  # type: ignore[method-assign]
    assert pool.stats()["in_use"] == 0
    taken = [pool.get_connection() for _ in range(3)]
    assert len(taken) == 3
    pool.disconnect()


def test_locks_are_taken_in_one_order(server: Any) -> None:
    """Where something else is in the way than before, no lock is held while another one is waited for."""
    pool = Pool(Settings(url=server.url), max_connections=2)
    taken, words = pool.get_connection(), PoolExhausted("no")
    waiting = pool._waiting
    waiting._refusal = NotNow("before", words)
    call = taken, NotNow("now", words, (0.0, 0.0)), patience(5.0)
    thread = threading.Thread(target=waiting.step_back, args=call)
    with pool.pool.mutex:
        thread.start()
        until(lambda: waiting._refusal is not None and waiting._refusal.bound == "now")
        assert pool.book.lock.acquire(timeout=5)
        pool.book.lock.release()
    thread.join()
    assert pool.is_whole
    pool.disconnect()


def test_a_connection_that_cannot_be_made_leaves_no_slot_taken(server: Any) -> None:
    """Whatever is raised while a connection is built, not only opened, the place of it is free again."""
    pool = Pool(Settings(url=server.url, pool_timeout=0.2), max_connections=1)
    good = pool.connection_kwargs
    pool.connection_kwargs = {**good, "no_such_option": 1}
    with pytest.raises(TypeError):
        pool.get_connection()
    pool.connection_kwargs = good
    pool.release(pool.get_connection())
    pool.disconnect()


def test_last_words_leave_nothing_of_their_connection(server: Any, redis: Redis) -> None:
    """A connection that was closed with its last words is forgotten: a pool that does so often does not grow."""
    pool = Pool(Settings(url=server.url))
    for _ in range(3):
        pool.release(pool.get_connection())
        assert pool.part([("SET", "said", "1")]) and not pool.part([])
    assert (len(pool._connections), len(pool.book.lines)) == (0, 0) and redis.get("said") == b"1"
    assert pool.is_whole


def test_a_pool_is_made_from_every_form_of_url(server: Any) -> None:
    """``Pool.from_url`` takes what RQ_POOLED_URL takes, and what it refuses it refuses without the password."""
    pool = Pool.from_url(server.url, decode_responses=True, max_connections=3)
    assert Redis(connection_pool=pool).echo("text") == "text" and pool.max_connections == 3
    pool.disconnect()
    assert Pool.from_url("sentinel://127.0.0.1:1/mymaster").address.startswith("sentinel://127.0.0.1:1")
    for url in ("redis://:hunter2a/b@h:6379/0", "rediss://app:hunter2a?b@h:6379/0", "redis://h:hunter2a"):
        with pytest.raises(ConfigurationError) as caught:
            Pool.from_url(url)
        assert "hunter2" not in str(caught.value)
