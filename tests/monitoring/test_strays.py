"""Clients that jobs build themselves: the guard finds their connections from outside and names them once."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from support import WorkerProcess, running_worker, wait_until

from rq_pooled.capacity import strays
from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.log_lines import WorkerLog
from rq_pooled.parent.guard import Guard
from rq_pooled.process.event_loop import Loop

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")

NAMED = "of their own to the server"
LOOPBACK = socket.inet_aton("127.0.0.1")
#: What a process holds that connects in every way in which a client may reach a server on loopback.
_CLIENT = """
import socket, sys
port = int(sys.argv[1])
v4 = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
v6 = socket.socket(socket.AF_INET6)
v6.connect(("::ffff:127.0.0.1", port))
other = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
pair = socket.socketpair()
print("ready", flush=True)
sys.stdin.read()
"""


def found_by(pids: list[int], server: strays.Address, proc: Path = strays.PROC) -> tuple[dict[int, int], int]:
    """Return what a look finds, and in how many steps."""
    search, steps = strays.look(pids, server, proc), 1
    while True:
        try:
            next(search)
        except StopIteration as end:
            return end.value, steps
        steps += 1


@contextmanager
def client_process(port: int, other: int) -> Iterator[int]:
    """Run a process that holds three connections to ``port``, and one to ``other``."""
    line = [sys.executable, "-c", _CLIENT, str(port), str(other)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.stdin.close()
            process.wait(10)


@contextmanager
def worker_of(server: EmbeddedServer, folder: Path, concurrency: int = 1) -> Iterator[WorkerProcess]:
    """Run a worker whose guard looks ten times a second."""
    with running_worker(
        server.url,
        "q",
        log=folder / "log",
        concurrency=concurrency,
        RQ_POOLED_GUARD_INTERVAL="0.1",
        STRAY_URL=server.url,
    ) as worker:
        yield worker
        assert "Traceback" not in worker.output() and "error in" not in worker.output()


def result_of(redis: Redis, function: str, *args: object) -> object:
    """Run a job and return what it returned."""
    job = Queue("q", connection=redis).enqueue(function, *args)
    wait_until(lambda: job.get_status(refresh=True) in ("finished", "failed"), what=function)
    assert job.get_status() == "finished", job.latest_result().exc_string
    return job.return_value()


def wait_for_looks(redis: Redis, number: int) -> None:
    """Wait until the guard has looked so many times more; each look is an INFO."""
    for _ in range(number):
        before = redis.info("commandstats")["cmdstat_info"]["calls"]
        # Each question here is an INFO, too.
        asked = [0]

        def looked(before: int = before, asked: list[int] = asked) -> bool:
            asked[0] += 1
            return bool(redis.info("commandstats")["cmdstat_info"]["calls"] > before + asked[0])

        wait_until(looked, what="a look of the guard")


def test_a_client_at_import_is_named_and_again_when_doubled(
    redis: Redis, server: EmbeddedServer, tmp_path: Path
) -> None:
    """A job module's own client is named once in one line with horse, number and cure; again only once doubled."""
    with worker_of(server, tmp_path) as worker:
        pid = result_of(redis, "stray_jobs.ping")
        worker.wait_for(f"guard: jobs of horse {pid} hold 1 connection {NAMED} (1 in all horses), from clients")
        assert "use rq_pooled.get_connection() in jobs, see docs/pool.md" in worker.output()
        result_of(redis, "stray_jobs.open_more", 2)
        worker.wait_for(f"guard: jobs of horse {pid} hold 3 connections {NAMED} (3 in all horses)")
        result_of(redis, "stray_jobs.open_more", 2)
        wait_for_looks(redis, 5)
        assert worker.output().count(NAMED) == 2
        result_of(redis, "stray_jobs.open_more", 1)
        worker.wait_for(f"hold 6 connections {NAMED}")
        assert worker.output().count(NAMED) == 3


