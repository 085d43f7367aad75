"""RQ on one shared, bounded connection pool: N jobs at once per worker, on two connections."""

from .guard import ConnectionGuard
from .pool import get_connection, get_pool
from .queue import Queue
from .retry import Backoff, RetryAfter
from .sweeper import Sweeper
from .worker import Worker

__all__ = ["Backoff", "ConnectionGuard", "Queue", "RetryAfter", "Sweeper", "Worker", "get_connection", "get_pool"]
