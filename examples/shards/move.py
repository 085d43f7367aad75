"""Move a shard to another node of a cluster, while it works: its workers and web processes follow.

    python examples/shards/move.py '{shop-b}' redis://user:password@host:port

The URL is that of the node that is to have the shard. The shard stands still until the last key has arrived. It may be
interrupted at any moment: run it again, and it goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from redis import Redis
from redis.crc import key_slot

#: Keys of one MIGRATE: the node that has the slot serves no other command meanwhile.
KEYS = 100
#: Milliseconds that a MIGRATE may take.
TIMEOUT = 10_000


class Node(NamedTuple):
    """A master, as CLUSTER NODES names it."""

    id: str
    host: str
    port: int
    slots: list[str]
    myself: bool

    def has(self, slot: int) -> bool:
        """Tell whether it serves a slot."""
        bounds = [one.split("-") for one in self.slots if not one.startswith("[")]
        return any(int(pair[0]) <= slot <= int(pair[-1]) for pair in bounds)


def masters(client: Any, host: str) -> list[Node]:
    """Return the masters that a node knows; ``host`` stands for an address that it does not know."""
    found = []
    for line in client.execute_command("CLUSTER NODES").splitlines():
        name, address, flags, _, _, _, _, _, *slots = line.split()
        if "master" in flags.split(",") and "fail" not in flags.split(","):
            at, _, port = address.partition("@")[0].rpartition(":")
            found.append(Node(name, at or host, int(port), slots, "myself" in flags))
    return found


def connect(url: str, node: Node | None = None) -> Any:
    """Return a client of a node that has the login and the options of a URL."""
    options = {"host": node.host, "port": node.port} if node else {}
    client = Redis.from_url(url, decode_responses=True, socket_timeout=30, protocol=2)
    client.connection_pool.connection_kwargs.update(options)
    # Replies as they are.
    client.response_callbacks.clear()
    return client


def move(prefix: str, url: str) -> str:
    """Move the slot of a prefix to the node at a URL, and return what was done."""
    slot = key_slot(prefix.encode())
    to = connect(url)
    known = masters(to, urlsplit(url).hostname or "127.0.0.1")
    target = next((node for node in known if node.myself), None)
    source = next((node for node in known if node.has(slot)), None)
    if target is None or source is None:
        raise SystemExit("the node at the URL is a replica" if target is None else f"no node serves slot {slot}")
    if target == source:
        return f"{prefix}: slot {slot} is at {target.host}:{target.port} already"
    at = connect(url, source)
    login = to.connection_pool.connection_kwargs
    user, password = login.get("username") or "default", login.get("password")
    words = ["AUTH2", user, password] if password else []
    began, moved = time.monotonic(), 0
    to.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
    at.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
    while keys := at.execute_command("CLUSTER GETKEYSINSLOT", slot, KEYS):
        # REPLACE: an attempt whose answer was lost may have left a copy.
        at.execute_command("MIGRATE", target.host, target.port, "", 0, TIMEOUT, "REPLACE", *words, "KEYS", *keys)
        moved += len(keys)
    # The target first: the source sends all clients there as soon as it is told.
    for node in sorted(known, key=lambda node: (node is not target, node is not source)):
        connect(url, node).execute_command("CLUSTER SETSLOT", slot, "NODE", target.id)
    took = time.monotonic() - began
    return f"{prefix}: slot {slot} is at {target.host}:{target.port} now, {moved} keys in {took:.2f} s"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Move a shard to another node of a cluster.")
    parser.add_argument("prefix", help="the RQ_KEY_PREFIX of the shard, with its braces")
    parser.add_argument("url", help="of the node that is to have it")
    arguments = parser.parse_args()
    print(move(arguments.prefix, arguments.url))
    sys.exit(0)
