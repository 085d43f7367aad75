"""Bad input ends in one clear line and exit code 2 (75 where trying again may help), and never shows a password."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash_jobs
import entry_jobs
import pytest
from commands import PASSWORD, SCRIPT, WAYS, free_port, refusal, run
from keys import named
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue
from support import running_worker, wait_until

from rq_pooled import Queue as PooledQueue
from rq_pooled import Scheduler, Sweeper
from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError, RQUnsupported, ServerUnsupported
from rq_pooled.health import health
from rq_pooled.pool import get_connection
from rq_pooled.worker.server_check import check_server

URL_SCRIPT = """
from rq_pooled import Worker
Worker(["q"]).work(burst=True)
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


# -- what is installed ------------------------------------------------------------------------------------------------

#: Runs a program in an interpreter in which RQ says that it is another version.
WITH_RQ = """
import runpy, sys
import rq.version
rq.version.VERSION = sys.argv.pop(1)
sys.argv.pop(0)
if sys.argv.pop(0) == "-m":
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    exec(sys.argv[0])
"""


@every_way
def test_rq_4_is_refused(server: EmbeddedServer, redis: Redis, way: list[str]) -> None:
    """With a major version of RQ that would fail every job no worker starts, and the jobs stay where they are."""
    job = Queue("q", connection=redis).enqueue(crash_jobs.nothing)
    before = set(redis.keys("*"))
    line = refusal(run(["-c", WITH_RQ, "4.0.0", *way], server.url))
    assert "rq 4.0.0 is installed" in line
    assert "pip install 'rq>=2.11,<4'" in line
    assert set(redis.keys("*")) == before
    assert job.get_status(refresh=True) == "queued"


def test_rq_2_13_is_used_with_a_warning(server: EmbeddedServer, redis: Redis) -> None:
    """A minor version of RQ that the tests have not seen is worth a warning, not an end."""
    result = run(["-c", WITH_RQ, "2.13.0", *WAYS["rq worker"]], server.url)
    assert result.returncode == 0, result.stderr
    assert "not tested with rq 2.13.0, but with 2.11, 2.12, 3.0" in result.stdout + result.stderr


