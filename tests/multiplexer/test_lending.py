"""A connection that was lent is given back as it was: nobody's subscription, transaction or reply is left on it."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import Redis

from rq_pooled.connection.framing import ReplyCutter
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.multiplexer.loan import Loan
from rq_pooled.wire import pack_commands

COMMANDS: list[tuple[bytes, ...]] = [
    *((b"SUBSCRIBE", b"a"), (b"subscribe", b"a", b"b"), (b"PSUBSCRIBE", b"a*"), (b"SSUBSCRIBE", b"a")),
    *(
        (b"UNSUBSCRIBE",),
        (b"UNSUBSCRIBE", b"a"),
        (b"unsubscribe", b"a", b"x", b"b"),
        (b"PUNSUBSCRIBE",),
        (b"SUNSUBSCRIBE",),
    ),
    *(
        (b"WATCH", b"k"),
        (b"UNWATCH",),
        (b"MULTI",),
        (b"multi",),
        (b"EXEC",),
        (b"DISCARD",),
        (b"EXEC", b"x"),
        (b"MULTI", b"x"),
    ),
    *(
        (b"WATCH",),
        (b"INCR", b"k"),
        (b"DISCARD", b"x"),
        (b"UNWATCH", b"x"),
        (b"no.such",),
        (b"BLPOP", b"none", b"0.001"),
        (b"PING",),
        (b"CLIENT", b"GETNAME"),
    ),
]
#: Written at once; then replies are read, or not.
groups = st.lists(
    st.tuples(st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=4), st.booleans()), min_size=1, max_size=5
)


class Line:
    """A connection to the server that is lent, as ``Lending`` has it, reply by reply."""

    def __init__(self, server: EmbeddedServer, admin: Redis, protocol: int) -> None:
        self._server, self._admin, self._protocol = server, admin, protocol
        self.loan = Loan()
        self.given_back = 0
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection((self._server.host, self._server.port), timeout=10)
        self._rest = b""
        _hello, number = self._ask(("HELLO", str(self._protocol)), ("CLIENT", "ID"))
        self._id = number.strip(b":\r\n").decode()

    def _next(self) -> tuple[bytes, bool]:
        while True:
            cutter = ReplyCutter()
            end, done = cutter.cut(self._rest, 0)
            if done:
                reply, self._rest = self._rest[:end], self._rest[end:]
                return reply, cutter.push
            data = self._socket.recv(65536)
            assert data, "the server has closed the connection"
            self._rest += data

    def send(self, commands: Sequence[Sequence[bytes]]) -> None:
        """Send commands of the stream that has it."""
        for words in commands:
            self.loan.note(words)
        self._socket.sendall(pack_commands(commands))

    def read(self, patience: float) -> None:
        """Take replies until none comes for a moment; look at each whether the loan is over."""
        while self._rest or select.select([self._socket], [], [], patience)[0]:
            self.loan.note_reply(*self._next())
            if self.loan.is_over:
                self._check()

    def _ask(self, *commands: Sequence[str]) -> list[bytes]:
        self._socket.sendall(pack_commands(commands))
        replies = [self._next() for _ in commands]
        assert not any(is_push for _, is_push in replies)
        return [reply for reply, _ in replies]

    def _check(self) -> None:
        """The next one gets a connection without any state, whose next reply is its own; or one is closed in doubt."""
        loan, self.loan = self.loan, Loan()
        assert not loan.pending
        self.given_back += 1
        if loan.doubtful and self._ask(("UNWATCH",)) != [b"+OK\r\n"]:
            self.close()
            self._open()
            return
        assert self._ask(("ECHO", "mine")) == [b"$4\r\nmine\r\n"]
        self._admin.incr("k")
        assert self._ask(("MULTI",), ("ECHO", "mine"), ("EXEC",))[2] == b"*1\r\n$4\r\nmine\r\n"
        (entry,) = (one for one in self._admin.client_list() if one["id"] == self._id)
        assert entry["sub"] == entry["psub"] == "0" == entry.get("ssub", "0")

    def close(self) -> None:
        """Close it."""
        self._socket.close()


@pytest.mark.parametrize("protocol", [2, 3])
@given(groups)
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([([(b"SUBSCRIBE", b"a"), (b"UNSUBSCRIBE", b"a"), (b"SUBSCRIBE", b"a")], True)])
@example([([(b"SUBSCRIBE", b"a"), (b"SSUBSCRIBE", b"a"), (b"SUNSUBSCRIBE",)], True)])
@example([([(b"SUBSCRIBE", b"a"), (b"UNSUBSCRIBE",), (b"PING",)], True)])
@example([([(b"unsubscribe", b"a", b"x", b"b")], True)])
@example([([(b"MULTI",), (b"EXEC", b"x")], True)])
@example([([(b"MULTI",)], True), ([(b"MULTI",), (b"INCR", b"k"), (b"EXEC",)], True)])
@example([([(b"WATCH", b"k"), (b"WATCH",)], True), ([(b"EXEC",)], True)])
@example([([(b"WATCH", b"k"), (b"EXEC",)], True)])
@example([([(b"MULTI",), (b"DISCARD", b"x")], True)])
@example([([(b"MULTI",), (b"SUBSCRIBE", b"a"), (b"UNSUBSCRIBE",), (b"EXEC",)], True)])
def test_what_is_given_back_is_as_it_was(
    server: EmbeddedServer, redis: Redis, protocol: int, written: list[tuple[list[tuple[bytes, ...]], bool]]
) -> None:
    """Whatever was sent and however replies come in between: when a loan is over nothing of it is left."""
    line = Line(server, redis, protocol)
    try:
        for commands, reads in written:
            line.send(commands)
            if reads:
                line.read(0.005)
        line.read(0.02)
    finally:
        line.close()


@pytest.mark.parametrize(
    "commands",
    [
        [[b"BLPOP", b"none", b"0.001"]],
        [[b"WATCH", b"k"], [b"UNWATCH"]],
        [[b"WATCH", b"k"], [b"MULTI"], [b"INCR", b"k"], [b"EXEC"]],
        [[b"MULTI"], [b"UNWATCH"], [b"DISCARD"]],
        [[b"SUBSCRIBE", b"a", b"b"], [b"UNSUBSCRIBE"]],
        [[b"SSUBSCRIBE", b"a"], [b"SUNSUBSCRIBE", b"a"]],
    ],
    ids=lambda commands: " ".join(command[0].decode() for command in commands),
)
@pytest.mark.parametrize("protocol", [2, 3])
def test_what_has_ended_is_given_back(
    server: EmbeddedServer, redis: Redis, protocol: int, commands: list[list[bytes]]
) -> None:
    """The reply, EXEC, UNWATCH and the last unsubscription end a loan: a connection is not held until its stream
    closes.
    """
    if commands[0][0] == b"SSUBSCRIBE" and not redis.execute_command("COMMAND", "INFO", "SSUBSCRIBE"):
        pytest.skip("no shard channels before Redis 7")
    line = Line(server, redis, protocol)
    for command in commands:
        line.send([command])
        line.read(0.3)
    assert line.given_back == 1
    line.close()


def test_the_longest_wait_of_a_pipeline_counts() -> None:
    """What is sent behind a command that waits in the server takes nothing of its time."""
    loan = Loan()
    for words in ([b"BLPOP", b"key", b"10"], [b"LPUSH", b"key", b"1"]):
        loan.note(words)
    assert loan.patience == 10
    loan.note([b"BLPOP", b"key", b"0"])
    loan.note([b"LPUSH", b"key", b"1"])
    assert loan.patience is None
