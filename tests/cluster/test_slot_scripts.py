"""On a slot that is being moved every script fails before it writes anything."""

from __future__ import annotations

import pytest
from cluster import Cluster
from redis.exceptions import RedisError, ResponseError

from rq_pooled.store.keys import PREFIX
from rq_pooled.store.scripts import scripts

pytestmark = pytest.mark.timeout(120)


def dump(cluster: Cluster) -> dict[str, dict[str, object]]:
    """Return what each node holds."""
    held: dict[str, dict[str, object]] = {}
    for node in cluster.nodes:
        with node.server.client(protocol=2) as client:
            for key in client.keys("*"):
                try:
                    held.setdefault(node.address, {})[key.decode()] = client.dump(key)
                # Of a replica.
                except RedisError:
                    continue
    return held


def test_every_script_fails_before_it_writes(cluster: Cluster) -> None:
    """Each script, with its first key still there and others gone, is refused in words and leaves all as it was."""
    source = cluster.owner(PREFIX)
    target = cluster.other(source)
    names = ("queue:q", "job:1", "scheduled:q", "workers", "wip:q", "failed:q")
    source.call("RPUSH", f"{PREFIX}:queue:q", "1", "2")
    source.call("HSET", f"{PREFIX}:job:1", "data", "x", "status", "queued")
    for name in names[2:]:
        source.call("ZADD", f"{PREFIX}:{name}", 1, "1")
    source.call("SET", f"{PREFIX}:last", "1")
    refused = []
    with cluster.moving(PREFIX, target) as move:
        move(3)
        kept = [key for key in source.call("KEYS", "*") if key.startswith(PREFIX)]
        assert len(kept) == len(names) + 1 - 3
        before = dump(cluster)
        for name, script in scripts().items():
            for keys in ((), (kept[0],)):
                with source.client() as client, pytest.raises(ResponseError, match="is not served here now"):
                    client.execute_command("EVAL", script.text, len(keys), *keys, *["1"] * 12)
                refused.append(name)
        assert dump(cluster) == before
    assert len(refused) == 2 * len(scripts()) > 50


def test_every_script_is_refused_by_another_node(cluster: Cluster) -> None:
    """A script without keys, which no node redirects, is refused by a master and by a replica without the slot."""
    owner = cluster.owner(PREFIX)
    for node in (cluster.other(owner), cluster.replica_of(owner)):
        for script in scripts().values():
            with node.client() as client, pytest.raises(ResponseError, match="is not served here now"):
                client.execute_command("EVAL", script.text, 0, *["1"] * 12)
    assert owner.call("DBSIZE") == 0
