"""Job functions of the tests about jobs that use Redis through their worker."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from redis import ConnectionPool, Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import get_current_job

import rq_pooled
from rq_pooled.wire import pack_commands


def nothing() -> None:
    """Do nothing."""


def busy(saves: int = 30) -> int:
    """Save meta, and use a pipeline, a script and an enqueue."""
    job = get_current_job()
    assert job is not None
    for step in range(saves):
        job.meta["step"] = step
        job.save_meta()
    client = rq_pooled.get_connection()
    with client.pipeline() as pipeline:
        counted = pipeline.incr("jobs").get("jobs").execute()
    assert int(counted[1]) == counted[0]
    assert client.eval("return redis.call('INCR', KEYS[1])", 1, "scripts") > 0
    rq_pooled.Queue("later", connection=job.connection).enqueue(nothing)
    return int(job.get_meta()["step"])


def watching() -> None:
    """Count under WATCH, and enqueue a job that depends on another, as RQ does it: under WATCH."""
    client = rq_pooled.get_connection()

    def count(pipeline: Pipeline) -> None:
        number = int(pipeline.get("watched") or 0)
        pipeline.multi()
        pipeline.set("watched", number + 1)

    client.transaction(count, "watched")
    queue = rq_pooled.Queue("later", connection=client)
    queue.enqueue(nothing, depends_on=queue.enqueue(nothing))


def everything(key: str) -> list[Any]:
    """Use Redis in all the ways that redis-py has for it; return what came back."""
    client = rq_pooled.get_connection()
    found: list[Any] = [client.set(key, "ü"), client.get(key), client.incr(f"{key}:n"), client.type(key)]
    with client.pipeline(transaction=False) as pipeline:
        found.append(pipeline.get(key).lpush(key, 1).get(key).execute(raise_on_error=False)[::2])
    found.append(client.register_script("return {KEYS[1], ARGV[1]}")(keys=["a"], args=["b"]))
    options = client.connection_pool.connection_kwargs
    cls = client.connection_pool.connection_class
    for more in ({"decode_responses": True}, {"protocol": 3, "decode_responses": True}, {"db": 5}):
        pool: Any = ConnectionPool(cls, **{**options, **more})
        with contextlib.closing(Redis(connection_pool=pool)) as other:
            other.hset(f"{key}:h", mapping={"a": "1"})
            found += [other.hgetall(f"{key}:h"), other.client_id() > 0]
        pool.disconnect()
    with client.pubsub() as pubsub:
        pubsub.subscribe(f"{key}:channel")
        assert pubsub.get_message(timeout=5)
        client.publish(f"{key}:channel", "hello")
        found.append((pubsub.get_message(timeout=5) or {}).get("data"))
    client.delete(f"{key}:list")
    client.rpush(f"{key}:list", "x")
    found.append(client.blpop([f"{key}:list"], timeout=1))
    found.append(sorted(client.scan_iter(f"{key}*")))
    found.append(client.xadd(f"{key}:stream", {"a": 1}) is not None)
    found.append(len(client.xread({f"{key}:stream": 0})))
    return found


def own_pids() -> list[str]:
    """Return the names of connections that the server sees of this process."""
    client = rq_pooled.get_connection()
    return [entry["name"] for entry in client.client_list() if f":{os.getpid()}:" in entry["name"]]


def wait_in_redis(key: str, timeout: float, way: str = "call") -> Any:
    """Wait for an element of a list."""
    client = rq_pooled.get_connection()
    if way == "pipeline":
        return client.pipeline(transaction=False).get("none").blpop([key], timeout=timeout).execute()
    if way == "words":
        return client.execute_command(f"blpop {key} {timeout}")
    return client.blpop([key], timeout=timeout)


def wait_for_message(channel: str, patience: float) -> Any:
    """Return what is published first, two seconds after this has begun to listen."""
    with rq_pooled.get_connection().pubsub() as subscriber:
        subscriber.subscribe(channel)
        began = time.monotonic()
        for message in subscriber.listen():
            if message["type"] == "message" and time.monotonic() - began > 2:
                return message["data"]
    return None


def hold_two() -> str:
    """Hold a connection of the worker's by WATCH, and ask for another; say what came of it."""
    client = rq_pooled.get_connection()
    with client.pipeline() as first, client.pipeline() as second:
        first.watch("one")
        try:
            second.watch("two")
        except RedisError as error:
            return f"{type(error).__name__}: {error}"
    return "there were two"


def hold_server(seconds: float) -> str:
    """Keep the server from doing anything else; return what became of the call."""
    try:
        return str(rq_pooled.get_connection().execute_command("DEBUG", "SLEEP", seconds))
    except RedisError as error:
        return type(error).__name__


def interrupted(seconds: float) -> list[Any]:
    """Be interrupted between writing a command and reading its reply, again and again; return what was wrong."""
    client = rq_pooled.get_connection()
    wrong: list[Any] = []
    number = 0

    def strike(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, strike)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            number += 1
            with contextlib.suppress(InterruptedError, RedisError):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.002))
                for _ in range(20):
                    reply = client.echo(f"{os.getpid()}:{number}")
                    if reply != f"{os.getpid()}:{number}".encode():
                        wrong.append(reply)
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return wrong


