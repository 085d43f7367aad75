"""Laws of the messages between the parent and a horse."""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import wait_until

from rq_pooled.horse.messages import check_message
from rq_pooled.process.channel import MAX_MESSAGE, ChildChannel, Inbox, ParentChannel, encode
from rq_pooled.wire import pack, pack_runs

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.binary(max_size=50)
    | st.floats(allow_nan=False)
)
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner), max_leaves=10)


@given(st.lists(plain, max_size=8), st.lists(st.integers(1, 40), max_size=200))
@settings(deadline=None, max_examples=200)
def test_messages_survive_any_cutting(messages: list[Any], cuts: list[int]) -> None:
    """However the stream is cut into chunks, the same messages come out, in order and as soon as they are complete."""
    stream = b"".join(encode(message) for message in messages)
    inbox, out = Inbox(), []
    for cut in cuts:
        out += inbox.feed(stream[:cut])
        stream = stream[cut:]
    out += inbox.feed(stream)
    assert out == messages


def test_a_message_is_handed_out_with_its_last_byte() -> None:
    """Nothing comes out before the last byte of a message, and nothing of it is kept back after."""
    inbox, data = Inbox(), encode(("perform", b"x" * 10))
    for byte in data[:-1]:
        assert inbox.feed(bytes([byte])) == []
    assert inbox.feed(data[-1:]) == [("perform", b"x" * 10)]


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack(">I", MAX_MESSAGE + 1),
        struct.pack(">I", 0),
        struct.pack(">I", 3) + b"\xff\xff\xff",
        b"\0\0\0\1(",
        b"\0\0\0\7[\1\0\0\0NN",
        b"\0\0\0\5s\0\0\0\x80",
        b"\0\0\0\5l\0\0\0\x80",
    ],
    ids=["too long", "empty", "no marshal", "cut", "too much", "short string", "short number"],
)
def test_garbage_is_refused(garbage: bytes) -> None:
    """What encode cannot have written raises one of the errors that the reader promises, and is never obeyed."""
    with pytest.raises((ValueError, EOFError, TypeError)):
        Inbox().feed(garbage)


@pytest.mark.parametrize("kind", [b"(", b"[", b"<", b"l", b"c"])
def test_a_few_bytes_cost_no_memory(kind: bytes) -> None:
    """What nine bytes announce, millions of objects or digits, is not allocated before it is there."""
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, EOFError, TypeError)):
            Inbox().feed(b"\0\0\0\5" + kind + b"\xff\xff\xff\3")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


GUARDS = (1, *pack([b"0", 2, b"EXISTS", b"key"]))
COMMANDS = (2, *pack_runs([["SET", "key", "\r\n$1"], ["DEL", "x" * 300]]))
NOTHING = (0, 0, b"")


@pytest.mark.parametrize(
    "message",
    [
        ("free", True),
        ("phase", -1),
        ("phase", 0.5),
        ("read", []),
        ("relay", [[b"GET", b"key"], [b"PING"]]),
        ("relay", [[b"MULTI"], [b"SET", b"key", b"value"], [b"EXEC"]]),
        ("relay", [[b"WATCH", b"key"], [b"script", b"load", b"return 1"], [b"EVALSHA", b"abc", b"0"], [b"UNWATCH"]]),
        ("outcome", "finished", GUARDS, COMMANDS, NOTHING, False),
        ("outcome", "failed", NOTHING, COMMANDS, COMMANDS, True),
    ],
)
def test_what_horses_say_is_believed(message: Any) -> None:
    """Messages of every kind pass."""
    check_message(message)


def outcome(*part: Any) -> Any:
    """Return an outcome with such commands."""
    return ("outcome", "finished", GUARDS, part, NOTHING, False)


