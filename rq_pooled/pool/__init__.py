"""The bounded connection pool of web processes and horses."""

from .local import local_pools
from .pool import Pool
from .registry import get_connection, get_pool

__all__ = ["Pool", "get_connection", "get_pool", "local_pools"]
