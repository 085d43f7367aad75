"""Which servers run no scripts: jobs are enqueued there in RQ's own way."""

from __future__ import annotations

import logging
import re
import weakref
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from ..config.secrets import message_of

log = logging.getLogger("rq_pooled.queue")

#: What an access control list, a proxy or a server without Lua says of the commands that run scripts.
_NO_SCRIPTS = re.compile(
    r"(unknown|unsupported|disallowed|no permissions|not allowed|not supported|disabled)\b.*\b(evalsha|eval|script)\b"
    r"|\b(evalsha|eval|script)\b.*(not allowed|not supported|disabled)",
    re.IGNORECASE,
)
#: Pools over which no scripts can be run, as far as that was found out.
_refusing: weakref.WeakSet[Any] = weakref.WeakSet()


def refuses_scripts(connection: Redis, error: Exception | None = None) -> bool:
    """Tell whether this server, or what stands before it, runs no scripts; then nothing of one was done.

    Args:
        error: what a script has just ended with; a refusal is remembered, and logged once.
    """
    pool = connection.connection_pool
    if error is None or pool in _refusing:
        return pool in _refusing
    # "script:" names the script in which a command was refused: that one has begun.
    if not isinstance(error, ResponseError) or "script:" in str(error) or not _NO_SCRIPTS.search(str(error)):
        return False
    _refusing.add(pool)
    log.warning(
        "the server refuses scripts (%s): jobs are enqueued in RQ's own way, and an enqueue that is repeated after a "
        "lost reply may double its job; allow EVAL, EVALSHA and SCRIPT LOAD",
        message_of(error),
    )
    return True
