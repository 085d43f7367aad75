"""Keeps the connections to the server: notices that they are lost, and opens them again with growing delay."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..config.secrets import message_of, scrub
from ..delays import reconnect_delays
from .context import Parent

#: Seconds between looks whether a reply is overdue.
DEADLINE_INTERVAL = 0.5
#: Seconds that most attempts to reconnect wait for a reply.
IMPATIENT = 1.0
#: Reasons for a failed attempt that are logged per outage.
MAX_REASONS = 3


class Link:
    """Watches both connections. When one is lost, both are opened anew: they belong to one server.

    Args:
        parent: as the name says.
        on_message: called with (whether there was a wake-up, control commands) of the listening connection.
        on_away: called with the error when the server is lost.
        on_back: called when the server is back.
        on_given_up: called with the last error after RECONNECT_ATTEMPTS attempts in vain.
    """

    def __init__(
        self,
        parent: Parent,
        on_message: Callable[[bool, list[tuple[str, dict[str, Any]]]], None],
        on_away: Callable[[Exception], None],
        on_back: Callable[[], None],
        on_given_up: Callable[[Exception], None],
    ) -> None:
        self._parent = parent
        self._on_message = on_message
        self._on_away = on_away
        self._on_back = on_back
        self._on_given_up = on_given_up
        self._away_since: float | None = None
        self._delays: Any = None
        self._failures = 0
        #: Why it could not be reached again, as far as logged in this outage.
        self._reasons: set[str] = set()

    def start(self) -> None:
        """Begin to watch connections that are connected already."""
        self._watch()
        self._parent.loop.call_every(DEADLINE_INTERVAL, self._check_deadline)

    def check(self) -> None:
        """Look whether the command connection was lost by a write of somebody who does not look."""
        if not self._parent.command.connected and self._away_since is None:
            self._on_lost(ConnectionError("connection lost"))

    def check_lease(self) -> None:
        """After a pause, close the connections before anything is sent: the lease is renewed before they are
        reopened.
        """
        lease = self._parent.lease
        if lease is not None and lease.overdue and self._away_since is None:
            self._on_lost(RedisTimeoutError("paused for longer than half of its place in the budget lasts"))

    def probe(self) -> None:
        """Find out whether a listening connection on which nothing comes is alive."""
        listen = self._parent.listen
        if not listen.connected:
            return
        try:
            listen.ping()
        except (RedisError, OSError) as error:
            self._on_lost(error)

    def _watch(self) -> None:
        self._parent.loop.watch(self._parent.command, self._on_command_readable)
        self._parent.loop.watch(self._parent.listen, self._on_listen_readable)

    def _on_command_readable(self) -> None:
        if self._parent.command.connected and (error := self._parent.command.drain()) is not None:
            self._on_lost(error)

    def _on_listen_readable(self) -> None:
        if not self._parent.listen.connected:
            return
        try:
            woken, commands = self._parent.listen.drain()
        except (RedisError, OSError) as error:
            self._on_lost(error)
            return
        self._on_message(woken, commands)

    def _check_deadline(self) -> None:
        if (error := self._parent.command.check_deadline()) is not None:
            self._on_lost(error)
        else:
            self.check()
        listen = self._parent.listen
        if listen.connected and listen.silent_for() > self._parent.settings.socket_timeout:
            self._on_lost(RedisTimeoutError("no answer to PING"))

    def _on_lost(self, error: Exception) -> None:
        parent = self._parent
        parent.loop.unwatch(parent.command)
        parent.loop.unwatch(parent.listen)
        parent.command.lose(error)
        parent.listen.close()
        self._on_away(error)
        if self._away_since is None:
            self._away_since = time.monotonic()
            # A server that takes connections, and closes each at the first thing that it is asked, is not back.
            if self._delays is None or parent.command.answered:
                self._failures = 0
                self._delays = reconnect_delays(parent.settings.reconnect_base, parent.settings.reconnect_cap)
            parent.log.error("Worker %s: lost the server (%s); reconnecting", parent.name, message_of(error))
            parent.loop.call_later(next(self._delays), self._reconnect)

    def _say_reason(self, error: Exception) -> None:
        """Log why the server cannot be reached again, each reason once: a changed password is no passing trouble."""
        text = str(error)
        if text not in self._reasons and len(self._reasons) < MAX_REASONS:
            self._reasons.add(text)
            self._parent.log.warning("Worker %s: cannot reconnect yet: %s", self._parent.name, scrub(text))

    def _reconnect(self) -> None:
        parent = self._parent
        try:
            if parent.lease is not None:
                parent.lease.ensure()
            # A frozen server accepts and says nothing: signals and kill deadlines must not wait for it each time. One
            # that is only slow gets the usual patience each fourth time.
            patience = None if self._failures % 4 == 3 else min(IMPATIENT, parent.settings.socket_timeout)
            parent.command.connect(patience)
            parent.listen.connect(patience)
        except (RedisError, OSError) as error:
            parent.command.close()
            self._failures += 1
            self._say_reason(error)
            if 0 < parent.settings.reconnect_attempts <= self._failures:
                parent.log.error(
                    "Worker %s: gave up after %d attempts: %s", parent.name, self._failures, message_of(error)
                )
                self._on_given_up(error)
            else:
                parent.loop.call_later(next(self._delays), self._reconnect)
            return
        self._reasons.clear()
        away = time.monotonic() - (self._away_since or time.monotonic())
        self._away_since = None
        parent.counters.reconnects += 1
        parent.counters.outage_seconds += away
        self._watch()
        parent.log.info("Worker %s: the server is back after %.1f s", parent.name, away)
        self._on_back()
