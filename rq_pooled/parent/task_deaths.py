"""What becomes of a task whose horse died of it, or could not read its job."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from resource import struct_rusage

from ..store.claim import Claim
from ..store.commit import NOTHING, Outcome, bare_failure, packed
from .context import Context
from .slot import Task


class TaskDeaths:
    """Has another horse record how a job ended, and does it without one where that horse dies, too.

    Args:
        context: as the name says.
        tasks: wait for horses.
        on_outcome: called with what is recorded without a horse.
    """

    def __init__(self, context: Context, *, tasks: deque[Task], on_outcome: Callable[[Outcome], None]) -> None:
        self._context = context
        self._tasks = tasks
        self._on_outcome = on_outcome

    def on_death(self, task: Task, pid: int, status: int, rusage: struct_rusage, stopped: bool) -> None:
        """Act on the death of a horse whose task has no outcome.

        Args:
            task: what it was at.
            pid, status, rusage: of the horse, as wait4 reports them.
            stopped: a stop-job command ended it.
        """
        claim = task.claim
        if claim is None:
            self._context.log.error("horse %d died during %s", pid, task.kind)
        elif task.kind == "perform":
            self._tasks.append(Task("bury", claim, (pid, status, tuple(rusage), stopped, False)))
        elif task.deaths == 0:
            task.deaths = 1
            # Its user code killed it: the next one does without, see horse/tasks.py.
            if task.kind in ("bury", "abandon"):
                task.arguments = (*task.arguments[:-1], True)
            self._tasks.append(task)
        else:
            reason = f"Work-horse terminated unexpectedly; waitpid returned {status}; so did the one that recorded it"
            self._give_up(task, claim, str(task.arguments[0]) if task.kind == "abandon" else reason)

    def on_unreadable(self, task: Task, claim: Claim, reason: str | None = None) -> None:
        """Record the end of a job that its horse could not read.

        Args:
            task: what the horse was to do.
            claim: the task's.
            reason: why the server did not let the job pass; None: the job was deleted.
        """
        if reason is None:
            self._context.log.warning("job %s was deleted before it began", claim.job_id, worker=claim.worker_name)
            self._on_outcome(Outcome(claim, "canceled", NOTHING, NOTHING))
            return
        self._context.log.error("job %s: %s; failing it", claim.job_id, reason, worker=claim.worker_name)
        if task.kind == "bury":
            reason = f"Work-horse terminated unexpectedly; {reason}"
        elif task.kind in ("abandon", "fail"):
            # Why it fails is known already.
            reason = str(task.arguments[0])
        self._give_up(task, claim, reason)

    def _give_up(self, task: Task, claim: Claim, reason: str) -> None:
        """Record of a job what can be recorded without a horse."""
        # How the job itself ended is recorded, and must not be lost.
        if task.kind == "settle":
            _tolerant, job_status, *commands = task.arguments
            self._context.log.error("dependents of job %s were not enqueued", claim.job_id, worker=claim.worker_name)
            self._on_outcome(Outcome(claim, job_status, NOTHING, packed(commands), receipt_for=task.receipt_for))
        else:
            self._on_outcome(bare_failure(claim, reason))
