"""A cluster for each module; its tests need a prefix of keys with a hash tag, which a process reads once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from redis import Redis
from support import TESTS, WorkerProcess

from rq_pooled.config import Settings
from rq_pooled.pool import Pool
from rq_pooled.store.keys import PREFIX


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave these tests to a process with such a prefix; tests/laws/test_cluster.py starts it."""
    if not re.search(r"\{[^{}]+\}", PREFIX):
        for item in items:
            if Path(item.fspath).parent == TESTS / "cluster":
                item.add_marker(
                    pytest.mark.skip(reason="RQ_KEY_PREFIX has no hash tag: run by tests/laws/test_cluster.py")
                )


@pytest.fixture(scope="module")
def _running(_server_available: None) -> Iterator[Cluster]:
    one = Cluster(os.environ.get("RQ_POOLED_TEST_SERVER") or None)
    yield one
    one.close()


@pytest.fixture
def cluster(_running: Cluster) -> Cluster:
    """Three masters and three replicas, whole and empty."""
    for node in _running.nodes:
        node.server.start()
    _running.wait_until_whole()
    _running.flush()
    return _running


@pytest.fixture
def cluster_client(cluster: Cluster) -> Iterator[Redis]:
    """A client by way of a pool that finds the owner."""
    pool = Pool(Settings(url=cluster.url), "test")
    yield Redis(connection_pool=pool)
    pool.disconnect()


@pytest.fixture
def cluster_workers() -> Iterator[list[WorkerProcess]]:
    """Workers that are to be ended."""
    started: list[WorkerProcess] = []
    yield started
    for one in started:
        one.kill()
