"""Finds the claims that the server has noted and whose reply was lost, and puts their jobs back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from ..config.secrets import message_of
from ..connection.away import is_blamed
from ..foreign import MAX_VALUE, printable
from ..store.claim import Claim, drop_notes, known_claims, unknown_claims
from ..store.commit import bare_failure
from ..store.keys import job_key
from ..store.leases import push_back
from .committer import Committer
from .context import Context
from .events import Events
from .exchange import Exchange
from .slots import Slots
from .wakeup import Wakeup

#: How often the connection may be lost before a claim of a job is answered; then the job fails. With it the bytes of a
#: hash from which on the answer may be the reason: a server keeps 16 kB of replies that no limit counts.
MAX_UNANSWERED, BLAMED_FROM = 4, 16 * 1024
#: Jobs of which that is counted.
MAX_COUNTED = 1000


class Recovery:
    """Asks which claims are noted, when some may be that nothing here knows of.

    Args:
        context, events, wakeup: as the names say.
        slots, committer: what they hold is known.
    """

    def __init__(self, context: Context, events: Events, *, slots: Slots, committer: Committer, wakeup: Wakeup) -> None:
        self._context = context
        self._slots = slots
        self._committer = committer
        self._wakeup = wakeup
        #: Job -> how often its claim was not answered.
        self._unanswered: dict[str, int] = {}
        #: Why the last claim was not answered.
        self._loss = ""
        #: So many claims are to take one job each, to find out which one is to blame.
        self.singly = 0
        self.due = False
        #: It was asked what is noted, and not answered yet.
        self._asking = False
        events.server_back.append(self._recover)
        events.claims_unknown.append(self._recover)

    def _recover(self) -> None:
        self.due = True

    @property
    def pending(self) -> bool:
        """Tell whether claims may be noted that nothing here knows of."""
        return self.due or self._asking

    def on_claim_lost(self, error: Exception) -> None:
        """Note that a claim was not answered: what it took is found here when the server is back."""
        if is_blamed(error):
            self._loss = message_of(error)
            self.singly = max(self.singly, 1)
        self.due = True

    def on_claim_answered(self) -> None:
        """Note that a claim was answered, whatever it took."""
        self.singly = max(0, self.singly - 1)

    def forget(self, job_id: str) -> None:
        """Note that the claim of a job has been answered."""
        self._unanswered.pop(job_id, None)

    def push_back(self, claims: Sequence[Claim], begun: bool = False) -> None:
        """Put claimed jobs back; one that has ``begun``, or may have, counts a stall."""
        command = push_back(self._context.settings, self._context.token, claims, begun)
        self._context.command.submit(Exchange([command], lambda _replies: self._wakeup.wake()))

    def exchanges(self) -> list[Exchange]:
        """Return the exchange that is due."""
        return [self.exchange()]

    def exchange(self, more: Sequence[Claim] = ()) -> Exchange:
        """Return the exchange that puts back what is noted of this worker, and not known here.

        Args:
            more: claims that are known, too.
        """
        self.due, self._asking = False, True
        known = [claim.member for claim in (*self._slots.claims(), *self._committer.claims(), *more)]

        def on_lost(_error: Exception) -> None:
            self._asking = False
            self._recover()

        def on_replies(replies: list[Any]) -> None:
            self._asking = False
            strange: list[bytes] = []
            log, token = self._context.log, self._context.token
            unknown = [] if isinstance(replies[0], ResponseError) else unknown_claims(replies[0], known, strange)
            # If they stayed there, each heartbeat would count them as claims that nothing here knows of.
            if strange:
                example = printable(strange[0], MAX_VALUE)
                log.warning("dropping %d notes that are no claims, such as %s", len(strange), example)
                self._context.command.submit(Exchange([drop_notes(token, strange)]))
            if unknown:
                log.warning("putting back %d jobs whose claim was not answered", len(unknown))
                self._on_unanswered(unknown)

        return Exchange([known_claims(self._context.token)], on_replies, on_lost)

    def _on_unanswered(self, claims: Sequence[Claim]) -> None:
        """Put claims back whose reply was lost, and claim one job at a time until it is known whether one is to
        blame.
        """
        self.singly = max(self.singly, len(claims))
        # Other workers have claimed most of these jobs since.
        if len(self._unanswered) > MAX_COUNTED:
            self._unanswered.clear()
        for claim in claims:
            self._unanswered[claim.job_id] = self._unanswered.get(claim.job_id, 0) + 1
        first = claims[0]
        if len(claims) > 1 or self._unanswered[first.job_id] < MAX_UNANSWERED:
            self.push_back(claims)
            return

        def on_replies(replies: list[Any]) -> None:
            size = max((reply for reply in replies if isinstance(reply, int)), default=0)
            lost = self._unanswered.pop(first.job_id, 0)
            if size < BLAMED_FROM:
                self.push_back(claims)
                return
            reason = (
                f"the connection was lost {lost} times while the job, a hash of {size} bytes, was read "
                f"({self._loss}): keep large arguments elsewhere, or raise the server's client-output-buffer-limit"
            )
            self._context.log.error("job %s: %s; failing it", first.job_id, reason, worker=first.worker_name)
            self._committer.add(bare_failure(first, reason))
            self._wakeup.wake()

        # Any field may be large. Where MEMORY is not allowed, the arguments are looked at.
        key = job_key(first.job_id)
        questions = [("HSTRLEN", key, "data"), ("MEMORY", "USAGE", key, "SAMPLES", "0")]
        self._context.command.submit(Exchange(questions, on_replies, lambda _error: self._recover()))