@pytest.mark.parametrize(
    "message",
    [
        None,
        "free",
        [],
        (),
        ("free",),
        ["free", True],
        (b"free", True),
        ("free", 1),
        ("free", True, True),
        ("phase", "soon"),
        ("phase", float("nan")),
        ("phase", 10**400),
        ("phase", True),
        ("perform", ()),
        ("__init__",),
        ("plain",),
        ("plain", True, 0.1, 1, b"$1\r\n1\r\n", 1),
        ("plain", 1, 0.1, 1, b"$1\r\n1\r\n"),
        ("plain", True, "0.1", 1, b"$1\r\n1\r\n"),
        ("plain", True, 0.1, 1.0, b"$1\r\n1\r\n"),
        ("plain", True, 0.1, 1, "$1"),
        ("read", ()),
        ("read", [()]),
        ("read", [[]]),
        ("relay", [["GET", b"key"]]),
        ("relay", [[b"BLPOP", b"key", b"0"]]),
        ("relay", [[b"subscribe", b"channel"]]),
        ("relay", [[b"GET", b"key"], [b"SELECT", b"3"]]),
        ("relay", [[b"CLIENT", b"REPLY", b"OFF"]]),
        ("relay", [[b"MULTI"]]),
        ("relay", [[b"MULTI"], [b"MULTI"], [b"EXEC"]]),
        ("relay", [[b"EXEC"]]),
        ("relay", [[b"SCRIPT", b"KILL"]]),
        ("relay", [[b"SHUTDOWN"]]),
        ("read", [[b"XREAD", b"BLOCK", b"0", b"STREAMS", b"key", b"0"]]),
        ("outcome", "finished", GUARDS, COMMANDS, NOTHING),
        ("outcome", b"finished", GUARDS, COMMANDS, NOTHING, False),
        ("outcome", "\ud800", GUARDS, COMMANDS, NOTHING, False),
        ("outcome", "fin\x1b[2J", GUARDS, COMMANDS, NOTHING, False),
        ("outcome", "x" * 1000, GUARDS, COMMANDS, NOTHING, False),
        ("outcome", "finished", GUARDS, COMMANDS, NOTHING, 0),
        ("outcome", "finished", COMMANDS, COMMANDS, NOTHING, False),
        outcome(2, COMMANDS[1], COMMANDS[2].decode()),
        outcome(2, "7", COMMANDS[2]),
        outcome(1, COMMANDS[1], COMMANDS[2]),
        outcome(2, COMMANDS[1] - 1, COMMANDS[2]),
        outcome(2, COMMANDS[1], COMMANDS[2][:-1]),
        outcome(2, COMMANDS[1], COMMANDS[2] + b"\n"),
        outcome(0, 0, b"*1\r\n$4\r\nPING\r\n"),
        outcome(1, *pack([2, "SET"])),
        outcome(1, *pack([1, "SET", "key"])),
        outcome(1, *pack([0])),
        outcome(1, *pack([-1, "SET"])),
        outcome(1, *pack(["1_0", *"0123456789"])),
        outcome(1, 2, b"$-1\r\n$1\r\n1\r\n"),
        outcome(1, 2, b"$1\r\n1\r\n$99999999999999999999\r\nx\r\n"),
    ],
)
def test_what_no_horse_says_is_refused(message: Any) -> None:
    """A message of another shape, type or size is refused before anything is done with it."""
    with pytest.raises(ValueError):
        check_message(message)


@given(plain)
@settings(deadline=None, max_examples=200)
def test_no_message_raises_anything_else(message: Any) -> None:
    """Any plain data is either a message or refused."""
    for one in (
        message,
        ("outcome", "finished", message, message, message, True),
        ("read", message),
        ("phase", message),
    ):
        try:
            check_message(one)
        except ValueError:
            pass


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_no_bytes_raise_anything_else(garbage: bytes) -> None:
    """Whatever a horse writes, the parent sees a message or one of the three errors."""
    try:
        Inbox().feed(garbage)
    except (ValueError, EOFError, TypeError):
        pass


def test_the_parent_never_blocks_on_a_horse_that_does_not_read() -> None:
    """A message larger than the socket's buffer is kept, sent bit by bit, and arrives whole."""
    mine, theirs = socket.socketpair()
    parent, child = ParentChannel(mine), ChildChannel(theirs)
    big = [("data", os.urandom(1 << 20)) for _ in range(8)]
    for message in big:
        assert not parent.send(message)
    assert parent.unsent
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.extend(child.receive() for _ in big))
    reader.start()
    while not parent.flush():
        select.select([], [parent], [], 5)
    reader.join(10)
    assert got == big
    parent.close()
    theirs.close()


def test_a_big_message_of_a_horse_arrives_in_parts() -> None:
    """The parent reads what is there and never waits for the rest of a large outcome."""
    mine, theirs = socket.socketpair()
    parent, child = ParentChannel(mine), ChildChannel(theirs)
    big = os.urandom(5 << 20)
    writer = threading.Thread(target=lambda: (child.send(("outcome", big)), child.send(("free", False))))
    writer.start()
    got: list[Any] = []
    empty_reads = 0
    while len(got) < 2:
        select.select([parent], [], [], 5)
        messages = parent.receive()
        empty_reads += not messages
        got += messages
    writer.join(10)
    assert got == [("outcome", big), ("free", False)]
    assert empty_reads
    parent.close()
    theirs.close()


