"""Reads ``sentinel://`` URLs: the sentinels, the service that they watch, and the logins of both.

    sentinel://user:password@host1:26379,host2:26379/mymaster/0?sentinel_password=…
    rediss+sentinel://…  the same over TLS

redis-py has no such URLs; other libraries read the same form. No connection is opened here.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote, urlencode

from .hosts_url import split_url

SCHEMES = ("sentinel", "redis+sentinel", "rediss+sentinel")
PORT = 26379
# Without a login, which messages would scrub.
FORM = "sentinel://host1:26379,host2:26379/service/db"

_OWN_PARAMETERS = ("sentinel_username", "sentinel_password", "sentinel_tls")


class SentinelURL(NamedTuple):
    """The decoded parts of a URL. ``server_url`` is the part that redis-py reads itself."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    #: ``redis://`` or ``rediss://``: the server's login, database and all parameters, without a host.
    server_url: str
    sentinel_username: str | None
    sentinel_password: str | None
    #: Whether the sentinels speak TLS; by default as the server does, unless ``sentinel_tls`` is given.
    sentinel_tls: bool
    #: The server's parameters for TLS, which also hold for the sentinels.
    tls_url: str


def is_sentinel_url(url: str) -> bool:
    """Tell whether a URL has one of this module's schemes."""
    return url.partition("://")[0] in SCHEMES


def parse_sentinel_url(url: str) -> SentinelURL:
    """Return the parts of a URL.

    Raises:
        ValueError: it cannot be read; the text says what is wrong and repeats nothing of the URL.
    """
    parts = split_url(url, PORT)
    service, _, db = parts.path.partition("/")
    db = db.rstrip("/")
    if not service:
        raise ValueError("it does not name the service that the sentinels watch, such as mymaster")
    if not re.fullmatch(r"\d*", db):
        raise ValueError("its database is not a number")
    own = {name: value for name, value in parts.parameters if name in _OWN_PARAMETERS}
    theirs = [(name, value) for name, value in parts.parameters if name not in _OWN_PARAMETERS]
    tls = parts.scheme.startswith("rediss")
    if own.get("sentinel_tls", "yes") not in ("yes", "no"):
        raise ValueError("its parameter sentinel_tls is neither yes nor no")
    if own.get("sentinel_username") and not own.get("sentinel_password"):
        raise ValueError("it has a sentinel_username without a sentinel_password")
    return SentinelURL(
        parts.hosts,
        unquote(service),
        parts.server_url("rediss" if tls else "redis", db, theirs),
        own.get("sentinel_username") or None,
        own.get("sentinel_password") or None,
        {"yes": True, "no": False}.get(own.get("sentinel_tls", ""), tls),
        "rediss://?" + urlencode([(name, value) for name, value in theirs if name.startswith("ssl_")]),
    )
