"""Outcomes on their way to Redis: committed together, and followed up one by one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from ..config.secrets import message_of
from ..connection.away import NEEDED_RIGHTS, is_blamed, is_forbidden
from ..store.claim import Claim
from ..store.ledger import Outcome, flat
from .context import Parent
from .exchange import Exchange
from .slots import Slot, Task

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
#: Seconds for which recorded outcomes are kept, and their bytes in all: a server that comes back may have lost what it
#: acknowledged last (appendfsync everysec: up to two seconds; an asynchronous replica: what had not arrived).
KEPT_FOR, KEPT_BYTES = 3.0, 2 * 1024 * 1024
#: Seconds after which outcomes are sent again that the server's access control refuses, at first and at most, and after
#: which that is said again.
FORBIDDEN_FIRST, FORBIDDEN_RETRY, SAY_AGAIN = 0.5, 15.0, 300.0
#: What commit.lua says of an outcome that needs a right which is missing, before it has done anything of it.
NOTHING_DONE = "NOPERM this user has no permissions"


class Outcomes:
    """Holds outcomes until the server has recorded them.

    Args:
        parent: as the name says.
        add_task: has a horse do something about an outcome.
        reply: tells a horse that waits for it what became of its outcome.
        on_done: called when a job is over: recorded, or dropped because its claim is gone.
        is_ending: tells whether the worker ends when nothing is under way any more.
        on_given_up: called with the reason when outcomes were given up because the worker ends.
    """

    def __init__(
        self,
        parent: Parent,
        add_task: Callable[[Task], None],
        reply: Callable[[Slot, tuple[Any, ...]], None],
        on_done: Callable[[], None],
        is_ending: Callable[[], bool],
        on_given_up: Callable[[str], None],
    ) -> None:
        self._parent = parent
        self._add_task = add_task
        self._reply = reply
        self._on_done = on_done
        self._is_ending = is_ending
        self._on_given_up = on_given_up
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
        #: Times in a row that the access control refused, since when, when that was said last, and a pause until then.
        self._forbidden, self._forbidden_since, self._said_at, self._paused_until = 0, 0.0, 0.0, 0.0

    @property
    def due(self) -> bool:
        """Tell whether a commit is to be sent now."""
        return bool(self) and (not self._forbidden or time.monotonic() >= self._paused_until)

    @property
    def forbidden(self) -> bool:
        """Tell whether the server's access control refused what was sent last."""
        return self._forbidden > 0

    def __bool__(self) -> bool:
        return bool(self._waiting or self._suspects)

    @property
    def singled_out(self) -> bool:
        """Tell whether the next commit is to be sent alone: only what may cost the connection waits."""
        return bool(self._suspects) and not self._waiting

    def add(self, outcome: Outcome) -> None:
        """Take an outcome; it is sent with the next commit."""
        self._waiting.append(outcome)

    def renewed(self) -> list[Claim]:
        """Return the claims that wait to be committed and stand for all that is known here."""
        return [outcome.claim for outcome in (*self._waiting, *self._suspects) if not outcome.again]

    def claims(self) -> list[Claim]:
        """Return the claims that wait to be committed."""
        return [outcome.claim for outcome in (*self._waiting, *self._suspects)]

    def note_away(self) -> None:
        """Note that the server is lost: what it recorded last, before that could be noticed, is sent again later."""
        settings = self._parent.settings
        noticed_after = settings.heartbeat_interval + settings.socket_timeout
        self._forget(time.monotonic() - KEPT_FOR - noticed_after)
        self._doubtful += [outcome for _, _, outcome in self._recorded]
        self._recorded.clear()
        self._recorded_bytes = 0

    def send_again(self) -> None:
        """Send what was recorded last once more: the server has been away. The fence makes it harmless."""
        self._waiting.extendleft(reversed(self._doubtful))
        self._doubtful.clear()

    def commit(self) -> Exchange:
        """Return the exchange that records what waits."""
        source = self._suspects if self.singled_out else self._waiting
        most = MAX_COMMIT if self._singly == 0 and not self.singled_out else 1
        batch: list[Outcome] = []
        size = 0
        while source and len(batch) < most and size < MAX_COMMIT_BYTES:
            batch.append(source.popleft())
            size += batch[-1].size()
        self._singly = max(0, self._singly - 1)
        for outcome in batch:
            outcome.attempts += 1

        def on_replies(replies: list[Any]) -> None:
            results = replies[0]
            if isinstance(results, ResponseError):
                if is_forbidden(results):
                    self._on_forbidden(batch, str(results))
                    return
                if len(batch) > 1:  # refused as a whole: whoever is to blame must not harm the others
                    self._singly = len(batch)
                    self._waiting.extendleft(reversed(batch))
                    return
                results = [str(results).encode()]
            recorded_again = 0
            words = [result.decode(errors="replace") for result in results]
            refused = [outcome for outcome, word in zip(batch, words) if word.startswith(NOTHING_DONE)]
            if refused:
                self._on_forbidden(refused, next(word for word in words if word.startswith(NOTHING_DONE)))
            elif self._forbidden:
                self._on_allowed()
            for outcome, word in zip(batch, words):
                if word.startswith(NOTHING_DONE):
                    continue
                if outcome.again:  # should it have got dependents since, it is put back as an unknown claim
                    recorded_again += word == "ok"
                else:
                    self._on_result(outcome, word)
            if recorded_again:
                self._parent.log.warning(
                    "Worker %s: the server had lost %d outcomes that it acknowledged; they are recorded again",
                    self._parent.name,
                    recorded_again,
                )

        def on_lost(error: Exception) -> None:
            if is_blamed(error):
                self._on_lost(batch, error)
            else:
                self._waiting.extendleft(reversed(batch))

        return Exchange([self._parent.ledger.commit(batch)], on_replies, on_lost)

    def _on_allowed(self) -> None:
        self._forbidden, self._said_at = 0, 0.0
        self._parent.log.info("Worker %s: recording outcomes again", self._parent.name)

    def _on_forbidden(self, refused: list[Outcome], reason: str) -> None:
        """Keep outcomes until the user may record them, and take no jobs meanwhile, unless the worker ends."""
        now, name, log = time.monotonic(), self._parent.name, self._parent.log
        reason = message_of(reason).rstrip(".")
        if not self._forbidden:
            self._forbidden_since = now
        self._forbidden += 1
        if self._is_ending() and now - self._forbidden_since > self._parent.settings.guard_wait:
            for outcome in refused:
                self._receipt(outcome, False)
                if not outcome.again:
                    self._give_up(outcome)
            waited = now - self._forbidden_since
            self._on_given_up(f"cannot record outcomes: {reason}; tried for {waited:.0f} s (GUARD_WAIT)")
            return
        self._waiting.extendleft(reversed(refused))
        if not self._said_at or now - self._said_at >= SAY_AGAIN:
            self._said_at = now
            text = "Worker %s: cannot record outcomes of %d jobs: %s; taking no jobs until it can; %s"
            log.error(text, name, len(refused), reason, NEEDED_RIGHTS)
        pause = min(FORBIDDEN_FIRST * 2 ** min(self._forbidden - 1, 10), FORBIDDEN_RETRY)
        self._paused_until = now + pause
        self._parent.loop.call_later(pause, lambda: None)  # the loop's next turn sends it

    def _give_up(self, outcome: Outcome) -> None:
        claim = outcome.claim
        self._parent.log.error(
            "Worker %s: giving up on recording job %s; it runs again when its lease is over",
            claim.worker_name,
            claim.job_id,
        )
        # Otherwise it would be taken for a claim whose reply was lost, and put back at once, again and again.
        self._parent.command.submit(Exchange([self._parent.ledger.forget(claim)]))
        self._on_done()

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
                "and "
                "proto-max-bulk-len"
            )
            if outcome.again:
                self._parent.log.error("Worker %s: job %s: %s", self._parent.name, outcome.claim.job_id, reason)
            else:
                outcome.refusals = max(1, outcome.refusals)  # it has been tried again
                self._on_refused(outcome, reason)

    def _on_result(self, outcome: Outcome, result: str) -> None:
        claim = outcome.claim
        if result == "changed":
            # It has dependents. Who waits for the record goes on waiting.
            changes = outcome.changes + 1
            arguments = (changes > MAX_CHANGES, outcome.status, *flat(outcome.commands))
            self._add_task(Task("settle", claim, arguments, changes=changes, receipt_for=outcome.receipt_for))
        elif result in ("ok", "lost"):
            if result == "lost" and outcome.attempts == 1:  # sent again after a lost reply, it had been recorded
                self._parent.counters.lost_claims += 1
                self._parent.log.warning(
                    "Worker %s: outcome of job %s dropped: its claim is gone (cancelled, deleted or handed on)",
                    claim.worker_name,
                    claim.job_id,
                )
            else:
                self._parent.counters.recorded(outcome.status, outcome.commands[1].data)
            self._receipt(outcome, result == "ok" or outcome.attempts > 1)
            self._keep(outcome)
            self._on_done()
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
        claim, log = outcome.claim, self._parent.log
        outcome.refusals += 1
        text = f"The outcome could not be recorded: {reason}"
        log.error("Worker %s: job %s: %s", claim.worker_name, claim.job_id, text)
        if outcome.refusals == 1:
            self._waiting.append(outcome)
            return
        self._receipt(outcome, False)
        if outcome.refusals >= MAX_REFUSALS:
            self._give_up(outcome)
        elif outcome.status == "failed":
            bare = self._parent.ledger.bare_failure(claim, text)
            bare.refusals = outcome.refusals
            self._waiting.append(bare)
        else:
            self._add_task(Task("fail", claim, (text,)))

    def _receipt(self, outcome: Outcome, recorded: bool) -> None:
        if outcome.receipt_for is not None:
            slot, task = outcome.receipt_for
            outcome.receipt_for = None
            if slot.task is task:  # else its horse has died meanwhile
                self._reply(slot, ("committed", recorded))
