"""A real cluster of masters and replicas on loopback, and what an operator does to it: slots moved, nodes killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from commands import free_port
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError
from support import wait_until

from rq_pooled.embedded import EmbeddedServer

#: Milliseconds after which a node that says nothing counts as failing.
NODE_TIMEOUT = 1000
SLOTS = 16384

_OPTIONS: dict[str, Any] = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": NODE_TIMEOUT,
    "cluster-replica-validity-factor": 0,
    "repl-diskless-sync-delay": 0,
    "repl-timeout": 5,
    "appendonly": "yes",
    "appendfsync": "always",
}


class Node:
    """One server of a cluster."""

    def __init__(self, kind: str | None, **options: Any) -> None:
        self.bus = free_port()
        self.server = EmbeddedServer({**_OPTIONS, "cluster-port": self.bus, **options}, kind=kind, password=False)
        self.server.start()
        self.id = str(self.call("CLUSTER", "MYID"))

    def __repr__(self) -> str:
        return f"<Node {self.address}>"

    @property
    def port(self) -> int:
        """Return its port."""
        return self.server.port

    @property
    def address(self) -> str:
        """Return where it is, as in a URL."""
        return f"127.0.0.1:{self.port}"

    def client(self, **kwargs: Any) -> Redis:
        """Return a plain client of this node."""
        return self.server.client(protocol=2, decode_responses=True, socket_timeout=10, **kwargs)

    def call(self, *words: Any) -> Any:
        """Return the reply to one command; an error of the server is raised."""
        with Redis.from_url(self.server.url, protocol=2, decode_responses=True, socket_timeout=10) as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)

    def says(self, words: str) -> bool:
        """Tell whether its CLUSTER INFO or INFO has these words; False while it is away."""
        try:
            return words in self.call("CLUSTER", "INFO") + self.call("INFO", "replication")
        except RedisError:
            return False


class Cluster:
    """Masters that share the slots evenly, each with a replica."""

    def __init__(self, kind: str | None, masters: int = 3, replicas: bool = True, **options: Any) -> None:
        self.masters = [Node(kind, **options) for _ in range(masters)]
        self.replicas = [Node(kind, **options) for _ in range(masters if replicas else 0)]
        self.nodes = [*self.masters, *self.replicas]
        first = self.masters[0]
        for number, node in enumerate(self.masters):
            bounds = (number * SLOTS // masters, (number + 1) * SLOTS // masters - 1)
            node.call("CLUSTER", "ADDSLOTSRANGE", *bounds)
            # Two nodes with one epoch would have to find that out first.
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            node.call("CLUSTER", "MEET", "127.0.0.1", first.port, first.bus)
        wait_until(
            lambda: all(node.says(f"cluster_known_nodes:{len(self.nodes)}") for node in self.nodes), what="nodes"
        )
        for master, replica in zip(self.masters, self.replicas):
            replica.call("CLUSTER", "REPLICATE", master.id)
        self.wait_until_whole()

    def wait_until_whole(self, timeout: float = 40) -> None:
        """Wait until all nodes that run say that all is well."""
        running = [node for node in self.nodes if node.server.pid is not None]
        wait_until(lambda: all(node.says("cluster_state:ok") for node in running), timeout, "a cluster that is whole")
        replicas = [node for node in running if node.says("role:slave")]
        wait_until(lambda: all(node.says("master_link_status:up") for node in replicas), timeout, "the replicas")

    @property
    def url(self) -> str:
        """Return the URL of the cluster, by way of all its nodes."""
        return f"cluster://{','.join(node.address for node in self.nodes)}/"

    def owner(self, key: str) -> Node:
        """Return the node that serves the slot of a key, by its own word and that of a majority."""
        slot = key_slot(key.encode())

        def find() -> Node | None:
            votes: dict[str, int] = {}
            for node in self.nodes:
                try:
                    for first, last, (_, _, name, *_), *_ in node.call("CLUSTER", "SLOTS"):
                        if first <= slot <= last:
                            votes[name] = votes.get(name, 0) + 1
                except RedisError:
                    continue
            for node in self.nodes:
                if votes.get(node.id, 0) * 2 > len(self.nodes) and node.says("role:master"):
                    return node
            return None

        found: Node = wait_until(find, 40, f"an owner of the slot of {key}")
        return found

    def replica_of(self, node: Node) -> Node:
        """Return the replica of a master."""
        return next(one for one in self.nodes if one.says("role:slave") and one.says(f"master_port:{node.port}\r\n"))

    def other(self, node: Node) -> Node:
        """Return another master."""
        return next(one for one in self.nodes if one is not node and one.says("role:master"))

    # -- slots ---------------------------------------------------------------------------------------------------

    @contextmanager
    def moving(self, key: str, target: Node) -> Iterator[Callable[[int], int]]:
        """Begin to move the slot of a key; inside, the function moves so many keys; at the end the rest follows."""
        slot, source = key_slot(key.encode()), self.owner(key)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        with Redis.from_url(source.server.url, protocol=2, socket_timeout=10) as client:

            def move(count: int) -> int:
                """Move so many keys, one by one; return how many there were."""
                keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, count)
                for one in keys:
                    client.execute_command("MIGRATE", "127.0.0.1", target.port, one, 0, 5000)
                return len(keys)

            yield move
            while move(100):
                pass
        # As redis-cli does it: the target first, since the source answers MOVED from then on.
        for node in (target, source, *(one for one in self.nodes if one not in (source, target))):
            if node.server.pid is not None and node.says("role:master"):
                node.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def move(self, key: str, target: Node) -> None:
        """Move the slot of a key to another master, key by key."""
        with self.moving(key, target):
            pass

    # -- nodes ---------------------------------------------------------------------------------------------------

    def kill_owner(self, key: str) -> tuple[Node, Node]:
        """Kill the node that serves a key; return it and the replica that has taken over."""
        old = self.owner(key)
        heir = self.replica_of(old)
        old.server.kill()
        self.wait_for_takeover(heir, key)
        return old, heir

    def fail_over(self, key: str) -> tuple[Node, Node]:
        """Have the replica take over from the node that serves a key, as an operator does; return both."""
        old = self.owner(key)
        heir = self.replica_of(old)
        heir.call("CLUSTER", "FAILOVER")
        self.wait_for_takeover(heir, key)
        return old, heir

    def wait_for_takeover(self, heir: Node, key: str) -> None:
        """Wait until a node is a master, and most say that it serves a key."""
        wait_until(lambda: heir.says("role:master"), 40, "a replica that takes over")
        wait_until(lambda: self.owner(key) is heir, 40, "nodes that know the new master")

    def flush(self) -> None:
        """Empty all masters."""
        for node in self.nodes:
            if node.server.pid is not None and node.says("role:master"):
                node.call("FLUSHALL")

    def close(self) -> None:
        """End all."""
        for node in self.nodes:
            node.server.kill()
            node.server.close()


def replicated(node: Node) -> bool:
    """Wait until a replica has all that was written to a master until now; tell whether it came to that."""
    with Redis.from_url(node.server.url, single_connection_client=True, protocol=2) as client:
        client.response_callbacks.clear()
        # WAIT is about the writes of its own connection, and so of all before them.
        client.execute_command("PUBLISH", "barrier", 1)
        return bool(client.execute_command("WAIT", 1, 10_000))