def test_a_client_of_asyncio_is_named(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """A client of redis.asyncio that lives on in a horse is named as any other."""
    with worker_of(server, tmp_path) as worker:
        pid = result_of(redis, "stray_jobs.ping_async")
        worker.wait_for(f"guard: jobs of horse {pid} hold 1 connection {NAMED}")


def test_a_worker_without_such_jobs_is_not_named(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """A worker whose jobs open nothing holds only its own connections, which are not called its jobs'."""
    with worker_of(server, tmp_path, concurrency=3) as worker:
        for _ in range(10):
            result_of(redis, "crash_jobs.nothing")
        wait_for_looks(redis, 5)
        assert NAMED not in worker.output()


def test_a_worker_whose_jobs_use_get_connection_is_not_named(
    redis: Redis, server: EmbeddedServer, tmp_path: Path
) -> None:
    """Jobs that use Redis only through rq_pooled.get_connection() hold no connection of their own."""
    with worker_of(server, tmp_path) as worker:
        Queue("q", connection=redis).enqueue("stray_jobs.hold_routed", str(tmp_path))
        wait_until((tmp_path / "holds").exists, what="a job that holds a connection")
        wait_for_looks(redis, 5)
        (tmp_path / "go").touch()
        assert NAMED not in worker.output()


def test_every_way_to_the_server_counts(server: EmbeddedServer) -> None:
    """IPv4 and IPv4-mapped connections of a process to the server count; those to others and other sockets do not."""
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_connection((server.host, server.port)) as own:
        address = strays.peer(own.fileno())
        assert address == (LOOPBACK, server.port)
        with client_process(server.port, other.getsockname()[1]) as pid:
            assert found_by([pid], address)[0] == {pid: 3}
            # This process's own connections are no horse's, though a forked horse has copies.
            assert found_by([os.getpid(), pid], address)[0] == {pid: 3}
        assert found_by([pid], address)[0] == {}  # gone


def test_other_descriptors_have_no_server() -> None:
    """A server behind a Unix socket, a file and a closed descriptor have no address, and raise nothing."""
    first, second = socket.socketpair()
    with first, second, open(os.devnull) as file:
        assert strays.peer(first.fileno()) is None and strays.peer(file.fileno()) is None
    assert strays.peer(10**6) is None


def test_malformed_and_large_tables(tmp_path: Path) -> None:
    """Lines that cannot be read are skipped, IPv6 is told by all of its address, and a long table takes many steps."""
    server = (socket.inet_pton(socket.AF_INET6, "2001:db8::1"), 6379)

    def remote(address: str, port: int = 6379, state: int = 1, inode: object = 7) -> str:
        packed = socket.inet_pton(socket.AF_INET6, address)
        words = [packed[i : i + 4] if sys.byteorder == "big" else packed[i : i + 4][::-1] for i in range(0, 16, 4)]
        tail = f"00000000:00000000 00:00000000 00000000 0 0 {inode} 1"
        return f" 0: {'0' * 32}:C000 {b''.join(words).hex().upper()}:{port:04X} {state:02X} {tail}"

    for process, sockets in (("1", [7, 8, 9, 10, 11]), ("self", [11])):
        (tmp_path / process / "fd").mkdir(parents=True)
        for number, inode in enumerate(sockets):
            (tmp_path / process / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
    (tmp_path / "1" / "fd" / "x").symlink_to("socket:[much]")
    assert found_by([1], server, tmp_path)[0] == {}  # no tables
    lines = [
        *(remote("2001:db8::1", inode=7), remote("2001:db8::2", inode=8), remote("2001:db8::1", port=1, inode=8)),
        *(remote("2001:db8::1", state=8, inode=9), remote("2001:db8::1", inode="x"), remote("2001:db8::1", inode=11)),
        *(":18EB 01 ", "a b XYZ:18EB 01 c d e f g 8", "\x00\xff" * 20, "", remote("2001:db8::1", inode=10)),
    ]
    (tmp_path / "self" / "net").mkdir()
    table = "\n".join([*lines[:-1], *[remote("2001:db8::9", inode=1)] * 5000, lines[-1]])
    (tmp_path / "self" / "net" / "tcp6").write_text(table + "\n")
    found, steps = found_by([1, 2], server, tmp_path)
    assert found == {1: 2} and steps > 10
    (tmp_path / "self" / "net" / "tcp6").write_text("\n".join([remote("::1"), remote("::ffff:127.0.0.2", inode=8), ""]))
    assert found_by([1], (LOOPBACK, 6379), tmp_path)[0] == {1: 2}  # "localhost" is either


@contextmanager
def guarding_of(allowed: int = 0) -> Iterator[Guard]:
    """Return a guard without a server, and thus without a look of its own."""
    parent: Any = SimpleNamespace(settings=Settings(), log=WorkerLog(logging.getLogger("test"), "w"), loop=Loop())
    parent.command, parent.brake = SimpleNamespace(connected=False), SimpleNamespace()
    yield Guard(parent, allowed=allowed)
    parent.loop.close()


def test_connections_that_a_horse_may_have_are_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Where horses have a connection of their own by right, only those beyond it are named."""
    with guarding_of(allowed=1) as guarding, caplog.at_level("WARNING"):
        guarding._name_strays({1: 1, 2: 1})
        assert not caplog.messages
        guarding._name_strays({1: 2, 2: 4})
    (message,) = caplog.messages
    assert f"jobs of horse 2 hold 3 connections {NAMED} (4 in all horses)" in message


def test_a_horse_forked_during_a_search_inherits_no_table(server: EmbeddedServer) -> None:
    """What a search has open is closed in a horse that is forked between two of its steps."""

    def tables() -> int:
        links = [f"/proc/self/fd/{descriptor}" for descriptor in os.listdir("/proc/self/fd")]
        return sum(os.path.lexists(link) and "/net/tcp" in os.readlink(link) for link in links)

    with guarding_of() as guarding, client_process(server.port, server.port) as pid:
        guarding.start()
        guarding._search = strays.look([pid], (LOOPBACK, server.port))
        while not tables():
            next(guarding._search)
        child = os.fork()
        if child == 0:
            os._exit(tables())
        assert os.waitpid(child, 0)[1] == 0
        assert tables() == 1
        guarding._search.close()
