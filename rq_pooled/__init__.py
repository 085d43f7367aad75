"""RQ on one shared, bounded connection pool: N jobs at once per worker, on two connections."""

from .pool import get_connection, get_pool
from .queue import Queue
from .retry import Backoff, RetryAfter
from .worker import Worker

__all__ = ["Backoff", "Queue", "RetryAfter", "Worker", "get_connection", "get_pool"]