@pytest.mark.parametrize("make", [PooledQueue, Sweeper, Scheduler])
def test_rq_4_is_refused_by_everything_that_writes(
    redis: Redis, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that relies on RQ's inside is made with another major version of it."""
    monkeypatch.setattr("rq.version.VERSION", "4.0.0")
    with pytest.raises(RQUnsupported, match="rq 4.0.0 is installed"):
        make("q", connection=redis)


# -- classes of the user's own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["rq worker", "rq-pooled worker"])
@pytest.mark.parametrize(
    "option",
    ["--job-class=entry_jobs.ShopJob", "--queue-class=entry_jobs.ShopQueue", "--worker-class=entry_worker.ShopWorker"],
)
def test_a_class_with_keys_of_its_own_is_refused(
    server: EmbeddedServer, redis: Redis, program: str, option: str
) -> None:
    """A class that moves RQ's keys ends the worker at once, since its jobs would be dropped as deleted."""
    job = Queue("q", connection=redis).enqueue(crash_jobs.nothing)
    name, _, cls = option.partition("=")
    line = refusal(run([*WAYS[program][:-1], name, cls, "q"], server.url))
    assert re.search(rf"{cls} sets redis_\w+_prefix to 'shop:.*RQ's own keys .*: remove it", line), line
    assert job.get_status(refresh=True) == "queued" and Queue("q", connection=redis).job_ids == [job.id]


def test_a_queue_and_a_scheduler_with_keys_of_their_own_are_refused(redis: Redis) -> None:
    """What our scripts would write under RQ's keys is refused for a class with others; a plain enqueue is RQ's."""
    queue = PooledQueue("q", connection=redis, job_class=entry_jobs.ShopJob, max_length=5)
    for enqueue in (
        lambda: queue.enqueue(crash_jobs.nothing),
        lambda: queue.enqueue_many([Queue.prepare_data(crash_jobs.nothing)]),
        lambda: PooledQueue("q", connection=redis, job_class=entry_jobs.ShopJob).enqueue(crash_jobs.nothing, once="k"),
        lambda: Scheduler("q", connection=redis, job_class=entry_jobs.ShopJob),
    ):
        with pytest.raises(ConfigurationError, match="redis_job_namespace_prefix to 'shop:job:'"):
            enqueue()
    assert not redis.keys("*job*")
    job = PooledQueue("q", connection=redis, job_class=entry_jobs.ShopJob).enqueue(crash_jobs.nothing)
    assert redis.exists(f"shop:job:{job.id}")


# -- settings ----------------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("CONCURRENCY", "0", "CONCURRENCY is 0 .*at least 1"),
        ("CONCURRENCY", "many", "CONCURRENCY is many"),
        ("MAX_CONNECTIONS", "2", "MAX_CONNECTIONS is 2 .*at least 3"),
        ("PRELOAD", "no_such_module_anywhere", "PRELOAD .*'no_such_module_anywhere'.*cannot be imported"),
        ("PRELOAD", "broken_preload", "PRELOAD .*'broken_preload'.*cannot be imported.*on purpose"),
        ("PRELOAD", "leaving_preload", "PRELOAD .*'leaving_preload'.*cannot be imported"),
    ],
)
def test_a_setting_that_cannot_be_used(
    server: EmbeddedServer, redis: Redis, way: list[str], setting: str, value: str, words: str
) -> None:
    """A wrong setting is named with its value and what is allowed, and nothing is half started."""
    line = refusal(run(way, server.url, **{f"RQ_POOLED_{setting}": value}))
    assert re.search(words, line), line
    assert not redis.keys("*")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("no-scheme-at-all", "no scheme"),
        ("http://localhost:1/0", "scheme 'http' is unknown"),
        (f"redis://:{PASSWORD}@localhost:port/0", "malformed"),
        (f"redis://:{PASSWORD}@localhost:6379/database", "not a number"),
        (f"redis://user:{PASSWORD}/x@localhost:6379/0", "malformed"),
        (f"redis://:{PASSWORD}@localhost:99999/0", "malformed"),
    ],
)
@pytest.mark.parametrize("way", [WAYS["rq-pooled worker"], ["-c", URL_SCRIPT]], ids=["rq-pooled worker", "script"])
def test_a_malformed_url(way: list[str], url: str, words: str) -> None:
    """A URL that cannot be used is refused before anything connects, without the password in it."""
    if way[0] == "-c":  # constructing has to raise: there is no work() that could end the program
        result = run(way, RQ_POOLED_URL=url)
        assert result.returncode == 1
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("rq_pooled.errors.ConfigurationError: URL is ") and words in last
        assert PASSWORD not in result.stdout + result.stderr
    else:
        assert words in refusal(run(way, url))
        assert words in refusal(run(["-m", "rq_pooled", "worker", "q"], RQ_POOLED_URL=url))


#: A parameter of a URL, with TLS or without, and what the refusal says.
PARAMETERS = [
    ("redis", "ssl=true", "'ssl', which redis-py does not know for redis://; remove it, or write rediss:// for TLS"),
    ("redis", "ssl_cert_reqs=none", "write rediss:// for TLS"),
    ("redis", "family=0", "'family', which redis-py does not know"),
    ("redis", "prefix=x", "'prefix', which redis-py does not know"),
    ("redis", "path=x", "'path', which redis-py does not know"),
    ("redis", "connection_class=x", "'connection_class', which no text can be"),
    ("redis", "redis_connect_func=x", "'redis_connect_func', which no text can be"),
    ("redis", "credential_provider=x", "'credential_provider', which no text can be"),
    ("redis", "socket_keepalive_options=5", "'socket_keepalive_options', which no text can be"),
    ("redis", "maint_notifications_config=x", "'maint_notifications_config', which no text can be"),
    ("redis", "socket_type=x", "'socket_type', which no text can be"),
    ("redis", "socket_timeout=-1", "'socket_timeout' that cannot be used: it must be a number above 0"),
    ("redis", "socket_connect_timeout=nan", "'socket_connect_timeout' that cannot be used"),
    ("redis", "socket_connect_timeout=1e400", "'socket_connect_timeout' that cannot be used"),
    ("redis", "socket_read_size=0", "'socket_read_size' that cannot be used"),
    ("redis", "encoding=nope", "'encoding' that cannot be used: it must be the name of an encoding"),
    ("redis", "encoding=utf-16", "'encoding' that cannot be used: it must be utf-8"),
    ("redis", "encoding_errors=nope", "'encoding_errors' that cannot be used"),
    ("redis", "db=-1", "'db' that cannot be used: it must be the number of a database"),
    ("redis", "timeout=nan", "'timeout' that cannot be used"),
    ("redis", "max_connections=0", "'max_connections' that cannot be used"),
    ("rediss", "ssl_cert_reqs=bogus", "'ssl_cert_reqs' that cannot be used: it must be none or optional or required"),
    ("rediss", "ssl_ca_certs=/nope.pem", "'ssl_ca_certs' that cannot be used: it must be a file of certificates (PEM)"),
    (
        "rediss",
        "ssl_ca_certs=/etc/passwd",
        "'ssl_ca_certs' that cannot be used: it must be a file of certificates (PEM)",
    ),
    ("rediss", "ssl_certfile=/nope.pem", "'ssl_certfile' that cannot be used: it must be a file"),
    ("rediss", "ssl_ciphers=x", "'ssl_ciphers' that cannot be used"),
    ("rediss", "ssl_min_version=7", "'ssl_min_version' that cannot be used"),
]


