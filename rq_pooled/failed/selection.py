"""Selects failed jobs by exception, function and age, without unpickling their data."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from ..errors import ConfigurationError
from ..foreign import seconds_of, unpacked_error, whole_number
from ..retry.exception_names import is_kind, is_recorded_kind, names_of
from ..signing.envelope import is_sealed, unverified
from ..wire import text
from .description import function_of
from .tracebacks import recorded_name

#: Bytes of a job's data that are unpacked to find its function's name, which stands at the beginning.
_MAX_DATA = 64 * 1024
#: Unrelated names of functions; a pattern that matches all of them excludes none.
_ANY_FUNCTION = ("tasks.send_mail", "Q.q9", "ж.x.y")
#: The first item of a JSON list, if it is a text.
_FIRST_TEXT = re.compile(rb'\[\s*("(?:[^"\\]|\\.)*")', re.DOTALL)


@dataclass
class FailedJob:
    """An entry of a registry of failed jobs, as failed_page.lua read it."""

    id: str
    score: str
    #: False for a ghost: an entry whose job is gone.
    exists: bool
    data: bytes
    status: str
    #: The text in the hash, by which a newer failure of the job is recognised.
    ended_at: str
    description: str
    #: How often a sweep has requeued it.
    requeues: int
    result_id: str
    #: The error as RQ stores it, compressed.
    error: bytes

    @classmethod
    def read(cls, entry: Sequence[Any]) -> FailedJob:
        """Return an entry of the script's reply."""
        job_id, score, exists, data, status, ended_at, description, requeues, result_id, error = entry
        status, ended_at, description = (text(value or b"") for value in (status, ended_at, description))
        return cls(
            text(job_id),
            text(score),
            bool(exists),
            data,
            status,
            ended_at,
            description,
            whole_number(requeues),
            text(result_id),
            error,
        )

    @cached_property
    def failed_at(self) -> float | None:
        """The time of the failure in seconds since the epoch, by the server's clock, else by the worker's; None if
        unknown.
        """
        if self.result_id:
            return int(self.result_id.partition("-")[0]) / 1000
        return seconds_of(self.ended_at)

    @cached_property
    def traceback(self) -> str:
        """The recorded error."""
        return unpacked_error(self.error)

    @cached_property
    def exception(self) -> str:
        """The dotted name of the exception that ended it, empty if none is named (its process was killed)."""
        return recorded_name(self.traceback)

    @cached_property
    def function(self) -> str:
        """The dotted name of its function: from its data if they were read, else from its description."""
        return _function_in(self.data) or function_of(self.description)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Selects jobs of a registry; a condition that is not given excludes none.

    Args:
        exceptions: classes or names; a name without a dot means every class of that name.
        functions: dotted names, ``*`` and ``?`` as in file names.
        older_than: seconds since the job failed.
        limit: the most jobs, the oldest first.
        exactly: the names of exceptions must equal the recorded ones; no descendants match.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    exceptions: Iterable[type[BaseException] | str] | type[BaseException] | str = ()
    functions: Iterable[str] | str = ()
    older_than: float | None = None
    limit: int | None = None
    exactly: bool = False
    _exceptions: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _functions: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        functions = (self.functions,) if isinstance(self.functions, str) else tuple(self.functions)
        if not all(isinstance(name, str) and name for name in functions):
            raise ConfigurationError(f"functions is {self.functions!r}: give dotted names, such as tasks.send_mail")
        check_number("older_than", self.older_than)
        check_number("limit", self.limit, low=1, whole=True)
        object.__setattr__(self, "_exceptions", names_of(self.exceptions, "exceptions"))
        object.__setattr__(self, "_functions", functions)

    @property
    def wants_data(self) -> bool:
        """Tell whether the jobs' data are needed to decide."""
        return bool(self._functions)

    @property
    def chooses(self) -> bool:
        """Tell whether some jobs are excluded; an age of 0, ``Exception`` and ``*`` exclude none."""
        return self._chooses_kind or bool(self.older_than)

    @property
    def _chooses_kind(self) -> bool:
        """Tell whether exceptions or functions exclude some jobs."""
        exceptions = bool(self._exceptions) and (self.exactly or not is_kind(Exception, self._exceptions))
        functions = bool(self._functions) and not all(
            any(fnmatchcase(function, name) for name in self._functions) for function in _ANY_FUNCTION
        )
        return exceptions or functions

    def is_old_enough(self, job: FailedJob, now: float) -> bool:
        """Tell whether a job failed long enough ago; a job without a known time did not."""
        return self.older_than is None or (job.failed_at is not None and now - job.failed_at >= self.older_than)

    def is_meant(self, job: FailedJob) -> bool:
        """Tell whether a job's exception and function match."""
        if self.exactly and job.exception not in self._exceptions:
            return False
        if self._exceptions and not is_recorded_kind(job.exception, self._exceptions):
            return False
        return not self._functions or any(fnmatchcase(job.function, name) for name in self._functions)


def check_number(name: str, value: float | None, low: float = 0, whole: bool = False, above: bool = False) -> None:
    """Refuse any value but such a number or None. Raises ConfigurationError."""
    if value is None:
        return
    kinds = (int,) if whole else (int, float)
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not low <= value < float("inf")
        or above
        and value == low
    ):
        wanted = f"{'a whole number' if whole else 'a number'} {'above' if above else 'of at least'} {low:g}"
        raise ConfigurationError(f"{name} is {value!r}: give {wanted}")


def _function_in(data: bytes) -> str:
    """Return the function's name from a job's data: a pickle's first string, or a JSON list's first item.

    Of a signed job it is what its producer signed, not verified here.
    """
    if not data:
        return ""
    with suppress(zlib.error):
        data = zlib.decompressobj().decompress(data, _MAX_DATA)
    if is_sealed(data):
        return unverified(data)[0]
    if data[:1] == b"\x80":
        # The module is large, and most processes never need it.
        import pickletools

        try:
            for _opcode, argument, _position in pickletools.genops(data):
                if isinstance(argument, str):
                    return argument
        except (ValueError, OverflowError):
            return ""
    elif match := _FIRST_TEXT.match(data):
        with suppress(ValueError):
            return str(json.loads(match[1]))
    return ""
