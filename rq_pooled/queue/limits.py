"""Limits of queues: the starts per period, and the jobs at once, of all workers together.

They stand in Redis, one text per queue in the hash ``rq_pooled:limits``, and claim.lua keeps them. A limit that code
declares (``Queue(..., limit="10/5s")``) holds until an operator sets another (``rq-pooled limit``). The operator's
limit holds until it is cleared.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from redis import Redis

from ..durations import parse_duration, show_duration
from ..errors import ConfigurationError
from ..foreign import names_key, replies_of
from ..store.keys import LIMITS
from ..store.limits import change_limit
from ..store.scripts import run_script
from ..wire import raw
from ..wire import text as text_of

#: The most starts that are remembered per queue, and the longest period.
MAX_STARTS, MAX_PERIOD = 100_000, 366 * 86_400
_RATE = re.compile(r"\s*(\d{1,9})\s*/\s*(\S+)\s*")

#: The form of ``Limit.written``, led by its origin: an operator or code.
_WRITTEN = re.compile(r"(code|operator) ([0-9]{1,18}) ([0-9]{1,18}) ([0-9]{1,18})")


class Limit(NamedTuple):
    """One queue's limit. ``starts`` 0 means any number of starts; ``max_running`` 0 any number at once."""

    starts: int = 0
    #: Seconds.
    period: float = 0.0
    max_running: int = 0

    def __str__(self) -> str:
        parts = [f"at most {self.starts} starts in {show_duration(self.period)}"] if self.starts else []
        parts += [f"at most {self.max_running} running at once"] if self.max_running else []
        return ", ".join(parts)

    def written(self) -> str:
        """Return it as claim.lua reads it."""
        return f"{self.starts} {round(self.period * 1e6)} {self.max_running}"


class LimitInForce(NamedTuple):
    """A limit, and whether an operator set it (else code declared it)."""

    limit: Limit
    by_operator: bool


def make_limit(rate: str | None = None, max_running: int | None = None) -> Limit:
    """Return the limit that these arguments describe.

    Args:
        rate: ``"10/5s"``, ``"1000/1h"``, ``"1/1m30s"``: at most so many starts within any such time.
        max_running: jobs that may run at once.

    Raises:
        ConfigurationError: neither is given, or one is written otherwise.
    """
    if rate is None and max_running is None:
        raise ConfigurationError("a limit needs a rate such as 10/5s, or the number of jobs that may run at once")
    if max_running is not None and (type(max_running) is not int or not 1 <= max_running <= 1_000_000):
        raise ConfigurationError(f"max_running is {max_running}: it must be a whole number of at least 1")
    starts, period = 0, 0.0
    if rate is not None:
        match = _RATE.fullmatch(str(rate))
        if match is None:
            raise ConfigurationError(f"the limit is {rate}: write it as 10/5s, 100/1m or 1000/1h")
        starts, period = int(match[1]), parse_duration(match[2], f"the time in the limit {rate}")
        if not 1 <= starts <= MAX_STARTS or not 0.001 <= period <= MAX_PERIOD:
            raise ConfigurationError(
                f"the limit is {rate}: it must be 1 to {MAX_STARTS} starts in 0.001s to {show_duration(MAX_PERIOD)}"
            )
    return Limit(starts, period, max_running or 0)


def declare_limit(connection: Redis, queue: str, limit: Limit) -> LimitInForce:
    """Declare ``limit`` for the queue, unless an operator has set another; return the limit in force."""
    found = read_limit(run_script(connection, change_limit(queue, "code", limit.written())))
    # A limit that cannot be read does not stand in the way.
    assert found is not None
    return found


def set_limit(connection: Redis, queue: str, limit: Limit) -> None:
    """Set an operator's limit, which overrides the declared one until it is cleared. Waits for Redis."""
    run_script(connection, change_limit(queue, "operator", limit.written()))


def clear_limit(connection: Redis, queue: str) -> LimitInForce | None:
    """Remove an operator's limit, or else the declared one; return the limit then in force. Waits for Redis."""
    return read_limit(run_script(connection, change_limit(queue, "clear", "")))


def limits_in_force(connection: Redis, unreadable: dict[str, str] | None = None) -> dict[str, LimitInForce]:
    """Return the limits of all queues that have one. Waits for Redis.

    Args:
        connection: to the server.
        unreadable: receives unreadable texts by queue; claim.lua, too, takes them for no limit.
    """
    found = {}
    with names_key(LIMITS):
        written = connection.hgetall(LIMITS)
    for name, text in sorted(written.items()):
        limit = read_limit(text)
        if limit is not None:
            found[text_of(name)] = limit
        elif unreadable is not None:
            unreadable[text_of(name)] = text_of(text)
    return found


def limit_in_force(connection: Redis, queue: str) -> LimitInForce | None:
    """Return the limit of one queue. Waits for Redis; a key of another type holds no limit, as for claim.lua."""
    pipeline: Any = connection.pipeline(transaction=False)
    pipeline.hget(LIMITS, raw(queue))
    return read_limit(replies_of(pipeline)[0])


def read_limit(text: bytes | str | None) -> LimitInForce | None:
    """Return the limit that stands in Redis, None where that is none."""
    match = _WRITTEN.fullmatch(text_of(text or ""))
    if match is None:
        return None
    who, starts, period, running = match.groups()
    return LimitInForce(Limit(int(starts), int(period) / 1e6, int(running)), who == "operator")
