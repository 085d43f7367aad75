"""When to look for jobs: knows whether the queues may hold some, and has the server say when that changes.

Client tracking makes reading the queues and registering for their next change one step, so nothing is popped while
asleep and nothing is missed. Where a server refuses it, the queues are looked at every 50 ms.

A queue whose limit is reached is left out. In its place stands a key that is deleted when a job of it ends or its limit
is changed, or a timer until it may start the next job.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from ..process.event_loop import Timer
from ..store.claim import Limited
from ..store.keys import SUSPENDED
from ..wire import Command
from .context import Context
from .events import Events
from .exchange import Exchange
from .refusals import Refusals

#: Seconds between looks at the queues where the server offers no client tracking.
POLL_INTERVAL = 0.05
#: Seconds between looks on a cluster: the slot of empty queues may move away without a word.
CLUSTER_INTERVAL = 1.0
#: Delay before a woken worker claims: at most, and per miss, once others were faster several times in a row. A push
#: wakes every idle worker, and a hundred of them must not ask at once for one job.
HERD_DELAY, HERD_STEP, HERD_MISSES = 0.02, 0.001, 2


class Wakeup:
    """Awake means that a claim may find something. It begins awake.

    Args:
        context, events: as the names say.
        refusals: say when to try again where the server refuses.
    """

    def __init__(self, context: Context, events: Events, *, refusals: Refusals) -> None:
        self._context = context
        self._refusals = refusals
        self._keys = context.identity.queue_keys
        self._awake = True
        self._look_due = False
        self._tracking = False
        self._misses = 0
        self._timer: Timer | None = None
        self._later: Timer | None = None
        self._polling: Timer | None = None
        self._looking = False
        #: Queues that are left out -> the key that is watched instead, and the timer for the first of them.
        self._limited: dict[str, str] = {}
        self._token: Timer | None = None
        self.suspended = False
        events.server_back.append(self.track)

    @property
    def awake(self) -> bool:
        """Tell whether a claim may find something now."""
        return self._awake and self._timer is None

    @property
    def asleep(self) -> bool:
        """Tell whether the queues were seen empty, and nothing has been heard since."""
        return not (self._awake or self._look_due or self._later or self._limited)

    @property
    def due(self) -> bool:
        """Tell whether the queues are to be looked at."""
        return self._look_due and not self._awake

    def wake(self) -> None:
        """Claim with the next exchange."""
        self._awake = True

    def wake_later(self, delay: float) -> None:
        """Wake ``delay`` seconds from now, unless that is planned already; until then nothing else wakes."""
        if self._later is None:
            self._later = self._context.loop.call_later(delay, self._on_later)

    def on_refused(self, error: ResponseError) -> None:
        """Wake when it is time to try again what the server refused: a claim, or a look at the queues."""
        delay = self._refusals.add(error)
        if delay is not None:
            self.wake_later(delay)

    def _on_later(self) -> None:
        self._later = None
        self.wake()

    def leave_out(self, limited: Sequence[Limited]) -> None:
        """Note what a claim said about queues that have jobs and may not start one."""
        self._limited = {queue.key: queue.watch for queue in limited}
        if self._token is not None:
            self._token.cancel()
            self._token = None
        waits = [queue.wait for queue in limited if queue.wait is not None]
        if waits:
            self._token = self._context.loop.call_later(min(waits) + self._herd_delay(), self._on_token)

    def _on_token(self) -> None:
        self._token = None
        self.wake()

    def sleep(self) -> None:
        """A claim got less than it could have: look once, register, and claim no more until something changes."""
        self._awake = False
        self._look_due = True

    def on_claimed(self, found: bool) -> None:
        """Note whether a claim found anything."""
        self._misses = 0 if found else self._misses + 1

    def on_invalidation(self) -> None:
        """Wake, after a random moment if others have been faster lately.

        Not while a later look is planned: a claim that puts back what it may not take changes the queue itself.
        """
        if self._later is not None:
            return
        delay = self._herd_delay()
        self.wake()
        if delay > HERD_STEP and self._timer is None:
            self._timer = self._context.loop.call_later(delay, self._on_timer)

    def _herd_delay(self) -> float:
        return random.uniform(0, min(HERD_DELAY, HERD_STEP * max(0, self._misses - HERD_MISSES)))

    def _on_timer(self) -> None:
        self._timer = None

    def exchanges(self) -> list[Exchange]:
        """Return the exchange that reads whether there are jobs and registers for the next change of that."""
        self._look_due = False
        optin: list[Command] = [("CLIENT", "CACHING", "YES")] if self._tracking else []
        keys = [key for key in self._keys if key not in self._limited]
        watched = list(self._limited.values())
        reads: list[Command] = [("EXISTS", SUSPENDED)]
        reads += [("EXISTS", *some) for some in (keys, watched) if some]
        commands = [command for read in reads for command in (*optin, read)]

        def on_replies(replies: list[Any]) -> None:
            answers = replies[len(optin) :: len(optin) + 1]
            refused = next((reply for reply in answers if isinstance(reply, ResponseError)), None)
            # The look itself was refused, and would be again at once.
            if refused is not None:
                if self._later is None:
                    self.on_refused(refused)
                return
            if any(isinstance(reply, ResponseError) for reply in replies):
                self._on_tracking(False)
                return
            suspended, *found = answers
            waiting = bool(keys) and found[0] > 0
            changed = bool(watched) and found[-1] < len(watched)
            if self._later is None and (bool(suspended) != self.suspended or ((waiting or changed) and not suspended)):
                self.wake()
            elif not self._tracking and self._polling is None:
                self._polling = self._context.loop.call_later(POLL_INTERVAL, self._poll)

        return [Exchange(commands, on_replies)]

    def _look(self) -> None:
        self._look_due = not self._awake and self._context.command.connected

    def _poll(self) -> None:
        self._polling = None
        self._look_due = not self._awake

    def track(self) -> None:
        """Switch on tracking for the command connection, redirected to the listening one, where the server can.

        After every connect of either: the registration is the connection's, the redirection names the other's id.
        """
        if self._context.command.in_cluster and not self._looking:
            self._looking = True
            self._context.loop.call_every(CLUSTER_INTERVAL, self._look)
        if self._context.listen.client_id is None:
            self._on_tracking(False)
            return
        commands: list[Command] = [
            ("CLIENT", "TRACKING", "OFF"),
            ("CLIENT", "TRACKING", "ON", "REDIRECT", self._context.listen.client_id, "OPTIN"),
        ]
        self._context.command.submit(
            Exchange(commands, lambda replies: self._on_tracking(not isinstance(replies[1], ResponseError)))
        )

    def _on_tracking(self, tracking: bool) -> None:
        self._tracking = tracking
        self._context.log.info(
            "2 connections: command, and listen for control commands%s",
            " and wake-ups (client tracking)" if tracking else f"; polling every {POLL_INTERVAL * 1000:g} ms",
        )
        self.wake()
