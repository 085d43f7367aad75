"""Sends a command again that a node of a cluster refused because the slot is elsewhere, or on its way: it did not run.

What is mixed in stands between redis-py and its caller, who learns nothing of it but the time that it takes. A node
that names another one for a key (ASK) is asked again instead: scripts would find half of the keys there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

from redis.exceptions import RedisError, ResponseError, WatchError

from ..deadline import current as current_deadline
from ..delays import jittered_delay
from ..errors import ServerUnreachable
from .cluster import Owners
from .framing import cut_command, words_of
from .redirects import is_moved, is_of_slot, is_refusal, said

#: What ends a WATCH.
_ENDS_WATCH = (b"EXEC", b"UNWATCH", b"DISCARD")
#: First and longest delay in seconds between two attempts.
_FIRST, _LONGEST = 0.02, 0.25
#: Seconds for which a command is sent again where SOCKET_TIMEOUT is off.
_PATIENCE = 5.0


class Resending:
    """Mixed in front of a connection class of redis-py: refused commands are sent again, until the time is up.

    Then it raises ServerUnreachable: they were not done.
    """

    _sent: Any = b""
    _read = 0
    _watching = False
    #: Replies that came for what was sent again, in the order in which they are to be read.
    _early: deque[Any] | None = None

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        """Send as ever."""
        super().send_packed_command(command, check_health)  # type: ignore[misc]
        self._sent, self._read, self._early = command, 0, None

    def disconnect(self, *args: Any, **kwargs: Any) -> Any:
        """Disconnect as ever; nothing is watched then."""
        self._watching = False
        return super().disconnect(*args, **kwargs)  # type: ignore[misc]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read as ever; a refusal is not returned while there is time to send the command again."""
        if self._early:
            reply = self._early.popleft()
            if isinstance(reply, Exception):
                raise reply
            return reply
        index = self._read
        self._read += 1
        try:
            reply = super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as error:
            if not is_refusal(error):
                raise
            if not is_of_slot(error, self.slot):
                raise _foreign(error, self.slot) from None

            def read() -> Any:
                return super(Resending, self).read_response(*args, **kwargs)  # type: ignore[misc]

            watch = index == 0 and _name(_cut(self._sent)[0]) == b"WATCH"
            self._early = deque(_Again(self, read).replies(index, error))
            # What is watched over the new connection would be lost with it as well.
            self._watching = watch and not isinstance(self._early[0], Exception)
            return self.read_response(*args, **kwargs)
        self._note_watch()
        return reply

    def _note_watch(self) -> None:
        """Note whether what was answered begins or ends a WATCH, which a new connection would not have."""
        sent = self._sent if isinstance(self._sent, list) else [self._sent]
        if self._read == 1 and _name(sent[0]) == b"WATCH":
            self._watching = True
        elif self._watching:
            commands = _cut(sent)
            if self._read >= len(commands) and _name(commands[-1]) in _ENDS_WATCH:
                self._watching = False

    # -- where the slot is ---------------------------------------------------------------------------------------

    @property
    def slot(self) -> int:
        """Return the slot of all keys of the application."""
        return self._owners.slot

    @property
    def patience(self) -> float:
        """Return for how many seconds a command is sent again: the deadline of the call, else SOCKET_TIMEOUT."""
        deadline = current_deadline()
        seconds: float = self.socket_timeout or _PATIENCE  # type: ignore[attr-defined]
        return seconds if deadline is None else deadline.left()

    @property
    def _owners(self) -> Owners:
        owners: Owners = self.connection_pool  # type: ignore[attr-defined]
        return owners

    def go_to_owner(self, error: Exception) -> bool:
        """Connect to where the slot is now, after a refusal; tell whether something can be sent there."""
        this: Any = self
        try:
            self._owners.heard(error, this)
            address = self._owners.get_master_address()
            if (this.host, this.port) != address:
                this.disconnect()
            if this._sock is None:
                this.connect()
        except (RedisError, OSError):
            this.disconnect()
            return False
        return True


class _Again:
    """One attempt after the other to have done what was refused."""

    def __init__(self, connection: Any, read: Callable[[], Any]) -> None:
        self._connection = connection
        self._read = read
        self._ends = time.monotonic() + connection.patience

    def replies(self, index: int, error: Exception) -> list[Any]:
        """Return the replies from the one that was refused on, the rest of them errors where they are errors.

        Raises:
            ServerUnreachable: the time is up.
            WatchError: what the transaction relies on is not watched any more.
        """
        connection = self._connection
        commands = _cut(connection._sent)
        replies: list[Any] = [None] * index + [error]
        while len(replies) < len(commands):
            replies.append(self._reply())
        if connection._watching:
            time.sleep(_FIRST)
            connection.disconnect()
            raise WatchError(f"the slot of the keys moves or has moved ({said(error)})")
        if _name(commands[0]) == b"MULTI" and _name(commands[-1]) == b"EXEC":
            # All or nothing of it was done, and nothing was: the server refused a command of it, or EXEC.
            return self._until_done(commands, error)[index:]
        for at in range(index, len(commands)):
            if isinstance(replies[at], Exception) and is_refusal(replies[at]):
                (replies[at],) = self._until_done([commands[at]], replies[at])
        return replies[index:]

    def _reply(self) -> Any:
        try:
            return self._read()
        except ResponseError as error:
            return error

    def _until_done(self, commands: list[bytes], error: Exception) -> list[Any]:
        attempt = 0
        while True:
            # Who says where it has moved to has no more to do with it.
            delay = 0.0 if is_moved(error) and not attempt else jittered_delay(attempt, _FIRST, _LONGEST)
            if time.monotonic() + delay >= self._ends:
                raise ServerUnreachable(
                    f"the cluster does not serve slot {self._connection.slot} for now ({said(error)}); the command "
                    "was not done. Try again when the slot has been moved, or its master is back"
                ) from error
            time.sleep(delay)
            attempt += 1
            if not self._connection.go_to_owner(error):
                continue
            self._connection.send_packed_command([b"".join(commands)], check_health=False)
            replies = [self._reply() for _ in commands]
            refused = next((one for one in replies if isinstance(one, Exception) and is_refusal(one)), None)
            if refused is None:
                return replies
            error = refused


def _foreign(error: Exception, slot: int) -> Exception:
    # As the class that it is: some programs look for it.
    foreign = type(error)(str(error))
    text = f"{said(error)}: this key is in another slot than those of RQ ({slot})"
    foreign.args = (f"{text}; give it the hash tag of RQ_KEY_PREFIX, or use redis.cluster.RedisCluster for it",)
    return foreign


def _cut(sent: Any) -> list[bytes]:
    """Return the commands that redis-py has packed, each as it was sent."""
    data = b"".join(sent) if isinstance(sent, list) else sent
    commands, start = [], 0
    while start < len(data):
        end, _ = cut_command(data, start)
        commands.append(data[start:end])
        start = end
    return commands


def _name(command: bytes) -> bytes:
    """Return the name of a packed command; nothing if there is none."""
    return next(iter(words_of(command, 0, 1)), b"").upper()


@cache
def resending(connection_class: type[Any]) -> type[Any]:
    """Return a subclass that sends again; the same one each time."""
    return type(connection_class.__name__, (Resending, connection_class), {"__module__": connection_class.__module__})
