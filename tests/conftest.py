"""Servers for the tests: real ones, started here, never the developer's own.

RQ_POOLED_TEST_SERVER=valkey|redis chooses which; a missing one skips the tests at home and fails them where CI=true.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

import rq_pooled.pool.registry as pools
from rq_pooled.embedded import EmbeddedServer, EmbeddedServerError, find_server

#: Its fixtures, for the modules that ask for them.
pytest_plugins = ["tls_server", "cluster_fixtures", "signing_scene"]

KIND = os.environ.get("RQ_POOLED_TEST_SERVER") or None
IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

#: Outside the prefix RQ_POOLED_ and read by rq, rq_pooled or both.
_FOREIGN_VARIABLES = (
    "RQ_REDIS_URL",
    "REDIS_URL",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_DB",
    "REDIS_PASSWORD",
    "REDIS_SSL",
    "QUEUE_CONCURRENCY",
    "RQ_CONFIG",
    "RQ_WORKER_CLASS",
    "RQ_QUEUE_CLASS",
)


def pytest_configure() -> None:
    # Before anything is collected: a setting of the developer's shell must not decide how a test ends. Not put back,
    # so that the programs that tests start do not see them either.
    for name in list(os.environ):
        if name in _FOREIGN_VARIABLES or (name.startswith("RQ_POOLED_") and name != "RQ_POOLED_TEST_SERVER"):
            del os.environ[name]
    # Each of the programs that tests start would compile all of rq_pooled anew, a third of its start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # A signal that this process ignores, as under nohup or in a shell's background, would be ignored by every worker
    # that it starts. A handler that does nothing spares it likewise, and is not inherited by another program.
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, lambda *_: None)


def pytest_report_header() -> str:
    try:
        return f"server: {find_server(KIND)}"
    except EmbeddedServerError as error:
        return f"server: none ({error})"


@pytest.fixture(scope="session")
def _server_available() -> None:
    try:
        find_server(KIND)
    except EmbeddedServerError as error:
        if IN_CI:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server(_server_available: None) -> Iterator[EmbeddedServer]:
    """One running server for the whole session; tests that stop, pause or configure one use ``start_server``."""
    with EmbeddedServer(kind=KIND, password=False) as running:
        yield running


@pytest.fixture
def redis(server: EmbeddedServer) -> Iterator[Redis]:
    """A client of the session's server, on an empty database."""
    with Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def start_server(_server_available: None) -> Iterator[Callable[..., EmbeddedServer]]:
    """A function that starts a server of the test's own, ``start_server({'maxclients': 40})``; closed at the end."""
    started: list[EmbeddedServer] = []

    def start(options: dict[str, Any] | None = None, **kwargs: Any) -> EmbeddedServer:
        kwargs.setdefault("kind", KIND)
        # Proxies, sentinels, replicas and tests' own URLs lead to it by its port.
        kwargs.setdefault("password", False)
        one = EmbeddedServer(options, **kwargs)
        started.append(one)
        return one.start()

    yield start
    for one in started:
        # A server obeys SIGTERM only ten times per second.
        one.kill()
        one.close()


@pytest.fixture(autouse=True)
def _the_log_of_workers_stays_as_it_is() -> Iterator[None]:
    """Give RQ's logger back as it was: a worker inside a test sets it up, and may be made silent."""
    log = logging.getLogger("rq.worker")
    level, handlers, propagate, disabled = log.level, log.handlers[:], log.propagate, log.disabled
    yield
    log.handlers[:], log.propagate, log.disabled = handlers, propagate, disabled
    log.setLevel(level)


@pytest.fixture(autouse=True)
def _no_pool_outlives_its_test() -> Iterator[None]:
    """Close this process's pools after each test: the next one may count the server's connections."""
    yield
    for pool, _ in list(pools._registry.values()):
        pool.disconnect()
    pools._registry.clear()
