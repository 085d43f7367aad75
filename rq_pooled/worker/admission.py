"""Whether a starting worker fits: it looks, reserves, connects, looks again, and otherwise waits its turn.

While it waits it holds no connection. Workers that start together see each other's reservations, so that they do not
all take the last place; those that came later give way.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from ..capacity.clients import client_rows
from ..capacity.level import ASK_LIMIT, Level, ceiling, level_of, read_info, read_limit
from ..connection.away import LOST
from ..connection.connect_errors import FULL
from ..delays import reconnect_delays
from ..errors import BudgetExceeded, NotAdmitted, RQPooledError
from ..monitoring.guard import holders, ours_and_others
from ..parent.context import Context
from ..store.workers import admit
from . import startup

#: Seconds between attempts, growing to the second figure, jittered.
_DELAYS = (0.25, 5.0)
#: Seconds after which the reservation of a worker that died while it started is forgotten.
_RESERVED_FOR = 30.0
#: Connections that it opens once it is admitted; the one that it asks with is counted by the server already.
_NEED = 1


class Admission:
    """Lets a worker connect when there is room for it.

    Args:
        context: of the worker; its scripts are known to the server once ``command`` is connected, and its lease is
            asked for before that.
        open_command, open_rest: connect; they raise ``ServerUnreachable`` where that fails.
        close: closes whatever they opened.
    """

    def __init__(
        self,
        context: Context,
        open_command: Callable[[], None],
        open_rest: Callable[[], None],
        close: Callable[[], None],
    ) -> None:
        self._context = context
        self._settings = context.settings
        self._log = context.log
        self._open_command = open_command
        self._open_rest = open_rest
        self._close = close
        self._token = uuid4().hex
        self._table: list[str] = []
        self._warned = False
        self._stopped = False

    def wait(self, stop_signals: Sequence[signal.Signals], deadline: float) -> bool:
        """Connect as soon as there is room; return False if a stop signal came first.

        Blocks until the deadline (``time.monotonic()``, the end of GUARD_WAIT) and one attempt more.

        Raises:
            NotAdmitted: there was no room all the time; who holds the server's connections is logged.
            RQPooledError: the server cannot be used, for another reason.
        """
        for signum in stop_signals:
            self._context.loop.on_signal(signum, self._stop)
        for number, delay in enumerate(reconnect_delays(*_DELAYS)):
            left = deadline - time.monotonic()
            reason = self._attempt(last=left <= 0)
            if reason is None:
                return True
            self._close()
            if left <= 0:
                for line in self._table:
                    self._log.error("%s", line)
                raise NotAdmitted(
                    f"not admitted within {self._settings.guard_wait:g} s (GUARD_WAIT): {reason}; close connections, "
                    "raise the server's maxclients, or raise GUARD_STOP"
                )
            if number == 0:
                self._log.warning("waiting up to %.0f s for a place: %s", left, reason)
            if self._pause(min(delay, left)):
                self._log.info("stopped while waiting for a place")
                return False
        return False

    def _stop(self) -> None:
        self._stopped = True

    def _pause(self, seconds: float) -> bool:
        """Wait, and return whether a stop signal has come."""
        over = time.monotonic() + seconds
        while not self._stopped and (left := over - time.monotonic()) > 0:
            self._context.loop.turn(left)
        return self._stopped

    def _attempt(self, last: bool) -> str | None:
        """Connect if there is room; return why not otherwise, and None when everything is open."""
        try:
            if self._context.lease is not None:
                self._context.lease.ensure()
            self._open_command()
            before, level = self._look(keep=True)
            if level.maxclients is None or level.connected is None:
                self._warn_blind()
                self._open_rest()
                self._look(keep=False)
                return None
            most = ceiling(self._settings, level.maxclients)
            if level.connected + before[0] + _NEED > most:
                self._table = self._holders() if last else []
                self._look(keep=False)
                return f"{level}, and nothing is opened above {most} (GUARD_STOP)"
            self._open_rest()
            # A second look: others may have connected at the same time. The later ones give way.
            before, level = self._look(keep=True)
            full = level.connected is not None and level.connected - before[1] > most
            if full and last:
                self._table = self._holders()
            self._look(keep=False)
            return f"{level}, and nothing is opened above {most} (GUARD_STOP)" if full else None
        except BudgetExceeded as error:
            return str(error)
        except (RQPooledError, *LOST, OSError) as error:
            if FULL in str(error):
                return "the server refuses new connections: max number of clients reached"
            if isinstance(error, RQPooledError):
                raise
            raise startup.refusal(error) from None

    def _look(self, keep: bool) -> tuple[tuple[int, int], Level]:
        """Return how many starting workers came before and after this one, and how full the server is."""
        reservation = admit(self._token, keep, _RESERVED_FOR)
        others, info = self._context.command.execute([reservation, ("INFO", "clients")])
        connected, maxclients = read_info(info)
        if maxclients is None and self._settings.guard_maxclients is None:
            (config,) = self._context.command.execute([ASK_LIMIT])
            maxclients = read_limit(config)
        before, after = (0, 0) if isinstance(others, Exception) else others
        return (before, after), level_of(self._settings, connected, self._settings.guard_maxclients or maxclients)

    def _warn_blind(self) -> None:
        if not self._warned:
            self._warned = True
            self._log.warning(
                "the server does not tell how many clients it has and allows (INFO and CONFIG GET are "
                "refused): it is not guarded; set GUARD_MAXCLIENTS, or allow INFO"
            )

    def _holders(self) -> list[str]:
        """Return a table of who holds the server's connections, or why there is none."""
        (reply,) = self._context.command.execute([("CLIENT", "LIST")])
        rows: list[dict[str, Any]] | None = client_rows(reply)
        if rows is None:
            return ["who holds them is not known: CLIENT LIST is refused"]
        return ["connections of the server are held by:", *holders(*ours_and_others(rows))]
