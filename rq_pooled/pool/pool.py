"""The bounded pool of a web process or horse: taking connections, giving them back, renewing them, and forks.

Waits are bounded and end in ``PoolExhausted``; what cannot connect ends in ``ServerUnreachable``, and nothing was sent
then. There is no thread: what is due is looked at when a connection is taken or returned. Locks are made with each
pool, so gevent may patch after importing this. It is long since redis-py's pool, whose methods it replaces, is a class.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from redis import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from ..config.settings import Settings
from ..connection.cluster import Owners
from ..connection.options import connection_options
from ..connection.place import address_of
from ..connection.readonly import noticing
from ..connection.resending import resending
from ..connection.url_parameters import pool_limits
from ..deadline import hurried
from ..wire import Command, pack_commands
from .assembly import hooks_of, with_role
from .book import Book, Line, Report, is_open
from .breaker import Breaker
from .events import Callback, Events
from .free_slots import FreeSlots, make_queue
from .hooks import Hook, NotNow
from .local import pools
from .opening import check_idle, open_connection
from .waiting import Waiting, patience


class Pool(BlockingConnectionPool):
    """A bounded pool of connections to one server, on redis-py's ``BlockingConnectionPool``.

    Use it as any redis-py pool: ``Redis(connection_pool=pool)``. Taking a connection blocks for at most POOL_TIMEOUT
    while all are in use or none may be opened. Connecting may block for SOCKET_CONNECT_TIMEOUT more. After a fork the
    child closes its copies of the sockets and starts empty; the parent's connections stay as they are.

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
        self._own_hooks: list[Hook] = []
        super().__init__(  # type: ignore[no-untyped-call]
            max_connections=max_connections or most,
            timeout=wait if timeout is None else timeout,
            queue_class=make_queue,
            connection_class=cls,
            **options,
        )
        pools.add(self)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Pool:
        """Return a pool for the server, sentinels or cluster of a URL, with the environment's other settings.

        Unlike redis-py's own method it takes all forms of RQ_POOLED_URL, and its errors show no password.

        Args:
            url: as RQ_POOLED_URL.
            kwargs: as for the class, but for ``settings`` and ``client``.

        Raises:
            ConfigurationError: a setting or the URL cannot be used.
        """
        return cls(Settings.load({"url": url}), **kwargs)

    def __repr__(self) -> str:
        # redis-py's own shows the keyword arguments, in some versions with the password.
        return f"<{type(self).__name__} {self.role} {self.address} {self.in_use}/{self.max_connections} in use>"

    def reset(self) -> None:
        """Forget all connections and start empty: at construction, and in the child after a fork."""
        # New locks come first: the thread that held the old ones does not exist in the child. redis-py 8 takes _lock
        # here. Book.lock says why one thread may take each of them twice.
        self._lock = threading.RLock()
        self._connections: list[Any] = []
        self.events = Events(self.role, self.address, self._subscribers)
        self.hooks = [*self._own_hooks, *hooks_of(self)]
        self.book = Book(self.settings, self.events, self.hooks)
        #: Whether calls that fail fast try the server at all, see pool/failfast.py.
        self.breaker = Breaker(self.settings.breaker_delay, self.settings.enqueue_deadline + 1.0)
        super().reset()  # type: ignore[no-untyped-call]
        self.slots = FreeSlots(self.pool, self.max_connections, self.book)
        self._waiting = Waiting(self.address, self.book, self.slots, self.events)

    def reset_in_child(self) -> None:
        """Close this process's copies of the parent's sockets, without a shutdown, and start empty."""
        if self.pid == os.getpid():
            return
        inherited = list(self._connections)
        self._fork_lock = threading.RLock()
        self.reset()
        for connection in inherited:
            # redis-py shuts a socket down only in the process that opened it.
            connection.disconnect()

    def become(
        self, role: str, max_connections: int, cls: Any = None, options: Any = None, hooks: Iterable[Hook] = ()
    ) -> None:
        """Close all connections and go on with others: of this role, so many, of this class with these options.

        It is for a horse. A job's code may have kept the pool and its clients from before the fork; they lead through
        the parent from then on. The bound may be below MAX_CONNECTIONS' least. No thread may use the pool meanwhile.
        """
        self.disconnect()
        self.role, self.max_connections = role, max(1, max_connections)
        self.connection_class = cls or self.connection_class
        self.connection_kwargs = dict(options) if options is not None else with_role(self.connection_kwargs, role)
        self._own_hooks = list(hooks)
        self.reset()

    def resize(self, reason: str, size: int | None) -> None:
        """Use at most ``size`` connections from now on, at least 1; None lifts what was set for the same reason.

        Idle connections beyond it are closed now, those in use when they come back. Of several reasons the smallest
        size counts.
        """
        self.slots.resize(reason, size)

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
        return self.book.stats(self.slots.size)

    @property
    def in_use(self) -> int:
        """Return how many connections are in use, in less time than ``stats`` takes."""
        return len(self.book.holds)

    @property
    def is_whole(self) -> bool:
        """Tell whether no lock is held by this thread, which uses no connection now, and no place has got lost.

        An exception that a signal handler raises between two instructions can leave either behind, in this process for
        ever.
        """
        locks: Any = (self.book.lock, self._lock, self.pool.mutex)
        return self.slots.count + self.in_use == self.max_connections and not any(lock._is_owned() for lock in locks)

    # taking and returning

    def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> Any:
        """Take a connection that is connected and has no unread data; return it with ``release``.

        It replaces ``BlockingConnectionPool.get_connection`` of redis-py 5.0 to 8.1; the arguments are those of 5.x and
        have no effect. It keeps the book, tries connecting again, and says who holds what when the pool is exhausted.

        Raises:
            PoolExhausted: all connections stayed in use for the pool's timeout.
            BudgetExceeded, ServerFull: for as long none could be opened; nothing was sent.
            ServerUnreachable: connecting failed; nothing was sent.
        """
        self._checkpid()
        until = patience(self.timeout)
        while True:
            connection = self._waiting.take(until)
            try:
                if connection is None:
                    connection = self.make_connection()
            except BaseException:
                self.slots.put(None)
                raise
            self.book.take(connection)
            try:
                try:
                    self._make_ready(connection, until.ends)
                except NotNow as refusal:
                    self._waiting.step_back(connection, refusal, until)
                    continue
                self.book.look_after(self.slots.size)
            except BaseException:
                # A reply may still be on its way.
                connection.disconnect()
                self.release(connection)
                raise
            return connection

    def make_connection(self) -> Any:
        """Return a new connection, not connected yet, that reports each connect to this pool."""
        options, cls = dict(self.connection_kwargs), self.connection_class
        for hook in self.hooks:
            cls = hook.equip(cls, options)
        options["redis_connect_func"] = Report(weakref.ref(self.book), options["redis_connect_func"])
        if isinstance(options.get("connection_pool"), Owners):
            cls = resending(cls)
        connection = hurried(noticing(cls))(**options)
        with self.book.lock:
            self._connections.append(connection)
            self.book.lines[connection] = Line()
        return connection

    def release(self, connection: Any) -> None:
        """Take back a connection. One returned twice, or by a child that inherited it, is not pooled again."""
        self._checkpid()
        now = time.monotonic()
        hold, line = self.book.give_back(connection)
        if hold is None or line is None:
            if not self.owns_connection(connection):
                connection.disconnect()
            return
        try:
            self.book.warn_of_leak(hold, now)
            if connection.refused_write:
                connection.refused_write = False
                self.book.close(connection, "the server has become a replica", lost=True)
            elif getattr(connection, "should_reconnect", bool)():
                self.book.close(connection, "marked for reconnecting")
            elif not is_open(connection):
                # The caller closed it, or redis-py did after an error.
                self.book.close(connection, "closed while in use", lost=True)
            for hook in self.hooks:
                hook.on_return(self, connection)
        except BaseException:
            # This may be a gevent.Timeout, and a reply may still be on its way.
            connection.disconnect()
            raise
        finally:
            line.released_at = now
            if not is_open(connection):
                self.book.left(connection)
            self.slots.put(connection)
        if self.settings.max_idle:
            self.retire_idle(now, self.settings.max_idle, 0, "max_idle")
        for hook in self.hooks:
            hook.at_rest(self, now)
        self.book.look_after(self.slots.size)

    def _make_ready(self, connection: Any, ends: float) -> None:
        """Connect if need be, and see to it that no reply to another caller is waiting in the connection."""
        check_idle(self, connection)
        if is_open(connection):
            for hook in self.hooks:
                hook.before_use(self, connection)
        if not is_open(connection):
            open_connection(self, connection, ends)
            self._waiting.opened()

    # closing

    def close_unanswered(self, patience: float) -> None:
        """Close idle connections that do not answer PING within so many seconds: a reply may be on its way.

        For a pool that changes its user. Connections that were not used since the last time are passed over.
        """
        for connection in self.slots.idle():
            line = self.book.lines[connection]
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
                self.book.close(connection, "a reply may be on its way", lost=True)

    def part(self, commands: Sequence[Command]) -> bool:
        """Send last commands over an idle connection and close it, without waiting for replies; False if there is none.

        What they free is free only when the server has closed this connection too.
        """
        connection = self.slots.take_last()
        if connection is not None:
            _send_last(connection, commands)
            self.book.close(connection, "pool disconnected")
            self._forget(connection)
        return connection is not None

    def depart(self) -> None:
        """Remove what this process has left on the server for this pool, as the process ends."""
        commands = [command for hook in self.hooks for command in hook.at_exit()]
        if commands:
            self.part(commands)

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the pool's connections, those in use too unless told otherwise; the pool stays usable."""
        self._checkpid()
        if not inuse_connections:
            self.retire_idle(time.monotonic(), 0.0, 0, "pool disconnected")
            return
        # One idle connection is kept until all others are closed, to give back what they have on the server.
        spared = next(iter(self.slots.idle()), None)
        for connection in list(self._connections):
            if connection is not spared:
                self.book.close(connection, "pool disconnected")
        commands = [command for hook in self.hooks for command in hook.last_words()]
        if commands:
            self.part(commands)
        if spared is not None:
            self.book.close(spared, "pool disconnected")

    def retire(self, connection: Any, reason: str) -> None:
        """Close a connection that no other thread can take; its last words give back what it has on the server."""
        commands = [command for hook in self.hooks for command in hook.last_words(connection)]
        if commands and is_open(connection):
            _send_last(connection, commands)
        self.book.close(connection, reason)

    def retire_idle(self, now: float, age: float, keep: int, reason: str) -> None:
        """Close and drop connections idle for ``age`` seconds, but of ``keep``."""
        for connection in self.slots.take_idle(now, age, keep):
            self.retire(connection, reason)
            self._forget(connection)

    def _forget(self, connection: Any) -> None:
        with self.book.lock:
            self._connections.remove(connection)
            del self.book.lines[connection]


def _send_last(connection: Any, commands: Sequence[Command]) -> None:
    """Send commands and QUIT without waiting for replies: what they free is free when the server has closed it, too."""
    try:
        connection.send_packed_command([pack_commands([*commands, ("QUIT",)])], check_health=False)
    except (RedisError, OSError):
        pass
