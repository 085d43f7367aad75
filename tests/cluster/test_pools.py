"""A pool finds the owner of the slot, and what a node refused is done once, within the deadline of the call."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from cluster import Cluster
from redis import Redis
from redis.exceptions import ResponseError, WatchError

import rq_pooled
from rq_pooled.config import Settings
from rq_pooled.connection.cluster import Owners
from rq_pooled.deadline import within
from rq_pooled.errors import RedisUnavailable, ServerUnreachable
from rq_pooled.pool import Pool
from rq_pooled.store.keys import PREFIX

pytestmark = pytest.mark.timeout(120)


def owners(pool: Pool) -> Owners:
    """Return what a pool asks."""
    found = pool.connection_kwargs["connection_pool"]
    assert isinstance(found, Owners)
    return found


@pytest.fixture
def unnamed(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster whose nodes do not know by which address they are reached."""
    for node in cluster.nodes:
        node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "unknown-endpoint")
    yield cluster
    for node in cluster.nodes:
        node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")


@pytest.fixture
def unreachable(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster whose nodes name each other as no program outside can reach them."""
    for node in cluster.nodes:
        node.call("CONFIG", "SET", "cluster-announce-hostname", "nowhere.invalid")
        node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")
    yield cluster
    for node in cluster.nodes:
        node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")
        node.call("CONFIG", "SET", "cluster-announce-hostname", "")


@pytest.mark.parametrize("kind", ["unnamed", "unreachable"])
def test_an_endpoint_that_is_no_help(request: pytest.FixtureRequest, kind: str) -> None:
    """Where nodes are named by no address, or by one that cannot be reached, the host that was asked stands for all."""
    cluster: Cluster = request.getfixturevalue(kind)
    pool = Pool(Settings(url=f"cluster://{cluster.replicas[0].address}"), "test")
    with Redis(connection_pool=pool) as client:
        client.set(f"{PREFIX}:a", 1)
        cluster.move(PREFIX, cluster.other(cluster.owner(PREFIX)))
        assert client.incr(f"{PREFIX}:a") == 2
    pool.disconnect()


def test_nodes_are_learnt(cluster: Cluster) -> None:
    """The one node of the URL may die: others that it has named are asked."""
    given = cluster.replica_of(cluster.other(cluster.owner(PREFIX)))
    pool = Pool(Settings(url=f"cluster://{given.address}"), "test")
    with Redis(connection_pool=pool) as client:
        client.ping()
        given.server.kill()
        cluster.move(PREFIX, cluster.other(cluster.owner(PREFIX)))
        assert client.incr(f"{PREFIX}:a") == 1
        owners(pool).latest = None
        assert owners(pool).get_master_address()[1] == cluster.owner(PREFIX).port
    pool.disconnect()


@pytest.mark.parametrize("transaction", [True, False])
def test_what_is_refused_is_done_once(cluster: Cluster, cluster_client: Redis, transaction: bool) -> None:
    """Commands, pipelines and transactions on a slot that moves key by key are each done once, in order."""
    target = cluster.other(cluster.owner(PREFIX))
    for number in range(30):
        cluster_client.set(f"{PREFIX}:{number}", 0)
    stop = threading.Event()
    done = [0]

    def work() -> None:
        while not stop.is_set():
            number = done[0] % 40
            with cluster_client.pipeline(transaction=transaction) as pipe:
                pipe.incr(f"{PREFIX}:{number}")
                pipe.rpush(f"{PREFIX}:list", done[0])
                pipe.execute()
            cluster_client.incr(f"{PREFIX}:total")
            done[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with cluster.moving(PREFIX, target) as move:
            while move(1):
                time.sleep(0.01)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive() and done[0] > 0
    assert cluster_client.lrange(f"{PREFIX}:list", 0, -1) == [b"%d" % number for number in range(done[0])]
    assert int(cluster_client.get(f"{PREFIX}:total") or 0) == done[0]
    assert sum(int(cluster_client.get(f"{PREFIX}:{number}") or 0) for number in range(40)) == done[0]


def test_the_deadline_counts(cluster: Cluster, cluster_client: Redis) -> None:
    """A command that is refused for longer than its caller has fails in words, and was not done."""
    target = cluster.other(cluster.owner(PREFIX))
    cluster_client.set(f"{PREFIX}:a", 1)
    with cluster.moving(PREFIX, target) as move:
        move(1)
        began = time.monotonic()
        with (
            pytest.raises(ServerUnreachable, match="does not serve slot .* for now .*ASK.*was not done"),
            within(1, "X"),
        ):
            cluster_client.incr(f"{PREFIX}:b")
        assert 0.5 < time.monotonic() - began < 2
    assert cluster_client.get(f"{PREFIX}:b") is None


def test_a_web_process_learns_why(cluster: Cluster, cluster_client: Redis) -> None:
    """Enqueues that fail at once after one was refused for too long say what the node has said, whole."""
    queue = rq_pooled.Queue("q", connection=cluster_client)
    cluster_client.set(f"{PREFIX}:a", 1)
    with cluster.moving(PREFIX, cluster.other(cluster.owner(PREFIX))) as move:
        move(1)
        with pytest.raises(ServerUnreachable), within(1, "X"):
            queue.enqueue(len, "a")
        with pytest.raises(RedisUnavailable, match=r"could not be used .* ago: (ASK \d+|TRYAGAIN|the slot of) "):
            queue.enqueue(len, "b")


def test_what_is_watched_is_watched_no_more(cluster: Cluster, cluster_client: Redis) -> None:
    """A transaction under WATCH is not sent again, since the new connection watches nothing: its caller begins anew."""
    cluster_client.set(f"{PREFIX}:a", 1)
    with cluster_client.pipeline() as pipe:
        pipe.watch(f"{PREFIX}:a")
        cluster.move(PREFIX, cluster.other(cluster.owner(PREFIX)))
        pipe.multi()
        pipe.incr(f"{PREFIX}:a")
        with pytest.raises(WatchError):
            pipe.execute()
        pipe.watch(f"{PREFIX}:a")
        pipe.multi()
        pipe.incr(f"{PREFIX}:a")
        assert pipe.execute() == [2]


def test_a_watch_that_was_refused_watches(cluster: Cluster, cluster_client: Redis) -> None:
    """A WATCH that was sent again to the new owner is remembered: the next move ends its transaction, too."""
    cluster_client.set(f"{PREFIX}:a", 1)
    with cluster_client.pipeline() as pipe:
        cluster.move(PREFIX, cluster.other(cluster.owner(PREFIX)))
        pipe.watch(f"{PREFIX}:a")
        cluster.move(PREFIX, cluster.other(cluster.owner(PREFIX)))
        cluster.owner(PREFIX).call("SET", f"{PREFIX}:a", 100)
        pipe.multi()
        pipe.incr(f"{PREFIX}:a")
        with pytest.raises(WatchError):
            pipe.execute()
    assert cluster_client.get(f"{PREFIX}:a") == b"100"


def test_a_node_of_another_cluster(cluster: Cluster) -> None:
    """A stale address in the URL, now of another cluster, is not followed while the cluster in use is down."""
    other = Cluster(os.environ.get("RQ_POOLED_TEST_SERVER") or None, 1, False)
    try:
        pool = Pool(Settings(url=f"cluster://{cluster.masters[0].address},{other.masters[0].address}"), "test")
        with Redis(connection_pool=pool) as client:
            client.set(f"{PREFIX}:a", 1)
            for node in cluster.nodes:
                node.server.kill()
            with pytest.raises(ServerUnreachable, match="it is of another cluster: restart this process"):
                client.set(f"{PREFIX}:a", 2)
        assert other.masters[0].call("EXISTS", f"{PREFIX}:a") == 0
        # One that took its place at all addresses is.
        asked = owners(pool)
        asked._given = [("127.0.0.1", other.masters[0].port), ("localhost", other.masters[0].port)]
        assert asked.get_master_address()[1] == other.masters[0].port
        pool.disconnect()
    finally:
        other.close()


def test_the_url_of_one_node(cluster: Cluster) -> None:
    """A pool with the URL of one node says in its error what to write instead."""
    other = cluster.other(cluster.owner(PREFIX))
    pool = Pool(Settings(url=f"redis://{other.address}"), "test")
    with Redis(connection_pool=pool) as client, pytest.raises(ResponseError) as refused:
        client.get(f"{PREFIX}:a")
    pool.disconnect()
    assert f"write cluster://{other.address}/ in URL" in str(refused.value)


def test_one_server_is_no_cluster(start_server: object) -> None:
    """A cluster URL that leads to a single server says so."""
    server = start_server()  # type: ignore[operator]
    pool = Pool(Settings(url=f"cluster://{server.host}:{server.port}"), "test")
    with Redis(connection_pool=pool) as client, pytest.raises(ServerUnreachable, match="is no node of a cluster"):
        client.ping()
    pool.disconnect()
