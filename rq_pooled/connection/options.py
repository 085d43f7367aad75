"""How rq_pooled opens a connection: every option set explicitly, TCP keepalive, a name in CLIENT LIST.

redis-py's defaults differ between 5.x and 8.x, and some of them break law 3 (commands sent again by themselves). So
nothing is left to them; what an installed redis-py does not know is left out. Shared by the pool and by the worker's
own connections.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from queue import Empty
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import BlockingConnectionPool, Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.retry import Retry
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from ..config.secrets import scrub
from ..config.sentinel_url import is_sentinel_url, parse_sentinel_url
from ..config.settings import Settings
from ..deadline import current as current_deadline
from ..deadline import hurried
from ..errors import ConfigurationError
from .connect_errors import last_words
from .sentinel import Masters, Node
from .url_parameters import url_problem

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
#: Parameters of a URL that redis-py takes for a pool, and those that would make it send a command again.
_POOL_PARAMETERS = ("max_connections", "timeout")
_FORBIDDEN_PARAMETERS = ("retry", "retry_on_timeout", "retry_on_error", "decode_responses", "client_name")


def close_idle(pool: Any) -> None:
    """Close the idle connections of a redis-py pool; those in use may belong to other threads.

    A pool that blocks is emptied first: redis-py 5 closes all of its connections, redis-py 8 those just taken, too.
    """
    if type(pool).disconnect is not BlockingConnectionPool.disconnect:
        with contextlib.suppress(TypeError):  # a pool of the user's own kind that cannot tell them apart
            pool.disconnect(inuse_connections=False)
        return
    idle = []
    with contextlib.suppress(Empty):
        for _ in range(pool.max_connections):
            idle.append(pool.pool.get_nowait())
    for connection in reversed(idle):
        if connection is not None:
            connection.disconnect()
        pool.pool.put_nowait(connection)


def keepalive_options(settings: Settings) -> dict[int, int]:
    """Return the socket options of TCP keepalive that this platform has, by their constants in ``socket``."""
    options: dict[int, int] = {}
    # macOS calls the idle time TCP_KEEPALIVE; where both exist they are the same option.
    for names, value in (
        (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), settings.keepalive_idle),
        (("TCP_KEEPINTVL",), settings.keepalive_interval),
        (("TCP_KEEPCNT",), settings.keepalive_count),
    ):
        for name in names:
            if hasattr(socket, name):
                options[getattr(socket, name)] = value
                break
    return options


def client_name(settings: Settings, role: str) -> str:
    """Return ``rq_pooled:<app>:<host>:<pid>:<role>`` for this process; CLIENT SETNAME takes neither spaces nor
    newlines.

    The application is BUDGET_NAME, else the name of the program.
    """
    app = settings.budget_name or _program()
    parts = ("rq_pooled", app, socket.gethostname(), str(os.getpid()), role)
    return ":".join(re.sub(r"[^!-~]|:", "_", part) for part in parts)


def _program() -> str:
    path = sys.argv[0] if sys.argv else ""
    folder, name = os.path.split(path)
    if name == "__main__.py":  # python -m package
        name = os.path.basename(folder)
    return os.path.splitext(name)[0].lstrip("-") or "python"


@dataclass(frozen=True)
class Introduce:
    """redis-py's ``redis_connect_func``: the usual handshake, then the name.

    Done at connect, not by redis-py's ``client_name``, for two reasons: the pid is that of the process that connects,
    also after a fork; and a server whose ACL refuses CLIENT SETNAME is still usable. Picklable: RQ hands a pool's
    keyword arguments to other processes.
    """

    settings: Settings
    role: str
    before: Callable[[Any], Any] | None = None

    def __call__(self, connection: Any) -> None:
        """Do the handshake on a connection whose socket has just been opened."""
        try:
            self._shake_hands(connection)
        except (RedisConnectionError, OSError) as error:
            raise last_words(connection, error) from error

    def _shake_hands(self, connection: Any) -> None:
        if self.before is not None:
            self.before(connection)
        elif hasattr(connection, "on_connect_check_health"):  # redis-py 6.3: without a PING that nobody needs here
            connection.on_connect_check_health(check_health=False)
        else:
            connection.on_connect()
        if not self.role:  # who opens it gives it its name
            return
        connection.send_command("CLIENT", "SETNAME", client_name(self.settings, self.role), check_health=False)
        try:
            connection.read_response()
        except ResponseError:
            pass


def says_full(connection_class: type[Any], error: BaseException) -> bool:
    """Tell whether an error while connecting says, or over TLS may say, that the server has as many clients as it may.

    Over TLS a full server closes without a word: before the handshake it cannot say anything.
    """
    text = str(error)
    if "max number of clients" in text:
        return True
    tls = any("SSL" in cls.__name__ for cls in connection_class.__mro__)
    return tls and any(words in text for words in ("UNEXPECTED_EOF", "EOF occurred", "reset by peer"))


def quiet_connection_kwargs(settings: Settings, role: str, connection_class: Any = Connection) -> dict[str, Any]:
    """Return every option of a connection explicitly, as far as ``connection_class`` of this redis-py knows it.

    Commands are never sent again (``Retry`` with 0 retries also keeps redis-py from connecting again by itself),
    maintenance notifications are off (they switch off the check for unread data), RESP2, replies are bytes.
    """
    wanted: dict[str, Any] = {
        "socket_timeout": settings.socket_timeout,
        "socket_connect_timeout": settings.socket_connect_timeout,
        "socket_keepalive": True,
        "socket_keepalive_options": keepalive_options(settings),
        "socket_read_size": 65536,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        "health_check_interval": settings.health_check_interval,
        "encoding": "utf-8",
        "encoding_errors": "strict",
        "decode_responses": False,
        "protocol": 2,
        "legacy_responses": True,
        "maint_notifications_config": _no_maintenance_notifications(),
        "redis_connect_func": Introduce(settings, role),
    }
    accepted = accepted_options(connection_class)
    return {name: value for name, value in wanted.items() if name in accepted}


def _no_maintenance_notifications() -> Any:
    try:
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:  # redis-py before 7
        return None
    return MaintNotificationsConfig(enabled=False)


@cache  # asked for at each Queue() of a web request, and there are but a few classes
def accepted_options(connection_class: type[Any]) -> frozenset[str]:
    """Return the keyword arguments that a connection class, or a class it extends, names."""
    return frozenset(
        name
        for cls in connection_class.__mro__
        if "__init__" in vars(cls)
        for name in inspect.signature(vars(cls)["__init__"]).parameters
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
        options = _url_options(settings)
        cls = options.pop("connection_class", Connection)
        if is_sentinel_url(settings.url):
            cls = SentinelManagedSSLConnection if cls is SSLConnection else SentinelManagedConnection
            options["connection_pool"] = _masters_of_url(settings)
        for name in (*_POOL_PARAMETERS, *_FORBIDDEN_PARAMETERS):
            options.pop(name, None)
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


def pool_limits(settings: Settings) -> tuple[int, float]:
    """Return (most connections, longest wait in seconds) of a pool; a URL's max_connections and timeout win."""
    options = _url_options(settings)
    most, wait = options.get("max_connections", settings.max_connections), options.get("timeout", settings.pool_timeout)
    if most < 1 or not wait >= 0:
        raise ConfigurationError("URL has max_connections below 1 or a timeout below 0; remove it or raise it")
    return int(most), float(wait)


