"""How a web process publishes the statistics of its pools: now and then, over a connection that is just given back.

There is no thread, so a process that does nothing publishes nothing; what it said last is kept for an hour. Processes
that use a pool for less than HEARTBEAT_INTERVAL publish nothing at all.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from ..capacity.level import level_of, read_info
from ..capacity.processes import WEB_TTL, process_name, publish, withdraw
from ..config.secrets import message_of
from ..errors import BudgetExceeded
from ..store.scripts import shared_scripts

if TYPE_CHECKING:
    from .pool import Pool

log = logging.getLogger("rq_pooled.pool")

#: Roles whose processes somebody else speaks for (a horse's worker), or that are gone at once.
UNCOUNTED = ("job", "cli", "probe")
_STARTED_AT = time.time()


class Reporter:
    """Publishes on behalf of one pool, which has to ask ``due`` first. Makes no command before the first interval.

    Args:
        pool: whose settings, role and address count.
        pools: returns all pools of the process; those of the same server are published together.
    """

    def __init__(self, pool: Pool, pools: Callable[[], Iterable[Pool]]) -> None:
        self._weak_pool = weakref.ref(pool)  # a pool that nobody uses any more closes its connections at once
        self._pools = pools
        self._interval = pool.settings.heartbeat_interval
        self._at = time.monotonic() + self._interval
        self._published = False
        self._level = "ok"
        self._blind = False

    @property
    def _pool(self) -> Pool:
        pool = self._weak_pool()
        assert pool is not None, "only the pool itself asks"
        return pool

    def due(self, now: float) -> bool:
        """Tell whether it is time, by the monotonic clock, and who asked is the one to publish."""
        if now < self._at or self._pool.role in UNCOUNTED:
            return False
        self._at = now + self._interval
        return True

    def publish(self, connection: Any) -> None:
        """Publish over a connection of the pool that nobody else uses now; an error closes it, and is only logged."""
        settings = self._pool.settings
        scripts = shared_scripts()
        try:
            words = publish(scripts, process_name(settings), WEB_TTL, self._fields())
            try:
                _execute(connection, *words)
            except NoScriptError:
                _execute(connection, "EVAL", scripts.text("publish"), *words[2:])
            self.start()
            self._look(connection)
        except ResponseError as error:  # no such right, or no memory: the application is not to suffer from it
            self._at = float("inf") if isinstance(error, NoPermissionError) else self._at
            log.warning(
                "pool %s %s: cannot publish statistics: %s", self._pool.role, self._pool.address, message_of(error)
            )
        except (RedisError, OSError) as error:
            connection.disconnect()
            log.debug("pool %s %s: statistics not published: %s", self._pool.role, self._pool.address, error)

    def start(self) -> None:
        """Have what this process leaves on the server removed at its end."""
        if not self._published:
            self._published = True
            atexit.register(self._withdraw, os.getpid())

    def _look(self, connection: Any) -> None:
        """Look how full the server is, as workers do; above GUARD_STOP the pool makes do with what is in use."""
        pool, settings = self._pool, self._pool.settings
        if pool.lease is not None and pool.lease.due:
            try:
                pool.lease.renew(connection)
            except BudgetExceeded as error:
                connection.disconnect()
                log.warning("pool %s %s: %s", pool.role, pool.address, message_of(error))
                return
        if self._blind:
            return
        try:
            connected, maxclients = read_info(_execute(connection, "INFO", "clients"))
        except NoPermissionError as error:  # once: what this process publishes goes on
            self._blind = True
            pool.resize("GUARD_STOP", None)
            log.warning("pool %s %s: not guarded: %s", pool.role, pool.address, message_of(error))
            return
        level = level_of(settings, connected, settings.guard_maxclients or maxclients, self._level)
        if level.name == self._level:
            return
        stop = level.name == "stop"
        if stop or self._level == "stop":
            log.warning("pool %s %s: %s%s", pool.role, pool.address, level, "; nothing new is opened" if stop else "")
            pool.resize("GUARD_STOP", max(1, pool.stats()["in_use"]) if stop else None)
        self._level = level.name

    def _fields(self) -> dict[str, Any]:
        mine = [p for p in self._pools() if p.address == self._pool.address and p.role not in UNCOUNTED]
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

    def _withdraw(self, pid: int) -> None:
        """Remove what was published, at the end of the process, if that can be done without waiting for anything."""
        if os.getpid() != pid:  # a child that was forked afterwards
            return
        pool = self._weak_pool()
        if pool is not None:
            lease = pool.lease
            pool.part([*withdraw(process_name(pool.settings)), *(lease.release() if lease is not None else ())])


def _execute(connection: Any, *words: Any) -> Any:
    connection.send_command(*words, check_health=False)
    return connection.read_response()
