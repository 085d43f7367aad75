"""What a worker has reserved in its application's budget beyond the connections that it always needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..wire import Command
from .budget import Lease

#: Connections whose places a worker has from its start to its end: command, listen, jobs.
ALWAYS = 3

Ask = Callable[[Command, Callable[[Any], None]], None]


class Reservation:
    """Reserves a place for each connection that is lent to jobs, before it is opened.

    Args:
        lease: the worker's place in the budget, None without one.
        ask: sends one command over the command connection; the reply, or None where that is lost, comes back later.
    """

    def __init__(self, lease: Lease | None, ask: Ask) -> None:
        self._lease = lease
        self._ask = ask
        self._asking = False
        self._lent = 0

    @property
    def wanted(self) -> int:
        """Return how many places the worker needs now."""
        return ALWAYS + self._lent

    @property
    def crowded(self) -> bool:
        """Tell whether another process waits for a place: what is idle is to be closed."""
        return self._lease is not None and self._lease.crowded

    def may_lend(self, number: int) -> bool:
        """Tell whether so many may be lent; where not, ask for the place. Ask again after a while."""
        if self._lease is None:
            return True
        if self._lease.granted >= ALWAYS + number:
            self._lent = max(self._lent, number)
            return True
        if not self._asking:
            self._asking, self._lent = True, number
            self._ask(self._lease.command(ALWAYS + number), self._accept)
        return False

    def lend(self, number: int) -> None:
        """Give back what is reserved for more than so many."""
        if self._lease is None or self._asking or number >= self._lent:
            return
        self._lent = number
        self._ask(self._lease.command(ALWAYS + number), self._accept)

    def _accept(self, reply: Any) -> None:
        self._asking = False
        if self._lease is not None and reply is not None:
            self._lease.accept(reply)
