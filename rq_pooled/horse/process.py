"""What runs inside a horse: it is given one task at a time by the parent and answers with the outcome.

Tasks: *perform* a claimed job; *bury* one whose horse died; *abandon* one that has stalled too often; *settle* the
dependents of one that got some while it ran; *maintain* the registries. In each, RQ's own methods decide what is
written; the recorder collects it.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from redis.exceptions import RedisError, ResponseError
from rq.exceptions import AbandonedJobError
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.serializers import DefaultSerializer
from rq.utils import now

from .. import rq_api
from ..config.secrets import message_of
from ..failed.policies import Policy
from ..failed.sweeper import sweep_in_maintenance
from ..process.channel import ChildChannel
from ..process.memory import resident_megabytes
from ..retry import attempts
from ..retry.backoff import Rules
from ..store import due, once
from ..store.claim import STALLS, Claim
from ..wire import Word, pack, pack_runs
from . import dates, hooks
from .cleanup import Surroundings, has_children, has_doomed_children, let_resource_trackers_live
from .large import LARGE, Gone, LargeValues, Refused, set_apart, without_known
from .maintenance import check_unreadable, screen_groups
from .recorder import Tape
from .relay import Relay
from .success import snapshot
from .worker import HANDLER_TIME, HorseMixin

logger = logging.getLogger("rq.worker")

#: Seconds within which the server answers on a connection that a job has left, if it owes nothing.
_PATIENCE = 0.25
#: No commands, packed.
_NOTHING = (0, 0, b"")


class HorseProcess:
    """The loop of one horse.

    Args:
        worker: the forked copy of the parent's worker, with the recorder as its connection.
        channel: to the parent.
        max_jobs: leave after so many jobs.
        max_memory: leave after a job when more MB than this are resident; None never.
        policies: what maintenance does to failed jobs.
        shares: whether jobs use Redis through the parent.
    """

    def __init__(
        self,
        worker: HorseMixin,
        channel: ChildChannel,
        max_jobs: int,
        max_memory: float | None = None,
        policies: Sequence[Policy] = (),
        shares: bool = True,
    ) -> None:
        self._worker = worker
        self._recorder = worker.connection
        # By key. Not the worker's own queues: RQ gives a popped job a queue with the worker's serializer.
        self._queues: dict[str, Queue] = {}
        # RQ asks a serializer whether it is one each time it is given one, which is slow; None is its default.
        self._serializer = None if worker.serializer is DefaultSerializer else worker.serializer
        self._channel = channel
        #: Outcomes that leave together with the word that this process is free again.
        self._outbox: list[tuple[Any, ...]] = []
        self._jobs_left = max_jobs
        self._max_memory = max_memory
        self._policies = policies
        self._shares = shares
        self._alarm_fired = False
        #: An error has left RQ's code: nobody knows what it left behind.
        self._must_leave = False
        self._webhooks: list[tuple[Job, str, str | None]] = []
        self._surroundings = Surroundings()
        self._large = LargeValues(
            worker.connection.connection_pool, Relay(channel, worker.connection).execute, worker.log
        )
        let_resource_trackers_live()
        dates.use_in_jobs()
        due.use_in_jobs()
        worker.announce = lambda seconds: channel.send(("phase", seconds))
        worker.death_penalty_class = self._announcing(worker.death_penalty_class)
        # RQ's maintenance would fork the scheduler's own process from here; the parent promotes what is due.
        worker.scheduler = None
        if rq_api.RQ3:
            penalty = worker.death_penalty_class
            rq_api.on_abandoned(lambda job, run: self._on_abandoned(job, run, penalty))
        rq_api.survive_spoilt_limits(worker.log)
        for queue in worker.queues:  # used by maintenance only
            queue.job_class = self._abandoned(queue.job_class)

    def run(self) -> None:
        """Serve tasks until the parent closes the channel, or until this process should not be used again."""
        gc.enable()
        horse, leaving = os.getpid(), False
        self._channel.send(("free", False))
        while not leaving:
            try:
                kind, *rest = self._channel.receive()
            except (EOFError, OSError):
                return
            try:
                getattr(self, f"_{kind}")(*rest)
            except Refused as error:
                self._outbox.append(("failure", str(error)))
            except Gone:
                self._outbox.append(("gone",))
            if os.getpid() != horse:  # a copy that user code made by os.fork, and let return
                os._exit(0)
            try:
                leaving = self._clean_up()
            except Exception:
                self._worker.log.exception("Worker %s: error while cleaning up after a job", self._worker.name)
                leaving = True
            # In one write, so that the parent's answer to both is one write too. Cleaning up takes microseconds.
            self._channel.send(*self._outbox, ("free", leaving))
            self._outbox.clear()

    # -- tasks ---------------------------------------------------------------------------------------------------

    def _perform(self, fields: tuple[Any, ...]) -> None:
        """Run a job."""
        claim = Claim(*fields)
        job, queue, tape = self._prepare(claim)
        if claim.left_out:
            self._channel.send(("phase", claim.time_limit(self._worker.queue_class.DEFAULT_TIMEOUT)))
        os.environ["RQ_WORKER_ID"] = self._worker.name
        os.environ["RQ_JOB_ID"] = job.id
        self._jobs_left -= 1
        horse = os.getpid()
        try:
            with hooks.around_job():
                if once.duplicate_of(self._worker.raw):
                    self._skip(job, queue)
                else:
                    self._worker.perform_job(job, queue, *rq_api.with_execution(self._worker.held).values())
        except BaseException:
            # RQ has recorded by then, and logs the result; the hooks may call code of a framework.
            if os.getpid() != horse or not tape.complete:
                raise
            self._must_leave = True
            self._worker.log.exception(
                "Worker %s: job %s: an error after its outcome, which is recorded", self._worker.name, job.id
            )
        self._deliver(tape)

    def _skip(self, job: Job, queue: Queue) -> None:
        """Record as a success, with nothing as its result, a job whose key was spent by another one."""
        worker, spender = self._worker, once.duplicate_of(self._worker.raw)
        worker.prepare_job_execution(job)
        worker.begins = False
        worker.handle_execution_ended(job, queue, 0)
        worker.handle_job_success(job, queue, queue.started_job_registry, **rq_api.with_execution(worker.held))
        # First, since the last command may delete the hash.
        worker.tape.write_first(self._recorder.encode(["HSET", job.key, once.DUPLICATE_FIELD, spender]))
        worker.log.info("Worker %s: job %s not run: its key was spent by job %s", worker.name, job.id, spender)

    def _bury(
        self, fields: tuple[Any, ...], pid: int, status: int, usage: Sequence[float], stopped: bool, quietly: bool
    ) -> None:
        """Record the failure of a job whose horse died; ``quietly`` calls no user code, of which a horse died before.

        Replaces the end of RQ's ``monitor_work_horse``, which looks only at an own child, reads the job's status
        from the server, and takes ``os._exit(0)`` in a job for its regular end.
        """
        claim = Claim(*fields)
        job, queue, tape = self._prepare(claim)
        worker = self._worker
        worker._stopped_job_id = job.id if stopped else None
        rusage = resource.struct_rusage(usage)
        with hooks.around_job():
            job.started_at = _from_timestamp(claim.created_at)
            if stopped:
                worker.log.warning("Worker %s: job %s stopped by user", worker.name, job.id)
                if not quietly:
                    self._attempt(job, lambda: rq_api.stopped_callback(job, worker.death_penalty_class))
                text = "Job stopped by user, work-horse terminated."
            else:
                job.ended_at = now()
                signalled = f" (signal {os.WTERMSIG(status)})" if os.WIFSIGNALED(status) else ""
                text = f"Work-horse terminated unexpectedly; waitpid returned {status}{signalled}; "
                worker.log.warning("Worker %s: job %s failed (%s)", worker.name, job.id, text)
                if not quietly:
                    self._attempt(job, lambda: worker.handle_work_horse_killed(job, pid, status, rusage))
            worker.handle_job_failure(job, queue=queue, exc_string=text, **rq_api.with_execution(worker.held))
        worker._stopped_job_id = None
        self._deliver(tape)

    def _abandon(self, fields: tuple[Any, ...], reason: str, quietly: bool) -> None:
        """Fail a job that nobody finishes, as RQ's StartedJobRegistry.cleanup does; ``quietly`` calls no user code.

        Differs from it in that retries do not help: the job has had its second chances.
        """
        job, queue, tape = self._prepare(Claim(*fields))
        worker = self._worker
        with hooks.around_job():
            job.ended_at = now()
            if not quietly:
                error = AbandonedJobError(reason)
                stack: Any = rq_api.traceback_of_abandoned(traceback.extract_stack())
                self._attempt(
                    job,
                    lambda: rq_api.failure_callback(job, worker.death_penalty_class, AbandonedJobError, error, stack),
                )
                self._attempt(job, lambda: self._call_handlers(job, AbandonedJobError, error, stack))
            text = f"Moved to FailedJobRegistry, due to AbandonedJobError, at {now()}: {reason}"
            job.retries_left = None
            worker.handle_job_failure(job, queue=queue, exc_string=text, **rq_api.with_execution(worker.held))
        self._deliver(tape)

    def _call_handlers(self, job: Job, *exc_info: Any) -> None:
        for handler in self._worker._exc_handlers:
            if handler(job, *exc_info) is False:
                break

    def _attempt(self, job: Job, call: Callable[[], Any]) -> None:
        """Call what runs user code; an error in it must not keep the job's end from being recorded."""
        try:
            call()
        except BaseException:  # also SystemExit, as RQ does with callbacks
            self._worker.log.exception("Worker %s: job %s: a callback or handler failed", self._worker.name, job.id)

    def _fail(self, fields: tuple[Any, ...], reason: str) -> None:
        """Record a failure with this reason, for a job whose own outcome the server refused."""
        job, queue, tape = self._prepare(Claim(*fields))
        job.ended_at = job.started_at = now()
        self._worker.handle_job_failure(job, queue=queue, exc_string=reason, **rq_api.with_execution(self._worker.held))
        self._deliver(tape)

    def _settle(self, fields: tuple[Any, ...], tolerant: bool, status: str, *commands: Any) -> None:
        """Complete the outcome of a job that has dependents.

        To its ``commands``, packed, this adds what RQ's ``enqueue_dependents`` writes, based on reads that guard the
        commit; ``tolerant`` when some of these have changed each time, so that only those that RQ watches do.
        """
        job, queue, tape = self._prepare(Claim(*fields))
        tape.tolerant = tolerant
        tape.status = status.encode()
        tape.expect_dependents()
        with self._recorder.record_to(tape):
            rq_api.enqueue_dependents(queue, job)
        self._deliver(tape, commands)

    def _maintain(self, first: Sequence[Any]) -> None:
        """Run RQ's maintenance of registries, with the callbacks and handlers of abandoned jobs; then sweep.

        ``first`` is a command that has to be done right before, see postpone.lua.
        """
        relay = Relay(self._channel, self._recorder, self._large)
        try:
            relay.execute([first])
            with hooks.around_job(), relay.carry():
                try:
                    self._worker.run_maintenance_tasks()
                except Exception as error:  # noqa: BLE001 - see horse/maintenance.py
                    check_unreadable(error)
                    screen_groups(self._worker, error)
            sweep_in_maintenance(self._worker.queue_names(), self._policies, relay.execute, self._worker.log)
        except (RedisError, Refused) as error:  # lost, or refused by an access control list
            self._worker.log.warning("Worker %s: maintenance given up: %s", self._worker.name, message_of(error))

    def _schedule(self, token: str, life: int) -> None:
        """Move rq-scheduler's jobs that are due, under its lock, which the parent has taken; give it back then."""
        # Here, since who has no scheduler needs none of this.
        from ..scheduler.mover import BATCH, Mover, ScheduleLock
        from ..store.scripts import SCHEDULER_LOCK, shared_scripts

        worker, relay = self._worker, Relay(self._channel, self._recorder, self._large)
        try:
            with relay.carry():
                scripts = shared_scripts()
                mover = Mover(
                    self._recorder, relay.run_script, scripts, worker.job_class, worker.queue_class, worker.log
                )
                moved = mover.move_due(ScheduleLock(token, life), 5 * BATCH)
                relay.run_script(scripts.unlock(SCHEDULER_LOCK, token))
            worker.log.info("Worker %s: enqueued %d jobs of rq-scheduler", worker.name, len(moved))
        except (RedisError, Refused) as error:
            worker.log.warning("Worker %s: moving jobs of rq-scheduler given up: %s", worker.name, message_of(error))

    def _prepare(self, claim: Claim) -> tuple[Job, Queue, Tape]:
        worker, recorder = self._worker, self._recorder
        worker.name = claim.worker_name
        if claim.left_out:
            large = self._large.read(Job.key_for(claim.job_id), claim.left_out)
            claim = claim._replace(raw={**claim.raw, **large}, left_out=())
        self._claim = claim
        execution = Execution(claim.execution_id, claim.job_id, recorder, worker_name=claim.worker_name)
        execution.created_at = execution.last_heartbeat = _from_timestamp(claim.created_at)
        rq_api.hold(worker, execution)
        worker.tape = Tape(claim.job_id, claim.execution_id, execution.serialize, self._read)
        job = worker.job_class(claim.job_id, connection=recorder, serializer=self._serializer)
        job.restore(claim.raw)
        worker.raw, worker.raw_key, worker.before = claim.raw, job.key.encode(), snapshot(job)
        recorder.running, recorder.outcome = job.key, worker.tape
        if job.webhooks:
            # On the object, since job classes are the user's: sent once the outcome is known to be recorded.
            job.send_webhooks = lambda status, *, exc_string=None: self._webhooks.append(  # type: ignore[method-assign]
                (job, status, exc_string)
            )
        return job, self._queue(claim.queue_key), worker.tape

    def _queue(self, key: str) -> Queue:
        queue = self._queues.get(key)
        if queue is None:
            worker = self._worker
            queue = self._queues[key] = worker.queue_class.from_queue_key(
                key,
                connection=self._recorder,
                job_class=worker.job_class,
                serializer=worker.serializer,
                death_penalty_class=worker.death_penalty_class,
            )
        return queue

    # -- the parent ----------------------------------------------------------------------------------------------

    def _deliver(self, tape: Tape, commands: tuple[Any, ...] | None = None) -> None:
        """Send the outcome, packed for the server; with ``commands``, the tape's own are those of dependents.

        It is not recorded yet; only webhooks wait for that.
        """
        if STALLS in self._worker.raw:  # whatever became of it, it has come to an end
            tape.write([b"HDEL", self._worker.raw_key, STALLS])
        if commands is None:
            tape.commands += once.closing_commands(self._worker.raw, tape.job_id, tape.succeeded)
            tape.commands += rq_api.closing_commands(self._worker.raw, tape.job_id, tape.status)
        words: list[Word] = []
        for digest, read in tape.guards:
            words += [digest, len(read), *read]
        guards = (len(tape.guards), *pack(words))
        tape.delivered = True
        try:
            mine = self._packed(tape.commands)
        except Refused as error:
            reason = f"The outcome could not be recorded: {error}"
            if commands is not None or tape.status == b"failed":
                raise Refused(reason) from error
            self._webhooks.clear()
            self._fail(tuple(self._claim), reason)
            return
        parts = (guards, mine, _NOTHING) if commands is None else (guards, commands, mine)
        self._outbox.append(("outcome", tape.status.decode(), *parts, bool(self._webhooks)))
        if self._webhooks:
            self._channel.send(*self._outbox)
            self._outbox.clear()
            webhooks, self._webhooks = self._webhooks, []
            if self._channel.receive() == ("committed", True):
                self._recorder.outcome = None
                for job, status, exc_string in webhooks:
                    type(job).send_webhooks(job, status, exc_string=exc_string)

    def _packed(self, commands: Sequence[Sequence[Word]]) -> tuple[int, int, bytes]:
        """Return commands as they travel; large values in them go ahead, over a connection that nobody else needs."""
        packed = pack_runs(commands)
        if len(packed.data) > LARGE and self._large.known:
            commands = without_known(commands, self._large.known)
            packed = pack_runs(commands)
        if len(packed.data) > LARGE:
            commands, values = set_apart(commands)
            packed = pack_runs(commands)
            if values:
                self._channel.send(("phase", -1))
                self._large.put_aside(self._claim, values)
        return (len(commands), *packed)

    def _read(self, commands: Sequence[Sequence[bytes]]) -> list[tuple[bytes, Any]]:
        _kind, replies = self._channel.ask(("read", [list(words) for words in commands]))
        if isinstance(replies, str):
            raise ResponseError(f"the server refused a read on which an outcome depends: {replies}")
        answers = []
        for words, (digest, reply, *left_out) in zip(commands, replies):
            if left_out:
                self._channel.send(("phase", -1))
                reply = self._large.complete(reply, words[1], *left_out)
                self._channel.send(("phase", HANDLER_TIME))
            answers.append((digest, reply))
        return answers

    def _announcing(self, penalty: Any) -> Any:
        """Return ``penalty`` with each phase announced, so that the parent knows when to kill this process.

        The first phase, the job itself, is not: the parent knows its timeout from the job's hash. After a callback come
        exception handlers, which have no limit of their own.
        """
        horse = self

        class Announcing(penalty):  # type: ignore[misc]
            def setup_death_penalty(self) -> None:
                self._of_callback = not horse._worker.begins
                horse._worker.begins = False
                if self._of_callback:
                    horse._worker.announce(self._timeout)
                super().setup_death_penalty()

            def cancel_death_penalty(self) -> None:
                super().cancel_death_penalty()
                if self._of_callback:
                    horse._worker.announce(HANDLER_TIME)

            def handle_death_penalty(self, *args: Any) -> None:
                horse._alarm_fired = True
                super().handle_death_penalty(*args)

        return Announcing

    def _abandoned(self, job_class: type[Job]) -> type[Job]:
        """Return ``job_class`` for the jobs that RQ's maintenance gives up.

        There, an error in one's failure callback would end the clean-up of all registries, each time again. And RQ
        would use a time limit of which the parent does not know.
        """
        horse, penalty = self, self._worker.death_penalty_class

        class Abandoned(job_class):  # type: ignore[misc, valid-type]
            def restore(self, raw_data: Any) -> None:
                super().restore(raw_data)
                self._raw = raw_data

            def retry(self, queue: Queue, pipeline: Any) -> None:
                already = len(pipeline.command_stack)
                attempts.retry_in_one_step(super().retry, self, queue, pipeline)
                written = [horse._recorder.encode(args) for args, _ in pipeline.command_stack[already:]]
                next_at = Rules.read(self._raw) and attempts.next_try(self, written)
                if next_at:
                    text = "Tried again, due to AbandonedJobError, which RQ's clean-up found"
                    attempts.note(self, text, next_at, "", None, pipeline)

            def execute_failure_callback(self, _penalty: Any, *exc_info: Any) -> None:
                attempts.decide(self, self._raw, AbandonedJobError)
                horse._attempt(self, lambda: super(Abandoned, self).execute_failure_callback(penalty, *exc_info))
                horse._channel.send(("phase", -1))

        return Abandoned

    def _on_abandoned(self, job: Any, run: Callable[[Any], None], penalty: Any) -> None:
        """As above, for RQ 3, where it is no method of the job's."""
        attempts.decide(job, job._raw, AbandonedJobError)
        self._attempt(job, lambda: run(penalty))
        self._channel.send(("phase", -1))

    # -- hygiene -------------------------------------------------------------------------------------------------

    def _clean_up(self) -> bool:
        """Leave nothing of a job to the next one; return whether this process should end instead."""
        self._large.known.clear()
        self._recorder.running = self._recorder.outcome = None
        pool: Any = self._recorder.connection_pool
        # A read that was interrupted would give the next job somebody else's reply. The parent closes the streams that
        # are owed one; with JOBS_SHARE=no the server is asked.
        if pool.in_use or self._alarm_fired:
            pool.disconnect()
        if not self._shares:
            pool.close_unanswered(_PATIENCE)
        self._surroundings.restore()
        return (
            self._jobs_left <= 0
            or self._alarm_fired
            or self._must_leave
            or not pool.is_whole
            or self._surroundings.has_new_threads()
            or self._surroundings.has_closed_streams()
            or self._surroundings.is_spoilt()
            or self._has_children()
            or self._is_too_big()
        )

    def _has_children(self) -> bool:
        if not has_children():
            return False
        if has_doomed_children():
            self._worker.log.warning(
                "Worker %s: a job left a process behind, which ends now with its horse; "
                "subprocess.Popen(..., start_new_session=True) lets it live",
                self._worker.name,
            )
        return True

    def _is_too_big(self) -> bool:
        if self._max_memory is None or (size := resident_megabytes()) <= self._max_memory:
            return False
        self._worker.log.info(
            "Worker %s: its horse holds %.0f MB, above MAX_HORSE_MEMORY=%g; replacing it",
            self._worker.name,
            size,
            self._max_memory,
        )
        return True


def _from_timestamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=timezone.utc)
