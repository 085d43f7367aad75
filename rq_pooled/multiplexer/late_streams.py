"""Refuses streams that have waited too long; the error says for what, and what to change."""

from __future__ import annotations

from ..config.settings import Settings
from .lending import Lending
from .opener import NO_PLACE, Opener
from .shared import Shared
from .sharing import Sharing
from .streams import Stream


class LateStreams:
    """Refuses a stream SOCKET_TIMEOUT after its command was sent, or POOL_TIMEOUT after it began to wait."""

    def __init__(self, settings: Settings, opener: Opener, shared: Shared, sharing: Sharing, lending: Lending) -> None:
        self._settings = settings
        self._opener = opener
        self._shared = shared
        self._sharing = sharing
        self._lending = lending

    def refuse(self, now: float) -> None:
        """Refuse the streams whose time is up."""
        timeout = self._settings.socket_timeout
        for stream in [*self._shared.overdue(now - timeout), *self._lending.overdue(now)]:
            stream.refuse("TIMEOUT", f"no reply within {timeout:g} s (SOCKET_TIMEOUT)")
        self._refuse_waiting(now)

    def _refuse_waiting(self, now: float) -> None:
        timeout = self._settings.pool_timeout
        before = now - timeout
        for stream in self._lending.waited_since(before):
            if len(self._lending) >= self._lending.most:
                stream.refuse(
                    "EXHAUSTED",
                    f"no connection of its own became free for a command that cannot share one within {timeout:g} s "
                    f"(POOL_TIMEOUT): all {self._lending.most} are in use. Held by: "
                    f"{'; '.join(self._lending.holders())}. "
                    "Raise MAX_CONNECTIONS or POOL_TIMEOUT, or end blocking commands, WATCH and subscriptions earlier",
                )
            else:
                self._refuse_unreachable(stream)
        for stream in [*self._shared.waiting, *self._sharing.waiting]:
            if stream.since < before:
                self._refuse_unreachable(stream)

    def _refuse_unreachable(self, stream: Stream) -> None:
        kind, hint = "UNREACHABLE", ""
        if self._opener.reason == NO_PLACE:
            lent = f". Lent by this worker: {'; '.join(self._lending.holders())}" if len(self._lending) else ""
            kind, hint = "BUDGET", f"{lent}. Raise BUDGET, or end blocking commands, WATCH and subscriptions earlier"
        stream.refuse(
            kind,
            f"no connection to the server could be opened within {self._settings.pool_timeout:g} s (POOL_TIMEOUT): "
            f"{self._opener.reason or 'it does not answer'}; nothing was sent{hint}",
        )
