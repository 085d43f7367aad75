"""How a horse reads and writes what would hold up the connection on which its parent keeps all jobs alive.

The claim of a large job leaves its large fields out, see read_job.lua. The horse reads them over a connection that it is
lent, before the job begins. Nobody else waits for them, however slow the line is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from logging import Logger
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .backoff import reconnect_delays
from .config import scrub
from .connections import is_away, is_blamed
from .errors import RedisUnavailable
from .resp import Command, pack_commands

#: Bytes that are written at once: each piece has SOCKET_TIMEOUT, not the whole.
_PIECE = 256 * 1024
#: How often the connection may be lost at one large value while the server answers the parent: then the value is to blame.
MAX_LOSSES = 4
#: Seconds between two attempts, growing from the first figure to the second.
_DELAYS = (0.1, 3.0)


class Refused(Exception):
    """The server, or a proxy, does not let a large value pass; the text says why."""


class Gone(Exception):
    """The job was deleted before it was read."""


class LargeValues:
    """Reads large fields, and waits for the server as long as it takes.

    Args:
        pool: the horse's pool of connections.
        ask: has the parent execute commands; raises redis-py's ConnectionError while the server is away.
        log: hears, once, that a connection is awaited.
    """

    def __init__(self, pool: Any, ask: Callable[[Sequence[Command]], list[Any]], log: Logger) -> None:
        self._pool = pool
        self._ask = ask
        self._log = log

    def read(self, key: str, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return these fields of a job's hash, as far as they exist.

        Raises:
            Refused: the server closes the connection, or answers with an error, each time.
            Gone: the job was deleted.
        """

        def attempt() -> list[Any]:
            # WATCH has the parent lend a connection: the one that all jobs share would be blocked for the others.
            _, values, _ = self._talk([("WATCH", key), ("HMGET", key, *names), ("UNWATCH",)])
            found: list[Any] = values
            return found

        def reason(said: str) -> str:
            return (
                f"while the job, with {self._size(key)} bytes of arguments, was read ({said}): keep large arguments "
                "elsewhere, or raise the server's client-output-buffer-limit"
            )

        fields = {name: value for name, value in zip(names, self._persist(attempt, reason)) if value is not None}
        if b"data" in names and b"data" not in fields:
            raise Gone(key)
        return fields

    def _size(self, key: str) -> int:
        try:
            (size,) = self._ask([("HSTRLEN", key, "data")])
        except RedisConnectionError:
            return 0
        return size if isinstance(size, int) else 0

    def _persist(self, attempt: Callable[[], list[Any]], reason: Callable[[str], str]) -> list[Any]:
        """Try until it is done; an outage and a lack of connections are waited for, as an outcome waits."""
        losses, delays, said = 0, reconnect_delays(*_DELAYS), False
        while True:
            try:
                return attempt()
            except RedisUnavailable as error:  # nothing was sent
                if not said:
                    self._log.warning("a job's large values wait for a connection: %s", scrub(str(error)))
                said = True
            except (RedisConnectionError, RedisTimeoutError) as error:
                losses += is_blamed(error) and self._parent_is_answered()
                if losses == MAX_LOSSES:
                    text = f"the connection was lost {losses} times {reason(scrub(str(error)))}"
                    raise Refused(text) from error
            except ResponseError as error:
                if not is_away(error):
                    raise Refused(f"the server refused {reason(scrub(str(error)))}") from error
            time.sleep(next(delays))

    def _parent_is_answered(self) -> bool:
        """Tell whether the server answers over the parent's connection: then what was lost was not lost in an outage."""
        try:
            self._ask([("PING",)])
        except RedisConnectionError:
            return False
        return True

    def _talk(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands over one connection, in pieces, and return their replies. Raises the first error among these."""
        connection = self._pool.get_connection("LARGE")
        try:
            data = memoryview(pack_commands(commands))
            pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
            connection.send_packed_command(pieces, check_health=False)
            replies = [connection.read_response(disable_decoding=True) for _ in commands]
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)
        return replies
