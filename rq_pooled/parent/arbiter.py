"""The parent's loop: gives claimed jobs to horses, commits what they answer, and ends in order.

Each turn serves what is ready (messages of horses, deaths, signals, control commands, timers, replies), then sends
everything that is due in one write. It never waits for the server: while a reply is on its way, horses and signals are
served.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..errors import USAGE
from ..multiplexer.multiplexer import Multiplexer
from .claimer import Claiming
from .cleaner import Orphans
from .commands import Control
from .committer import Outcomes
from .context import Parent
from .exchange import Exchange
from .guard import Guarding
from .heartbeat import Upkeep
from .horse_requests import Requests
from .reconnector import Link
from .rq_scheduler import Scheduling
from .shutdown import Stopping
from .slots import RunHorse, Slots
from .stall_finder import Stalls
from .wakeup import Wakeup

#: Writes under way at once. More make them smaller without making them faster (measured with 1, 2 and 4).
MAX_IN_FLIGHT = 1


class Arbiter:
    """Runs one worker: the life of a job is claim, perform, commit, see docs/architecture.md.

    Args:
        parent: what there is one of; connected and registered already.
        names: the worker's slots.
        multiplexer: lets jobs use Redis through this process; None where each horse has a connection of its own.
        run_horse: runs in a forked child until it should end, see Slots.
        burst: end when the queues are empty.
        max_jobs: end after so many jobs.
        max_idle_time: end after so many seconds without a job.
    """

    def __init__(
        self,
        parent: Parent,
        names: Sequence[str],
        multiplexer: Multiplexer | None,
        run_horse: RunHorse,
        burst: bool,
        max_jobs: int | None,
        max_idle_time: float | None,
    ) -> None:
        self._parent = parent
        self._multiplexer = multiplexer
        self._burst = burst
        self._max_idle_time = max_idle_time
        self._requests = Requests(parent)
        self._slots = Slots(parent, names, run_horse, multiplexer, self._on_outcome, self._requests.add)
        self._requests.slots = self._slots
        self._outcomes = Outcomes(
            parent,
            self._slots.tasks.append,
            self._slots.reply,
            self._on_job_done,
            lambda: burst or self._stopping.stopping,
            lambda reason: self._stopping.end_refused(reason, USAGE),
        )
        self._wakeup = Wakeup(parent, lambda error: self._claiming.refuse(error))
        self._upkeep = Upkeep(
            parent,
            self._slots,
            self._outcomes.renewed,
            lambda: self._wakeup.suspended,
            lambda: self._claiming.recover(),
            lambda: self._stalls.on_answered(),
            multiplexer,
        )
        self._stalls = Stalls(parent, self._slots, self._upkeep.beat, self._upkeep.trusted_until)
        self._orphans = Orphans(parent, self._upkeep.settled)
        self._scheduling = Scheduling(parent, self._slots, parent.worker.with_scheduler)
        self._link = Link(
            parent, self._on_message, self._on_away, self._on_back, lambda error: self._stopping.end_away(error)
        )
        self._claiming = Claiming(
            parent,
            self._slots,
            self._outcomes,
            self._wakeup,
            max_jobs,
            lambda: self._stopping.stopping,
            self._on_dispatched,
            self._upkeep.beat,  # shows the new state
            burst,
            lambda reason, code: self._stopping.end_refused(reason, code),
        )
        self._stopping = Stopping(
            parent, self._slots, self._outcomes, self._claiming, self._turn, self._scheduling.stop
        )
        self._control = Control(parent, self._slots, self._stopping.on_command)
        self._idle_since = time.monotonic()
        self.completed = 0

    # -- running -------------------------------------------------------------------------------------------------

    def run(self) -> int | None:
        """Work until there is a reason to end; return the exit code for the process, None for a regular end."""
        loop = self._parent.loop
        self._stopping.start()
        self._slots.start()
        self._link.start()
        self._wakeup.track()
        self._upkeep.start()
        self._stalls.start()
        self._orphans.start()
        self._scheduling.start()
        # With JOBS_SHARE=no a horse has as many of its own as it likes.
        allowed = 0 if self._multiplexer is not None else self._parent.settings.max_connections
        Guarding(self._parent, self._slots.pids, allowed).start()
        loop.call_every(self._parent.settings.block, self._on_block_over)
        try:
            while not self._finished():
                self._turn(0 if self._due() else self._patience())
        finally:
            self._slots.close()
            if self._multiplexer is not None:
                self._multiplexer.close()
            loop.close()
        return self._stopping.exit_code if self._stopping.exit_code is not None else self._stopping.code_at_the_end

    @property
    def starts_anew(self) -> bool:
        """Tell whether the process is to be started anew after a regular end, see Stopping."""
        return self._stopping.reload

    def _turn(self, timeout: float | None) -> None:
        loop, jobs = self._parent.loop, self._multiplexer
        if jobs is None:
            loop.turn(timeout)
        else:
            # As long as only jobs use Redis nothing else can have become due.
            while loop.turn(0 if jobs.due else timeout):
                jobs.turn()
                if timeout == 0:
                    break
            jobs.turn()
        self._slots.assign_tasks()
        self._send()

    def _finished(self) -> bool:
        if self._stopping.exit_code is not None:
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
            or self._claiming.recover_due
            or self._parent.command.in_flight
        )

    def _reason_to_end(self) -> str | None:
        """Return why it should end now that nothing is under way, in RQ's words, or None."""
        if self._stopping.stopping:
            return "stopping on request"
        if self._claiming.exhausted:
            return f"finished executing {self._claiming.dispatched} jobs, quitting"
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
            self._outcomes.due
            or self._requests
            or self._upkeep.heartbeat_due
            or self._upkeep.promote_due
            or self._scheduling.due
            or self._claiming.recover_due
            or (self._stalls.due and not self._stopping.stopping)
            or self._orphans.due
            or self._wakeup.look_due
            or self._claiming.due
        )

    def _send(self) -> None:
        """Send all that is due in one write: first what keeps claims alive, then results, then new claims."""
        self._link.check_lease()
        if not self._can_send():
            return
        exchanges: list[Exchange] = []
        if self._claiming.recover_due:
            exchanges.append(self._claiming.recovery())
        if self._upkeep.heartbeat_due:
            exchanges.append(self._upkeep.heartbeat())
        # One job at a time is RQ's strict order: what a job enqueues when it ends stands before the next claim.
        commit_first = self._outcomes.due and self._parent.settings.concurrency == 1
        if self._outcomes.singled_out and self._outcomes.due:
            if not exchanges:
                self._parent.command.submit(self._outcomes.commit())
                self._link.check()
                return
        elif self._outcomes.due:
            exchanges.append(self._outcomes.commit())
        exchanges += self._requests.take()
        if self._upkeep.promote_due:
            exchanges.append(self._upkeep.promotion())
        if self._stalls.due and not self._stopping.stopping:
            exchanges.append(self._stalls.exchange())
        if self._orphans.due:
            exchanges.append(self._orphans.exchange())
        if self._scheduling.due:
            exchanges.append(self._scheduling.exchange())
        if self._claiming.due and not commit_first:
            exchanges.append(self._claiming.exchange())
        elif self._wakeup.look_due:
            exchanges.append(self._wakeup.look())
        if exchanges:
            self._parent.command.submit(*exchanges)
            self._link.check()

    def _on_outcome(self, outcome: Any) -> None:
        self._outcomes.add(outcome)

    def _on_dispatched(self) -> None:
        self._idle_since = time.monotonic()

    def _on_job_done(self) -> None:
        self.completed += 1
        self._idle_since = time.monotonic()

    # -- claiming ------------------------------------------------------------------------------------------------

    # -- control -------------------------------------------------------------------------------------------------

    def _on_message(self, woken: bool, commands: list[tuple[str, dict[str, Any]]]) -> None:
        if woken:
            self._wakeup.on_invalidation()
        for channel, payload in commands:
            self._control.obey(channel, payload)

    # -- the server is away and back -----------------------------------------------------------------------------

    def _on_block_over(self) -> None:
        """Probe a connection that has been silent, and look once in case a wake-up was lost."""
        self._link.probe()
        self._wakeup.wake()

    def _on_away(self, error: Exception) -> None:
        self._outcomes.note_away()
        self._requests.on_away(error)
        if self._multiplexer is not None:
            self._multiplexer.on_away(str(error))

    def _on_back(self) -> None:
        """Heartbeat first, then commits, then claims: the order of ``_send``."""
        self._outcomes.send_again()
        self._claiming.recover()
        self._upkeep.beat()
        self._wakeup.track()
