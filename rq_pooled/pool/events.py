"""What a pool tells: each event to its subscribers and to the log, warnings of one kind at most every few seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

log = logging.getLogger("rq_pooled.pool")

#: ``callback(event, details)``; events are connect, error, close and exhausted.
Callback = Callable[[str, dict[str, Any]], Any]

#: While a server is away every call fails: a warning at most this often (seconds), the others at level debug.
_WARN_EVERY = 10.0
#: A refusal is logged at most this often (seconds).
_SAY_REFUSED_EVERY = 60.0


class Events:
    """Tells what happens to the connections of one pool.

    Args:
        role, address: the pool's.
        subscribers: the pool's list of callbacks.
    """

    def __init__(self, role: str, address: str, subscribers: Sequence[Callback]) -> None:
        #: How log lines begin.
        self.title = f"pool {role} {address}"
        self._who = {"role": role, "address": address}
        self._subscribers = subscribers
        self._warned_at: dict[str, float] = {}

    def publish(self, event: str, **details: Any) -> None:
        """Log an event and call the subscribers; what one of them raises is logged and goes no further."""
        level = self._level(event, _WARN_EVERY) if event in ("error", "exhausted") else logging.INFO
        log.log(level, "%s: %s %s", self.title, event, details.get("reason", ""))
        for callback in list(self._subscribers):
            try:
                callback(event, {**self._who, **details})
            except Exception:
                log.exception("%s: a subscriber failed on %s", self.title, event)

    def refused(self, words: str) -> None:
        """Log that a caller got no connection, though there may be some later."""
        log.log(self._level("refused", _SAY_REFUSED_EVERY), "%s: refused: %s", self.title, words)

    def _level(self, kind: str, every: float) -> int:
        now = time.monotonic()
        if now - self._warned_at.get(kind, float("-inf")) < every:
            return logging.DEBUG
        self._warned_at[kind] = now
        return logging.WARNING
