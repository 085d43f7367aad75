"""The budget: connections that all processes of an application reserve together, each before it counts.

A lease in Redis per pool or worker says how many connections it has. It grows before a connection is opened, shrinks
when one is closed, and is renewed with the heartbeat. It ends by itself after a crash; but its place is given away only
when the server shows no connection of that process any more. So a process that is paused (SIGSTOP, a closed laptop lid)
keeps its place while its sockets are open. The sum of connections never exceeds the budget.

A process that gets less than it wants leaves a wish for a few seconds, which the others see: ``Lease.crowded``.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..config.secrets import scrub
from ..config.settings import Settings
from ..deadline import clipped
from ..durations import since_boot
from ..errors import BudgetExceeded
from ..foreign import MAX_VALUE, printable, whole_number
from ..store.budget import reserve
from ..store.keys import budget_keys
from ..store.scripts import is_unknown, run, with_text
from ..wire import Command, encoded, text
from .clients import connected_processes, process_name

Execute = Callable[..., Any]

_SHOWN = 5
#: Seconds for which a wish stands: longer than the longest pause between two tries, see ``worker/admission.py``.
_WISH = 6.0

#: Leases of this process whose pool was dropped without giving it back, as (budget, token, when it has ended). The
#: server shows connections of this process as long as it has another pool, so no other process can tell. A deque: the
#: garbage collector adds to it at any moment, in any thread.
_dropped: deque[tuple[object, str, float]] = deque()


def execute_on(connection: Any) -> Execute:
    """Return a function that sends one command on a redis-py connection and returns its raw reply or raises."""

    def execute(*words: Any) -> Any:
        connection.send_command(*words, check_health=False)
        return connection.read_response(disable_decoding=True)

    return execute


class Lease:
    """Reserves connections for one pool or worker of this process.

    A process never has more connections open than ``granted`` says. To open more, send ``command(n)``, hand its reply
    to ``accept``, and look at ``granted``. After closing some, send ``command`` with what is left; from then on
    ``granted`` is at most that. Neither method waits for anything, and replies may come in any order or not at all.

    Args:
        settings: BUDGET (must be set), BUDGET_NAME; the term is HEARTBEAT_TTL.
        wanted: connections asked for at first.
        least: fewest that are of use; fewer are none.
        make_probe: returns a new connection object, not connected yet, with the role ``probe``.
    """

    def __init__(self, settings: Settings, wanted: int, least: int, make_probe: Callable[[], Any]) -> None:
        self._settings = settings
        self._wanted = wanted
        self._least = least
        self._make_probe = make_probe
        self._keys = budget_keys(settings.budget_name or "")
        self._process = process_name(settings)
        self._token = f"{self._process}:{uuid4().hex[:12]}"
        #: One thread asks at a time; held while it waits for the server.
        self.turn = threading.Lock()
        #: Over the fields below; never held while anything is waited for. A thread may take it twice: garbage
        #: collection returns connections at any moment.
        self._book = threading.RLock()
        self._number = 0
        self._reserved = 0
        #: (number, wanted) of the commands that were sent since the one whose reply was read last.
        self._unanswered: list[tuple[int, int]] = []
        self._renewed_at = float("-inf")
        self._heard_at = float("-inf")
        self._hunger = 0
        self._script_unknown = False
        #: (connections that others held, (process, connections) of all) when a command was refused last.
        self._refused: tuple[int, list[tuple[str, int]]] = (0, [])
        self._budget = (settings.url, settings.budget_name)
        #: Dropped leases of this process that are named with every renewal until one is answered.
        self._gone_here: list[str] = []
        dropping = weakref.finalize(self, _drop, os.getpid(), self._budget, self._token, settings.heartbeat_ttl)
        dropping.atexit = False

    @property
    def granted(self) -> int:
        """Connections that this process may have open now: what is certainly reserved, whatever is still on its way."""
        with self._book:
            return min([self._reserved, *(wanted for _, wanted in self._unanswered)])

    @property
    def overdue(self) -> bool:
        """Tell whether more than half of the term has passed since it was renewed: renew before using a socket."""
        # A heartbeat that is a little late is no pause, also where the term is hardly twice the interval.
        longest = max(self._settings.heartbeat_ttl / 2, 1.25 * self._settings.heartbeat_interval)
        return since_boot() - self._renewed_at > longest

    @property
    def due(self) -> bool:
        """Tell whether it is time to renew it."""
        return since_boot() - self._renewed_at > self._settings.heartbeat_interval

    @property
    def crowded(self) -> bool:
        """Tell whether another process waits for a place, as the last reply said: close what is idle, give it back."""
        return self._hunger > 0 and since_boot() - self._heard_at < _WISH

    @property
    def starving(self) -> bool:
        """Tell whether a process that has no connection waits for one: keep no more than is needed to go on."""
        return self._hunger > 1 and self.crowded

    def ensure(self, connection: Any = None) -> int:
        """Renew the lease if it is overdue, else do nothing; return the connections granted.

        Blocks for a round trip on ``connection`` (open, and not in use), or on a short-lived one named ``…:probe``.

        Raises:
            BudgetExceeded: there is no place; the lease is given up.
            redis.exceptions.ConnectionError, TimeoutError: the server is away.
        """
        left = clipped(None)
        if not self.turn.acquire(timeout=-1 if left is None else left):
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
            self.turn.release()

    def renew(self, connection: Any) -> int:
        """Renew the lease over ``connection`` now, and return the connections granted; raises as ``ensure``."""
        self.ask(execute_on(connection))
        if not self.granted:
            raise self.refusal()
        return self.granted

    def command(self, wanted: int | None = None, gone: Sequence[str] = (), wish: float = _WISH) -> Command:
        """Return the command that reserves ``wanted`` connections and renews the lease; ``accept`` reads its reply.

        Growing counts when the reply has been accepted, shrinking at once: close the connections before this is sent. A
        wish for more that is refused is not kept here: ask again. Sent commands may overtake each other on several
        connections, and replies may be lost with theirs.

        Args:
            wanted: None for as many as were asked for last, or granted if they were refused.
            gone: tokens of processes without a connection, whose leases may go if they have ended.
            wish: seconds for which a wish that is refused stands.
        """
        with self._book:
            wanted = self._needed() if wanted is None else wanted
            self._wanted = wanted or self._wanted
            self._number += 1
            self._unanswered.append((self._number, wanted))
            self._gone_here += _take_dropped(self._budget)
            settings, numbers = self._settings, (self._number, wanted, self._least)
            unknown, self._script_unknown = self._script_unknown, False
            gone = [*gone, *self._gone_here]
        words = reserve(self._keys, self._token, *numbers, settings.budget or 0, settings.heartbeat_ttl, wish, gone)
        return with_text(words) if unknown else words

    def accept(self, reply: Any) -> bool:
        """Read the reply to a ``command``, an exception if it was an error; return whether the lease stands.

        False: it was lost, for example to a flush, and there is no room now. Close all connections, then use
            ``ensure``.
        True with a smaller ``granted``: close what is beyond it. Wanting more and getting it not is no loss.
        """
        if isinstance(reply, Exception):
            self._script_unknown = self._script_unknown or is_unknown(reply)
            # No process took it away.
            return self.granted > 0
        granted, hunger, number = int(reply[0]), int(reply[2]), int(reply[3])
        with self._book:
            self._heard_at, self._hunger = since_boot(), hunger
            if any(number == one for one, _ in self._unanswered):
                # Otherwise the reply to a later command was read before.
                self._unanswered = [(one, wanted) for one, wanted in self._unanswered if one > number]
                self._reserved = granted
                if granted:
                    self._renewed_at = since_boot()
                if not self._unanswered and granted:
                    self._wanted = granted
            self._gone_here.clear()
            if len(reply) > 5:
                flat = reply[5]
                pairs = zip(flat[::2], flat[1::2])
                held = [(printable(token, MAX_VALUE).rpartition(":")[0], whole_number(count)) for token, count in pairs]
                self._refused = int(reply[1]), held
            return self.granted > 0

    def release(self) -> list[Command]:
        """Return the commands that give all of it back; their replies need not be read."""
        with self._book:
            self._reserved, self._renewed_at = 0, float("-inf")
            self._unanswered.clear()
            # The command has the script's text, since it is not sent again to a server that has forgotten the script.
            return [with_text(self.command(0, wish=0.0))]

    def ask(self, execute: Execute, wanted: int | None = None) -> None:
        """Send ``command(wanted)`` and accept its reply; blocks for a round trip, or three where it is refused.

        A refused one looks whether leases that have ended belong to processes that have no connection any more.
        """
        reply = self._call(execute, wanted)
        ended = [text(token) for token in reply[4]] if len(reply) > 4 else []
        if ended and (gone := self._gone(execute, ended)):
            reply = self._call(execute, wanted, gone)
        self.accept(reply)

    def refusal(self) -> BudgetExceeded:
        """Return the error that says why the last refused command was refused."""
        budget, name = self._settings.budget, self._settings.budget_name
        others, held = self._refused[0], sorted(self._refused[1], key=lambda one: (-one[1], one[0]))
        shown = ", ".join(f"{process} {count}" for process, count in held[:_SHOWN])
        more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
        total = sum(count for _, count in held)
        words = (
            f"{total} of the {budget} connections of the budget {name!r} are reserved (by {shown}{more}), and this "
            f"process needs {max(self._least, total - others + 1)}: end a process, lower its MAX_CONNECTIONS, or raise "
            "BUDGET"
        )
        return BudgetExceeded(scrub(words))

    def _needed(self) -> int:
        """Return how many connections are wanted where the caller does not say."""
        return self._wanted

    def _call(self, execute: Execute, wanted: int | None, gone: Sequence[str] = ()) -> Any:
        return run(lambda command: execute(*encoded(command)), self.command(wanted, gone))

    def _gone(self, execute: Execute, ended: Sequence[str]) -> list[str]:
        """Return those of the ended leases whose process has no connection: all, where the server does not tell."""
        try:
            connected = connected_processes(execute("CLIENT", "LIST"), self._process)
        except ResponseError:
            connected = None
        return [token for token in ended if connected is None or token.rpartition(":")[0] not in connected]


def _drop(pid: int, budget: object, token: str, term: float) -> None:
    if pid == os.getpid():
        # A forked child drops copies of what its parent goes on using.
        _dropped.append((budget, token, since_boot() + term))


def _take_dropped(budget: object) -> list[str]:
    """Return the tokens of the dropped leases of this budget that have ended."""
    taken = []
    for _ in range(len(_dropped)):
        try:
            entry = _dropped.popleft()
        except IndexError:
            break
        if entry[0] == budget and entry[2] < since_boot():
            taken.append(entry[1])
        else:
            _dropped.append(entry)
    return taken
