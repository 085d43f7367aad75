"""Reads the URL of a server, and checks its parameters: which there are, and what each may be.

redis-py passes parameters on to its connections. A wrong one fails only there, with a traceback or as an error of the
server. So all are checked here before anything connects.
"""

from __future__ import annotations

import codecs
import math
import os
import ssl
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from redis.connection import Connection, parse_url

from ..config.own_urls import server_url
from ..config.secrets import message_of
from ..config.settings import Settings
from ..errors import ConfigurationError
from .defaults import accepted_options

#: Parameters that redis-py takes as objects, which a URL cannot hold.
_OBJECTS = frozenset(
    [
        "cache",
        "cache_config",
        "command_packer",
        "connection_class",
        "connection_pool",
        "credential_provider",
        "driver_info",
        "event_dispatcher",
        "himport_registry",
        "maint_notifications_config",
        "maint_notifications_pool_handler",
        "oss_cluster_maint_notifications_handler",
        "parser_class",
        "queue_class",
        "redis_connect_func",
        "retry",
        "socket_keepalive_options",
        "socket_type",
        "ssl_ocsp_context",
    ]
)
#: Longest time in seconds; the operating system may refuse a longer one.
_LONGEST = 1e6
_MOST_DATABASES = 2**31 - 1


#: Parameters of a URL that redis-py takes for a pool, and those that would make it send a command again.
POOL_PARAMETERS = ("max_connections", "timeout")
FORBIDDEN_PARAMETERS = ("retry", "retry_on_timeout", "retry_on_error", "decode_responses", "client_name")


def url_options(settings: Settings) -> dict[str, Any]:
    """Return what redis-py reads of the server's URL: keyword arguments of a connection, and of a pool.

    Raises:
        ConfigurationError: a parameter is not known or cannot be used; the text names it, and never its value.
    """
    try:
        options: dict[str, Any] = dict(parse_url(server_url(settings.url)))  # type: ignore[no-untyped-call]
    except ValueError as error:
        # redis-py's text names the parameter, and not its value.
        raise ConfigurationError(f"URL cannot be read: {message_of(error)}; remove or correct that parameter") from None
    for name, kind in (("protocol", int), ("max_connections", int), ("timeout", float)):
        if name in options:
            # redis-py before 8 leaves some of them texts.
            try:
                options[name] = kind(options[name])
            except ValueError:
                raise ConfigurationError(f"URL has a {name!r} that is no number; remove or correct it") from None
    if options.get("protocol", 2) not in (2, 3):
        raise ConfigurationError("URL has a 'protocol' that is neither 2 nor 3; remove or correct it")
    checked = {name: value for name, value in options.items() if name not in FORBIDDEN_PARAMETERS}
    _check_parameters(settings.url, tuple(checked.items()))
    return options


def pool_limits(settings: Settings) -> tuple[int, float]:
    """Return (most connections, longest wait in seconds) of a pool; a URL's max_connections and timeout win."""
    options = url_options(settings)
    most, wait = options.get("max_connections", settings.max_connections), options.get("timeout", settings.pool_timeout)
    if most < 1 or not wait >= 0:
        raise ConfigurationError("URL has max_connections below 1 or a timeout below 0; remove it or raise it")
    return int(most), float(wait)


# Each Queue() of a web request asks; a refusal is not kept.
@lru_cache(maxsize=16)
def _check_parameters(url: str, found: tuple[tuple[str, Any], ...]) -> None:
    options = dict(found)
    cls = options.pop("connection_class", Connection)
    if isinstance(cls, str):
        options["connection_class"], cls = cls, Connection
    problem = _problem(url.partition(":")[0], options, accepted_options(cls) | set(POOL_PARAMETERS))
    if problem is not None:
        raise ConfigurationError(problem)


def _problem(scheme: str, options: Mapping[str, Any], known: frozenset[str]) -> str | None:
    """Return what is wrong with the parameters of a URL, naming one and never its value; None if nothing is.

    Args:
        scheme: of the URL.
        options: what redis-py has read of the URL.
        known: the parameters that the connection knows.
    """
    for name, value in sorted(options.items()):
        if name in _OBJECTS:
            return f"URL has the parameter {name!r}, which no text can be; remove it"
        if name not in known:
            tls = scheme in ("redis", "sentinel", "redis+sentinel", "cluster") and ("ssl" in name or "tls" in name)
            hint = ", or write rediss:// for TLS" if tls else ""
            return f"URL has the parameter {name!r}, which redis-py does not know for {scheme}://; remove it{hint}"
        check = _CHECKS.get(name)
        if check is not None and (must := check(value)) is not None:
            return f"URL has a {name!r} that cannot be used: it must be {must}; remove or correct it"
    return None


def _number(low: float, above: bool = False, whole: bool = False) -> Callable[[Any], str | None]:
    must = f"a {'whole ' if whole else ''}number {'above' if above else 'of at least'} {low:g} and at most {_LONGEST:g}"

    def check(value: Any) -> str | None:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return must
        wrong = not math.isfinite(number) or number > _LONGEST or number < low or (above and number == low)
        return must if wrong or (whole and number != int(number)) else None

    return check


def _database(value: Any) -> str | None:
    right = str(value).isdigit() and int(value) <= _MOST_DATABASES
    return None if right else "the number of a database"


def _port(value: Any) -> str | None:
    return None if str(value).isdigit() and 0 < int(value) < 65536 else "a port"


def _encoding(value: Any) -> str | None:
    try:
        "rq:".encode(value)
        codecs.lookup(value)
    except (LookupError, TypeError, ValueError):
        return "the name of an encoding, such as utf-8"
    # Scripts know RQ's keys byte by byte.
    return None if "rq:é".encode(value) == "rq:é".encode() else "utf-8, which RQ's keys are written in"


def _handler(value: Any) -> str | None:
    try:
        codecs.lookup_error(value)
    except (LookupError, TypeError):
        return "the name of an error handler, such as strict"
    return None


def _file(value: Any) -> str | None:
    return None if os.path.isfile(value) and os.access(value, os.R_OK) else "a file that can be read"


def _certificates(value: Any) -> str | None:
    must = "a file of certificates (PEM) that can be read"
    try:
        ssl.create_default_context(cafile=value)
    except (OSError, ValueError):
        return must
    return None


def _folder(value: Any) -> str | None:
    return None if os.path.isdir(value) else "a directory of certificates"


def _ciphers(value: Any) -> str | None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(value)
    except (ssl.SSLError, ValueError):
        return "a list of ciphers that OpenSSL knows"
    return None


def _version(value: Any) -> str | None:
    versions = [version.value for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)]
    must = " or ".join(f"{version} (TLS 1.{minor})" for version, minor in zip(versions, (2, 3)))
    return None if str(value) in map(str, map(int, versions)) else must


def _one_of(*words: str) -> Callable[[Any], str | None]:
    return lambda value: None if value in words else " or ".join(words)


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "db": _database,
    "encoding": _encoding,
    "encoding_errors": _handler,
    "health_check_interval": _number(0),
    "max_connections": _number(1, whole=True),
    "port": _port,
    "socket_connect_timeout": _number(0, above=True),
    "socket_read_size": _number(1, whole=True),
    "socket_timeout": _number(0, above=True),
    "ssl_ca_certs": _certificates,
    "ssl_ca_path": _folder,
    "ssl_cert_reqs": _one_of("none", "optional", "required"),
    "ssl_certfile": _file,
    "ssl_ciphers": _ciphers,
    "ssl_keyfile": _file,
    "ssl_min_version": _version,
    "timeout": _number(0),
}
