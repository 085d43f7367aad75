"""RQ on one shared, bounded connection pool: N jobs at once per worker, on two connections."""

from .guard import ConnectionGuard
from .pool import get_connection, get_pool
from .queue import Queue
from .worker import Worker

__all__ = ["ConnectionGuard", "Queue", "Worker", "get_connection", "get_pool"]