@pytest.mark.parametrize(("scheme", "parameter", "words"), PARAMETERS)
def test_a_parameter_of_a_url_that_cannot_work(scheme: str, parameter: str, words: str) -> None:
    """A parameter that would fail later, with a traceback or as the server's error, is refused where the URL is
    read.
    """
    settings = Settings(url=f"{scheme}://:{PASSWORD}@127.0.0.1:{free_port()}/0?{parameter}")
    with pytest.raises(ConfigurationError) as caught:
        get_connection(settings)
    assert words in str(caught.value) and PASSWORD not in str(caught.value)


@pytest.mark.parametrize("parameter", ["ssl=true", "socket_timeout=-1", "encoding=nope", "connection_class=x"])
@pytest.mark.parametrize("command", [["worker", "--burst"], ["stats"], ["check"], ["sweep", "--ghosts"]])
def test_a_parameter_of_a_url_in_every_command(server: EmbeddedServer, parameter: str, command: list[str]) -> None:
    """Every command refuses such a parameter in one line, the worker too, with 2 (check with UNKNOWN)."""
    result = run(["-m", "rq_pooled", *command], RQ_POOLED_URL=f"{server.url}?{parameter}")
    line = refusal(result, 3 if command == ["check"] else 2)
    assert repr(parameter.split("=")[0]) in line and "remove" in line


def test_parameters_of_a_url_that_work(server: EmbeddedServer) -> None:
    """What redis-py reads and a server can do with is taken as before."""
    parameters = (
        "socket_timeout=3&health_check_interval=10&protocol=3&encoding=utf8&socket_keepalive=no&max_connections=4"
        "&retry_on_error=x&retry=3"
    )
    with get_connection(Settings(url=f"{server.url}?{parameters}&timeout=0&decode_responses=yes")) as client:
        assert client.ping()


def test_a_wrong_dequeue_strategy_from_a_script(server: EmbeddedServer, redis: Redis) -> None:
    """A strategy that does not exist is refused by work() with the ones that do."""
    script = SCRIPT.replace("burst=True", "dequeue_strategy='newest'")
    assert "use default, random or round_robin" in refusal(run(["-c", script, "{url}"], server.url))
    assert not redis.keys("*")


def test_an_unknown_setting_from_a_script(server: EmbeddedServer) -> None:
    """An argument that is neither RQ's nor a setting is a TypeError where it is written, as for any class."""
    script = SCRIPT.replace("Redis.from_url(sys.argv[1]))", "Redis.from_url(sys.argv[1]), concurency=3)")
    result = run(["-c", script, "{url}"], server.url)
    assert result.returncode == 1 and "concurency" in result.stderr


def test_a_platform_without_fork(server: EmbeddedServer, redis: Redis) -> None:
    """Where os.fork is missing the worker says so instead of failing somewhere inside."""
    line = refusal(run(["-c", "import os; del os.fork" + SCRIPT, "{url}"], server.url))
    assert "os.fork" in line
    assert not redis.keys("*")


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [WAYS["rq-pooled worker"], WAYS["script"]], ids=["rq-pooled worker", "script"])
def test_a_server_that_refuses(way: list[str]) -> None:
    """Where nobody listens the line names the address, and the exit code says that trying again may help."""
    port = free_port()
    line = refusal(run(way, f"redis://:{PASSWORD}@127.0.0.1:{port}/0", RQ_POOLED_GUARD_WAIT="0"), 75)
    assert f"127.0.0.1:{port}" in line


