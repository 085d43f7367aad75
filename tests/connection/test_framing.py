"""Boundaries of commands and replies are where the server sees them: else one job would get another job's reply."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from redis import Redis

from rq_pooled.connection.command_table import _SHARED, CommandTable, block_of, is_lasting
from rq_pooled.connection.framing import Malformed, Passage, ReplyCutter, cut_command, words_of
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.wire import pack_commands

BOUNDED = settings(deadline=None, max_examples=300)
WITH_SERVER = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])

words = st.binary(max_size=12) | st.sampled_from([b"", b"\r\n", b"*1\r\n$4\r\nPING\r\n", b"$3\r\n", b"x" * 5000])
commands = st.lists(words, min_size=1, max_size=6)
#: Sizes of pieces; the last one is repeated.
cuts = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut data into pieces."""
    position, number = 0, 0
    while position < len(data):
        size = sizes[min(number, len(sizes) - 1)]
        yield data[position : position + size]
        position, number = position + size, number + 1


# -- commands ----------------------------------------------------------------------------------------------------------


def parse(data: bytes, start: int) -> tuple[int, list[bytes]]:
    """Return the end and the words of the whole command at ``start``: the naive reference."""
    header, _, _ = data[start:].partition(b"\r\n")
    position, found = start + len(header) + 2, []
    for _ in range(int(header[1:])):
        line, _, _ = data[position:].partition(b"\r\n")
        position += len(line) + 2
        found.append(data[position : position + int(line[1:])])
        position += int(line[1:]) + 2
    return position, found


@given(st.lists(commands, min_size=1, max_size=5), st.data())
@BOUNDED
def test_commands_are_cut_where_they_end(many: list[list[bytes]], data: st.DataObject) -> None:
    """Each command ends where the naive parser says, has its name and words, and is incomplete until its last byte."""
    stream = pack_commands(many)
    position = 0
    for command in many:
        end, name = cut_command(stream, position)
        assert (end, parse(stream, position)[1], name) == (parse(stream, position)[0], command, command[0])
        assert words_of(stream, position, len(stream)) == command
        assert words_of(stream, position, 2) == command[:2]
        short = data.draw(st.integers(position + 1, end - 1))
        assert cut_command(stream[:short], position) == (-1, b"")
        found = words_of(stream[:short], position, len(stream))
        assert found == command[: len(found)]
        position = end
    assert position == len(stream)


@given(commands, st.binary(max_size=30), cuts)
@BOUNDED
def test_a_passage_ends_where_the_command_does(command: list[bytes], behind: bytes, sizes: list[int]) -> None:
    """A command that is followed through pieces of any size ends at the same byte as one that is cut whole."""
    stream = pack_commands([command])
    passage, seen, rest = Passage(), 0, b""
    for piece in pieces(stream + behind, sizes):
        rest += piece
        position, done = passage.follow(rest, 0)
        seen, rest = seen + position, rest[position:]
        if done:
            break
        assert seen < len(stream)
    assert seen == len(stream)


LENGTHS = [
    *(
        b"",
        b"0",
        b"-0",
        b"-1",
        b"+1",
        b"01",
        b"1_0",
        b" 1",
        b"1 ",
        b"1\n",
        b"\r1",
        b"0x1",
        b"1.0",
        b"1e0",
        "٣".encode(),
    ),
    *(b"536870913", b"1000000000", b"1" * 20, b"9" * 31, b"9" * 4000),
]


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_are_read_strictly(length: bytes) -> None:
    """A length that is not a plain decimal number within the bounds is refused, in all three readers."""
    if length != b"0":  # an empty word is one
        with pytest.raises(Malformed):
            cut_command(b"*1\r\n$" + length + b"\r\nabcdefghijkl\r\n", 0)
        with pytest.raises(Malformed):
            Passage().follow(b"*1\r\n$" + length + b"\r\nabcdefghijkl\r\n", 0)
    with pytest.raises(Malformed):
        cut_command(b"*" + length + b"\r\n$1\r\na\r\n", 0)
    with pytest.raises(Malformed):
        Passage().follow(b"*" + length + b"\r\n$1\r\na\r\n", 0)


@pytest.mark.parametrize(
    "data",
    [b"PING\r\n", b"\r\n", b"$4\r\nPING\r\n", b"*1\r\n:4\r\n", b"*1\r\n*1\r\n", b"*1\r\n" + b"$" * 40, b"*" * 40],
)
def test_what_is_no_array_of_words_is_refused(data: bytes) -> None:
    """Inline commands, nested arrays and headers without an end are no commands."""
    with pytest.raises(Malformed):
        cut_command(data, 0)
    with pytest.raises(Malformed):
        Passage().follow(data, 0)


