"""The budget: connections that all processes of an application reserve together, before they open them.

A lease in Redis per pool or worker, renewed with the heartbeat. It ends by itself after a crash; but its place is given
away only when the server shows no connection of that process any more, so a process that is paused (SIGSTOP, a closed
laptop lid) with open sockets keeps its place, and the sum of connections never exceeds the budget.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .config import Settings, scrub
from .deadline import clipped
from .errors import BudgetExceeded
from .processes import client_rows, process_name, split_name
from .resp import Command
from .scripts import budget_keys, shared_scripts

Execute = Callable[..., Any]

#: Counts while the machine sleeps, where the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_SHOWN = 5

#: Leases of this process whose pool was dropped without giving it back, as (budget, token, when it has ended). The server
#: shows connections of this process as long as it has another pool, so nobody else can tell. A deque: the garbage collector
#: adds to it at any moment, in any thread.
_dropped: deque[tuple[object, str, float]] = deque()


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def execute_on(connection: Any) -> Execute:
    """Return a function that sends one command on a redis-py connection and returns its raw reply or raises."""

    def execute(*words: Any) -> Any:
        connection.send_command(*words, check_health=False)
        return connection.read_response(disable_decoding=True)

    return execute


class Lease:
    """Reserves connections for one pool or worker of this process.

    Args:
        settings: BUDGET (must be set), BUDGET_NAME; the term is HEARTBEAT_TTL.
        wanted: connections asked for.
        least: fewest that are of use; fewer are none.
        make_probe: returns a new connection object, not connected yet, with the role ``probe``.
    """

    def __init__(self, settings: Settings, wanted: int, least: int, make_probe: Callable[[], Any]) -> None:
        self._settings = settings
        self._wanted = wanted
        self._least = least
        self._make_probe = make_probe
        self._scripts = shared_scripts()
        self._process = process_name(settings)
        self._token = f"{self._process}:{uuid4().hex[:12]}"
        self._lock = threading.Lock()
        self._renewed_at = float("-inf")
        self._budget = (settings.url, settings.budget_name)
        #: Dropped leases of this process that are named with every renewal until one is answered.
        self._gone_here: list[str] = []
        dropping = weakref.finalize(self, _drop, os.getpid(), self._budget, self._token, settings.heartbeat_ttl)
        dropping.atexit = False
        #: Connections that this process may open now.
        self.granted = 0

    @property
    def overdue(self) -> bool:
        """Tell whether more than half of the term has passed since it was renewed: renew before using a socket."""
        settings = self._settings
        # Where twice the interval nearly is the term, a heartbeat that is a little late is no pause.
        return _now() - self._renewed_at > max(settings.heartbeat_ttl / 2, 1.25 * settings.heartbeat_interval)

    @property
    def due(self) -> bool:
        """Tell whether it is time to renew it."""
        return _now() - self._renewed_at > self._settings.heartbeat_interval

    def ensure(self, connection: Any = None) -> int:
        """Renew the lease if it is overdue, else do nothing; return the connections granted.

        Blocks for a round trip on ``connection`` (open, and not in use), or on a short-lived one named ``…:probe``.

        Raises:
            BudgetExceeded: there is no place; the lease is given up.
            redis.exceptions.ConnectionError, TimeoutError: the server is away.
        """
        left = clipped(None)
        if not self._lock.acquire(timeout=-1 if left is None else left):
            raise RedisTimeoutError("another thread has been asking for it, and has no answer yet")
        try:
            if self.granted and not self.overdue:
                return self.granted
            if connection is not None:
                try:
                    return self.renew(connection)
                except BudgetExceeded:
                    raise
                except (RedisError, OSError):
                    connection.disconnect()
            probe = self._make_probe()
            try:
                probe.connect()
                return self.renew(probe)
            finally:
                probe.disconnect()
        finally:
            self._lock.release()

    def renew(self, connection: Any) -> int:
        """Ask for the lease over ``connection`` now, and return the connections granted; raises as ``ensure``."""
        return self._ask(execute_on(connection))

    def command(self, gone: Sequence[str] = ()) -> Command:
        """Return the command that renews it; ``accept`` reads its reply."""
        budget = self._settings.budget or 0
        keys = budget_keys(self._settings.budget_name or "")
        wanted, least = self._wanted, self._least
        self._gone_here += _take_dropped(self._budget)
        gone = [*gone, *self._gone_here]
        return self._scripts.budget(keys, self._token, wanted, least, budget, self._settings.heartbeat_ttl, gone)

    def accept(self, reply: Any) -> bool:
        """Read the reply to ``command``; return whether the lease stands."""
        if isinstance(reply, Exception):
            return self.granted > 0  # nobody took it away
        self._gone_here.clear()
        self.granted = int(reply[0])
        if self.granted:
            self._renewed_at = _now()
        return self.granted > 0

    def release(self) -> list[Command]:
        """Return the commands that give it back."""
        leases, held = budget_keys(self._settings.budget_name or "")
        self.granted, self._renewed_at = 0, float("-inf")
        return [("ZREM", leases, self._token), ("HDEL", held, self._token)]

    def _ask(self, execute: Execute) -> int:
        reply = self._call(execute)
        granted, others, ended = reply
        if granted < self._wanted and ended:
            gone = self._gone(execute, [token.decode() for token in ended])
            if gone:
                reply = self._call(execute, gone)
                granted, others, _ = reply
        self.accept(reply)
        if not granted:
            raise BudgetExceeded(self._message(others, self._holders(execute)))
        return int(granted)

    def _call(self, execute: Execute, gone: Sequence[str] = ()) -> Any:
        command = self.command(gone)
        try:
            return execute(*command)
        except NoScriptError:
            return execute("EVAL", self._scripts.text("budget"), *command[2:])

    def _gone(self, execute: Execute, ended: Sequence[str]) -> list[str]:
        """Return those of the ended leases whose process has no connection: all, where the server does not tell."""
        try:
            rows = client_rows(execute("CLIENT", "LIST"))
        except ResponseError:
            rows = None
        if rows is None:
            return list(ended)
        parts = [split_name(row["name"]) for row in rows]
        connected = {f"{p[0]}:{p[1]}:{p[2]}" for p in parts if p is not None and p[3] != "probe"}
        return [token for token in ended if token.rpartition(":")[0] not in connected]

    def _holders(self, execute: Execute) -> list[tuple[str, int]]:
        try:
            flat = execute("HGETALL", budget_keys(self._settings.budget_name or "")[1])
        except (RedisError, OSError):
            return []
        words = [word for pair in flat.items() for word in pair] if isinstance(flat, dict) else flat
        return sorted(
            ((token.decode().rpartition(":")[0], int(held)) for token, held in zip(words[::2], words[1::2])),
            key=lambda one: (-one[1], one[0]),
        )

    def _message(self, others: int, held: Sequence[tuple[str, int]]) -> str:
        budget, name = self._settings.budget, self._settings.budget_name
        shown = ", ".join(f"{process} {count}" for process, count in held[:_SHOWN])
        more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
        return scrub(
            f"{others} of the {budget} connections of the budget {name!r} are reserved (by {shown}{more}), and {self._least} "
            "are needed: end a process, lower MAX_CONNECTIONS of the others, or raise BUDGET"
        )


def _drop(pid: int, budget: object, token: str, term: float) -> None:
    if pid == os.getpid():  # a forked child drops copies of what its parent goes on using
        _dropped.append((budget, token, _now() + term))


def _take_dropped(budget: object) -> list[str]:
    """Return the tokens of the dropped leases of this budget that have ended."""
    taken = []
    for _ in range(len(_dropped)):
        try:
            entry = _dropped.popleft()
        except IndexError:  # another thread takes them
            break
        if entry[0] == budget and entry[2] < _now():
            taken.append(entry[1])
        else:
            _dropped.append(entry)
    return taken