def test_what_one_horse_says_is_taken_in_parts() -> None:
    """Of thousands of messages that have arrived the parent takes some at a time, in order, and loses none."""
    mine, theirs = socket.socketpair()
    parent = ParentChannel(mine)
    theirs.sendall(b"".join(encode(number) for number in range(8_000)))
    first = parent.receive()
    assert 1_000 <= len(first) < 8_000
    got = first
    while more := parent.receive():
        got += more
    assert got == list(range(8_000))
    parent.close()
    theirs.close()


def test_what_was_complete_before_the_end_is_received() -> None:
    """An outcome that was sent before its horse died counts; half of one does not."""
    mine, theirs = socket.socketpair()
    parent = ParentChannel(mine)
    theirs.sendall(encode("whole") + encode("half")[:-1])
    theirs.close()
    got = parent.receive() + parent.receive()
    assert got == ["whole"]
    assert parent.at_eof
    assert parent.receive() == []
    parent.close()


def test_what_was_complete_before_the_end_is_received_however_much() -> None:
    """Reading until the end hands out everything, also where it does not fit one read."""
    mine, theirs = socket.socketpair()
    parent, child = ParentChannel(mine), ChildChannel(theirs)
    random.seed(1)
    sizes = [random.choice([1, 100, 262_140, 262_144, 300_000]) for _ in range(20)]

    def write() -> None:
        for size in sizes:
            child.send(b"x" * size)
        theirs.close()

    writer = threading.Thread(target=write)
    writer.start()
    got: list[bytes] = []
    while not parent.at_eof:
        select.select([parent], [], [], 5)
        got += parent.receive()
    writer.join(10)
    assert [len(message) for message in got] == sizes
    parent.close()


def test_each_end_notices_that_the_other_has_gone() -> None:
    """The horse gets EOFError when the parent closes; the parent's sends to a closed horse are dropped quietly."""
    mine, theirs = socket.socketpair()
    ParentChannel(mine).close()
    with pytest.raises(EOFError):
        ChildChannel(theirs).receive()
    theirs.close()
    mine, theirs = socket.socketpair()
    parent = ParentChannel(mine)
    theirs.close()
    assert parent.send(("perform", b"x" * (1 << 20)))
    assert not parent.unsent
    parent.close()


def test_objects_with_code_do_not_travel() -> None:
    """Only plain data can be sent: neither end ever runs code while reading."""
    with pytest.raises(ValueError):
        encode(object())
    with pytest.raises(ValueError):
        encode(ValueError("an exception"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts what Linux's scheduler does")
def sleeps_until_its_task() -> int:
    """Return how often a process that waits for a task went to sleep, while its parent took an answer and sent one."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            channel = ChildChannel(theirs)
            channel.send("answer")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
            channel.receive()
            channel.send(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before)
        finally:
            os._exit(0)
    theirs.close()

    def sleeps() -> bool:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"

    parent = ParentChannel(ours)
    answers: list[Any] = []
    wait_until(sleeps)
    answers += parent.receive()
    wait_until(sleeps)
    parent.send("task")
    wait_until(lambda: answers.extend(parent.receive()) or len(answers) == 2)
    os.waitpid(pid, 0)
    parent.close()
    assert answers[0] == "answer"
    return int(answers[1])


def test_a_waiting_horse_sleeps_while_the_parent_reads() -> None:
    """A horse that waits for its next task is woken by that task only, not by the parent taking its last answer."""
    # A busy machine may put it to sleep for a page, too: the fewest of some count.
    assert min(sleeps_until_its_task() for _ in range(6)) <= 1


def test_a_time_limit_that_strikes_during_a_question_waits_for_the_answer() -> None:
    """The answer to a question reaches the one who asked, and the exception of a time limit comes after it."""
    ours, theirs = socket.socketpair()
    parent, child = ParentChannel(theirs), ChildChannel(ours)

    class Struck(Exception):
        pass

    def strike(*_args: Any) -> None:
        raise Struck

    def answer() -> None:
        for number in range(2):
            select.select([theirs], [], [])
            parent.receive()
            if number == 0:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
                time.sleep(0.1)  # for the case that it is not held back
            parent.send(("answer", number))

    answered: list[Any] = []
    previous = signal.signal(signal.SIGALRM, strike)
    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with pytest.raises(Struck):
            answered.append(child.ask("first"))
        answered.append(child.ask("second"))
    finally:
        thread.join(5)
        signal.signal(signal.SIGALRM, previous)
        ours.close()
        theirs.close()
    assert answered == [("answer", 1)]
