"""What a sweep tells of each queue and policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .selection import FailedJob


@dataclass
class Report:
    """What one policy did to one queue, or would have done in a dry run."""

    queue: str
    policy: str
    dry_run: bool = False
    #: Entries of the registry that were looked at.
    looked_at: int = 0
    #: Jobs requeued, buried or purged, or ghosts dropped.
    done: int = 0
    #: Ghosts that were met, and their entries dropped, on the way to something else.
    ghosts: int = 0
    #: Jobs that were chosen, but had been requeued, deleted or changed by others meanwhile.
    changed: int = 0
    #: Jobs that had been requeued as often as the policy allows.
    spent: int = 0
    #: Dead letters that were deleted to keep their number bounded.
    trimmed: int = 0
    #: True where the sweep ended because its time was over.
    unfinished: bool = False
    #: Why the queue was not swept to its end; empty if it was.
    error: str = ""
    #: Some of the jobs.
    examples: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return dict(vars(self))

    def count(self, jobs: Sequence[FailedJob], words: Sequence[str]) -> None:
        """Note what became of jobs, a word each as the scripts return it."""
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
