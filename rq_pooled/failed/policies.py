"""Defines what a sweep does with failed jobs: requeue, bury, purge, drop ghosts. The sweeper acts on these values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rq.job import Retry

from ..errors import ConfigurationError
from ..retry.backoff import Backoff
from .selection import Selection, check_number

#: Bounds of the dead letters of a queue: seconds, jobs.
DEAD_AGE, DEAD_COUNT = 30 * 86_400, 10_000
#: The longest life of a dead letter, and the longest wait between two jobs, that the server and RQ can handle.
_TEN_YEARS, _YEAR = 3_650 * 86_400, 366 * 86_400


@dataclass(frozen=True, kw_only=True)
class Requeue(Selection):
    """Put jobs back into their queues, with as many retries as they had at first.

    Args:
        times: the most times that this policy requeues a job; then it stays failed. None counts nothing, and resets
            the count.
        delay: the wait of a job, drawn for its number of requeues; None puts it into its queue at once.
        rate: the most jobs per second; further ones are scheduled for later.
        at_front: put the jobs at the front of their queues.
        retries: the retries of each job, instead of its own number.
    """

    times: int | None = None
    delay: Backoff | None = None
    rate: float | None = None
    at_front: bool = False
    retries: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("times", self.times, low=1, whole=True)
        check_number("rate", self.rate, above=True)
        if self.rate is not None and self.rate < 1 / _YEAR:
            raise ConfigurationError(f"rate is {self.rate!r}: give at least {1 / _YEAR:.1e}, a job a year")
        check_number("retries", self.retries, whole=True)
        if self.delay is not None and not isinstance(self.delay, Backoff):
            wrong = "an rq.Retry has no curve" if isinstance(self.delay, Retry) else repr(self.delay)
            raise ConfigurationError(f"delay is {wrong}: give a Backoff")


@dataclass(frozen=True, kw_only=True)
class Bury(Selection):
    """Move jobs to the dead letters of their queue, which are bounded.

    Args:
        max_age: seconds after which a dead letter is deleted.
        max_count: the most dead letters of a queue; beyond that the oldest are deleted.
    """

    max_age: float = DEAD_AGE
    max_count: int = DEAD_COUNT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("max_age", self.max_age, low=1)
        if self.max_age > _TEN_YEARS:
            raise ConfigurationError(f"max_age is {self.max_age:g}: give at most {_TEN_YEARS} s (ten years)")
        check_number("max_count", self.max_count, whole=True)


@dataclass(frozen=True, kw_only=True)
class Purge(Selection):
    """Delete jobs: those that are older than ``older_than``, and those beyond the newest ``beyond``.

    With both, a job goes that meets either; with neither, all selected jobs go. A purge that excludes nothing needs
    ``everything``: an age of 0, ``beyond=0``, the exception ``Exception`` and the function ``*`` exclude nothing.
    """

    beyond: int | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beyond", self.beyond, whole=True)
        if not isinstance(self.everything, bool):
            raise ConfigurationError(f"everything is {self.everything!r}: give True or False")
        if not self.chooses and not self.everything:
            raise ConfigurationError(
                "this purge deletes every failed job: say which (exceptions, functions, older_than or beyond above 0), "
                "or everything=True"
            )

    @property
    def chooses(self) -> bool:
        """Tell whether some jobs are kept; a job goes by age or by number, so 0 for either takes all."""
        bounds = [bound for bound in (self.older_than, self.beyond) if bound is not None]
        return self._chooses_kind or (bool(bounds) and all(bounds))


@dataclass(frozen=True)
class Ghosts:
    """Drop entries of the failed and dead-letter registries whose job is gone."""


Policy = Requeue | Bury | Purge | Ghosts
#: The policies by the names that commands and jobs use.
POLICIES: dict[str, Callable[..., Policy]] = {"requeue": Requeue, "bury": Bury, "purge": Purge, "ghosts": Ghosts}