def _url_options(settings: Settings) -> dict[str, Any]:
    url = parse_sentinel_url(settings.url).server_url if is_sentinel_url(settings.url) else settings.url
    try:
        options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    except ValueError as error:  # redis-py names the parameter, and not its value
        raise ConfigurationError(f"URL cannot be read: {scrub(str(error))}; remove or correct that parameter") from None
    for name, kind in (("protocol", int), ("max_connections", int), ("timeout", float)):
        if name in options:  # redis-py before 8 leaves some of them texts
            try:
                options[name] = kind(options[name])
            except ValueError:
                raise ConfigurationError(f"URL has a {name!r} that is no number; remove or correct it") from None
    if options.get("protocol", 2) not in (2, 3):
        raise ConfigurationError("URL has a 'protocol' that is neither 2 nor 3; remove or correct it")
    _check_parameters(settings.url, tuple(options.items()))
    return options


@lru_cache(maxsize=16)  # asked for at each Queue() of a web request; what is refused is looked at anew
def _check_parameters(url: str, found: tuple[tuple[str, Any], ...]) -> None:
    options = dict(found)
    cls = options.pop("connection_class", Connection)
    if isinstance(cls, str):
        options["connection_class"], cls = cls, Connection
    for name in _FORBIDDEN_PARAMETERS:
        options.pop(name, None)
    problem = url_problem(url.partition(":")[0], options, accepted_options(cls) | set(_POOL_PARAMETERS))
    if problem is not None:
        raise ConfigurationError(problem)


def _masters_of_url(settings: Settings) -> Masters:
    parts = parse_sentinel_url(settings.url)
    cls: type[Any] = SSLConnection if parts.sentinel_tls else Connection
    login = {"username": parts.sentinel_username, "password": parts.sentinel_password}
    if parts.sentinel_tls:
        login.update(parse_url(parts.tls_url), connection_class=None)  # type: ignore[no-untyped-call]
        del login["connection_class"]
    nodes = [(cls, {"host": host, "port": port, **login}) for host, port in parts.sentinels]
    return Masters(parts.service, [_quiet(settings, node, len(nodes)) for node in nodes])


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


def address_of(connection_class: type[Any], options: dict[str, Any]) -> str:
    """Return where a connection leads, as a URL without user and password."""
    db = options.get("db") or 0
    if issubclass(connection_class, UnixDomainSocketConnection):
        return f"unix://{options.get('path', '')}?db={db}"
    scheme = "rediss" if any("SSL" in cls.__name__ for cls in connection_class.__mro__) else "redis"
    masters = options.get("connection_pool")
    if isinstance(masters, Masters):
        return f"{'rediss+' if scheme == 'rediss' else ''}sentinel://{masters.hosts}/{masters.service_name}/{db}"
    host = str(options.get("host", "localhost"))
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{options.get('port', 6379)}/{db}"
