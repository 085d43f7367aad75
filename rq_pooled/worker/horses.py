"""What a forked child runs to be a horse, made ready before the first fork."""

from __future__ import annotations

import resource
from typing import Any

from ..config import describing
from ..config.log_secrets import keep_secrets
from ..config.settings import Settings
from ..config.withheld import withhold
from ..connection.defaults import accepted_options
from ..failed.sweep_settings import maintenance_policies
from ..horse.process import HorseProcess
from ..horse.recorder import make_recorder
from ..horse.stream import StreamConnection, stream_class, stream_options
from ..horse.warmup import warm_up
from ..horse.worker import HorseMixin
from ..multiplexer.multiplexer import Multiplexer
from ..parent.context import Context
from ..parent.slots import RunHorse
from ..pool.assembly import with_role
from ..pool.hooks import LongWaits, StopFlag
from ..pool.registry import adopt, get_pool
from ..process.channel import ChildChannel
from ..signing.serializer import sealed

#: Connections that a worker has of its own: command and listen.
ROLES = 2
#: Connections that each horse may open at least. RQ itself uses two at once in a job: it reads over one what it watches
#: over another (``depends_on`` in a plain rq.Queue, ``cancel(enqueue_dependents=True)``).
_JOB_NEEDS = 2
#: Streams that one horse may have, for the threads of its job.
MOST_STREAMS = 64


def job_connections(settings: Settings) -> int:
    """Return how many connections each horse may open for jobs that use Redis, with JOBS_SHARE=no."""
    return max(_JOB_NEEDS, (settings.max_connections - ROLES) // _horses(settings))


def all_job_connections(settings: Settings) -> int:
    """Return how many connections all horses together may open for jobs that use Redis."""
    return 0 if settings.jobs_share else job_connections(settings) * _horses(settings)


def _horses(settings: Settings) -> int:
    """Return how many horses there may be: one more than slots, since RQ's maintenance has its own."""
    return settings.concurrency + 1


def jobs_login(settings: Settings) -> dict[str, Any]:
    """Return the options of a connection that jobs use, where they have a login of their own."""
    if settings.jobs_login is None:
        return {}
    username, _, password = settings.jobs_login.partition(":")
    return {"username": username, "password": password, "credential_provider": None}


def prepare_horses(
    worker: Any, context: Context, version: tuple[int, int, int], multiplexer: Multiplexer | None
) -> RunHorse:
    """Return what a forked child runs to be a horse until there is a reason to end.

    Everything that can be is made here, once, before the first fork: what a child makes is its own memory, what it
    inherits is shared.

    Args:
        worker: becomes a horse in each child.
        context: of the parent.
        version: the server's.
        multiplexer: lets jobs use Redis; None where each horse has connections of its own.
    """
    settings, brake = context.settings, context.brake
    pool = get_pool(settings, "job", client=worker.connection)
    recorder = make_recorder(type(worker.connection), pool, version)
    horse_class: Any = type("Horse", (HorseMixin, type(worker)), {})
    queues = [
        worker.queue_class.from_queue_key(
            queue.key,
            connection=recorder,
            job_class=queue.job_class,
            serializer=sealed(queue.serializer),
            death_penalty_class=worker.death_penalty_class,
        )
        for queue in worker.queues
    ]
    share = job_connections(settings)
    # The result is remembered: looking at signatures dirties 2.5 MB, in each horse if it is done there.
    accepted_options(StreamConnection)
    warm_up(recorder)
    policies = maintenance_policies(settings)
    # Reading all settings in each horse would dirty 0.6 MB.
    secrets = [setting.env[0] for setting in Settings.rows() if setting.secret]

    def run_horse(channel: ChildChannel, token: bytes | None) -> None:
        if multiplexer is not None and token is not None:
            door = multiplexer.door(token)
            pool.become("job", MOST_STREAMS, stream_class(door), stream_options(pool.connection_kwargs, door, "job"))
        else:
            options = {**with_role(pool.connection_kwargs, "job"), **jobs_login(settings)}
            pool.become("job", share, options=options, hooks=[StopFlag(brake), LongWaits()])
        adopt(pool)
        withhold(secrets)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        worker.__class__ = horse_class
        worker._is_horse = True
        # The parent has logged what is shown of the call; RQ would log all of it at the end.
        worker.log_job_description = worker.log_job_description and describing.current() is None
        keep_secrets()
        worker.connection, worker.queues, worker.serializer = recorder, queues, sealed(worker.serializer)
        limits = (settings.max_jobs_per_horse, settings.max_horse_memory)
        HorseProcess(worker, channel, *limits, policies, multiplexer is not None, settings.heartbeat_ttl).run()

    return run_horse
