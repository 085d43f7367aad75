"""A cluster behind TLS, and users who may not ask it where the keys are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from commands import PASSWORD, free_port, refusal, run
from conftest import IN_CI
from redis import Redis
from tls_server import tls_options

from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServerError
from rq_pooled.pool import Pool
from rq_pooled.store.keys import PREFIX

pytestmark = pytest.mark.timeout(120)
WORKER = ["-m", "rq_pooled", "worker", "--burst", "--url", "{url}", "q"]


@pytest.fixture
def tls_url(certificate: Path) -> Iterator[str]:
    """The URL of a cluster of one node that speaks TLS at one port, and in plain text at another."""
    port = free_port()
    try:
        # The wheel's server may be built without TLS.
        one = Cluster("redis", 1, False, **{**tls_options(certificate, port), "tls-cluster": "yes"})
    except EmbeddedServerError as error:
        if IN_CI:
            raise
        pytest.skip(f"no server with TLS: {error}")
    yield f"clusters://127.0.0.1:{port}/?ssl_ca_certs={certificate / 'cert.pem'}"
    one.close()


def test_tls(tls_url: str) -> None:
    """clusters:// goes to the port of the owner that speaks TLS, for pools and for workers."""
    pool = Pool(Settings(url=tls_url), "test")
    with Redis(connection_pool=pool) as client:
        assert client.incr(f"{PREFIX}:a") == 1
    pool.disconnect()
    ended = run(WORKER, tls_url, timeout=40)
    assert ended.returncode == 0 and "done, quitting" in ended.stdout + ended.stderr, ended.stdout + ended.stderr


def test_a_user_who_may_not_ask(cluster: Cluster) -> None:
    """A user without the right to CLUSTER is refused at once, in one line that says which rights to give."""
    for node in cluster.nodes:
        node.call("ACL", "SETUSER", "mute", "on", f">{PASSWORD}", "allkeys", "allchannels", "+@all", "-cluster")
    hosts = ",".join(node.address for node in cluster.nodes[:2])
    line = refusal(run(WORKER, f"cluster://mute:{PASSWORD}@{hosts}/"))
    assert "may not ask the cluster where the keys are: allow it +cluster|shards, +cluster|slots" in line
