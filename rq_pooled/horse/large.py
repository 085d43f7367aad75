"""How a horse reads and writes what would hold up the connection on which its parent keeps all jobs alive.

The claim of a large job leaves its large fields out, see read_job.lua. The horse reads them over a connection that it
is lent, before the job begins. Large values of its outcome are put aside over such a connection, see aside.lua; the
outcome that the parent sends only names them. No other job waits for either, however slow the line is.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from logging import Logger
from typing import Any
from uuid import uuid4

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from ..config.secrets import message_of
from ..connection.away import LOST, is_away, is_blamed
from ..delays import reconnect_delays
from ..errors import RedisUnavailable
from ..store.claim import Claim
from ..store.commit import set_aside
from ..store.scripts import run
from ..wire import Command, Word, pack_commands, text

#: Bytes of an outcome from which on its large values are put aside, and of a value that is large; as in read_job.lua.
LARGE, LARGE_VALUE = 1024 * 1024, 64 * 1024
#: Seconds for which what was put aside is kept. Whatever ends the claim removes it; this is for the rest.
LIFE = 24 * 3600
#: Bytes that are written at once: each piece has SOCKET_TIMEOUT, not the whole.
_PIECE = 256 * 1024
#: How often the connection may be lost at one large value while the server answers the parent: then the value is to
#: blame.
MAX_LOSSES = 4
#: Seconds between two attempts, growing from the first figure to the second.
_DELAYS = (0.1, 3.0)


class Refused(Exception):
    """The server, or a proxy, does not let a large value pass; the text says why."""


class Gone(Exception):
    """The job was deleted before it was read."""


def without_known(
    commands: Sequence[Sequence[Any]], known: Mapping[bytes, Mapping[bytes, bytes]]
) -> list[Sequence[Any]]:
    """Return commands without writing large fields that hold this already, as RQ does each time that it saves a job.

    Args:
        known: key of a job -> its large fields as they were read.
    """
    light: list[Sequence[Any]] = []
    deleted: set[bytes] = set()
    for words in commands:
        name, key = words[0], words[1] if len(words) > 1 else b""
        if _deletes(words):
            deleted.update(words[1:])
        elif name in (b"HSET", b"HMSET") and key in known and key not in deleted:
            fields = zip(words[2::2], words[3::2])
            written = [(field, value) for field, value in fields if not _is_same(field, value, known[key].get(field))]
            if not written:
                continue
            words = [name, key, *chain.from_iterable(written)]
        light.append(words)
    return light


def _deletes(words: Sequence[Any]) -> bool:
    """Tell whether a command may take away keys, or fields of one, that are among its words."""
    return words[0] in (b"DEL", b"UNLINK", b"HDEL") or (words[0] == b"EXPIRE" and words[2][:1] in (b"-", b"0"))


def _is_same(field: bytes, value: bytes, known: bytes | None) -> bool:
    # Another version of zlib may have compressed the arguments to something else.
    return known is not None and (value == known or (field == b"data" and _unpacked(value) == _unpacked(known)))


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error:
        # RQ, too, takes such data as they are.
        return data


def set_apart(commands: Sequence[Sequence[Any]]) -> tuple[list[Sequence[Any]], list[tuple[str, Word]]]:
    """Return commands with names in the place of large values, as commit.lua takes them, and these values by name."""
    # What an earlier attempt has put aside must not be taken for this.
    mark = uuid4().hex
    light: list[Sequence[Any]] = []
    values: list[tuple[str, Word]] = []
    for words in commands:
        large = {i for i, word in enumerate(words) if isinstance(word, (bytes, str)) and len(word) > LARGE_VALUE and i}
        if large:
            names: list[Word] = []
            for i in sorted(large):
                values.append((f"{mark}:{len(values)}", words[i]))
                names += [i + 1, values[-1][0]]
            words = ["ASIDE", len(large), *names, *("" if i in large else word for i, word in enumerate(words))]
        light.append(words)
    return light, values


class LargeValues:
    """Reads and writes large values, and waits for the server as long as it takes.

    Args:
        pool: the horse's pool of connections.
        ask: has the parent execute commands; raises redis-py's ConnectionError while the server is away.
        log: hears, once, that a connection is awaited.
    """

    def __init__(self, pool: Any, ask: Callable[[Sequence[Command]], list[Any]], log: Logger) -> None:
        self._pool = pool
        self._ask = ask
        self._log = log
        #: Key of a job -> its large fields as they were read.
        self.known: dict[bytes, dict[bytes, bytes]] = {}

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
        self.known[key.encode("utf-8", "surrogateescape")] = fields
        return fields

    def complete(self, reply: list[bytes], key: bytes, left_out: Sequence[bytes]) -> list[bytes]:
        """Return the reply to a job's HGETALL with the fields that were left out of it.

        It is empty if the job was deleted since.

        Raises: as ``read``, but for Gone.
        """
        try:
            return [*reply, *chain.from_iterable(self.read(text(key), left_out).items())]
        except Gone:
            return []

    def lighten(self, words: Sequence[bytes]) -> Sequence[bytes]:
        """Return a command that is done at once without large fields that the job's hash holds already."""
        if _deletes(words):
            for key in words[1:]:
                self.known.pop(key, None)
        light = without_known([words], self.known) if self.known else [words]
        return light[0] if light else [b"EXISTS", words[1]]

    def run(self, command: Command) -> Any:
        """Return the reply to one large command that may be done twice.

        Raises:
            Refused: the server closes the connection, or answers with an error, each time.
        """
        return self._persist(
            lambda: [run(self._send, command)], lambda said: f"while a large command was sent ({said})"
        )[0]

    def put_aside(self, claim: Claim, values: Sequence[tuple[str, Word]]) -> None:
        """Write large values of a claim's outcome where commit.lua finds them; not where the claim is gone.

        Raises:
            Refused: the server closes the connection, or answers with an error, each time.
        """
        command = set_aside(claim.member, claim.queue, LIFE, values)
        size = sum(len(value) for _, value in values if isinstance(value, (bytes, str)))

        def reason(said: str) -> str:
            return (
                f"while its {size} bytes were sent ({said}): keep large results elsewhere, or raise the server's "
                "client-query-buffer-limit and proto-max-bulk-len"
            )

        self._persist(lambda: [run(self._send, command)], reason)

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
            except RedisUnavailable as error:
                # Nothing was sent.
                if not said:
                    self._log.warning("a job's large values wait for a connection: %s", message_of(error))
                said = True
            except LOST as error:
                losses += is_blamed(error) and self._parent_is_answered()
                if losses == MAX_LOSSES:
                    raise Refused(f"the connection was lost {losses} times {reason(message_of(error))}") from error
            except ResponseError as error:
                if not is_away(error):
                    raise Refused(f"the server refused {reason(message_of(error))}") from error
            time.sleep(next(delays))

    def _parent_is_answered(self) -> bool:
        """Tell whether the server answers over the parent's connection: if so, the loss was no outage."""
        try:
            self._ask([("PING",)])
        except RedisConnectionError:
            return False
        return True

    def _send(self, command: Command) -> Any:
        return self._talk([command])[0]

    def _talk(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands over one connection, in pieces, and return their replies; raise the first error of them."""
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
