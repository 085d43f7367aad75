"""The parent's loop: gives claimed jobs to horses, commits what they answer, and ends in order.

Each turn serves what is ready (messages of horses, deaths, signals, control commands, timers, replies), then sends
everything that is due in one write. It never waits for the server: while a reply is on its way, horses and signals are
served.
"""

from __future__ import annotations

import time
from collections import deque

from ..multiplexer.multiplexer import Multiplexer
from .ahead import Ahead, is_ahead
from .claimer import Claimer
from .cleaner import Cleaner
from .commands import Commands
from .committer import Committer
from .context import Context
from .duty import Duty
from .events import Events
from .expected import Expected
from .guard import Guard
from .heartbeat import Heartbeat
from .horse_requests import HorseRequests
from .maintenance import Maintenance
from .promoter import Promoter
from .reconnector import Reconnector
from .recovery import Recovery
from .refusals import Refusals
from .rq_scheduler import Scheduling
from .shutdown import Shutdown
from .slot import Task
from .slots import RunHorse, Slots
from .stall_finder import StallFinder
from .wakeup import Wakeup

#: Writes under way at once. More make them smaller without making them faster (measured with 1, 2 and 4).
MAX_IN_FLIGHT = 1


class Arbiter:
    """Runs one worker: the life of a job is claim, perform, commit, see docs/architecture.md.

    Args:
        context: what the parts share; connected and registered already.
        multiplexer: lets jobs use Redis through this process; None where each horse has a connection of its own.
        run_horse: runs in a forked child until it should end, see Slots.
        burst: end when the queues are empty.
        max_jobs: end after so many jobs.
        max_idle_time: end after so many seconds without a job.
        with_scheduler: move rq-scheduler's jobs, too.
    """

    def __init__(
        self,
        context: Context,
        *,
        multiplexer: Multiplexer | None,
        run_horse: RunHorse,
        burst: bool,
        max_jobs: int | None,
        max_idle_time: float | None,
        with_scheduler: bool,
    ) -> None:
        self._context = context
        self._multiplexer = multiplexer
        self._burst = burst
        self._max_idle_time = max_idle_time
        events = Events()
        tasks: deque[Task] = deque()
        expected = Expected()
        self._committer = committer = Committer(context, events, tasks=tasks, burst=burst)
        self._requests = HorseRequests(context, events)
        self._slots = slots = Slots(
            context,
            tasks=tasks,
            run_horse=run_horse,
            multiplexer=multiplexer,
            on_outcome=committer.add,
            on_request=self._requests.add,
            on_untouched=lambda claims: self._recovery.push_back(claims),
            on_begun=lambda claims: self._recovery.push_back(claims, begun=True),
            on_ran=expected.add,
            ahead=is_ahead(context.settings),
        )
        ahead = Ahead(context, events, slots=slots, expected=expected, allowed=max_jobs is None)
        if multiplexer is not None:
            events.server_lost.append(multiplexer.on_away)
            events.server_back.append(multiplexer.on_back)
        refusals = Refusals(context, events, burst=burst)
        self._wakeup = wakeup = Wakeup(context, events, refusals=refusals, slots=slots, burst=burst)
        self._heartbeat = Heartbeat(context, events, slots=slots, committer=committer, multiplexer=multiplexer)
        self._recovery = recovery = Recovery(context, events, slots=slots, committer=committer, wakeup=wakeup)
        self._maintenance = Maintenance(context, events, slots=slots)
        self._stall_finder = StallFinder(context, events, heartbeat=self._heartbeat, tasks=tasks)
        self._cleaner = Cleaner(context, heartbeat=self._heartbeat)
        self._scheduling = Scheduling(context, events, slots=slots, wanted=with_scheduler)
        self._claimer = Claimer(
            context,
            events,
            slots=slots,
            committer=committer,
            wakeup=wakeup,
            recovery=recovery,
            refusals=refusals,
            ahead=ahead,
            max_jobs=max_jobs,
        )
        self._shutdown = Shutdown(context, events, slots=slots, committer=committer, recovery=recovery, turn=self._turn)
        commands = Commands(
            context,
            slots=slots,
            stop=self._shutdown.on_command,
            make_sentry=wakeup.make_sentry,
            hold_changed=events.hold_changed,
        )
        self._reconnector = Reconnector(
            context,
            events,
            on_wakeup=wakeup.on_invalidation,
            on_command=commands.obey,
            on_given_up=self._shutdown.end_away,
        )
        # With JOBS_SHARE=no a horse has as many connections of its own as it likes.
        allowed = 0 if multiplexer is not None else context.settings.max_connections
        self._guard = Guard(context, horses=slots.pids, allowed=allowed)
        #: Their order is the order on the wire: first what keeps claims alive, then results, then new claims.
        self._duties: tuple[Duty, ...] = (
            *(recovery, self._heartbeat, committer, self._requests, Promoter(context, wakeup=wakeup)),
            *(self._stall_finder, self._cleaner, self._scheduling, self._claimer, wakeup),
        )
        self._idle_since = time.monotonic()
        #: The duties had nothing to send when this turn ended.
        self._nothing_due = False
        self.completed = 0
        events.job_dispatched.append(self._on_dispatched)
        events.job_done.append(self._on_job_done)

    # -- running -------------------------------------------------------------------------------------------------

    def run(self) -> int | None:
        """Work until there is a reason to end; return the exit code for the process, None for a regular end."""
        loop = self._context.loop
        self._shutdown.start()
        self._slots.start()
        self._reconnector.start()
        self._wakeup.track()
        self._heartbeat.start()
        self._maintenance.start()
        self._stall_finder.start()
        self._cleaner.start()
        self._scheduling.start()
        self._guard.start()
        loop.call_every(self._context.settings.block, self._on_block_over)
        try:
            while not self._finished():
                self._turn(0 if not self._nothing_due and self._due() else self._patience())
        finally:
            self._slots.close()
            if self._multiplexer is not None:
                self._multiplexer.close()
            loop.close()
        return self._shutdown.exit_code if self._shutdown.exit_code is not None else self._shutdown.code_at_the_end

    @property
    def starts_anew(self) -> bool:
        """Tell whether the process is to be started anew after a regular end, see Shutdown."""
        return self._shutdown.reload

    def _turn(self, timeout: float | None) -> None:
        loop, jobs = self._context.loop, self._multiplexer
        if jobs is None:
            loop.turn(timeout)
        else:
            # As long as only jobs use Redis nothing else can have become due.
            while loop.turn(0 if jobs.due else timeout):
                jobs.turn()
                if timeout == 0:
                    break
            jobs.turn()
        # Otherwise others may have been given the jobs of these tasks; the next heartbeat tells.
        if self._heartbeat.is_recent:
            self._slots.assign_tasks()
        self._send()

    def _finished(self) -> bool:
        if self._shutdown.exit_code is not None:
            return True
        if self._is_under_way():
            return False
        reason = self._reason_to_end()
        if reason is not None:
            self._context.log.info("%s", reason)
        return reason is not None

    def _is_under_way(self) -> bool:
        """Tell whether anything was begun that is not recorded yet; whatever ends it wakes the loop."""
        return bool(
            self._slots.busy()
            or self._committer
            or self._requests.due
            or self._recovery.due
            or self._context.command.in_flight
        )

    def _reason_to_end(self) -> str | None:
        """Return why it should end now that nothing is under way, in RQ's words, or None."""
        if self._shutdown.stopping:
            return "stopping on request"
        if self._claimer.exhausted:
            return f"finished executing {self._claimer.dispatched} jobs, quitting"
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
        return self._context.command.connected and self._context.command.in_flight < MAX_IN_FLIGHT

    def _due(self) -> bool:
        """Tell whether something is to be sent, and can be."""
        return self._can_send() and (self._committer.singled_out or any(duty.due for duty in self._duties))

    def _send(self) -> None:
        """Send all that is due in one write."""
        self._reconnector.check_lease()
        self._nothing_due = False
        if not self._can_send():
            return
        if self._committer.singled_out and not (self._recovery.due or self._heartbeat.due):
            # What may cost the connection is sent alone.
            exchanges = self._committer.exchanges()
        else:
            # Each duty is asked after those before it have handed out theirs.
            exchanges = [exchange for duty in self._duties if duty.due for exchange in duty.exchanges()]
        if exchanges:
            self._context.command.submit(*exchanges)
            self._reconnector.check()
        else:
            self._nothing_due = True

    def _on_dispatched(self) -> None:
        self._idle_since = time.monotonic()

    def _on_job_done(self) -> None:
        self.completed += 1
        self._idle_since = time.monotonic()

    def _on_block_over(self) -> None:
        """Probe a connection that has been silent, and look once in case a wake-up was lost."""
        self._reconnector.probe()
        self._wakeup.check()
