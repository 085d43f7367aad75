"""The first connections of a worker: what is wrong for good ends it at once, what passes is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError
from redis.sentinel import MasterNotFoundError

from ..config.secrets import message_of
from ..config.settings import Settings
from ..connection.away import NEEDED_RIGHTS, is_away
from ..connection.connect_errors import explain
from ..deadline import within
from ..delays import reconnect_delays
from ..errors import USAGE, RQPooledError, ServerUnreachable, ServerUnsupported
from ..log_lines import WorkerLog
from ..parent.command_connection import CommandConnection
from ..parent.listen_connection import ListenConnection
from ..process.event_loop import Loop

_LOGIN_WORDS = ("NOAUTH", "WRONGPASS", "NOPERM", "invalid password")

#: Seconds between two lines about one wait.
SAY_EVERY = 10.0
#: Seconds beyond GUARD_WAIT in which the last attempt has to end, so that it can say what is wrong.
_LAST = 1.0

T = TypeVar("T")


class ServerNotReady(ServerUnreachable):
    """The server cannot serve for now: it is down, loads its data, is a replica for the moment, or is full."""


def when_ready(
    begin: Callable[[float], T], settings: Settings, loop: Loop, signals: Iterable[int], log: WorkerLog
) -> T | None:
    """Call ``begin`` until it does not raise ServerNotReady, for GUARD_WAIT seconds; return its result.

    Between attempts it waits as when the server is lost later. Returns None if one of ``signals`` came meanwhile. What
    an attempt does on the network ends a second after GUARD_WAIT, whether the server refuses or says nothing. Without a
    GUARD_WAIT the one attempt has SOCKET_CONNECT_TIMEOUT.

    Args:
        begin: gets the end of GUARD_WAIT (``time.monotonic()``).

    Raises:
        ServerNotReady: the time is over. Whatever else ``begin`` raises passes through at once.
    """
    started = time.monotonic()
    ends = started + settings.guard_wait
    last = _LAST if settings.guard_wait else settings.socket_connect_timeout
    delays = reconnect_delays(settings.reconnect_base, settings.reconnect_cap)
    stopped: list[bool] = []
    failures = 0
    say_at = started
    while True:
        try:
            with within(ends + last - time.monotonic(), "GUARD_WAIT"):
                result = begin(ends)
        except ServerNotReady as error:
            failures += 1
            left = ends - time.monotonic()
            given_up = 0 < settings.reconnect_attempts <= failures
            if left <= 0 or given_up:
                raise ServerNotReady(
                    f"{error}; tried {failures} time{'s' * (failures > 1)} in {settings.guard_wait - left:.0f} s "
                    f"({'RECONNECT_ATTEMPTS' if given_up else 'GUARD_WAIT'})"
                ) from None
            # The loop listens anew each time, since ``begin`` may wait, too, and listen itself.
            for signum in signals:
                loop.on_signal(signum, lambda: stopped.append(True))
            if time.monotonic() >= say_at:
                log.warning("%s; trying again for up to %.0f s", message_of(error), left)
                say_at = time.monotonic() + SAY_EVERY
            due = time.monotonic() + min(next(delays), left)
            while not stopped and (rest := due - time.monotonic()) > 0:
                loop.turn(rest)
            if stopped:
                log.info("stopping on request")
                return None
            continue
        if failures:
            log.info("the server is ready after %.1f s", time.monotonic() - started)
        return result


def connect(connection: CommandConnection | ListenConnection, found: bool = False) -> None:
    """Connect for the first time.

    Args:
        found: sentinels say where the server is; one that they name and that cannot be reached has just died.

    Raises:
        ServerUnsupported: the password is missing or wrong, the user may not do what a worker does, or URL is wrong.
        ServerNotReady: trying again soon will help.
        ServerUnreachable: everything else.
    """
    try:
        connection.connect()
    except NoPermissionError as error:
        raise ServerUnsupported(
            f"the server's access control refuses what a worker does: {error}; {NEEDED_RIGHTS}"
        ) from None
    except (RedisError, OSError) as error:
        raise refusal(error, found, connection.fresh()) from None


def check_login(connection: Any, found: bool) -> None:
    """Log in as jobs will, once; ``found`` and what is raised are as for ``connect``."""
    try:
        connection.connect()
    except (RedisError, OSError) as error:
        wrong = refusal(error, found, connection)
        raise ServerUnsupported(f"JOBS_LOGIN: {wrong}") if isinstance(wrong, ServerUnsupported) else wrong from None
    finally:
        connection.disconnect()


def refusal(error: Exception, found: bool = False, connection: Any = None) -> RQPooledError:
    """Return the error of ours that says what an error while connecting means; see ``connect``."""
    trouble = explain(error, connection)
    login = isinstance(error, (AuthenticationError, AuthorizationError)) or any(
        word in str(error) for word in _LOGIN_WORDS
    )
    if login:
        text = trouble.reason
        return ServerUnsupported(f"the server refuses the login: {text}; set user and password in the URL")
    remedy = trouble.remedy[:1].lower() + trouble.remedy[1:]
    text = f"cannot connect to the server: {trouble.reason}; {remedy}"
    if trouble.exit_code == USAGE:
        return ServerUnsupported(text)
    if is_away(error):
        return ServerNotReady(f"the server is not ready: {trouble.reason}")
    # Sentinels that know no such service are no server that will be back.
    masterless = isinstance(error, MasterNotFoundError)
    if not masterless and (found or trouble.passing):
        return ServerNotReady(text)
    return ServerUnreachable(text)
