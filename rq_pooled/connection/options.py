"""How a connection is made: from the URL or from a client; to a server, to the master that sentinels name, or to the
node of a cluster that has the keys.
"""

from __future__ import annotations

import re
from typing import Any

from redis import Redis
from redis.connection import Connection, SSLConnection, parse_url
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from ..config.cluster_url import parse_cluster_url
from ..config.own_urls import is_own_url
from ..config.sentinel_url import is_sentinel_url, parse_sentinel_url
from ..config.settings import Settings
from ..deadline import current as current_deadline
from ..deadline import hurried
from ..errors import ConfigurationError
from ..rq_api import key_prefix
from .cluster import Owners
from .defaults import quiet_connection_kwargs
from .finder import Node
from .names import Introduce
from .sentinel import Masters
from .url_parameters import FORBIDDEN_PARAMETERS, POOL_PARAMETERS, url_options

#: What redis-py keeps in a pool's keyword arguments for itself, and what is ours to decide: not copied from a client.
_NOT_COPIED = (
    "cache",
    "cache_config",
    "client_name",
    "event_dispatcher",
    "himport_registry",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "maintenance_notification_hash",
    "maintenance_state",
    "max_connections",
    "orig_host_address",
    "orig_socket_connect_timeout",
    "orig_socket_timeout",
    "oss_cluster_maint_notifications_handler",
    "timeout",
)


def connection_options(settings: Settings, role: str, client: Redis | None = None) -> tuple[type[Any], dict[str, Any]]:
    """Return (connection class, keyword arguments) for a connection to the server of ``client``, else of URL.

    From a client its address, credentials, TLS options and class are taken, its timeouts and retries are not. With
    Sentinel, from a URL or from a client, the master is looked for anew at each connect. Parameters of a URL win over
    settings, except those that would make redis-py send a command again or change what RQ reads.

    Raises:
        ConfigurationError: the URL has a parameter that redis-py does not know or cannot read.
    """
    if client is None:
        options = url_options(settings)
        cls = options.pop("connection_class", Connection)
        for name in (*POOL_PARAMETERS, *FORBIDDEN_PARAMETERS):
            options.pop(name, None)
        if is_own_url(settings.url):
            if is_sentinel_url(settings.url):
                options["connection_pool"] = _masters_of_url(settings)
            else:
                options["connection_pool"] = _owners_of_url(settings, (cls, options))
            cls = SentinelManagedSSLConnection if cls is SSLConnection else SentinelManagedConnection
        return cls, {**quiet_connection_kwargs(settings, role, cls), **options}
    pool = client.connection_pool
    cls = pool.connection_class
    theirs = {name: value for name, value in pool.connection_kwargs.items() if name not in _NOT_COPIED}
    ours = quiet_connection_kwargs(settings, role, cls)
    asked = theirs.get("connection_pool")
    if getattr(asked, "sentinel_manager", None) is not None:
        ours["connection_pool"] = _masters_of_pool(settings, asked)
    before = theirs.get("redis_connect_func")
    if isinstance(before, Introduce):
        before = before.before
    if before is not None:
        ours["redis_connect_func"] = Introduce(settings, role, before)
    for name in ("protocol", "encoding", "encoding_errors", "legacy_responses"):
        if theirs.get(name) is not None:
            ours[name] = theirs[name]
    return cls, {**theirs, **ours}


def _masters_of_url(settings: Settings) -> Masters:
    parts = parse_sentinel_url(settings.url)
    cls: type[Any] = SSLConnection if parts.sentinel_tls else Connection
    login = {"username": parts.sentinel_username, "password": parts.sentinel_password}
    if parts.sentinel_tls:
        login.update(parse_url(parts.tls_url), connection_class=None)  # type: ignore[no-untyped-call]
        del login["connection_class"]
    nodes = [(cls, {"host": host, "port": port, **login}) for host, port in parts.sentinels]
    return Masters(parts.service, [_quiet(settings, node, len(nodes)) for node in nodes])


def _owners_of_url(settings: Settings, server: Node) -> Owners:
    """Return what asks the nodes of a URL, with the login and the options of the server's own connections.

    Raises:
        ConfigurationError: the keys of the application are not all in one slot.
    """
    prefix = key_prefix()
    if not re.search(r"\{[^{}]+\}", prefix):
        raise ConfigurationError(
            f"URL leads to a cluster and RQ_KEY_PREFIX is {prefix!r}, which spreads an application's keys over its "
            "nodes: set it to a name in braces, such as RQ_KEY_PREFIX='{app}' (RQ 3)"
        )
    cls, theirs = server
    hosts = parse_cluster_url(settings.url).nodes
    timeout = settings.socket_connect_timeout
    options = {**theirs, **quiet_connection_kwargs(settings, "cluster", cls)}
    options.update(socket_timeout=timeout, socket_connect_timeout=timeout)
    nodes = [(cls, {**options, "host": host, "port": port}) for host, port in hosts]
    return Owners(prefix, nodes, timeout)


def _masters_of_pool(settings: Settings, pool: Any) -> Masters:
    """Return what asks the same sentinels as a pool of redis-py's ``Sentinel.master_for``.

    Raises:
        ConfigurationError: the pool leads to replicas.
    """
    if not pool.is_master:
        raise ConfigurationError(
            f"the connection leads to replicas of {pool.service_name!r}, which cannot be written to: use "
            "Sentinel.master_for(), not slave_for() or replica_for()"
        )
    pools = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    nodes = [
        (
            one.connection_class,
            {name: value for name, value in one.connection_kwargs.items() if name not in _NOT_COPIED},
        )
        for one in pools
    ]
    quiet = [_quiet(settings, node, len(nodes)) for node in nodes]
    return Masters(pool.service_name, quiet, pool.sentinel_manager)


def _quiet(settings: Settings, node: Node, count: int) -> Node:
    """Return a sentinel's options with ours over them: the time to connect is for all sentinels together."""
    cls, theirs = node
    ours = quiet_connection_kwargs(settings, "sentinel", cls)
    timeout = settings.socket_connect_timeout / count
    return cls, {**theirs, **ours, "socket_timeout": timeout, "socket_connect_timeout": timeout}


def make_connection(settings: Settings, role: str, client: Redis | None = None, **overrides: Any) -> Any:
    """Return a new redis-py connection that belongs to no pool and is not connected yet; see ``connection_options``.

    One made within a deadline keeps it, see deadline.py.

    Args:
        overrides: keyword arguments of the connection that win over everything, such as ``socket_timeout``.
    """
    cls, options = connection_options(settings, role, client)
    if current_deadline() is not None:
        cls = hurried(cls)
    return cls(**{**options, **overrides})
