"""The shop of examples/ under gunicorn, and the examples without Flask, as they run in production."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from commands import free_port
from keys import named
from redis import Redis
from support import wait_until
from webserver import request, running

from rq_pooled.embedded import EmbeddedServer

pytestmark = pytest.mark.timeout(120)

#: Kinds of gunicorn's workers, and how the application is loaded: in each worker, or once before forking.
KINDS = {
    "sync": ["-k", "sync"],
    "sync-preload": ["-k", "sync", "--preload"],
    "gthread": ["-k", "gthread", "--threads", "8"],
    "gevent": ["-k", "gevent"],
    "gevent-preload": ["-k", "gevent", "--preload"],
}


@pytest.fixture(params=KINDS)
def shop(request: Any, start_server: Any, tmp_path: Path) -> Iterator[tuple[str, EmbeddedServer, int]]:
    """The shop's address under two gunicorn workers with at most 3 connections each, its Redis, gunicorn's pid."""
    pytest.importorskip("flask")
    pytest.importorskip("gunicorn")
    if request.param.startswith("gevent") and find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    one, port = start_server(), free_port()
    command = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "2", *KINDS[request.param]]
    command += ["--graceful-timeout", "3"]  # one that is booting when the test ends does not hear that it is to end
    environment = {"RQ_POOLED_URL": one.url, "RQ_POOLED_MAX_CONNECTIONS": "3", "RQ_POOLED_BUDGET_NAME": "shop"}
    environment["SHOP_TOKEN"] = "t0ken"
    command += ["--no-control-socket"] if find_spec("gunicorn.ctl") else []
    with running(
        [*command, "webshop:create_app()"], f"http://127.0.0.1:{port}/", tmp_path / "log", **environment
    ) as web:
        yield f"http://127.0.0.1:{port}", one, web.pid


def web_connections(redis: Redis) -> list[str]:
    """The connections of the shop's web processes, by name."""
    return [client["name"] for client in redis.client_list() if client["name"].endswith(":web")]


def children(pid: int) -> list[int]:
    """The processes that gunicorn has forked."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text() if Path("/proc").exists() else ""
    return [int(child) for child in text.split()]


def test_under_gunicorn(shop: tuple[str, EmbeddedServer, int]) -> None:
    """No order is lost, connections stay bounded, frozen Redis is answered, a killed process harms nobody."""
    address, one, pid = shop
    redis = one.client()
    most = 0

    def order(_number: int) -> tuple[int, Any]:
        return request(f"{address}/orders", "POST")

    with ThreadPoolExecutor(40) as threads:
        futures = [threads.submit(order, number) for number in range(200)]
        while not all(future.done() for future in futures):
            most = max(most, len(web_connections(redis)))
            time.sleep(0.01)
        answers = [future.result() for future in futures]
    assert {status for status, _ in answers} == {202}
    ids = {body["job"] for _, body in answers}
    assert len(ids) == 200 and ids == {job_id.decode() for job_id in redis.lrange(named("rq:queue:orders"), 0, -1)}
    assert 1 <= most <= 2 * 3
    # Each connection belongs to the process that opened it: none was inherited by fork.
    owners = {int(name.split(":")[3]) for name in web_connections(redis)}
    assert pid not in owners

    one.pause()
    try:
        with ThreadPoolExecutor(16) as threads:
            frozen = list(threads.map(order, range(16)))
            assert request(f"{address}/rq/health/redis")[0] == 503
    finally:
        one.resume()
    assert {status for status, _ in frozen} == {503}
    wait_until(lambda: order(0)[0] == 202)

    before = children(pid)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: before[0] not in children(pid) and len(children(pid)) == 2)
    wait_until(lambda: order(0)[0] == 202)  # the other process may hold back for BREAKER_DELAY after the outage
    wait_until(lambda: request(f"{address}/rq/health/redis")[0] == 200)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "shop_token=wrong"}):
        assert request(f"{address}/rq/queues/status", **headers)[0] == 403
    assert request(f"{address}/operator?token=wrong")[0] == 403
    assert request(f"{address}/rq/queues/status", Authorization="Bearer t0ken")[1]["queues"][0]["name"] == "orders"


def check_endpoints(address: str) -> None:
    """The endpoints of an example: health for all, the rest with the token only."""
    status, body = request(f"{address}/health/redis")
    assert status == 200 and body["ok"] is True
    for path in ("/redis/pool-stats", "/queues/status", "/queues/failed-jobs", "/metrics"):
        assert request(f"{address}{path}")[0] == 403
        assert request(f"{address}{path}", Authorization="Bearer wrong")[0] == 403
        status, body = request(f"{address}{path}", Authorization="Bearer t0ken")
        assert status == 200 and body is not None
    assert "rq_pooled_up 1.0" in request(f"{address}/metrics", Authorization="Bearer t0ken")[1]


def test_wsgi_example(start_server: Any, tmp_path: Path) -> None:
    """examples/wsgi_health.py serves health and statistics without a framework, also while Redis is frozen."""
    pytest.importorskip("prometheus_client")
    one, port = start_server(), free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {"RQ_POOLED_URL": one.url, "PORT": str(port), "STATUS_TOKEN": "t0ken"}
    with running(["examples/wsgi_health.py"], f"{address}/x", tmp_path / "log", **environment):
        check_endpoints(address)
        one.pause()
        try:
            # An answer is shared for a second.
            wait_until(lambda: request(f"{address}/health/redis") == (503, {"ok": False, "status": "away"}))
            assert request(f"{address}/queues/status", Authorization="Bearer t0ken")[0] == 503
        finally:
            one.resume()


def test_fastapi_example(start_server: Any, tmp_path: Path) -> None:
    """examples/fastapi_health.py enqueues and serves the same under uvicorn; frozen Redis is 503."""
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(module)
    one, port = start_server(), free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["-m", "uvicorn", "--app-dir", "examples", "--port", str(port), "fastapi_health:app"]
    with running(command, f"{address}/x", tmp_path / "log", RQ_POOLED_URL=one.url, STATUS_TOKEN="t0ken"):
        check_endpoints(address)
        status, body = request(f"{address}/factorials/5", "POST")
        assert status == 202 and one.client().lrange(named("rq:queue:default"), 0, -1) == [body["job"].encode()]
        one.pause()
        try:
            assert request(f"{address}/factorials/5", "POST")[0] == 503
            wait_until(lambda: request(f"{address}/health/redis")[0] == 503)
        finally:
            one.resume()
