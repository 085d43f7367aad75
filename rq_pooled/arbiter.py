"""The parent's loop: gives claimed jobs to horses, commits what they answer, and ends in order.

Each turn serves what is ready (messages of horses, deaths, signals, control commands, timers, replies), then sends
everything that is due in one write. It never waits for the server: while a reply is on its way, horses and signals are
served.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from .channel import ChildChannel
from .claims import Claim
from .connections import Exchange
from .errors import TRY_AGAIN
from .guarding import Guarding
from .ledger import MAX_CLAIM_JOBS, Claimed, ClaimRequest
from .link import Link
from .orphans import Orphans
from .outcomes import Outcomes
from .parent import Parent
from .resp import Command
from .scheduling import Scheduling
from .slots import Slot, Slots, Task
from .stalls import Stalls
from .upkeep import Upkeep
from .wakeup import Wakeup

#: Writes under way at once. More make them smaller without making them faster (measured with 1, 2 and 4).
MAX_IN_FLIGHT = 1
#: Seconds after which a claim is tried again that the server refused (out of memory), or that found only ids whose
#: other execution is running.
REFUSED_RETRY, HELD_RETRY = 1.0, 0.25
#: Seconds within which a second SIGTERM or SIGINT counts as the same one (rq worker-pool plus Ctrl-C).
SAME_SIGNAL = 1.0
#: Seconds that a hard stop gives to what has ended and is not recorded yet.
RECORDING_TIME = 2.0


class Arbiter:
    """Runs one worker: the life of a job is claim, perform, commit, see DESIGN section 3.

    Args:
        parent: what there is one of; connected and registered already.
        names: the worker's slots.
        run_horse: runs in a forked child until it should end.
        burst: end when the queues are empty.
        max_jobs: end after so many jobs.
        max_idle_time: end after so many seconds without a job.
    """

    def __init__(
        self,
        parent: Parent,
        names: Sequence[str],
        run_horse: Callable[[ChildChannel], None],
        burst: bool,
        max_jobs: int | None,
        max_idle_time: float | None,
    ) -> None:
        self._parent = parent
        self._burst = burst
        self._max_jobs = max_jobs
        self._max_idle_time = max_idle_time
        self._slots = Slots(parent, names, run_horse, self._on_outcome, self._on_request)
        self._outcomes = Outcomes(parent, self._slots.tasks.append, self._slots.reply, self._on_job_done)
        self._wakeup = Wakeup(parent)
        self._upkeep = Upkeep(
            parent,
            self._slots,
            self._outcomes.renewed,
            lambda: self._wakeup.suspended,
            self._recover,
            lambda: self._stalls.on_answered(),
        )
        self._stalls = Stalls(parent, self._slots, self._upkeep.beat, self._upkeep.trusted_until)
        self._orphans = Orphans(parent, self._upkeep.settled)
        self._scheduling = Scheduling(parent, self._slots, parent.worker.with_scheduler)
        self._link = Link(parent, self._on_message, self._on_away, self._on_back, self._on_given_up)
        self._queues = {queue.key: queue for queue in parent.worker.queues}
        self._requests: list[Exchange] = []
        self._recover_due = False
        self._refused = False
        self._dispatched = 0
        self._idle_since = time.monotonic()
        self._first_signal_at: float | None = None
        self._stopping = False
        self._exit_code: int | None = None
        #: SIGHUP with code loaded that new horses would inherit: end in order, to be started anew.
        self.reload = False
        self.completed = 0
        self.stale_ids = 0

    # -- running -------------------------------------------------------------------------------------------------

    def run(self) -> int | None:
        """Work until there is a reason to end; return the exit code for the process, None for a regular end."""
        loop = self._parent.loop
        loop.on_signal(signal.SIGTERM, self._on_stop_signal)
        loop.on_signal(signal.SIGINT, self._on_stop_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            loop.on_signal(signal.SIGHUP, self._on_hangup)
        self._slots.start()
        self._link.start()
        self._wakeup.track()
        self._upkeep.start()
        self._stalls.start()
        self._orphans.start()
        self._scheduling.start()
        Guarding(self._parent).start()
        loop.call_every(self._parent.settings.block, self._on_block_over)
        try:
            while not self._finished():
                self._turn(0 if self._due() else self._patience())
        finally:
            self._slots.close()
            loop.close()
        return self._exit_code

    def _turn(self, timeout: float | None) -> None:
        self._parent.loop.turn(timeout=timeout)
        self._slots.assign_tasks()
        self._send()

    def _finished(self) -> bool:
        if self._exit_code is not None:
            return True
        if self._is_under_way():
            return False
        reason = self._reason_to_end()
        if reason is not None:
            self._parent.log.info("Worker %s: %s", self._parent.name, reason)
        return reason is not None

    def _is_under_way(self) -> bool:
        """Tell whether anything was begun that is not recorded yet; whatever ends it wakes the loop."""
        return bool(
            self._slots.busy()
            or self._outcomes
            or self._requests
            or self._recover_due
            or self._parent.command.in_flight
        )

    def _reason_to_end(self) -> str | None:
        """Return why it should end now that nothing is under way, in RQ's words, or None."""
        if self._stopping:
            return "stopping on request"
        if self._max_jobs is not None and self._dispatched >= self._max_jobs:
            return f"finished executing {self._dispatched} jobs, quitting"
        if self._burst and self._wakeup.suspended:
            return "suspended in burst mode, exiting"
        if self._burst and self._wakeup.asleep:
            return "done, quitting"
        if self._max_idle_time is not None and time.monotonic() - self._idle_since >= self._max_idle_time:
            return f"idle for {self._max_idle_time} seconds, quitting"
        return None

    def _patience(self) -> float | None:
        if self._max_idle_time is None or self._is_under_way():
            return None
        return max(0.0, self._idle_since + self._max_idle_time - time.monotonic())

    # -- what is due ---------------------------------------------------------------------------------------------

    def _can_send(self) -> bool:
        return self._parent.command.connected and self._parent.command.in_flight < MAX_IN_FLIGHT

    def _due(self) -> bool:
        """Tell whether something is to be sent, and can be."""
        return self._can_send() and bool(
            self._outcomes
            or self._requests
            or self._upkeep.heartbeat_due
            or self._upkeep.promote_due
            or self._scheduling.due
            or self._recover_due
            or (self._stalls.due and not self._stopping)
            or self._orphans.due
            or self._wakeup.look_due
            or self._may_claim()
        )

    def _send(self) -> None:
        """Send all that is due in one write: first what keeps claims alive, then results, then new claims."""
        self._link.check_lease()
        if not self._can_send():
            return
        exchanges: list[Exchange] = []
        if self._recover_due:
            exchanges.append(self._recovery())
        if self._upkeep.heartbeat_due:
            exchanges.append(self._upkeep.heartbeat())
        # One job at a time is RQ's strict order: what a job enqueues when it ends stands before the next claim.
        commit_first = bool(self._outcomes) and self._parent.settings.concurrency == 1
        if self._outcomes:
            exchanges.append(self._outcomes.commit())
        exchanges += self._requests
        self._requests.clear()
        if self._upkeep.promote_due:
            exchanges.append(self._upkeep.promotion())
        if self._stalls.due and not self._stopping:
            exchanges.append(self._stalls.exchange())
        if self._orphans.due:
            exchanges.append(self._orphans.exchange())
        if self._scheduling.due:
            exchanges.append(self._scheduling.exchange())
        if self._may_claim() and not commit_first:
            exchanges.append(self._claim())
        elif self._wakeup.look_due:
            exchanges.append(self._wakeup.look())
        if exchanges:
            self._parent.command.submit(*exchanges)
            self._link.check()

    def _on_outcome(self, outcome: Any) -> None:
        self._outcomes.add(outcome)

    def _on_job_done(self) -> None:
        self.completed += 1
        self._idle_since = time.monotonic()

    def _on_request(self, slot: Slot, kind: str, words: list[list[bytes]]) -> None:
        """Ask Redis on behalf of a horse, which waits for the answer."""
        task, horse = slot.task, slot.horse

        def reply(answer: Any) -> None:
            if slot.task is task and slot.horse is horse:  # else the one that asked has died
                self._slots.reply(slot, ("reply", answer))

        def ask_again(_error: Exception) -> None:
            if slot.task is task and slot.horse is horse:
                self._requests.insert(0, exchange.again())

        commands = [self._parent.scripts.reads(words)] if kind == "read" else [tuple(command) for command in words]

        def on_replies(replies: list[Any]) -> None:
            answer: Any
            if kind == "read":
                answer = str(replies[0]) if isinstance(replies[0], ResponseError) else replies[0]
            else:
                answer = [("error", str(reply)) if isinstance(reply, ResponseError) else reply for reply in replies]
            reply(answer)

        exchange = Exchange(commands, on_replies)
        if kind == "read":  # part of an outcome, which waits for the server to come back
            exchange.on_lost = ask_again
            self._requests.append(exchange)
        elif self._parent.command.connected:
            exchange.on_lost = lambda error: reply(str(error))
            self._requests.append(exchange)
        else:
            reply("the server is away")

    # -- claiming ------------------------------------------------------------------------------------------------

    def _free_slots(self) -> list[Slot]:
        free = [slot for slot in self._slots if slot.free and not slot.spare][:MAX_CLAIM_JOBS]
        if self._max_jobs is None:
            return free
        under_way = sum(slot.reserved for slot in self._slots)
        return free[: max(0, self._max_jobs - self._dispatched - under_way)]

    def _may_claim(self) -> bool:
        # Not while outcomes wait that did not fit into the commit: they would clear what a slot's next claim writes.
        waiting = self._slots.tasks or self._outcomes
        return self._wakeup.awake and not self._stopping and not waiting and bool(self._free_slots())

    def _claim(self) -> Exchange:
        worker, slots = self._parent.worker, self._free_slots()
        strategy = getattr(worker._dequeue_strategy, "value", worker._dequeue_strategy) or "default"
        keys = [queue.key for queue in worker._ordered_queues]
        command, request = self._parent.ledger.claim(keys, strategy, [slot.name for slot in slots])
        for slot in slots:
            slot.reserved = True

        def release() -> None:
            for slot in slots:
                slot.reserved = False

        def on_replies(replies: list[Any]) -> None:
            release()
            self._slots.renew_worn()
            self._on_claimed(slots, request, replies[0])

        def on_lost(_error: Exception) -> None:
            release()
            self._recover()  # what it may have taken is found in the claims hash when the server is back

        return Exchange([command], on_replies, on_lost)

    def _on_claimed(self, slots: list[Slot], request: ClaimRequest, reply: Any) -> None:
        parent, wakeup = self._parent, self._wakeup
        if isinstance(reply, ResponseError):  # out of memory, usually: commits go on
            if not self._refused:
                parent.log.error("Worker %s: cannot claim jobs: %s; trying again every second", parent.name, reply)
            self._refused = True
            wakeup.sleep()
            wakeup.wake_later(REFUSED_RETRY)
            return
        if self._refused:
            self._refused = False
            parent.log.info("Worker %s: claiming jobs again", parent.name)
        claimed = request.read(reply)
        self._note_suspension(claimed)
        if claimed.stale:
            self.stale_ids += len(claimed.stale)
            parent.counters.stale_ids += len(claimed.stale)
            parent.log.warning(
                "Worker %s: dropped %d ids without a job (deleted or expired while queued), such as %s",
                parent.name,
                len(claimed.stale),
                claimed.stale[0],
            )
        unwanted = []
        for slot, claim in zip(slots, claimed.claims):
            if slot.ready and not self._stopping:
                self._dispatch(slot, claim)
            else:  # its horse died meanwhile, or a shutdown began
                unwanted.append(claim)
        if unwanted:
            self._push_back(unwanted)
        wakeup.on_claimed(bool(claimed.claims))
        wakeup.leave_out(claimed.limited)
        if len(claimed.claims) < len(slots) and not claimed.stale:
            wakeup.sleep()
            if claimed.held:
                wakeup.wake_later(HELD_RETRY)

    def _dispatch(self, slot: Slot, claim: Claim) -> None:
        queue = self._queues.get(claim.queue_key)
        if queue is not None:
            self._parent.worker.reorder_queues(reference_queue=queue)
        self._parent.worker.log_claimed(claim)
        self._parent.counters.claimed(claim.raw.get(b"enqueued_at"), claim.created_at)
        self._dispatched += 1
        self._idle_since = time.monotonic()
        self._slots.give(slot, Task("perform", claim))

    def _push_back(self, claims: Sequence[Claim]) -> None:
        self._parent.command.submit(
            Exchange([self._parent.ledger.push_back(claims)], lambda _replies: self._wakeup.wake())
        )

    def _note_suspension(self, claimed: Claimed) -> None:
        if claimed.suspended == self._wakeup.suspended:
            return
        self._wakeup.suspended = claimed.suspended
        text = "suspended, run `rq resume` to resume" if claimed.suspended else "resumed"
        self._parent.log.info("Worker %s: %s", self._parent.name, text)
        self._upkeep.beat()  # shows the new state

    # -- control -------------------------------------------------------------------------------------------------

    def _on_message(self, woken: bool, commands: list[tuple[str, dict[str, Any]]]) -> None:
        if woken:
            self._wakeup.on_invalidation()
        for channel, payload in commands:
            self._on_command(channel, payload)

    def _on_command(self, channel: str, payload: dict[str, Any]) -> None:
        """Obey what rq.command sends; replaces its handlers, which know one horse and use signals."""
        log, name = self._parent.log, payload.get("command")
        slots = [slot for slot in self._slots.regular() if channel == f"rq:pubsub:{slot.name}"]
        if name == "shutdown":
            log.info("Received shutdown command")
            self.reload = False
            self._stop()
        elif name == "kill-horse":
            for slot in slots:
                log.info("Received kill horse command%s", "" if slot.claim else "; not working, ignored")
                if slot.claim is not None:
                    self._slots.kill(slot)
        elif name == "stop-job":
            self._stop_job(str(payload.get("job_id")), slots)

    def _stop_job(self, job_id: str, slots: list[Slot]) -> None:
        for slot in slots:
            self._slots.receive(slot)
            if slot.claim is not None and slot.claim.job_id == job_id and slot.task and slot.task.kind == "perform":
                slot.stopped = True
                self._slots.kill(slot)
                return
        self._parent.log.info("Not working on job %s, command ignored.", job_id)

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
        elif not self._stopping:
            self._parent.log.info("Worker %s: SIGHUP: finishing what runs, then starting anew", self._parent.name)
            self.reload = True
            self._stop()

    def _stop(self) -> None:
        """Begin a warm shutdown: claim nothing more, finish what runs. Doing it again changes nothing."""
        if not self._stopping:
            self._stopping = True
            timeout = self._parent.settings.shutdown_timeout
            if timeout is not None:
                self._parent.loop.call_later(timeout, self._stop_hard)
            self._scheduling.stop()
            self._slots.forget_maintenance()
            self._parent.worker.note_warm_shutdown([slot.name for slot in self._slots.regular() if slot.claim])

    def _stop_hard(self) -> None:
        """End now: kill the horses and put their jobs back, so that they run again elsewhere."""
        parent = self._parent
        again = self._slots.interrupt()
        # Jobs that have ended are recorded, those with dependents by a horse; that takes moments.
        deadline = time.monotonic() + RECORDING_TIME
        while (self._slots.busy() or self._outcomes) and parent.command.connected and time.monotonic() < deadline:
            self._turn(0.05)
        self._slots.close()  # waits for their deaths: somebody else may be given their jobs
        again += self._slots.claims()
        self._exit_code = 0
        try:
            while self._outcomes:
                self._await(self._outcomes.commit())
            # What was under way before is answered before this; it also tells what a lost claim took.
            self._await(self._recovery(again))
            if again:
                self._await(Exchange([parent.ledger.push_back(again, begun=True)], self._on_pushed_back))
            parent.log.warning("Worker %s: cold shut down; %d jobs go back to their queues", parent.name, len(again))
        except (RedisError, OSError) as error:
            self._end_away(error, again)

    def _on_pushed_back(self, replies: list[Any]) -> None:
        if isinstance(replies[0], ResponseError):
            self._parent.log.error(
                "Worker %s: jobs were not put back (%s); they run again when their leases are over",
                self._parent.name,
                replies[0],
            )

    def _end_away(self, error: Exception, interrupted: Sequence[Claim] = ()) -> None:
        """End without the server, naming the jobs that others will run again once their leases are over."""
        claims = [*interrupted, *self._slots.claims(), *self._outcomes.claims()]
        self._parent.log.error(
            "Worker %s: ending while the server is away (%s); jobs that will run again: %s",
            self._parent.name,
            error,
            ", ".join(claim.job_id for claim in claims) or "none",
        )
        self._exit_code = TRY_AGAIN

    def _await(self, exchange: Exchange) -> None:
        """Send an exchange and wait for its replies, at most SOCKET_TIMEOUT."""
        try:
            replies = self._parent.command.execute(exchange.commands)
        except (RedisError, OSError) as error:
            exchange.on_lost(error)
            raise
        exchange.on_replies(replies)

    # -- the server is away and back -----------------------------------------------------------------------------

    def _on_block_over(self) -> None:
        """Probe a connection that has been silent, and look once in case a wake-up was lost."""
        self._link.probe()
        self._wakeup.wake()

    def _on_away(self, error: Exception) -> None:
        """Answer the requests of horses that were not sent yet, as if they had been."""
        self._outcomes.note_away()
        requests, self._requests = self._requests, []
        for exchange in reversed(requests):
            exchange.on_lost(error)

    def _on_back(self) -> None:
        """Heartbeat first, then commits, then claims: the order of ``_send``."""
        self._outcomes.send_again()
        self._recover()
        self._upkeep.beat()
        self._wakeup.track()

    def _on_given_up(self, error: Exception) -> None:
        self._end_away(error)

    def _recover(self) -> None:
        self._recover_due = True

    def _recovery(self, more: Sequence[Claim] = ()) -> Exchange:
        """Put back what a claim took whose reply was lost: what is noted of this worker, and not known here.

        Args:
            more: claims that are known, too.
        """
        self._recover_due = False
        known = [claim.member for claim in (*self._slots.claims(), *self._outcomes.claims(), *more)]
        commands: list[Command] = [self._parent.ledger.known_claims()]

        def on_replies(replies: list[Any]) -> None:
            unknown = [] if isinstance(replies[0], ResponseError) else self._parent.ledger.unknown(replies[0], known)
            if unknown:
                self._parent.log.warning(
                    "Worker %s: putting back %d jobs whose claim was not answered", self._parent.name, len(unknown)
                )
                self._push_back(unknown)

        def on_lost(_error: Exception) -> None:
            self._recover_due = True

        return Exchange(commands, on_replies, on_lost)
