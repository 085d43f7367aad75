"""Reads ``sentinel://`` URLs: where the sentinels are, which service they watch, and who logs in where.

    sentinel://user:password@host1:26379,host2:26379/mymaster/0?sentinel_password=…
    rediss+sentinel://…  the same over TLS

redis-py has no such URLs; other libraries read the same form. Nothing is opened here.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

SCHEMES = ("sentinel", "redis+sentinel", "rediss+sentinel")
PORT = 26379
# Without a login, which messages would scrub.
FORM = "sentinel://host1:26379,host2:26379/service/db"

_OWN_PARAMETERS = ("sentinel_username", "sentinel_password", "sentinel_tls")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::(\d+))?")


class SentinelURL(NamedTuple):
    """The parts of a URL, decoded. What redis-py can read of it is left to redis-py, as ``server_url``."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    #: ``redis://`` or ``rediss://``: the server's login, database and all parameters, without a host.
    server_url: str
    sentinel_username: str | None
    sentinel_password: str | None
    #: Whether the sentinels speak TLS; as the server does, unless ``sentinel_tls`` says otherwise.
    sentinel_tls: bool
    #: The server's parameters for TLS, which count for the sentinels, too.
    tls_url: str


def is_sentinel_url(url: str) -> bool:
    """Tell whether a URL is for this module."""
    return url.partition("://")[0] in SCHEMES


def parse_sentinel_url(url: str) -> SentinelURL:
    """Return the parts of a URL.

    Raises:
        ValueError: it cannot be read; the text says what is wrong and repeats nothing of the URL.
    """
    scheme, _, rest = url.partition("://")
    if "#" in rest:
        raise ValueError("it contains a '#' (in a password it is written as %23)")
    rest, _, query = rest.partition("?")
    netloc, _, path = rest.partition("/")
    if "@" in path:
        raise ValueError("its hosts are malformed (a '/' in a password is written as %2F)")
    login, _, hosts = netloc.rpartition("@")
    if "@" in login:
        raise ValueError("its hosts are malformed (a '@' in a password is written as %40)")
    service, _, db = path.partition("/")
    db = db.rstrip("/")
    if not service:
        raise ValueError("it does not name the service that the sentinels watch, such as mymaster")
    if not re.fullmatch(r"\d*", db):
        raise ValueError("its database is not a number")
    parameters = parse_qsl(query, keep_blank_values=True)
    own = {name: value for name, value in parameters if name in _OWN_PARAMETERS}
    theirs = [(name, value) for name, value in parameters if name not in _OWN_PARAMETERS]
    tls = scheme.startswith("rediss")
    if own.get("sentinel_tls", "yes") not in ("yes", "no"):
        raise ValueError("its parameter sentinel_tls is neither yes nor no")
    if own.get("sentinel_username") and not own.get("sentinel_password"):
        raise ValueError("it has a sentinel_username without a sentinel_password")
    # Decoded and encoded again: redis-py's reader must not see other borders than this one.
    user, colon, password = login.partition(":")
    user, password = quote(unquote(user), safe=""), quote(unquote(password), safe="")
    login = f"{user}{colon}{password}@" if login else ""
    kind = "rediss" if tls else "redis"
    return SentinelURL(
        tuple(_host(host) for host in hosts.split(",")),
        unquote(service),
        f"{kind}://{login}/{db}?{urlencode(theirs)}",
        own.get("sentinel_username") or None,
        own.get("sentinel_password") or None,
        {"yes": True, "no": False}.get(own.get("sentinel_tls", ""), tls),
        "rediss://?" + urlencode([(name, value) for name, value in theirs if name.startswith("ssl_")]),
    )


def _host(text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found[3] or PORT) if found else 0
    if found is None or not 0 < port < 65536:
        raise ValueError("one of its hosts or ports is malformed (host:port, separated by commas)")
    return unquote(found[1] or found[2]), port
