"""Every option of a connection, set explicitly: redis-py's defaults differ between 5.x and 8.x.

Some of those defaults send a command again after an error, so that it may be carried out twice.
"""

from __future__ import annotations

import inspect
import socket
from functools import cache
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.retry import Retry

from ..config.settings import Settings
from .names import Introduce


def quiet_connection_kwargs(settings: Settings, role: str, connection_class: Any = Connection) -> dict[str, Any]:
    """Return every option of a connection that ``connection_class`` of the installed redis-py knows.

    No command is sent again: ``Retry`` with 0 retries also keeps redis-py from connecting again by itself.
    Maintenance notifications are off, since they switch off the check for unread data. The protocol is RESP2, and
    replies are bytes.
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


def keepalive_options(settings: Settings) -> dict[int, int]:
    """Return the socket options of TCP keepalive that this platform has, by their constants in ``socket``."""
    options: dict[int, int] = {}
    # macOS calls the idle time TCP_KEEPALIVE; where both names exist they are one option.
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


def _no_maintenance_notifications() -> Any:
    try:
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:
        # redis-py before 7
        return None
    return MaintNotificationsConfig(enabled=False)


# Each Queue() of a web request asks, and there are only a few classes.
@cache
def accepted_options(connection_class: type[Any]) -> frozenset[str]:
    """Return the keyword arguments that a connection class, or a class it extends, names."""
    return frozenset(
        name
        for cls in connection_class.__mro__
        if "__init__" in vars(cls)
        for name in inspect.signature(vars(cls)["__init__"]).parameters
    )
