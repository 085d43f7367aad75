"""What the parent gives a horse to do. messages.py lists the tasks, with what each gets and answers.

In each task that ends a job, RQ's own methods decide what is written; the recorder collects it.
"""

from __future__ import annotations

import os
import resource
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError
from rq.exceptions import AbandonedJobError
from rq.job import Job
from rq.queue import Queue
from rq.utils import now

from .. import rq_api
from ..config.secrets import message_of
from ..failed.policies import Policy
from ..failed.sweep_settings import sweep_in_maintenance
from ..store import once
from ..store.claim import Claim
from ..wire import raw
from . import integrations
from .large import Refused
from .outcome import Outcomes
from .relay import Relay
from .short import ShortRun
from .tape import Tape
from .tolerant_maintenance import check_unreadable, clean_groups, say_unreadable
from .worker import HorseMixin, attempt


class Tasks:
    """Does the tasks of one horse.

    Args:
        worker: the forked copy of the parent's worker, with the recorder as its connection.
        outcomes: takes claims, and what becomes of them.
        relay: to the parent's connection, for what is no outcome.
        policies: what maintenance does to failed jobs.
    """

    def __init__(self, worker: HorseMixin, outcomes: Outcomes, relay: Relay, policies: Sequence[Policy]) -> None:
        self._worker = worker
        self._outcomes = outcomes
        self._relay = relay
        self._policies = policies
        self._short = ShortRun(worker, outcomes)
        #: How many jobs this process has begun.
        self.jobs = 0
        #: An error has left RQ's code: what it left behind is unknown.
        self.must_leave = False

    def perform(self, claim: Claim, waited: bool = False) -> None:
        """Run a job; one that has ``waited`` here begins now, not when it was claimed."""
        worker = self._worker
        if self._short.takes(claim):
            self._perform_plain(claim, waited)
            return
        job, queue, tape = self._outcomes.begin(claim, waited)
        if self._outcomes.screened.refusal is not None:
            self._refuse(job, queue, tape, self._outcomes.screened.refusal)
            return
        if claim.left_out:
            worker.announce(claim.time_limit(worker.queue_class.DEFAULT_TIMEOUT))
        self._note_job(job.id)
        horse = os.getpid()
        try:
            with integrations.around_job():
                if once.duplicate_of(worker.raw):
                    self._skip(job, queue)
                else:
                    worker.perform_job(job, queue, *rq_api.with_execution(worker.held).values())
        except BaseException:
            # RQ has recorded by then, and logs the result; what stands around the job may call code of a framework.
            if os.getpid() != horse or not tape.complete:
                raise
            self._note_error(job.id)
        self._deliver(tape)

    def _perform_plain(self, claim: Claim, waited: bool) -> None:
        """As ``perform``, for a job that goes the short way."""
        self._note_job(claim.job_id)
        horse, short = os.getpid(), self._short
        try:
            with integrations.around_job():
                short.run(claim, waited)
        except BaseException:
            if os.getpid() != horse or not (short.outcome or (short.tape and short.tape.complete)):
                raise
            self._note_error(claim.job_id)
        if short.outcome is not None:
            self._outcomes.deliver_packed(short.outcome)
        elif short.tape is not None:
            self._deliver(short.tape)

    def _note_job(self, job_id: str) -> None:
        os.environ["RQ_WORKER_ID"] = self._worker.name
        os.environ["RQ_JOB_ID"] = job_id
        self.jobs += 1

    def _note_error(self, job_id: str) -> None:
        self.must_leave = True
        log, name = self._worker.log, self._worker.name
        log.exception("Worker %s: job %s: an error after its outcome, which is recorded", name, job_id)

    def _refuse(self, job: Job, queue: Queue, tape: Tape, reason: str) -> None:
        """Record the failure of a job that is not to be loaded: no retry, callback or handler sees it."""
        job.ended_at = job.started_at = now()
        self._worker.handle_job_failure(job, queue=queue, exc_string=reason, **rq_api.with_execution(self._worker.held))
        self._deliver(tape)

    def _skip(self, job: Job, queue: Queue) -> None:
        """Record as a success, with nothing as its result, a job whose key was spent by another one."""
        worker, spender = self._worker, once.duplicate_of(self._worker.raw) or ""
        worker.prepare_job_execution(job)
        worker.begins = False
        worker.handle_execution_ended(job, queue, 0)
        worker.handle_job_success(job, queue, queue.started_job_registry, **rq_api.with_execution(worker.held))
        # This comes first, since the last command may delete the hash.
        worker.tape.write_first(worker.connection.encode(["HSET", job.key, once.DUPLICATE_FIELD, raw(spender)]))
        worker.log.info("Worker %s: job %s not run: its key was spent by job %s", worker.name, job.id, spender)

    def bury(
        self, fields: tuple[Any, ...], pid: int, status: int, usage: Sequence[float], stopped: bool, quietly: bool
    ) -> None:
        """Record the failure of a job whose horse died; ``quietly`` calls no user code, of which a horse died before.

        This replaces the end of RQ's ``monitor_work_horse``. That one looks only at an own child, reads the job's
        status from the server, and takes ``os._exit(0)`` in a job for its regular end.
        """
        worker = self._worker
        job, queue, tape = self._outcomes.begin(Claim.from_message(fields))
        worker._stopped_job_id = job.id if stopped else None
        # Its callbacks are not those of its producer, or not allowed.
        quietly = quietly or self._outcomes.screened.refusal is not None
        rusage = resource.struct_rusage(usage)
        with integrations.around_job():
            job.started_at = worker.held.created_at
            if stopped:
                worker.log.warning("Worker %s: job %s stopped by user", worker.name, job.id)
                if not quietly:
                    attempt(worker, job, lambda: rq_api.stopped_callback(job, worker.death_penalty_class))
                text = "Job stopped by user, work-horse terminated."
            else:
                job.ended_at = now()
                signalled = f" (signal {os.WTERMSIG(status)})" if os.WIFSIGNALED(status) else ""
                text = f"Work-horse terminated unexpectedly; waitpid returned {status}{signalled}; "
                worker.log.warning("Worker %s: job %s failed (%s)", worker.name, job.id, text)
                if not quietly:
                    attempt(worker, job, lambda: worker.handle_work_horse_killed(job, pid, status, rusage))
            worker.handle_job_failure(job, queue=queue, exc_string=text, **rq_api.with_execution(worker.held))
        worker._stopped_job_id = None
        self._deliver(tape)

    def abandon(self, fields: tuple[Any, ...], reason: str, quietly: bool) -> None:
        """Fail a job that has stalled too often, as RQ's StartedJobRegistry.cleanup does.

        Differs from it in that retries do not help: the job has had its second chances. ``quietly`` calls no user code.
        """
        worker = self._worker
        job, queue, tape = self._outcomes.begin(Claim.from_message(fields))
        quietly = quietly or self._outcomes.screened.refusal is not None
        with integrations.around_job():
            job.ended_at = now()
            if not quietly:
                error = AbandonedJobError(reason)
                stack: Any = rq_api.traceback_of_abandoned(traceback.extract_stack())
                what = AbandonedJobError, error, stack
                attempt(worker, job, lambda: rq_api.failure_callback(job, worker.death_penalty_class, *what))
                attempt(worker, job, lambda: self._call_handlers(job, *what))
            text = f"Moved to FailedJobRegistry, due to AbandonedJobError, at {now()}: {reason}"
            job.retries_left = None
            worker.handle_job_failure(job, queue=queue, exc_string=text, **rq_api.with_execution(worker.held))
        self._deliver(tape)

    def _call_handlers(self, job: Job, *exc_info: Any) -> None:
        for handler in self._worker._exc_handlers:
            if handler(job, *exc_info) is False:
                break

    def fail(self, fields: tuple[Any, ...], reason: str) -> None:
        """Record a failure with this reason, for a job whose own outcome the server refused."""
        job, queue, tape = self._outcomes.begin(Claim.from_message(fields))
        job.ended_at = job.started_at = now()
        self._worker.handle_job_failure(job, queue=queue, exc_string=reason, **rq_api.with_execution(self._worker.held))
        self._deliver(tape)

    def settle(self, fields: tuple[Any, ...], tolerant: bool, status: str, *commands: Any) -> None:
        """Complete the outcome of a job that has dependents.

        What RQ's ``enqueue_dependents`` writes is added to its packed ``commands``. Reads on which that is based guard
        the commit. With ``tolerant`` only those do that RQ watches, since others have changed each time.
        """
        job, queue, tape = self._outcomes.begin(Claim.from_message(fields))
        tape.tolerant = tolerant
        tape.status = status.encode()
        tape.expect_dependents()
        with self._worker.connection.record_to(tape):
            rq_api.enqueue_dependents(queue, job)
        tape.know_dependents()
        try:
            self._outcomes.deliver(tape, commands)
        except Refused as error:
            raise Refused(_unrecorded(error)) from error

    def _deliver(self, tape: Tape) -> None:
        """Deliver an outcome; one whose large values the server refuses becomes a failure that says so."""
        try:
            self._outcomes.deliver(tape)
        except Refused as error:
            if tape.status == b"failed":
                raise Refused(_unrecorded(error)) from error
            self.fail(self._outcomes.claim.message(), _unrecorded(error))

    def maintain(self, first: Sequence[Any]) -> None:
        """Run RQ's maintenance of registries, with the callbacks and handlers of abandoned jobs; then sweep.

        ``first`` is a command that has to be done right before, see postpone.lua.
        """
        worker, relay = self._worker, self._relay
        try:
            # The horse before may have died with keys watched.
            relay.execute([("UNWATCH",), first])
            cleaned = rq_api.groups_cleaned_by(lambda: clean_groups(relay.run_script))
            with integrations.around_job(), relay.carry(), cleaned:
                try:
                    worker.run_maintenance_tasks()
                except Exception as error:  # noqa: BLE001 - see horse/tolerant_maintenance.py
                    check_unreadable(error)
                    say_unreadable(worker, "maintenance ended early", error)
            sweep_in_maintenance(worker.queue_names(), self._policies, relay.execute, worker.log)
        except (RedisError, Refused) as error:
            # The server was lost, or an access control list refuses a command.
            worker.log.warning("Worker %s: maintenance given up: %s", worker.name, message_of(error))

    def schedule(self, token: str, life: int) -> None:
        """Move rq-scheduler's jobs that are due, under its lock, which the parent has taken; give it back then."""
        # They are imported here, since a worker without a scheduler needs none of them.
        from ..scheduler.mover import BATCH, Mover, ScheduleLock
        from ..store.keys import SCHEDULER_LOCK
        from ..store.locks import unlock

        worker, relay = self._worker, self._relay
        try:
            with relay.carry():
                classes = worker.job_class, worker.queue_class
                mover = Mover(worker.connection, relay.run_script, *classes, worker.log)
                moved = mover.move_due(ScheduleLock(token, life), 5 * BATCH)
                relay.run_script(unlock(SCHEDULER_LOCK, token))
            worker.log.info("Worker %s: enqueued %d jobs of rq-scheduler", worker.name, len(moved))
        except (RedisError, Refused) as error:
            worker.log.warning("Worker %s: moving jobs of rq-scheduler given up: %s", worker.name, message_of(error))


def _unrecorded(error: Refused) -> str:
    return f"The outcome could not be recorded: {error}"


#: Task -> the method that does it.
TASKS: dict[str, Callable[..., None]] = {
    "perform": Tasks.perform,
    "bury": Tasks.bury,
    "abandon": Tasks.abandon,
    "fail": Tasks.fail,
    "settle": Tasks.settle,
    "maintain": Tasks.maintain,
    "schedule": Tasks.schedule,
}
