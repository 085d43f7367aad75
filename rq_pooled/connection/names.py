"""The name of a connection in CLIENT LIST, and the handshake that gives it."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from ..config.settings import Settings
from ..rq_api import key_prefix
from .connect_errors import last_words

#: What the names of our connections begin with: that of our keys, so that applications with other prefixes of keys do
#: not take each other's processes for their own. A colon ends a part, and no prefix has a slash.
OURS = f"{key_prefix()}_pooled".replace(":", "/")


def client_name(settings: Settings, role: str) -> str:
    """Return ``rq_pooled:<app>:<host>:<pid>:<role>`` for this process; ``rq`` is the prefix of keys.

    The application is BUDGET_NAME, else the name of the program. Spaces and newlines, which CLIENT SETNAME refuses,
    become ``_``.
    """
    app = settings.budget_name or _program()
    parts = (OURS, app, socket.gethostname(), str(os.getpid()), role)
    return ":".join(re.sub(r"[^!-~]|:", "_", part) for part in parts)


def _program() -> str:
    path = sys.argv[0] if sys.argv else ""
    folder, name = os.path.split(path)
    if name == "__main__.py":
        # python -m package
        name = os.path.basename(folder)
    return os.path.splitext(name)[0].lstrip("-") or "python"


@dataclass(frozen=True)
class Introduce:
    """redis-py's ``redis_connect_func``: the usual handshake, then the name.

    redis-py's own ``client_name`` does not serve. It keeps the pid of the process that made the pool, also after a
    fork, and it fails where an ACL refuses CLIENT SETNAME. An ``Introduce`` can be pickled, since RQ hands a pool's
    keyword arguments to other processes.
    """

    settings: Settings
    role: str
    before: Callable[[Any], Any] | None = None

    def __call__(self, connection: Any) -> None:
        """Do the handshake on a connection whose socket has just been opened."""
        try:
            self._shake_hands(connection)
        except (RedisConnectionError, OSError) as error:
            raise last_words(connection, error) from error

    def _shake_hands(self, connection: Any) -> None:
        if self.before is not None:
            self.before(connection)
        elif hasattr(connection, "on_connect_check_health"):
            # Since redis-py 6.3: without the PING, since the next command tells as much.
            connection.on_connect_check_health(check_health=False)
        else:
            connection.on_connect()
        if not self.role:
            # Its opener names it later.
            return
        connection.send_command("CLIENT", "SETNAME", client_name(self.settings, self.role), check_health=False)
        try:
            connection.read_response()
        except ResponseError:
            pass