@pytest.fixture(scope="module")
def plain(server: EmbeddedServer) -> Iterator[socket.socket]:
    """A bare connection to the server."""
    with socket.create_connection((server.host, server.port), timeout=10) as made:
        yield made


def mutated(data: bytes, changes: list[tuple[float, bytes, int]]) -> bytes:
    """Replace some bytes, each at a share of the length, by others."""
    for at, new, length in changes:
        place = int(at * len(data))
        data = data[:place] + new + data[place + length :]
    return data


bits = st.sampled_from(
    [b"", b"\r", b"\n", b"\r\n", b"*", b"$", b"0", b"1", b"2", b"9", b"-", b"+", b"_", b" ", b"a", b"\0"]
)
changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), bits, st.integers(0, 3)), max_size=4)
harmless = st.lists(
    st.sampled_from([b"ECHO", b"x", b"", b"1", b"12", b"*1\r\n", b"$1\r\na\r\n", b"\r\n"]), min_size=1, max_size=3
)


@given(st.lists(harmless, min_size=1, max_size=4), changes)
@WITH_SERVER
@example([[b"ECHO", b"x"], [b"ECHO", b"y"]], [(0.45, b"a", 1)])  # Valkey 9 closes the connection here
def test_the_server_sees_as_many_commands_as_were_cut(
    plain: socket.socket, many: list[list[bytes]], changes: list[tuple[float, bytes, int]]
) -> None:
    """Of bytes that are damaged at random, those that are cut as n commands get n replies from a real server."""
    stream = mutated(pack_commands(many), changes)
    position = count = 0
    try:
        while position < len(stream):
            end, name = cut_command(stream, position)
            if end < 0:
                break
            assume(name.upper() not in (b"QUIT", b"POST", b"HOST:"))
            position, count = end, count + 1
    except Malformed:
        pass
    assume(count)
    plain.sendall(stream[:position] + pack_commands([("ECHO", "the end")]))
    rest, replies = b"", []
    while not replies or replies[-1] != b"$7\r\nthe end\r\n":
        data = plain.recv(65536)
        assert data, "the server has closed the connection, with all that share it"
        rest += data
        while rest:
            end, done = ReplyCutter().cut(rest, 0)
            if not done:
                break
            replies.append(rest[:end])
            rest = rest[end:]
    assert len(replies) == count + 1


# -- replies -----------------------------------------------------------------------------------------------------------

text = st.text("abc :,*$>", max_size=6).map(str.encode)
lines = st.tuples(st.sampled_from([b"+", b"-", b":", b"_", b"#", b",", b"("]), text).map(
    lambda pair: b"".join(pair) + b"\r\n"
)
bulks = st.tuples(st.sampled_from([b"$", b"=", b"!"]), words).map(
    lambda pair: b"%b%d\r\n%b\r\n" % (pair[0], len(pair[1]), pair[1])
)
nulls = st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"_\r\n"])


def _array(kind: bytes, items: list[bytes]) -> bytes:
    count = len(items) // 2 if kind in b"%|" else len(items)
    return b"%b%d\r\n%b" % (kind, count, b"".join(items))


