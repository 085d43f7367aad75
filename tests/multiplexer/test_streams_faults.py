"""Faults of the jobs' connections that real workers show only in a bad moment: the multiplexer alone, turn by turn."""

from __future__ import annotations

import itertools
import os
import select
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from proxy import CutProxy, SlowProxy
from redis import Connection, ConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TryAgainError
from sampling import by_role

from rq_pooled.capacity.stop_flag import Brake
from rq_pooled.config import Settings
from rq_pooled.connection.away import ServerAway
from rq_pooled.connection.framing import ReplyCutter
from rq_pooled.connection.options import make_connection
from rq_pooled.connection.place import Place
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.horse.stream import stream_class, stream_options
from rq_pooled.multiplexer import guests, listener
from rq_pooled.multiplexer.dialer import Dialer
from rq_pooled.multiplexer.lending import _MOST_UNSENT
from rq_pooled.multiplexer.loan import Loan
from rq_pooled.multiplexer.multiplexer import Multiplexer
from rq_pooled.multiplexer.opener import Opener
from rq_pooled.multiplexer.streams import LONG_REPLY, LONG_REQUEST, MOST_UNREAD, Guest
from rq_pooled.parent.command_connection import CommandConnection
from rq_pooled.parent.exchange import Exchange
from rq_pooled.process.event_loop import Loop
from rq_pooled.wire import pack_commands

pytestmark = pytest.mark.timeout(60)


class Client:
    """A job's end of a stream: bytes that are sent, and what has come back."""

    def __init__(self, hub: Hub, guest: Guest) -> None:
        self._hub = hub
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(hub.mux.path)
        self.socket.sendall(guest.token + b"\n")
        self.socket.setblocking(False)
        self.got = b""
        self.closed = False

    def send(self, *commands: tuple[Any, ...]) -> None:
        """Send commands in one write."""
        self.socket.sendall(pack_commands(commands))

    def look(self) -> bytes:
        """Return all that has come."""
        try:
            while data := self.socket.recv(1 << 20):
                self.got += data
            self.closed = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self.closed = True
        return self.got

    def expect(self, reply: bytes, timeout: float = 5) -> None:
        """Wait for exactly these bytes."""
        self._hub.until(
            lambda: self.closed or self.look()[: len(reply)] == reply or not reply.startswith(self.got), timeout
        )
        assert self.got == reply
        self.got = b""

    def ask(self, *words: Any) -> bytes:
        """Return the first bytes that come back for one command."""
        self.send(words)
        self._hub.until(lambda: self.look() or self.closed, what=f"a reply to {words}")
        found, self.got = self.got, b""
        return found


class Hub:
    """A multiplexer with its loop and its command connection, which ``until`` turns."""

    def __init__(self, url: str, place: Place | None = None, client: Redis | None = None, **settings: Any) -> None:
        self.settings = Settings(url=url, **settings)
        self.loop = Loop()
        self.said: list[str] = []
        self._clients: list[Client] = []
        self.command = CommandConnection(lambda: make_connection(self.settings, "command", client), (), 5)
        self.connect()
        self.dialer = Dialer(self.settings, lambda role: make_connection(self.settings, role, client))
        self.mux = Multiplexer(
            self.loop,
            self.settings,
            lambda text, *words: self.said.append(text % words),
            self.dialer,
            (lambda: place) if place else self.command.place,
            self._ask,
            None,
            Brake(),
            lambda: self.command.answered_at,
        )

    def connect(self) -> None:
        """Connect the command connection, anew."""
        self.command.connect()
        self.loop.watch(self.command, self.command.drain)

    def close(self) -> None:
        """Close everything."""
        for client in self._clients:
            client.socket.close()
        self.mux.close()
        self.command.close()
        self.loop.close()

    def _ask(self, question: Any, on_reply: Callable[[Any], None]) -> None:
        self.command.submit(Exchange([question], lambda replies: on_reply(replies[0]), lambda _error: on_reply(None)))

    def guest(self, name: str = "a job") -> Guest:
        """Return one more horse."""
        return self.mux.admit(lambda: name)

    def client(self, guest: Guest | None = None) -> Client:
        """Return one more stream."""
        self._clients.append(Client(self, guest or self.guest()))
        return self._clients[-1]

    def turn(self) -> None:
        """Do one turn."""
        self.loop.turn(0 if self.mux.due else 0.01)
        self.mux.turn()

    def until(self, condition: Callable[[], Any], timeout: float = 5, what: str = "") -> None:
        """Turn until ``condition``."""
        over = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < over, f"waited {timeout:g} s in vain for {what or condition}"
            self.turn()

    def rest(self, seconds: float) -> None:
        """Turn for so long."""
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            self.turn()


@pytest.fixture
def hubs() -> Iterator[Callable[..., Hub]]:
    """Makes hubs."""
    made: list[Hub] = []

    def make(url: str, *args: Any, **settings: Any) -> Hub:
        made.append(Hub(url, *args, **settings))
        return made[-1]

    yield make
    for hub in made:
        hub.close()


@pytest.fixture
def hub(hubs: Callable[..., Hub], server: EmbeddedServer, redis: Redis) -> Hub:
    """One for the session's server."""
    return hubs(server.url)


