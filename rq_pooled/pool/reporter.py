"""How a web process publishes the statistics of its pools: now and then, over a connection that is just given back.

There is no thread, so a process that does nothing publishes nothing; what it said last is kept for an hour. Processes
that use a pool for less than HEARTBEAT_INTERVAL publish nothing at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from ..capacity.clients import process_name
from ..capacity.level import level_of, read_info
from ..config.secrets import message_of
from ..config.settings import Settings
from ..store.scripts import run
from ..store.statistics import WEB_TTL, publish, withdraw
from ..wire import Command
from .book import is_open
from .hooks import Hook
from .local import local_pools

if TYPE_CHECKING:
    from .pool import Pool

log = logging.getLogger("rq_pooled.pool")

#: Roles whose processes do not report: a horse's worker speaks for it, and commands are gone at once.
UNCOUNTED = ("job", "cli", "probe")
_STARTED_AT = time.time()


class Reporter(Hook):
    """Publishes the statistics of one pool, together with those of the process's other pools of the same server.

    It sends nothing before the first interval is over.

    Args:
        settings: GUARD_* and HEARTBEAT_INTERVAL.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._at = time.monotonic() + settings.heartbeat_interval
        self._published = False
        self._level = "ok"
        self._blind = False

    def on_return(self, pool: Pool, connection: Any) -> None:
        """Publish over the connection if it is time; an error closes it, and is only logged."""
        now = time.monotonic()
        if now < self._at or not is_open(connection):
            return
        self._at = now + self._settings.heartbeat_interval
        try:
            words = publish(process_name(self._settings), WEB_TTL, _fields(pool.address))
            run(lambda command: _execute(connection, *command), words)
            self._published = True
            self._look(pool, connection)
        except ResponseError as error:
            # A missing right or memory must not disturb the application.
            self._at = float("inf") if isinstance(error, NoPermissionError) else self._at
            log.warning("%s: cannot publish statistics: %s", pool.events.title, message_of(error))
        except (RedisError, OSError) as error:
            connection.disconnect()
            log.debug("%s: statistics not published: %s", pool.events.title, error)

    def at_exit(self) -> Sequence[Command]:
        """Return what removes the statistics that were published."""
        return withdraw(process_name(self._settings)) if self._published else ()

    def _look(self, pool: Pool, connection: Any) -> None:
        """Look how full the server is, as workers do; above GUARD_STOP the pool makes do with what is in use."""
        if self._blind:
            return
        try:
            connected, maxclients = read_info(_execute(connection, "INFO", "clients"))
        except NoPermissionError as error:
            # This is said once; the process goes on publishing.
            self._blind = True
            pool.resize("GUARD_STOP", None)
            log.warning("%s: not guarded: %s", pool.events.title, message_of(error))
            return
        settings = self._settings
        level = level_of(settings, connected, settings.guard_maxclients or maxclients, self._level)
        if level.name == self._level:
            return
        stop = level.name == "stop"
        if stop or self._level == "stop":
            log.warning("%s: %s%s", pool.events.title, level, "; nothing new is opened" if stop else "")
            pool.resize("GUARD_STOP", max(1, pool.in_use) if stop else None)
        self._level = level.name


def _fields(address: str) -> dict[str, Any]:
    mine = [pool for pool in local_pools() if pool.address == address and pool.role not in UNCOUNTED]
    shown = [{"role": pool.role, **pool.stats()} for pool in mine]
    connections: dict[str, int] = {}
    for pool in shown:
        connections[pool["role"]] = connections.get(pool["role"], 0) + pool["created"]
    return {
        "kind": "web",
        "uptime": round(time.time() - _STARTED_AT, 3),
        "connections": connections,
        "pools": shown,
    }


def _execute(connection: Any, *words: Any) -> Any:
    connection.send_command(*words, check_health=False)
    return connection.read_response()
