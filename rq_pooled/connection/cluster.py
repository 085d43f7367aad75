"""Finds the node of a cluster that serves the slot of all our keys, by asking any node, anew at each connect.

All keys of an application have one hash tag, so they are in one slot, and one node has them at a time. The node that
is asked is left at once: a worker keeps its connections to one node.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from redis.connection import SSLConnection
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from ..config.secrets import message_of
from ..deadline import hurried, within
from .finder import Address, Finder, MasterAway, Node
from .redirects import redirect_of

#: Nodes that are remembered besides those of the URL, and nodes that are asked in one search.
_MOST_KNOWN, _MOST_ASKED = 32, 8
#: Seconds for which at least a node that says nothing is waited for, as far as the whole search has as long.
_LEAST = 0.5


class NoCluster(RedisConnectionError):
    """The server that was asked is no node of a cluster."""


class _Named(NamedTuple):
    """A node as another one names it; the host is empty where it does not know its own."""

    host: str
    port: int
    id: str


class Owners(Finder):
    """Finds the node that serves a slot; one object for all connections of a pool.

    Args:
        prefix: of all keys; its hash tag decides the slot.
        nodes: those of the URL, which are asked.
        timeout: seconds for a whole search.
    """

    def __init__(self, prefix: str, nodes: Sequence[Node], timeout: float) -> None:
        super().__init__()
        self.slot: int = key_slot(prefix.encode())
        self._class, self._options = nodes[0]
        self._timeout = timeout
        self._given: list[Address] = [(options["host"], options["port"]) for _, options in nodes]
        #: All nodes that were named, the newest first; the owner by the word of another node is asked first.
        self._known: list[Address] = []
        self._hint: Address | None = None
        #: Those that were no help when they were asked last.
        self._failed: set[Address] = set()
        #: The ids of the nodes that the latest help has named.
        self._ids: set[str] = set()
        #: Host as the cluster names it -> the host by which it can be reached from here; the same for most.
        self._reached: dict[str, str] = {host: host for host, _ in self._given}
        #: Addresses that in this search were found to be of another cluster.
        self._strangers: set[Address] = set()
        self._shown = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self._given)

    def __repr__(self) -> str:
        return f"<Owners of slot {self.slot} by {self._shown}>"

    def url(self, tls: bool, db: int) -> str:
        """Return the nodes of the URL as a URL."""
        return f"cluster{'s' * tls}://{self._shown}/"

    def heard(self, error: Exception, connection: Any) -> None:
        """Note that a connection was refused: where the slot is now is asked before anything else goes there."""
        self.latest = None
        told = redirect_of(error)
        if told is not None and told[0] == self.slot:
            host = told[1] if told[1] not in ("", "?") else connection.host
            self._hint = (self._reached.get(host, host), told[2])

    # -- asking --------------------------------------------------------------------------------------------------

    def find(self) -> Address:
        """Ask one node after the other; the first that knows the owner decides.

        Raises:
            MasterAway: none of them names an owner.
            NoCluster: what was asked is no cluster.
            redis.exceptions.AuthenticationError: all of them refuse the login.
            redis.exceptions.AuthorizationError: all of them refuse to tell this user.
        """
        asked = self._asked()
        self._strangers = set()
        each = max(self._timeout / len(asked), min(_LEAST, self._timeout / 3))
        told: list[str] = []
        errors: list[Exception] = []
        ends = time.monotonic() + self._timeout
        for host, port in asked:
            left = ends - time.monotonic()
            if left <= 0:
                break
            try:
                with within(min(each, left), "SOCKET_CONNECT_TIMEOUT"), self._open(host, port) as connection:
                    owner = self._owner(connection)
                self._failed.discard((host, port))
                if owner is not None:
                    return self._reachable(owner, host, ends)
                told.append(f"{host}:{port} names no node for slot {self.slot}")
            except NoCluster:
                raise
            except (RedisError, OSError) as error:
                self._failed.add((host, port))
                errors.append(error)
                told.append(f"{host}:{port} is no help ({message_of(error)})")
        if errors and len(errors) == len(told):
            if all(isinstance(error, AuthenticationError) for error in errors):
                raise errors[0]
            if all(isinstance(error, NoPermissionError) for error in errors):
                text = "the user may not ask the cluster where the keys are: allow it +cluster|shards, +cluster|slots"
                raise AuthorizationError(f"{text} and +cluster|myid ({message_of(errors[0])})") from errors[0]
        raise MasterAway(f"no node of the cluster names the owner of slot {self.slot}: {'; '.join(told)}", True)

    def _asked(self) -> list[Address]:
        """Return the nodes to ask, in order; those of the URL are among them, since they may be names of all."""
        first = [address for address in (self._hint, self.latest) if address is not None]
        self._hint = None
        # One of the URL soon, in case all that was learnt is of a cluster that has been replaced.
        mixed = [*first, *self._given[:1], *self._known[:3], *self._given[1:], *self._known[3:]]
        # A frozen node costs time at each search, so those that were no help are asked last.
        return sorted(dict.fromkeys(mixed), key=self._failed.__contains__)[:_MOST_ASKED]

    @contextmanager
    def _open(self, host: str, port: int) -> Iterator[Any]:
        connection = hurried(self._class)(**{**self._options, "host": host, "port": port})
        try:
            connection.connect()
            yield connection
        finally:
            connection.disconnect()

    def _owner(self, connection: Any) -> _Named | None:
        """Return what a node says who the owner is, and remember the other nodes that it names."""
        try:
            shards = _of_shards(_ask(connection, "CLUSTER", "SHARDS"), isinstance(connection, SSLConnection))
        except ResponseError as error:
            if "cluster support disabled" in str(error):
                raise NoCluster(f"{connection.host}:{connection.port} is no node of a cluster") from None
            # Before 7.0, and services that have only the older command.
            shards = _of_slots(_ask(connection, "CLUSTER", "SLOTS"))
        ids = {node.id for _, nodes in shards for node in nodes}
        # A stale address in the URL must not lead away from a cluster that is down; all of them mean one that took its
        # place.
        if len(self._given) > 1 and self._ids and ids.isdisjoint(self._ids):
            self._strangers.add((connection.host, connection.port))
            if not self._strangers.issuperset(self._given):
                raise RedisConnectionError(
                    "it is of another cluster: restart this process if that took the other's place"
                )
        found: _Named | None = None
        known: list[Address] = []
        for ranges, nodes in shards:
            if any(first <= self.slot <= last for first, last in ranges):
                found = nodes[0] if nodes else None
            known += [(self._reached.get(node.host, node.host), node.port) for node in nodes if node.host]
        self._failed &= {*self._given, *known}
        self._known = [address for address in known if address not in self._given][:_MOST_KNOWN]
        self._ids = ids if found else self._ids
        return found

    def _reachable(self, owner: _Named, asked: str, ends: float) -> Address:
        """Return the address by which the owner is reached from here.

        A cluster may name its nodes as only they reach each other (NAT): the host that was asked stands in for them.
        """
        if not owner.host:
            return asked, owner.port
        mapped = self._reached.get(owner.host)
        if mapped is not None:
            return mapped, owner.port
        for host in (owner.host, asked):
            left = ends - time.monotonic()
            if left <= 0:
                break
            try:
                with within(left / 2, "SOCKET_CONNECT_TIMEOUT"), self._open(host, owner.port) as connection:
                    name = _ask(connection, "CLUSTER", "MYID")
                if _text(name) == owner.id or host == owner.host:
                    self._reached[owner.host] = host
                    return host, owner.port
            except (RedisError, OSError):
                continue
        # What is wrong with it is said when it is connected to.
        return owner.host, owner.port


def remedy(url: str) -> str:
    """Return what to write instead of the URL of one node."""
    scheme, _, rest = url.partition("://")
    return f"write cluster{'s' * (scheme == 'rediss')}://{rest.partition('/')[0] or 'host:port'}/ in URL"


def slot_of(connection: Any) -> int | None:
    """Return the slot to whose owner a connection leads; None for one that does not lead to a cluster."""
    finder = getattr(connection, "connection_pool", None)
    return finder.slot if isinstance(finder, Owners) else None


_Shards = list[tuple[list[tuple[int, int]], list[_Named]]]


def _ask(connection: Any, *words: str) -> Any:
    connection.send_command(*words, check_health=False)
    return connection.read_response(disable_decoding=True)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def _host(value: Any) -> str:
    """Return a host as a node names it; nothing where it does not know it."""
    text = _text(value)
    return "" if text == "?" else text


def _pairs(value: Any) -> dict[str, Any]:
    """Return a map, which RESP2 sends as a list."""
    items = value.items() if isinstance(value, dict) else zip(value[::2], value[1::2])
    return {_text(name): what for name, what in items}


def _of_shards(reply: Any, tls: bool) -> _Shards:
    """Return (ranges of slots, nodes with the master first) of each shard, as CLUSTER SHARDS tells them."""
    shards: _Shards = []
    for raw in reply:
        shard = _pairs(raw)
        slots = [int(number) for number in shard["slots"]]
        nodes = [_pairs(node) for node in shard["nodes"]]
        # The former master of a shard may be listed beside the new one, as failed.
        nodes.sort(key=lambda node: (_text(node["role"]) != "master", _text(node.get("health")) != "online"))
        nodes = [node for node in nodes if _port(node, tls)]
        masters = nodes and _text(nodes[0]["role"]) == "master"
        named = [_Named(_host(node.get("endpoint")), _port(node, tls), _text(node["id"])) for node in nodes]
        shards.append((list(zip(slots[::2], slots[1::2])) if masters else [], named))
    return shards


def _port(node: dict[str, Any], tls: bool) -> int:
    return int(node.get("tls-port" if tls else "port") or 0)


def _of_slots(reply: Any) -> _Shards:
    """Return the same of CLUSTER SLOTS, which names the master first."""
    shards: _Shards = []
    for first, last, *nodes in reply:
        named = [_Named(_host(node[0]), int(node[1]), _text(node[2]) if len(node) > 2 else "") for node in nodes]
        shards.append(([(int(first), int(last))], named))
    return shards
