"""The server that demo and tests stand on: it answers, it keeps secrets, and it never outlives its starter."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from rq_pooled import embedded
from rq_pooled.embedded import EmbeddedServer, EmbeddedServerError, find_server
from rq_pooled.errors import ConfigurationError

StartServer = Callable[..., EmbeddedServer]


def _alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _gone(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not _alive(pid):
            return True
        time.sleep(0.01)
    return False


def test_server_is_up_and_named(start_server: StartServer) -> None:
    """After start() the server answers on the advertised loopback port and says what it is."""
    server = start_server()
    with server.client() as client:
        assert client.ping()
    assert server.host == "127.0.0.1" and server.url == f"redis://127.0.0.1:{server.port}/0"
    assert server.kind in ("valkey", "redis") and server.version[0].isdigit()


def test_nothing_is_persisted_unless_asked_for(start_server: StartServer) -> None:
    """By default a restart forgets; with appendonly it remembers, even after a crash, on the same port."""
    for options, kept in (({}, None), ({"appendonly": "yes", "appendfsync": "always"}, b"1")):
        server = start_server(options)
        port = server.port
        with server.client() as client:
            client.set("key", 1)
            server.kill()
            assert server.pid is None
            server.start()
            assert (client.get("key"), server.port) == (kept, port)


def test_password_stays_out_of_sight(start_server: StartServer) -> None:
    """A password with any characters works, and appears in no argument list, representation or readable file."""
    password = 'a b"c\\/@:%'
    server = start_server({"requirepass": password})
    with server.client() as client, Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger:
        assert client.ping()
        with pytest.raises(RedisConnectionError):
            stranger.ping()
    assert password not in repr(server)
    listing = subprocess.check_output(["ps", "-o", "args=", "-p", str(server.pid)], text=True)
    assert "a b" not in listing
    assert os.stat(server.directory).st_mode & 0o077 == 0


def test_unix_socket(start_server: StartServer) -> None:
    """With unix_socket=True the URL is a unix:// one that redis-py can use."""
    server = start_server(unix_socket=True)
    assert server.url.startswith("unix:///")
    with server.client() as client:
        assert client.ping()


def test_pause_freezes_and_resume_goes_on(start_server: StartServer) -> None:
    """A paused server keeps its connections open and answers nothing until it is resumed."""
    server = start_server()
    with server.client(socket_timeout=0.2, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
        server.pause()
        with pytest.raises(Exception, match="(?i)timeout"):
            client.ping()
        server.resume()
        assert client.ping()


def test_close_leaves_nothing_behind() -> None:
    """After close() the process and the directory are gone, and closing again is harmless."""
    server = EmbeddedServer()
    try:
        server.start()
    except EmbeddedServerError as error:
        pytest.skip(str(error))
    pid, directory = server.pid, server.directory
    server.close()
    server.close()
    assert pid is not None and not _alive(pid)
    assert not os.path.exists(directory)


def test_unknown_option_is_explained(start_server: StartServer) -> None:
    """An option that the server refuses is reported in the server's own words, on one line."""
    with pytest.raises(EmbeddedServerError, match="(?i)nonsense|directive") as caught:
        start_server({"nonsense": "yes"})
    assert "\n" not in str(caught.value)


def test_missing_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no server, the error names what to install; an unknown kind is a configuration error."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded, "_from_wheel", lambda: None)
    with pytest.raises(EmbeddedServerError, match=r"rq_pooled\[embedded\].*redis-server"):
        find_server()
    with pytest.raises(ConfigurationError, match="memcached"):
        find_server("memcached")


@pytest.mark.parametrize("tied", [True, False], ids=["kernel", "watcher"])
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_server_dies_with_a_starter_that_is_killed(_server_available: None, tied: bool) -> None:
    """kill -9 of the process that started a server ends the server: by the kernel, or elsewhere by a watcher."""
    source = (
        "import sys, time\n"
        "from rq_pooled import embedded\n"
        f'if not {tied}: embedded._LAUNCHER = embedded._LAUNCHER.replace("import ctypes", "raise OSError")\n'
        f"server = embedded.EmbeddedServer(kind={os.environ.get('RQ_POOLED_TEST_SERVER') or None!r}).start()\n"
        "print(server.pid, server.directory, flush=True)\n"
        "time.sleep(60)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    try:
        assert starter.stdout is not None
        pid, directory = starter.stdout.readline().split()
        assert _alive(int(pid))
        starter.send_signal(signal.SIGKILL)
        starter.wait()  # the watcher can only tell that a process is gone once its own parent has noticed
        assert _gone(int(pid), within=5)
        subprocess.run(["rm", "-rf", directory], check=True)
    finally:
        starter.kill()
        starter.wait()
        if starter.stdout is not None:
            starter.stdout.close()


def test_a_forked_child_does_not_take_the_directory_away(start_server: StartServer) -> None:
    """A child that was forked and ends normally runs the same finalizers: the server's directory must survive it."""
    server = start_server()
    pid = os.fork()
    if pid == 0:
        try:
            server._cleanup()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.path.isdir(server.directory)


def test_a_server_has_a_random_password() -> None:
    """Without the URL no other user of the machine gets in, and its password is another for each server."""
    with EmbeddedServer() as one, EmbeddedServer() as other:
        assert one.client().ping() and other.client().ping()
        with socket.create_connection((one.host, one.port), timeout=5) as stranger:
            stranger.sendall(b"KEYS *\r\n")
            assert stranger.recv(100).startswith(b"-NOAUTH")
        assert one.url.rpartition("@")[0] != other.url.rpartition("@")[0]
        password = one.url.split("@")[0].rpartition(":")[2]
        assert len(password) >= 32 and password not in repr(one)
    with EmbeddedServer(password=False) as one:
        assert "@" not in one.url and one.client().ping()


def test_another_program_on_its_port_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that took the port first, and answers as a server does, is sent no password; another port is taken."""
    said: list[bytes] = []

    def answer() -> None:
        with suppress(OSError):
            while True:
                asked, _ = door.accept()
                with asked:
                    while words := asked.recv(1000):
                        said.append(words)
                        asked.sendall(b"+PONG\r\n")

    with socket.create_server(("127.0.0.1", 0)) as door:
        taken, free = door.getsockname()[1], embedded._free_port
        ports = iter([taken])
        monkeypatch.setattr(embedded, "_free_port", lambda host: next(ports, None) or free(host))
        threading.Thread(target=answer, daemon=True).start()
        with EmbeddedServer() as server:
            assert server.port != taken and server.client().ping()
    assert b"".join(said).replace(b"PING\r\n", b"") == b""
