"""``Worker``: RQ's worker class in front, a prefork server behind; reached by ``rq worker --worker-class``."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any, NoReturn
from uuid import uuid4

import rq.worker
from redis import Redis
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT
from rq.logutils import green, setup_loghandlers
from rq.scheduler import RQScheduler
from rq.utils import now
from rq.worker import DequeueStrategy

from ..capacity.budget import Lease
from ..capacity.reservation import ALWAYS
from ..config import describing
from ..config.secrets import message_of
from ..config.settings import Settings
from ..connection.away import LOST, is_away
from ..connection.finder import beside, is_watched
from ..connection.options import make_connection
from ..connection.sockets import close_idle
from ..errors import ConfigurationError, RQPooledError, ServerUnreachable
from ..log_lines import WorkerLog, keep_lines
from ..multiplexer.dialer import Dialer
from ..multiplexer.multiplexer import Multiplexer
from ..parent.arbiter import Arbiter
from ..parent.command_connection import CommandConnection
from ..parent.context import Context
from ..parent.exchange import Exchange
from ..parent.identity import Identity
from ..parent.listen_connection import ListenConnection
from ..pool.registry import get_connection
from ..process.event_loop import Loop
from ..queue import queue as _queue  # noqa: F401 - jobs enqueue with it: loaded once, before the horses are forked
from ..signing.policy import policy_of, use
from ..store.counters import Counters
from ..store.keys import commands_channel
from ..store.scripts import load, rights
from ..wire import Command
from . import preflight, startup
from .admission import Admission
from .horses import ROLES, all_job_connections, jobs_login, prepare_horses
from .registration import register, unregister
from .server_check import check_rights, check_server, leads_to_one_node
from .signals import STOP_SIGNALS, loop_for_stop_signals, start_anew

#: Seconds that a child of ``rq worker-pool`` waits before it ends with an error: the pool would start it again at once.
RESPAWN_PAUSE = 5.0
_SETTINGS = frozenset(field.name for field in dataclasses.fields(Settings))


class Worker(rq.worker.Worker):
    """An RQ worker that runs CONCURRENCY jobs at once in reused horses, on two connections.

    Constructing it has no side effects: monitors construct workers to look at them. Everything starts in ``work``.

    Args:
        queues: as for RQ's Worker: names or queues, one or several.
        connection: as for RQ's Worker, except that it may be left out: then the setting URL says where.
        args, kwargs: everything else that RQ's Worker takes, and every setting by its lower-case name
            (``concurrency=10``), which wins over environment and settings module.
    """

    def __init__(self, queues: Any, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        self._arguments = {key: kwargs.pop(key) for key in list(kwargs) if key in _SETTINGS}
        positional = args[1] if len(args) > 1 else None
        if kwargs.get("connection") is None and positional is None and _has_no_connection(queues):
            kwargs["connection"] = get_connection(self._load_settings())
        super().__init__(queues, name, *args, **kwargs)

    def _set_connection(self, connection: Redis) -> Redis:
        """Take the connection as it is; RQ would write its read timeout into the pool that others share."""
        return connection

    def _set_ip_address(self, connection: Redis) -> None:
        """Leave the address to ``work``; RQ would connect here."""
        self.ip_address = "unknown"

    # -- work ----------------------------------------------------------------------------------------------------

    def work(
        self,
        burst: bool = False,
        logging_level: str | None = None,
        date_format: str = DEFAULT_LOGGING_DATE_FORMAT,
        log_format: str = DEFAULT_LOGGING_FORMAT,
        max_jobs: int | None = None,
        max_idle_time: int | None = None,
        with_scheduler: bool = False,
        dequeue_strategy: DequeueStrategy = DequeueStrategy.DEFAULT,
    ) -> bool:
        """Work until stopped, or until the burst, ``max_jobs`` or ``max_idle_time`` (seconds) is over.

        Replaces RQ's ``work``. Due jobs of RQ's own scheduler are always enqueued; with ``with_scheduler`` those of the
        package rq-scheduler are, too.

        Returns:
            Whether any job was executed.

        Raises:
            SystemExit: 2 if a setting or the server is unusable, 75 if trying again may help; the reason is logged in
                one line. 0 after a second SIGTERM or SIGINT.
        """
        known_level = preflight.is_level(logging_level)
        for logger in ("rq.worker", "rq.job", "rq_pooled"):
            setup_loghandlers(logging_level if known_level else "INFO", date_format, log_format, name=logger)
        # There RQ says when a job is tried again; a command gives its level to the worker's logger only.
        if not (of_jobs := logging.getLogger("rq.job")).level:
            of_jobs.setLevel(self.log.getEffectiveLevel())
        keep_lines()
        try:
            if not known_level:
                raise ConfigurationError(
                    f"logging level {logging_level} is unknown: use DEBUG, INFO, WARNING, ERROR or CRITICAL"
                )
            preflight.check(self, dequeue_strategy)
            self._dequeue_strategy = dequeue_strategy
            settings = self._load_settings()
            use(policy_of(settings))
            describing.use(settings)
            preflight.load_modules(settings)
            with loop_for_stop_signals() as loop:
                return self._work(settings, loop, burst, max_jobs, max_idle_time, with_scheduler)
        except RQPooledError as error:
            self._refuse(error)

    def _work(
        self,
        settings: Settings,
        loop: Loop,
        burst: bool,
        max_jobs: int | None,
        max_idle_time: int | None,
        with_scheduler: bool,
    ) -> bool:
        if leads_to_one_node(self.connection, settings):
            # RQ takes the URL of one node only, and has asked there already.
            self.connection = get_connection(settings)
        # The given connection has served to find the server.
        close_idle(self.connection.connection_pool)
        self.pid, self.hostname = os.getpid(), socket.gethostname()
        self.birth_date = self.last_heartbeat = now()
        # RQ's own object only says what a scheduler's hash looks like; it opens and starts nothing.
        self.scheduler = RQScheduler(self.queues, connection=self.connection, name=self.name)
        self.scheduler.pid = self.pid
        context = self._make_context(settings, loop)
        command, listen, names = context.command, context.listen, context.identity.names
        try:
            version = startup.when_ready(
                lambda ends: self._begin(context, ends), settings, loop, STOP_SIGNALS, context.log
            )
            if version is None:
                return False
            # The counters begin at this moment.
            context = dataclasses.replace(context, counters=Counters())
            try:
                context.log.info(
                    "started with PID %d, rq %s, %d horse%s",
                    *(self.pid, self.version, len(names), "s" * (len(names) > 1)),
                )
                preflight.warn(self, Worker, settings, context.log)
                self.log.info("*** Listening on %s...", green(", ".join(self.queue_names())))
                multiplexer = self._multiplexer(context) if settings.jobs_share else None
                arbiter = Arbiter(
                    context,
                    multiplexer=multiplexer,
                    run_horse=prepare_horses(self, context, version, multiplexer),
                    burst=burst,
                    max_jobs=max_jobs,
                    max_idle_time=max_idle_time,
                    with_scheduler=with_scheduler,
                )
                exit_code = arbiter.run()
            finally:
                unregister(context)
        finally:
            command.close()
            listen.close()
        if arbiter.starts_anew and not exit_code:
            start_anew()
        if exit_code is not None:
            raise SystemExit(exit_code)
        return bool(arbiter.completed)

    def _make_context(self, settings: Settings, loop: Loop) -> Context:
        """Return what the parts of the parent share; nothing is connected yet."""
        identity = Identity(self, settings)
        command = CommandConnection(self._connector(settings, "command"), load(), settings.socket_timeout)
        make_listen = self._connector(settings, "listen")
        listen = ListenConnection(
            lambda: beside(make_listen(), command.server), [commands_channel(name) for name in identity.names]
        )
        log, lease = WorkerLog(self.log, self.name), self._lease_of(settings)
        return Context(identity, settings, uuid4().hex, command, listen, loop, log, lease=lease)

    def _begin(self, context: Context, ends: float) -> tuple[int, int, int] | None:
        """Connect and register; return the server's version, None if a stop signal came first."""
        try:
            version = self._connect_when_admitted(context, ends)
            if version is not None:
                self.ip_address = context.command.address()
                register(context)
        except RQPooledError as error:
            if isinstance(error, ServerUnreachable) and is_away(error):
                raise startup.ServerNotReady(str(error)) from None
            raise
        except LOST as error:
            raise startup.ServerNotReady(f"the server was lost at the start: {error}") from None
        return version

    def _lease_of(self, settings: Settings) -> Lease | None:
        """Return what reserves this worker's connections, if there is a BUDGET: at its start, one for jobs included."""
        if settings.budget is None:
            return None
        need = ALWAYS if settings.jobs_share else ROLES + all_job_connections(settings)
        if need > settings.budget:
            what = (
                "command, listen, jobs" if settings.jobs_share else f"JOBS_SHARE=no, CONCURRENCY={settings.concurrency}"
            )
            raise ConfigurationError(
                f"BUDGET is {settings.budget}, and a worker needs {need} connections ({what}): raise BUDGET"
            )
        return Lease(settings, need, need, self._connector(settings, "probe"))

    def _connect_when_admitted(self, context: Context, ends: float) -> tuple[int, int, int] | None:
        """Connect as soon as there is room; return the server's version, None if a stop signal came first."""
        versions: list[tuple[int, int, int]] = []
        command, listen, settings = context.command, context.listen, context.settings
        found = is_watched(command.fresh())

        def open_command() -> None:
            if login := jobs_login(settings):
                startup.check_login(make_connection(settings, "jobs", self.connection, **login), found)
            startup.connect(command, found)
            if not versions:
                version = check_server(command.execute, command.in_cluster, command.url)
                check_rights(command.execute, rights())
                versions.append(version)

        def close() -> None:
            command.close()
            listen.close()

        admission = Admission(context, open_command, lambda: startup.connect(listen), close)
        return versions[0] if admission.wait(STOP_SIGNALS, ends) else None

    def _multiplexer(self, context: Context) -> Multiplexer:
        """Return what lets jobs use Redis through this process."""
        command, settings = context.command, context.settings

        def ask(question: Command, on_reply: Callable[[Any], None]) -> None:
            command.submit(Exchange([question], lambda replies: on_reply(replies[0]), lambda _error: on_reply(None)))

        return Multiplexer(
            context.loop,
            settings,
            context.log.warning,
            Dialer(settings, lambda role: make_connection(settings, role, self.connection, **jobs_login(settings))),
            command.place,
            ask,
            context.lease,
            context.brake,
            lambda: command.answered_at,
        )

    def _load_settings(self) -> Settings:
        return Settings.load(self._arguments, preflight.settings_module())

    def _connector(self, settings: Settings, role: str) -> Any:
        """Return what makes a connection to the server of the connection that came in."""
        return lambda: make_connection(settings, role, self.connection, protocol=2, health_check_interval=0)

    def _refuse(self, error: RQPooledError) -> NoReturn:
        """End with one line and the exit code that says whether trying again may help."""
        WorkerLog(self.log, self.name).error("%s", message_of(error))
        if multiprocessing.parent_process() is not None:
            # rq worker-pool would start it again every second, whatever the exit code.
            time.sleep(RESPAWN_PAUSE)
        raise SystemExit(error.exit_code) from None


def _has_no_connection(queues: Any) -> bool:
    items = [queues] if isinstance(queues, (str, bytes)) or not hasattr(queues, "__iter__") else list(queues)
    return all(isinstance(item, str) for item in items)
