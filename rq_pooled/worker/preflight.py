"""What is checked, loaded and warned of before a worker starts anything."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import platform
import sys
from typing import Any

import rq
from redis.connection import Connection, parse_url
from rq.worker import Worker

from ..config.own_urls import is_own_url
from ..config.settings import Settings
from ..config.typos import misspelt
from ..config.user_code import user_code
from ..connection.place import address_of
from ..errors import ConfigurationError, PlatformUnsupported
from ..horse.integrations import load_app, use_app
from ..log_lines import WorkerLog
from ..rq_version import TESTED, check_handlers, check_keys, check_rq, is_tested
from .horses import ROLES, all_job_connections

#: Methods of RQ's Worker for which there is no occasion here, see docs/architecture.md: a subclass that overrides one
#: is told.
NOT_CALLED = (
    *("execute_job", "fork_work_horse", "main_work_horse", "monitor_work_horse", "setup_work_horse_signals"),
    *("wait_for_horse", "prepare_job_execution", "handle_execution_ended", "cleanup_execution", "heartbeat"),
    *("register_birth", "register_death", "dequeue_job_and_maintain_ttl", "subscribe"),
)


def is_level(level: Any) -> bool:
    """Tell whether logging has a level of this name."""
    return not isinstance(level, str) or isinstance(logging.getLevelName(level.upper()), int)


def check(worker: Worker, strategy: Any) -> None:
    """Refuse a platform, an RQ, classes of the worker's, and a dequeue strategy that cannot work."""
    if not hasattr(os, "fork"):
        raise PlatformUnsupported(f"rq_pooled's worker needs os.fork, which {platform.system()} does not have")
    check_rq()
    # Classes with keys of their own, and handlers that RQ 3 cannot call.
    classes = [type(worker), worker.queue_class, worker.job_class]
    classes += [cls for queue in worker.queues for cls in (type(queue), queue.job_class)]
    check_keys(dict.fromkeys(classes))
    check_handlers(type(worker))
    if strategy not in ("default", "random", "round_robin"):
        raise ConfigurationError(f"dequeue strategy {strategy!r} is not allowed: use default, random or round_robin")


def load_modules(settings: Settings) -> None:
    """Import what PRELOAD and APP name."""
    for module in settings.preload:
        with user_code(f"PRELOAD names the module {module!r}, which cannot be imported"):
            importlib.import_module(module)
    if settings.app is not None:
        use_app(load_app(settings.app))


def settings_module() -> dict[str, Any]:
    """Return the uppercase names of the module that ``rq worker -c`` was given: it reaches a worker only this way."""
    # A program that is no command of click's need not load it.
    click = sys.modules.get("click")
    context = click.get_current_context(silent=True) if click is not None else None
    name = context.params.get("config") if context is not None else None
    if not name:
        return {}
    with user_code(f"the settings module {name!r} cannot be imported"):
        module = importlib.import_module(name)
    return {key: value for key, value in vars(module).items() if key.isupper()}


def warn(worker: Worker, base: type[Worker], settings: Settings, log: WorkerLog) -> None:
    """Say once what an operator would want to know in advance.

    Args:
        worker: of a class that may override methods of ``base``.
        base: rq_pooled's own class.
        settings, log: the worker's.
    """
    if not is_tested():
        log.warning("not tested with rq %s, but with %s", rq.version.VERSION, ", ".join(TESTED))
    unheard = [name for name in NOT_CALLED if getattr(type(worker), name, None) is not getattr(base, name, None)]
    if unheard:
        log.warning("%s.%s is never called by rq_pooled", type(worker).__name__, " or ".join(unheard))
    for line in misspelt():
        log.warning("%s", line)
    if found := _elsewhere(worker, settings):
        log.warning(
            "RQ_POOLED_URL names %s, and this worker serves %s: `rq worker` reads only --url and RQ_REDIS_URL, "
            "`manage.py rqworker` RQ_QUEUES",
            *found,
        )
    jobs = all_job_connections(settings)
    if ROLES + jobs > settings.max_connections:
        log.warning(
            "with JOBS_SHARE=no and CONCURRENCY=%d, jobs that use Redis may hold %d connections of their own, beyond "
            "MAX_CONNECTIONS=%d",
            *(settings.concurrency, jobs, settings.max_connections),
        )
    if multiprocessing.parent_process() is not None and settings.concurrency > 1:
        log.warning(
            "started by a pool of processes: each of them runs CONCURRENCY=%d jobs at once", settings.concurrency
        )


def _elsewhere(worker: Worker, settings: Settings) -> tuple[str, str] | None:
    """Return the server of RQ_POOLED_URL and the one of a worker's connection, if they differ.

    Sentinels and clusters lead to servers of other names, and are not compared.
    """
    url, pool = os.environ.get("RQ_POOLED_URL", "").strip(), worker.connection.connection_pool
    given = pool.connection_kwargs
    if not url or url != settings.url or is_own_url(url) or "connection_pool" in given:
        return None
    options = parse_url(url)  # type: ignore[no-untyped-call]
    named = address_of(options.pop("connection_class", Connection), options)
    serves = address_of(pool.connection_class, given)
    same = named.replace("//localhost:", "//127.0.0.1:") == serves.replace("//localhost:", "//127.0.0.1:")
    return None if same else (named, serves)
