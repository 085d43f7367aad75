"""Remembers which servers run no scripts, where jobs are enqueued in RQ's own way."""

from __future__ import annotations

import logging
import re
import weakref
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from ..config.secrets import message_of

log = logging.getLogger("rq_pooled.queue")

#: The errors of an access control list, a proxy or a server without Lua for the commands that run scripts.
_NO_SCRIPTS = re.compile(
    r"(unknown|unsupported|disallowed|no permissions|not allowed|not supported|disabled)\b.*\b(evalsha|eval|script)\b"
    r"|\b(evalsha|eval|script)\b.*(not allowed|not supported|disabled)",
    re.IGNORECASE,
)
#: Pools over which a script has been refused.
_refusing: weakref.WeakSet[Any] = weakref.WeakSet()


def refuses_scripts(connection: Redis, error: Exception | None = None) -> bool:
    """Tell whether this server, or a proxy before it, runs no scripts; if so, no part of one was done.

    Args:
        error: the error of the last script; a refusal is remembered, and logged once.
    """
    pool = connection.connection_pool
    if error is None or pool in _refusing:
        return pool in _refusing
    # "script:" names the script in which a command was refused, so that script has begun.
    if not isinstance(error, ResponseError) or "script:" in str(error) or not _NO_SCRIPTS.search(str(error)):
        return False
    _refusing.add(pool)
    log.warning(
        "the server refuses scripts (%s): jobs are enqueued in RQ's own way, and an enqueue that is repeated after a "
        "lost reply may double its job; allow EVAL, EVALSHA and SCRIPT LOAD",
        message_of(error),
    )
    return True