def _nested(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    some = st.lists(inner, max_size=4)
    pairs = st.lists(st.tuples(inner, inner), max_size=2).map(lambda found: [item for pair in found for item in pair])
    arrays = st.tuples(st.sampled_from([b"*", b"~"]), some).map(lambda pair: _array(*pair))
    maps = pairs.map(lambda items: _array(b"%", items))
    attributes = st.tuples(pairs, inner).map(lambda pair: _array(b"|", pair[0]) + pair[1])
    return arrays | maps | attributes


values = st.recursive(lines | bulks | nulls, _nested, max_leaves=12)
pushes = st.lists(values, min_size=1, max_size=4).map(lambda items: _array(b">", items))


@given(st.lists(values | pushes, min_size=1, max_size=5), cuts)
@settings(deadline=None, max_examples=600)
@example([b"*1\r\n$3\r\nabc\r\n"], [4, 20])
@example([b">1\r\n$3\r\nabc\r\n"], [4, 20])
@example([b"|0\r\n:1\r\n"], [4, 20])
def test_replies_are_cut_where_they_end(replies: list[bytes], sizes: list[int]) -> None:
    """Through pieces of any size each reply of RESP2 and RESP3 keeps its bounds, as soon as its last byte is there.

    A push is known as one, and a reply counts as begun as soon as any of it has been passed on.
    """
    cutter, rest, present, found = ReplyCutter(), b"", b"", []
    for piece in pieces(b"".join(replies), sizes):
        rest += piece
        done, position = True, 0
        while done and position < len(rest):
            end, done = cutter.cut(rest, position)
            present, position = present + rest[position:end], end
            if done:
                assert present == replies[len(found)]
                assert cutter.push == present.startswith(b">")
                found.append(present)
                present = b""
            assert cutter.fresh == (not present)
            assert replies[len(found)].startswith(present) if present else True
        rest = rest[position:]
        received = sum(map(len, found)) + len(present) + len(rest)
        whole = next((i for i in range(len(replies) + 1) if sum(map(len, replies[: i + 1])) > received), len(replies))
        assert len(found) == whole
    assert found == replies and not rest and not cutter.in_string


@given(st.integers(1, 300), cuts)
@BOUNDED
def test_long_strings_are_passed_on_as_they_come(length: int, sizes: list[int]) -> None:
    """Of a string whose header is here nothing is held back, however long it is."""
    cutter, reply = ReplyCutter(), b"$%d\r\n%b\r\n" % (length, b"x" * length)
    head = reply.index(b"\n") + 1
    position, done = cutter.cut(reply[:head], 0)
    assert (position, done, cutter.in_string) == (head, False, True)
    for piece in pieces(reply[head:], sizes):
        assert not done
        position, done = cutter.cut(piece, 0)
        assert position == len(piece)
    assert done and not cutter.in_string


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400\r\n", b"\x15\x03\x01\r\n", b"*1\r\n?\r\n", b"+" * 1_100_000, b"$x\r\n"]
)
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    """Bytes that no server sends raise instead of being counted as a reply."""
    with pytest.raises(ValueError):
        ReplyCutter().cut(data, 0)


# -- which commands share ----------------------------------------------------------------------------------------------

SCRIPTS = {b"EVAL", b"EVALSHA", b"EVAL_RO", b"EVALSHA_RO", b"FCALL", b"FCALL_RO"}
#: Words of a legal call that waits for 1.5 s, by name; milliseconds where that is what the command takes.
BLOCKING: dict[bytes, tuple[bytes, ...]] = {
    b"BLMOVE": (b"a", b"b", b"LEFT", b"LEFT", b"1.5"),
    b"BLMPOP": (b"1.5", b"2", b"a", b"b", b"LEFT", b"COUNT", b"7"),
    b"BLPOP": (b"a", b"b", b"1.5"),
    b"BRPOP": (b"a", b"1.5"),
    b"BRPOPLPUSH": (b"a", b"b", b"1.5"),
    b"BZMPOP": (b"1.5", b"1", b"a", b"MIN"),
    b"BZPOPMAX": (b"a", b"1.5"),
    b"BZPOPMIN": (b"a", b"1.5"),
    b"XREAD": (b"COUNT", b"2", b"block", b"1500", b"STREAMS", b"a", b"$"),
    b"XREADGROUP": (b"GROUP", b"g", b"c", b"BLOCK", b"1500", b"STREAMS", b"a", b">"),
    b"WAIT": (b"1", b"1500"),
    b"WAITAOF": (b"0", b"1", b"1500"),
}


#: Treated apart, or for operators.
EXCEPTIONS = SCRIPTS | set(b"LOLWUT MEMORY MIGRATE PFDEBUG PFSELFTEST RESTORE-ASKING SWAPDB XREAD XREADGROUP".split())


def told(redis: Redis, *command: str) -> Any:
    """Return what the server says, as it is."""
    options = redis.connection_pool.connection_kwargs
    with Redis(host=options["host"], port=options["port"], protocol=3) as one:
        one.response_callbacks.clear()
        return one.execute_command(*command)


def rows_of(redis: Redis) -> list[Any]:
    """Return the rows of COMMAND."""
    found: list[Any] = told(redis, "COMMAND")
    return found


def flags_of(row: Any) -> set[bytes]:
    """Return the flags of a row."""
    return set(row[2])


def letter_cases(name: bytes) -> list[bytes]:
    """Return a name in several letter cases."""
    return [name, name.lower(), name.capitalize(), name.swapcase()]


