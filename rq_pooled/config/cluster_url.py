"""Reads ``cluster://`` URLs: nodes of a Redis Cluster, any of which knows where all slots are.

    cluster://user:password@host1:6379,host2:6379/?socket_timeout=2
    clusters://…  the same over TLS

One node is enough, such as the single endpoint of a service. No connection is opened here.
"""

from __future__ import annotations

from typing import NamedTuple

from .hosts_url import split_url

SCHEMES = ("cluster", "clusters")
PORT = 6379
# Without a login, which messages would scrub.
FORM = "cluster://host1:6379,host2:6379/"


class ClusterURL(NamedTuple):
    """The decoded parts of a URL. ``server_url`` is the part that redis-py reads itself."""

    nodes: tuple[tuple[str, int], ...]
    #: ``redis://`` or ``rediss://``: login and all parameters, without a host.
    server_url: str


def is_cluster_url(url: str) -> bool:
    """Tell whether a URL has one of this module's schemes."""
    return url.partition("://")[0] in SCHEMES


def parse_cluster_url(url: str) -> ClusterURL:
    """Return the parts of a URL.

    Raises:
        ValueError: it cannot be read; the text says what is wrong and repeats nothing of the URL.
    """
    parts = split_url(url, PORT)
    path = parts.path.strip("/")
    if path.strip("0"):
        problem = f"a cluster has no database {path}" if path.isdigit() else "its path is no part of it"
        raise ValueError(f"{problem}: leave out what follows the hosts")
    kind = "rediss" if parts.scheme == "clusters" else "redis"
    if any(name == "db" and value.strip("0") for name, value in parts.parameters):
        raise ValueError("a cluster has one database: leave out the parameter db")
    return ClusterURL(parts.hosts, parts.server_url(kind, "", parts.parameters))
