"""Outcomes on their way to Redis: committed together, and followed up one by one."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from redis.exceptions import ResponseError

from ..config.secrets import message_of
from ..connection.away import is_blamed, is_forbidden
from ..store.claim import Claim, forget
from ..store.commit import Outcome, bare_failure, commit_outcomes, flat
from .context import Context
from .events import Events
from .exchange import Exchange
from .forbidden import Forbidden
from .slot import Task, send_receipt
from .unsigned import UnsignedJobs

#: Outcomes in one commit, and bytes after which it takes no further one: whatever is sent next waits for it.
MAX_COMMIT, MAX_COMMIT_BYTES = 50, 1024 * 1024
#: How often the dependents of a job may have changed before only what RQ watches counts as a change.
MAX_CHANGES = 5
#: How often an outcome is refused before its job is left alone; from the second time on it is a failure.
MAX_REFUSALS = 4
#: How often the connection may be lost while an outcome is on its way, from the second time on alone: then it is
#: refused.
MAX_LOSSES = 4
#: Bytes from which on an outcome, or a commit, may be why the server closes a connection: its limits are 1 MB at least.
BLAMED_FROM, BLAMED_TOGETHER = 64 * 1024, 512 * 1024
#: Seconds for which recorded outcomes are kept, and their bytes in all. A server that comes back may have lost what it
#: acknowledged last. With appendfsync everysec that is up to two seconds; of a replica it is what had not arrived.
KEPT_FOR, KEPT_BYTES = 3.0, 2 * 1024 * 1024
#: What commit.lua says of an outcome that needs a right which is missing, before it has done anything of it.
NOTHING_DONE = "NOPERM this user has no permissions"


class Committer:
    """Holds outcomes until the server has recorded them.

    Args:
        context, events: as the names say.
        tasks: wait for horses; one is added where a horse has to do something about an outcome.
        burst: the worker ends when nothing is under way any more, as it does once a shutdown has begun.
    """

    def __init__(self, context: Context, events: Events, *, tasks: deque[Task], burst: bool) -> None:
        self._context = context
        self._events = events
        self._tasks = tasks
        self._forbidden = Forbidden(context, events, burst=burst)
        self._unsigned = UnsignedJobs(context)
        self._waiting: deque[Outcome] = deque()
        #: Those with which the connection was lost: the server may close it at one of them, so each is sent alone.
        self._suspects: deque[Outcome] = deque()
        #: (when it was recorded, its size, itself), the oldest first.
        self._recorded: deque[tuple[float, int, Outcome]] = deque()
        self._recorded_bytes = 0
        #: What may have been lost with the server, since that was noticed.
        self._doubtful: list[Outcome] = []
        #: So many commits take one outcome each.
        self._singly = 0
        #: A commit has been sent, and not answered yet.
        self.under_way = False
        events.server_lost.append(self._note_away)
        events.server_back.append(self._send_again)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._suspects)

    @property
    def due(self) -> bool:
        """Tell whether outcomes wait that may be sent together with other things."""
        return bool(self._waiting) and not self._forbidden.paused

    @property
    def singled_out(self) -> bool:
        """Tell whether the next commit is to be sent alone: only what may cost the connection waits."""
        return bool(self._suspects) and not self._waiting and not self._forbidden.paused

    @property
    def forbidden(self) -> bool:
        """Tell whether the server's access control refused what was sent last."""
        return bool(self._forbidden)

    def add(self, outcome: Outcome) -> None:
        """Take an outcome; it is sent with the next commit."""
        self._waiting.append(outcome)

    def renewed(self) -> list[Claim]:
        """Return the claims that wait to be committed and stand for all that is known here."""
        return [outcome.claim for outcome in (*self._waiting, *self._suspects) if not outcome.again]

    def claims(self) -> list[Claim]:
        """Return the claims that wait to be committed."""
        return [outcome.claim for outcome in (*self._waiting, *self._suspects)]

    def _note_away(self, _error: Exception) -> None:
        """Note that the server is lost: what it recorded last, before that could be noticed, is sent again later."""
        settings = self._context.settings
        noticed_after = settings.heartbeat_interval + settings.socket_timeout
        self._forget(time.monotonic() - KEPT_FOR - noticed_after)
        self._doubtful += [outcome for _, _, outcome in self._recorded]
        self._recorded.clear()
        self._recorded_bytes = 0

    def _send_again(self) -> None:
        """Send what was recorded last once more: the server has been away. The fence makes it harmless."""
        self._waiting.extendleft(reversed(self._doubtful))
        self._doubtful.clear()

    def exchanges(self) -> list[Exchange]:
        """Return the commit that is due."""
        return [self.commit()]

    def commit(self) -> Exchange:
        """Return the exchange that records what waits."""
        source = self._waiting or self._suspects
        most = MAX_COMMIT if self._singly == 0 and self._waiting else 1
        batch: list[Outcome] = []
        size = 0
        while source and len(batch) < most and size < MAX_COMMIT_BYTES:
            batch.append(source.popleft())
            size += batch[-1].size()
        self._singly = max(0, self._singly - 1)
        for outcome in batch:
            outcome.attempts += 1
        self.under_way = True

        def on_replies(replies: list[Any]) -> None:
            self.under_way = False
            results = replies[0]
            if isinstance(results, ResponseError):
                if is_forbidden(results):
                    self._on_forbidden(batch, str(results))
                    return
                # The commit is refused as a whole, and the outcome to blame must not harm the others.
                if len(batch) > 1:
                    self._singly = len(batch)
                    self._waiting.extendleft(reversed(batch))
                    return
                results = [str(results).encode()]
            recorded_again = 0
            words = [result.decode(errors="replace") for result in results]
            refused = [outcome for outcome, word in zip(batch, words) if word.startswith(NOTHING_DONE)]
            if refused:
                self._on_forbidden(refused, next(word for word in words if word.startswith(NOTHING_DONE)))
            else:
                self._forbidden.end()
            for outcome, word in zip(batch, words):
                if word.startswith(NOTHING_DONE):
                    continue
                # One that has got dependents since is put back as an unknown claim.
                if outcome.again:
                    recorded_again += word == "ok"
                else:
                    self._on_result(outcome, word)
            if recorded_again:
                self._context.log.warning(
                    "the server had lost %d outcomes that it acknowledged; they are recorded again", recorded_again
                )

        def on_lost(error: Exception) -> None:
            self.under_way = False
            if is_blamed(error):
                self._on_lost(batch, error)
            else:
                self._waiting.extendleft(reversed(batch))

        return Exchange([commit_outcomes(self._context.token, batch)], on_replies, on_lost)

    def _on_forbidden(self, refused: list[Outcome], reason: str) -> None:
        """Keep outcomes until the user may record them, and take no jobs meanwhile, unless the worker ends."""
        if self._forbidden.add(len(refused), reason):
            self._waiting.extendleft(reversed(refused))
            return
        for outcome in refused:
            self._receipt(outcome, False)
            if not outcome.again:
                self._give_up(outcome.claim)

    def _give_up(self, claim: Claim) -> None:
        self._context.log.error(
            "giving up on recording job %s; it runs again when its lease is over",
            claim.job_id,
            worker=claim.worker_name,
        )
        # Otherwise it would be taken for a claim whose reply was lost, and put back at once, again and again.
        self._context.command.submit(Exchange([forget(self._context.token, claim)]))
        self._events.job_done()

    def _on_lost(self, batch: list[Outcome], error: Exception) -> None:
        """Suspect what was on its way when the connection was lost, and give up what was so too often, alone."""
        small = [outcome for outcome in batch if outcome.size() < BLAMED_FROM]
        self._waiting.extendleft(reversed(small))
        if sum(outcome.size() for outcome in small) >= BLAMED_TOGETHER:
            self._singly = len(small)
        for outcome in batch:
            if outcome.size() < BLAMED_FROM:
                continue
            outcome.losses += 1
            if outcome.losses < MAX_LOSSES:
                self._suspects.append(outcome)
                continue
            reason = (
                f"the connection was lost {outcome.losses} times while its {outcome.size()} bytes were sent "
                f"({message_of(error)}): keep large results elsewhere, or raise the server's client-query-buffer-limit "
                "and proto-max-bulk-len"
            )
            if outcome.again:
                self._context.log.error("job %s: %s", outcome.claim.job_id, reason)
            else:
                # The outcome has been tried again already.
                outcome.refusals = max(1, outcome.refusals)
                self._on_refused(outcome, reason)

    def _on_result(self, outcome: Outcome, result: str) -> None:
        claim = outcome.claim
        if result == "changed":
            # The job has dependents. A horse that waits for the record goes on waiting.
            changes = outcome.changes + 1
            arguments = (changes > MAX_CHANGES, outcome.status, *flat(outcome.commands))
            self._tasks.append(Task("settle", claim, arguments, changes=changes, receipt_for=outcome.receipt_for))
        elif result in ("ok", "lost"):
            # An outcome that was sent again after a lost reply had been recorded.
            if result == "lost" and outcome.attempts == 1:
                self._context.counters.lost_claims += 1
                self._context.log.warning(
                    "outcome of job %s dropped: its claim is gone (cancelled, deleted or handed on)",
                    claim.job_id,
                    worker=claim.worker_name,
                )
            else:
                self._context.counters.recorded(outcome.status, outcome.commands[1].data)
                self._unsigned.look()
            self._receipt(outcome, result == "ok" or outcome.attempts > 1)
            self._keep(outcome)
            self._events.job_done()
        else:
            self._on_refused(outcome, result)

    def _keep(self, outcome: Outcome) -> None:
        outcome.on_recorded()
        now, size = time.monotonic(), outcome.size()
        self._recorded.append((now, size, outcome))
        self._recorded_bytes += size
        self._forget(now - KEPT_FOR)

    def _forget(self, before: float) -> None:
        while self._recorded and (self._recorded[0][0] < before or self._recorded_bytes > KEPT_BYTES):
            self._recorded_bytes -= self._recorded.popleft()[1]

    def _on_refused(self, outcome: Outcome, reason: str) -> None:
        """Try an outcome that the server refused once more, then fail its job alone, with the reason."""
        claim, log = outcome.claim, self._context.log
        outcome.refusals += 1
        text = f"The outcome could not be recorded: {reason}"
        log.error("job %s: %s", claim.job_id, text, worker=claim.worker_name)
        if outcome.refusals == 1:
            self._waiting.append(outcome)
            return
        self._receipt(outcome, False)
        if outcome.refusals >= MAX_REFUSALS:
            self._give_up(claim)
        elif outcome.status == "failed":
            bare = bare_failure(claim, text)
            bare.refusals = outcome.refusals
            self._waiting.append(bare)
        else:
            self._tasks.append(Task("fail", claim, (text,)))

    def _receipt(self, outcome: Outcome, recorded: bool) -> None:
        receipt_for, outcome.receipt_for = outcome.receipt_for, None
        send_receipt(receipt_for, recorded)
