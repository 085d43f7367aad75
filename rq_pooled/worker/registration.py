"""The names of a worker's slots: taken when it starts, all or none, and given back when it ends."""

from __future__ import annotations

import os
import socket

from redis.exceptions import RedisError
from rq.utils import now, utcformat
from rq.worker import WorkerStatus

from ..capacity.clients import process_name
from ..config.secrets import message_of
from ..errors import ServerUnsupported, WorkerNameTaken
from ..parent.context import Context
from ..parent.statistics import last_report
from ..store.statistics import withdraw
from ..store.workers import unregister_workers


def register(context: Context) -> None:
    """Register all slots or none. Names left by a process of this host that is dead are taken over.

    Raises:
        WorkerNameTaken: by a worker that lives, or whose process cannot be looked at from here.
    """
    identity, command, host = context.identity, context.command, socket.gethostname()
    states = dict.fromkeys(identity.names, WorkerStatus.IDLE.value)
    (taken,) = command.execute([identity.registration(states)])
    if isinstance(taken, Exception):
        raise ServerUnsupported(f"the server refused to register the worker: {taken}")
    if taken:
        _name, its_host, pid = (part.decode() for part in taken)
        if its_host == host and pid.isdigit() and _is_dead(int(pid)):
            (taken,) = command.execute([identity.registration(states, dead=(host, int(pid)))])
    if taken:
        name, its_host, pid = (part.decode() for part in taken)
        raise WorkerNameTaken(
            f"there is an active worker named {name!r} already (pid {pid} on {its_host}); choose another --name, or "
            f"wait until its registration has expired ({identity.ttl} s after its last heartbeat)"
        )


def unregister(context: Context) -> None:
    """Give the names back, and what else the server holds of this worker."""
    identity, lease = context.identity, context.lease
    if context.command.connected:
        try:
            date = utcformat(now())
            death = unregister_workers(date, identity.name, identity.queue_names, identity.names)
            left = [
                last_report(context),
                *withdraw(process_name(context.settings)),
                *(lease.release() if lease is not None else ()),
            ]
            context.command.execute([death, *left])
        except (RedisError, OSError) as error:
            context.log.warning("death not registered: %s", message_of(error))


def _is_dead(pid: int) -> bool:
    # A restarted container gives the same pid again.
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
