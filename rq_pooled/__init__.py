"""RQ on one shared, bounded connection pool: N jobs at once per worker, on two connections.

Nothing is loaded before it is used: a web process that only enqueues never loads the worker.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .failed import Sweeper
    from .monitoring.guard import ConnectionGuard
    from .pool import get_connection, get_pool
    from .queue import Queue
    from .retry import Backoff, RetryAfter
    from .scheduler.scheduler import Scheduler
    from .signing.serializer import SignedSerializer
    from .worker.worker import Worker

__all__ = [
    "Backoff",
    "ConnectionGuard",
    "Queue",
    "RetryAfter",
    "Scheduler",
    "SignedSerializer",
    "Sweeper",
    "Worker",
    "get_connection",
    "get_pool",
]

_HOMES = {
    "Backoff": "retry",
    "ConnectionGuard": "monitoring.guard",
    "Queue": "queue",
    "RetryAfter": "retry",
    "Scheduler": "scheduler.scheduler",
    "SignedSerializer": "signing.serializer",
    "Sweeper": "failed",
    "Worker": "worker.worker",
    "get_connection": "pool",
    "get_pool": "pool",
}
#: Public modules: `except rq_pooled.errors.QueueFull` works after `import rq_pooled` alone.
_MODULES = frozenset(
    ("config", "deadline", "embedded", "errors", "flask", "health", "metrics", "pool", "redaction", "retry")
)


def __getattr__(name: str) -> Any:
    """Import a public name, or a public module, when it is asked for."""
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
