"""Sentinel: wherever the server's address is asked of sentinels, with real ones."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import crash_jobs
import pytest
from commands import PASSWORD, refusal, run
from conftest import KIND
from keys import named
from redis import Redis
from redis.exceptions import AuthenticationError
from redis.sentinel import Sentinel
from support import PYTHONPATH, WorkerProcess, wait_until
from topology import SERVICE, Topology

import rq_pooled
from rq_pooled.config import Settings
from rq_pooled.config.sentinel_url import parse_sentinel_url
from rq_pooled.connection.finder import MasterAway
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError, ServerUnreachable
from rq_pooled.pool import Pool, get_connection, get_pool

pytestmark = pytest.mark.timeout(120)

SENTINEL_PASSWORD = "wAchtTurm"


@pytest.fixture
def topology(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> Iterator[Topology]:
    """One sentinel, no passwords."""
    one = Topology(start_server, tmp_path, KIND)
    yield one
    one.close()


@pytest.fixture
def locked(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> Iterator[Topology]:
    """Servers with one password and a sentinel with another."""
    one = Topology(start_server, tmp_path, KIND, password=PASSWORD, sentinel_password=SENTINEL_PASSWORD)
    yield one
    one.close()


def locked_url(topology: Topology) -> str:
    """Return the URL with both passwords."""
    return f"sentinel://:{PASSWORD}@{topology.hosts}/{SERVICE}/0?sentinel_password={SENTINEL_PASSWORD}"


def ours(client: Redis) -> list[str]:
    """Return the roles of rq_pooled's connections to a server, in order."""
    names = [entry["name"] for entry in client.client_list()]
    return sorted(name.rpartition(":")[2] for name in names if name.startswith(named("rq_pooled:")))


def nobody_listens() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- URLs
# ----------------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_url() -> None:
    """Hosts, service, database and both logins are told apart, decoded once."""
    url = "rediss+sentinel://us%3Aer:p%40%2Fss@h1:1,[::1],h3/my%20master/5?sentinel_username=s&sentinel_password=a%26b"
    parts = parse_sentinel_url(url + "&sentinel_tls=no&ssl_cert_reqs=none&socket_timeout=2")
    assert parts.sentinels == (("h1", 1), ("::1", 26379), ("h3", 26379))
    assert (parts.service, parts.sentinel_username, parts.sentinel_password) == ("my master", "s", "a&b")
    assert parts.sentinel_tls is False
    options = Pool(Settings(url=url)).connection_kwargs
    assert (options["username"], options["password"], options["db"]) == ("us:er", "p@/ss", 5)
    assert parse_sentinel_url("rediss+sentinel://h/m").sentinel_tls is True
    assert parse_sentinel_url("sentinel://h/m").sentinel_tls is False


def test_the_address_is_shown_without_logins() -> None:
    """What the pool calls its server, in messages and repr, names sentinels and service and no password."""
    url = f"sentinel://u:{PASSWORD}@b:2,a/mymaster/3?sentinel_password={SENTINEL_PASSWORD}"
    pool = Pool(Settings(url=url))
    assert pool.address == "sentinel://a:26379,b:2/mymaster/3"
    connection = pool.make_connection()
    shown = repr(pool) + str(pool) + repr(connection) + repr(connection.connection_pool) + repr(pool.settings)
    assert PASSWORD not in shown and SENTINEL_PASSWORD not in shown


def test_an_unknown_parameter_is_refused() -> None:
    """A parameter that nobody reads is a mistake to be told of, not to be ignored."""
    with pytest.raises(ConfigurationError, match="'sentinel_pasword'"):
        get_pool(Settings(url=f"sentinel://h/m?sentinel_pasword={SENTINEL_PASSWORD}"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"sentinel://:{PASSWORD}@h1:26379,h2:x/mymaster/0", "malformed"),
        (f"sentinel://:{PASSWORD}@h1:26379,h2", "does not name the service"),
        (f"sentinel://h1/mymaster/0?sentinel_password={PASSWORD}&sentinel_tls=on", "neither yes nor no"),
    ],
)
def test_the_command_refuses_a_bad_url_in_one_line(url: str, words: str) -> None:
    """A Sentinel URL that cannot be used ends the command with code 2, in one line that shows the form."""
    for line in (
        refusal(run(["-m", "rq_pooled", "worker", "--url", url, "q"])),
        refusal(run(["-m", "rq_pooled", "worker", "q"], RQ_POOLED_URL=url)),
    ):
        assert words in line and "sentinel://host1:26379,host2:26379/service/db" in line


# -- the web pool
# --------------------------------------------------------------------------------------------------------


