"""Keeps the connections to the server: notices that they are lost, and opens them again with growing delay."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..config.secrets import message_of, scrub
from ..delays import reconnect_delays
from .context import Context
from .events import Events

#: Seconds between looks whether a reply is overdue.
DEADLINE_INTERVAL = 0.5
#: Seconds that most attempts to reconnect wait for a reply.
IMPATIENT = 1.0
#: Reasons for a failed attempt that are logged per outage.
MAX_REASONS = 3


class Reconnector:
    """Watches both connections. When one is lost, both are opened anew: they belong to one server.

    Args:
        context, events: as the names say.
        on_wakeup: called after the queues have changed.
        on_command: called with (channel, payload) of each control command.
        on_given_up: called with the last error after RECONNECT_ATTEMPTS attempts in vain.
    """

    def __init__(
        self,
        context: Context,
        events: Events,
        *,
        on_wakeup: Callable[[], None],
        on_command: Callable[[str, dict[str, Any]], None],
        on_given_up: Callable[[Exception], None],
    ) -> None:
        self._context = context
        self._events = events
        self._on_wakeup = on_wakeup
        self._on_command = on_command
        self._on_given_up = on_given_up
        self._away_since: float | None = None
        self._delays: Any = None
        self._failures = 0
        #: Why it could not be reached again, as far as logged in this outage.
        self._reasons: set[str] = set()

    def start(self) -> None:
        """Begin to watch connections that are connected already."""
        self._watch()
        self._context.loop.call_every(DEADLINE_INTERVAL, self._check_deadline)

    def check(self) -> None:
        """Look whether the command connection was lost by a write whose sender does not look."""
        if not self._context.command.connected and self._away_since is None:
            self._on_lost(ConnectionError("connection lost"))

    def check_lease(self) -> None:
        """After a pause, close the connections before anything is sent: the lease is renewed before they are
        reopened.
        """
        lease = self._context.lease
        if lease is not None and lease.overdue and self._away_since is None:
            self._on_lost(RedisTimeoutError("paused for longer than half of its place in the budget lasts"))

    def probe(self) -> None:
        """Find out whether a listening connection on which nothing comes is alive."""
        listen = self._context.listen
        if not listen.connected:
            return
        try:
            listen.ping()
        except (RedisError, OSError) as error:
            self._on_lost(error)

    def _watch(self) -> None:
        self._context.loop.watch(self._context.command, self._on_command_readable)
        self._context.loop.watch(self._context.listen, self._on_listen_readable)

    def _on_command_readable(self) -> None:
        if self._context.command.connected and (error := self._context.command.drain()) is not None:
            self._on_lost(error)

    def _on_listen_readable(self) -> None:
        if not self._context.listen.connected:
            return
        try:
            woken, commands = self._context.listen.drain()
        except (RedisError, OSError) as error:
            self._on_lost(error)
            return
        if woken:
            self._on_wakeup()
        for channel, payload in commands:
            self._on_command(channel, payload)

    def _check_deadline(self) -> None:
        if (error := self._context.command.check_deadline()) is not None:
            self._on_lost(error)
        else:
            self.check()
        listen = self._context.listen
        if listen.connected and listen.silent_for() > self._context.settings.socket_timeout:
            self._on_lost(RedisTimeoutError("no answer to PING"))

    def _on_lost(self, error: Exception) -> None:
        context = self._context
        context.loop.unwatch(context.command)
        context.loop.unwatch(context.listen)
        context.command.lose(error)
        context.listen.close()
        self._events.server_lost(error)
        if self._away_since is None:
            self._away_since = time.monotonic()
            # A server that takes connections, and closes each at the first thing that it is asked, is not back.
            if self._delays is None or context.command.answered:
                self._failures = 0
                self._delays = reconnect_delays(context.settings.reconnect_base, context.settings.reconnect_cap)
            context.log.error("lost the server (%s); reconnecting", message_of(error))
            context.loop.call_later(next(self._delays), self._reconnect)

    def _say_reason(self, error: Exception) -> None:
        """Log why the server cannot be reached again, each reason once: a changed password is no passing trouble."""
        text = str(error)
        if text not in self._reasons and len(self._reasons) < MAX_REASONS:
            self._reasons.add(text)
            self._context.log.warning("cannot reconnect yet: %s", scrub(text))

    def _reconnect(self) -> None:
        context = self._context
        try:
            if context.lease is not None:
                context.lease.ensure()
            # A frozen server accepts and says nothing: signals and kill deadlines must not wait for it each time. One
            # that is only slow gets the usual patience each fourth time.
            patience = None if self._failures % 4 == 3 else min(IMPATIENT, context.settings.socket_timeout)
            context.command.connect(patience)
            context.listen.connect(patience)
        except Exception as error:  # noqa: BLE001 - an odd word of a server or a sentinel must not be the last attempt
            context.command.close()
            self._failures += 1
            self._say_reason(error)
            if 0 < context.settings.reconnect_attempts <= self._failures:
                context.log.error("gave up after %d attempts: %s", self._failures, message_of(error))
                self._on_given_up(error)
            else:
                context.loop.call_later(next(self._delays), self._reconnect)
            return
        self._reasons.clear()
        away = time.monotonic() - (self._away_since or time.monotonic())
        self._away_since = None
        context.counters.reconnects += 1
        context.counters.outage_seconds += away
        self._watch()
        context.log.info("the server is back after %.1f s", away)
        self._events.server_back()
