"""``rq-pooled web``: the page on its own, closed to strangers and to other names."""

from __future__ import annotations

import base64
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
from commands import free_port, refusal, run, run_command
from failures import fail_jobs
from keys import named
from redis import Redis
from support import ROOT, wait_until
from webserver import request, running

from rq_pooled.embedded import EmbeddedServer

pytest.importorskip("flask")
pytest.importorskip("waitress")
LOGIN = {"Authorization": "Basic " + base64.b64encode(b"ops:l0ngenough").decode()}


@contextmanager
def page(url: str, log: Path, *words: str, **environment: str) -> Iterator[str]:
    """The address of a page with a user, for the length of the block."""
    port = free_port()
    environment = {"RQ_POOLED_URL": url, "RQ_POOLED_WEB_CREDENTIALS": "ops:l0ngenough", **environment}
    with running(
        ["-m", "rq_pooled", "web", "--port", str(port), *words], f"http://127.0.0.1:{port}/x", log, **environment
    ):
        yield f"http://127.0.0.1:{port}"


def ask(address: str, host: str, path: str = "/") -> int:
    """The status of an answer to a request that says another name."""
    with closing(HTTPConnection(address.removeprefix("http://"))) as connection:
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", host)
        connection.putheader("Authorization", LOGIN["Authorization"])
        connection.endheaders()
        with connection.getresponse() as answer:
            return answer.status