def asked(row: Any, name: bytes) -> CommandTable:
    """Return a table that has been told of one command, if it asks."""
    table = CommandTable()
    if not table.is_known(name):
        table.learn(name, [row])
    assert table.is_known(name)
    return table


def test_what_is_shared_neither_waits_nor_changes_the_connection(redis: Redis) -> None:
    """Of all commands of the running server those that wait, administer it, or may not stand in a script or transaction
    share only where named.
    """
    rows = rows_of(redis)
    assert len(rows) > 200
    shared = 0
    for row in rows:
        name = row[0].upper()
        subcommands = row[9] if len(row) > 9 else []
        for written in letter_cases(name):
            table = asked(row, written)
            if subcommands:
                for sub in subcommands:
                    second = sub[0].rpartition(b"|")[2]
                    for word in letter_cases(second):
                        if table.is_shared(written, [written, word]):
                            named = name == b"SCRIPT" and word.upper() in (b"LOAD", b"EXISTS")
                            assert named or not flags_of(sub) & EXCLUSIVE, (written, word)
                assert not table.is_shared(written, [written]) and not table.is_shared(written, [written, b"NEWER"])
            elif table.is_shared(written, [written, b"a"]):
                shared += 1
                reads = name in (b"XREAD", b"XREADGROUP")
                assert name in SCRIPTS or reads or not flags_of(row) & EXCLUSIVE, written
    assert shared > 4 * 100


#: What the server flags like this has a connection of its own.
EXCLUSIVE = {b"admin", b"blocking", b"no_multi", b"noscript"}
NEVER = [
    *(
        [name]
        for name in (b"READONLY", b"READWRITE", b"ASKING", b"QUIT", b"SHUTDOWN", b"MULTI", b"WATCH", b"SUBSCRIBE")
    ),
    *(
        [name]
        for name in (b"MONITOR", b"RESET", b"SYNC", b"PSYNC", b"PSUBSCRIBE", b"SSUBSCRIBE", b"UNSUBSCRIBE", b"DISCARD")
    ),
    *(
        [b"CLIENT", second]
        for second in (b"KILL", b"PAUSE", b"REPLY", b"TRACKING", b"SETNAME", b"NO-EVICT", b"SETINFO", b"CACHING")
    ),
    *(
        [b"SELECT", b"1"],
        [b"AUTH", b"x"],
        [b"HELLO", b"3"],
        [b"WAIT", b"1", b"0"],
        [b"POST"],
        [b"Host:"],
        [b"SCRIPT", b"KILL"],
        [b"SCRIPT", b"DEBUG", b"YES"],
        [b"CLUSTER", b"SYNCSLOTS", b"CAPA"],
        [b"CLUSTER", b"SLOTS"],
        [b"CONFIG", b"SET"],
    ),
    *([name, *BLOCKING[name]] for name in BLOCKING),
]


@pytest.mark.parametrize("command", NEVER, ids=lambda command: b" ".join(command[:2]).decode())
@pytest.mark.parametrize("known_to", ["the server", "the built-in table"])
def test_what_is_never_shared(redis: Redis, command: list[bytes], known_to: str) -> None:
    """What changes or holds a connection is not shared in any letter case, whether or not COMMAND may be asked."""
    rows = {row[0].upper(): row for row in rows_of(redis)} if known_to == "the server" else {}
    for number in range(4):
        words = [letter_cases(word)[number] for word in command]
        table = CommandTable()
        if not table.is_known(words[0]):
            table.learn(words[0], [rows.get(words[0].upper())] if rows else RuntimeError("NOPERM"))
        assert table.known.get(words[0]) is not True
        assert not table.is_shared(words[0], words), words


def test_scripts_are_shared() -> None:
    """EVAL*, FCALL*, SCRIPT LOAD and SCRIPT EXISTS share although their flags say noscript, and no other SCRIPT
    does.
    """
    table = CommandTable()
    for name in SCRIPTS:
        for written in letter_cases(name):
            assert table.is_known(written) and table.is_shared(written, [written, b"return 1", b"0"])
    assert [
        table.is_shared(b"Script", [b"Script", second]) for second in (b"load", b"EXISTS", b"flush", b"KILL", b"DEBUG")
    ] == [*(True, True, False, False, False)]