# -- what is lent is given back only as it was -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behind",
    [
        [("UNSUBSCRIBE", "a"), ("SUBSCRIBE", "b")],
        [("UNSUBSCRIBE", "a"), ("UNSUBSCRIBE", "a")],
        [("UNSUBSCRIBE", "a", "a")],
        [("UNSUBSCRIBE", "a"), ("PING",)],
    ],
)
def test_a_connection_with_a_subscription_is_not_given_back(behind: list[tuple[str, ...]]) -> None:
    """Behind the last UNSUBSCRIBE something else is under way: what comes of it is not for another stream."""
    loan = Loan()
    for command in [("SUBSCRIBE", "a"), *behind]:
        loan.note([word.encode() for word in command])
        if command[0] == "SUBSCRIBE" and command[1] == "a":
            loan.note_reply(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n", False)
    loan.note_reply(b"*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n", False)
    assert not loan.is_over


def test_after_the_last_unsubscribe_the_connection_is_lent_to_others(hub: Hub, redis: Redis) -> None:
    """The usual way out of a subscription costs no connection."""
    listener = hub.client()
    for _ in range(3):
        assert b"subscribe" in listener.ask("SUBSCRIBE", "a")
        assert listener.ask("UNSUBSCRIBE").endswith(b":0\r\n")
        assert hub.client().ask("BLPOP", "nothing", "0.1") == b"*-1\r\n"
    assert len(by_role(redis, "exclusive")) == 1


@pytest.mark.parametrize("word", ["DISCARD", "EXEC"])
def test_a_watch_that_an_error_leaves_is_not_the_next_stream_s(hub: Hub, redis: Redis, word: str) -> None:
    """EXEC or DISCARD without MULTI is refused and the keys stay watched: so does the connection stay lent."""
    one, two = hub.client(), hub.client()
    assert one.ask("WATCH", "key") == b"+OK\r\n"
    assert one.ask(word).startswith(b"-ERR")
    redis.set("key", "changed")
    assert two.ask("MULTI") == b"+OK\r\n"
    assert two.ask("SET", "key", "two") == b"+QUEUED\r\n"
    two.send(("EXEC",))
    two.expect(b"*1\r\n+OK\r\n")


def test_a_connection_that_was_not_read_for_a_while_is_read_for_the_next_stream(hub: Hub, redis: Redis) -> None:
    """A horse that takes its time with long replies leaves connections that work."""
    redis.set("large", b"x" * 20_000_000)
    redis.rpush("list", b"x" * 280_000)
    guest = hub.guest()
    slow, slower = hub.client(guest), hub.client(guest)
    slower.send(("WATCH", "key"), ("GET", "large"))
    hub.until(lambda: guest.unread > MOST_UNREAD, what="many unread bytes")
    slow.send(("BRPOP", "list", "1"))
    hub.until(lambda: len(hub.mux._lending._upstreams) == 2, what="both loans")
    hub.until(
        lambda: len(hub.mux._lending._upstreams) == 1 or all(u.paused for u in hub.mux._lending._lent), what="its end"
    )
    for client in (hub.client(), hub.client()):
        assert client.ask("BLPOP", "nothing", "0.1") == b"*-1\r\n"


def test_a_connection_that_a_firewall_forgot_is_not_made_fit_for_ever(
    hubs: Callable[..., Hub], server: EmbeddedServer, redis: Redis
) -> None:
    """One that does not answer UNWATCH is closed after SOCKET_TIMEOUT: its place is not lost."""
    proxy = CutProxy(server.port)
    place = Place(socket.AF_INET, ("127.0.0.1", proxy.port), None, None)
    try:
        hub = hubs(server.url, place, concurrency=1, max_connections=4, socket_timeout=0.5)
        client = hub.client()
        assert client.ask("WATCH", "key") == b"+OK\r\n"
        proxy.forget()
        client.socket.close()
        assert hub.client().ask("BLPOP", "nothing", "0.1") == b"*-1\r\n"
    finally:
        proxy.close()


@pytest.mark.parametrize("first", [None, ("WATCH", "key")])
def test_no_error_of_ours_stands_inside_a_reply(
    hubs: Callable[..., Hub], server: EmbeddedServer, redis: Redis, first: tuple[str, str] | None
) -> None:
    """A stream that is given up in the middle of a reply gets no further byte: those of our error would be data."""
    redis.set("large", b"x" * 5_000_000)
    with closing(SlowProxy(server.port, 2_000_000)) as proxy:
        hub = hubs(server.url, Place(socket.AF_INET, ("127.0.0.1", proxy.port), None, None))
        client = hub.client()
        if first is not None:
            assert client.ask(*first) == b"+OK\r\n"
        client.send(("GET", "large"))
        hub.until(lambda: len(client.look()) > 1000, what="the begin of the reply")
        hub.mux.on_away(ServerAway("READONLY"))
        hub.until(lambda: client.look() is not None and client.closed, what="its end")
        begin = b"$5000000\r\n"
        assert client.got.startswith(begin) and set(client.got[len(begin) :]) == set(b"x")
        assert len(client.got) < 5_000_000


def test_wait_in_a_transaction_changes_nothing_in_it(hub: Hub) -> None:
    """What stands for a job's writes before WAIT is no part of a transaction that is sent step by step."""
    client = hub.client()
    assert client.ask("MULTI") == b"+OK\r\n"
    hub.rest(0.05)
    assert client.ask("WAIT", "0", "10") == b"+QUEUED\r\n"
    client.send(("EXEC",))
    client.expect(b"*1\r\n:0\r\n")


def test_wait_behind_a_watch_is_answered(hub: Hub) -> None:
    """What has to wait for the replies to earlier commands of its stream goes on when these have come."""
    client = hub.client()
    client.send(("WATCH", "k"), ("GET", "k"), ("WAIT", "0", "10"), ("GET", "k"))
    client.expect(b"+OK\r\n$-1\r\n:0\r\n$-1\r\n")


@pytest.mark.parametrize(("end", "number"), [(("EXEC",), 3), (("EXEC", "x"), 0)])
def test_a_transaction_without_a_sure_end_is_not_shared(hub: Hub, end: tuple[str, ...], number: int) -> None:
    """EXEC with more words is an error after which old servers are in the transaction still: others would be in it."""
    client = hub.client()
    assert client.ask("SET", "k", "1") == b"+OK\r\n"  # what the command is like is known from here on
    data = pack_commands([("MULTI",), ("SET", "k", "1"), end])
    assert hub.mux._sharing._transaction(data, 0) == (len(data), number, None)


# -- order, and what a job leaves --------------------------------------------------------------------------------------


def test_a_long_reply_costs_the_next_job_nothing(hub: Hub, redis: Redis) -> None:
    """After a long reply a stream is lent connections only until its job ends; the next one shares again."""
    redis.set("long", b"x" * (LONG_REPLY + 1))
    guest = hub.guest()
    client = hub.client(guest)
    client.send(("GET", "long"))
    hub.until(lambda: len(client.look()) > LONG_REPLY + 10)
    client.got = b""
    for command, role in (("LLEN", "exclusive"), ("SCARD", "jobs")):
        assert client.ask(command, "none") == b":0\r\n"
        (name,) = (entry["name"] for entry in redis.client_list() if entry["cmd"] == command.lower())
        assert name.endswith(f":{role}")
        hub.mux.job_ended(guest)


def test_a_reply_that_is_not_read_is_not_the_next_job_s(hub: Hub, redis: Redis) -> None:
    """A stream whose replies wait here because its job did not read them ends with that job."""
    redis.set("long", b"x" * (LONG_REPLY // 2))
    guest = hub.guest()
    hub.client(guest).send(*[("GET", "long")] * 4)
    hub.until(lambda: guest.streams)
    (stream,) = guest.streams
    hub.until(lambda: stream.unread and not stream.pending and not stream.waits_for)
    hub.mux.job_ended(guest)
    assert stream.closed and not guest.unread


def test_half_a_reply_goes_with_its_connection(hub: Hub, redis: Redis) -> None:
    """What had come of a reply when the connection was lost is not put before the first one of the next connection."""
    redis.set("long", b"x" * LONG_REPLY)
    client, other = hub.client(), hub.client()
    assert client.ask("GET", "n") == b"$-1\r\n"
    hub.mux._shared._rest = b"$1048576"  # a header that is cut in the middle
    hub.mux.on_away(ServerAway("READONLY"))
    hub.connect()
    assert other.ask("GET", "n") == b"$-1\r\n"


@pytest.mark.parametrize("error", [RedisConnectionError("Connection closed by server."), ServerAway("LOADING")])
def test_only_a_server_that_does_not_serve_costs_a_job_its_connections(
    hub: Hub, redis: Redis, error: Exception
) -> None:
    """Where the server closed just the command connection, what jobs wait for still comes; what is idle is closed."""
    idle, shared, waiting = hub.client(), hub.client(), hub.client()
    assert idle.ask("BLPOP", "nothing", "0.01") == b"*-1\r\n" and len(by_role(redis, "exclusive")) == 1
    assert shared.ask("GET", "n") == b"$-1\r\n"
    waiting.send(("BLPOP", "a", "5"))
    assert idle.ask("BLPOP", "nothing", "0.01") == b"*-1\r\n"
    hub.until(lambda: redis.info("clients")["blocked_clients"] == 1, what="one that waits")
    assert len(by_role(redis, "exclusive")) == 2
    hub.mux.on_away(error)
    stands = not isinstance(error, ServerAway)
    hub.until(lambda: len(by_role(redis, "exclusive")) == stands and not by_role(redis, "jobs"))
    redis.rpush("a", "x")
    hub.until(waiting.look)
    assert waiting.got.startswith(b"*2" if stands else b"-RQPOOLED LOST")
    assert shared.ask("GET", "n") == b"$-1\r\n", "idle connections cost nothing"


def test_a_reply_that_the_shared_connection_owes_still_comes(
    hubs: Callable[..., Hub], start_server: Callable[..., EmbeddedServer]
) -> None:
    """A command on the shared connection is answered although the command connection was closed meanwhile."""
    server = start_server()
    hub = hubs(server.url)
    client = hub.client()
    assert client.ask("INCR", "n") == b":1\r\n"
    server.pause()
    client.send(("INCR", "n"))
    hub.until(lambda: hub.mux._shared._owed)
    hub.mux.on_away(RedisConnectionError("Connection closed by server."))
    server.resume()
    hub.until(client.look)
    assert client.got == b":2\r\n"


def test_after_a_failover_no_connection_leads_to_the_former_server(
    hubs: Callable[..., Hub], start_server: Callable[..., EmbeddedServer]
) -> None:
    """Where the command connection comes back at another address, the jobs' connections are closed with a reason."""
    former, now = start_server(), start_server()
    hub = hubs(former.url)
    places = [hub.command.place()]
    hub.mux._place = lambda: places[0]
    client = hub.client()
    client.send(("BLPOP", "a", "5"))
    hub.until(lambda: former.client().info("clients")["blocked_clients"] == 1)
    hub.mux.on_back()
    assert by_role(former.client(), "exclusive"), "the same server"
    places[0] = replace(places[0], address=("127.0.0.1", now.port))
    hub.mux.on_back()
    hub.until(client.look)
    assert b"-RQPOOLED LOST the server is another one now" in client.got


def test_places_that_others_may_have_are_not_kept(hub: Hub, redis: Redis) -> None:
    """Once the lease of the budget is overdue, jobs' connections are closed: others may be given their places."""
    lease = SimpleNamespace(overdue=False, granted=9, crowded=False, command=None)
    hub.mux._lease = lease
    client = hub.client()
    client.send(("BLPOP", "a", "5"))
    hub.until(lambda: redis.info("clients")["blocked_clients"] == 1)
    lease.overdue = True
    hub.until(client.look)
    assert b"-RQPOOLED LOST" in client.got and b"BUDGET" in client.got


def test_a_node_that_refuses_answers_what_was_sent(hub: Hub, redis: Redis) -> None:
    """Where the command connection was refused and not lost (a slot that moved), what jobs have sent is answered."""
    refused = ConnectionError("MOVED")
    refused.__cause__ = TryAgainError("the slot is not served here now")
    guest = hub.guest()
    client, lent = hub.client(guest), hub.client(guest)
    assert client.ask("SET", "n", "1") == b"+OK\r\n"
    before = hub.mux._shared._upstream
    client.send(("INCR", "n"))
    lent.send(("BLPOP", "list", "20"))
    hub.until(lambda: hub.mux._shared._owed and hub.mux.connections()["exclusive"])
    hub.mux.on_away(refused)
    hub.until(client.look)
    assert client.got == b":2\r\n"
    client.got = b""
    redis.rpush("list", "word")
    hub.until(lent.look)
    assert lent.got.endswith(b"word\r\n")
    assert client.ask("GET", "n") == b"$1\r\n2\r\n" and hub.mux._shared._upstream is not before


def test_what_is_under_way_on_the_shared_connection_is_bounded(hubs: Callable[..., Hub], start_server: Any) -> None:
    """Commands of which each is short go over the shared connection as far as they are short together: one horse that
    sends on and on without reading holds up no other."""
    server = start_server()
    hub = hubs(server.url)
    guest = hub.guest()
    client, value = hub.client(guest), b"x" * 30_000
    assert client.ask("SET", "k", value) == b"+OK\r\n"
    (stream,) = guest.streams
    server.pause()
    most = 0
    for _ in range(5):
        client.send(("SET", "k", value))
        hub.until(lambda: not select.select([stream._socket], [], [], 0)[0] or stream.waits_for, what="a look at it")
        most = max(most, stream.under_way)
    server.resume()
    assert 30_000 < most <= LONG_REQUEST
    client.expect(b"+OK\r\n" * 5)


def test_a_server_that_takes_nothing_makes_the_sender_wait(hubs: Callable[..., Hub], start_server: Any) -> None:
    """What a lent connection cannot get rid of is left in the stream that sends it: memory of the parent is bounded."""
    server = start_server()
    hub = hubs(server.url)
    guest = hub.guest()
    client = hub.client(guest)
    assert client.ask("WATCH", "k") == b"+OK\r\n"
    (upstream,) = hub.mux._lending._lent
    server.pause()
    rest = memoryview(pack_commands([("SET", "k", b"x" * 40_000_000)]))
    while select.select([], [client.socket], [], 0.2)[1]:
        rest = rest[client.socket.send(rest[: 1 << 20]) :]
        hub.rest(0.01)
        assert upstream.unsent <= _MOST_UNSENT + 64 * 1024
    assert upstream.unsent > _MOST_UNSENT and len(rest) > 10_000_000
    server.resume()
    while rest:
        hub.turn()
        if select.select([], [client.socket], [], 0)[1]:
            rest = rest[client.socket.send(rest[: 1 << 20]) :]
    client.expect(b"+OK\r\n", 20)


def test_strangers_are_few_and_do_not_stay(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not say whose stream it is costs at most 100 descriptors, for a moment, and keeps nobody out."""
    monkeypatch.setattr(guests, "_STRANGER_TIME", 2.0)
    own = hub.client()
    assert own.ask("PING") == b"+PONG\r\n"
    strangers = [socket.socket(socket.AF_UNIX) for _ in range(120)]

    def is_closed(one: socket.socket) -> bool:
        return bool(select.select([one], [], [], 0)[0]) and not one.recv(1)

    try:
        for stranger in strangers:
            stranger.connect(hub.mux.path)
            hub.turn()
        hub.until(lambda: sum(map(is_closed, strangers)) >= 20)
        assert all(map(is_closed, strangers[:20])) and not any(map(is_closed, strangers[20:]))
        assert len(hub.mux._guests.strangers) == 100
        assert hub.client().ask("PING") == b"+PONG\r\n"
        hub.until(lambda: all(map(is_closed, strangers)))
        assert own.ask("PING") == b"+PONG\r\n" == hub.client().ask("PING")
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_full_server_is_left_all_lent_connections_but_one(hub: Hub) -> None:
    """Above GUARD_STOP what comes back is closed, for others wait for it; with one the own streams get on."""
    watching = [hub.client() for _ in range(3)]
    assert [client.ask("WATCH", "key") for client in watching] == [b"+OK\r\n"] * 3
    assert hub.mux.connections()["exclusive"] == 3
    hub.mux._lending._brake.engaged = True
    assert [client.ask("UNWATCH") for client in watching] == [b"+OK\r\n"] * 3
    hub.until(lambda: hub.mux.connections()["exclusive"] == 1)
    assert watching[0].ask("WATCH", "key") == b"+OK\r\n"


def test_the_token_of_a_horse_that_ended_opens_nothing(hub: Hub) -> None:
    """What a dead horse has left running is a stranger from then on."""
    guest = hub.guest()
    assert hub.client(guest).ask("PING") == b"+PONG\r\n"
    hub.mux.drop(guest)
    late = hub.client(guest)
    late.send(("PING",))
    hub.until(lambda: late.look() or late.closed)
    assert late.closed and not late.got


def test_a_transaction_that_is_left_open_costs_no_connection(hub: Hub, redis: Redis) -> None:
    """A stream that ends inside MULTI gives its connection back without it: the next stream has the same one."""
    left = hub.client()
    left.send(("MULTI",), ("SET", "never", "1"))
    hub.until(lambda: left.look().count(b"\r\n") == 2)
    before = by_role(redis, "exclusive")
    left.socket.close()
    hub.until(lambda: any(entry["cmd"] == "discard" for entry in redis.client_list()))
    assert hub.client().ask("BLPOP", "nothing", "0.1") == b"*-1\r\n"
    assert by_role(redis, "exclusive") == before and not redis.exists("never")


def test_what_was_not_sent_when_the_connection_was_lost_is_not_sent_later(hub: Hub, redis: Redis) -> None:
    """A command that was taken in the turn in which the server closed the connection fails, and is never done."""
    guest = hub.guest()
    client, other = hub.client(guest), hub.client()
    assert client.ask("GET", "n") == other.ask("GET", "n") == b"$-1\r\n"
    assert client.ask("INCR", "known") == b":1\r\n"  # else the server is asked what the command is like
    (stream,) = guest.streams
    client.send(("INCR", "n"))
    assert select.select([stream._socket], [], [], 5)[0]
    hub.mux._serve_one(stream)
    hub.mux.on_away(ServerAway("READONLY"))
    hub.until(lambda: client.look())
    assert client.got.startswith(b"-RQPOOLED LOST")
    assert other.ask("GET", "n") == b"$-1\r\n", "nobody gets the reply to another's command"
    assert not redis.exists("n")


def test_refusals_of_another_day_do_not_delay_a_connection(hub: Hub) -> None:
    """The pause before the next try grows from refusal to refusal, and begins anew after a connection was opened."""
    settings = Settings(url=hub.settings.url, reconnect_base=0.01, reconnect_cap=10)
    opener = Opener(hub.loop, settings, hub.dialer, hub.command.place, Brake(), lambda *_: None)
    opened: list[Any] = []

    def refused() -> float:
        began, again = time.monotonic(), list[int]()
        assert opener.open("jobs", *[lambda *_: None] * 4, lambda: again.append(1), lambda: False) is None
        hub.until(lambda: again)
        return time.monotonic() - began

    assert max(refused() for _ in range(7)) > 0.2
    assert opener.open("jobs", opened.append, *[lambda *_: None] * 4) is not None
    hub.until(lambda: opened)
    assert opener.reason == "" and refused() < 0.2
    opened[0].close()


def test_what_a_job_sent_last_is_not_done_after_its_end(hub: Hub, redis: Redis) -> None:
    """A command that the parent has not read when the job ends dies with its stream: the next job would get its
    reply.
    """
    guest = hub.guest()
    client = hub.client(guest)
    assert client.ask("PING") == b"+PONG\r\n"
    client.send(("BLPOP", "list", "0"))
    hub.mux.job_ended(guest)
    hub.until(lambda: client.look() or client.closed, what="the end of the stream")
    assert client.closed and not client.got
    redis.rpush("list", "x")
    hub.rest(0.05)
    assert redis.llen("list") == 1


def test_what_a_job_sent_last_over_a_new_stream_is_not_done_after_its_end(hub: Hub, redis: Redis) -> None:
    """The same for a stream that has not even said whose it is."""
    guest = hub.guest()
    client = hub.client(guest)
    hub.loop.turn(1)
    client.send(("BLPOP", "list", "0"))
    hub.mux.job_ended(guest)
    hub.until(lambda: client.look() or client.closed, what="the end of the stream")
    redis.rpush("list", "x")
    hub.rest(0.05)
    assert redis.llen("list") == 1


def test_a_stream_in_order_outlives_its_job(hub: Hub) -> None:
    """A connection that was left clean is used by the next job of that horse."""
    guest = hub.guest()
    client = hub.client(guest)
    assert client.ask("PING") == b"+PONG\r\n"
    hub.mux.job_ended(guest)
    assert client.ask("PING") == b"+PONG\r\n"


def test_commands_are_sent_once_when_the_table_cannot_be_asked(hub: Hub, redis: Redis) -> None:
    """Whether the server tells at once, later or never what a command is like: those before it are sent once."""
    client = hub.client()
    assert client.ask("PING") == b"+PONG\r\n"
    assert client.ask("INCR", "number") == b":1\r\n"
    hub.command.close()
    client.send(("INCR", "number"), ("STRLEN", "number"), ("INCR", "number"))
    client.expect(b":2\r\n")
    hub.rest(0.1)
    hub.connect()
    client.expect(b":1\r\n:3\r\n")
    assert redis.get("number") == b"3"


def test_a_lost_answer_is_no_answer(hub: Hub, redis: Redis) -> None:
    """What a command is like is asked again after an outage: one that the built-in table does not know may be
    shared.
    """
    client = hub.client()
    assert client.ask("PING") == b"+PONG\r\n"
    hub.command.close()
    client.send(("LOLWUT", "VERSION", "1"))
    hub.rest(0.1)
    hub.connect()
    hub.until(lambda: client.look(), what="the picture")
    assert not by_role(redis, "exclusive")


@pytest.mark.parametrize("last", [("EXEC", "x"), ("EXEC",), ("DISCARD",)])
def test_a_refused_transaction_ends_where_the_next_stream_s_commands_begin(hub: Hub, last: tuple[str, ...]) -> None:
    """Whatever a job sends for an EXEC, nobody else's command is queued in its transaction."""
    client, other = hub.client(), hub.client()
    assert other.ask("PING") == b"+PONG\r\n"
    for words in (("MULTI",), ("MULTI", "x")):
        client.send(words, ("SET", "key"), last)
        hub.until(lambda: client.look().count(b"\r\n") >= 3, what="three replies")
        client.got = b""
        assert other.ask("ECHO", "mine") == b"$4\r\nmine\r\n"


def test_many_refusals_at_once_count_as_one(
    hubs: Callable[..., Hub], start_server: Callable[..., EmbeddedServer]
) -> None:
    """Ten streams that wait for connections of their own from a full server get them soon after it has room."""
    server = start_server({"maxclients": 11})
    hub = hubs(server.url, concurrency=10)
    assert hub.client().ask("PING") == b"+PONG\r\n"
    assert hub.client().ask("WATCH", "key") == b"+OK\r\n"
    crowd = []
    for _ in range(8):
        crowd.append(socket.create_connection((server.host, server.port)))
        crowd[-1].sendall(b"PING\r\n")
        crowd[-1].recv(7)
    waiting = [hub.client() for _ in range(10)]
    for client in waiting:
        client.send(("BLPOP", "nothing", "0.05"))
    hub.rest(0.3)
    for one in crowd:
        one.close()
    hub.until(lambda: all(client.look() for client in waiting), 1.5, "all replies")
    assert all(client.got == b"*-1\r\n" for client in waiting)


@pytest.mark.parametrize(
    "reply",
    [
        b"*1\r\n$3\r\nfoo\r\n",
        b"%1\r\n+a\r\n:1\r\n",
        b"|1\r\n+a\r\n:1\r\n*1\r\n:2\r\n",
        b"*1\r\n*1\r\n*0\r\n",
        b"$-1\r\n",
    ],
)
def test_a_reply_of_which_a_part_is_gone_counts_as_begun(reply: bytes) -> None:
    """An error of the parent's never ends up inside a reply, wherever that was cut."""
    for at in range(len(reply)):
        cutter = ReplyCutter()
        position, done = cutter.cut(reply[:at], 0)
        assert not done and cutter.fresh == (position == 0), reply[:at]
        assert cutter.cut(reply, position) == (len(reply), True)


def test_a_connection_in_use_is_not_idle(hubs: Callable[..., Hub], server: EmbeddedServer, redis: Redis) -> None:
    """The shared connection is closed MAX_IDLE seconds after it was last used, not while short commands use it."""
    hub = hubs(server.url, max_idle=1)
    client = hub.client()
    assert client.ask("PING") == b"+PONG\r\n"
    first = by_role(redis, "jobs")
    for _ in range(12):
        hub.rest(0.2)
        assert client.ask("PING") == b"+PONG\r\n"
    assert by_role(redis, "jobs") == first
    hub.until(lambda: not by_role(redis, "jobs"), what="its end")


# -- large and slow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(20_000, 3_000), (2_000, 20_000), (100_000, 600)])
def test_a_pipeline_with_long_replies_is_no_horse_that_does_not_read(
    hub: Hub, redis: Redis, count: int, size: int
) -> None:
    """A client that writes all its commands before it reads, as redis-py does, gets all replies; the others go on."""
    redis.set("value", b"x" * size)
    client, other = hub.client(), hub.client()
    assert other.ask("PING") == b"+PONG\r\n"
    got = []

    def run() -> None:
        client.socket.setblocking(True)
        client.socket.sendall(pack_commands([("GET", "value")]) * count)
        left = count * len(b"$%d\r\n%b\r\n" % (size, b"x" * size))
        while left > 0 and (data := client.socket.recv(1 << 20)):
            left -= len(data)
        got.append(left)

    thread = threading.Thread(target=run)
    thread.start()
    hub.until(lambda: not thread.is_alive(), 30, "the replies")
    thread.join()
    assert got == [0] and not hub.said
    assert other.ask("PING") == b"+PONG\r\n"


# -- where connections lead --------------------------------------------------------------------------------------------


def test_a_unix_socket_is_found_by_the_path_that_the_url_has(
    hubs: Callable[..., Hub], start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """The server may know its socket by another path: in a container it has another mount."""
    start_server({"unixsocket": str(tmp_path / "server.sock")})
    (tmp_path / "server.sock").rename(tmp_path / "ours.sock")
    hub = hubs(f"unix://{tmp_path}/ours.sock")
    assert hub.client().ask("PING") == b"+PONG\r\n"


class Introducing(Connection):
    """Logs in as only it knows, as classes for the tokens of a cloud do."""

    def on_connect(self) -> None:
        """Log in."""
        self.username, self.password = "default", "secret"
        super().on_connect()

    if hasattr(Connection, "on_connect_check_health"):  # redis-py 6.3

        def on_connect_check_health(self, check_health: bool = True) -> None:
            """Log in."""
            self.username, self.password = "default", "secret"
            super().on_connect_check_health(check_health)


def test_a_connection_class_that_logs_in_its_own_way_is_asked(
    hubs: Callable[..., Hub], start_server: Callable[..., EmbeddedServer]
) -> None:
    """What an overridden on_connect does is done for the jobs' connections too."""
    server = start_server({"requirepass": "secret"})
    with Redis(connection_pool=ConnectionPool(Introducing, host=server.host, port=server.port)) as client:
        hub = hubs(server.url, client=client)
        assert hub.client().ask("SET", "key", "value") == b"+OK\r\n"
        assert hub.client().ask("BLPOP", "nothing", "0.1") == b"*-1\r\n"


# -- the parent's own socket -------------------------------------------------------------------------------------------


def test_a_socket_that_was_removed_is_made_again(hub: Hub) -> None:
    """Something cleans /tmp under a worker that has run for weeks: horses find their parent at the same path again."""
    guest = hub.guest()
    before = hub.client(guest)
    shutil.rmtree(os.path.dirname(hub.mux.path))
    hub.until(lambda: os.path.exists(hub.mux.path), what="the socket")
    assert os.stat(os.path.dirname(hub.mux.path)).st_mode & 0o777 == 0o700
    assert before.ask("PING") == hub.client(guest).ask("PING") == b"+PONG\r\n"
    assert any("was removed" in line for line in hub.said)


def test_a_socket_that_another_process_has_put_there_is_replaced(hub: Hub, tmp_path: Path) -> None:
    """What listens at the path after a cleaner, and is not the parent's, is noticed, and horses find their parent."""
    guest, path = hub.guest(), hub.mux.path
    shutil.rmtree(os.path.dirname(path))
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        hub.until(lambda: hub.said, what="the warning")
        assert "was removed" in hub.said[-1]
        assert hub.client(guest).ask("PING") == b"+PONG\r\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_no_token_is_shown_to_another_user(hub: Hub) -> None:
    """A horse that finds another user's process at the path of its parent's socket says nothing there."""
    path, heard = hub.mux.path, os.pipe()
    shutil.rmtree(os.path.dirname(path))
    folder = os.path.dirname(path)
    os.mkdir(folder)
    os.chown(folder, 65534, 65534)
    listening = os.fork()
    if not listening:
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            os.chmod(path, 0o777)
            other.listen()
            os.write(heard[1], b"listens.")
            os.write(heard[1], other.accept()[0].recv(100) + b"end")
        os._exit(0)
    os.close(heard[1])
    try:
        with open(heard[0], "rb", buffering=0) as said:
            assert said.read(8) == b"listens."
            door = replace(hub.mux.door(hub.guest().token), path=path)
            connection = stream_class(door)(**stream_options({}, door, "job"))
            with pytest.raises(RedisConnectionError, match="is another user's"):
                connection.connect()
            connection.disconnect()
            assert said.read() == b"end"
        hub.until(lambda: hub.said, what="the warning")
        assert "has another owner now" in hub.said[-1] and len(hub.said) == 1
        hub.rest(2.5)
        assert len(hub.said) == 1
    finally:
        os.waitpid(listening, 0)
        shutil.rmtree(folder, ignore_errors=True)


def test_questions_without_end_cost_a_look_at_a_time(hub: Hub, redis: Redis) -> None:
    """However often processes ask who holds the connections, the server lists its clients four times a second."""

    def lists() -> int:
        stats: Any = redis.info("commandstats")
        return sum(value["calls"] for name, value in stats.items() if name == "cmdstat_client|list")

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as asker:
            asker.connect(hub.mux.path)
            asker.sendall(b"who\n")
            asker.setblocking(False)
            answer = bytearray()

            def is_answered() -> bool:
                with suppress(BlockingIOError):
                    answer.extend(asker.recv(1 << 20))
                return answer.endswith(b"\n")

            hub.until(is_answered, what="the answer")
            return bytes(answer)

    with socket.socket(socket.AF_UNIX) as greedy:
        greedy.connect(hub.mux.path)
        greedy.settimeout(20)
        for _ in range(50):
            greedy.sendall(b"who\n")
            hub.turn()
        hub.until(lambda: not hub.mux._guests.strangers, 20, what="the end of its time")
        answers = b""
        with suppress(ConnectionResetError):
            while piece := greedy.recv(1 << 20):
                answers += piece
        assert answers.count(b"\n") == 1, "who asks is answered once"
    before, begun, asked = lists(), time.monotonic(), 0
    while time.monotonic() - begun < 1.0:
        assert b"addr=" in ask()
        asked += 1
    assert asked >= 2 and lists() - before <= 6


def test_workers_that_start_together_leave_each_other_s_socket(tmp_path: Path, server: EmbeddedServer) -> None:
    """A socket that is not listened at yet is not at the path where others look for stale ones."""
    seen = []

    class Slow(socket.socket):
        def listen(self, *args: Any) -> None:
            seen.append([name for name in tmp_path.glob("rq_pooled-*/jobs.sock")])
            super().listen(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        patch.setattr(listener.socket, "socket", Slow)
        Hub(server.url).close()
    assert seen == [[]]


def test_a_horse_that_dies_with_unread_replies_holds_nobody_up(hub: Hub, redis: Redis) -> None:
    """The others' replies are read again at once, not after the second that it would have had."""
    redis.set("value", b"x" * 300_000)
    guest, other = hub.guest(), hub.client()
    flood = hub.client(guest)
    assert other.ask("PING") == b"+PONG\r\n"
    flood.send(*[("GET", "value")] * 30)
    hub.until(lambda: guest.unread > MOST_UNREAD, what="many unread bytes")
    hub.mux.drop(guest)
    started = time.monotonic()
    assert other.ask("PING") == b"+PONG\r\n"
    assert time.monotonic() - started < 0.7


def test_no_turn_is_long_for_a_horse_that_floods(hub: Hub) -> None:
    """Of ten thousand commands that have arrived together, each turn of the loop passes on some, so that others have
    theirs.
    """
    greedy, pong, commands = hub.client(), b"+PONG\r\n", 10_000
    greedy.send(("ECHO", "ready"))
    greedy.expect(b"$5\r\nready\r\n")
    greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    greedy.send(*[("PING",)] * commands)
    passed = [0]
    while passed[-1] < commands:
        hub.turn()
        passed.append(len(greedy.look()) // len(pong))
    assert max(after - before for before, after in itertools.pairwise(passed)) <= 32 * 1024 // len(pong)


@pytest.mark.parametrize("words", [("SUBSCRIBE", "a"), ("PSUBSCRIBE", "a*"), ("SSUBSCRIBE", "a")])
def test_who_gets_a_subscriber_s_connection_hears_nothing(hub: Hub, redis: Redis, words: tuple[str, ...]) -> None:
    """What is published while a subscription is being ended reaches nobody, least of all the next one on its
    connection.
    """
    if not redis.execute_command("COMMAND", "INFO", words[0]):
        pytest.skip("no shard channels before Redis 7")
    publish = redis.spublish if words[0] == "SSUBSCRIBE" else redis.publish
    subscriber, identity = hub.client(), None
    for _ in range(5):
        assert subscriber.ask(*words)
        for _ in range(100):
            publish("a", "x" * 1000)
        subscriber.socket.close()
        while hub.mux._lending._lent:
            publish("a", "late")
            hub.turn()
        other = hub.client()
        assert other.ask("BLPOP", "nothing", "0.01").startswith((b"*-1", b"_"))
        found = [entry["id"] for entry in redis.client_list() if entry["name"].endswith(":exclusive")]
        assert len(found) == 1 and identity in (None, *found)
        identity, subscriber = found[0], hub.client()


def test_a_stream_that_is_not_accepted_yet_ends_with_its_job(hub: Hub) -> None:
    """A job's last stream that waits to be accepted when the job ends is closed, and owes the next job nothing."""
    guest = hub.guest()
    client = hub.client(guest)
    client.send(("ECHO", "of the last job"))
    hub.mux.job_ended(guest)
    hub.until(lambda: client.look() or client.closed, what="the end of the stream")
    assert client.closed and client.got == b""