@contextlib.contextmanager
def hanging_up(words: bytes) -> Iterator[str]:
    """Give the URL of something that greets each client with these words and hangs up, as a server does that is
    full.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(words)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


DENIED = b"-DENIED Redis is running in protected mode because protected mode is enabled and no password is set.\r\n"


def test_a_server_in_protected_mode_is_named() -> None:
    """What a server says before it hangs up reaches the operator: commands end with 2, check with UNKNOWN."""
    with hanging_up(DENIED) as url:
        for words in (["worker", "--burst", "q"], ["stats"], ["connections"], ["sweep", "--ghosts"]):
            line = refusal(run(["-m", "rq_pooled", *words], RQ_POOLED_URL=url))
            assert "the server is in protected mode" in line and "assword (requirepass)" in line, line
        checked = run(["-m", "rq_pooled", "check", "--away", "ok"], RQ_POOLED_URL=url)
        assert checked.returncode == 3 and "protected mode" in checked.stdout


def test_a_full_server_is_named_by_every_command(start_server: Callable[..., EmbeddedServer]) -> None:
    """A server that takes no more clients is said to be full, by name of the limit, each time and whatever breaks
    first.
    """
    server = start_server()
    with Redis.from_url(server.url) as redis:
        redis.config_set("maxclients", 1)
        for words in (["stats"], ["connections"], ["sweep", "--ghosts"], ["limit", "q"]):
            line = refusal(run(["-m", "rq_pooled", *words], RQ_POOLED_URL=server.url), 75)
            assert (
                "the server is full: max number of clients reached" in line and "raise the server's maxclients" in line
            )
        checked = run(["-m", "rq_pooled", "check"], RQ_POOLED_URL=server.url)
        assert checked.returncode == 2 and checked.stdout.startswith("CRITICAL - server full: ")
        for _ in range(20):  # which of redis-py's writes breaks is a race
            assert health(connection=Redis.from_url(server.url))["status"] == "full"


@pytest.mark.parametrize(
    "reply",
    [
        b"-ERR max daily request limit exceeded. Limit: 10000",
        b"-MOVED 3999 127.0.0.1:6381",
        b"-OOM command not allowed",
    ],
)
def test_check_is_not_ok_where_every_command_is_refused(reply: bytes) -> None:
    """A server that answers every command with an error is UNKNOWN to check, with what it says."""
    listener, thread = answering(lambda _command: reply + b"\r\n")
    url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
    checked = run(["-m", "rq_pooled", "check", "--away", "ok"], RQ_POOLED_URL=url)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    assert checked.returncode == 3 and checked.stdout.startswith("UNKNOWN - the server refuses: "), checked
    assert reply.decode().split(" ", 1)[1][:15] in checked.stdout


@every_way
@pytest.mark.parametrize(
    "login", ["", f":{PASSWORD}@", f"nobody:{PASSWORD}@"], ids=["missing", "wrong", "unknown user"]
)
def test_a_password_that_is_missing_or_wrong(
    start_server: Callable[..., EmbeddedServer], way: list[str], login: str
) -> None:
    """A refused login is said as such, and no password of either side appears."""
    server = start_server({"requirepass": PASSWORD + "Secret"})
    result = run(way, f"redis://{login}{server.host}:{server.port}/0")
    if way is WAYS["rq worker"]:  # connects before it hands over: what it meets there ends as RQ ends it
        assert PASSWORD not in result.stdout + result.stderr
        assert result.returncode in (1, 2)
    else:
        assert "refuses the login" in refusal(result)


def test_a_wrong_password_of_a_command_is_no_reason_to_try_again(
    start_server: Callable[..., EmbeddedServer],
) -> None:
    """Every command ends with 2 at a refused login, and says that it is the login."""
    server = start_server({"requirepass": PASSWORD + "Secret"})
    for login in (f":{PASSWORD}@", ""):
        result = run(["-m", "rq_pooled", "stats", "--url", "{url}"], f"redis://{login}{server.host}:{server.port}/0")
        line = refusal(result)
        assert "user and password in URL" in line or "Authentication required" in line


@every_way
def test_a_logging_level_that_does_not_exist(way: list[str], server: EmbeddedServer) -> None:
    """An unknown logging level is refused with those that exist; case does not matter."""
    if way is WAYS["script"]:
        way = ["-c", SCRIPT.replace("burst=True", "burst=True, logging_level='noise'"), "{url}"]
    else:
        way = [*way, "--logging_level", "noise"]
    assert "logging level noise is unknown: use DEBUG" in refusal(run(way, server.url))


def test_a_misspelt_variable_is_named_by_the_worker(server: EmbeddedServer) -> None:
    """A worker points out a variable that is nearly a setting, and works all the same."""
    result = run(WAYS["rq-pooled worker"], server.url, RQ_POOLED_CONCURENCY="4")
    assert result.returncode == 0
    assert "RQ_POOLED_CONCURENCY is no setting and has no effect: did you mean RQ_POOLED_CONCURRENCY?" in result.stdout


def test_a_queue_that_is_given_a_url(redis: Redis) -> None:
    """RQ would drop a ``url`` silently, and fail later where a text stands for the connection."""
    with pytest.raises(ConfigurationError, match="takes no URL: set RQ_POOLED_URL"):
        PooledQueue("q", url="redis://localhost")
    with pytest.raises(ConfigurationError, match="takes no URL: set RQ_POOLED_URL"):
        PooledQueue("q", "redis://localhost")  # type: ignore[arg-type]


def test_a_user_who_may_not_subscribe(start_server: Callable[..., EmbeddedServer]) -> None:
    """An ACL without the control channels is refused at start: the worker could not be stopped or told anything."""
    server = start_server()
    server.client().execute_command("ACL", "SETUSER", "worker", "on", f">{PASSWORD}", "~*", "resetchannels", "+@all")
    line = refusal(run(WAYS["script"], f"redis://worker:{PASSWORD}@{server.host}:{server.port}/0"))
    assert "channel" in line.lower()
    assert not server.client().keys("*worker*")


@pytest.mark.parametrize("right", ["time", "lpushx", "exists", "xadd", "set"])
def test_a_user_who_lacks_a_right_of_the_scripts(start_server: Callable[..., EmbeddedServer], right: str) -> None:
    """A command that the scripts need is missed at the start, not with the first job, and named."""
    server = start_server()
    redis = server.client()
    redis.execute_command("ACL", "SETUSER", "worker", "on", f">{PASSWORD}", "~*", "&*", "+@all", f"-{right}")
    job = Queue("q", connection=redis).enqueue(crash_jobs.nothing)
    before = set(redis.keys("*"))
    line = refusal(run(WAYS["rq-pooled worker"], f"redis://worker:{PASSWORD}@{server.host}:{server.port}/0"))
    assert f"access control refuses what a worker does: {right.upper()}; let its user run all commands" in line
    assert job.get_status(refresh=True) == "queued" and set(redis.keys("*")) == before


@every_way
def test_cluster_mode(start_server: Callable[..., EmbeddedServer], way: list[str]) -> None:
    """A cluster node is refused with the reason."""
    server = start_server({"cluster-enabled": "yes", "cluster-port": free_port()})
    redis = server.client()
    redis.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    # A dict or text, as redis-py's version has it.
    state = lambda: re.sub(r"[' b]", "", str(redis.execute_command("CLUSTER INFO")))
    wait_until(lambda: "cluster_state:ok" in state(), what="a working cluster")
    assert "cluster" in refusal(run(way, server.url))


def answering_as(version: str) -> tuple[socket.socket, threading.Thread]:
    """Start a TCP server that speaks just enough to be asked who it is."""
    info = f"redis_version:{version}\r\nredis_mode:standalone\r\n".encode()
    described = b"$%d\r\n%s\r\n" % (len(info), info)
    return answering(lambda data: described if b"INFO" in data else b"+OK\r\n")


def answering(reply: Callable[[bytes], bytes]) -> tuple[socket.socket, threading.Thread]:
    """Start a TCP server that answers each command with ``reply`` of what came with it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                for _ in re.findall(rb"(?:^|\r\n)\*\d+\r\n", data):  # a "*" in a script is no command
                    connection.sendall(reply(data))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    return listener, thread


