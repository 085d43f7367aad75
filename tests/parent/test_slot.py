"""A slot, and what becomes of a task whose horse died of it, without horses."""

from __future__ import annotations

from collections import deque
from resource import RUSAGE_SELF, getrusage
from typing import Any

import pytest
from parts import claim_of, context_of

from rq_pooled.parent.slot import Slot, Task, send_receipt
from rq_pooled.parent.task_deaths import TaskDeaths
from rq_pooled.store.commit import Outcome

USAGE = getrusage(RUSAGE_SELF)


class Parts:
    """Deaths, with the tasks and outcomes that came of them."""

    def __init__(self) -> None:
        self.tasks: deque[Task] = deque()
        self.outcomes: list[Outcome] = []
        self.deaths = TaskDeaths(context_of(), tasks=self.tasks, on_outcome=self.outcomes.append)

    def die(self, task: Task) -> None:
        """Have a horse die of a task."""
        self.deaths.on_death(task, 4711, 9, USAGE, False)


def test_a_claim_is_held_until_its_outcome_is_there() -> None:
    """A slot holds its claim while its horse runs the job: not after the outcome, and not when others have the job."""
    slot = Slot("w", lambda *_: None)
    assert slot.claim is None
    for ends in ("delivered", "handed_on"):
        slot.task = Task("perform", claim_of("a"))
        assert slot.claim == claim_of("a")
        setattr(slot, ends, True)
        assert slot.claim is None
        slot.end()
        assert not slot.delivered and not slot.handed_on


def test_only_the_horse_that_waits_hears_of_its_record() -> None:
    """A receipt reaches the horse that has still the task it waits with; another one, and a dead one, hears
    nothing.
    """
    told: list[Any] = []
    horse: Any = "horse"
    slot = Slot("w", lambda *words: told.append(words), horse=horse, task=Task("perform"))
    assert slot.task is not None
    receipt = (slot, slot.task)
    send_receipt(receipt, True)
    slot.horse = None
    send_receipt(receipt, True)
    slot.horse, slot.task = horse, Task("perform")
    send_receipt(receipt, True)
    send_receipt(None, True)
    assert told == [("horse", ("committed", True))]


def test_a_job_that_killed_its_horse_is_buried_by_another() -> None:
    """The death of a job is recorded in a horse; if that dies too, the next one does without the user's code."""
    parts = Parts()
    parts.die(Task("perform", claim_of("a")))
    (bury,) = parts.tasks
    assert (bury.kind, bury.arguments[:2], bury.arguments[-1]) == ("bury", (4711, 9), False)
    parts.tasks.clear()
    parts.die(bury)
    assert list(parts.tasks) == [bury] and bury.arguments[-1] is True and not parts.outcomes


@pytest.mark.parametrize("kind", ["bury", "fail", "abandon", "settle"])
def test_what_kills_two_horses_is_recorded_without_one(kind: str) -> None:
    """The second horse that dies of a task is the last; a job that had succeeded stays one, any other fails."""
    parts = Parts()
    task = Task(kind, claim_of("a"), (False, "finished", 0, 0, b"") if kind == "settle" else ("why", False))
    parts.die(task)
    assert not parts.outcomes
    parts.die(task)
    assert [outcome.status for outcome in parts.outcomes] == ["finished" if kind == "settle" else "failed"]


def test_maintenance_that_dies_is_left_for_the_next_time() -> None:
    """A task that belongs to no job is not given to another horse: its death is logged, and its interval goes on."""
    parts = Parts()
    parts.die(Task("maintain"))
    assert not parts.tasks and not parts.outcomes
