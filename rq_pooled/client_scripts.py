"""Runs our scripts from processes that are no worker's parent: web processes, commands, the scheduler."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError

from .resp import Command, encoded
from .scripts import shared_scripts


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
