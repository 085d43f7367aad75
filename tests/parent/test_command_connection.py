"""The command connection: after connecting it is open, or its owner has an error."""

from __future__ import annotations

from contextlib import suppress

from redis.exceptions import ConnectionError as RedisConnectionError

from rq_pooled.config import Settings
from rq_pooled.connection.options import make_connection
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.parent.command_connection import CommandConnection


def test_one_that_is_closed_with_its_last_reply_is_not_open(server: EmbeddedServer) -> None:
    """A server that answers all that is asked while connecting, and closes, leaves an error or an open connection."""
    settings = Settings(url=server.url)
    ends_itself = ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
    command = CommandConnection(lambda: make_connection(settings, "command"), (ends_itself,), 5)
    for _ in range(100):
        with suppress(RedisConnectionError):
            command.connect()
            assert command.connected
    command.close()
