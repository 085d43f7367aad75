"""Opens the connections that jobs share or are lent, as far as server, guard and budget have room, and tries again."""

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

#: Seconds between looks whether what stood in the way does so still.
_LOOK_AGAIN = 0.05
#: Why there is none where the budget is used up.
NO_PLACE = "the application's BUDGET has no place for it"


class Opener:
    """One for all of them: a server that has refused one of them will refuse the next.

    Args:
        loop, settings: as the names say.
        dialer: what they are like.
        place: returns where the command connection leads, None while that is not connected.
        brake: whether anything may be opened.
        queue: has a connection served that is to be read, when it is its turn.
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
        #: Who is to be called again, each once.
        self._again: set[Callable[[], None]] = set()
        self._failures = 0
        self._not_before = 0.0
        self.dialer = dialer
        #: Why the last attempt came to nothing; empty if it did not.
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
        """Begin to open a connection and return it; None if that cannot be now: ``again`` is called when it may be.

        Args:
            role, on_open, on_data, on_lost, on_drained: see Upstream.
            again: called once; it may ask again.
            may_have: tells whether there is a place for it in the budget.
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
        # Several were tried at once, and the server has refused once.
        if now < self._not_before:
            return
        delay = jittered_delay(self._failures, settings.reconnect_base, settings.reconnect_cap)
        self._failures += 1
        self._not_before = now + delay