def test_the_built_in_table_shares_nothing_that_the_server_would_not(redis: Redis) -> None:
    """Where COMMAND is refused only what the server flags harmless is shared, and all that is common is."""
    rows = {row[0].upper(): row for row in rows_of(redis)}
    for name in sorted(_SHARED & set(rows)):
        flags = flags_of(rows[name]).union(*(flags_of(sub) for sub in (rows[name][9] if len(rows[name]) > 9 else [])))
        assert not flags & EXCLUSIVE, name
    table = CommandTable()
    for name in b"get SET hgetall Zadd xadd PUBLISH ping DEL EXPIRE rpush".split():
        table.learn(name, RuntimeError("NOPERM"))
        assert table.is_shared(name, [name, b"a"])
    # What came after 7.0 costs a connection of its own where COMMAND is refused; of what was there all is in the table.
    since = {name.upper(): dict(doc)[b"since"] for name, doc in told(redis, "COMMAND", "DOCS").items()}
    old = {name for name in rows if [int(part) for part in since.get(name, b"99.0").split(b".")[:2]] <= [7, 0]}
    for name in sorted(old - _SHARED - EXCEPTIONS):
        flags = flags_of(rows[name])
        assert not flags & {b"write", b"readonly"} or flags & {b"blocking", b"noscript", b"admin", b"pubsub"}, name


@pytest.mark.parametrize(
    "reply", [None, [], [[]], [[b"get"]], [[b"get", 2]], [None, None], [[b"get", 2, 7]], RuntimeError(), 5, b"x"]
)
def test_an_odd_answer_leaves_it_to_the_built_in_table(reply: Any) -> None:
    """A proxy may answer COMMAND INFO with anything: GET is shared, an unknown command is not."""
    for name, shared in ((b"get", True), (b"made.up", False), (b"config", False)):
        table = CommandTable()
        table.learn(name, reply)
        assert table.is_known(name)
        assert table.is_shared(name, [name, b"a"]) is shared


@given(st.lists(st.binary(max_size=60), max_size=50))
@BOUNDED
def test_any_name_is_known_or_asked_once(names: list[bytes]) -> None:
    """Whatever jobs send as a name, the table asks only for what COMMAND INFO can be asked, and remembers a bounded
    number.
    """
    table = CommandTable()
    for name in names:
        if not table.is_known(name):
            assert 0 < len(name) <= 40 and name.isascii() and b" " not in name
            table.learn(name, [None])
        assert table.is_known(name)
    for number in range(1200):
        table.is_known(b"made.up%d" % number) or table.learn(b"made.up%d" % number, [None])
    assert len(table.known) <= 1003
    assert table.is_known(b"another") and not table.is_shared(b"another", [b"another"])


def test_how_long_each_blocking_command_waits(redis: Redis) -> None:
    """Each command that the server flags as blocking tells its time, without end as None, and none where it does not
    wait.
    """
    rows = {row[0].upper(): row for row in rows_of(redis)}
    for name in {*(name for name, row in rows.items() if b"blocking" in row[2]), b"WAIT"}:
        for number in range(4):
            words = [letter_cases(name)[number], *BLOCKING[name]]
            assert block_of(words) == 1.5, words
        forever = [b"0" if word in (b"1.5", b"1500") else word for word in (name, *BLOCKING[name])]
        assert block_of(forever) is None
        assert block_of([name]) == 0.0
        assert block_of([b"x" if word in (b"1.5", b"1500") else word for word in (name, *BLOCKING[name])]) == 0.0
    assert block_of([b"XREAD", b"STREAMS", b"a", b"0"]) == block_of([b"GET", b"a"]) == 0.0


def test_what_lasts_until_the_stream_is_closed() -> None:
    """A connection that was changed for good is not given to the next one; CLIENT's mere looks leave it as it was."""
    for words in (
        [b"select", b"1"],
        [b"AUTH", b"x"],
        [b"client", b"SetName", b"x"],
        [b"CLIENT", b"reply", b"off"],
        [b"monitor"],
        [b"script", b"Debug", b"sync"],
        [b"SCRIPT", b"NEWER"],
        [b"cluster", b"SyncSlots", b"CAPA"],
    ):
        assert is_lasting(words)
    for words in (
        [b"client", b"id"],
        [b"CLIENT", b"List"],
        [b"BLPOP", b"a", b"0"],
        [b"CLIENT"],
        [b"CLUSTER"],
        [b"CLUSTER", b"SLOTS"],
        [b"CONFIG", b"GET", b"x"],
        *([b"SCRIPT", second] for second in (b"exists", b"LOAD", b"Flush", b"KILL", b"SHOW", b"HELP")),
    ):
        assert not is_lasting(words)
