"""The bounded connection pool of web processes and horses."""

from .pool import Pool, get_connection, get_pool, local_pools

__all__ = ["Pool", "get_connection", "get_pool", "local_pools"]
