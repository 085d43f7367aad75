"""Whether the server can be used, asked over a connection of its own; docs/monitoring.md has the keys of the answer.

No password appears in it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any
from weakref import WeakKeyDictionary

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from ..capacity.level import info_fields, level_of, read_info
from ..config.secrets import message_of
from ..config.settings import Settings
from ..connection.connect_errors import FULL
from ..connection.options import make_connection
from ..connection.place import address_of
from ..deadline import within
from ..pool.registry import get_connection


def health(timeout: float = 2.0, settings: Settings | None = None, connection: Redis | None = None) -> dict[str, Any]:
    """Ask the server for a sign of life; "away" is an answer, and no error. Blocks for at most ``timeout``.

    Opens a connection named ``…:probe`` and closes it, since what matters is whether one can be opened. Only looking
    up the host's name may take longer than ``timeout``.

    Args:
        timeout: seconds for everything.
        settings: from the environment if not given.
        connection: a client whose server is asked instead of the one in the settings.

    Returns:
        ``ok``, ``status`` (``healthy``, ``full``: the guard's level is ``stop``, or it takes no clients, ``away``),
        ``reason`` (None if ok), ``address``, ``latency`` (seconds of a PING, or None), ``version``, ``connected``,
        ``maxclients``, ``level``.

    Raises:
        ConfigurationError: a setting or the URL cannot be used.
    """
    with within(timeout, "timeout"):
        return _probed(timeout, settings or Settings.load(), connection)


def _probed(timeout: float, settings: Settings, connection: Redis | None) -> dict[str, Any]:
    began = time.monotonic()
    report: dict[str, Any] = {"ok": False, "status": "away", "reason": None, "address": None}
    report.update(latency=None, version=None, connected=None, maxclients=None, level="unknown")
    # Connecting may try several addresses, each within a limit of its own: three steps share the time.
    step = timeout / 3
    client = connection or get_connection(settings)
    probe = make_connection(
        settings,
        "probe",
        client,
        socket_timeout=step,
        socket_connect_timeout=step,
        health_check_interval=0,
    )
    report["address"] = address_of(type(probe), dict(client.connection_pool.connection_kwargs))
    try:
        probe.connect()
        asked = time.monotonic()
        probe.send_command("PING", check_health=False)
        probe.read_response()
        report["latency"] = round(time.monotonic() - asked, 6)
        if time.monotonic() - began < timeout - step:
            report.update(_described(probe, settings))
        report["ok"] = report["level"] != "stop"
        report["status"] = "healthy" if report["ok"] else "full"
        if not report["ok"]:
            report["reason"] = f"{report['connected']} of {report['maxclients']} connections of the server are in use"
    except (RedisError, OSError) as error:
        report["reason"] = message_of(error)
        if FULL in str(error):
            report["status"] = "full"
    finally:
        probe.disconnect()
    return report


def _described(probe: Any, settings: Settings) -> dict[str, Any]:
    """Return what INFO says, nothing where it is refused."""
    replies = []
    for section in ("server", "clients"):
        probe.send_command("INFO", section, check_health=False)
        try:
            replies.append(probe.read_response())
        except ResponseError:
            return {}
    server, (connected, maxclients) = info_fields(replies[0]), read_info(replies[1])
    maxclients = settings.guard_maxclients or maxclients
    level = level_of(settings, connected, maxclients)
    version = server.get("valkey_version") or server.get("redis_version")
    return {"version": version, "connected": connected or None, "maxclients": maxclients, "level": level.name}


def health_word(
    timeout: float = 2.0, settings: Settings | None = None, connection: Redis | None = None, age: float = 1.0
) -> dict[str, Any]:
    """Return ``ok`` and ``status`` of ``health``, which strangers may know. Blocks as ``health``.

    One answer serves all callers for ``age`` seconds, so that a public probe opens at most one connection a second.
    """
    client = connection or get_connection(settings)
    shared = _words.setdefault(client.connection_pool, _Word())
    if shared.is_older_than(age):
        # While one caller asks, the others take the last answer, or wait for the first one.
        wait = timeout if shared.found is None else 0
        if shared.asking.acquire(timeout=wait):
            try:
                if shared.is_older_than(age):
                    shared.asked = time.monotonic()
                    found = health(timeout, settings, client)
                    shared.found = {"ok": found["ok"], "status": found["status"]}
            finally:
                shared.asking.release()
    return dict(shared.found or {"ok": False, "status": "away"})


class _Word:
    """The last answer of a server, when it was asked for, and the lock of the caller that asks."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None
        self.asked = 0.0
        self.asking = threading.Lock()

    def is_older_than(self, age: float) -> bool:
        """Tell whether the server is to be asked again."""
        return self.found is None or time.monotonic() - self.asked > age


#: Each answer belongs to a pool, and ends with it. A forked process begins anew, since a thread of its parent may hold
#: the lock.
_words: WeakKeyDictionary[Any, _Word] = WeakKeyDictionary()
os.register_at_fork(after_in_child=_words.clear)