def test_the_pool_finds_the_master_and_leaves_the_sentinels(topology: Topology) -> None:
    """A queue works over a Sentinel URL; what asked the sentinels is closed at once, for every connection opened."""
    connection = get_connection(Settings(url=topology.url))
    queue = rq_pooled.Queue("q", connection=connection)
    job = queue.enqueue(crash_jobs.nothing)
    assert topology.master.client().lrange(named("rq:queue:q"), 0, -1) == [job.id.encode()]
    with topology.sentinels[0].client() as asked:
        wait_until(lambda: ours(asked) == [], what="no connection to the sentinel")
    assert ours(topology.master.client()) == ["web"]
    connection.connection_pool.disconnect()


def test_a_queue_without_a_connection(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    """RQ_POOLED_URL may name sentinels."""
    monkeypatch.setenv("RQ_POOLED_URL", topology.url)
    job = rq_pooled.Queue("q").enqueue(crash_jobs.nothing)
    assert topology.master.client().exists(named(f"rq:job:{job.id}"))
    get_pool().disconnect()


def test_dead_and_silent_sentinels_cost_bounded_time(topology: Topology) -> None:
    """The next sentinel is asked where one is dead or does not answer; the one that answered is asked first then."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{nobody_listens()},127.0.0.1:{silent.getsockname()[1]},{topology.hosts}"
        pool = Pool(Settings(url=f"sentinel://{hosts}/{SERVICE}", socket_connect_timeout=3))
        began = time.monotonic()
        with Redis(connection_pool=pool) as client:
            assert client.ping()
        assert time.monotonic() - began < 3 + 5
        silent.settimeout(0.0)
        silent.accept()[0].close()
        pool.disconnect()
        assert client.ping()
        with pytest.raises(BlockingIOError):  # nobody came back to it
            silent.accept()
        pool.disconnect()


@pytest.mark.parametrize("reply", [b"*-1", b":5", b"+OK", b"*1\r\n*1\r\n$4\r\nname", b"*1\r\n-ERR x", b"HTTP/1.1 400"])
def test_a_sentinel_that_answers_oddly_is_no_help(reply: bytes) -> None:
    """A reply that is no list of masters is an unreachable server with the reason, and no other error."""

    def answer() -> None:
        with suppress(OSError):
            while True:
                asked, _ = door.accept()
                with asked:
                    while asked.recv(1000):
                        asked.sendall(reply + b"\r\n")

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=answer, daemon=True).start()
        url = f"sentinel://127.0.0.1:{door.getsockname()[1]}/{SERVICE}/0?socket_connect_timeout=2"
        with pytest.raises(ServerUnreachable, match="is no help"):
            get_connection(Settings(url=url)).ping()


def test_what_is_wrong_with_each_sentinel_is_said(topology: Topology) -> None:
    """Where no sentinel helps, the error says of each why not."""
    port = nobody_listens()
    pool = Pool(Settings(url=f"sentinel://127.0.0.1:{port},{topology.hosts}/other/0", reconnect_base=0.01))
    with pytest.raises(ServerUnreachable) as caught:
        Redis(connection_pool=pool).ping()
    text = str(caught.value)
    assert f"127.0.0.1:{port} is no help" in text and f"{topology.hosts} watches 'mymaster'" in text
    assert isinstance(caught.value.__cause__, MasterAway) and not caught.value.__cause__.passing
    # A server in place of a sentinel.
    pool = Pool(Settings(url=f"sentinel://127.0.0.1:{topology.master.port}/{SERVICE}", reconnect_base=0.01))
    with pytest.raises(ServerUnreachable, match="unknown command"):
        Redis(connection_pool=pool).ping()


@pytest.mark.parametrize("login", ["", "?sentinel_password=wrong", "?sentinel_username=u&sentinel_password=wrong"])
def test_sentinels_that_refuse_the_login(locked: Topology, login: str) -> None:
    """A missing or wrong password of the sentinels is said as such, and not tried again and again."""
    pool = Pool(Settings(url=f"sentinel://:{PASSWORD}@{locked.hosts}/{SERVICE}/0{login}"))
    with pytest.raises(ServerUnreachable, match="sentinel_password in the URL.*tried 1 time") as caught:
        Redis(connection_pool=pool).ping()
    assert isinstance(caught.value.__cause__, AuthenticationError)
    assert PASSWORD not in str(caught.value) and "wrong" not in str(caught.value).replace("wrong number", "")
    line = refusal(run(["-m", "rq_pooled", "worker", "q"], RQ_POOLED_URL=pool.settings.url))
    assert "refuses the login" in line and "sentinel_password" in line


def test_a_connection_to_replicas_is_refused(topology: Topology) -> None:
    """What Sentinel.slave_for() gives cannot be written to: the pool says so before anything is opened."""
    sentinel = Sentinel([("127.0.0.1", topology.sentinels[0].port)])
    with pytest.raises(ConfigurationError, match="replicas of 'mymaster'"):
        get_pool(client=sentinel.slave_for(SERVICE))


# -- workers
# -------------------------------------------------------------------------------------------------------------


def check_worker(topology: Topology, worker: WorkerProcess, password: str = "") -> None:
    """Check that a worker works, with two connections to the master and none to the sentinel."""
    master = topology.master.client()
    queue = rq_pooled.Queue("q", connection=master)
    jobs = [queue.enqueue(crash_jobs.nothing) for _ in range(20)]
    wait_until(lambda: all(job.get_status() == "finished" for job in jobs), what="finished jobs")
    # In a job, the pool of the process leads to the master, too.
    inside = queue.enqueue(crash_jobs.ping_through_the_pool)
    wait_until(lambda: inside.get_status() in ("finished", "failed"), what="the job that uses Redis")
    assert inside.return_value() == f"sentinel://{topology.hosts}/{SERVICE}/0", worker.output()
    wait_until(lambda: set(ours(master)) - {"jobs"} == {"command", "listen"}, what="its connections")
    with topology.sentinels[0].client(password=password or None) as asked:
        wait_until(lambda: ours(asked) == [], what="no connection to the sentinel")
    assert PASSWORD not in worker.output() and SENTINEL_PASSWORD not in worker.output()


def start(command: list[str], log: Path, **environment: str) -> WorkerProcess:
    """Start a worker by any command."""
    env = {**os.environ, "PYTHONPATH": f"{log.parent}{os.pathsep}{PYTHONPATH}", "PYTHONUNBUFFERED": "1", **environment}
    worker = WorkerProcess([sys.executable, "-m", *command], env, log)
    worker.wait_for("connections: command")
    return worker


def test_the_own_command_with_a_url(locked: Topology, tmp_path: Path) -> None:
    """`rq-pooled worker --url sentinel://…` works with passwords of server and sentinels, on two connections."""
    url = locked_url(locked)
    worker = start(["rq_pooled", "worker", "--url", url, "--concurrency", "3", "q"], tmp_path / "log")
    try:
        check_worker(locked, worker, SENTINEL_PASSWORD)
        assert worker.stop() == 0
    finally:
        worker.kill()


def test_a_worker_without_a_connection(topology: Topology, tmp_path: Path) -> None:
    """`Worker(["q"])` with RQ_POOLED_URL works as well."""
    script = tmp_path / "own_script.py"
    script.write_text("from rq_pooled import Worker\nWorker(['q']).work()\n")
    worker = start(["own_script"], tmp_path / "log", RQ_POOLED_URL=topology.url)
    try:
        check_worker(topology, worker)
        assert worker.stop() == 0
    finally:
        worker.kill()


@pytest.mark.parametrize(
    "command", [["rq.cli", "worker", "--worker-class", "rq_pooled.Worker"], ["rq_pooled", "worker"]]
)
def test_the_setting_sentinel_of_rq(locked: Topology, tmp_path: Path, command: list[str]) -> None:
    """RQ's own setting SENTINEL (`rq worker -c`) leads the worker to the master, with both passwords."""
    port = locked.sentinels[0].port
    (tmp_path / "sentinel_settings.py").write_text(
        f"SENTINEL = {{'INSTANCES': [('127.0.0.1', {port})], 'MASTER_NAME': {SERVICE!r}, 'DB': 0, 'PASSWORD': "
        f"{PASSWORD!r}, 'SENTINEL_KWARGS': {{'password': {SENTINEL_PASSWORD!r}}}}}\n"
    )
    worker = start([*command, "-c", "sentinel_settings", "q"], tmp_path / "log", RQ_POOLED_CONCURRENCY="2")
    try:
        check_worker(locked, worker, SENTINEL_PASSWORD)
        assert worker.stop() == 0
    finally:
        worker.kill()


def test_other_commands_take_the_url(locked: Topology) -> None:
    """`rq-pooled settings` shows a Sentinel URL without its passwords."""
    result = run(["-m", "rq_pooled", "settings"], RQ_POOLED_URL=locked_url(locked))
    assert result.returncode == 0 and PASSWORD not in result.stdout and SENTINEL_PASSWORD not in result.stdout
    assert re.search(r"RQ_POOLED_URL +sentinel://\*\*\*@127", result.stdout)


def test_no_master_at_boot(topology: Topology) -> None:
    """A service that nobody watches ends the worker with 75 at once; the line says what the sentinels watch."""
    line = refusal(run(["-m", "rq_pooled", "worker", "--url", topology.url.replace(SERVICE, "typo"), "q"]), 75)
    assert "'typo'" in line and "watches 'mymaster'" in line
    port = nobody_listens()
    line = refusal(run(["-m", "rq_pooled", "worker", "--url", f"sentinel://127.0.0.1:{port}/mymaster", "q"]), 75)
    assert f"127.0.0.1:{port}" in line
