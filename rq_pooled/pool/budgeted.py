"""The budget of a pool: each of its connections has a place before it counts, and gives it back when others wait.

No thread runs while connections are used: what is due is looked at when one is taken or returned. A thread lives only
while the pool has more idle connections than it may keep when calls cease.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..config.secrets import message_of
from ..config.settings import Settings
from ..connection.away import LOST
from ..connection.names import Introduce, client_name
from ..deadline import clipped
from ..errors import BudgetExceeded, ServerUnreachable
from ..wire import Command
from .book import is_open
from .hooks import Hook, NotNow
from .places import Places, owing

if TYPE_CHECKING:
    from .pool import Pool

log = logging.getLogger("rq_pooled.pool")

#: Seconds until a place is asked for again, growing from the first figure to the second, jittered.
_AGAIN = (0.02, 0.5)
#: While another process waits for a place, connections idle for this long (seconds) are closed.
_IDLE_WHILE_CROWDED = 0.1
#: Seconds without a call after which a pool keeps one connection at most.
_QUIET = 0.5


class Budgeted(Hook):
    """Has a place for each connection of one pool.

    Args:
        settings: as for ``Places``.
        role: the pool's.
        make_probe: as for ``Places``.
    """

    def __init__(self, settings: Settings, role: str, make_probe: Callable[[], Any]) -> None:
        self.lease = Places(settings, make_probe)
        self._settings = settings
        self._role = role
        #: When the server had no place last, and what it said.
        self._refused: tuple[float, BudgetExceeded] | None = None
        self._renew_at = float("-inf")
        self._called_at = float("-inf")
        self._watched = False
        self._lock = threading.RLock()

    def equip(self, connection_class: Any, options: dict[str, Any]) -> Any:
        """Have each connection ask for its place when it introduces itself, also where redis-py opens it again."""
        options["redis_connect_func"] = _Enter(weakref.ref(self), options["redis_connect_func"])
        return owing(connection_class)

    @contextmanager
    def opening(self, pool: Pool, connection: Any) -> Iterator[None]:
        """Open a connection, one at a time while a place has to be asked for, and see that it still has its place."""
        try:
            with self._turn_to_ask():
                yield
            # A pause before the connection got its name may have cost its place.
            self._renew(pool, connection)
            if not is_open(connection):
                raise self.lease.refusal()
        except BudgetExceeded as error:
            raise self._not_now(error) from None
        self._refused = None
        self._note_call(pool)

    def enter(self, connection: Any, handshake: Introduce) -> None:
        """Introduce a connection that has just been opened: under the pool's role if there is a place for it.

        Raises:
            BudgetExceeded: the server has no place.
        """
        if self.lease.claim(connection):
            handshake(connection)
            return
        # The connection has its name from the first moment on, so the place of a process that is paused here is not
        # given away.
        dataclasses.replace(handshake, role="")(connection)
        self._name(connection, "probe")
        if not self.lease.ask_for_one(connection):
            raise self.lease.refusal()
        self._name(connection, self._role)

    def before_use(self, pool: Pool, connection: Any) -> None:
        """See to it that the connection has its place still, and ask in front of its command whether others wait."""
        self._renew(pool, connection)
        if is_open(connection) and (look := self.lease.look(time.monotonic())) is not None:
            try:
                connection.send_ahead(*look)
            except (RedisError, OSError) as error:
                pool.book.close(connection, message_of(error), lost=True)
        self._note_call(pool)

    def on_return(self, pool: Pool, connection: Any) -> None:
        """Renew the lease, and close the connection if it has no place, or where a process waits that has none."""
        if is_open(connection):
            connection.settle_soon()
        now = time.monotonic()
        if is_open(connection) and now >= self._renew_at:
            self._renew_at = now + self._settings.heartbeat_interval
            self._renew_in_time(pool, connection)
        if self.lease.surplus:
            pool.book.close(connection, "no place in the budget")
        elif is_open(connection) and self.lease.may_shed():
            pool.retire(connection, "another process has no connection")

    def at_rest(self, pool: Pool, now: float) -> None:
        """Close what is idle if another process waits, and have a thread watch it if calls cease."""
        self._note_call(pool)
        self._watch(pool)

    def on_close(self, connection: Any) -> None:
        """Note that the place is free for another connection of this pool."""
        self.lease.leave(connection)

    def last_words(self, connection: Any = None) -> Sequence[Command]:
        """Return what gives the place of a connection back, or all places."""
        if connection is not None:
            return self.lease.give_back(connection)
        return self.lease.release() if self.lease.granted else ()

    def _not_now(self, error: BudgetExceeded) -> NotNow:
        self._refused = time.monotonic(), error
        return NotNow("BUDGET", error, _AGAIN, logged=True)

    @contextmanager
    def _turn_to_ask(self) -> Iterator[None]:
        """Let one caller at a time connect to ask for a place; the others learn from its answer.

        Raises:
            BudgetExceeded: another caller was refused a moment ago.
            TimeoutError: another has been asking until the caller's deadline.
        """
        lease = self.lease
        if lease.used < lease.granted and not lease.overdue:
            yield
            return
        left, entered = clipped(None), time.monotonic()
        if not lease.turn.acquire(timeout=-1 if left is None else left):
            raise RedisTimeoutError("another thread has been asking for a place in the budget, and has no answer yet")
        try:
            refused = self._refused
            if refused is not None and refused[0] >= entered:
                raise refused[1]
            yield
        finally:
            lease.turn.release()

    def _name(self, connection: Any, role: str) -> None:
        connection.send_ahead(("CLIENT", "SETNAME", client_name(self._settings, role)), _ignore)

    def _renew(self, pool: Pool, connection: Any) -> None:
        """See to it that an open connection still has its place; close it where it has not.

        Raises:
            NotNow: the pool has no place any more; its idle connections are closed, and others when they come back.
        """
        if self.lease.overdue:
            try:
                self.lease.ensure(connection)
            except BudgetExceeded as error:
                pool.book.close_idle()
                raise self._not_now(error) from None
            except (*LOST, OSError) as error:
                reason = message_of(error)
                raise ServerUnreachable(
                    f"cannot connect to {pool.address} to ask for a place in the budget: {reason}; nothing was sent. "
                    "Check that the server runs, and RQ_POOLED_URL (or --url)"
                ) from error
        if self.lease.surplus:
            pool.book.close(connection, "no place in the budget")

    def _renew_in_time(self, pool: Pool, connection: Any) -> None:
        if not self.lease.granted or not self.lease.due:
            return
        try:
            self.lease.renew(connection)
        except (RedisError, OSError) as error:
            connection.disconnect()
            level = logging.WARNING if isinstance(error, BudgetExceeded) else logging.DEBUG
            log.log(level, "%s: %s", pool.events.title, message_of(error))

    # idle connections

    def _note_call(self, pool: Pool) -> None:
        self._called_at = time.monotonic()
        if self.lease.crowded:
            pool.retire_idle(self._called_at, _IDLE_WHILE_CROWDED, 0, "another process waits for a place")

    def _watch(self, pool: Pool) -> None:
        """Have a thread close what is idle when calls cease: no caller could then."""
        if self._watched or not _surplus(pool):
            return
        with self._lock:
            if self._watched:
                return
            self._watched = True
        weak = weakref.ref(pool), weakref.ref(self)
        try:
            threading.Thread(target=_close_when_quiet, args=weak, name="rq_pooled-idle", daemon=True).start()
        except RuntimeError:
            # The interpreter ends.
            pass

    def quiet_down(self, pool: Pool) -> bool:
        """Close all but one connection if no call was made for a while; return whether there is no more to watch."""
        now = time.monotonic()
        if now - self._called_at >= _QUIET:
            pool.retire_idle(now, 0.0, _kept(pool), "no calls")
        with self._lock:
            self._watched = _surplus(pool)
            return not self._watched


@dataclass(frozen=True)
class _Enter:
    """A ``redis_connect_func``: leaves the handshake to the budget, held weakly since that owns the connection."""

    budget: weakref.ref[Budgeted]
    handshake: Introduce

    def __call__(self, connection: Any) -> None:
        budget = self.budget()
        if budget is None:
            self.handshake(connection)
        else:
            budget.enter(connection, self.handshake)


def _close_when_quiet(weak_pool: weakref.ref[Pool], weak_budget: weakref.ref[Budgeted]) -> None:
    """Close what a pool keeps in vain, in a thread that ends with the last such connection."""
    while True:
        time.sleep(_QUIET / 2)
        pool, budget = weak_pool(), weak_budget()
        if pool is None or budget is None or budget.quiet_down(pool):
            return
        del pool, budget


def _kept(pool: Pool) -> int:
    return 0 if pool.in_use else 1


def _surplus(pool: Pool) -> bool:
    return len(pool.slots.idle()) > _kept(pool)


def _ignore(_reply: Any) -> None:
    """Do nothing."""
