"""Jobs that run a random program of Redis commands and compare each reply with a model; see test_streams_model.py."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rq import get_current_job

import rq_pooled
from rq_pooled.wire import pack_commands

#: A command in the abstract: its kind, and which key or how much.
Abstract = tuple[str, int]
#: Part of a program: what is done, with these commands, cut into pieces of these sizes; ``inner`` runs beside it.
Act = tuple[str, Sequence[Abstract], Sequence[int], "Sequence[Act]"]
ERROR = "an error"
#: Seconds for which commands wait at Redis in vain.
WAIT = "0.02"


class Model:
    """What Redis holds of one branch of one program, which nobody else touches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.strings: dict[str, bytes] = {}
        self.counters: dict[str, int] = defaultdict(int)
        self.lists: dict[str, list[bytes]] = defaultdict(list)
        self._number = 0

    def key(self, kind: str, number: int) -> str:
        """Return the name of a key."""
        return f"model:{self.name}:{kind}{number % 3}"

    def value(self, size: int) -> bytes:
        """Return a value of about this size that nobody else has."""
        self._number += 1
        text = f"{self.name}/{self._number}\r\n$5\r\n".encode()
        return (text * (size // len(text) + 1))[: max(size, len(text))]

    def take(self, command: Abstract) -> tuple[list[Any], Any]:
        """Return the words of a command, and the reply that is right; change what is held."""
        kind, number = command
        key = self.key(kind[0], number)
        if kind == "set":
            key = self.key("s", number)
            self.strings[key] = self.value(SIZES[number % len(SIZES)])
            return ["SET", key, self.strings[key]], b"OK"
        if kind == "get":
            key = self.key("s", number)
            return ["gEt", key], self.strings.get(key)
        if kind == "mget":
            keys = [self.key("s", number + i) for i in range(5)]
            return ["MGET", *keys], [self.strings.get(one) for one in keys]
        if kind == "incr":
            self.counters[key] += 1
            return ["INCR", key], self.counters[key]
        if kind == "push":
            key = self.key("l", number)
            self.lists[key].append(self.value(10))
            return ["RPUSH", key, self.lists[key][-1]], len(self.lists[key])
        if kind == "range":
            key = self.key("l", number)
            return ["LRANGE", key, 0, -1], list(self.lists[key])
        if kind == "blpop":
            key = self.key("l", number)
            found = self.lists[key]
            return ["BLPOP", key, WAIT], [key.encode(), found.pop(0)] if found else None
        if kind == "xread":
            return ["XREAD", "BLOCK", 10, "STREAMS", self.key("x", number), "$"], None
        if kind == "echo":
            text = self.value(SIZES[number % len(SIZES)])
            return ["ECHO", text], text
        if kind == "eval":
            text = self.value(5)
            return ["EVAL", "return {KEYS[1], {1, ARGV[1]}, false}", 1, key, text], [key.encode(), [1, text], None]
        if kind == "wrong":
            return ["INCR", self.key("w", 0), "too", "many"], ERROR
        if kind == "unknown":
            return [f"no.{self.name}.{number}", "x"], ERROR
        if kind == "name":
            return ["CLIENT", "GETNAME"], "a name"
        raise ValueError(kind)


#: Below and above what may be shared (64 kB), and what makes a stream exclusive (1 MB).
SIZES = (0, 30, 1000, 70_000, 20, 1_200_000, 7, 300)
#: Commands that cannot stand in a transaction without spoiling it.
SPOILING = ("wrong", "unknown")


def is_right(reply: Any, right: Any) -> bool:
    """Tell whether a reply is the right one."""
    if right == ERROR:
        return isinstance(reply, ResponseError)
    if right == "a name":
        return isinstance(reply, bytes) and reply.endswith(b":exclusive")
    return bool(reply == right and type(reply) is type(right))


class Program:
    """One branch: acts, one after the other, each reply compared."""

    def __init__(self, name: str) -> None:
        self.model = Model(name)
        self.wrong: list[str] = []
        self.replies = 0
        self._pool = rq_pooled.get_pool()
        self.client = Redis(connection_pool=self._pool)
        self.client.response_callbacks.clear()

    def check(self, what: str, reply: Any, right: Any) -> None:
        """Compare."""
        self.replies += 1
        if not is_right(reply, right):
            self.wrong.append(f"{what}: got {str(reply)[:80]!r} of {type(reply).__name__}, not {str(right)[:80]!r}")

    def run(self, acts: Sequence[Act]) -> None:
        """Do all of it."""
        for number, (kind, commands, pieces, inner) in enumerate(acts):
            beside = None
            if inner:
                beside = beside_it(f"{self.model.name}.{number}", inner, self, fork=len(commands) % 2 == 0)
            getattr(self, f"_{kind}")(list(commands), list(pieces) or [1 << 20])
            if beside is not None:
                beside()

    def _each(self, commands: list[Abstract], _pieces: list[int]) -> None:
        for command in commands:
            words, right = self.model.take(command)
            try:
                reply = self.client.execute_command(*words)
            except ResponseError as error:
                reply = error
            self.check(f"each {words[0]}", reply, right)

    @contextlib.contextmanager
    def _connection(self, keep: bool = True) -> Any:
        connection: Any = self._pool.get_connection()
        try:
            yield connection
            if not keep:
                connection.disconnect()
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def _write(self, connection: Any, commands: Sequence[Sequence[Any]], pieces: list[int]) -> None:
        """Write commands in pieces of these sizes, the last of which is for the rest."""
        data = memoryview(pack_commands(commands))
        for size in pieces[:-1]:
            connection._sock.sendall(data[:size])
            data = data[size:]
        connection._sock.sendall(data)

    def _read(self, connection: Any) -> Any:
        try:
            return connection.read_response()
        except ResponseError as error:
            return error

    def _pipe(self, commands: list[Abstract], pieces: list[int]) -> None:
        """Write all before any reply is read."""
        taken = [self.model.take(command) for command in commands]
        if sum(len(str(words)) for words, _ in taken) > 1_000_000:  # redis-py's sockets would be full
            taken = taken[:1]
            for command in commands[1:]:
                self._undo(command)
        with self._connection() as connection:
            self._write(connection, [words for words, _ in taken], pieces)
            for words, right in taken:
                self.check(f"pipe {words[0]}", self._read(connection), right)

    def _undo(self, _command: Abstract) -> None:
        """Begin anew with other keys: what was taken and not sent is not known."""
        self.model = Model(self.model.name + "+")

    def _multi(self, commands: list[Abstract], pieces: list[int]) -> None:
        """Write a transaction, and a command after it, before any reply is read."""
        taken = self._transaction(commands)
        with self._connection() as connection:
            words = [["multi"], *(words for words, _ in taken), ["EXEC"], ["ECHO", self.model.name]]
            self._write(connection, words, pieces)
            self.check("MULTI", self._read(connection), b"OK")
            for _ in taken:
                self.check("queued", self._read(connection), b"QUEUED")
            self._check_exec(self._read(connection), taken)
            self.check("after EXEC", self._read(connection), self.model.name.encode())

    def _transaction(self, commands: list[Abstract]) -> list[tuple[list[Any], Any]]:
        # Neither a stray error nor a wait: in a transaction nothing waits, and the client's name would do.
        return [self.model.take(command) for command in commands if command[0] not in SPOILING]

    def _check_exec(self, reply: Any, taken: list[tuple[list[Any], Any]]) -> None:
        if not isinstance(reply, list) or len(reply) != len(taken):
            self.check("EXEC", reply, f"{len(taken)} replies")
            return
        for one, (words, right) in zip(reply, taken):
            self.check(f"EXEC {words[0]}", one, right)

    def _steps(self, commands: list[Abstract], _pieces: list[int]) -> None:
        """Send a transaction step by step."""
        taken = self._transaction(commands)
        with self._connection() as connection:
            for words, right in [(["MULTI"], b"OK"), *((words, b"QUEUED") for words, _ in taken)]:
                self._write(connection, [words], [0])
                self.check(f"step {words[0]}", self._read(connection), right)
            self._write(connection, [["EXEC"]], [0])
            self._check_exec(self._read(connection), taken)

    def _watch(self, commands: list[Abstract], pieces: list[int]) -> None:
        """Watch a key that is changed in between, or not; the transaction is not done, or is."""
        key, disturbed = f"model:{self.model.name}:watched", len(pieces) % 2 == 0
        with self._connection() as connection:
            self._write(connection, [["WATCH", key]], [0])
            self.check("WATCH", self._read(connection), b"OK")
            if disturbed:
                self.check("SET", self.client.execute_command("SET", key, "other"), b"OK")
                taken: list[tuple[list[Any], Any]] = [(["SET", key, "mine"], b"OK")]
            else:
                taken = self._transaction(commands)
            self._write(connection, [["MULTI"], *(words for words, _ in taken), ["EXEC"]], pieces)
            self.check("MULTI", self._read(connection), b"OK")
            for _ in taken:
                self.check("queued", self._read(connection), b"QUEUED")
            reply = self._read(connection)
            if disturbed:
                self.check("EXEC", reply, None)
            else:
                self._check_exec(reply, taken)

    def _held(self, commands: list[Abstract], _pieces: list[int]) -> None:
        """Leave a WATCH, or a MULTI, as it is and close, perhaps while its reply is on its way."""
        with self._connection(keep=False) as connection:
            self._write(
                connection, [["WATCH", "model:held"], ["MULTI"], ["SET", "model:torn", 1]][: len(commands) % 3 + 1], [0]
            )
            if len(commands) % 2:
                self._read(connection)

    def _leave(self, commands: list[Abstract], pieces: list[int]) -> None:
        """Close with replies that were not read. What was sent may be done or not, on keys of its own."""
        left = Model(f"{self.model.name}-left")
        taken = [left.take(command) for command in commands]
        with self._connection(keep=False) as connection:
            self._write(connection, [words for words, _ in taken][:20], pieces)
            for words, right in taken[: len(taken) // 2]:
                if right not in (ERROR, "a name"):
                    self._read(connection)
                del words

    def _torn(self, commands: list[Abstract], _pieces: list[int]) -> None:
        """Close in the middle of a command."""
        with self._connection(keep=False) as connection:
            torn(connection, SIZES[len(commands) % len(SIZES)] + 50)

    def _select(self, commands: list[Abstract], _pieces: list[int]) -> None:
        """Use another database for a while."""
        key = self.model.key("s", len(commands))
        with self._connection(keep=False) as connection:
            self._write(connection, [["SELECT", 3], ["SET", key, "elsewhere"], ["GET", key]], [0])
            for right in (b"OK", b"OK", b"elsewhere"):
                self.check("in database 3", self._read(connection), right)
        self.check("in database 0", self.client.execute_command("GET", key), self.model.strings.get(key))

    def _listen(self, _commands: list[Abstract], _pieces: list[int]) -> None:
        """Subscribe, hear what is published, and use the same connection afterwards."""
        channel = f"{self.model.name}:channel"
        with self._connection() as connection:
            self._write(connection, [["SUBSCRIBE", channel, channel + "2"]], [0])
            for number in (1, 2):
                self.check("SUBSCRIBE", last(self._read(connection)), number)
            self.check("PUBLISH", self.client.execute_command("PUBLISH", channel, self.model.name), 1)
            self.check("message", last(self._read(connection)), self.model.name.encode())
            self._write(connection, [["UNSUBSCRIBE"]], [0])
            for number in (1, 0):
                self.check("UNSUBSCRIBE", last(self._read(connection)), number)
            self._write(connection, [["ECHO", channel]], [0])
            self.check("after UNSUBSCRIBE", self._read(connection), channel.encode())

    def _die(self, commands: list[Abstract], pieces: list[int]) -> None:
        """Be killed in the middle of everything."""
        with self._connection() as one, self._connection() as two:
            left = Model(f"{self.model.name}-left")
            self._write(one, [left.take(command)[0] for command in commands][:20], pieces)
            torn(two, SIZES[len(pieces) % len(SIZES)] + 50)
            os.kill(os.getpid(), signal.SIGKILL)


def torn(connection: Any, size: int) -> None:
    """Write the first half of a command."""
    data = pack_commands([["SET", "model:torn", b"x" * size]])
    connection._sock.sendall(data[: len(data) // 2])


def last(reply: Any) -> Any:
    """Return the last word of a message."""
    return reply[-1] if isinstance(reply, list) else reply


def beside_it(name: str, acts: Sequence[Act], program: Program, fork: bool) -> Any:
    """Run acts in a thread or a forked child; return what waits for its end."""

    def branch() -> list[str]:
        one = Program(name)
        try:
            one.run(acts)
        except Exception:  # noqa: BLE001 - a problem like any other
            one.wrong.append(traceback.format_exc()[-1500:])
        return one.wrong

    if not fork:
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.extend(branch()), daemon=True)
        thread.start()

        def join() -> None:
            thread.join()
            program.wrong.extend(found)

        return join
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, "\n".join(branch()).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writer)

    def reap() -> None:
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
        if said:
            program.wrong.append(f"in a child: {said}")

    return reap


def run(acts: Sequence[Act]) -> tuple[list[str], int]:
    """Run a program; return what was wrong, and how many replies were compared."""
    job = get_current_job()
    assert job is not None
    program = Program(job.id[:8])
    try:
        program.run(acts)
    except RedisError:
        program.wrong.append(traceback.format_exc()[-1500:])
    return program.wrong, program.replies
