"""Opens the connections that jobs share or are lent, within server, guard and budget, and tries again."""

from __future__ import annotations

import time
from collections.abc import Callable

from redis.exceptions import RedisError

from ..capacity.stop_flag import Brake
from ..config.secrets import scrub
from ..config.settings import Settings
from ..connection.place import Place
from ..delays import jittered_delay
from ..process.event_loop import Loop
from .dialer import Dialer
from .upstream import Queue, Upstream

#: Seconds until an obstacle is checked again.
_LOOK_AGAIN = 0.05
#: The reason given when the budget is used up.
NO_PLACE = "the application's BUDGET has no place for it"


class Opener:
    """Opens all connections for jobs: a server that has refused one of them refuses the next.

    Args:
        loop, settings: as the names say.
        dialer: begins the connections.
        place: returns where the command connection leads, None while it is not connected.
        brake: tells whether connections may be opened.
        queue: serves a readable connection when it is its turn.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        dialer: Dialer,
        place: Callable[[], Place | None],
        brake: Brake,
        queue: Queue,
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._place = place
        self._brake = brake
        self._queue = queue
        #: The functions that will be called again, each once.
        self._again: set[Callable[[], None]] = set()
        self._failures = 0
        self._not_before = 0.0
        self.dialer = dialer
        #: Why the last attempt failed; empty if it succeeded.
        self.reason = ""

    def open(
        self,
        role: str,
        on_open: Callable[[Upstream], None],
        on_data: Callable[[Upstream, bytes], None],
        on_lost: Callable[[Upstream, str], None],
        on_drained: Callable[[Upstream], None],
        again: Callable[[], None],
        may_have: Callable[[], bool] = lambda: True,
    ) -> Upstream | None:
        """Begin to open a connection and return it; if that is impossible now, return None and call ``again`` later.

        Args:
            role, on_open, on_data, on_lost, on_drained: see Upstream.
            again: called once; it may ask again.
            may_have: tells whether the budget has a place for the connection.
        """
        now = time.monotonic()
        if now < self._not_before:
            self._later(self._not_before - now, again)
            return None
        place = self._place()
        if place is None or self._brake.engaged:
            self.reason = "the server is away" if place is None else "the server is full above GUARD_STOP"
            self._later(_LOOK_AGAIN, again)
            return None
        if not may_have():
            self._note_failure(NO_PLACE)
            self._later(self._not_before - now, again)
            return None

        def opened(upstream: Upstream) -> None:
            self._failures, self.reason = 0, ""
            on_open(upstream)

        def lost(upstream: Upstream, reason: str) -> None:
            if upstream is made and not upstream.was_open:
                self._note_failure(reason)
            on_lost(upstream, reason)

        made: Upstream | None = None
        try:
            made = Upstream(self._loop, self.dialer, role, place, self._queue, opened, on_data, lost, on_drained)
        except (OSError, RedisError) as error:
            self._note_failure(str(error) or type(error).__name__)
            self._later(self._not_before - now, again)
            return None
        self._brake.on_opening()
        upstream = made
        self._loop.call_later(self._settings.socket_connect_timeout, lambda: self._check(upstream))
        return upstream

    def _later(self, delay: float, again: Callable[[], None]) -> None:
        if again not in self._again:
            self._again.add(again)

            def call() -> None:
                self._again.discard(again)
                again()

            self._loop.call_later(delay, call)

    def _check(self, upstream: Upstream) -> None:
        if not upstream.was_open:
            upstream.lose(f"no connection within {self._settings.socket_connect_timeout:g} s (SOCKET_CONNECT_TIMEOUT)")

    def _note_failure(self, reason: str) -> None:
        settings = self._settings
        self.reason = scrub(reason)
        now = time.monotonic()
        # Failures of attempts that began together count as one.
        if now < self._not_before:
            return
        delay = jittered_delay(self._failures, settings.reconnect_base, settings.reconnect_cap)
        self._failures += 1
        self._not_before = now + delay
