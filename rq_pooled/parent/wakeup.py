"""When to look for jobs: knows whether the queues may hold some, and has the server say when that changes.

Client tracking makes reading the queues and registering for their next change one step, so nothing is popped while
asleep and nothing is missed. Where a server refuses it, the queues are looked at every 50 ms.

Of the workers of a set of queues one is the sentry, and has tracking on; the others doze until a claim makes one of
them the next sentry, see store/sentries.py. So a job wakes one worker, however many are idle. Each of them looks once a
second, and takes over where a sentry is frozen or a message was lost; who promotes scheduled jobs looks in the same
script. A worker in burst mode, and one that may not publish, has tracking on for itself. It is long since both kinds of
sleep share one state.

A queue whose limit is reached is left out. In its place stands a key that is deleted when a job of it ends or its limit
is changed, or a timer until it may start the next job.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from ..process.event_loop import Timer
from ..store.claim import Limited
from ..store.keys import SUSPENDED
from ..store.sentries import Post
from ..wire import Command
from .context import Context
from .events import Events
from .exchange import Exchange
from .refusals import Refusals
from .slots import Slots

#: Seconds between looks at the queues where the server offers no client tracking.
POLL_INTERVAL = 0.05
#: Seconds between glances of those who doze and of a sentry, and between looks on a cluster, since the slot of empty
#: queues may move away without a word. A promotion that is a little late still is the next glance.
GLANCE_INTERVAL, LATE = 1.0, 0.02
#: After so many glances a sentry gives a sign of life, and those who doze say so again, in case the set of sleepers has
#: lost them.
SIGNS, GLANCES = 3, 15
#: Delay before a woken worker claims: at most, and per miss, once others were faster several times in a row. A push
#: wakes every idle worker, and a hundred of them must not ask at once for one job.
HERD_DELAY, HERD_STEP, HERD_MISSES = 0.02, 0.001, 2


class Wakeup:
    """Awake means that a claim may find something. It begins awake.

    Args:
        context, events, slots: as the names say.
        refusals: say when to try again where the server refuses.
        burst: the worker ends when the queues are empty, and so is no sentry.
    """

    def __init__(self, context: Context, events: Events, *, refusals: Refusals, slots: Slots, burst: bool) -> None:
        self._context = context
        self._refusals = refusals
        self._slots = slots
        self._burst = burst
        self._keys = context.identity.queue_keys
        self._post = Post.of(context.identity.queue_names, context.identity.name)
        self._awake = True
        self._look_due = False
        self._tracking = False
        #: Its queues have a sentry; else this worker has tracking on for itself.
        self._guarded = False
        #: It can be told to be the sentry, as far as is known since the last connect.
        self._reachable = False
        self._sentry = False
        #: It was made the sentry since the last claim was sent.
        self._told = False
        #: It sleeps beside a sentry.
        self.dozing = False
        self._retiring = False
        #: The server tells of the next change of all that was read last.
        self._registered = False
        self._glances = 0
        self._glancing: Timer | None = None
        self._misses = 0
        self._timer: Timer | None = None
        self._later: Timer | None = None
        self._polling: Timer | None = None
        #: Queues that are left out -> the key that is watched instead, and the timer for the first of them.
        self._limited: dict[str, str] = {}
        #: One of them is left out because of a limit, which passes by itself; a pause does not.
        self._limits_wait = False
        self._token: Timer | None = None
        self.suspended = False
        events.server_back.append(self.track)
        events.shutdown_began.append(self._retire)
        events.hold_changed.append(self._on_hold)

    @property
    def awake(self) -> bool:
        """Tell whether a claim may find something now."""
        return self._awake and self._timer is None

    @property
    def asleep(self) -> bool:
        """Tell whether the queues were seen empty, and nothing has been heard since."""
        return not (self._awake or self._look_due or self._later or self._limits_wait)

    @property
    def due(self) -> bool:
        """Tell whether the queues are to be looked at."""
        may = self._watching or (self._later is None and (self.dozing or self._has_free_slot()))
        return may and not self._retiring and self._look_due and not self._awake

    @property
    def handing_on(self) -> bool:
        """Tell whether it is the sentry, and another has to be where this worker has no free slot."""
        return self._sentry and (self._awake or self._retiring)

    @property
    def _watching(self) -> bool:
        return self._sentry or not self._guarded

    def _has_free_slot(self) -> bool:
        return any(slot.free and not slot.spare for slot in self._slots)

    def post(self) -> tuple[str, bool]:
        """Return what a claim has to know: the crew whose sleepers it wakes, and whether this is their sentry."""
        self._told = False
        return (self._post.crew, self._sentry) if self._guarded else ("", False)

    def note_post(self, sentry: bool) -> None:
        """Note what a claim has made of the sentry's post, unless another worker's claim has made more of it since."""
        self._sentry = sentry or self._told

    def make_sentry(self, work: bool) -> None:
        """Be the sentry from now on, since the one before has a job; ``work`` is waiting, perhaps."""
        self.dozing = False
        if self._guarded and self._later is None:
            self._sentry = self._told = True
            if work:
                self.wake()
            self._look_due = True

    def _retire(self) -> None:
        self._retiring = True
        if self.dozing:
            self._context.command.submit(Exchange([self._post.leave()]))

    def _on_hold(self, held: bool) -> None:
        if held:
            self._retire()
        else:
            self._retiring = self.dozing = False
            self.check()

    def wake(self) -> None:
        """Claim with the next exchange."""
        self._awake = True

    def wake_later(self, delay: float) -> None:
        """Wake ``delay`` seconds from now, unless that is planned already; until then nothing else wakes.

        A sentry that does not listen is none: others take over when it gives no sign of life.
        """
        self._sentry = self.dozing = False
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
        watched = {queue.key: queue.watch for queue in limited}
        self._registered = self._registered and watched == self._limited
        self._limited = watched
        self._limits_wait = not all(queue.paused for queue in limited)
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

        Not while a later look is planned: a claim that puts back what it may not take changes the queue itself. Nor
        where another worker is the sentry.
        """
        self._registered = False
        if self._later is not None or not self._watching:
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
        """Return the exchange that says whether there are jobs, or who hears of them."""
        self._look_due = False
        if self._watching:
            return [self._look()]
        return [Exchange(*self._glimpse()) if self.dozing else self._doze()]

    def _reads(self, *guards: str) -> tuple[list[Command], Callable[[list[int]], tuple[bool, bool]]]:
        """Return what reads whether a claim may find something, and what tells from the answers: that, and whether one
        of ``guards`` is missing.
        """
        keys = [key for key in self._keys if key not in self._limited]
        watched = list(self._limited.values())
        if not (self.suspended or watched):
            # One number is enough, since each guard is named more often than all others together.
            copies = len(keys) + 2
            return [("EXISTS", *guards * copies, SUSPENDED, *keys)], lambda answers: (
                answers[0] % copies > 0,
                answers[0] // copies < len(guards),
            )
        groups = {"suspended": [SUSPENDED], "guards": guards, "waiting": keys, "watched": watched}

        def heard(answers: list[int]) -> tuple[bool, bool]:
            found = dict.fromkeys(groups, 0) | dict(zip((name for name in groups if groups[name]), answers))
            may_start = found["waiting"] > 0 or found["watched"] < len(watched)
            changed = bool(found["suspended"]) != self.suspended or (may_start and not found["suspended"])
            return changed, found["guards"] < len(guards)

        return [("EXISTS", *some) for some in groups.values() if some], heard

    def _look(self) -> Exchange:
        """Return the exchange that reads whether there are jobs and registers for the next change of that."""
        asks = self._tracking and (self._context.command.in_cluster or not self._registered)
        optin: list[Command] = [("CLIENT", "CACHING", "YES")] if asks else []
        reads, heard = self._reads()
        commands = [command for read in reads for command in (*optin, read)]
        end, stay = len(commands), self._stay()
        self._registered = self._tracking

        def on_replies(replies: list[Any]) -> None:
            answers = replies[len(optin) : end : len(optin) + 1]
            if self._is_refused(answers):
                self._registered = False
                return
            if any(isinstance(reply, ResponseError) for reply in replies[:end]):
                self._on_tracking(False)
                return
            self._on_stayed(replies[end:])
            if heard(answers)[0] and self._later is None:
                self.wake()
            elif not self._tracking and self._polling is None:
                self._polling = self._context.loop.call_later(POLL_INTERVAL, self._poll)

        return Exchange([*commands, *stay], on_replies)

    def _stay(self) -> list[Command]:
        """Return a sentry's sign of life where it is time for one, by the number of its glances."""
        return self._post.stay() if self._sentry and self._glances % SIGNS == 0 else []

    def _on_stayed(self, replies: list[Any]) -> None:
        if replies and replies[0] != self._post.channel.encode():
            # Another one has been made the sentry meanwhile, or nothing is left of the post.
            self._sentry, self._look_due = False, True

    def _doze(self) -> Exchange:
        """Return the exchange that makes this worker the sentry, or has it sleep beside the one there is."""

        def on_replies(replies: list[Any]) -> None:
            self._sentry, self.dozing = replies[0] == 1, replies[0] == 0
            # Where that is refused each worker hears of jobs by itself.
            self._guarded = self._sentry or self.dozing
            self._look_due = not self.dozing

        return Exchange([self._post.doze(sum(slot.claim is not None for slot in self._slots))], on_replies)

    def _glimpse(self) -> tuple[list[Command], Callable[[list[Any]], None]]:
        """Return what reads whether there is a sentry, and jobs that it should have heard of, and who takes replies."""
        sentry = self._sentry
        reads, heard = self._reads(*(() if sentry else (self._post.sentry_key, self._post.sleepers_key)))
        end, stay = len(reads), self._stay()

        def on_replies(replies: list[Any]) -> None:
            if not (self._sentry if sentry else self.dozing) or self._is_refused(replies[:end]):
                return
            self._on_stayed(replies[end:])
            changed, missing = heard(replies[:end])
            if changed and sentry:
                self.wake()
            elif changed:
                # The sentry has heard nothing.
                self._context.command.submit(Exchange([self._post.take()]))
                self.make_sentry(True)
            elif missing:
                self.dozing, self._look_due = False, True

        return [*reads, *stay], on_replies

    def glance(self) -> tuple[Command, list[Command], Callable[[list[Any]], None]]:
        """Return keys whose number tells a sleeping worker what it looks for each second, what it sends beside, and who
        takes the number and the replies. There are no keys where it is awake, or where one number is not enough.
        """
        one = not (self._limited or self.suspended or (self._context.command.in_cluster and self._watching))
        if not one or self._look_due or self._retiring or not self._count_glance(GLANCE_INTERVAL + LATE):
            return (), [], lambda _replies: None
        (read, *stay), on_replies = self._glimpse()
        return read[1:], stay, on_replies

    def _is_refused(self, answers: list[Any]) -> bool:
        """Tell whether the look itself was refused, and would be again at once."""
        refused = next((reply for reply in answers if isinstance(reply, ResponseError)), None)
        if refused is not None and self._later is None:
            self.on_refused(refused)
        return refused is not None

    def check(self) -> None:
        """Look in case a wake-up was lost."""
        if not self.dozing:
            self._guarded = self._reachable
            self.wake()

    def _plan_glance(self, seconds: float) -> None:
        if self._glancing is not None:
            self._glancing.cancel()
        self._glancing = self._context.loop.call_later(seconds, self._glance)

    def _count_glance(self, seconds: float) -> bool:
        """Note that a glance begins, if it may: the next one is in so many seconds."""
        watches = self._context.command.in_cluster and self._watching
        if self._later is not None or self._awake or not (self.dozing or self._sentry or watches):
            return False
        self._plan_glance(seconds)
        self._glances += 1
        if self.dozing and self._glances % GLANCES == 0:
            self.dozing, self._look_due = False, self._context.command.connected
        return not self._look_due

    def _glance(self) -> None:
        self._plan_glance(GLANCE_INTERVAL)
        if self._count_glance(GLANCE_INTERVAL):
            self._look_due = self._context.command.connected

    def _poll(self) -> None:
        self._polling = None
        self._look_due = not self._awake

    def track(self) -> None:
        """Switch on tracking for the command connection, redirected to the listening one, where the server can.

        After every connect of either: the registration is the connection's, the redirection names the other's id.
        """
        self._plan_glance(GLANCE_INTERVAL)
        if self._context.listen.client_id is None:
            self._on_tracking(False)
            return
        commands: list[Command] = [
            ("CLIENT", "TRACKING", "OFF"),
            ("CLIENT", "TRACKING", "ON", "REDIRECT", self._context.listen.client_id, "OPTIN"),
            # A worker that does not get this could not be made the sentry.
            *([] if self._burst else [("PUBLISH", self._post.channel, "{}")]),
        ]

        def on_replies(replies: list[Any]) -> None:
            told = replies[-1] if len(replies) > 2 else 0
            self._on_tracking(not isinstance(replies[1], ResponseError), isinstance(told, int) and told > 0)

        self._context.command.submit(Exchange(commands, on_replies))

    def _on_tracking(self, tracking: bool, reachable: bool = False) -> None:
        self._tracking, self._registered = tracking, False
        self._guarded = self._reachable = tracking and reachable
        self._sentry = self.dozing = False
        self._context.log.info(
            "2 connections: command, and listen for control commands%s",
            " and wake-ups (client tracking)" if tracking else f"; polling every {POLL_INTERVAL * 1000:g} ms",
        )
        self.wake()
