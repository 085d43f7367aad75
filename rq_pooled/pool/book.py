"""What a pool knows about its connections: who holds which, their ages, statistics, and warnings of leaks."""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..config.settings import Settings
from .events import Events
from .hooks import Hook

log = logging.getLogger("rq_pooled.pool")

_LIBRARIES = ("redis", "rq", "rq_pooled")


@dataclass(eq=False)
class Line:
    """One connection; times are ``time.monotonic()``."""

    opened_at: float = 0.0
    expires_at: float = float("inf")
    released_at: float = 0.0
    #: When it was last seen to owe no reply.
    answered_at: float = 0.0
    #: Its ``close`` is still to be published.
    open_noted: bool = False
    #: It was open, and the pool did not close it: opening it again is a reconnect.
    lost: bool = False


@dataclass(eq=False)
class Hold:
    """Who took a connection, and when."""

    since: float
    thread: str
    place: str
    warned: bool = False

    def describe(self, now: float) -> str:
        """Return it in words."""
        return f"{self.thread} for {now - self.since:.1f} s at {self.place}"


class Book:
    """Keeps a line for each connection of one pool, and closes them.

    Args:
        settings: LEAK_WARN, MAX_LIFETIME and HEALTH_CHECK_INTERVAL.
        events: told when a connection is opened or closed.
        hooks: told when a connection is closed.
    """

    def __init__(self, settings: Settings, events: Events, hooks: Sequence[Hook]) -> None:
        #: One thread may take it twice: garbage collection runs PubSub.__del__, which returns a connection, and a
        #: signal handler may ask for statistics, at any moment. What they may change is therefore read from copies.
        self.lock = threading.RLock()
        self.lines: dict[Any, Line] = {}
        self.holds: dict[Any, Hold] = {}
        self.waiting = self.timeouts = 0
        self._longest_wait = 0.0
        self._reconnects = 0
        self._settings = settings
        self._events = events
        self._hooks = hooks
        self._check_leaks_at = self._log_statistics_at = float("-inf")
        self._waits_logged = 0.0

    def take(self, connection: Any) -> None:
        """Note that the running thread holds a connection."""
        hold = Hold(time.monotonic(), threading.current_thread().name, _place())
        with self.lock:
            self.holds[connection] = hold

    def give_back(self, connection: Any) -> tuple[Hold | None, Line | None]:
        """Note that a connection comes back; return who held it, and its line."""
        with self.lock:
            return self.holds.pop(connection, None), self.lines.get(connection)

    def opened(self, connection: Any) -> None:
        """Note that a connection has just been opened, by the pool or by redis-py on its own."""
        now, lifetime = time.monotonic(), self._settings.max_lifetime
        with self.lock:
            line = self.lines.get(connection)
            if line is None:
                return
            # A line still noted as open: redis-py lost the connection and reconnected by itself.
            again = line.lost or line.open_noted
            self._reconnects += again
            line.lost, line.open_noted = False, True
            line.opened_at = now
            # Spread, so that connections opened together are not all renewed together.
            line.expires_at = now + lifetime * random.uniform(0.8, 1.0) if lifetime else float("inf")
        self._events.publish("connect", reconnect=again)

    def close(self, connection: Any, reason: str, lost: bool = False) -> None:
        """Close, if it is not closed already, and say so once. ``lost``: the pool did not want it."""
        connection.disconnect()
        with self.lock:
            line = self.lines.get(connection)
            noted = line is not None and line.open_noted
            if line is not None and noted:
                line.open_noted, line.lost = False, lost
        self.left(connection)
        if noted:
            self._events.publish("close", reason=reason)

    def close_idle(self) -> None:
        """Close all connections that are not held."""
        with self.lock:
            idle = [connection for connection in list(self.lines) if connection not in self.holds]
        for connection in idle:
            self.close(connection, "pool disconnected")

    def left(self, connection: Any) -> None:
        """Tell the hooks that a connection is closed."""
        for hook in self._hooks:
            hook.on_close(connection)

    def others_than(self, connection: Any) -> int:
        """Return how many other connections are open or being opened."""
        with self.lock:
            return sum(1 for c in list(self.lines) if c is not connection and (c in self.holds or is_open(c)))

    @contextmanager
    def counted_waiting(self, started: float) -> Iterator[None]:
        """Count the caller among those that wait, since ``started``."""
        with self.lock:
            self.waiting += 1
        try:
            yield
        finally:
            with self.lock:
                self.waiting -= 1
                self._longest_wait = max(self._longest_wait, time.monotonic() - started)

    def stats(self, size: int) -> dict[str, Any]:
        """Return what ``Pool.stats`` says of a pool of this size."""
        now = time.monotonic()
        with self.lock:
            in_use = len(self.holds)
            lines = self.lines.copy().items()
            available = sum(1 for c, _ in lines if c not in self.holds and is_open(c))
            ages = [now - line.opened_at for c, line in lines if is_open(c)]
            return {
                "max": size,
                "created": in_use + available,
                "available": available,
                "in_use": in_use,
                "waiting": self.waiting,
                "longest_wait": self._longest_wait,
                "timeouts": self.timeouts,
                "reconnects": self._reconnects,
                "oldest_age": max(ages, default=0.0),
            }

    def look_after(self, size: int) -> None:
        """Warn of leaks and log the statistics of a pool of this size, where it is time."""
        settings, now = self._settings, time.monotonic()
        if settings.leak_warn and now >= self._check_leaks_at:
            with self.lock:
                holds = list(self.holds.values())
            for hold in holds:
                self.warn_of_leak(hold, now)
            oldest = min((hold.since for hold in holds if not hold.warned), default=now)
            self._check_leaks_at = oldest + settings.leak_warn
        if settings.health_check_interval and now >= self._log_statistics_at:
            first = self._log_statistics_at == float("-inf")
            self._log_statistics_at = now + settings.health_check_interval
            if not first:
                stats = self.stats(size)
                news = stats["timeouts"] + stats["reconnects"] + stats["longest_wait"]
                level = logging.DEBUG if news == self._waits_logged else logging.INFO
                self._waits_logged = news
                log.log(level, "%s: %s", self._events.title, stats)

    def warn_of_leak(self, hold: Hold, now: float) -> None:
        """Warn, once, of a connection that is, or was, held for too long."""
        longest = self._settings.leak_warn
        if longest and not hold.warned and now - hold.since > longest:
            hold.warned = True
            log.warning(
                "%s: a connection is held by %s, longer than LEAK_WARN=%g s: return it earlier (a pubsub, "
                "pipeline or generator left open?)",
                self._events.title,
                hold.describe(now),
                longest,
            )


@dataclass(frozen=True)
class Report:
    """A ``redis_connect_func``: notes each connect in a pool's book, held weakly since that holds the connection."""

    book: weakref.ref[Book]
    handshake: Callable[[Any], None]

    def __call__(self, connection: Any) -> None:
        """Introduce the connection, and note it."""
        self.handshake(connection)
        book = self.book()
        if book is not None:
            book.opened(connection)


def is_open(connection: Any) -> bool:
    """Tell whether a connection has a socket, without I/O: the other side may have closed it."""
    # redis-py 5 has no public name for this.
    return getattr(connection, "_sock", None) is not None


def _place() -> str:
    """Return file, line and function of the innermost caller outside redis-py, RQ and this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.split(".")[0] not in _LIBRARIES:
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
