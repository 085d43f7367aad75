"""The reconnector alone: when the server counts as lost, who hears of it, and how it is sought."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from parts import context_of
from redis.exceptions import ConnectionError as RedisConnectionError

from rq_pooled.parent.events import Events
from rq_pooled.parent.exchange import Exchange
from rq_pooled.parent.reconnector import IMPATIENT, Reconnector

CUT = RedisConnectionError("cut")


class Parts:
    """A reconnector, and what was heard of it."""

    def __init__(self, lease: Any = None, **settings: Any) -> None:
        self.context = context_of(reconnect_base=0.1, reconnect_cap=3.0, socket_timeout=5.0, **settings)
        object.__setattr__(self.context, "lease", lease)
        self.events, self.heard = Events(), list[Any]()
        self.events.server_lost.append(self.heard.append)
        self.events.server_back.append(lambda: self.heard.append("back"))
        self.reconnector = Reconnector(
            self.context,
            self.events,
            on_wakeup=lambda: self.heard.append("woken"),
            on_command=lambda channel, payload: self.heard.append((channel, payload)),
            on_given_up=lambda error: self.heard.append(f"given up: {error}"),
        )

    def lose(self, *errors: Exception) -> None:
        """Lose the server; so many attempts to reconnect will fail."""
        self.context.command.errors += errors
        self.context.command.lose(CUT)
        self.reconnector.check()


def test_a_loss_is_told_once_and_the_server_is_sought() -> None:
    """Who waits for a reply hears of the loss first, then the parts, once; back is told after both connections are."""
    parts = Parts()
    parts.context.command.submit(Exchange([("PING",)], on_lost=lambda _error: parts.heard.append("exchange")))

    def broken() -> Any:
        raise CUT

    parts.context.listen.ping = broken
    parts.reconnector.probe()
    parts.reconnector.check()
    assert parts.heard[0] == "exchange" and len(parts.heard) == 2 and len(parts.context.loop.later) == 1
    assert 0 < parts.context.loop.fire() <= 0.2
    assert parts.heard[2:] == ["back"] and parts.context.counters.reconnects == 1


def test_an_odd_reply_is_no_last_attempt() -> None:
    """Whatever an attempt raises, such as redis-py where a sentinel answers nil, another one follows."""
    parts = Parts()
    parts.lose(TypeError("'NoneType' object is not iterable"))
    for _ in range(2):
        parts.context.loop.fire()
    assert parts.heard[1:] == ["back"]


def test_attempts_grow_rarer_and_most_are_impatient() -> None:
    """The pauses between attempts grow; each fourth attempt gives a slow server the usual time to answer."""
    parts = Parts()
    parts.lose(*[CUT] * 8)
    delays = [parts.context.loop.fire() for _ in range(9)]
    assert parts.heard[1:] == ["back"] and sum(delays[6:]) > 4 * sum(delays[:3])
    assert parts.context.command.patience == [*[IMPATIENT] * 3, None] * 2 + [IMPATIENT]


def test_a_server_that_only_takes_connections_is_not_back() -> None:
    """A server that closes each connection at the first question gets no quick attempts; one that answered does."""
    parts = Parts()
    parts.lose(*[CUT] * 6)
    while parts.context.loop.later:
        last = parts.context.loop.fire()
    parts.context.command.answered = False
    parts.lose()
    assert parts.context.loop.fire() > last / 2 > 0.2
    parts.context.command.answered = True
    parts.lose()
    assert parts.context.loop.fire() <= 0.2


def test_a_worker_gives_up_when_it_is_told_to(caplog: pytest.LogCaptureFixture) -> None:
    """After RECONNECT_ATTEMPTS attempts nothing more is tried, and each reason stands in the log once."""
    parts = Parts(reconnect_attempts=3)
    parts.lose(*[RedisConnectionError("refused")] * 3)
    while parts.context.loop.later:
        parts.context.loop.fire()
    assert parts.heard[1:] == ["given up: refused"] and not parts.context.command.connected
    said = [message for message in caplog.messages if "cannot reconnect yet" in message]
    assert said == ["Worker w: cannot reconnect yet: refused"]


def test_after_a_pause_nothing_is_sent_before_the_place_is_sure() -> None:
    """A lease of the budget that is overdue closes the connections at once, and is renewed before they are opened."""
    order: list[str] = []
    lease = SimpleNamespace(overdue=True, ensure=lambda: order.append("lease"))
    parts = Parts(lease)
    connect = parts.context.command.connect
    parts.context.command.connect = lambda patience: (order.append("connect"), connect(patience))
    parts.reconnector.check_lease()
    assert not parts.context.command.connected and len(parts.heard) == 1
    parts.context.loop.fire()
    assert order == ["lease", "connect"] and parts.heard[1:] == ["back"]


def test_what_the_listening_connection_says_is_passed_on() -> None:
    """Wake-ups and control commands are passed on in their order; an error there loses both connections."""
    parts = Parts()
    parts.context.listen.drain = lambda: (True, [("channel", {"command": "shutdown"})])
    parts.reconnector._on_listen_readable()
    assert parts.heard == ["woken", ("channel", {"command": "shutdown"})]

    def broken() -> Any:
        raise CUT

    parts.context.listen.drain = broken
    parts.reconnector._on_listen_readable()
    assert parts.heard[2:] == [CUT] and not parts.context.command.connected
