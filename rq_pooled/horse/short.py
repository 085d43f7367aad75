"""A short way for plain jobs, from the claim to the packed outcome: what RQ's ``perform_job`` does, as ``success.py``.

Whether a job is plain is looked at once per kind, and whether all functions that are passed over are RQ's own once per
job. What does not end as a plain success is told to RQ's ``perform_job``, which then records it: that the job raises
this, or returns that.
"""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import rq.worker.base
from rq.job import Job, JobStatus, Retry
from rq.logutils import blue, green
from rq.queue import Queue
from rq.timeouts import JobTimeoutException
from rq.utils import now

from .. import rq_api
from ..frequent_lines import FrequentLines
from ..originals import is_rqs_own
from ..store.claim import STALLS, Claim
from ..wire import Packed
from .kinds import OWN, Kind
from .large import LARGE
from .outcome import Outcomes
from .success import ALWAYS_WRITTEN, is_as_before, packed_head, packed_success, snapshot
from .tape import Tape
from .worker import HorseMixin


def _those(owner: Any, *names: str) -> Any:
    """Return what gets those of these attributes, at least two, that this version of RQ has."""
    return operator.attrgetter(*(name for name in names if hasattr(owner, name)))


#: What is passed over, by what holds it.
_OF_JOBS = _those(
    Job, *("prepare_for_execution", "get_result_ttl", "send_webhooks", "success_callback", "execute_success_callback")
)
_OF_WORKERS = _those(rq.worker.base.BaseWorker, "perform_job", "_finalize_success", "procline")
_OF_MODULE = _those(rq.worker.base, "now", "execute_success_callback", "green")
#: Fields of ours that make a job one that is not plain begin with this.
_ONCE = b"rq_pooled_once"
#: What outcomes begin with is kept for so many queues.
_MAX_HEADS = 1000


