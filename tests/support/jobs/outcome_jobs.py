"""Workers and queues of users that look at a job's outcome, or add to it, while it is being recorded."""

from __future__ import annotations

from typing import Any

import rq
from rq.job import Dependency, Job

import rq_pooled


def look(job: Job) -> dict[str, Any]:
    """Return what a program that has the job in its hands reads of it, by every way that RQ has."""
    fetched = Job.fetch(job.id, connection=job.connection) if Job.exists(job.id, job.connection) else None
    seen: dict[str, Any] = {"exists": fetched is not None}
    if fetched is not None:
        job.refresh()
        seen.update(
            status=str(getattr(job.get_status(), "value", "")),
            flags=[job.is_finished, job.is_failed, job.is_started, job.is_queued, job.is_scheduled],
            ended=[each.ended_at is not None and each.started_at <= each.ended_at for each in (job, fetched)],
            worker=fetched.worker_name,
            meta=[job.get_meta(), fetched.meta],
        )
    result = job.latest_result()
    waited = job.latest_result(timeout=1) if result is not None else None
    seen.update(
        value=repr(job.return_value(refresh=True)),
        results=[each.type.name for each in job.results()],
        result=result and [result.type.name, result.worker_name, result.execution_id is not None],
        waited=waited and waited.type.name,
        error=(result.exc_string or "").strip().splitlines()[-1:] if result else None,
    )
    return seen


class Looking:
    """Mixed into a worker: prints what can be read of each job when ``perform_job`` has returned, as an APM does."""

    connection: Any

    def perform_job(self, job: Job, queue: rq.Queue, *args: Any, **kwargs: Any) -> bool:
        done: bool = super().perform_job(job, queue, *args, **kwargs)  # type: ignore[misc]
        self.connection.rpush("seen", repr([job.id, look(job)]))
        # What is written now is the last word, as in RQ.
        if self.connection.exists(job.key):
            job.meta["after"] = "all"
            job.save_meta()
        return done


class LookingWorker(Looking, rq_pooled.Worker):
    """Ours."""


class StockLookingWorker(Looking, rq.SimpleWorker):
    """RQ's."""


class AskingWorker(rq_pooled.Worker):
    """Asks what Datadog asks, and for the result."""

    def perform_job(self, job: Job, queue: rq.Queue, *args: Any, **kwargs: Any) -> bool:
        done: bool = super().perform_job(job, queue, *args, **kwargs)
        assert (job.get_status(), job.is_failed, job.is_finished) == ("finished" if done else "failed", not done, done)
        assert job.latest_result() is not None
        return done


def save_meta(value: int) -> int:
    """Save meta while the job runs."""
    job = rq.get_current_job()
    assert job is not None
    job.meta["value"] = value
    job.save_meta()
    return value


def follow(queue: rq.Queue, job: Job, label: str, **options: Any) -> None:
    """Enqueue a job that depends on this one; not for each follow-up again."""
    if "-" not in job.id:
        queue.enqueue("jobs.nothing", depends_on=job, job_id=f"{job.id}-{label}", **options)


class Before:
    """Mixed into a worker: enqueues a dependent job before RQ's handler, which enqueues dependents."""

    queue_class: Any
    connection: Any

    def handle_job_success(self, job: Job, queue: rq.Queue, *args: Any, **kwargs: Any) -> None:
        follow(queue, job, "before")
        super().handle_job_success(job, queue, *args, **kwargs)  # type: ignore[misc]

    def handle_job_failure(self, job: Job, queue: rq.Queue, *args: Any, **kwargs: Any) -> None:
        follow_failure(queue, job, "before")
        super().handle_job_failure(job, queue, *args, **kwargs)  # type: ignore[misc]


def follow_failure(queue: rq.Queue, job: Job, label: str) -> None:
    """Enqueue a job that runs although this one fails."""
    if "-" not in job.id:
        dependency: Any = Dependency([job], allow_failure=True)
        queue.enqueue("jobs.nothing", depends_on=dependency, job_id=f"{job.id}-{label}")


class After:
    """Mixed into a worker: enqueues a dependent job after RQ's handler, through the handler's queue and others."""

    queue_class: Any
    connection: Any

    def handle_job_success(self, job: Job, queue: rq.Queue, *args: Any, **kwargs: Any) -> None:
        super().handle_job_success(job, queue, *args, **kwargs)  # type: ignore[misc]
        follow(queue, job, "after")
        follow(rq.Queue("other", connection=job.connection), job, "other", at_front=True, meta={"who": "me"})
        follow(rq_pooled.Queue("other", self.connection), job, "pooled")


class AroundPerform:
    """Mixed into a worker: enqueues a dependent job when ``perform_job`` has returned."""

    queue_class: Any
    connection: Any

    def perform_job(self, job: Job, queue: rq.Queue, *args: Any, **kwargs: Any) -> bool:
        done: bool = super().perform_job(job, queue, *args, **kwargs)  # type: ignore[misc]
        follow(queue, job, "performed")
        follow(rq_pooled.Queue("other", self.connection), job, "pooled")
        return done


class ByHandQueue(rq.Queue):
    """Enqueues dependents in its own way."""

    def enqueue_dependents(self, job: Job, pipeline: Any = None, **kwargs: Any) -> None:
        for dependent_id in job.dependent_ids:
            dependent = self.job_class.fetch(dependent_id, connection=self.connection)
            self.deferred_job_registry.remove(dependent)
            self._enqueue_job(dependent)
        self.connection.delete(job.dependents_key)


class CountingQueue(rq.Queue):
    """Counts, and leaves out the pipeline that it was given."""

    def enqueue_dependents(self, job: Job, pipeline: Any = None, **kwargs: Any) -> None:
        self.connection.incr("counted")
        super().enqueue_dependents(job, **kwargs)


class FollowingQueue(rq.Queue):
    """Adds a dependent of its own in the transaction that enqueues the others."""

    def enqueue_dependents(self, job: Job, pipeline: Any = None, **kwargs: Any) -> None:
        super().enqueue_dependents(job, pipeline=pipeline, **kwargs)
        if "-" not in job.id:
            self.enqueue("jobs.nothing", job_id=f"{job.id}-next")


class BeforeWorker(Before, rq_pooled.Worker): ...


class StockBeforeWorker(Before, rq.SimpleWorker): ...


class AfterWorker(After, rq_pooled.Worker): ...


class StockAfterWorker(After, rq.SimpleWorker): ...


class AroundWorker(AroundPerform, rq_pooled.Worker): ...


class StockAroundWorker(AroundPerform, rq.SimpleWorker): ...
