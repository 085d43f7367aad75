"""Defines the report of a sweep on each queue and policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .selection import FailedJob


@dataclass
class Report:
    """The result of one policy on one queue, or in a dry run the expected result."""

    queue: str
    policy: str
    dry_run: bool = False
    #: Entries of the registry that were read.
    looked_at: int = 0
    #: Jobs requeued, buried or purged, or ghosts dropped.
    done: int = 0
    #: Ghosts whose entries another policy met and dropped.
    ghosts: int = 0
    #: Selected jobs that others had requeued, deleted or changed meanwhile.
    changed: int = 0
    #: Jobs that were requeued as often as the policy allows.
    spent: int = 0
    #: Dead letters that were deleted to keep their number bounded.
    trimmed: int = 0
    #: True if the sweep ended because its time was over.
    unfinished: bool = False
    #: The error that kept the queue from being swept to its end; empty without one.
    error: str = ""
    #: The ids of some of the jobs.
    examples: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return dict(vars(self))

    def count(self, jobs: Sequence[FailedJob], words: Sequence[str]) -> None:
        """Count jobs by the words that the scripts return for them."""
        for job, word in zip(jobs, words):
            if word == "done":
                self.done += 1
                if len(self.examples) < 10:
                    self.examples.append(job.id)
            elif word == "ghost":
                self.ghosts += 1
            elif word == "spent":
                self.spent += 1
            else:
                self.changed += 1
