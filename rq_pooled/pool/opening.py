"""How a connection is made fit for its next user: an idle one is checked, a closed one is opened in a few tries."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..config.secrets import message_of, scrub
from ..connection.away import LOST
from ..connection.connect_errors import explain, says_full
from ..connection.finder import Finder
from ..deadline import current as current_deadline
from ..deadline import within
from ..delays import jittered_delay
from ..errors import USAGE, ServerFull, ServerUnreachable
from .book import is_open
from .hooks import NotNow

if TYPE_CHECKING:
    from .pool import Pool

#: How often connecting is tried for one caller. Only connecting: a command that was sent is never sent again.
_CONNECT_ATTEMPTS = 3
#: Roles of commands that are to say what is wrong, and not to wait for its end.
_IMPATIENT = ("cli",)


def check_idle(pool: Pool, connection: Any) -> None:
    """Close an open connection that is not fit for use; before anything is asked over it."""
    close = pool.book.close
    if is_open(connection):
        try:
            if connection.can_read():
                close(connection, "unread data, or closed by the server", lost=True)
        except (RedisError, OSError) as error:
            close(connection, message_of(error), lost=True)
    if is_open(connection) and time.monotonic() >= pool.book.lines[connection].expires_at:
        close(connection, "max_lifetime")
    finder = pool.connection_kwargs.get("connection_pool")
    if is_open(connection) and isinstance(finder, Finder) and finder.is_former(connection):
        close(connection, "another server has become the master", lost=True)
    if is_open(connection):
        try:
            with _part_of_the_deadline():
                # This comes before the first command, while nothing is at stake.
                connection.check_health()
        except (RedisError, OSError) as error:
            close(connection, message_of(error), lost=True)
            if isinstance(error, RedisTimeoutError):
                # A firewall that has forgotten one connection has forgotten the others, too.
                pool.book.close_idle()


def open_connection(pool: Pool, connection: Any, ends: float) -> None:
    """Connect, with another try after a short while if ``ends`` (``time.monotonic()``) lies behind it.

    Raises:
        NotNow: the server is full, or a hook of the pool does not let it be opened.
        ServerUnreachable: it cannot be opened.
    """
    for attempt in range(1, _CONNECT_ATTEMPTS + 1):
        try:
            with ExitStack() as stack:
                for hook in pool.hooks:
                    stack.enter_context(hook.opening(pool, connection))
                connection.connect()
                if connection.can_read():
                    raise RedisConnectionError("the server sent data that was not asked for")
            return
        except ServerUnreachable:
            raise
        except (*LOST, ResponseError, OSError) as error:
            connection.disconnect()
            pool.book.left(connection)
            reason = message_of(error)
            pool.events.publish("error", reason=reason, attempt=attempt)
            if says_full(pool.connection_class, error):
                reason = reason.rstrip(".")
                full = f"cannot connect to {pool.address}: the server is full: {reason}; nothing was sent. "
                is_full = ServerFull(f"{full}Close connections, or raise the server's maxclients")
                if pool.role in _IMPATIENT:
                    raise is_full from error
                raise NotNow("maxclients", is_full) from error
            settings = pool.settings
            delay = jittered_delay(attempt - 1, settings.reconnect_base, settings.reconnect_cap)
            # A refusal in words (password, database, certificate) will be the same the next time.
            trouble = explain(error, connection)
            final = isinstance(error, ResponseError) or trouble.exit_code == USAGE
            if final or attempt == _CONNECT_ATTEMPTS or time.monotonic() + delay >= ends:
                unreachable = ServerUnreachable(
                    f"cannot connect to {pool.address}: {scrub(trouble.reason)} "
                    f"(tried {attempt} time{'s' * (attempt > 1)}); nothing was sent. {trouble.remedy}"
                )
                unreachable.exit_code = trouble.exit_code
                raise unreachable from error
            time.sleep(delay)


def _part_of_the_deadline() -> AbstractContextManager[None]:
    """Keep most of the time for what follows: a new connection may work where an idle one has died without a word."""
    deadline = current_deadline()
    return nullcontext() if deadline is None else within(max(0.0, deadline.left()) / 4, deadline.setting)
