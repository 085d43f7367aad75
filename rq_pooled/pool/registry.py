"""The one pool, with its client, that a process has for each server."""

from __future__ import annotations

from typing import Any

from redis import Redis

from ..config.settings import Settings
from ..connection.options import connection_options
from ..connection.place import address_of
from .pool import Pool

#: Pool and client by address and credentials; the only module global that holds connections. The key needs no pid,
#: since a pool resets itself in a child. A second pool for the same server would break the bound for code that kept the
#: first. No lock is needed: ``dict.setdefault`` is atomic, and building a pool opens nothing. gevent could not patch a
#: lock made at import.
_registry: dict[tuple[Any, ...], tuple[Pool, Redis]] = {}
#: At most one entry, in a horse only, see ``adopt``.
_adopted: list[tuple[Pool, Redis]] = []


def get_pool(settings: Settings | None = None, role: str = "web", client: Redis | None = None) -> Pool:
    """Return this process's pool for a server, the same one each time. Opens nothing, does not block.

    Args:
        settings: from the environment if not given.
        role: the last part of the connections' names in CLIENT LIST; the first caller's is kept.
        client: a client whose server, credentials and connection class are to be used instead of URL.

    Raises:
        ConfigurationError: a setting or the URL cannot be used.
    """
    return _entry(settings, role, client)[0]


def get_connection(settings: Settings | None = None, role: str = "web", client: Redis | None = None) -> Redis:
    """Return the ``redis.Redis`` client of ``get_pool``'s pool, the same object each time; see there.

    Sharing the object matters: RQ caches scripts and the server's version per client object. Closing it closes nothing.
    """
    return _entry(settings, role, client)[1]


def adopt(pool: Pool) -> None:
    """Make ``pool`` the one that this process gets without saying which: in a horse, that of its worker's server."""
    _adopted[:] = [(pool, Redis(connection_pool=pool))]


def _entry(settings: Settings | None, role: str, client: Redis | None) -> tuple[Pool, Redis]:
    if settings is None and client is None and _adopted:
        return _adopted[0]
    settings = settings or Settings.load()
    cls, options = connection_options(settings, role, client)
    key = (address_of(cls, options), *(options.get(name) for name in ("username", "password", "credential_provider")))
    found = _registry.get(key)
    if found is None:
        pool = Pool(settings, role, client=client)
        found = _registry.setdefault(key, (pool, Redis(connection_pool=pool)))
    return found