class ShortRun:
    """Runs the plain jobs of one horse.

    Args:
        worker: the horse's.
        outcomes: rebuilds jobs, and takes what RQ's own code records.
    """

    def __init__(self, worker: HorseMixin, outcomes: Outcomes) -> None:
        self._worker = worker
        self._outcomes = outcomes
        #: The worker's own class, whose handlers ours call.
        classes = type(worker).__mro__
        self._next_class: Any = classes[classes.index(HorseMixin) + 1]
        self._heads: dict[tuple[str, str], str] = {}
        self._lines = FrequentLines(worker.log)
        self._functions: tuple[Any, ...] = (None,)
        self._is_open = False
        #: The functions have been looked at since another way was taken.
        self._looked = False
        self._job: Job
        self._kind: Kind
        self._queue_key = ""
        #: What became of the last job: its packed outcome, or the tape that RQ's own code wrote.
        self.outcome: Packed | None = None
        self.tape: Tape | None = None

    def _look(self, queue: Queue) -> bool:
        """Tell whether nothing is passed over but RQ's own functions."""
        worker = self._worker
        kind = type(worker)
        functions = (*_OF_WORKERS(kind), *_OF_JOBS(Job), *_OF_MODULE(rq.worker.base))
        # By identity, since wrapt's wrappers equal what they wrap.
        if not all(map(operator.is_, functions, self._functions)):
            self._functions = functions
            self._is_open = all(map(is_rqs_own, functions))
        self._looked = True
        is_open = self._is_open and "perform_job" not in vars(worker)
        return is_open and worker.short_way.is_open(self._next_class.handle_job_success, kind, type(queue))

    def takes(self, claim: Claim) -> bool:
        """Tell whether the job is to be run by ``run``; if so, it has been rebuilt."""
        kind = self._outcomes.kind_of(claim)
        if kind is None or kind.is_plain is False or self._worker.log.isEnabledFor(logging.DEBUG):
            self._looked = False
            return False
        if kind.is_plain is None:
            kind.is_plain = self._is_plain(kind)
        if not (kind.is_plain and (self._looked or self._look(self._outcomes.queue(claim.queue_key)))):
            self._looked = False
            return False
        job = self._outcomes.rebuilt_as(kind, claim)
        if job is None:
            self._looked = False
            return False
        self._job, self._kind, self._queue_key = job, kind, claim.queue_key
        return True

    def _is_plain(self, kind: Kind) -> bool:
        """Tell whether a success of such jobs is a plain one, as ``success.is_plain`` does for one."""
        attributes, fields = kind.attributes, kind.fields
        ttl = attributes.get("result_ttl")
        kind.result_ttl = self._worker.default_result_ttl if ttl is None else ttl
        return (
            type(kind.result_ttl) is int
            and kind.result_ttl != 0
            and not any(attributes.get(name) for name in ("repeats_left", "rate_limit_key", "_dependency_ids"))
            and not any(attributes.get(name) for name in ("webhooks", "_success_callback_name"))
            and fields.keys() | OWN >= ALWAYS_WRITTEN
            and STALLS not in fields
            and not any(name.startswith(_ONCE) for name in fields)
            and not fields.get(b"rate_limit_key")
        )

    def _is_plain_still(self, before: Mapping[str, Any]) -> bool:
        """Tell whether neither the job nor what is passed over has been changed by the job's code."""
        return self._look(self._outcomes.queue(self._queue_key)) and is_as_before(self._job, before)

    def run(self, claim: Claim, waited: bool) -> None:
        """Run the job that ``takes`` was told of; what became of it is in ``outcome`` or ``tape``."""
        worker, job = self._worker, self._job
        self.outcome = self.tape = None
        begun = time.time() if waited else claim.created_at
        self._outcomes.hold_execution(claim, begun)
        before = snapshot(job)
        result: Any = None
        error: BaseException | None = None
        job.worker_name = worker.name
        job.last_heartbeat = job.started_at = started_at = now()
        job._status = JobStatus.STARTED
        try:
            # This line fails where the job cannot be read.
            line = f"Processing {job.func_name} from {job.origin}"
            worker.procline(line)  # type: ignore[no-untyped-call]
            worker.begins = True
            timeout = job.timeout or worker.queue_class.DEFAULT_TIMEOUT
            with worker.death_penalty_class(timeout, JobTimeoutException, job_id=job.id):
                result = job.perform()
        except BaseException as raised:  # noqa: BLE001 - as RQ
            error = raised
        job.ended_at = job.last_heartbeat = now()
        try:
            if error is not None or isinstance(result, Retry) or not self._is_plain_still(before):
                self._repeat(claim, begun, before, started_at, result, error)
                return
            job._status = JobStatus.FINISHED
            ttl = self._kind.result_ttl
            packed = packed_success(job, begun, self._head(worker.name, job.origin), ttl)
            if len(packed.data) > LARGE:
                self._repeat(claim, begun, before, started_at, result, error)
                return
            self.outcome = packed
            if worker.log.isEnabledFor(logging.INFO):
                self._log(job, ttl)
        finally:
            # Its traceback has this frame.
            del error

    def _head(self, worker_name: str, origin: str) -> str:
        head = self._heads.get((worker_name, origin))
        if head is None:
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            head = self._heads[worker_name, origin] = packed_head(worker_name, origin)
        return head

    def _log(self, job: Job, ttl: int) -> None:
        """Log a success as RQ does."""
        worker, info = self._worker, self._lines.info
        worker.log_success(job, info)
        info("Worker %s: %s: %s (%s)", worker.name, green(job.origin), blue("Job OK"), job.id)
        if worker.log_result_lifespan and ttl > 0:
            info("Worker %s: job %s result is kept for %s seconds", worker.name, job.id, ttl)
        elif worker.log_result_lifespan:
            info("Worker %s: job %s result will never expire, clean up result key manually", worker.name, job.id)

    def _repeat(
        self, claim: Claim, begun: float, before: Any, started_at: datetime, result: Any, error: BaseException | None
    ) -> None:
        """Have RQ's own code find that the job raises this, or returns that, and record it."""
        worker, job = self._worker, self._job
        queue, self.tape = self._outcomes.hold(claim, job, before, begun)
        self._looked = False

        def perform() -> Any:
            del job.perform
            job.started_at = started_at
            if error is not None:
                # Without the frame of ``run``.
                raise error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
            return result

        job.perform = perform  # type: ignore[method-assign]
        try:
            worker.perform_job(job, queue, *rq_api.with_execution(worker.held).values())
        finally:
            vars(job).pop("perform", None)
