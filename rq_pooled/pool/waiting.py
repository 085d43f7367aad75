"""How a caller waits: for a free slot, or until another connection may be opened, and what it is told in the end."""

from __future__ import annotations

import time
from queue import Empty
from typing import Any, NamedTuple

from ..deadline import current as current_deadline
from ..delays import jittered_delay
from ..errors import PoolExhausted, RedisUnavailable
from .book import Book
from .events import Events
from .free_slots import FreeSlots
from .hooks import NotNow

#: The share of a deadline that a caller may spend waiting for a connection.
_WAITING_SHARE = 0.9
_SHOWN_HOLDERS = 10
#: Seconds between looks of a waiting caller whether more connections may be opened.
_WAKE = 0.5


class Patience(NamedTuple):
    """Until when a call waits for a connection (``time.monotonic()``), and the setting that says so."""

    started: float
    seconds: float
    setting: str

    @property
    def ends(self) -> float:
        """When it is over."""
        return self.started + self.seconds


def patience(timeout: float | None) -> Patience:
    """Return the patience of the running call: the pool's ``timeout``, or what its deadline leaves."""
    started = time.monotonic()
    wait = float("inf") if timeout is None else timeout
    deadline = current_deadline()
    if deadline is None or deadline.left() >= wait:
        return Patience(started, wait, "POOL_TIMEOUT")
    # A caller that gets a connection in the last moment cannot use it, and takes that for the server's silence.
    return Patience(started, max(0.0, deadline.left() * _WAITING_SHARE), deadline.setting)


class Waiting:
    """Has the callers of one pool wait, and knows why no further connection can be opened.

    Args:
        address: the pool's, for messages.
        book, slots, events: the pool's.
    """

    def __init__(self, address: str, book: Book, slots: FreeSlots, events: Events) -> None:
        self._address = address
        self._book = book
        self._slots = slots
        self._events = events
        #: Why no further connection could be opened, how often in a row, and when to try again.
        self._refusal: NotNow | None = None
        self._refusals = 0
        self._again_at = float("-inf")

    def take(self, patience: Patience) -> Any:
        """Return an idle connection, or None for a free slot.

        Raises:
            PoolExhausted: there is none until ``patience`` ends.
        """
        try:
            return self._slots.free.get_nowait()
        except Empty:
            pass
        with self._book.counted_waiting(patience.started):
            while True:
                now = time.monotonic()
                pause = _WAKE if self._refusal is None else min(_WAKE, max(0.0, self._again_at - now))
                try:
                    return self._slots.free.get(block=True, timeout=max(0.0, min(patience.ends - now, pause)))
                except Empty:
                    if time.monotonic() >= patience.ends:
                        raise self._exhausted(patience, self._book.waiting - 1) from None
                self._let_one_try()

    def step_back(self, connection: Any, refusal: NotNow, patience: Patience) -> None:
        """Put back the slot of a connection that cannot be opened now; return when the caller may take one again.

        While the pool has other connections, the caller waits for one of those; so only as many slots go round.
        """
        self._book.close(connection, "it cannot be used now")
        now = time.monotonic()
        with self._book.lock:
            before, self._refusal = self._refusal, refusal
            if now >= self._again_at:
                # Otherwise another caller was refused just now.
                self._again_at = now + jittered_delay(self._refusals, *refusal.again)
                self._refusals += 1
        if before is not None and before.bound != refusal.bound:
            self._slots.resize(before.bound, None)
        if now >= patience.ends:
            others = self._book.others_than(connection)
            if others:
                self._slots.resize(refusal.bound, others)
            raise self._exhausted(patience, self._book.waiting) if others else self._given_up(refusal, now, patience)
        if not self._book.others_than(connection):
            # The caller keeps the slot meanwhile: others could not do better.
            time.sleep(max(0.0, min(self._again_at, patience.ends) - now))
        with self._slots.free.mutex, self._book.lock:
            # These two locks are taken in this order everywhere.
            del self._book.holds[connection]
            size = self._book.others_than(connection)
            self._slots.put(connection)
            if size:
                self._slots.resize(refusal.bound, size)

    def opened(self) -> None:
        """Note that a connection could be opened: others may be tried, too."""
        with self._book.lock:
            refusal, self._refusal, self._refusals, self._again_at = self._refusal, None, 0, float("-inf")
        if refusal is not None:
            self._slots.resize(refusal.bound, None)

    def _let_one_try(self) -> None:
        """Let one caller more than there are connections try to open another, if it is time to try again."""
        now = time.monotonic()
        with self._book.lock:
            refusal = self._refusal
            if refusal is None or now < self._again_at:
                return
            # The other waiting callers try later.
            self._again_at = now + refusal.again[0]
        size = self._slots.size + 1
        self._slots.resize(refusal.bound, size if size < self._slots.most else None)

    def _given_up(self, refusal: NotNow, now: float, patience: Patience) -> RedisUnavailable:
        waited = now - patience.started
        error = type(refusal.error)(f"{refusal.error} (waited {waited:.3g} s, {patience.setting})")
        if refusal.logged:
            self._events.refused(str(error))
        return error

    def _exhausted(self, patience: Patience, waiting: int) -> PoolExhausted:
        now, size, setting = time.monotonic(), self._slots.size, patience.setting
        with self._book.lock:
            self._book.timeouts += 1
            holds = sorted(self._book.holds.values(), key=lambda hold: hold.since)
        holders = [hold.describe(now) for hold in holds]
        more = len(holders) - _SHOWN_HOLDERS
        shown = "; ".join(holders[:_SHOWN_HOLDERS]) + (f"; and {more} more" if more > 0 else "")
        self._events.publish(
            "exhausted", max=self._slots.most, timeout=patience.seconds, waiting=waiting, holders=holders
        )
        refusal = self._refusal
        why = "" if refusal is None else f". No further one can be opened: {refusal.error}"
        if refusal is not None and refusal.logged:
            self._events.refused(str(refusal.error))
        return PoolExhausted(
            f"no connection to {self._address} became free within {patience.seconds:.3g} s ({setting}): all "
            f"{size} ({self._slots.reason or 'MAX_CONNECTIONS'}) are in use, {waiting} others are waiting. "
            f"Held by: {shown}. Raise MAX_CONNECTIONS or {setting}, or return connections earlier{why}"
        )