def leave_a_reply(value: str) -> int:
    """Leave a connection in the pool whose reply nobody has read."""
    pool = rq_pooled.get_pool()
    connection = pool.get_connection()
    connection.send_command("ECHO", value)
    pool.release(connection)
    return os.getpid()


def leave_a_wait(seconds: float) -> int:
    """Leave a connection in the pool whose reply comes later, and which nobody will read."""
    pool = rq_pooled.get_pool()
    connection = pool.get_connection()
    connection.send_command("BLPOP", "never", seconds)
    pool.release(connection)
    return os.getpid()


def leave_a_lock() -> int:
    """Leave the pool's lock held, and a place missing, as an exception out of a signal handler can."""
    pool: Any = rq_pooled.get_pool()
    pool.pool.mutex.acquire()
    return os.getpid()


def echo_in_thread(value: str) -> Any:
    """Return what the server says to ECHO, asked by a thread."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(echo(value)))
    thread.start()
    thread.join(10)
    return found[0]


def echo(value: str) -> Any:
    """Return what the server says to ECHO."""
    return rq_pooled.get_connection().echo(value)


def echo_many(count: int, seed: int) -> int:
    """Send and check random texts, in threads and forked children too; return how many were right."""
    generator = random.Random(seed)
    right = []

    def check(number: int) -> None:
        client = rq_pooled.get_connection()
        for i in range(number):
            text = f"{os.getpid()}-{threading.get_ident()}-{i}" * generator.choice((1, 1, 50, 2000))
            if client.echo(text) != text.encode():
                raise AssertionError("somebody else's reply")
            right.append(1)

    check(count)
    threads = [threading.Thread(target=check, args=(count,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = multiprocessing.get_context("fork").Process(target=check, args=(count,))
    child.start()
    child.join()
    assert child.exitcode == 0
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            check(count)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    return len(right)


@contextlib.contextmanager
def _raw() -> Iterator[socket.socket]:
    """Yield a stream of this horse as a bare socket."""
    door = rq_pooled.get_pool().connection_kwargs["redis_connect_func"].door
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(door.path)
        made.sendall(door.token + b"\n")
        made.settimeout(20)
        yield made


def send_raw(data: bytes) -> bytes:
    """Send bytes, and return what comes back until the other end closes, or nothing comes for a second."""
    found = b""
    with _raw() as stream:
        with contextlib.suppress(OSError):
            stream.sendall(data)
        stream.settimeout(1)
        with contextlib.suppress(OSError):
            while data := stream.recv(65536):
                found += data
    return found[:200]


def do_not_read(key: str, gate: str) -> str:
    """Ask for ten times more than is kept for one, and read nothing until ``gate`` exists."""
    command = b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key.encode())
    other = rq_pooled.get_connection()
    with _raw() as stream:
        stream.sendall(command * 60)
        other.incr("flooded")
        until = time.monotonic() + 20
        while not os.path.exists(gate) and time.monotonic() < until:
            time.sleep(0.02)
        total = 0
        try:
            while data := stream.recv(1024 * 1024):
                total += len(data)
        except OSError:
            pass
    return f"closed after {total}"


def long_pipeline(count: int, key: str) -> tuple[int, int]:
    """Send a pipeline that redis-py writes whole before it reads a reply; return (replies, right ones)."""
    client = rq_pooled.get_connection()
    wanted = client.get(key)
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(count):
            pipeline.get(key)
        replies = pipeline.execute()
    return len(replies), sum(reply == wanted for reply in replies)


def large(size: int) -> list[Any]:
    """Write and read one long value, twice; a long transaction too."""
    client = rq_pooled.get_connection()
    # A key of its own: several of these run at once.
    value, key = os.urandom(size), f"large:{os.getpid()}"
    found: list[Any] = []
    for _ in range(2):
        client.set(key, value)
        found.append(client.get(key) == value)
    with client.pipeline() as pipeline:
        found.append(pipeline.set(key, value).get(key).execute()[1] == value)
    return found


def large_again(key: str, times: int) -> list[int]:
    """Read one long value again and again; return the lengths."""
    client = rq_pooled.get_connection()
    return [len(client.get(key)) for _ in range(times)]


def die_in_the_middle(size: int) -> None:
    """Be killed while a long command is under way, and a short one."""
    with _raw() as stream:
        stream.sendall(b"*3\r\n$3\r\nSET\r\n$5\r\ntorn1\r\n$%d\r\n" % size + b"x" * (size // 2))
        with _raw() as other:
            other.sendall(b"*3\r\n$3\r\nSET\r\n$5\r\ntorn2\r\n$100\r\n" + b"x" * 50)
            os.kill(os.getpid(), signal.SIGKILL)


def count_up(key: str, times: int, gate: str) -> list[str]:
    """Count until ``gate`` exists, or so often; return the kinds of errors that were met."""
    client = rq_pooled.get_connection()
    errors = set()
    for _ in range(times):
        try:
            client.incr(key)
        except RedisError as error:
            errors.add(type(error).__name__)
        if os.path.exists(gate):
            break
        time.sleep(0.005)
    return sorted(errors)


def wait_for_replica(timeout: int) -> list[int]:
    """Write, and ask how many replicas have it, behind a command with a connection of its own, and alone."""
    client = rq_pooled.get_connection()
    client.set("durable", os.getpid())
    with client.pipeline(transaction=False) as pipeline:
        found = [pipeline.blpop(["never"], timeout=0.01).wait(1, timeout).execute()[1]]
    client.set("durable", os.getpid())
    found.append(client.wait(1, timeout))
    client.set("durable", os.getpid())
    with client.pipeline() as pipeline:
        pipeline.watch("durable")
        found.append(pipeline.execute_command("WAIT", 1, timeout))
    return found


def wait_in_a_transaction() -> list[Any]:
    """Send a transaction with a WAIT in it step by step; return the replies."""
    pool = rq_pooled.get_pool()
    connection = pool.get_connection()
    found = []
    try:
        for words in (["MULTI"], ["SET", "a", 1], ["WAIT", 0, 1], ["GET", "a"], ["EXEC"]):
            connection.send_command(*words)
            found.append(connection.read_response())
    finally:
        pool.release(connection)
    return found


def change_subscriptions(shards: bool) -> list[Any]:
    """Subscribe, unsubscribe and subscribe again without reading; return what is heard, and what others' calls give."""
    client = rq_pooled.get_connection()
    found: list[Any] = []
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        if shards:
            pubsub.subscribe("kept")
            pubsub.ssubscribe("left")
            pubsub.sunsubscribe("left")
        else:
            pubsub.subscribe("left")
            pubsub.unsubscribe("left")
            pubsub.subscribe("kept")
        until = time.monotonic() + 10
        while client.publish("kept", "early") < 1 and time.monotonic() < until:
            time.sleep(0.01)
        for _ in range(5):
            found.append(client.blpop(["never"], timeout=0.05))
            found.append(client.publish("kept", "hello"))
            found.append(client.client_getname().rpartition(":")[2])
        heard = []
        while len(heard) < 6 and time.monotonic() < until:
            message = pubsub.get_message(timeout=0.2)
            if message is not None:
                heard.append(message["data"])
        found.append(heard)
    return found


