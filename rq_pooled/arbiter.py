"""The parent's loop: gives claimed jobs to horses, commits what they answer, and keeps both sides alive.

Each turn serves what is ready (messages of horses, deaths, signals, control commands, timers, replies), then sends
everything that is due in one write: heartbeat, commits, reads for horses, promotion, a claim. It never waits for the
server: while a reply is on its way, horses and signals are served.
"""

from __future__ import annotations

import random
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from resource import struct_rusage
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from . import hooks
from .backoff import reconnect_delays
from .channel import ChildChannel
from .claims import Claim
from .config import Settings
from .connections import CommandConnection, ListenConnection, OnLost, OnReplies
from .errors import TRY_AGAIN
from .ledger import MAX_CLAIM_JOBS, Claimed, ClaimRequest, Ledger, Outcome
from .loop import Loop, Timer
from .prefork import Horse, Prefork
from .scripts import Command, Scripts
from .slots import Slot, Task, job_timeout

if TYPE_CHECKING:
    from .worker import Worker

#: Seconds between looks at the queues where the server offers no client tracking.
POLL_INTERVAL = 0.05
#: Seconds after which queues are looked at again whose only ids wait for another execution of theirs to end.
HELD_INTERVAL = 0.25
#: Seconds between promotions while the scheduler locks are ours, as RQ's scheduler, and while they are not.
PROMOTE_INTERVAL, PROMOTE_RETRY = 1.0, 15.0
#: Longest and per-miss delay before a woken worker claims, once others were faster several times in a row: a push
#: wakes every idle worker, and a hundred of them must not ask at once for one job.
HERD_DELAY, HERD_STEP = 0.02, 0.001
#: Outcomes in one commit.
MAX_COMMIT = 50
#: Seconds between two horses of a slot whose horses die before they are ready, doubling up to the second figure.
RESPAWN_BASE, RESPAWN_CAP = 0.1, 30.0
#: Seconds within which a second SIGTERM or SIGINT counts as the same one (rq worker-pool plus Ctrl-C).
SAME_SIGNAL = 1.0

#: Exchanges under way at once: one is being answered while the next is on its way. More would make them smaller.
MAX_IN_FLIGHT = 2
#: Seconds between looks whether a reply is overdue.
DEADLINE_INTERVAL = 0.5

_Due = tuple[list[Command], OnReplies, OnLost]


