"""RQ on one shared, bounded connection pool: N jobs at once per worker, on two connections."""

from typing import TYPE_CHECKING, Any

from .guard import ConnectionGuard
from .pool import get_connection, get_pool
from .queue import Queue
from .retry import Backoff, RetryAfter
from .sweeper import Sweeper
from .worker import Worker

if TYPE_CHECKING:
    from .scheduler import Scheduler

__all__ = [
    "Backoff",
    "ConnectionGuard",
    "Queue",
    "RetryAfter",
    "Scheduler",
    "Sweeper",
    "Worker",
    "get_connection",
    "get_pool",
]


def __getattr__(name: str) -> Any:
    """Import ``Scheduler`` when it is asked for: only who schedules loads rq-scheduler and what it stands on."""
    if name == "Scheduler":
        from .scheduler import Scheduler

        return Scheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
