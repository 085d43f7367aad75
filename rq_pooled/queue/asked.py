"""Reads our own arguments from an enqueue call, and notes them on the job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rq.job import Job

from ..durations import parse_duration
from ..errors import ConfigurationError
from ..store.once import FIELD, OF_FIELD, TTL_FIELD

#: Longest text of a spent-once key.
_MAX_KEY = 1000


@dataclass(frozen=True)
class Asked:
    """The arguments of one enqueue that RQ does not know."""

    once: str | None = None
    #: Seconds, 0 for ever.
    once_ttl: int = 0
    #: Seconds, 0 if equal calls are allowed.
    unique_for: float = 0.0
    #: The earlier job is returned instead of raising an error.
    returns: bool = True
    max_length: int | None = None


#: The arguments of the running ``enqueue``, until its job is created.
_asked: ContextVar[Asked | None] = ContextVar("_asked", default=None)


@contextmanager
def asking(kwargs: dict[str, Any]) -> Iterator[None]:
    """Take our arguments out of ``kwargs``, for the job that is created inside the block."""
    given = {name: kwargs.pop(name) for name in ("once", "once_ttl", "unique_for", "on_duplicate") if name in kwargs}
    if not given:
        yield
        return
    token = _asked.set(_read(**given))
    try:
        yield
    finally:
        _asked.reset(token)


def attach_asked(job: Job) -> None:
    """Note our arguments on a new job; its spent-once key is then written with every save of the job."""
    asked = _asked.get()
    if asked is None:
        return
    # The arguments are for one job only: with is_async=False it runs inside the block, and may itself enqueue.
    _asked.set(None)
    job._rq_pooled_asked = asked  # type: ignore[attr-defined]
    if asked.once is None:
        return
    fields, to_dict = {FIELD: asked.once, TTL_FIELD: asked.once_ttl}, job.to_dict

    # The method is set on the object, because job classes are the user's.
    def with_key(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = to_dict(*args, **kwargs)
        return {**found, **fields, OF_FIELD: found["created_at"]}

    job.to_dict = with_key  # type: ignore[method-assign]


def asked_by(job: Job) -> Asked | None:
    """Return the arguments with which the job was created."""
    found: Asked | None = job.__dict__.get("_rq_pooled_asked")
    return found


def _read(once: Any = None, once_ttl: Any = None, unique_for: Any = None, on_duplicate: str = "return") -> Asked | None:
    if on_duplicate not in ("return", "raise"):
        raise ConfigurationError(f"on_duplicate is {on_duplicate!r}: it is 'return' or 'raise'")
    if once is None and unique_for is None:
        if once_ttl is not None:
            raise ConfigurationError("once_ttl says how long a key stays spent: give the key with once=")
        return None
    if once is not None and not 0 < len(str(once)) <= _MAX_KEY:
        raise ConfigurationError(f"once is a key of 1 to {_MAX_KEY} characters, such as 'order-42'")
    ttl = 0.0 if once_ttl is None else parse_duration(once_ttl, "once_ttl")
    if once_ttl is not None and ttl < 1:
        raise ConfigurationError(
            f"once_ttl is {once_ttl}: it must be at least 1 second; leave it out to keep the key for ever"
        )
    unique = 0.0 if unique_for is None else parse_duration(unique_for, "unique_for")
    if unique_for is not None and unique < 0.001:
        raise ConfigurationError(f"unique_for is {unique_for}: it must be more than 0 seconds")
    return Asked(None if once is None else str(once), round(ttl), unique, on_duplicate == "return")
