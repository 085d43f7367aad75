"""Runs our scripts from processes that are no worker's parent: web processes, commands, the scheduler."""

from __future__ import annotations

import logging
import re
import weakref
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from ..config.secrets import scrub
from ..wire import Command, encoded
from .scripts import shared_scripts

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
        "lost "
        "reply may double its job; allow EVAL, EVALSHA and SCRIPT LOAD",
        scrub(str(error)),
    )
    return True


def run_script(connection: Redis, command: Command) -> Any:
    """Send a command of ``Scripts`` and return its reply; one round trip where the server knows the script.

    Raises:
        redis.exceptions.RedisError: as any command.
    """
    client: Any = connection  # whose method redis-py leaves untyped
    command = encoded(command)
    try:
        return client.execute_command(*command)
    except NoScriptError:  # nothing was done
        for load in shared_scripts().load():
            client.execute_command(*load)
        return client.execute_command(*command)
