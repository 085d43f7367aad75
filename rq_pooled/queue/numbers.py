"""Refuses, at enqueue, times and counts of jobs that the server, the calendar or a timer would refuse later."""

from __future__ import annotations

import numbers
import time
from datetime import datetime, timedelta
from typing import Any

from rq.job import Job

from ..durations import LONGEST
from ..errors import ConfigurationError
from .handlers import is_of_handlers

#: The longest time that ``signal.alarm`` takes, 68 years.
LONGEST_TIMER = 2**31 - 1
#: The most tries or repeats; a larger number is a mistake.
MOST = 10**9
_KEPT = f"at most {LONGEST} seconds (100 years) can be kept; for ever leave ttl out, set the others to -1"
_TIMED = f"at most {LONGEST_TIMER} seconds (68 years) can be measured; set timeout to -1 for none"
_SPACED = f"give seconds from 0 to {LONGEST} (100 years)"
_LATEST = "give a time from 1970 on, at most 100 years ahead"
#: Attributes of a job, their names as arguments, the largest values, and the advice for larger ones.
_SECONDS: tuple[tuple[str, str, int, str], ...] = (
    *((name, name, LONGEST, _KEPT) for name in ("ttl", "result_ttl", "failure_ttl")),
    ("timeout", "timeout", LONGEST_TIMER, _TIMED),
    *((f"_{kind}_callback_timeout", f"timeout of on_{kind}", LONGEST_TIMER, _TIMED) for kind in ("success", "failure")),
    ("_stopped_callback_timeout", "timeout of on_stopped", LONGEST_TIMER, _TIMED),
)


def check_numbers(job: Job) -> None:
    """Refuse a job whose times or counts fail only after it has been enqueued.

    Raises:
        ConfigurationError: the message names the argument, its value, and what is allowed.
    """
    for attribute, name, most, allowed in _SECONDS:
        seconds = getattr(job, attribute, None)
        if seconds is not None and not -most <= seconds <= most:
            raise ConfigurationError(f"{name} is {_shown(seconds)}: {allowed}")
    for name, count, intervals in (
        ("retry", job.retries_left, job.retry_intervals),
        ("repeat", job.repeats_left, job.repeat_intervals),
    ):
        if count is not None and not (isinstance(count, numbers.Integral) and 0 <= count <= MOST):
            what = "Retry: max" if name == "retry" else "Repeat: times"
            raise ConfigurationError(f"{what} is {_shown(count)}: give a whole number, at most {MOST}")
        for interval in intervals or ():
            check_interval(f"an interval of {name}", interval)


def check_enqueued(connection: Any, job: Job, moment: datetime | None = None) -> None:
    """Refuse such a job, and a due time that is never reached, unless RQ's handlers enqueue it after a run."""
    if is_of_handlers(connection):
        return
    check_numbers(job)
    if moment is not None:
        check_moment("the due time", moment)


def check_interval(name: str, interval: Any) -> None:
    """Refuse a value that is no time between two runs. Raises ConfigurationError."""
    seconds: Any = interval if isinstance(interval, numbers.Real) else -1
    if not 0 <= seconds <= LONGEST:
        raise ConfigurationError(f"{name} is {_shown(interval)}: {_SPACED}")


def check_floats(arguments: dict[str, Any]) -> None:
    """Refuse floats that are no number, for which RQ raises an error without words. Raises ConfigurationError."""
    for name in ("timeout", "ttl", "result_ttl", "failure_ttl"):
        value = arguments.get(name)
        if isinstance(value, float) and not abs(value) < float("inf"):
            raise ConfigurationError(f"{name} is {value}: give seconds as a whole number")


def check_moment(name: str, moment: datetime) -> None:
    """Refuse a due time that a scheduler never reaches. Raises ConfigurationError."""
    try:
        seconds = moment.timestamp()
    except (ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds <= time.time() + LONGEST:
        raise ConfigurationError(f"{name} is {moment}: {_LATEST}")


def check_delay(name: str, delay: timedelta) -> None:
    """Refuse a delay that ends after the calendar, or later than ``check_moment`` allows. Raises ConfigurationError."""
    if isinstance(delay, timedelta) and not -time.time() <= delay.total_seconds() <= LONGEST:
        raise ConfigurationError(f"{name} is {delay}: {_LATEST}")


def _shown(value: object) -> str:
    """Return a value as text for a message; Python refuses to write very long numbers."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a number of {int(value.bit_length() * 0.30103) + 1} digits"
    return repr(value)
