"""``Backoff``: an ``rq.Retry`` whose delays grow and scatter, and exceptions by which a job decides its retry.

A job that was enqueued with one has a field of ours in its hash, besides RQ's fields of any Retry: the exceptions that
are worth another try, and the first number of tries. RQ's ``Job.save`` writes single fields of the hash, and its
``restore`` reads those that it knows, so stock RQ neither sees nor drops ours. It ends with the job.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from rq.job import Job, Retry

from ..delays import retry_delays
from ..errors import ConfigurationError
from .exception_names import is_kind, names_of

#: The field of a job's hash that holds its retry rules.
FIELD = "rq_pooled:retry"
JITTERS = ("full", "equal", "decorrelated", None)
#: The most tries, since every interval is written into the job, and more tries are a mistake.
MAX_RETRIES = 1000
#: The longest delay in seconds: a year.
_LONGEST = 31_536_000

Kinds = Iterable["type[BaseException] | str"]


class RetryAfter(Exception):
    """Raised by a job that knows when it is worth trying again, as a service says with HTTP 429.

    It counts as a try. The job runs again no earlier than ``seconds`` from now; this overrides its own delays, and
    ``on`` of its Backoff, but not ``give_up_on``. Without tries left the job fails.

    Args:
        seconds: from now, or a timedelta; at least 0 and at most a year.
        reason: shown in the history of the job.
    """

    def __init__(self, seconds: float | timedelta, reason: str = "") -> None:
        after = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        if isinstance(after, bool) or not isinstance(after, (int, float)) or not 0 <= after <= _LONGEST:
            raise ConfigurationError(f"RetryAfter({seconds!r}): give seconds, from 0 to {_LONGEST} (a year)")
        super().__init__(seconds, reason)
        self.seconds = float(after)
        self.reason = reason

    def __str__(self) -> str:
        return f"again in {self.seconds:g} s" + (f": {self.reason}" if self.reason else "")


class GiveUp(Exception):
    """Raised by a job that cannot succeed: it fails at once, and its other tries are not used.

    Args:
        reason: kept with the job in the failed registry.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Backoff(Retry):
    """Says how often and when a failed job is tried again; for ``enqueue(retry=)``, ``Queue(retry=)``,
    ``@job(retry=)``.

    The delays are drawn anew for each job when it is enqueued: exactly ``max`` of them, in whole seconds, so workers of
    stock RQ keep to them too. ``on`` and ``give_up_on`` are kept with jobs of a ``rq_pooled.Queue`` and obeyed by
    ``rq_pooled.Worker``.

    Args:
        max: tries after the first one, 1 to 1000.
        base: the first step, in seconds above 0.
        factor: the factor by which each step grows, at least 1.
        cap: the longest step, in seconds, at least ``base``.
        jitter: ``full`` draws a delay from [0, step], ``equal`` from [step / 2, step], ``decorrelated`` from [base,
            the last delay times (factor + 1)]; None scatters nothing.
        on: the exceptions that are worth another try: classes or dotted names, subclasses count; empty means all.
        give_up_on: the exceptions that are not; overrides ``on``.
        enqueue_at_front: as for ``rq.Retry``.

    Raises:
        ConfigurationError: an argument cannot be used; it is a ValueError, as ``rq.Retry`` raises.
    """

    def __init__(
        self,
        max: int = 5,
        base: float = 1,
        factor: float = 2,
        cap: float = 300,
        jitter: str | None = "full",
        on: Kinds | type[BaseException] | str = (),
        give_up_on: Kinds | type[BaseException] | str = (),
        enqueue_at_front: bool = False,
    ) -> None:
        if isinstance(max, bool) or not isinstance(max, int) or not 1 <= max <= MAX_RETRIES:
            raise ConfigurationError(f"Backoff(max={max!r}): give a whole number from 1 to {MAX_RETRIES}")
        for name, value in (("base", base), ("factor", factor), ("cap", cap)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ConfigurationError(f"Backoff({name}={value!r}): give a number above 0")
        if factor < 1:
            raise ConfigurationError(f"Backoff(factor={factor!r}): it must be at least 1")
        if cap > _LONGEST:
            raise ConfigurationError(f"Backoff(cap={cap!r}): it must be at most {_LONGEST} s (a year)")
        if cap < base or cap < 1:
            raise ConfigurationError(f"Backoff(cap={cap!r}): it must be at least {'base' if cap < base else '1 s'}")
        if jitter not in JITTERS:
            raise ConfigurationError(f"Backoff(jitter={jitter!r}): use 'full', 'equal', 'decorrelated' or None")
        super().__init__(max, 0, enqueue_at_front)
        self.base, self.factor, self.cap, self.jitter = base, factor, cap, jitter
        self.on = names_of(on, "on")
        self.give_up_on = names_of(give_up_on, "give_up_on")

    @property
    def intervals(self) -> list[int]:
        """Seconds before each of the ``max`` tries, drawn at each access: one object serves all jobs of a queue."""
        return retry_delays(self.max, self.base, self.factor, self.cap, self.jitter)

    @intervals.setter
    def intervals(self, _intervals: list[int]) -> None:
        """Ignore what the constructor of ``rq.Retry`` sets."""

    def __repr__(self) -> str:
        words = ("max", "base", "factor", "cap", "jitter", "on", "give_up_on")
        return f"Backoff({', '.join(f'{word}={getattr(self, word)!r}' for word in words)})"

    def delay(self, attempt: int) -> int:
        """Return the seconds before one try, drawn anew; ``attempt`` counts from 0, at most to ``max`` - 1."""
        return retry_delays(min(attempt, self.max - 1) + 1, self.base, self.factor, self.cap, self.jitter)[-1]


class Rules(NamedTuple):
    """The retry rules in a job's own field."""

    max: int
    on: tuple[str, ...] = ()
    give_up_on: tuple[str, ...] = ()

    @classmethod
    def read(cls, raw: Mapping[bytes, bytes]) -> Rules | None:
        """Return the rules in a job's raw hash, None if it was not enqueued with a Backoff."""
        text = raw.get(FIELD.encode())
        if not text:
            return None
        try:
            fields = json.loads(text)
            return cls(int(fields["max"]), tuple(fields.get("on", ())), tuple(fields.get("give_up_on", ())))
        # The field was written by other code; RQ's own fields still count.
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def allow(self, raised: type[BaseException]) -> bool:
        """Tell whether an exception is worth another try."""
        if is_kind(raised, self.give_up_on):
            return False
        return not self.on or issubclass(raised, RetryAfter) or is_kind(raised, self.on)


def attach(job: Job, backoff: Backoff) -> None:
    """Make every save of the job write the rules, too."""
    rules: dict[str, Any] = {"max": backoff.max}
    rules.update({name: value for name in ("on", "give_up_on") if (value := getattr(backoff, name))})
    text, to_dict = json.dumps(rules), job.to_dict

    # The method is set on the object, since job classes are the user's, and before the HSET that creates the job.
    def with_rules(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**to_dict(*args, **kwargs), FIELD: text}

    job.to_dict = with_rules  # type: ignore[method-assign]
