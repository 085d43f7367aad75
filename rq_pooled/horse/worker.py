"""The RQ worker inside a horse: RQ's own handlers, with their writes recorded instead of sent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from rq.exceptions import AbandonedJobError
from rq.job import Job
from rq.queue import Queue
from rq.results import Result
from rq.utils import now
from rq.worker import Worker

from .. import rq_api
from ..originals import is_rqs_own
from ..retry import attempts, backoff
from .recorder import Recorder
from .success import ShortWay, is_plain, plain_success, written_by
from .tape import Tape
from .time_limits import HANDLER_TIME
from .tolerant_maintenance import maintain_each


class _Discard:
    """Takes what RQ writes when a job begins: the claim script has written it already."""

    def hset(self, *_args: Any, **_kwargs: Any) -> None:
        """Write nothing."""


class HorseMixin(Worker):
    """Turns the worker of a forked child into its horse; mixed in front of the worker's own class.

    Overridden are the steps at which RQ writes to Redis. ``perform_job`` and ``handle_exception`` are not: Sentry's
    integration wraps them.
    """

    connection: Recorder
    tape: Tape
    #: The execution that is recorded; unlike ``execution``, which RQ 3 looks up in Redis where there is none.
    held: Any = None
    #: The running job's hash as it was claimed, and its attributes when it was rebuilt from it.
    raw: Mapping[bytes, bytes] = {}
    raw_key: bytes = b""
    before: Mapping[str, Any] = {}
    #: The next time limit that is set is the job's own.
    begins: bool = False
    #: A time limit has struck in this process.
    alarm_fired: bool = False
    #: Tells the parent how many seconds the phase that begins now may take.
    announce: Callable[[float], None]
    short_way = ShortWay()

    def clean_registries(self) -> None:
        """Have RQ clean the registries of each queue, whatever stands in the others."""
        maintain_each(self, super().clean_registries)

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:
        """Set on the job object what RQ sets; replaces RQ's pipeline, whose writes the claim script made."""
        job.prepare_for_execution(self.name, _Discard())  # type: ignore[arg-type]
        # This line fails where the job cannot be read.
        self.procline(f"Processing {job.func_name} from {job.origin}")
        self.begins = True

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        """Set the times; replaces RQ's write of the heartbeat: each handler that follows saves the job."""
        job.ended_at = job.last_heartbeat = now()
        # RQ calls this while it handles what the job raised: handlers follow.
        if sys.exc_info()[0] is not None:
            self.announce(HANDLER_TIME)

    def cleanup_execution(self, job: Job, pipeline: Any, execution: Any = None) -> None:
        """Forget the execution; replaces RQ's four writes, which the commit script makes for every outcome."""
        rq_api.hold(self, None)

    def handle_job_success(self, job: Job, queue: Queue, started_job_registry: Any, execution: Any = None) -> None:
        """As RQ, recorded; a plain success goes a shorter way to the same end."""
        result_ttl = job.get_result_ttl(self.default_result_ttl)
        inherited = super().handle_job_success
        if (
            self.held is not None
            and self.short_way.is_open(inherited, type(self), type(queue))
            and is_plain(job, self.raw, self.before, result_ttl)
        ):
            assert job.ended_at and job.started_at
            command = plain_success(job, self.held.created_at.timestamp(), self.name, result_ttl)
            keys = job.key, Result.get_key(job.id)
            execution_id, encode = self.held.id, self.connection.encode
            self.tape.plain(command, lambda: [encode(words) for words in written_by(command, *keys, execution_id)])
            self.tape.complete = True
            rq_api.hold(self, None)
            self.log_success(job)
            return
        # RQ deletes the hash of such a job then; the entries of its failed tries are ours to delete.
        leaves_tries = result_ttl == 0 and not job.repeats_left and backoff.FIELD.encode() in self.raw
        self._expect_own_ways_of(queue, failed=False)
        with self.connection.record_to(self.tape):
            # By keywords, as RQ calls it: OpenTelemetry finds the queue by its name.
            keywords = rq_api.with_execution(self.held)
            inherited(job=job, queue=queue, started_job_registry=started_job_registry, **keywords)
            if leaves_tries:
                self.connection.delete(Result.get_key(job.id))
        self.tape.succeeded = self.tape.complete = True

    def log_success(self, job: Job, info: Callable[..., None] | None = None) -> None:
        """Log that the job has succeeded, as RQ's handler does; by ``info``, if that is given."""
        assert job.ended_at and job.started_at
        what = job.description if self.log_job_description else job.id
        line = "Successfully completed %s job in %ss on worker %s"
        line = line if self.log_job_description else "Successfully completed job %s in %ss on worker %s"
        (info or self.log.info)(line, what, job.ended_at - job.started_at, self.name)

    def _expect_own_ways_of(self, queue: Queue, failed: bool) -> None:
        """Let a queue class that enqueues dependents in its own way see them in the first pass.

        RQ's own way gets a second one if there are any, see ``settle``. A second call of an override would do twice
        what it does besides. What it reads is no reason for one, unless RQ watches it.
        """
        if not all(map(is_rqs_own, rq_api.enqueues_dependents(type(queue), failed))):
            self.tape.tolerant = True
            self.tape.ask_for_dependents()

    def handle_job_failure(self, *args: Any, **kwargs: Any) -> None:
        """As RQ, recorded; during maintenance, which finds jobs without a claim, written at once.

        Passes its arguments on as it was given them, since instrumentations tell keywords from places.
        """
        if self.connection.relay is not None:
            super().handle_job_failure(*args, **kwargs)
            return
        job = kwargs["job"] if "job" in kwargs else args[0]
        queue = kwargs["queue"] if "queue" in kwargs else args["job" not in kwargs]
        # RQ calls this while it handles the job's exception. A job whose process died raised none.
        rules = None
        if self._stopped_job_id != job.id:
            rules = attempts.decide(job, self.raw, sys.exc_info()[1] or AbandonedJobError)
        execution, already = self.held, len(self.tape.commands)
        self.tape.succeeded = self.tape.complete = False
        self._expect_own_ways_of(queue, failed=True)
        with self.connection.record_to(self.tape):
            super().handle_job_failure(*args, **kwargs)
            next_at = rules and attempts.next_try(job, self.tape.commands[already:])
            if next_at:
                text = kwargs.get("exc_string", "")
                attempts.note(job, text, next_at, self.name, execution, self.connection)
        self.tape.complete = True

    def handle_job_retry(self, *args: Any, **kwargs: Any) -> None:
        """As RQ, recorded."""
        with self.connection.record_to(self.tape):
            super().handle_job_retry(*args, **kwargs)
        self.tape.complete = True

    def set_current_job_working_time(self, current_job_working_time: float, pipeline: Any = None) -> None:
        """Keep the value; replaces RQ's write: the heartbeat publishes it."""
        self.current_job_working_time = current_job_working_time


def attempt(worker: HorseMixin, job: Job, call: Callable[[], Any]) -> None:
    """Call what runs user code; an error in it must not keep the job's end from being recorded."""
    try:
        call()
    except BaseException:
        # SystemExit is logged, too, as RQ does with callbacks.
        worker.log.exception("Worker %s: job %s: a callback or handler failed", worker.name, job.id)
