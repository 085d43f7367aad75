"""``DeadLetterRegistry``: failed jobs that were given up, per queue, bounded by age and count; an RQ registry."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.queue import Queue
from rq.registry import BaseRegistry, FailedJobRegistry

from ..pool.registry import get_connection
from ..rq_version import check_rq
from ..signing.serializer import sealed
from ..store.inert_jobs import fetch_inert
from ..store.keys import dead_letters_key, results_key
from ..wire import text
from .policies import DEAD_AGE, DEAD_COUNT, Requeue
from .report import Report
from .selection import Selection
from .sweeper import Sweeper


class DeadLetterRegistry(BaseRegistry):
    """The dead letters of a queue. A sweep's ``Bury`` puts jobs here; requeueing takes them out.

    A dead letter is a job with the status *failed* that stands here instead of in the failed registry. It is deleted
    when its time is over, or when it is the oldest of too many; ``Bury`` sets both bounds.

    Args:
        name: the name of the queue.
        connection: a connection to the server; by default that of ``queue``, else the process's pool.
        queue, args, kwargs: as for RQ's registries.
    """

    # Braces of a prefix are doubled, because RQ formats this text.
    key_template = dead_letters_key("").replace("{", "{{").replace("}", "}}") + "{0}"

    def __init__(
        self,
        name: str = "default",
        connection: Redis | None = None,
        job_class: type[Job] | None = None,
        queue: Queue | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        check_rq()
        if connection is None and queue is None:
            connection = get_connection()
        super().__init__(name, connection, job_class, queue, *args, **kwargs)
        self.serializer = sealed(self.serializer)

    def cleanup(self, timestamp: float | None = None, exception_handlers: list[Any] | None = None) -> None:
        """Remove entries whose time is over; their jobs expire at the same time."""
        end = "(" + str(timestamp) if timestamp is not None else self._now()
        self.connection.zremrangebyscore(self.key, "-inf", end)

    def add(self, job: Job, ttl: int = DEAD_AGE, pipeline: Pipeline | None = None, xx: bool = False) -> int:
        """Bury a failed job by hand: move it here from the failed registry for ``ttl`` seconds (-1: for ever)."""
        pipe = self.connection.pipeline() if pipeline is None else pipeline
        FailedJobRegistry(self.name, connection=pipe).remove(job, pipeline=pipe)
        for key in (job.key, job.dependents_key, job.dependencies_key, results_key(job.id)):
            if ttl < 0:
                pipe.persist(key)
            else:
                pipe.expire(key, ttl)
        added: int = super().add(job, ttl, pipeline=pipe, xx=xx)
        return added if pipeline is not None else int(pipe.execute()[-1])

    def requeue(self, job_or_id: Job | str, at_front: bool = False) -> Job:
        """Put one dead letter back into its queue, in one step, with as many retries as it had at first.

        The job is returned with the plain values of its ``meta``; ``get_meta()`` loads the others.

        Raises:
            rq.exceptions.NoSuchJobError: the job is gone; its entry is removed.
            rq.exceptions.InvalidJobOperation: it is no dead letter (any more).
            NotVerified: it was put back, and is not returned, because its data are too large to be unpacked.
        """
        job_id = job_or_id.id if isinstance(job_or_id, Job) else job_or_id
        words = self._sweeper().requeue_ids(self.name, [job_id], Requeue(at_front=at_front))
        if words[job_id] == "ghost":
            raise NoSuchJobError(f"No such job: {job_id}")
        if words[job_id] != "done":
            raise InvalidJobOperation(f"job {job_id} is no dead letter of {self.name!r}")
        return fetch_inert(self.job_class, job_id, self.connection, self.serializer)

    def requeue_many(self, policy: Requeue | None = None, dry_run: bool = False) -> Report:
        """Put back all dead letters, or those that the policy selects, page by page; see ``Sweeper.run``."""
        (report,) = self._sweeper(policy or Requeue()).run(dry_run, check_queues=False)
        return report

    def trim(self, max_count: int = DEAD_COUNT) -> int:
        """Delete the oldest dead letters beyond ``max_count``; return how many."""
        return self._sweeper().trim(self.name, max_count)

    def find(self, selection: Selection) -> list[str]:
        """Return the ids of the selected dead letters, the oldest first."""
        return [job.id for job in self._sweeper().jobs(self.name, selection)]

    def get_job_ids(self, start: int = 0, end: int = -1, desc: bool = False, cleanup: bool = True) -> list[str]:
        """Return ids in the order of burial, as RQ's registries do."""
        if cleanup:
            self.cleanup()
        ids: list[bytes] = self.connection.zrange(self.key, start, end, desc=desc)  # type: ignore[assignment]
        return [text(job_id) for job_id in ids]

    def _now(self) -> str:
        seconds, microseconds = self.connection.time()
        return f"{seconds}.{microseconds:06d}"

    def _sweeper(self, *policies: Requeue) -> Sweeper:
        return Sweeper(self.name, self.connection, policies, dead=True)
