"""How a worker ends: warm, hard, without its server, or to be started anew."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from ..config.secrets import scrub
from ..errors import TRY_AGAIN
from ..store.claim import Claim
from .claimer import Claiming
from .committer import Outcomes
from .context import Parent
from .exchange import Exchange
from .slots import Slots

#: Seconds within which a second SIGTERM or SIGINT counts as the same one (rq worker-pool plus Ctrl-C).
SAME_SIGNAL = 1.0
#: Seconds that a hard stop gives to what has ended and is not recorded yet.
RECORDING_TIME = 2.0


class Stopping:
    """Acts on signals and deadlines.

    Args:
        parent, slots, outcomes, claiming: as the names say.
        turn: one turn of the loop, of at most so many seconds.
        on_stop: called once, when a shutdown begins.
    """

    def __init__(
        self,
        parent: Parent,
        slots: Slots,
        outcomes: Outcomes,
        claiming: Claiming,
        turn: Callable[[float], None],
        on_stop: Callable[[], None],
    ) -> None:
        self._parent = parent
        self._slots = slots
        self._outcomes = outcomes
        self._claiming = claiming
        self._turn = turn
        self._on_stop = on_stop
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

    def start(self) -> None:
        """Begin to listen to signals."""
        loop = self._parent.loop
        loop.on_signal(signal.SIGTERM, self._on_stop_signal)
        loop.on_signal(signal.SIGINT, self._on_stop_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
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
        settings = self._parent.settings
        if not (settings.preload or settings.app):
            self._parent.log.info("Worker %s: SIGHUP: replacing all horses", self._parent.name)
            self._slots.replace()
        elif not self.stopping:
            self._parent.log.info("Worker %s: SIGHUP: finishing what runs, then starting anew", self._parent.name)
            self.reload = True
            self._stop()

    def _stop(self) -> None:
        """Begin a warm shutdown: claim nothing more, finish what runs. Doing it again changes nothing."""
        if not self.stopping:
            self.stopping = True
            timeout = self._parent.settings.shutdown_timeout
            if timeout is not None:
                self._parent.loop.call_later(timeout, self._stop_hard)
            self._on_stop()
            self._slots.forget_maintenance()
            self._parent.worker.note_warm_shutdown([slot.name for slot in self._slots.regular() if slot.claim])

    def _stop_hard(self) -> None:
        """End now: kill the horses and put their jobs back, so that they run again elsewhere."""
        if self._hard:  # a deadline and a second signal
            return
        self._hard = True
        parent = self._parent
        again = self._slots.interrupt()
        # Jobs that have ended are recorded, those with dependents by a horse; that takes moments.
        deadline = time.monotonic() + RECORDING_TIME
        while (self._slots.busy() or self._outcomes) and parent.command.connected and time.monotonic() < deadline:
            self._turn(0.05)
        self._slots.close()  # waits for their deaths: somebody else may be given their jobs
        again += self._slots.claims()
        self.exit_code = 0
        try:
            while self._outcomes and not (self._outcomes.forbidden and time.monotonic() > deadline):
                self._await(self._outcomes.commit())
            # What was under way before is answered before this; it also tells what a lost claim took.
            self._await(self._claiming.recovery(again))
            if again:
                self._await(Exchange([parent.ledger.push_back(again, begun=True)], self._on_pushed_back))
            back = "1 job goes back to its queue" if len(again) == 1 else f"{len(again)} jobs go back to their queues"
            parent.log.warning("Worker %s: cold shut down; %s", parent.name, back)
        except (RedisError, OSError) as error:
            self.end_away(error, again)

    def _on_pushed_back(self, replies: list[Any]) -> None:
        if isinstance(replies[0], ResponseError):
            self._parent.log.error(
                "Worker %s: jobs were not put back (%s); they run again when their leases are over",
                self._parent.name,
                replies[0],
            )

    def end_away(self, error: Exception, interrupted: Sequence[Claim] = ()) -> None:
        """End without the server, naming the jobs that others will run again once their leases are over."""
        claims = [*interrupted, *self._slots.claims(), *self._outcomes.claims()]
        self._parent.log.error(
            "Worker %s: ending while the server is away (%s); jobs that will run again: %s",
            self._parent.name,
            error,
            ", ".join(claim.job_id for claim in claims) or "none",
        )
        self.exit_code = TRY_AGAIN

    def end_refused(self, reason: str, code: int) -> None:
        """Begin a warm shutdown since the server refuses what a worker needs, and end with ``code`` after it."""
        if self.code_at_the_end is None:
            self.code_at_the_end = code
            self._parent.log.error("Worker %s: %s", self._parent.name, scrub(reason))
            self.on_command()

    def _await(self, exchange: Exchange) -> None:
        """Send an exchange and wait for its replies, at most SOCKET_TIMEOUT."""
        try:
            replies = self._parent.command.execute(exchange.commands)
        except (RedisError, OSError) as error:
            exchange.on_lost(error)
            raise
        exchange.on_replies(replies)