@pytest.fixture
def old_server() -> Iterator[str]:
    """The URL of something that says it is Redis 6.0."""
    listener, thread = answering_as("6.0.16")
    yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.mark.parametrize("way", [WAYS["rq-pooled worker"], WAYS["script"]], ids=["rq-pooled worker", "script"])
def test_a_server_that_is_too_old(old_server: str, way: list[str]) -> None:
    """A server before 6.2 is refused with its version and the one that is needed."""
    line = refusal(run(way, old_server))
    assert "6.0.16" in line and "6.2" in line


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ("redis_version:5.0.7", "5.0.7"),
        ("redis_version:6.0.20", "6.0.20"),
        ("other:1", "unknown"),
        ("redis_version:7.2.0\r\ncluster_enabled:1", "cluster"),
        ("redis_version:7.2.0\r\nredis_mode:cluster", "cluster"),
    ],
)
def test_servers_that_are_refused(info: str, words: str) -> None:
    """What INFO says decides; the error names it."""
    with pytest.raises(ServerUnsupported, match=words):
        check_server(lambda _: [info.encode()])


def test_a_server_that_does_not_answer_info_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    """An ACL without INFO is no reason to refuse; the log says what was not checked."""
    assert check_server(lambda _: [ResponseError("NOPERM")]) == (6, 2, 0)
    assert "not checked" in caplog.text
    assert check_server(lambda _: [b"redis_version:7.2.5\r\nmaxmemory_policy:noeviction\r\n"]) == (7, 2, 5)
    assert check_server(lambda _: [b"redis_version:8.0-rc1"]) == (8, 0, 0)