class Arbiter:
    """Runs one worker: the life of a job is claim, perform, commit, see DESIGN section 3.

    Args:
        worker: RQ's side: names, queues, logging, strategy, and what becomes a horse.
        settings, scripts, ledger: as the names say.
        command, listen: the connections, connected and registered already.
        names: the worker's slots.
        run_horse: runs in a forked child until it should end.
    """

    def __init__(
        self,
        worker: Worker,
        settings: Settings,
        scripts: Scripts,
        ledger: Ledger,
        command: CommandConnection,
        listen: ListenConnection,
        names: Sequence[str],
        run_horse: Callable[[ChildChannel], None],
    ) -> None:
        self._worker = worker
        self._log = worker.log
        self._settings = settings
        self._scripts = scripts
        self._ledger = ledger
        self._command = command
        self._listen = listen
        self._loop = Loop()
        self._prefork = Prefork(
            self._loop, lambda _slot, channel: run_horse(channel), self._close_in_child, self._on_message, self._on_exit
        )
        self._slots = [Slot(name) for name in names]
        self._tasks: deque[Task] = deque()
        self._outcomes: deque[Outcome] = deque()
        self._requests: list[tuple[Slot, str, list[list[bytes]]]] = []
        self._queues = {queue.key: queue for queue in worker.queues}
        # What may be waiting in the queues, as far as is known.
        self._maybe_jobs = True
        self._look_due = False
        self._tracking = False
        self._suspended = False
        self._held = False
        self._misses = 0
        self._wake_timer: Timer | None = None
        # What is due at the next round trip.
        self._heartbeat_due = False
        self._promote_due = True
        self._recover_due = False
        # How it ends.
        self.burst = False
        self.max_jobs: int | None = None
        self.max_idle_time: float | None = None
        self.completed = 0
        self.lost_claims = 0
        self.stale_ids = 0
        self._dispatched = 0
        self._idle_since = time.monotonic()
        self._stop_signal_at: float | None = None
        self._stopping = False
        self._ending = False
        self._exit_code: int | None = None
        self._away_since: float | None = None
        self._reconnects = reconnect_delays(settings.reconnect_base, settings.reconnect_cap)
        self._failed_reconnects = 0

    # -- running -------------------------------------------------------------------------------------------------

    def run(self) -> int | None:
        """Work until there is a reason to end; return the exit code for the process, None for a regular end."""
        loop, settings = self._loop, self._settings
        loop.on_signal(signal.SIGTERM, self._on_stop_signal)
        loop.on_signal(signal.SIGINT, self._on_stop_signal)
        for slot in self._slots:
            self._spawn(slot)
        loop.watch(self._listen, self._on_listen)
        loop.watch(self._command, self._on_command_readable)
        self._track()
        loop.call_every(DEADLINE_INTERVAL, self._check_deadline)
        loop.call_every(settings.heartbeat_interval, self._set_heartbeat_due)
        loop.call_every(settings.block, self._probe)
        self._plan_maintenance()
        try:
            while not self._finished():
                loop.turn(timeout=0 if self._has_work() else self._patience())
                self._assign_tasks()
                self._exchange()
        finally:
            self._ending = True
            self._prefork.close()
            loop.close()
        return self._exit_code

    def _finished(self) -> bool:
        if self._exit_code is not None:
            return True
        if self._outstanding():
            return False
        if self._stopping:
            return True
        if self.max_jobs is not None and self._dispatched >= self.max_jobs:
            self._log.info("Worker %s: finished executing %d jobs, quitting", self._worker.name, self._dispatched)
            return True
        if self.burst and self._suspended:
            self._log.info("Worker %s: suspended in burst mode, exiting", self._worker.name)
            return True
        if self.burst and not (self._maybe_jobs or self._look_due or self._held):
            self._log.info("Worker %s: done, quitting", self._worker.name)
            return True
        if self.max_idle_time is not None and time.monotonic() - self._idle_since >= self.max_idle_time:
            self._log.info("Worker %s: idle for %d seconds, quitting", self._worker.name, self.max_idle_time)
            return True
        return False

    def _outstanding(self) -> bool:
        """Tell whether anything was begun that is not recorded yet."""
        return bool(
            self._tasks
            or self._outcomes
            or self._requests
            or self._command.in_flight
            or any(slot.task for slot in self._slots)
        )

    def _has_work(self) -> bool:
        """Tell whether something can be sent now."""
        if not self._command.connected or self._command.in_flight >= MAX_IN_FLIGHT:
            return False
        return bool(
            self._outcomes
            or self._requests
            or self._heartbeat_due
            or self._promote_due
            or self._recover_due
            or self._look_due
            or self._may_claim()
        )

    def _patience(self) -> float | None:
        if self.max_idle_time is None:
            return None
        return max(0.0, self._idle_since + self.max_idle_time - time.monotonic())

    # -- horses --------------------------------------------------------------------------------------------------

    def _spawn(self, slot: Slot) -> None:
        hooks.before_fork()
        slot.ready = False
        slot.end()
        slot.horse = self._prefork.spawn(self._slots.index(slot))

    def _slot_of(self, horse: Horse) -> Slot | None:
        return next((slot for slot in self._slots if slot.horse is horse), None)

    def _close_in_child(self) -> None:
        self._command.close_in_child()
        self._listen.close_in_child()

    def _on_message(self, horse: Horse, message: tuple[Any, ...]) -> None:
        slot = self._slot_of(horse)
        if slot is None:  # a horse on its way out
            return
        kind, *rest = message
        if kind == "outcome":
            self._on_outcome(slot, *rest)
        elif kind == "free":
            self._on_free(slot, *rest)
        elif kind == "phase":
            self._set_deadline(slot, *rest)
        elif kind in ("read", "relay"):
            self._requests.append((slot, kind, rest[0]))

    def _on_outcome(
        self, slot: Slot, status: str, guards: Any, commands: Any, own_commands: int, wants_receipt: bool
    ) -> None:
        if slot.claim is None:
            return
        self._outcomes.append(
            Outcome(slot.claim, status, guards, commands, own_commands, slot if wants_receipt else None)
        )
        slot.delivered = True
        # Cleaning up takes moments; webhooks have timeouts of their own.
        self._set_deadline(slot, -1 if wants_receipt else 0)

    def _on_free(self, slot: Slot, leaving: bool) -> None:
        slot.end()
        slot.stillborn = 0
        if slot.spare and not self._tasks:
            leaving = True
        if not leaving:
            slot.ready = True
        elif slot.spare:
            self._slots.remove(slot)
            if slot.horse is not None:
                self._prefork.retire(slot.horse)
        else:
            self._spawn(slot)  # the old horse ends by itself and is reaped as a stranger to the slot

    def _on_exit(self, horse: Horse, status: int, rusage: struct_rusage) -> None:
        slot = self._slot_of(horse)
        if slot is None or self._ending:
            return
        slot.horse = None
        task, delivered, stopped, was_ready = slot.task, slot.delivered, slot.stopped, slot.ready
        slot.ready = False
        slot.end()
        if task is not None and not delivered:
            self._on_task_died(task, horse.pid, status, rusage, stopped)
        if slot.spare:
            self._slots.remove(slot)
        elif task is None and not was_ready:
            slot.stillborn += 1
            delay = min(RESPAWN_CAP, RESPAWN_BASE * 2 ** (slot.stillborn - 1))
            self._log.error("Worker %s: a horse ended before it was ready (status %d)", slot.name, status)
            self._loop.call_later(delay, lambda: self._spawn(slot))
        else:
            self._spawn(slot)

    def _on_task_died(self, task: Task, pid: int, status: int, rusage: struct_rusage, stopped: bool) -> None:
        claim = task.claim
        if claim is None:
            self._log.error("Worker %s: horse %d died during %s", self._worker.name, pid, task.kind)
        elif task.kind == "perform":
            self._tasks.append(Task("bury", claim, (pid, status, tuple(rusage), stopped)))
        elif task.deaths == 0:
            task.deaths = 1
            self._tasks.append(task)
        elif task.kind == "settle":  # the job itself succeeded or failed as recorded: that must not be lost
            _status, commands = task.arguments
            self._log.error("Worker %s: dependents of job %s were not enqueued", claim.worker_name, claim.job_id)
            self._outcomes.append(Outcome(claim, _status, (), commands, len(commands)))
        else:
            reason = f"Work-horse terminated unexpectedly; waitpid returned {status}; so did the one that recorded it"
            self._outcomes.append(self._ledger.bare_failure(claim, reason))

    def _set_deadline(self, slot: Slot, timeout: float) -> None:
        """Have the horse killed KILL_GRACE seconds after ``timeout``; -1 never."""
        if timeout < 0:
            slot.set_deadline(None)
            return
        horse = slot.horse
        assert horse is not None

        def kill() -> None:
            self._log.warning("Worker %s: killing horse %d: %gs past its timeout", slot.name, horse.pid, grace)
            self._prefork.kill(horse)

        grace = self._settings.kill_grace
        slot.set_deadline(self._loop.call_later(timeout + grace, kill))

    # -- tasks ---------------------------------------------------------------------------------------------------

    def _assign_tasks(self) -> None:
        """Give tasks other than jobs to horses that are ready; fork a spare one where all are busy with jobs."""
        for slot in self._slots:
            if not self._tasks:
                return
            if slot.ready and not slot.reserved:
                self._give(slot, self._tasks.popleft())
        urgent = [task for task in self._tasks if task.claim is not None]
        if urgent and all(slot.task is not None for slot in self._slots):
            spare = Slot(self._worker.name, spare=True)
            self._slots.append(spare)
            self._spawn(spare)

    def _give(self, slot: Slot, task: Task) -> None:
        assert slot.horse is not None
        slot.begin(task)
        if task.kind == "perform" and task.claim is not None:
            self._set_deadline(slot, job_timeout(task.claim, self._worker.queue_class.DEFAULT_TIMEOUT))
        self._prefork.send(slot.horse, task.message())

    def _plan_maintenance(self) -> None:
        def maintain() -> None:
            if not self._stopping and not any(task.kind == "maintain" for task in self._tasks):
                self._tasks.append(Task("maintain"))

        maintain()
        self._loop.call_every(max(1, self._worker.maintenance_interval), maintain)

    # -- the round trip ------------------------------------------------------------------------------------------

    def _exchange(self) -> None:
        """Send all that is due."""
        if not self._command.connected or self._command.in_flight >= MAX_IN_FLIGHT:
            return
        due: list[_Due] = []
        if self._recover_due:
            due.append(self._due_recovery())
        if self._heartbeat_due:
            due.append(self._due_heartbeat())
        if self._outcomes:
            due.append(self._due_commit())
        due += [self._due_request(*request) for request in self._requests]
        self._requests.clear()
        if self._promote_due:
            due.append(self._due_promotion())
        if self._may_claim():
            due.append(self._due_claim())
        elif self._look_due:
            due.append(self._due_look())
        if not due:
            return

        def on_replies(replies: list[Any]) -> None:
            for commands, on_mine, _ in due:
                mine, replies = replies[: len(commands)], replies[len(commands) :]
                on_mine(mine)

        def on_lost(error: Exception) -> None:
            for _, _, on_mine_lost in reversed(due):
                on_mine_lost(error)

        self._command.submit([command for commands, _, _ in due for command in commands], on_replies, on_lost)
        if not self._command.connected:
            self._on_server_lost(RedisConnectionError("connection lost"))

    def _on_command_readable(self) -> None:
        if self._command.connected and (error := self._command.drain()) is not None:
            self._on_server_lost(error)

    def _check_deadline(self) -> None:
        if (error := self._command.check_deadline()) is not None:
            self._on_server_lost(error)

    def _due_commit(self) -> _Due:
        batch = [self._outcomes.popleft() for _ in range(min(MAX_COMMIT, len(self._outcomes)))]
        for outcome in batch:
            outcome.attempts += 1

        def on_replies(replies: list[Any]) -> None:
            results = replies[0]
            if isinstance(results, ResponseError):
                results = [str(results).encode()] * len(batch)
            for outcome, result in zip(batch, results):
                self._on_committed(outcome, result.decode(errors="replace"))

        def on_lost(_error: Exception) -> None:
            self._outcomes.extendleft(reversed(batch))

        return [self._ledger.commit(batch)], on_replies, on_lost

    def _on_committed(self, outcome: Outcome, result: str) -> None:
        claim = outcome.claim
        if result == "changed":
            commands = list(outcome.commands[: outcome.own_commands])
            if outcome.receipt_for is not None:
                outcome.receipt_for = self._receipt(outcome, True)
            self._tasks.append(Task("settle", claim, (outcome.status, commands)))
            return
        if result not in ("ok", "lost"):
            self._on_refused(outcome, result)
            return
        if result == "lost" and outcome.attempts == 1:
            self.lost_claims += 1
            self._log.warning(
                "Worker %s: outcome of job %s dropped: its claim is gone (cancelled, deleted or handed on)",
                claim.worker_name,
                claim.job_id,
            )
        self.completed += 1
        self._idle_since = time.monotonic()
        self._receipt(outcome, result == "ok")

    def _on_refused(self, outcome: Outcome, reason: str) -> None:
        """Try an outcome that the server refused once more, then fail its job alone, with the reason."""
        claim = outcome.claim
        outcome.errors.append(reason)
        self._log.error("Worker %s: outcome of job %s refused: %s", claim.worker_name, claim.job_id, reason)
        if len(outcome.errors) == 1:
            self._outcomes.append(outcome)
            return
        self._receipt(outcome, False)
        if outcome.status == "failed":
            if len(outcome.errors) < 4:
                bare = self._ledger.bare_failure(claim, f"The outcome could not be recorded: {reason}")
                bare.errors = [*outcome.errors, reason]
                self._outcomes.append(bare)
            else:
                self._log.error("Worker %s: giving up on recording job %s", claim.worker_name, claim.job_id)
            return
        self._tasks.append(Task("fail", claim, (f"The outcome could not be recorded: {reason}",)))

    def _receipt(self, outcome: Outcome, recorded: bool) -> None:
        """Tell the horse that waits for it whether its outcome was recorded."""
        slot, outcome.receipt_for = outcome.receipt_for, None
        if slot is not None and slot.horse is not None and slot.delivered:
            self._prefork.send(slot.horse, ("committed", recorded))

    def _due_request(self, slot: Slot, kind: str, words: list[list[bytes]]) -> _Due:
        """Ask Redis on behalf of a horse, which waits for the answer."""
        commands = [self._scripts.reads(words)] if kind == "read" else [tuple(command) for command in words]

        def answer(replies: Any) -> None:
            if slot.horse is not None and slot.task is not None:
                self._prefork.send(slot.horse, ("reply", replies))

        def on_replies(replies: list[Any]) -> None:
            if kind == "read":
                answer(str(replies[0]) if isinstance(replies[0], ResponseError) else replies[0])
            else:
                answer([("error", str(reply)) if isinstance(reply, ResponseError) else reply for reply in replies])

        return commands, on_replies, lambda error: answer(str(error))

    # -- claiming ------------------------------------------------------------------------------------------------

    def _free_slots(self) -> list[Slot]:
        free = [slot for slot in self._slots if slot.ready and not slot.reserved and not slot.spare][:MAX_CLAIM_JOBS]
        return free if self.max_jobs is None else free[: max(0, self.max_jobs - self._dispatched)]

    def _may_claim(self) -> bool:
        return (
            self._maybe_jobs
            and not self._stopping
            and self._wake_timer is None
            and self._command.connected
            and not self._tasks
            and any(self._free_slots())
        )

    def _due_claim(self) -> _Due:
        worker = self._worker
        slots = self._free_slots()
        keys = [queue.key for queue in worker._ordered_queues]
        strategy = str(getattr(worker._dequeue_strategy, "value", worker._dequeue_strategy) or "default")
        command, request = self._ledger.claim(keys, strategy, [slot.name for slot in slots])
        for slot in slots:
            slot.reserved = True

        def release() -> None:
            for slot in slots:
                slot.reserved = False

        def on_replies(replies: list[Any]) -> None:
            release()
            self._on_claimed(slots, request, replies[0])

        # What a lost claim took is found in the claims hash when the server is back.
        return [command], on_replies, lambda _error: release()

    def _on_claimed(self, slots: list[Slot], request: ClaimRequest, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            # Out of memory is the usual one: commits go on, claims are tried again when something has changed.
            self._log.error("Worker %s: cannot claim jobs: %s", self._worker.name, reply)
            self._sleep(retry=1.0)
            return
        claimed = request.read(reply)
        self._held = bool(claimed.held)
        self._note_suspension(claimed)
        if claimed.stale:
            self.stale_ids += len(claimed.stale)
            self._log.warning(
                "Worker %s: dropped %d ids without a job (deleted or expired while queued), such as %s",
                self._worker.name,
                len(claimed.stale),
                claimed.stale[0],
            )
        for slot, claim in zip(slots, claimed.claims):
            if slot.ready:
                self._dispatch(slot, claim)
            else:  # its horse died meanwhile
                self._push_back([claim])
        self._misses = 0 if claimed.claims else self._misses + 1
        if len(claimed.claims) < len(slots) and not claimed.stale:
            self._sleep(retry=HELD_INTERVAL if claimed.held else None)

    def _push_back(self, claims: Sequence[Claim]) -> None:
        self._command.submit([self._ledger.push_back(claims)], lambda _replies: self._wake())

    def _dispatch(self, slot: Slot, claim: Claim) -> None:
        queue = self._queues.get(claim.queue_key)
        if queue is not None:
            self._worker.reorder_queues(reference_queue=queue)
        self._worker.log_claimed(claim)
        self._dispatched += 1
        self._idle_since = time.monotonic()
        self._give(slot, Task("perform", claim))

    def _note_suspension(self, claimed: Claimed) -> None:
        if claimed.suspended and not self._suspended:
            self._log.info("Worker %s: suspended, run `rq resume` to resume", self._worker.name)
        if self._suspended and not claimed.suspended:
            self._log.info("Worker %s: resumed", self._worker.name)
        if claimed.suspended != self._suspended:
            self._suspended = claimed.suspended
            self._heartbeat_due = True  # shows the new state

    # -- sleeping and waking -------------------------------------------------------------------------------------

    def _sleep(self, retry: float | None = None) -> None:
        """Claim no more until woken, or until ``retry`` seconds from now; before that, look once and register."""
        self._maybe_jobs = False
        self._look_due = True
        if retry is not None:
            self._loop.call_later(retry, self._wake)
            self._look_due = False

    def _due_look(self) -> _Due:
        """Look at the queues and have the server say when they change: reading and registering are one step."""
        self._look_due = False
        optin: list[Command] = [("CLIENT", "CACHING", "YES")] if self._tracking else []
        commands: list[Command] = [*optin, ("EXISTS", *self._queues), *optin, ("EXISTS", "rq:suspended")]

        def on_replies(replies: list[Any]) -> None:
            waiting, suspended = replies[len(optin)], replies[-1]
            if any(isinstance(reply, ResponseError) for reply in replies):
                self._log.warning("Worker %s: no wake-ups from the server; polling", self._worker.name)
                self._tracking, self._maybe_jobs = False, True
            elif bool(suspended) != self._suspended or (waiting and not suspended):
                self._maybe_jobs = True
            elif not self._tracking:
                self._loop.call_later(POLL_INTERVAL, self._look)

        return commands, on_replies, lambda _error: None

    def _look(self) -> None:
        if not self._maybe_jobs:
            self._look_due = True

    def _wake(self) -> None:
        self._maybe_jobs = True

    def _on_woken(self) -> None:
        delay = random.uniform(0, min(HERD_DELAY, HERD_STEP * max(0, self._misses - 2)))
        if delay < HERD_STEP:
            self._wake()
        elif self._wake_timer is None:
            self._wake_timer = self._loop.call_later(delay, self._on_herd_delay_over)

    def _on_herd_delay_over(self) -> None:
        self._wake_timer = None
        self._wake()

    def _track(self) -> None:
        """Switch on tracking for the command connection, redirected to the listening one, where the server can."""
        self._tracking = False
        if self._command.connected and self._listen.connected and self._listen.client_id is not None:
            commands: list[Command] = [
                ("CLIENT", "TRACKING", "OFF"),
                ("CLIENT", "TRACKING", "ON", "REDIRECT", self._listen.client_id, "OPTIN"),
            ]
            self._command.submit(commands, lambda replies: self._on_tracking(not isinstance(replies[1], ResponseError)))
        else:
            self._on_tracking(False)

    def _on_tracking(self, tracking: bool) -> None:
        self._tracking = tracking
        self._log.info(
            "Worker %s: 2 connections: command, and listen for control commands%s",
            self._worker.name,
            " and wake-ups (client tracking)" if tracking else f"; polling every {POLL_INTERVAL * 1000:g} ms",
        )
        self._maybe_jobs = True

    # -- control -------------------------------------------------------------------------------------------------

    def _on_listen(self) -> None:
        try:
            woken, commands = self._listen.drain()
        except (RedisError, OSError) as error:
            self._on_listen_lost(error)
            return
        if woken:
            self._on_woken()
        for channel, payload in commands:
            self._on_command(channel, payload)

    def _on_command(self, channel: str, payload: dict[str, Any]) -> None:
        """Obey what rq.command sends; replaces its handlers, which know one horse and use signals."""
        name = payload.get("command")
        slots = [slot for slot in self._slots if channel == f"rq:pubsub:{slot.name}" and not slot.spare]
        if name == "shutdown":
            self._log.info("Received shutdown command")
            self.stop()
        elif name == "kill-horse":
            for slot in slots:
                if slot.horse is not None and slot.claim is not None:
                    self._log.info("Received kill horse command: killing horse %d", slot.horse.pid)
                    self._prefork.kill(slot.horse)
        elif name == "stop-job":
            self._stop_job(str(payload.get("job_id")), slots)

    def _stop_job(self, job_id: str, slots: list[Slot]) -> None:
        for slot in slots:
            if slot.horse is not None and slot.claim is not None and slot.claim.job_id == job_id:
                self._prefork.receive(slot.horse)  # an outcome that is here already wins
                if slot.claim is not None and slot.task is not None and slot.task.kind == "perform":
                    slot.stopped = True
                    self._prefork.kill(slot.horse)
                return
        self._log.info("Not working on job %s, command ignored.", job_id)

    def stop(self) -> None:
        """Begin a warm shutdown: claim nothing more, finish what runs. Doing it again changes nothing."""
        if not self._stopping:
            self._stopping = True
            self._worker.note_warm_shutdown(
                self._command if self._command.connected else None, [slot.name for slot in self._slots if slot.claim]
            )

    def _on_stop_signal(self) -> None:
        now = time.monotonic()
        if self._stop_signal_at is None:
            self._stop_signal_at = now
            self.stop()
        elif now - self._stop_signal_at >= SAME_SIGNAL:
            self._stop_hard()

    def _stop_hard(self) -> None:
        """End now: kill the horses and put their jobs back, so that they run again elsewhere."""
        running = [slot.claim for slot in self._slots if slot.claim is not None and slot.claim.raw]
        running += [task.claim for task in self._tasks if task.claim is not None and task.kind == "bury"]
        self._log.warning("Worker %s: cold shut down; %d jobs go back to their queues", self._worker.name, len(running))
        for slot in self._slots:
            if slot.horse is not None:
                self._prefork.receive(slot.horse)  # what has ended has ended
        running = [c for c in running if all(c is not outcome.claim for outcome in self._outcomes)]
        for slot in self._slots:
            if slot.horse is not None:
                self._prefork.kill(slot.horse)
        self._exit_code = 0
        try:
            if self._outcomes:
                self._command.execute([self._ledger.commit(self._outcomes)])
            if running:
                self._command.execute([self._ledger.push_back(running)])
        except (RedisError, OSError) as error:
            self._exit_code = TRY_AGAIN
            names = ", ".join(claim.job_id for claim in running)
            self._log.error("Worker %s: the server is away (%s); these jobs run again: %s", self._worker.name, error, names)

    # -- staying alive -------------------------------------------------------------------------------------------

    def _set_heartbeat_due(self) -> None:
        self._heartbeat_due = True

    def _due_heartbeat(self) -> _Due:
        self._heartbeat_due = False
        now = time.monotonic()
        idle = "suspended" if self._suspended else "idle"
        slots = [
            (slot.name, "" if slot.claim else idle, round(now - slot.since, 3) if slot.claim else 0.0)
            for slot in self._slots
            if not slot.spare
        ]
        claims = [slot.claim for slot in self._slots if slot.claim is not None]
        claims += [outcome.claim for outcome in self._outcomes]
        claims += [task.claim for task in self._tasks if task.claim is not None]
        command = self._ledger.heartbeat(self._worker.worker_ttl + 60, slots, claims)

        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError):
                self._log.error("Worker %s: heartbeat refused: %s", self._worker.name, replies[0])
            elif replies[0][0]:
                missing = [name.decode() for name in replies[0][0]]
                self._log.warning("Worker %s: registering again: the server has forgotten %s", self._worker.name, missing)
                self._command.submit([self._worker.registration(missing, again=True)], lambda _replies: None)

        return [command], on_replies, lambda _error: None

    def _due_promotion(self) -> _Due:
        self._promote_due = False

        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError):
                self._log.error("Worker %s: cannot enqueue scheduled jobs: %s", self._worker.name, replies[0])
                self._loop.call_later(PROMOTE_RETRY, self._set_promote_due)
                return
            locks, _moved, more = replies[0]
            delay = 0.0 if more else PROMOTE_INTERVAL if locks else PROMOTE_RETRY
            self._loop.call_later(delay, self._set_promote_due)

        return [self._worker.promotion()], on_replies, lambda _error: self._set_promote_due()

    def _set_promote_due(self) -> None:
        self._promote_due = True

    def _probe(self) -> None:
        """Find out whether a connection on which nothing comes is alive, and look once in case a wake-up was lost."""
        if self._listen.connected:
            try:
                self._listen.ping()
            except (RedisError, OSError) as error:
                self._on_listen_lost(error)
                return
            self._loop.call_later(self._settings.socket_timeout, self._check_probe)
        self._maybe_jobs = True

    def _check_probe(self) -> None:
        if self._listen.connected and self._listen.unanswered_pings:
            self._on_listen_lost(RedisTimeoutError("no answer to PING"))

    # -- losing and finding the server ---------------------------------------------------------------------------

    def _on_server_lost(self, error: Exception) -> None:
        self._loop.unwatch(self._command)
        self._command.lose(error)
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._log.error("Worker %s: lost the server (%s); reconnecting", self._worker.name, error)
            self._reconnects = reconnect_delays(self._settings.reconnect_base, self._settings.reconnect_cap)
            self._failed_reconnects = 0
            self._loop.call_later(next(self._reconnects), self._reconnect)

    def _on_listen_lost(self, error: Exception) -> None:
        self._loop.unwatch(self._listen)
        self._listen.close()
        self._on_server_lost(error)

    def _reconnect(self) -> None:
        """Connect both again. Then: what claims are there, heartbeat, commits, claims, in this order."""
        try:
            self._command.connect()
            self._loop.unwatch(self._listen)
            self._listen.connect()
        except (RedisError, OSError) as error:
            self._command.close()
            self._failed_reconnects += 1
            if 0 < self._settings.reconnect_attempts <= self._failed_reconnects:
                self._log.error("Worker %s: gave up after %d attempts: %s", self._worker.name, self._failed_reconnects, error)
                self._exit_code = TRY_AGAIN
                return
            self._loop.call_later(next(self._reconnects), self._reconnect)
            return
        self._loop.watch(self._command, self._on_command_readable)
        self._loop.watch(self._listen, self._on_listen)
        away, self._away_since = time.monotonic() - (self._away_since or time.monotonic()), None
        self._log.info("Worker %s: the server is back after %.1f s", self._worker.name, away)
        self._recover_due = self._heartbeat_due = True
        self._track()

    def _due_recovery(self) -> _Due:
        """Put back what a claim took whose reply was lost."""
        self._recover_due = False
        known = {slot.claim.member for slot in self._slots if slot.claim is not None}
        known |= {outcome.claim.member for outcome in self._outcomes}
        known |= {task.claim.member for task in self._tasks if task.claim is not None}

        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError):
                return
            unknown = self._ledger.unknown(replies[0], known)
            if unknown:
                self._log.warning(
                    "Worker %s: putting back %d jobs whose claim was not answered", self._worker.name, len(unknown)
                )
                self._push_back(unknown)

        def on_lost(_error: Exception) -> None:
            self._recover_due = True

        return [self._ledger.known_claims()], on_replies, on_lost

