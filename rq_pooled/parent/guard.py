"""The guard while a worker runs: one INFO per interval in the parent's loop, never waited for.

CLIENT LIST holds a server with 4 000 clients for 24 ms. So one worker at a time asks for it, and only when a level
begins.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from redis.exceptions import ResponseError

from ..capacity import strays
from ..capacity.clients import client_rows
from ..capacity.level import ASK_LIMIT, Level, level_of, read_info, read_limit
from ..capacity.trend import TREND_SECONDS, Sample, trend
from ..monitoring.guard import holders, ours_and_others
from ..store.keys import EVENTS, speaker_key
from ..store.statistics import note_clients
from .context import Context
from .exchange import Exchange

_SHOWN = 5
#: Seconds until the next look while the server is fuller than it should be; a look costs it 0.03 ms.
_SOON = 1.0
#: Seconds of one turn of the loop that the search for jobs' own connections may take, but for its last step.
_SLICE = 0.002


class Guard:
    """Watches how full the server is; at ``stop`` it engages the brake, so that horses open nothing new.

    Args:
        context: as the name says.
        horses: returns the pids of the horses.
        allowed: connections to the server that each horse may have of its own.
    """

    def __init__(self, context: Context, *, horses: Callable[[], Sequence[int]] = list, allowed: int = 0) -> None:
        self._context = context
        self._horses = horses
        self._allowed = allowed
        self._settings = context.settings
        self._maxclients = context.settings.guard_maxclients
        self._level = Level(None, None, "ok")
        self._blind = False
        #: A look is to come soon; the one that is under way is not one of those at the usual interval.
        self._soon = self._extra = False
        self._leaking = False
        self._samples: deque[Sample] = deque(maxlen=10_000)
        #: A search for jobs' own connections that is under way, and how many were found when the log last named them.
        self._search: Generator[None, None, dict[int, int]] | None = None
        self._strays_named = 0

    def start(self) -> None:
        """Look at once, and at each interval."""
        os.register_at_fork(after_in_child=self._end_search)
        self._look()
        self._context.loop.call_every(self._settings.guard_interval, self._look)
        self._context.brake.on_opening = self._look_soon

    def _look_soon(self) -> None:
        """Look once more: after a connection was opened, and as long as the server is fuller than it should be."""
        if not self._soon:
            self._soon = True
            self._context.loop.call_later(min(_SOON, self._settings.guard_interval), self._look_now)

    def _look_now(self) -> None:
        self._soon, self._extra = False, True
        self._ask()

    def _ask(self) -> None:
        if self._context.command.connected and not self._blind:
            self._context.command.submit(Exchange([("INFO", "clients")], self._on_info))

    def _look(self) -> None:
        self._ask()
        if self._context.command.connected and self._search is None:
            self._look_for_strays()

    def _on_info(self, replies: list[Any]) -> None:
        connected, maxclients = read_info(replies[0])
        if self._maxclients is None and maxclients is None and not isinstance(replies[0], ResponseError):
            self._ask_config(connected)
        else:
            self._judge(connected, self._settings.guard_maxclients or maxclients or self._maxclients)

    def _ask_config(self, connected: int | None) -> None:
        """Ask an old or managed server, whose INFO does not have the limit, for its configuration, once."""

        def on_config(replies: list[Any]) -> None:
            self._maxclients = read_limit(replies[0]) or self._maxclients
            self._judge(connected, self._maxclients)

        self._context.command.submit(Exchange([ASK_LIMIT], on_config))

    def _judge(self, connected: int | None, maxclients: int | None) -> None:
        before, self._level = self._level, level_of(self._settings, connected, maxclients, self._level.name)
        # The log said so at the start already, see Admission.
        if connected is None or not maxclients:
            self._blind = True
            # Nothing would ever release it.
            self._context.brake.engaged = self._context.brake.tight = False
            if before.share is not None:
                self._context.log.warning(
                    "the server does not tell any more how many clients it has: it is not guarded from now on"
                )
            return
        extra, self._extra = self._extra, False
        # From the second look on: a worker that works for a moment leaves nothing behind.
        if self._samples and not extra:
            sample = note_clients(connected, maxclients, 0.9 * self._settings.guard_interval)
            self._context.command.submit(Exchange([sample]))
        self._context.brake.engaged = self._level.name == "stop"
        self._context.brake.tight = self._level.name in ("warn", "stop")
        if self._context.brake.tight and self._settings.guard_interval > _SOON:
            self._look_soon()
        if self._level.name != before.name:
            self._on_change(before.name)
        # A trend counts looks at the usual interval.
        if not extra:
            self._look_for_leak(Sample(time.monotonic(), connected, maxclients))

    def _on_change(self, before: str) -> None:
        level, log = self._level, self._context.log
        if level.name == "ok" or before == "stop":
            effect = "" if level.name == "ok" else "; connections may be opened again"
            log.info("guard %s: %s%s", level.name, level, effect)
            self._announce(level.name, lambda _held: None)
        else:
            effect = "; nothing new is opened" if level.name == "stop" else ""
            self._announce(level.name, lambda held: log.warning("guard %s: %s%s%s", level.name, level, effect, held))

    def _look_for_leak(self, sample: Sample) -> None:
        samples = self._samples
        samples.append(sample)
        while samples[0].time < sample.time - TREND_SECONDS:
            samples.popleft()
        grown = trend(samples)
        if grown.steady and not self._leaking:
            left = grown.minutes_left(sample.connected, sample.maxclients)
            log, level = self._context.log, self._level
            self._announce(
                "leak",
                lambda held: log.warning(
                    "guard: the server's connections grow steadily, by %g a minute; %s, full in %g minutes%s",
                    grown.per_minute,
                    level,
                    left,
                    held,
                ),
            )
        self._leaking = grown.steady

    # -- connections that jobs open past rq_pooled -----------------------------------------------------------------

    def _look_for_strays(self) -> None:
        server = strays.peer(self._context.command.fileno())
        if server is not None:
            self._search = strays.look(self._horses(), server)
            self._go_on_searching()

    def _go_on_searching(self) -> None:
        """Search for a short while, and again in the next turn until all is seen."""
        if self._search is None:
            return
        until = time.monotonic() + _SLICE
        try:
            while time.monotonic() < until:
                next(self._search)
        except StopIteration as end:
            self._search = None
            self._name_strays(end.value)
        else:
            self._context.loop.call_later(0, self._go_on_searching)

    def _end_search(self) -> None:
        """Close in a forked child what the search has open."""
        if self._search is not None:
            self._search.close()

    def _name_strays(self, found: dict[int, int]) -> None:
        """Log the connections that jobs hold of their own, and again only after their number has doubled."""
        over = {pid: number - self._allowed for pid, number in found.items() if number > self._allowed}
        total = sum(over.values())
        if total < max(1, 2 * self._strays_named):
            return
        self._strays_named = total
        pid = max(over, key=over.__getitem__)
        self._context.log.warning(
            "guard: jobs of horse %d hold %d connection%s of their own to the server (%d in all horses), "
            "from clients that they build themselves; use rq_pooled.get_connection() in jobs, see docs/pool.md",
            pid,
            over[pid],
            "s" * (over[pid] > 1),
            total,
        )

    # -- what others hear ----------------------------------------------------------------------------------------

    def _announce(self, event: str, say: Callable[[str], None]) -> None:
        """Publish an event, unless another worker has just done so, and log it with who holds most connections.

        Args:
            say: called with the holders, or "" where another worker names them.
        """
        context = self._context
        life = max(1, math.ceil(self._settings.guard_interval * 1000))
        lock = ("SET", speaker_key(event), context.token, "NX", "PX", life)

        def on_lock(replies: list[Any]) -> None:
            if replies[0] != b"OK":
                say("")
                return
            context.command.submit(Exchange([("CLIENT", "LIST")], on_list, lambda _error: say("")))

        def on_list(replies: list[Any]) -> None:
            rows = client_rows(replies[0])
            lines = holders(*ours_and_others(rows), rows=_SHOWN) if rows is not None else []
            held = [" ".join(line.split()) for line in lines]
            say(f"; held by: {'; '.join(held)}" if held else "; who holds them is not known: CLIENT LIST is refused")
            message = {
                "event": event,
                "connected": self._level.connected,
                "maxclients": self._level.maxclients,
                "worker": context.identity.name,
                "holders": held,
            }
            context.command.submit(Exchange([("PUBLISH", EVENTS, json.dumps(message))]))

        context.command.submit(Exchange([lock], on_lock, lambda _error: say("")))
