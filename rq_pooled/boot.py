"""The first connections of a worker: what is wrong for good ends it at once, what passes is waited for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.sentinel import MasterNotFoundError

from .backoff import reconnect_delays
from .config import Settings, scrub
from .connections import NEEDED_RIGHTS, CommandConnection, ListenConnection, is_away
from .errors import ServerUnreachable, ServerUnsupported
from .loop import Loop

log = logging.getLogger("rq.worker")

_LOGIN_WORDS = ("NOAUTH", "WRONGPASS", "NOPERM", "invalid password")

T = TypeVar("T")


class ServerNotReady(ServerUnreachable):
    """The server is there, and cannot serve for now: it loads its data, is a replica for the moment, or is full."""


def when_ready(
    begin: Callable[[], T], settings: Settings, loop: Loop, signals: Iterable[int], name: str
) -> T | None:
    """Call ``begin`` until it does not raise ServerNotReady, for GUARD_WAIT seconds; return its result.

    Between attempts it waits as when the server is lost later. Returns None if one of ``signals`` came meanwhile.

    Raises:
        ServerNotReady: the time is over. Whatever else ``begin`` raises passes through at once.
    """
    started = time.monotonic()
    delays = reconnect_delays(settings.reconnect_base, settings.reconnect_cap)
    stopped: list[bool] = []
    failures = 0
    while True:
        try:
            result = begin()
        except ServerNotReady as error:
            failures += 1
            left = settings.guard_wait - (time.monotonic() - started)
            given_up = 0 < settings.reconnect_attempts <= failures
            if left <= 0 or given_up:
                raise ServerNotReady(
                    f"{error}; tried {failures} time{'s' * (failures > 1)} in {settings.guard_wait - left:.0f} s "
                    f"({'RECONNECT_ATTEMPTS' if given_up else 'GUARD_WAIT'})"
                ) from None
            for signum in signals:  # each time: ``begin`` may wait, too, and listen itself
                loop.on_signal(signum, lambda: stopped.append(True))
            if failures == 1:
                log.warning("Worker %s: %s; trying again for up to %.0f s", name, scrub(str(error)), left)
            due = time.monotonic() + min(next(delays), left)
            while not stopped and (rest := due - time.monotonic()) > 0:
                loop.turn(rest)
            if stopped:
                log.info("Worker %s: stopping on request", name)
                return None
            continue
        if failures:
            log.info("Worker %s: the server is ready after %.1f s", name, time.monotonic() - started)
        return result


def connect(connection: CommandConnection | ListenConnection, found: bool = False) -> None:
    """Connect for the first time.

    Args:
        found: sentinels say where the server is; one that they name and nobody reaches has just died.

    Raises:
        ServerUnsupported: the password is missing or wrong, or the user may not do what a worker does.
        ServerNotReady: trying again soon will help.
        ServerUnreachable: everything else.
    """
    try:
        connection.connect()
    except AuthenticationError as error:
        raise _refused(error) from None
    except NoPermissionError as error:
        raise ServerUnsupported(
            f"the server's access control refuses what a worker does: {error}; {NEEDED_RIGHTS}"
        ) from None
    except (RedisError, OSError) as error:
        if any(word in str(error) for word in _LOGIN_WORDS):
            raise _refused(error) from None
        if is_away(error) or (found and not isinstance(error, MasterNotFoundError)):
            raise ServerNotReady(f"the server is not ready: {error}") from None
        raise ServerUnreachable(f"cannot connect to the server: {error}") from None


def _refused(error: Exception) -> ServerUnsupported:
    return ServerUnsupported(f"the server refuses the login: {str(error).rstrip('.')}; set user and password in the URL")
