"""How a worker ends: warm, hard, without its server, or to be started anew."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from ..config.secrets import scrub
from ..errors import TRY_AGAIN
from ..store.claim import Claim
from ..store.leases import push_back
from .committer import Committer
from .context import Context
from .events import Events
from .exchange import Exchange
from .recovery import Recovery
from .slots import Slots

#: Seconds within which a second SIGTERM or SIGINT counts as the same one (rq worker-pool plus Ctrl-C).
SAME_SIGNAL = 1.0
#: Seconds that a hard stop gives to what has ended and is not recorded yet.
RECORDING_TIME = 2.0


def _in_django() -> bool:
    """Tell whether this process has loaded a Django project, as `manage.py rqworker` does before there is a worker."""
    django = sys.modules.get("django.apps")
    return django is not None and bool(django.apps.ready)


class Shutdown:
    """Acts on signals and deadlines.

    Args:
        context, events, slots, committer, recovery: as the names say.
        turn: one turn of the loop, of at most so many seconds.
    """

    def __init__(
        self,
        context: Context,
        events: Events,
        *,
        slots: Slots,
        committer: Committer,
        recovery: Recovery,
        turn: Callable[[float], None],
    ) -> None:
        self._context = context
        self._events = events
        self._slots = slots
        self._committer = committer
        self._recovery = recovery
        self._turn = turn
        self._first_signal_at: float | None = None
        self._hard = False
        #: A shutdown has begun: nothing more is claimed.
        self.stopping = False
        #: Set when the worker is to end at once.
        self.exit_code: int | None = None
        #: What the process ends with after all that runs has ended; None for a regular end.
        self.code_at_the_end: int | None = None
        #: SIGHUP with code loaded that new horses would inherit: end in order, to be started anew.
        self.reload = False
        events.work_refused.append(self._end_refused)

    def start(self) -> None:
        """Begin to listen to signals."""
        loop = self._context.loop
        loop.on_signal(signal.SIGTERM, self._on_stop_signal)
        loop.on_signal(signal.SIGINT, self._on_stop_signal)
        # It is ignored under nohup.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.on_signal(signal.SIGHUP, self._on_hangup)

    def on_command(self) -> None:
        """Stop, as the first stop signal does."""
        self.reload = False
        self._stop()

    def _on_stop_signal(self) -> None:
        self.reload = False
        now = time.monotonic()
        if self._first_signal_at is None:
            self._first_signal_at = now
            self._stop()
        elif now - self._first_signal_at >= SAME_SIGNAL:
            self._stop_hard()

    def _on_hangup(self) -> None:
        """Take up new code: horses are replaced, or, where this process itself holds code of the user, all of it."""
        settings = self._context.settings
        if not (settings.preload or settings.app or _in_django()):
            self._context.log.info("SIGHUP: replacing all horses")
            self._slots.replace()
        elif not self.stopping:
            self._context.log.info("SIGHUP: finishing what runs, then starting anew")
            self.reload = True
            self._stop()

    def _stop(self) -> None:
        """Begin a warm shutdown: claim nothing more, finish what runs. Doing it again changes nothing."""
        if not self.stopping:
            self.stopping = True
            timeout = self._context.settings.shutdown_timeout
            if timeout is not None:
                self._context.loop.call_later(timeout, self._stop_hard)
            self._events.shutdown_began()
            busy = [slot.name for slot in self._slots.regular() if slot.claim]
            if notes := self._context.identity.warm_shutdown(busy):
                self._context.command.submit(Exchange(notes))

    def _stop_hard(self) -> None:
        """End now: kill the horses and put their jobs back, so that they run again elsewhere."""
        # Both a deadline and a second signal may come.
        if self._hard:
            return
        self._hard = True
        context = self._context
        again = self._slots.interrupt()
        # Jobs that have ended are recorded, those with dependents by a horse; that takes moments.
        deadline = time.monotonic() + RECORDING_TIME
        while (self._slots.busy() or self._committer) and context.command.connected and time.monotonic() < deadline:
            self._turn(0.05)
        # This waits for their deaths, since other workers may be given their jobs.
        self._slots.close()
        again += self._slots.claims()
        self.exit_code = 0
        try:
            while self._committer and not (self._committer.forbidden and time.monotonic() > deadline):
                self._await(self._committer.commit())
            # What was under way before is answered before this; it also tells what a lost claim took.
            self._await(self._recovery.exchange(again))
            if again:
                command = push_back(context.settings, context.token, again, begun=True)
                self._await(Exchange([command], self._on_pushed_back))
            back = "1 job goes back to its queue" if len(again) == 1 else f"{len(again)} jobs go back to their queues"
            context.log.warning("cold shut down; %s", back)
        except (RedisError, OSError) as error:
            self.end_away(error, again)

    def _on_pushed_back(self, replies: list[Any]) -> None:
        if isinstance(replies[0], ResponseError):
            self._context.log.error(
                "jobs were not put back (%s); they run again when their leases are over", replies[0]
            )

    def end_away(self, error: Exception, interrupted: Sequence[Claim] = ()) -> None:
        """End without the server, naming the jobs that others will run again once their leases are over."""
        claims = [*interrupted, *self._slots.claims(), *self._committer.claims()]
        self._context.log.error(
            "ending while the server is away (%s); jobs that will run again: %s",
            error,
            ", ".join(claim.job_id for claim in claims) or "none",
        )
        self.exit_code = TRY_AGAIN

    def _end_refused(self, reason: str, code: int) -> None:
        """Begin a warm shutdown since the server refuses what a worker needs, and end with ``code`` after it."""
        if self.code_at_the_end is None:
            self.code_at_the_end = code
            self._context.log.error("%s", scrub(reason))
            self.on_command()

    def _await(self, exchange: Exchange) -> None:
        """Send an exchange and wait for its replies, at most SOCKET_TIMEOUT."""
        try:
            replies = self._context.command.execute(exchange.commands)
        except (RedisError, OSError) as error:
            exchange.on_lost(error)
            raise
        exchange.on_replies(replies)
