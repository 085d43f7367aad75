"""Finds the master of a service by asking its sentinels: anew at each connect, in bounded time, on short connections.

redis-py's ``Sentinel`` asks and its ``SentinelManagedConnection`` connects; ``Masters`` stands between them, where
redis-py has a pool. It keeps no connection: a sentinel that is asked is left at once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from redis import ConnectionPool, Redis
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.sentinel import MasterNotFoundError, Sentinel

from ..config.secrets import message_of
from ..deadline import hurried
from .finder import Address, Finder, MasterAway, Node


class Masters(Finder):
    """Finds a master by its sentinels; one object for all connections of a pool.

    Args:
        service: the name under which the sentinels watch the master.
        nodes: the sentinels.
        sentinel: its way to judge and translate answers is used (``min_other_sentinels``, ``force_master_ip``).
    """

    def __init__(self, service: str, nodes: Sequence[Node], sentinel: Sentinel | None = None) -> None:
        super().__init__()
        self.service_name = service
        self._nodes = list(nodes)
        self._sentinel = sentinel
        #: The sentinels, as they are shown: sorted, since the one that answered is asked first the next time.
        self.hosts = ",".join(sorted(f"{options.get('host')}:{options.get('port')}" for _, options in self._nodes))

    def __repr__(self) -> str:
        return f"<Masters {self.service_name} by {self.hosts}>"

    def url(self, tls: bool, db: int) -> str:
        """Return the sentinels and the service as a URL."""
        return f"{'rediss+' if tls else ''}sentinel://{self.hosts}/{self.service_name}/{db}"

    def find(self) -> Address:
        """Ask one sentinel after the other; the first that knows decides.

        Blocks for at most SOCKET_CONNECT_TIMEOUT in all.

        Raises:
            MasterAway: none of them names a master that is up.
            redis.exceptions.AuthenticationError: all of them refuse the login.
        """
        clients = [_Client(node) for node in self._nodes]
        sentinel: Any = copy.copy(self._sentinel or Sentinel([]))  # type: ignore[no-untyped-call]
        sentinel.sentinels = list(clients)
        try:
            address: Address = sentinel.discover_master(self.service_name)
        except MasterNotFoundError:
            raise self._away(clients) from None
        finally:
            for client in clients:
                client.connection_pool.disconnect()
        # redis-py puts the one that answered first.
        answered = sentinel.sentinels[0]
        self._nodes = [answered.node, *(client.node for client in clients if client is not answered)]
        return address

    def _away(self, clients: Sequence[_Client]) -> Exception:
        told = "; ".join(f"{client} {client.told(self.service_name)}" for client in clients)
        if all(isinstance(client.error, AuthenticationError) for client in clients):
            return AuthenticationError(f"the sentinels want another login (sentinel_password in the URL): {told}")
        passing = any(self.service_name in client.known for client in clients)
        return MasterAway(f"no sentinel names a master for {self.service_name!r}: {told}", passing)


class _Client(Redis):
    """A client of one sentinel that remembers what it was told."""

    def __init__(self, node: Node) -> None:
        self.node = node
        cls, options = node
        super().__init__(connection_pool=ConnectionPool(connection_class=hurried(cls), **options))
        self.error: Exception | None = None
        self.known: list[str] = []

    def __repr__(self) -> str:
        # redis-py puts it into its message, where some versions show keyword arguments.
        return f"{self.node[1].get('host')}:{self.node[1].get('port')}"

    def sentinel_masters(self) -> Any:
        """Return the masters that this sentinel watches; after any error the next one may be asked."""
        try:
            masters: Any = super().sentinel_masters()
            for service, state in masters.items():
                if "failover_in_progress" in state["flags"]:
                    self._look_ahead(service, state)
        except Exception as error:
            # redis-py raises anything where a reply is of another kind.
            self.error = error
            raise RedisConnectionError(str(error)) from error
        self.known = sorted(map(str, masters))
        return masters

    def _look_ahead(self, service: str, state: dict[str, Any]) -> None:
        """Put the coming master in the place of the former one, whose last writes get lost.

        Sentinels list the former master until all replicas have changed sides, up to their failover-timeout.
        """
        # The command is two words, so that no parser of redis-py is used: they differ, and the one of 6.4 fails here.
        answer: Any = self.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)  # type: ignore[no-untyped-call]
        coming = (answer[0].decode(), int(answer[1])) if answer else None
        state["is_sdown"] = state["is_odown"] = coming in (None, (state["ip"], state["port"]))
        if coming is not None:
            state["ip"], state["port"] = coming

    def told(self, service: str) -> str:
        """Return in words why it was no help."""
        if self.error is not None:
            return f"is no help ({message_of(self.error)})"
        if service in self.known:
            return "says that it is down"
        return f"watches {', '.join(map(repr, self.known)) or 'nothing'}"