def test_a_server_that_evicts_keys_is_warned_of(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """Eviction loses jobs: the worker runs, and says so with the policy's name; noeviction is not spoken of."""
    server = start_server({"maxmemory-policy": "allkeys-lru"})
    for expected in (1, 0):
        with running_worker(server.url, "q", "--burst", log=tmp_path / "log", ready=None) as worker:
            assert worker.wait() == 0
            assert worker.output().count("maxmemory-policy allkeys-lru") == expected
        server.client().config_set("maxmemory-policy", "noeviction")


# -- names -------------------------------------------------------------------------------------------------------------


def test_two_workers_with_one_name(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """The second of two workers with one name is refused, whichever slot collides; the first is not harmed."""
    with running_worker(server.url, "q", "--name", "w", log=tmp_path / "log", concurrency=3) as first:
        for name in ("w", "w-2"):
            script = SCRIPT.replace('["q"]', f'["q"], {name!r}')
            line = refusal(run(["-c", script, "{url}"], server.url), 75)
            assert repr(name) in line and str(first.pid) in line
            assert redis.smembers(named("rq:workers")) == {
                named(b"rq:worker:w"),
                named(b"rq:worker:w-1"),
                named(b"rq:worker:w-2"),
            }
        way = [*WAYS["rq-pooled worker"][:-1], "--name", "w", "q"]
        assert "'w'" in refusal(run(way, server.url), 75)
        way = [*WAYS["rq worker"][:-1], "--name", "w", "q"]
        result = run(way, server.url)
        assert result.returncode in (1, 75)
        job = Queue("q", connection=redis).enqueue(crash_jobs.nothing)
        wait_until(lambda: job.get_status() == "finished", what="the first worker's work")


def test_the_name_of_a_dead_process_is_taken_over_at_once(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """After kill -9 a worker of the same name starts without waiting for the registration to expire."""
    with running_worker(server.url, "q", "--name", "w", log=tmp_path / "first", concurrency=2) as first:
        first.kill()
    assert redis.smembers(named("rq:workers")) == {named(b"rq:worker:w"), named(b"rq:worker:w-1")}
    with running_worker(server.url, "q", "--name", "w", log=tmp_path / "second", concurrency=2) as second:
        assert int(redis.hget(named("rq:worker:w"), "pid")) == second.pid
        assert second.stop() == 0
    assert not redis.smembers(named("rq:workers"))


def test_a_worker_refused_by_a_pool_waits_before_it_ends(server: EmbeddedServer, tmp_path: Path) -> None:
    """Under rq worker-pool, which starts its workers again every second, a refused one is in no hurry."""
    with running_worker(
        server.url,
        "q",
        "-n",
        "1",
        log=tmp_path / "log",
        command=("worker-pool",),
        ready="CONCURRENCY is 0",
        concurrency=0,
    ) as pool:
        wait_until(lambda: pool.output().count("CONCURRENCY is 0") >= 1)
        assert "Traceback" not in pool.output()
