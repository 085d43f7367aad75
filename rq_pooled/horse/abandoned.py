"""Jobs that RQ's maintenance gives up: one that fails there stops no other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rq.exceptions import AbandonedJobError
from rq.job import Job
from rq.queue import Queue

from .. import rq_api
from ..errors import NotVerified
from ..retry import attempts
from ..retry.backoff import Rules
from ..signing.policy import current
from .screening import Screened
from .worker import HorseMixin, attempt


def use_in_maintenance(worker: HorseMixin) -> None:
    """Have RQ's maintenance call failure callbacks one by one, each with a time limit that the parent knows.

    RQ lets an error in a callback end the clean-up of all registries, each time again, and takes its own time limit.
    """
    penalty = worker.death_penalty_class
    # RQ 3 calls a function; the job's method, which ``_abandoned`` replaces, is RQ 2's.
    if rq_api.RQ3:
        rq_api.on_abandoned(lambda job, run: _call_back(worker, job, lambda: run(penalty)))
    worker._exc_handlers = [_for_verified(worker, handler) for handler in worker._exc_handlers]
    # The worker's own queues are used by maintenance only.
    for queue in worker.queues:
        queue.job_class = _abandoned(queue, worker, penalty)


def _for_verified(worker: HorseMixin, handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return an exception handler that is not called with a job that is not loaded, and has the rights of jobs."""

    @functools.wraps(handler)
    def handle(job: Job, *exc_info: Any) -> Any:
        screened = getattr(job, "_screened", None)
        if screened is not None and screened.refusal is not None:
            return None
        with worker.connection.live():
            return handler(job, *exc_info)

    return handle


def _abandoned(home: Queue, worker: HorseMixin, penalty: Any) -> type[Job]:
    class Abandoned(home.job_class):  # type: ignore[misc, name-defined]
        #: The queue from which it has to be: None for ready jobs, which RQ fetches together, see to_dict.
        _home: Queue | None = None

        def refresh(self) -> None:
            # One that is fetched alone stands in a registry of this queue.
            self._home = home
            super().refresh()

        def restore(self, raw_data: Any) -> None:
            self._raw = raw_data
            self._screened = Screened(current(), self, self._home, raw_data, super().restore)
            self._came_from = self.origin
            if self._screened.unreadable and not self.origin:
                # It would fail in no queue.
                raise ValueError(self._screened.refusal)

        def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            # RQ takes what stands in a queue's registry of ready jobs for its own: it would be signed for that queue.
            if current().keys is not None and self.origin != self._came_from:
                raise NotVerified(f"job {self.id} of {self._came_from} stands in a registry of {self.origin}")
            fields: dict[str, Any] = super().to_dict(*args, **kwargs)
            return fields

        def retry(self, queue: Queue, pipeline: Any) -> None:
            already = len(pipeline.command_stack)
            attempts.retry_in_one_step(super().retry, self, queue, pipeline)
            written = [worker.connection.encode(args) for args, _ in pipeline.command_stack[already:]]
            next_at = Rules.read(self._raw) and attempts.next_try(self, written)
            if next_at:
                text = "Tried again, due to AbandonedJobError, which RQ's clean-up found"
                attempts.note(self, text, next_at, "", None, pipeline)

        def execute_failure_callback(self, _penalty: Any, *exc_info: Any) -> None:
            _call_back(worker, self, lambda: super(Abandoned, self).execute_failure_callback(penalty, *exc_info))

    return Abandoned


def _call_back(worker: HorseMixin, job: Any, call: Callable[[], Any]) -> None:
    # Then the name of its callback is anybody's.
    if job._screened.refusal is not None:
        return
    attempts.decide(job, job._raw, AbandonedJobError)
    with worker.connection.live():
        attempt(worker, job, call)
    worker.announce(-1)
