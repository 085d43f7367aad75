"""Notices that a server has become a replica, to which a connection can read for ever and never write again."""

from __future__ import annotations

from functools import cache
from typing import Any

from redis.exceptions import ReadOnlyError, ResponseError

from .cluster import remedy
from .place import shown
from .redirects import is_redirect, said


class Noticing:
    """Mixed in front of a connection class of redis-py: ``refused_write`` is set once the server said READONLY.

    Replies to other commands of the same write may follow, so the pool closes the connection when it comes back.
    """

    refused_write = False

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read as ever."""
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as error:
            if is_redirect(error) and not hasattr(self, "slot"):
                where = remedy(shown(self))
                error.args = (f"{said(error)}: the server is one node of a cluster; {where}",)
            # On 6.2 the error of a script has it only in its text.
            if isinstance(error, ReadOnlyError) or "READONLY" in str(error):
                self.refused_write = True
            raise


@cache
def noticing(connection_class: type[Any]) -> type[Any]:
    """Return a subclass that notices; the same one each time."""
    return type(connection_class.__name__, (Noticing, connection_class), {"__module__": connection_class.__module__})
