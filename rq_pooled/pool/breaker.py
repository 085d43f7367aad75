"""A circuit breaker: while a server is known to be away, callers are told at once instead of each waiting for it.

Closed: all callers may call. A failure opens it: none may, for ``delay`` seconds. Then it is half open: one caller may
try, the others are still refused, until that one has succeeded (closed) or failed (open again). Driven by calls only:
no thread and no timer. It counts no failures: its user reports only what means that the server is away.
"""

from __future__ import annotations

import threading
import time


class BreakerOpen(Exception):
    """The breaker is open; says how many seconds ago it failed, when the next trial is due, and why it failed."""

    def __init__(self, failed_ago: float, again_in: float, reason: str) -> None:
        super().__init__(reason)
        self.failed_ago = failed_ago
        self.again_in = again_in
        self.reason = reason


class Breaker:
    """Tells whether a call is worth trying; thread-safe. Not for use across a fork: make a new one in the child.

    Args:
        delay: seconds from a failure until one caller may try again; 0 keeps it closed for ever.
        patience: seconds after which a trial that reported nothing (its thread was killed) stands in no one's way.
    """

    def __init__(self, delay: float, patience: float) -> None:
        self._delay = delay
        self._patience = patience
        self._lock = threading.Lock()
        self._failed_at: float | None = None
        self._open_until = 0.0
        self._reason = ""

    @property
    def state(self) -> str:
        """Return ``closed``, ``open``, or ``half-open``: the next caller may try."""
        with self._lock:
            if self._failed_at is None:
                return "closed"
            return "open" if time.monotonic() < self._open_until else "half-open"

    def admit(self) -> bool:
        """Return whether this call is the trial of a half-open breaker; what comes of it has to be reported.

        Raises:
            BreakerOpen: it is not to be tried now.
        """
        if self._failed_at is None:
            # The common case needs no lock.
            return False
        with self._lock:
            if self._failed_at is None:
                return False
            now = time.monotonic()
            if now < self._open_until:
                raise BreakerOpen(now - self._failed_at, self._open_until - now, self._reason)
            # The others wait for this one's report.
            self._open_until = now + self._patience
            return True

    def succeeded(self) -> None:
        """Report an answer of the server, whatever it said: close."""
        if self._failed_at is not None:
            with self._lock:
                self._failed_at = None

    def failed(self, reason: str) -> None:
        """Report that the server is away: open."""
        if self._delay:
            with self._lock:
                self._failed_at = time.monotonic()
                self._open_until = self._failed_at + self._delay
                self._reason = reason

    def undecided(self) -> None:
        """Report that the trial ended without a word about the server: the next caller may try."""
        with self._lock:
            self._open_until = time.monotonic()