def hear_oneself(channel: str) -> Any:
    """Subscribe and publish without reading in between; return who was reached, and what was heard."""
    client = rq_pooled.get_connection()
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(channel)
        reached, message = client.publish(channel, "hello"), None
        for _ in range(20 if reached else 0):
            message = message or pubsub.get_message(timeout=0.5)
        return reached, message and message["data"]


def unsubscribe_and_ask() -> list[Any]:
    """Write UNSUBSCRIBE and an ECHO at once, several times; return the replies."""
    pool = rq_pooled.get_pool()
    found: list[Any] = []
    for words in (["UNSUBSCRIBE"], ["UNSUBSCRIBE", "a", "b"]):
        connection = pool.get_connection()
        try:
            connection.send_packed_command(
                connection.pack_commands([["SUBSCRIBE", "a"], words, ["ECHO", "x"], ["ECHO", "y"]])
            )
            while not found or found[-1] != b"y":
                found.append(connection.read_response())
            found[-1] = "end"
        finally:
            connection.disconnect()
            pool.release(connection)
    return [reply if isinstance(reply, bytes | str) else reply[-1] for reply in found]


def send_each(commands: list[list[bytes]]) -> None:
    """Send each command on a stream of its own, and wait for the beginning of a reply."""
    for words in commands:
        with _raw() as stream:
            stream.sendall(pack_commands([words]))
            stream.recv(1)


def flood(gate: str) -> int:
    """Write commands as fast as they are taken until ``gate`` exists, in four streams; return how many replies came."""
    replies: list[int] = []

    def write(stream: socket.socket) -> None:
        command = pack_commands([["ECHO", "flood"]])
        with contextlib.suppress(OSError):
            while not os.path.exists(gate):
                stream.sendall(command * 500)
            stream.shutdown(socket.SHUT_WR)

    def read() -> None:
        with _raw() as stream:
            writer = threading.Thread(target=write, args=(stream,))
            writer.start()
            with contextlib.suppress(OSError):
                while data := stream.recv(1 << 20):
                    replies.append(data.count(b"flood"))
            writer.join()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(replies)


def slowest_echo(times: int) -> float:
    """Return the seconds of the slowest of so many calls."""
    client = rq_pooled.get_connection()
    slowest = 0.0
    for number in range(times):
        began = time.monotonic()
        if client.echo(str(number)) != str(number).encode():
            raise AssertionError("somebody else's reply")
        slowest = max(slowest, time.monotonic() - began)
    return slowest
