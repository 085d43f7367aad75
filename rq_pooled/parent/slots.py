"""The job slots of a worker: each is one RQ worker to the outside, and at any time has one horse and one task.

It is long since a slot's states and what moves it from one to the next stand beside each other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from resource import struct_rusage
from typing import Any

from ..horse import integrations
from ..horse.messages import check_message
from ..multiplexer.multiplexer import Multiplexer
from ..multiplexer.streams import Guest
from ..process.channel import ChildChannel
from ..process.prefork import Horse, Prefork
from ..store.claim import Claim
from ..store.commit import NOTHING, Outcome, packed
from ..wire import Packed
from .context import Context
from .deadlines import Deadlines
from .slot import Slot, Task, send_receipt
from .task_deaths import TaskDeaths
from .waiting import Waiting

#: Runs a horse, given its channel and its token for the multiplexer.
RunHorse = Callable[[ChildChannel, "bytes | None"], None]
#: Seconds between two horses of a slot whose horses die before they are ready, doubling up to the second figure.
RESPAWN_BASE, RESPAWN_CAP = 0.1, 30.0
#: Seconds, before KILL_GRACE, that a horse may take to clean up after a job; it takes microseconds.
CLEAN_UP_TIME = 5.0
#: Seconds, before KILL_GRACE, that a horse may take to move a bounded number of rq-scheduler's jobs.
SCHEDULE_TIME = 60.0
#: Seconds that a job counts whose horse was replaced after it, though others waited there.
NEW_HORSE_TIME = 0.05
#: Seconds for which the first claim waits for the first horse and for maintenance, until the next look at deadlines.
START_WAIT = 0.5


class Slots:
    """Keeps every slot supplied with a horse, hands tasks to horses, and passes on what they answer.

    Args:
        context: as the name says.
        tasks: wait for horses.
        run_horse: runs in a forked child until it should end; is given the token for the multiplexer, if there is one.
        multiplexer: lets jobs use Redis; None where each horse has a connection of its own.
        on_outcome: called with each outcome.
        on_request: called with (slot, ``read`` or ``relay``, commands) when a horse needs Redis; it answers the slot.
        on_untouched, on_begun: see Waiting.
        on_ran: called with a claim and the seconds that its job took.
        ahead: jobs may wait at horses.
    """

    def __init__(
        self,
        context: Context,
        *,
        tasks: deque[Task],
        run_horse: RunHorse,
        multiplexer: Multiplexer | None,
        on_outcome: Callable[[Outcome], None],
        on_request: Callable[[Slot, str, list[list[bytes]]], None],
        on_untouched: Callable[[list[Claim]], None],
        on_begun: Callable[[list[Claim]], None],
        on_ran: Callable[[Claim, float], None],
        ahead: bool,
    ) -> None:
        self._context = context
        self.tasks = tasks
        #: Waits for a horse of its own: it takes long where there is much to clean up, and no job waits for it.
        self.maintenance: Task | None = None
        self._multiplexer = multiplexer
        self._on_outcome = on_outcome
        self._on_request = on_request
        self._on_ran = on_ran
        self._deaths = TaskDeaths(context, tasks=tasks, on_outcome=on_outcome)
        self._prefork = Prefork(
            context.loop,
            lambda index, channel: run_horse(channel, self._slots[index].token),
            self._close_in_child,
            self._on_message,
            self._on_exit,
            check_message,
            ahead,
        )
        self._handlers: dict[str, Callable[..., None]] = {
            "plain": self._on_plain,
            "outcome": self._on_outcome_message,
            "free": self._on_free,
            "next": self._on_next,
            "phase": lambda slot, seconds: self._deadlines.set(slot, seconds),
            **dict.fromkeys(("failure", "gone"), self._on_unreadable_message),
        }
        self.waiting = Waiting(self._prefork, on_untouched, on_begun, context.counters.not_begun)
        self._slots = [Slot(name, self._prefork.send) for name in context.identity.names]
        self._deadlines = Deadlines(context, slots=self._slots, waiting=self.waiting, kill=self.kill)
        self._ending = False
        #: The guests are by process id, since a horse that is replaced may live on for a moment.
        self._guests: dict[int, Guest] = {}
        #: Until when the first horses are waited for, by the monotonic clock.
        self._wait_until = 0.0
        #: Spare horses in a row that died before they were ready, and when the next one may be forked.
        self._spares_died, self._spare_after = 0, 0.0

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def maintaining(self) -> list[Slot]:
        """Return the slots whose horse does RQ's maintenance."""
        return [slot for slot in self._slots if slot.task is not None and slot.task.kind == "maintain"]

    def regular(self) -> list[Slot]:
        """Return the slots that are RQ workers: all but spare ones."""
        return [slot for slot in self._slots if not slot.spare]

    def pids(self) -> list[int]:
        """Return the process ids of the horses."""
        return [slot.horse.pid for slot in self._slots if slot.horse is not None]

    def claims(self) -> list[Claim]:
        """Return the claims whose outcomes have not arrived yet, in the order in which they were popped."""
        claims = [slot.claim for slot in self._slots] + [task.claim for task in self.tasks]
        claims += [claim for slot in self._slots for claim in slot.waiting]
        return sorted((claim for claim in claims if claim is not None), key=lambda claim: claim.created_at)

    def busy(self) -> bool:
        """Tell whether any horse has a task, or one is waiting for a horse."""
        return bool(self.tasks or self.maintenance) or any(slot.task is not None for slot in self._slots)

    # -- horses --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Fork a horse for each slot, and begin to watch their deadlines."""
        for slot in self._slots:
            self._spawn(slot)
        self._wait_until = time.monotonic() + START_WAIT
        self._deadlines.start()

    @property
    def starting(self) -> bool:
        """Tell whether the first claim waits: for a horse, under RQ's name, and for maintenance, as RQ's workers do."""
        first, is_over = self._slots[0], time.monotonic() >= self._wait_until
        return not is_over and bool(self.maintenance or self.maintaining() or not (first.begun or first.stillborn))

    def close(self) -> None:
        """End all horses."""
        self._ending = True
        self._prefork.close()

    def kill(self, slot: Slot) -> None:
        """Kill the slot's horse and what it started; its job is buried as RQ buries it."""
        if slot.horse is not None:
            slot.killed = True
            self._prefork.kill(slot.horse)

    def hand_on(self, claim: Claim) -> None:
        """Kill the horse whose job another worker has been given, and forget the claim."""
        for task in [task for task in self.tasks if task.claim is claim]:
            self.tasks.remove(task)
            send_receipt(task.receipt_for, False)
        for slot in self._slots:
            if slot.claim is claim or claim in slot.waiting:
                # A complete outcome is refused by the fence, and its horse lives. Of a job that waits only traces are
                # removed.
                self.waiting.put_back(slot)
                if slot.claim is claim and slot.task is not None:
                    send_receipt(slot.task.receipt_for, False)
                    slot.handed_on = True
                    self.kill(slot)

    def stop_waiting(self, slot: Slot, claim: Claim) -> bool:
        """Stop a job that waits at the slot's horse, as one that runs is; return whether it had not begun."""
        waited = self.waiting.take_one(slot, claim)
        if waited:
            self._deaths.on_death(Task("perform", claim), 0, 0, struct_rusage((0,) * 16), True)
        return waited

    def interrupt(self) -> list[Claim]:
        """Kill horses that run jobs or maintenance; return the jobs' claims: they are to run again, not to fail."""
        # A job that has ended is not put back.
        self.waiting.put_back(*self._slots)
        interrupted = [slot for slot in self._slots if slot.claim and slot.task and slot.task.kind == "perform"]
        claims = [slot.claim for slot in interrupted if slot.claim is not None]
        for slot in [*interrupted, *self.maintaining()]:
            slot.handed_on = True
            self.kill(slot)
        return sorted(claims, key=lambda claim: claim.created_at)

    def replace(self) -> None:
        """Replace all horses, those that run a job when it has ended."""
        for slot in self.regular():
            slot.worn = True
        self.waiting.put_back(*self.regular())
        self.renew_worn()

    def renew_worn(self) -> None:
        """Replace the horses that are to be, as far as they have nothing to do; others come when they are free."""
        for slot in self.regular():
            if slot.worn and slot.free and slot.horse is not None:
                self._prefork.retire(slot.horse)
                self._spawn(slot)

    def receive(self, slot: Slot) -> None:
        """Take what the slot's horse has sent until now, before it is killed: a complete outcome wins."""
        if slot.horse is not None:
            self._prefork.receive_last(slot.horse)

    def _spawn(self, slot: Slot) -> None:
        if self._ending or slot not in self._slots:
            return
        slot.horse, slot.jobs = None, 0
        integrations.before_fork()
        slot.ready = slot.worn = slot.killed = False
        slot.end()
        if self._multiplexer is not None:
            slot.guest = self._multiplexer.admit(slot.describe)
        try:
            slot.horse = self._prefork.spawn(self._slots.index(slot))
            if slot.guest is not None:
                self._guests[slot.horse.pid] = slot.guest
        except OSError as error:
            # There is no process or memory left; there may be some later.
            if self._multiplexer is not None and slot.guest is not None:
                self._multiplexer.drop(slot.guest)
            self._context.log.error("cannot fork (%s); trying again", error, worker=slot.name)
            if slot.spare:
                self._forget_spare(slot, RESPAWN_CAP)
            else:
                self._context.loop.call_later(RESPAWN_CAP, lambda: self._spawn_if_empty(slot))

    def _forget_spare(self, slot: Slot, pause: float) -> None:
        """Fork none for ``pause`` seconds. Maintenance has its next time: the end of a burst worker waits for it."""
        self._slots.remove(slot)
        self._spare_after, self.maintenance = time.monotonic() + pause, None

    def _spawn_if_empty(self, slot: Slot) -> None:
        if slot.horse is None:
            self._spawn(slot)

    def _close_in_child(self) -> None:
        self._context.command.close_in_child()
        self._context.listen.close_in_child()
        if self._multiplexer is not None:
            self._multiplexer.close_in_child()

    def _slot_of(self, horse: Horse) -> Slot | None:
        return next((slot for slot in self._slots if slot.horse is horse), None)

    def _on_exit(self, horse: Horse, status: int, rusage: struct_rusage) -> None:
        guest = self._guests.pop(horse.pid, None)
        if self._multiplexer is not None and guest is not None:
            self._multiplexer.drop(guest)
        slot = self._slot_of(horse)
        if slot is None or self._ending:
            return
        stopped, was_ready, was_idle = slot.stopped, slot.ready, slot.task is None
        delivered = slot.delivered or slot.handed_on
        task = self.waiting.task_at_death(slot, horse)
        slot.horse, slot.ready = None, False
        slot.end()
        if task is not None and not delivered:
            if task.kind == "perform":
                self._context.counters.run_time.add(time.monotonic() - slot.since)
            self._deaths.on_death(task, horse.pid, status, rusage, stopped)
        if was_idle and not was_ready:
            slot.stillborn += 1
            self._spares_died += slot.spare
            delay = min(RESPAWN_CAP, RESPAWN_BASE * 2 ** ((self._spares_died if slot.spare else slot.stillborn) - 1))
            what = "a spare horse" if slot.spare else "a horse"
            self._context.log.error("%s ended before it was ready (status %d)", what, status, worker=slot.name)
            if slot.spare:
                self._forget_spare(slot, delay)
            else:
                self._context.loop.call_later(delay, lambda: self._spawn_if_empty(slot))
        elif slot.spare:
            self._slots.remove(slot)
        else:
            self._context.counters.horses_replaced += 1
            self._spawn(slot)

    # -- messages ------------------------------------------------------------------------------------------------

    def _on_message(self, horse: Horse, message: tuple[Any, ...]) -> None:
        slot = self._slot_of(horse)
        # The horse has been replaced, and is about to end.
        if slot is None:
            return
        kind, *rest = message
        slot.check(kind, rest, self._context.settings.heartbeat_ttl)
        if handler := self._handlers.get(kind):
            handler(slot, *rest)
        else:
            self._on_request(slot, kind, rest[0])

    def _on_outcome_message(
        self, slot: Slot, status: str, guards: Any, commands: Any, dependents: Any, wants_receipt: bool
    ) -> None:
        if (claim := slot.claim) is None or (task := slot.task) is None:
            return
        slot.delivered = True
        # Webhooks have timeouts of their own.
        self._deadlines.set(slot, -1 if wants_receipt else CLEAN_UP_TIME)
        receipt_for = (slot, task) if wants_receipt else task.receipt_for
        parts = (packed(guards), packed(commands), packed(dependents))
        self._on_outcome(Outcome(claim, status, *parts, receipt_for, changes=task.changes))

    def _on_plain(self, slot: Slot, is_free: bool, seconds: float, words: int, data: bytes) -> None:
        if (task := slot.task) is not None and (claim := slot.claim) is not None:
            slot.delivered = True
            commands = (1, Packed(words, data))
            self._on_outcome(Outcome(claim, "finished", NOTHING, commands, NOTHING, task.receipt_for, task.changes))
        (self._on_free if is_free else self._on_next)(slot, False, seconds, False)

    def _on_unreadable_message(self, slot: Slot, reason: str | None = None) -> None:
        if (claim := slot.claim) is not None and (task := slot.task) is not None:
            slot.delivered = True
            self._deadlines.set(slot, CLEAN_UP_TIME)
            self._deaths.on_unreadable(task, claim, reason)

    def _note_run_time(self, slot: Slot, seconds: float) -> None:
        if slot.task is not None and slot.task.kind == "perform" and slot.task.claim is not None:
            self._context.counters.run_time.add(seconds)
            self._on_ran(slot.task.claim, seconds)

    def _on_next(self, slot: Slot, waits: bool, seconds: float, streams: bool = True) -> None:
        self._note_run_time(slot, seconds)
        if waits and streams and self._multiplexer is not None and slot.guest is not None:
            self._multiplexer.job_ended(slot.guest)
        slot.end()
        if slot.waiting:
            self._begin(slot, Task("perform", slot.waiting.popleft()), time.time())
        # Otherwise all that waited was taken back. The horse finds that, and says that it is free.
        if waits and slot.horse is not None:
            self._prefork.send(slot.horse, ("begin",))

    def _on_free(self, slot: Slot, leaving: bool, seconds: float = 0.0, streams: bool = True) -> None:
        # A new horse costs what a long job does.
        cut_short = self.waiting.end(slot)
        self._note_run_time(slot, max(seconds, NEW_HORSE_TIME) if cut_short else seconds)
        if streams and self._multiplexer is not None and slot.guest is not None:
            self._multiplexer.job_ended(slot.guest)
        slot.end()
        slot.stillborn, slot.begun = 0, True
        if slot.spare:
            self._spares_died = 0
        if slot.spare and (leaving or not (self.tasks or self.maintenance)):
            self._slots.remove(slot)
            if slot.horse is not None:
                self._prefork.retire(slot.horse)
        elif leaving or slot.worn:
            if not leaving and slot.horse is not None:
                self._prefork.retire(slot.horse)
            self._context.counters.horses_replaced += 1
            # The old horse ends by itself, and is reaped as a stranger to the slot.
            self._spawn(slot)
        else:
            slot.ready = not slot.killed

    # -- tasks ---------------------------------------------------------------------------------------------------

    def give(self, slot: Slot, task: Task, behind: Sequence[Claim] = ()) -> None:
        """Hand ``task`` to the slot's horse, which is free, and claims whose jobs are to wait there behind it."""
        assert slot.horse is not None
        self._begin(slot, task)
        self.waiting.add(slot, behind)
        self._prefork.send(slot.horse, (*task.message(), *(claim.message() for claim in behind)))

    def _begin(self, slot: Slot, task: Task, begun_at: float | None = None) -> None:
        """Note that the slot's horse is at ``task``, by the system's clock since ``begun_at``, or since its claim."""
        slot.begin(task, waited=begun_at is not None)
        if task.kind == "perform" and task.claim is not None:
            slot.worn = slot.worn or slot.jobs >= self._context.settings.max_jobs_per_horse
            self._context.counters.begun(task.claim, begun_at)
            # A horse that has to read large fields first says when the job begins.
            limit = task.claim.time_limit(self._context.identity.default_timeout)
            self._deadlines.set(slot, -1 if task.claim.left_out else limit)
        elif task.kind == "schedule":
            # Unpickling users' meta may run anything.
            self._deadlines.set(slot, SCHEDULE_TIME)

    def assign_tasks(self) -> None:
        """Give waiting tasks to horses that are free, the last first: the lowest are for jobs. Fork spare ones."""
        if not (self.tasks or self.maintenance):
            return
        for slot in reversed(self._slots):
            if slot.free and self.tasks:
                self.give(slot, self.tasks.popleft())
            elif slot.free and slot.spare and self.maintenance:
                self.give(slot, self.maintenance)
                self.maintenance = None
        # A spare one without a task is about to be ready.
        idle = [slot for slot in self._slots if slot.task is None]
        wanted = (self.tasks and not idle) or (self.maintenance and not any(slot.spare for slot in idle))
        if wanted and time.monotonic() >= self._spare_after:
            self._slots.append(Slot(self._context.identity.name, self._prefork.send, spare=True))
            self._spawn(self._slots[-1])
