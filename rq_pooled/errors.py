"""Every exception of rq_pooled, under one root, each named by the event that raises it."""

from __future__ import annotations

import copyreg
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

#: The command line was right but the world was not: trying again may help (EX_TEMPFAIL in sysexits.h).
TRY_AGAIN = 75
#: The command or a setting is wrong: trying again without changing it cannot help.
USAGE = 2


class RQPooledError(Exception):
    """The root of all errors that rq_pooled raises itself.

    ``exit_code`` is what a command ends with when this error reaches the top: 2 where a setting or a
    command has to be changed first, 75 where trying again may help.
    """

    exit_code: int = USAGE

    def __reduce__(self) -> tuple[Any, ...]:
        # As other objects, without __init__: an exception's own way calls it with the message only, and where it wants
        # more, the error is lost on its way from another process, and with it multiprocessing's thread for results.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConfigurationError(RQPooledError, ValueError):
    """A setting, a URL or an argument cannot be used. A ValueError, as for any bad argument in Python."""


class RedisUnavailable(RQPooledError, RedisConnectionError):
    """The server could not be used in time. One ``except`` for all that a web request may meet while Redis is away.

    Raised itself where nothing was sent because the server could not be used a moment ago; the classes below say what
    else happened. A redis ConnectionError because that is what redis-py's own BlockingConnectionPool raises: code that
    already handles it around ``enqueue`` goes on working.
    """

    exit_code = TRY_AGAIN


class PoolExhausted(RedisUnavailable):
    """All connections of a pool stayed in use for POOL_TIMEOUT seconds, or until ENQUEUE_DEADLINE."""


class ServerUnreachable(RedisUnavailable):
    """No connection to the server could be opened: nothing was sent."""


class ServerFull(ServerUnreachable):
    """The server had as many clients as it may, for as long as could be waited: nothing was sent."""


class EnqueueUnconfirmed(RedisUnavailable):
    """The connection was lost, or ENQUEUE_DEADLINE was over, after an enqueue was sent: the job may have been enqueued.

    ``job_id`` names the job, ``job_ids`` all of them where many were enqueued at once. Enqueueing again with this id
    cannot double it.
    """

    def __init__(self, message: str, job_id: str, job_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.job_ids = job_ids or (job_id,)


class NotAdmitted(RQPooledError):
    """A worker found no place on the server, or in its application's budget, for GUARD_WAIT seconds."""

    exit_code = TRY_AGAIN


class BudgetExceeded(RedisUnavailable):
    """All connections of the application's BUDGET stayed reserved for as long as could be waited; nothing was sent."""


class ServerUnsupported(RQPooledError):
    """The server answers but cannot be worked with: too old, a cluster, wrong or missing password."""


class WorkerNameTaken(RQPooledError, ValueError):
    """Another live worker has this name. A ValueError, as RQ's ``register_birth`` raises; its hash may expire."""

    exit_code = TRY_AGAIN


class UnknownQueue(RQPooledError, ValueError):
    """No queue of this name is known to the server. A ValueError, as for any bad argument."""


class SweepUnderWay(RQPooledError):
    """Another sweep of this queue's failed jobs is under way, or took over since this one was too slow."""

    exit_code = TRY_AGAIN


class PlatformUnsupported(RQPooledError, RuntimeError):
    """The operating system lacks something that the worker is built on, such as ``fork``."""


class RQUnsupported(RQPooledError, RuntimeError):
    """The installed version of RQ is none that rq_pooled works with: jobs would be lost."""


class QueueFull(RQPooledError):
    """A queue with ``max_length`` has no room: nothing was enqueued. Workers make room; trying again later may help."""

    exit_code = TRY_AGAIN

    def __init__(self, message: str, queue: str, length: int, max_length: int) -> None:
        super().__init__(message)
        self.queue = queue
        self.length = length
        self.max_length = max_length


class AlreadySpent(RQPooledError):
    """The key of ``enqueue(..., once=key)`` was spent by the job ``job_id``, which succeeded: nothing was enqueued."""

    def __init__(self, message: str, key: str, job_id: str) -> None:
        super().__init__(message)
        self.key = key
        self.job_id = job_id


class AlreadyQueued(RQPooledError):
    """A job of the same function and arguments, ``job_id``, is queued or running: nothing was enqueued."""

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class NotVerified(RQPooledError, ValueError):
    """A job in Redis is not signed as it should be, or calls what ALLOWED does not name: it is not loaded."""
