"""Handles URLs that redis-py does not know, which find a server through sentinels or nodes of a cluster."""

from __future__ import annotations

from . import cluster_url, sentinel_url
from .cluster_url import is_cluster_url, parse_cluster_url
from .sentinel_url import is_sentinel_url, parse_sentinel_url


def is_own_url(url: str) -> bool:
    """Tell whether a URL has one of these schemes."""
    return is_sentinel_url(url) or is_cluster_url(url)


def form_of(url: str) -> str:
    """Return the form of a URL with this scheme."""
    return sentinel_url.FORM if is_sentinel_url(url) else cluster_url.FORM


def server_url(url: str) -> str:
    """Return the part of a URL that redis-py can read: login, database and parameters; other URLs are unchanged.

    Raises:
        ValueError: it cannot be read; the text says what is wrong and repeats nothing of the URL.
    """
    if is_sentinel_url(url):
        return parse_sentinel_url(url).server_url
    return parse_cluster_url(url).server_url if is_cluster_url(url) else url