def test_closed_to_strangers(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Without the password everything but the health is 401; with it the page is there, on loopback only; SIGTERM
    ends it.
    """
    fail_jobs(redis, "q", ["ValueError: x"])
    with page(server.url, tmp_path / "log") as address:
        wrong = {"Authorization": "Basic " + base64.b64encode(b"ops:wrong").decode()}
        for path in ("/", "/failed", "/job?id=q-0", "/metrics", "/rq-pooled-static/page.css"):
            assert request(f"{address}{path}")[0] == request(f"{address}{path}", **wrong)[0] == 401
        assert request(f"{address}/", Authorization="Basic \xe9\xe9")[0] == 401
        assert request(f"{address}/health/redis")[0] == 200 and request(f"{address}/enter?token=")[0] == 403
        status, body = request(f"{address}/", **LOGIN)
        assert status == 200 and "ValueError" in body and 'action="/jobs"' in body
        port = int(address.rpartition(":")[2])
        # It would be open where the page listens on all addresses.
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
        for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
            assert ask(address, name) == 400
        assert ask(address, f"localhost:{port}") == ask(address, "127.0.0.1") == 200
    assert "l0ngenough" not in (tmp_path / "log").read_text()


def test_silent_clients_keep_nobody_out(server: EmbeddedServer, tmp_path: Path) -> None:
    """The page answers beside 200 connections on which half a request stands, and closes them after 20 seconds."""
    with page(server.url, tmp_path / "log") as address, ExitStack() as open_ones:
        host, port = address.removeprefix("http://").split(":")
        silent = [open_ones.enter_context(socket.create_connection((host, int(port)))) for _ in range(200)]
        for one in silent:
            one.sendall(b"GET / HTTP/1.1\r\n")
        assert request(f"{address}/", timeout=15, **LOGIN)[0] == 200
        silent[0].settimeout(40)
        assert silent[0].recv(1) == b""


def test_what_may_be_done(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A form of this page acts, one of another site does not, and with --read-only none does; names can be allowed."""
    fail_jobs(redis, "q", ["ValueError: x"])

    def post(address: str, **headers: str) -> int:
        asked = urllib.request.Request(f"{address}/queues/requeue", b"queue=q", {**LOGIN, **headers})
        try:
            with urllib.request.urlopen(asked) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    with page(server.url, tmp_path / "log1", "--read-only", "--allow-host", "ops.example") as address:
        assert post(address, **{"Sec-Fetch-Site": "same-origin"}) == 403
        assert ask(address, "ops.example") == 200 and ask(address, "other.example") == 400
    with page(server.url, tmp_path / "log2") as address:
        assert post(address, **{"Sec-Fetch-Site": "cross-site"}) == 403
        assert redis.llen(named("rq:queue:q")) == 0
        assert post(address, **{"Sec-Fetch-Site": "same-origin"}) == 200
    assert redis.llen(named("rq:queue:q")) == 1


def test_a_token_for_a_terminal_only(server: EmbeddedServer, redis: Redis) -> None:
    """Without credentials a terminal is told an address with a token; it lets one browser in, and nobody without it."""
    leader, follower = pty.openpty()
    port = free_port()
    command = [sys.executable, "-m", "rq_pooled", "web", "--port", str(port), "--url", server.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment, text=True)
    os.close(follower)
    try:
        said = ""
        while "enter?token=" not in said or "\n" not in said.partition("enter?token=")[2]:
            said += os.read(leader, 1000).decode()
        (token,) = re.findall(r"token=([\w-]+)", said)
        address = f"http://127.0.0.1:{port}"
        assert request(f"{address}/")[0] == 403 and request(f"{address}/enter?token=wrong")[0] == 403
        jar = CookieJar()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
        with browser.open(f"{address}/enter?token={token}") as answer:
            assert answer.status == 200 and answer.url == f"{address}/" and "No failed jobs" in answer.read().decode()
        (cookie,) = jar
        assert cookie.has_nonstandard_attr("HttpOnly") and cookie.get_nonstandard_attr("SameSite") == "Strict"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0 and token not in out and f"{address}/" in out
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def test_what_it_refuses(server: EmbeddedServer, tmp_path: Path) -> None:
    """Without a way to log in, with a wrong file, a taken port, or without waitress it ends with one line."""
    url = server.url
    assert "no credentials" in refusal(run_command(url, "web"))
    assert "0.0.0.0 can be reached from elsewhere" in refusal(run_command(url, "web", "--host", "0.0.0.0"))
    users = tmp_path / "users"
    for text, words in (("", "names no user"), ("ops", "line 1"), ("# a\nops:short", "line 2: write user:password")):
        users.write_text(text)
        line = refusal(run_command(url, "web", "--credentials", str(users)))
        assert words in line and "short" not in line
    assert "cannot be read" in refusal(run_command(url, "web", "--credentials", str(tmp_path / "none")))
    users.write_text("ops:l0ngenough\n")
    taken = run_command(url, "web", "--credentials", str(users), "--port", url.rpartition(":")[2].partition("/")[0])
    assert "cannot be listened on" in refusal(taken, 75)
    (tmp_path / "waitress.py").write_text("raise ImportError('no module waitress')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from rq_pooled.cli.main import main; main(['web'])"
    assert "pip install 'rq_pooled[web]'" in refusal(run(["-c", code]))


def test_a_file_of_credentials(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A mark before the first user belongs to no name, and a file that all may read is warned of, once."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        users = Path(folder, "users")
        users.write_text("ops:l0ngenough\n", encoding="utf-8-sig")
        for mode, count in ((0o644, 1), (0o600, 0)):
            users.chmod(mode)
            log = tmp_path / f"log{mode}"
            with page(server.url, log, "--credentials", str(users)) as address:
                assert ask(address, address.removeprefix("http://")) == 200
            assert log.read_text().count(f"--credentials {users} can be read by every user of this host") == count


def check_mounted(address: str, redis: Redis, **login: str) -> None:
    """The page of an example: closed without the login, all links below its prefix, and actions that work."""
    assert request(f"{address}/rq/")[0] == 403 and request(f"{address}/rq/health/redis")[0] == 200
    status, body = request(f"{address}/rq/", **login)
    assert status == 200 and "ValueError" in body
    links = re.findall(r'(?:href|src|action)="(/.*?)"', body)
    assert len(links) > 8 and all(link.startswith("/rq/") for link in links)
    assert request(f"{address}/rq/rq-pooled-static/page.css", **login)[0] == 200
    job = request(f"{address}/rq/job?id=q-0", **login)
    assert job[0] == 200 and "Traceback" in job[1]
    body = b"act=requeue&jobs=%5B%22q-0%22%5D"
    for headers, code in (({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-origin"}, 200)):
        named_so = {name.replace("_", "-"): value for name, value in login.items()}
        asked = urllib.request.Request(f"{address}/rq/jobs", body, {**named_so, **headers})
        try:
            with urllib.request.urlopen(asked) as answer:
                assert answer.status == code
        except urllib.error.HTTPError as error:
            with error:
                assert error.code == code
    assert redis.lrange(named("rq:queue:q"), 0, -1) == [b"q-0"]


@pytest.mark.parametrize("framework", ["django", "fastapi"])
def test_mounted(server: EmbeddedServer, redis: Redis, tmp_path: Path, framework: Any) -> None:
    """The examples mount the page in Django and in FastAPI, behind a login of theirs."""
    for module in {"django": ("django",), "fastapi": ("fastapi", "uvicorn", "a2wsgi")}[framework]:
        pytest.importorskip(module)
    fail_jobs(redis, "q", ["ValueError: x"])
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["-m", "uvicorn", "--app-dir", "examples", "--port", str(port), "fastapi_page:app"]
    login = {"Authorization": "Bearer t0ken"}
    if framework == "django":
        command = ["examples/django_page.py", "runserver", f"127.0.0.1:{port}", "--noreload"]
        login = {"X_Status_Token": "t0ken"}
    environment = {"RQ_POOLED_URL": server.url, "STATUS_TOKEN": "t0ken"}
    with running(command, f"{address}/x", tmp_path / "log", **environment):
        wait_until(lambda: request(f"{address}/rq/health/redis")[0] == 200)
        check_mounted(address, redis, **login)
