"""The bounded pool of a web process or horse: who holds what, statistics, events, renewal, and forks.

Waits are bounded and end in ``PoolExhausted``; what cannot connect ends in ``ServerUnreachable``, and nothing was sent
then. There is no thread: whatever is due (idle connections, leaks, statistics) is looked at when a connection is taken
or returned. Only with a BUDGET, a thread lives while the pool has more idle connections than it may keep when calls
cease. A connection that cannot be opened now (no place in the budget, a full server) is waited for. Locks are made with
each pool, never at import, so gevent may patch after importing this.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, Full
from typing import Any

from redis import BlockingConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..capacity.stop_flag import Brake
from ..config.secrets import scrub
from ..config.settings import Settings
from ..connection.connect_errors import explain, says_full
from ..connection.names import Introduce, client_name
from ..connection.options import connection_options
from ..connection.patience import patient
from ..connection.place import address_of
from ..connection.readonly import noticing
from ..connection.sentinel import Masters
from ..connection.url_parameters import pool_limits
from ..deadline import clipped, hurried, within
from ..deadline import current as current_deadline
from ..delays import jittered_delay
from ..errors import USAGE, BudgetExceeded, PoolExhausted, RedisUnavailable, ServerFull, ServerUnreachable
from ..wire import Command, pack_commands
from .breaker import Breaker
from .places import Places, owing
from .reporter import UNCOUNTED, Reporter
from .resizing import Sizes

log = logging.getLogger("rq_pooled.pool")

#: The share of a deadline that a caller may spend waiting for a connection.
_WAITING_SHARE = 0.9
#: ``callback(event, details)``; events are connect, error, close and exhausted.
Callback = Callable[[str, dict[str, Any]], Any]

#: Roles of commands that are to say what is wrong, and not to wait for its end.
_IMPATIENT = ("cli",)
_LIBRARIES = ("redis", "rq", "rq_pooled")
#: How often connecting is tried for one caller. Only connecting: a command that was sent is never sent again.
_CONNECT_ATTEMPTS = 3
#: While a server is away every call fails: a warning at most this often (seconds), the others at level debug.
_WARN_EVERY = 10.0
#: A refusal of the budget is logged at most this often (seconds).
_SAY_REFUSED_EVERY = 60.0
_SHOWN_HOLDERS = 10
#: Seconds until opening a connection is tried again, growing from the first figure to the second, jittered.
_AGAIN = {"GUARD_STOP": (0.05, 0.05), "BUDGET": (0.02, 0.5), "maxclients": (0.05, 1.0)}
#: Seconds between looks of a waiting caller whether more connections may be opened.
_WAKE = 0.5
#: While another process waits for a place, connections idle for this long (seconds) are closed.
_IDLE_WHILE_CROWDED = 0.1
#: Seconds without a call after which a pool with a BUDGET keeps one connection at most.
_QUIET = 0.5


@dataclass(eq=False)
class _Line:
    """What the pool knows about one of its connections; times are ``time.monotonic()``."""

    opened_at: float = 0.0
    expires_at: float = float("inf")
    released_at: float = 0.0
    #: When it was last seen to owe no reply.
    answered_at: float = 0.0
    #: Its ``close`` is still to be published.
    open_noted: bool = False
    #: It was open, and not the pool closed it: opening it again is a reconnect.
    lost: bool = False
    #: It has a place in the budget.
    placed: bool = False


@dataclass(eq=False)
class _Hold:
    """Who took a connection, and when."""

    since: float
    thread: str
    place: str
    warned: bool = False

    def describe(self, now: float) -> str:
        return f"{self.thread} for {now - self.since:.1f} s at {self.place}"


@dataclass
class _Counters:
    waiting: int = 0
    longest_wait: float = 0.0
    timeouts: int = 0
    reconnects: int = 0
    last_warning: dict[str, float] = field(default_factory=dict)


class _NotNow(Exception):
    """A connection cannot be opened now, and later it may: ``error`` is for a caller that cannot wait any longer.

    ``bound`` names what is in the way: a key of ``_AGAIN``.
    """

    def __init__(self, bound: str, error: RedisUnavailable) -> None:
        super().__init__(bound)
        self.bound = bound
        self.error = error


class Pool(BlockingConnectionPool):
    """A bounded pool of connections to one server, on redis-py's ``BlockingConnectionPool``.

    Use it as any redis-py pool: ``Redis(connection_pool=pool)``. Taking a connection blocks for at most POOL_TIMEOUT
    while all are in use or none may be opened, and for at most SOCKET_CONNECT_TIMEOUT past that while connecting. After
    a fork the child closes its copies of the sockets and starts empty; the parent's connections stay as they are.

    Args:
        settings: limits and timeouts; from the environment if not given.
        role: the last part of the connections' names in CLIENT LIST.
        client: take server, credentials and connection class from this client instead of from URL.
        max_connections, timeout: instead of MAX_CONNECTIONS and POOL_TIMEOUT.
        connection_kwargs: options of redis-py's connections that win over all of these.

    Raises:
        ConfigurationError: a setting or the URL cannot be used.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        role: str = "web",
        *,
        client: Redis | None = None,
        max_connections: int | None = None,
        timeout: float | None = None,
        **connection_kwargs: Any,
    ) -> None:
        self.settings = settings = settings or Settings.load()
        self.role = role
        cls, options = connection_options(settings, role, client)
        options = {**options, **connection_kwargs}
        most, wait = pool_limits(settings)
        self.address = address_of(cls, options)
        self._subscribers: list[Callback] = []
        #: While it is engaged no connection is opened; a horse's, set by its worker's guard.
        self.brake: Brake | None = None
        #: Commands that wait in Redis may take longer than SOCKET_TIMEOUT; for jobs.
        self.patient = False
        super().__init__(  # type: ignore[no-untyped-call]
            max_connections=max_connections or most,
            timeout=wait if timeout is None else timeout,
            queue_class=_make_queue,
            connection_class=cls,
            **options,
        )
        _pools.add(self)

    @classmethod
    def from_settings(cls, settings: Settings, role: str = "web") -> Pool:
        """Return a pool for the server at ``settings.url``; nothing is opened yet."""
        return cls(settings, role)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Pool:
        """Return a pool for the server at ``url``; everything else is as with ``Pool(**kwargs)``."""
        return cls(Settings.load({"url": url}), **kwargs)

    def __repr__(self) -> str:  # redis-py's shows the keyword arguments, some versions with the password
        return f"<{type(self).__name__} {self.role} {self.address} {len(self._holds)}/{self.max_connections} in use>"

    def reset(self) -> None:
        """Forget all connections and start empty: at construction, and in the child after a fork."""
        # New locks first: the thread that held the old ones does not exist in the child (redis-py 8 takes _lock here).
        # Locks that one thread may take twice: garbage collection runs PubSub.__del__, which returns a connection, and
        # a signal handler may ask for statistics, at any moment. What they may change is therefore read from copies.
        self._book = threading.RLock()
        self._lock = threading.RLock()
        self._connections: list[Any] = []
        self._lines: dict[Any, _Line] = {}
        self._holds: dict[Any, _Hold] = {}
        self._counters = _Counters()
        self._check_leaks_at = self._log_statistics_at = float("-inf")
        self._waits_logged = 0.0
        #: Why no further connection could be opened, how often in a row, and when to try again.
        self._refusal: _NotNow | None = None
        self._refusals = 0
        self._again_at = self._refused_at = self._refused_logged_at = float("-inf")
        self._called_at = float("-inf")
        self._watched = False
        self._reporter = Reporter(self, local_pools)
        self._sizes = Sizes(self.max_connections)
        self.lease = self._new_lease()
        #: Whether calls that fail fast try the server at all, see pool/failfast.py.
        self.breaker = Breaker(self.settings.breaker_delay, self.settings.enqueue_deadline + 1.0)
        super().reset()  # type: ignore[no-untyped-call]

    def reset_in_child(self) -> None:
        """Close this process's copies of the parent's sockets, without a shutdown, and start empty."""
        if self.pid == os.getpid():
            return
        inherited = list(self._connections)
        self._fork_lock = threading.RLock()
        self.reset()
        for connection in inherited:
            connection.disconnect()  # redis-py shuts a socket down only in the process that opened it

    def _new_lease(self) -> Places | None:
        if self.settings.budget is None or self.role in UNCOUNTED:
            return None
        # A copy of the options, not the pool: nothing may keep it alive but its users.
        options = _with_role(self.connection_kwargs, "probe")
        probe: Any = hurried(self.connection_class)
        return Places(self.settings, partial(probe, **options))

    def resize(self, reason: str, size: int | None) -> None:
        """Use at most ``size`` connections from now on, at least 1; None lifts what was set for the same reason.

        Idle connections beyond it are closed now, those in use when they come back. Of several reasons the smallest
        size counts.
        """
        for connection in self._sizes.set(self.pool, reason, size, _is_open):
            self._close(connection, f"pool made smaller: {reason}")

    def become(
        self, role: str, max_connections: int, connection_class: type[Any] | None = None, options: Any = None
    ) -> None:
        """Close all connections and go on with others: of this role, so many, of this class with these options.

        For a horse: what its job's code may have kept from before the fork, the pool and its clients, leads through the
        parent from then on. The bound may be below MAX_CONNECTIONS' least. Nobody may be using the pool meanwhile.
        """
        self.disconnect()
        self.role, self.max_connections = role, max(1, max_connections)
        self.connection_class = connection_class or self.connection_class
        self.connection_kwargs = dict(options) if options is not None else _with_role(self.connection_kwargs, role)
        self.reset()

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback(event, details)`` at each event, in the thread it happens in; return what ends that.

        Events: ``connect``, ``error`` (connecting failed), ``close`` (with its reason), ``exhausted``. The details are
        a dict with at least ``role`` and ``address``. What a callback raises is logged and goes no further.
        """
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    def stats(self) -> dict[str, Any]:
        """Return the state of the pool; times are seconds. Does not block.

        ``created`` are the connections open or being opened now: ``available`` idle ones and those ``in_use``.
        ``longest_wait``, ``timeouts`` (PoolExhausted) and ``reconnects`` (lost connections opened anew) count since
        the process began to use the pool.
        """
        now = time.monotonic()
        with self._book:
            in_use = len(self._holds)
            lines = self._lines.copy().items()
            idle = [line for c, line in lines if c not in self._holds and _is_open(c)]
            ages = [now - line.opened_at for c, line in lines if _is_open(c)]
            counters = self._counters
            return {
                "max": self._sizes.size,
                "created": in_use + len(idle),
                "available": len(idle),
                "in_use": in_use,
                "waiting": counters.waiting,
                "longest_wait": counters.longest_wait,
                "timeouts": counters.timeouts,
                "reconnects": counters.reconnects,
                "oldest_age": max(ages, default=0.0),
            }

    @property
    def in_use(self) -> int:
        """Return how many connections are in use, in less time than ``stats`` takes."""
        return len(self._holds)

    def close_unanswered(self, patience: float) -> None:
        """Close the idle connections that do not answer PING with PONG within so many seconds: a reply may be on its
        way.

        For the owner of a pool that gives it to somebody else. Connections that were not used since the last time are
        passed over.
        """
        for connection in [c for c in list(self.pool.queue) if c is not None and _is_open(c)]:
            line = self._lines[connection]
            if line.released_at <= line.answered_at:
                continue
            try:
                connection.send_command("PING", check_health=False)
                sound = connection.can_read(patience) and connection.read_response() in (b"PONG", "PONG")
            except (RedisError, OSError):
                sound = False
            if sound and not connection.can_read():
                line.answered_at = time.monotonic()
            else:
                self._close(connection, "a reply may be on its way", lost=True)

    @property
    def is_whole(self) -> bool:
        """Tell whether no lock is held by this thread, which uses no connection now, and no place has got lost.

        An exception that a signal handler raises between two instructions can leave either behind, in this process for
        ever.
        """
        locks: Any = (self._book, self._lock, self.pool.mutex)
        places = len(self.pool.queue) + len(self._holds) + self._sizes.withheld
        return places == self.max_connections and not any(lock._is_owned() for lock in locks)

    def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> Any:
        """Take a connection that is connected and has no unread data; return it with ``release``.

        Replaces ``BlockingConnectionPool.get_connection`` (redis-py 5.0 to 8.1; the arguments are those of 5.x and
        have no effect): says who holds what when it is exhausted, tries connecting again, keeps the book.

        Raises:
            PoolExhausted: all connections stayed in use for the pool's timeout.
            BudgetExceeded, ServerFull: for as long none could be opened; nothing was sent.
            ServerUnreachable: connecting failed; nothing was sent.
        """
        self._checkpid()
        started = time.monotonic()
        wait, setting = self._patience()
        while True:
            connection = self._take_slot(started, wait, setting)
            try:
                if connection is None:
                    connection = self.make_connection()
            except BaseException:
                self._put(None)
                raise
            hold = _Hold(time.monotonic(), threading.current_thread().name, _place())
            with self._book:
                self._holds[connection] = hold
            try:
                try:
                    self._make_ready(connection, started + wait)
                except _NotNow as refusal:
                    self._step_back(connection, refusal, started, wait, setting)
                    continue
                self._called_at = time.monotonic()
                if self.lease is not None and self.lease.crowded:
                    self._close_idle(self._called_at)
                self._housekeeping()
            except BaseException:
                connection.disconnect()  # a reply may still be on its way
                self.release(connection)
                raise
            return connection

    def make_connection(self) -> Any:
        """Return a new connection, not connected yet, that reports each connect to this pool."""
        options = dict(self.connection_kwargs)
        options["redis_connect_func"] = _Report(weakref.ref(self), options["redis_connect_func"])
        cls: Any = patient(self.connection_class) if self.patient else self.connection_class
        cls = cls if self.lease is None else owing(cls)
        connection = hurried(noticing(cls))(**options)
        with self._book:
            self._connections.append(connection)
            self._lines[connection] = _Line()
        return connection

    def release(self, connection: Any) -> None:
        """Take back a connection. One returned twice, or by a child that inherited it, is not pooled again."""
        self._checkpid()
        now = time.monotonic()
        with self._book:
            hold = self._holds.pop(connection, None)
            line = self._lines.get(connection)
        if hold is None or line is None:
            if not self.owns_connection(connection):
                connection.disconnect()
            return
        try:
            self._warn_of_leak(hold, now)
            if connection.refused_write:
                connection.refused_write = False
                self._close(connection, "the server has become a replica", lost=True)
            elif getattr(connection, "should_reconnect", bool)():
                self._close(connection, "marked for reconnecting")
            elif not _is_open(connection):  # by a caller that is done with it, or by redis-py after an error
                self._close(connection, "closed while in use", lost=True)
            if self.lease is not None and _is_open(connection):
                connection.settle_soon()
            if _is_open(connection) and self._reporter.due(now):
                self._reporter.publish(connection)
            if self.lease is not None:
                self._give_way(connection)
        except BaseException:  # a gevent.Timeout, say: a reply may still be on its way
            connection.disconnect()
            raise
        finally:
            line.released_at = self._called_at = now
            if not _is_open(connection):
                self._leave(connection)
            self._put(connection)
        self._close_idle(now)
        self._watch_quiet()
        self._housekeeping()

    def part(self, commands: Sequence[Command]) -> bool:
        """Send last commands over an idle connection and close it, without waiting for replies; False if there is none.

        QUIT behind them: what they free is free only when the server has closed this connection too.
        """
        with self.pool.mutex:
            idle = [c for c in self.pool.queue if c is not None and _is_open(c)]
            if not idle:
                return False
            connection = idle[-1]
            self.pool.queue[self.pool.queue.index(connection)] = None
        _send_last(connection, commands)
        self._close(connection, "pool disconnected")
        self._forget(connection)
        return True

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the pool's connections, those in use too unless told otherwise; the pool stays usable."""
        self._checkpid()
        lease = self.lease
        if lease is not None and not inuse_connections:
            self._retire_idle(time.monotonic(), 0.0, 0, "pool disconnected")
            return
        # One idle connection is kept to give the place in the budget back, when all others are closed.
        spared = (
            next((c for c in self.pool.queue if c is not None and _is_open(c)), None) if lease is not None else None
        )
        with self._book:
            chosen = [c for c in list(self._connections) if inuse_connections or c not in self._holds]
        for connection in chosen:
            if connection is not spared:
                self._close(connection, "pool disconnected")
        if lease is not None and lease.granted:
            with self._book:
                for line in self._lines.values():
                    line.placed = False
                commands = lease.release()
            self.part(commands)
        if spared is not None:
            self._close(spared, "pool disconnected")

    # taking

    def _take_slot(self, started: float, wait: float, setting: str) -> Any:
        """Return an idle connection, or None for a free slot; blocks until ``wait`` seconds have passed since
        ``started``.
        """
        try:
            return self.pool.get_nowait()
        except Empty:
            pass
        with self._book:
            self._counters.waiting += 1
        try:
            while True:
                now = time.monotonic()
                pause = _WAKE if self._refusal is None else min(_WAKE, max(0.0, self._again_at - now))
                try:
                    return self.pool.get(block=True, timeout=max(0.0, min(started + wait - now, pause)))
                except Empty:
                    if time.monotonic() >= started + wait:
                        raise self._exhausted(wait, setting) from None
                self._let_one_try()
        finally:
            with self._book:
                self._counters.waiting -= 1
                self._counters.longest_wait = max(self._counters.longest_wait, time.monotonic() - started)

    def _let_one_try(self) -> None:
        """Let one caller more than there are connections try to open another, if it is time to try again."""
        now = time.monotonic()
        with self._book:
            refusal = self._refusal
            if refusal is None or now < self._again_at:
                return
            self._again_at = now + _AGAIN[refusal.bound][0]  # for the other waiting callers
        size = self._sizes.size + 1
        self.resize(refusal.bound, size if size < self.max_connections else None)

    def _step_back(self, connection: Any, refusal: _NotNow, started: float, wait: float, setting: str) -> None:
        """Put back the slot of a connection that cannot be opened now; return when the caller may take one again.

        While the pool has other connections, the caller waits for one of those; so only as many slots go round.
        """
        self._close(connection, "it cannot be used now")
        now, ends = time.monotonic(), started + wait
        with self._book:
            if self._refusal is not None and self._refusal.bound != refusal.bound:
                self.resize(self._refusal.bound, None)
            self._refusal, self._refused_at = refusal, now
            if now >= self._again_at:  # else another caller was refused just now
                self._again_at = now + jittered_delay(self._refusals, *_AGAIN[refusal.bound])
                self._refusals += 1
        if now >= ends:
            others = self._others_than(connection)
            if others:
                self.resize(refusal.bound, others)
            raise self._exhausted(wait, setting) if others else self._given_up(refusal, now - started, setting)
        if not self._others_than(connection):
            time.sleep(max(0.0, min(self._again_at, ends) - now))  # with the slot: others could not do better
        with self.pool.mutex, self._book:
            del self._holds[connection]
            size = self._others_than(connection)
            self._put(connection)
            if size:
                self.resize(refusal.bound, size)

    def _others_than(self, connection: Any) -> int:
        """Return how many other connections are open or being opened."""
        with self._book:
            lines = list(self._lines)
            return sum(1 for c in lines if c is not connection and (c in self._holds or _is_open(c)))

    def _given_up(self, refusal: _NotNow, waited: float, setting: str) -> RedisUnavailable:
        error = type(refusal.error)(f"{refusal.error} (waited {waited:.3g} s, {setting})")
        self._say_refused(refusal.bound, str(error))
        return error

    def _say_refused(self, bound: str, words: str) -> None:
        now = time.monotonic()
        if bound == "BUDGET":
            first = now - self._refused_logged_at >= _SAY_REFUSED_EVERY
            self._refused_logged_at = now if first else self._refused_logged_at
            log.log(
                logging.WARNING if first else logging.DEBUG, "pool %s %s: refused: %s", self.role, self.address, words
            )

    def _opened(self) -> None:
        """Note that a connection could be opened: others may be tried, too."""
        with self._book:
            refusal, self._refusal, self._refusals, self._again_at = self._refusal, None, 0, float("-inf")
        if refusal is not None:
            self.resize(refusal.bound, None)

    def _patience(self) -> tuple[float, str]:
        """Return how many seconds the running call may wait here, and the setting that says so."""
        wait = float("inf") if self.timeout is None else self.timeout
        deadline = current_deadline()
        if deadline is None or deadline.left() >= wait:
            return wait, "POOL_TIMEOUT"
        # Who gets a connection in the last moment could not use it any more, and would take that for the server's
        # silence.
        return max(0.0, deadline.left() * _WAITING_SHARE), deadline.setting

    def _exhausted(self, wait: float, setting: str) -> PoolExhausted:
        now = time.monotonic()
        with self._book:
            self._counters.timeouts += 1
            waiting = self._counters.waiting - 1
            holds = sorted(self._holds.values(), key=lambda hold: hold.since)
        holders = [hold.describe(now) for hold in holds]
        more = len(holders) - _SHOWN_HOLDERS
        shown = "; ".join(holders[:_SHOWN_HOLDERS]) + (f"; and {more} more" if more > 0 else "")
        self._publish("exhausted", max=self.max_connections, timeout=wait, waiting=waiting, holders=holders)
        refusal = self._refusal
        why = "" if refusal is None else f". No further one can be opened: {refusal.error}"
        if refusal is not None:
            self._say_refused(refusal.bound, str(refusal.error))
        return PoolExhausted(
            f"no connection to {self.address} became free within {wait:.3g} s ({setting}): all "
            f"{self._sizes.size} ({self._sizes.reason or 'MAX_CONNECTIONS'}) are in use, {waiting} others are waiting. "
            f"Held by: {shown}. Raise MAX_CONNECTIONS or {setting}, or return connections earlier{why}"
        )

    def _make_ready(self, connection: Any, deadline: float) -> None:
        """Connect if need be, and see to it that no reply to somebody else is waiting in the connection."""
        line = self._lines[connection]
        if _is_open(connection):  # before anything is asked over it
            try:
                if connection.can_read():
                    self._close(connection, "unread data, or closed by the server", lost=True)
            except (RedisError, OSError) as error:
                self._close(connection, scrub(str(error)), lost=True)
        if _is_open(connection):
            self._renew_lease(connection)
        if _is_open(connection) and time.monotonic() >= line.expires_at:
            self._close(connection, "max_lifetime")
        masters = self.connection_kwargs.get("connection_pool")
        if _is_open(connection) and isinstance(masters, Masters) and masters.is_former(connection):
            self._close(connection, "another server has become the master", lost=True)
        if _is_open(connection):
            try:
                with _part_of_the_deadline():
                    connection.check_health()  # before use, not on the first command: nothing is at stake yet
                if self.lease is not None and (look := self.lease.look(time.monotonic())) is not None:
                    connection.send_ahead(*look)
                return
            except (RedisError, OSError) as error:
                self._close(connection, scrub(str(error)), lost=True)
                if isinstance(
                    error, RedisTimeoutError
                ):  # what a firewall has forgotten, it has forgotten of others, too
                    self._close_all_idle()
        self._open(connection, deadline)

    def _open(self, connection: Any, deadline: float) -> None:
        if self.brake is not None and self.brake.engaged:
            raise _NotNow(
                "GUARD_STOP",
                PoolExhausted(
                    f"no connection to {self.address} may be opened: the server is full above GUARD_STOP. Close "
                    "connections, "
                    "or raise the server's maxclients"
                ),
            )
        for attempt in range(1, _CONNECT_ATTEMPTS + 1):
            try:
                with self._turn_to_ask():
                    connection.connect()
                if connection.can_read():
                    raise RedisConnectionError("the server sent data that nobody asked for")
                # A pause before the connection got its name may have cost its place.
                self._renew_lease(connection)
                if not _is_open(connection) and self.lease is not None:
                    raise self.lease.refusal()
                self._opened()
                return
            except BudgetExceeded as error:
                raise _NotNow("BUDGET", error) from None
            except (RedisConnectionError, RedisTimeoutError, ResponseError, OSError) as error:
                if isinstance(error, ServerUnreachable):
                    raise
                connection.disconnect()
                self._leave(connection)
                reason = scrub(str(error)) or type(error).__name__
                self._publish("error", reason=reason, attempt=attempt)
                if says_full(self.connection_class, error):
                    reason = reason.rstrip(".")
                    full = f"cannot connect to {self.address}: the server is full: {reason}; nothing was sent. "
                    is_full = ServerFull(f"{full}Close connections, or raise the server's maxclients")
                    if self.role in _IMPATIENT:
                        raise is_full from error
                    raise _NotNow("maxclients", is_full) from error
                delay = jittered_delay(attempt - 1, self.settings.reconnect_base, self.settings.reconnect_cap)
                # A refusal in words (password, database, certificate) will be the same the next time.
                final = isinstance(error, ResponseError) or explain(error).exit_code == USAGE
                if final or attempt == _CONNECT_ATTEMPTS or time.monotonic() + delay >= deadline:
                    trouble = explain(error, connection)
                    unreachable = ServerUnreachable(
                        f"cannot connect to {self.address}: {scrub(trouble.reason)} "
                        f"(tried {attempt} time{'s' * (attempt > 1)}); nothing was sent. {trouble.remedy}"
                    )
                    unreachable.exit_code = trouble.exit_code
                    raise unreachable from error
                time.sleep(delay)

    # the budget

    @contextmanager
    def _turn_to_ask(self) -> Iterator[None]:
        """Let one caller at a time connect to ask for a place; the others learn from its answer.

        Raises:
            BudgetExceeded: another caller was refused a moment ago.
            TimeoutError: another has been asking until the caller's deadline.
        """
        lease = self.lease
        if lease is None or (lease.used < lease.granted and not lease.overdue):
            yield
            return
        left, entered = clipped(None), time.monotonic()
        if not lease.turn.acquire(timeout=-1 if left is None else left):
            raise RedisTimeoutError("another thread has been asking for a place in the budget, and has no answer yet")
        try:
            refusal = self._refusal
            if refusal is not None and refusal.bound == "BUDGET" and self._refused_at >= entered:
                raise refusal.error
            yield
        finally:
            lease.turn.release()

    def _enter(self, connection: Any, handshake: Introduce) -> None:
        """Introduce a connection that has just been opened: as one of the pool's if there is a place for it.

        Called for those that redis-py opens on its own, too. Raises BudgetExceeded where the server has no place.
        """
        lease, line = self.lease, self._lines.get(connection)
        if lease is None or line is None:
            handshake(connection)
            return
        if line.placed or lease.claim():
            line.placed = True
            handshake(connection)
            return
        # Its name counts for it from the first moment on: the place of a process that is paused here is not given away.
        dataclasses.replace(handshake, role="")(connection)
        self._name(connection, "probe")
        if not lease.ask_for_one(connection):
            raise lease.refusal()
        line.placed = True
        self._reporter.start()
        self._name(connection, self.role)

    def _name(self, connection: Any, role: str) -> None:
        connection.send_ahead(("CLIENT", "SETNAME", client_name(self.settings, role)), _ignore)

    def _renew_lease(self, connection: Any) -> None:
        """See to it that an open connection still has its place, before it is used; close it where it has not.

        Raises:
            _NotNow: the pool has no place any more; its idle connections are closed, and others when they come back.
        """
        lease = self.lease
        if lease is None:
            return
        if lease.overdue:
            try:
                lease.ensure(connection)
            except BudgetExceeded as error:
                self._close_all_idle()
                raise _NotNow("BUDGET", error) from None
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                reason = scrub(str(error)) or type(error).__name__
                raise ServerUnreachable(
                    f"cannot connect to {self.address} to ask for a place in the budget: {reason}; nothing was sent. "
                    "Check "
                    "that the server runs, and URL"
                ) from error
        if lease.surplus:
            self._close(connection, "no place in the budget")

    def _give_way(self, connection: Any) -> None:
        """Close a connection that comes back if it has no place, or where a process waits that has none at all."""
        assert self.lease is not None
        if self.lease.surplus:
            self._close(connection, "no place in the budget")
        elif _is_open(connection) and self.lease.may_shed():
            self._retire(connection, "another process has no connection")

    def _leave(self, connection: Any) -> None:
        """Note that a connection is closed: its place is free for another one of this pool."""
        with self._book:
            line = self._lines.get(connection)
            if line is not None and line.placed and self.lease is not None:
                line.placed = False
                self.lease.leave()

    def _retire(self, connection: Any, reason: str) -> None:
        """Close a connection that nobody else can take, and give its place back with its last words."""
        with self._book:
            line = self._lines.get(connection)
            lease, placed = self.lease, line is not None and line.placed
            if lease is not None and line is not None and placed:
                line.placed = False
                lease.leave()
            farewell = [lease.give_back()] if lease is not None and placed else []
        if farewell and _is_open(connection):
            _send_last(connection, farewell)
        self._close(connection, reason)

    def _watch_quiet(self) -> None:
        """Have a thread close what is idle when calls cease, if there is a budget: then nobody else here could."""
        if self.lease is None or self._watched or self._idle_count() <= self._kept():
            return
        with self._book:
            if self._watched:
                return
            self._watched = True
        thread = threading.Thread(
            target=_close_when_quiet, args=(weakref.ref(self),), name="rq_pooled-idle", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends
            pass

    def _quiet_down(self) -> bool:
        """Close all but one connection if no call was made for a while; return whether there is no more to watch."""
        now = time.monotonic()
        if now - self._called_at >= _QUIET:
            self._retire_idle(now, 0.0, self._kept(), "no calls")
        with self._book:
            if self._idle_count() > self._kept():
                return False
            self._watched = False
            return True

    def _kept(self) -> int:
        return 0 if self._holds else 1

    def _idle_count(self) -> int:
        return sum(1 for c in list(self.pool.queue) if c is not None and _is_open(c))

    def _connected(self, connection: Any) -> None:
        """Note that a connection has just been opened, by the pool or by redis-py on its own."""
        now = time.monotonic()
        lifetime = self.settings.max_lifetime
        with self._book:
            line = self._lines.get(connection)
            if line is None:
                return
            again = line.lost or line.open_noted  # still noted as open: redis-py lost it and reconnected by itself
            self._counters.reconnects += again
            line.lost, line.open_noted = False, True
            line.opened_at = now
            # Spread, so that connections opened together are not all renewed together.
            line.expires_at = now + lifetime * random.uniform(0.8, 1.0) if lifetime else float("inf")
        self._publish("connect", reconnect=again)

    # returning

    def _put(self, connection: Any) -> None:
        if self._sizes.keeps(self.pool, connection):
            if connection is not None:
                self._close(connection, f"pool made smaller: {self._sizes.reason}")
            return
        try:
            with self.pool.mutex:
                self.pool.put_nowait(connection)
                if connection is None or not _is_open(connection):  # the next caller is to get an open one
                    slots = self.pool.queue
                    slot = slots.pop()
                    slots.insert(
                        next((i for i, c in enumerate(slots) if c is not None and _is_open(c)), len(slots)), slot
                    )
        except Full:  # reset in between: nobody waits for it
            if connection is not None:
                connection.disconnect()

    def _close(self, connection: Any, reason: str, lost: bool = False) -> None:
        """Close, if it is not closed already, and say so once. ``lost``: it was not the pool that wanted it."""
        connection.disconnect()
        with self._book:
            line = self._lines.get(connection)
            noted = line is not None and line.open_noted
            if line is not None and noted:
                line.open_noted, line.lost = False, lost
        self._leave(connection)
        if noted:
            self._publish("close", reason=reason)

    def _close_idle(self, now: float) -> None:
        """Close and drop what nobody needed for MAX_IDLE, or for a moment while another process waits for a place."""
        age, reason = self.settings.max_idle, "max_idle"
        if self.lease is not None and self.lease.crowded:
            age, reason = min(age or float("inf"), _IDLE_WHILE_CROWDED), "another process waits for a place"
        if age:
            self._retire_idle(now, age, 0, reason)

    def _retire_idle(self, now: float, age: float, keep: int, reason: str) -> None:
        """Close connections idle for ``age`` seconds, but ``keep``: last in, first out, so the bottom shows the
        surplus.
        """
        surplus = []
        # redis-py itself reads ``queue`` here; ``mutex`` is the lock that the waiters of this queue sleep on.
        with self.pool.mutex:
            most = self._idle_count() - keep
            for i, connection in enumerate(self.pool.queue):
                if connection is None:
                    continue
                is_open = _is_open(connection)
                if now - self._lines[connection].released_at < age or (is_open and most <= 0):
                    if is_open:
                        break
                    continue
                most -= is_open
                self.pool.queue[i] = None
                surplus.append(connection)
        for connection in surplus:
            self._retire(connection, reason)
            self._forget(connection)

    def _close_all_idle(self) -> None:
        with self._book:
            idle = [c for c in list(self._connections) if c not in self._holds]
        for connection in idle:
            self._close(connection, "pool disconnected")

    def _forget(self, connection: Any) -> None:
        with self._book:
            self._connections.remove(connection)
            del self._lines[connection]

    # looking after

    def _housekeeping(self) -> None:
        now = time.monotonic()
        if self.settings.leak_warn and now >= self._check_leaks_at:
            with self._book:
                holds = list(self._holds.values())
            for hold in holds:
                self._warn_of_leak(hold, now)
            oldest = min((hold.since for hold in holds if not hold.warned), default=now)
            self._check_leaks_at = oldest + self.settings.leak_warn
        if self.settings.health_check_interval and now >= self._log_statistics_at:
            first = self._log_statistics_at == float("-inf")
            self._log_statistics_at = now + self.settings.health_check_interval
            if not first:
                stats = self.stats()
                news = stats["timeouts"] + stats["reconnects"] + stats["longest_wait"]
                level = logging.DEBUG if news == self._waits_logged else logging.INFO
                self._waits_logged = news
                log.log(level, "pool %s %s: %s", self.role, self.address, stats)

    def _warn_of_leak(self, hold: _Hold, now: float) -> None:
        if self.settings.leak_warn and not hold.warned and now - hold.since > self.settings.leak_warn:
            hold.warned = True
            log.warning(
                "pool %s %s: a connection is held by %s, longer than LEAK_WARN=%g s: return it earlier (a pubsub, "
                "pipeline or generator left open?)",
                self.role,
                self.address,
                hold.describe(now),
                self.settings.leak_warn,
            )

    def _publish(self, event: str, **details: Any) -> None:
        details = {"role": self.role, "address": self.address, **details}
        level = logging.INFO
        if event in ("error", "exhausted"):
            now = time.monotonic()
            last = self._counters.last_warning.get(event, float("-inf"))
            level = logging.DEBUG if now - last < _WARN_EVERY else logging.WARNING
            if level == logging.WARNING:
                self._counters.last_warning[event] = now
        log.log(level, "pool %s %s: %s %s", self.role, self.address, event, details.get("reason", ""))
        for callback in list(self._subscribers):
            try:
                callback(event, dict(details))
            except Exception:
                log.exception("pool %s %s: a subscriber failed on %s", self.role, self.address, event)


@dataclass(frozen=True)
class _Report:
    """A ``redis_connect_func``: leaves the handshake to the pool, held weakly since the pool owns the connection."""

    pool: weakref.ref[Pool]
    handshake: Introduce

    def __call__(self, connection: Any) -> None:
        pool = self.pool()
        if pool is None:
            self.handshake(connection)
            return
        pool._enter(connection, self.handshake)
        pool._connected(connection)


def _with_role(options: dict[str, Any], role: str) -> dict[str, Any]:
    return {**options, "redis_connect_func": dataclasses.replace(options["redis_connect_func"], role=role)}


def _send_last(connection: Any, commands: Sequence[Command]) -> None:
    """Send commands and QUIT without waiting for replies: what they free is free when the server has closed it, too."""
    try:
        connection.send_packed_command([pack_commands([*commands, ("QUIT",)])], check_health=False)
    except (RedisError, OSError):
        pass


def _close_when_quiet(weak_pool: weakref.ref[Pool]) -> None:
    """Close what a pool keeps in vain, in a thread that ends with the last such connection."""
    while True:
        time.sleep(_QUIET / 2)
        pool = weak_pool()
        if pool is None or pool._quiet_down():
            return
        del pool


def _ignore(_reply: Any) -> None:
    """Do nothing."""


def _make_queue(size: int) -> Any:
    """Return the standard library's LifoQueue, also where gevent has replaced it, with a lock like the pool's.

    gevent's own has no ``mutex``. The original, made now, waits with whatever locks ``threading`` has: gevent's.
    """
    monkey = sys.modules.get("gevent.monkey")
    made: Any = (monkey.get_original("queue", "LifoQueue") if monkey is not None else queue.LifoQueue)(size)
    made.mutex = threading.RLock()
    made.not_empty, made.not_full, made.all_tasks_done = (threading.Condition(made.mutex) for _ in range(3))
    return made


def _part_of_the_deadline() -> AbstractContextManager[None]:
    """Keep most of the time for what follows: a new connection may work where an idle one has died without a word."""
    deadline = current_deadline()
    return nullcontext() if deadline is None else within(max(0.0, deadline.left()) / 4, deadline.setting)


def _is_open(connection: Any) -> bool:
    # redis-py 5 has no public name for this. Asked without I/O: it may well be closed by the other side.
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


#: The pools of this process, so that a forked child closes its copies of their sockets at once: while they stay open,
#: the server does not notice when the parent dies. Weak: a pool lives as long as its user.
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()

#: The one pool, with its client, per process and server that ``get_pool`` is about; the only module global that holds
#: connections. Keyed by address and credentials. The key needs no pid: a pool resets itself in a
#: child, and a second one for the same server would break the bound for code that kept the first. It needs no lock
#: either: ``dict.setdefault`` is atomic and building a pool opens nothing, and a lock made at import could not be
#: patched by gevent.
_registry: dict[tuple[Any, ...], tuple[Pool, Redis]] = {}


def local_pools() -> list[Pool]:
    """Return all pools that this process has, in no order."""
    return list(_pools)


def _reset_after_fork() -> None:
    for pool in list(_pools):
        pool.reset_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


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


#: At most one entry, in a horse only, see ``adopt``.
_adopted: list[tuple[Pool, Redis]] = []


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
