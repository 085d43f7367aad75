"""The parameters of a server's URL: which there are, and what each may be.

redis-py passes what stands in a URL on to its connections, and much of it fails only there: with a traceback, or as an
error of the server. So everything is looked at here, before anything connects.
"""

from __future__ import annotations

import codecs
import math
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any

#: Parameters that redis-py takes as objects: no text of a URL can be one.
_OBJECTS = (
    *("cache", "cache_config", "command_packer", "connection_class", "connection_pool", "credential_provider"),
    *(
        "driver_info",
        "event_dispatcher",
        "himport_registry",
        "maint_notifications_config",
        "parser_class",
        "queue_class",
    ),
    *("maint_notifications_pool_handler", "oss_cluster_maint_notifications_handler", "redis_connect_func", "retry"),
    *("socket_keepalive_options", "socket_type", "ssl_ocsp_context"),
)
#: Longest time in seconds; more than that the operating system may not take.
_LONGEST = 1e6
_MOST_DATABASES = 2**31 - 1


def url_problem(scheme: str, options: Mapping[str, Any], known: frozenset[str]) -> str | None:
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
            tls = scheme in ("redis", "sentinel", "redis+sentinel") and ("ssl" in name or "tls" in name)
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
    # RQ's keys are text that scripts know byte by byte.
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
