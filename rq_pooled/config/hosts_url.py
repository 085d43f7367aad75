"""Splits URLs with several hosts, which redis-py cannot read; for sentinel_url and cluster_url."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::(\d+))?")


class HostsURL(NamedTuple):
    """The parts of a URL; hosts and parameters are decoded, and the login is encoded anew."""

    scheme: str
    login: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    parameters: tuple[tuple[str, str], ...]

    def server_url(self, kind: str, path: str, parameters: Sequence[tuple[str, str]]) -> str:
        """Return the URL of a server as redis-py reads it, with this login and without a host."""
        return f"{kind}://{self.login}/{path}?{urlencode(parameters)}"


def split_url(url: str, port: int) -> HostsURL:
    """Return the parts of a URL.

    Args:
        port: the port of a host that is written without one.

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
    # The login is decoded and encoded again, so that redis-py's reader sees the same borders as this one.
    user, colon, password = login.partition(":")
    user, password = quote(unquote(user), safe=""), quote(unquote(password), safe="")
    return HostsURL(
        scheme,
        f"{user}{colon}{password}@" if login else "",
        tuple(_host(host, port) for host in hosts.split(",")),
        path,
        tuple(parse_qsl(query, keep_blank_values=True)),
    )


def _host(text: str, default: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found[3] or default) if found else 0
    if found is None or not 0 < port < 65536:
        raise ValueError("one of its hosts or ports is malformed (host:port, separated by commas)")
    return unquote(found[1] or found[2]), port
