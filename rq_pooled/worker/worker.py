"""``Worker``: RQ's worker class in front, a prefork server behind; reached by ``rq worker --worker-class``."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import multiprocessing
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn
from uuid import uuid4

import click
import rq.worker
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT
from rq.logutils import blue, green, setup_loghandlers
from rq.scheduler import RQScheduler
from rq.utils import now, utcformat
from rq.worker import DequeueStrategy, WorkerStatus

from ..capacity.budget import Lease
from ..capacity.processes import process_name, withdraw
from ..capacity.reservation import ALWAYS
from ..capacity.stop_flag import Brake
from ..config.settings import Settings, message_of
from ..config.typos import misspelt
from ..connection.away import is_away
from ..connection.options import accepted_options, close_idle, make_connection
from ..connection.sentinel import beside, is_watched
from ..errors import (
    ConfigurationError,
    PlatformUnsupported,
    RQPooledError,
    ServerUnreachable,
    ServerUnsupported,
    WorkerNameTaken,
)
from ..failed.policies import maintenance_policies
from ..horse import integrations
from ..horse.process import HorseProcess
from ..horse.recorder import make_recorder
from ..horse.stream import StreamConnection, stream_options
from ..horse.warmup import warm_up
from ..horse.worker import HorseMixin
from ..log_lines import keep_lines
from ..multiplexer.dialer import Dialer
from ..multiplexer.multiplexer import Multiplexer
from ..parent.arbiter import Arbiter
from ..parent.command_connection import CommandConnection
from ..parent.context import Parent
from ..parent.exchange import Exchange
from ..parent.listen_connection import ListenConnection
from ..parent.slots import RunHorse
from ..pool.pool import adopt, get_connection, get_pool
from ..process.channel import ChildChannel
from ..process.event_loop import Loop
from ..queue import queue as _queue  # noqa: F401 - jobs enqueue with it: loaded once, before the horses are forked
from ..rq_version import TESTED, check_handlers, check_keys, check_rq, is_tested
from ..store.claim import Claim
from ..store.ledger import Ledger
from ..store.scripts import shared_scripts
from ..wire import Command
from . import startup
from .admission import Admission
from .server_check import check_rights, check_server

#: Connections that a worker has of its own: command and listen.
ROLES = 2
#: Connections that each horse may open at least: RQ itself uses two at once in a job, reading over one what it watches
#: over another (``depends_on`` in a plain rq.Queue, ``cancel(enqueue_dependents=True)``).
_JOB_NEEDS = 2
#: Streams that one horse may have, for the threads of its job.
MOST_STREAMS = 64
#: Seconds that a child of ``rq worker-pool`` waits before it ends with an error: the pool would start it again at once.
RESPAWN_PAUSE = 5.0
#: Signals that begin a shutdown.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Methods of RQ's Worker for which there is no occasion here, see docs/architecture.md: a subclass that overrides one
#: is told.
NOT_CALLED = (
    *("execute_job", "fork_work_horse", "main_work_horse", "monitor_work_horse", "setup_work_horse_signals"),
    *("wait_for_horse", "prepare_job_execution", "handle_execution_ended", "cleanup_execution", "heartbeat"),
    *("register_birth", "register_death", "dequeue_job_and_maintain_ttl", "subscribe"),
)
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

    #: Whether rq-scheduler's jobs are moved, see parent/rq_scheduler.py.
    with_scheduler = False

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
        known_level = not isinstance(logging_level, str) or isinstance(logging.getLevelName(logging_level.upper()), int)
        for logger in ("rq.worker", "rq.job", "rq_pooled"):
            setup_loghandlers(logging_level if known_level else "INFO", date_format, log_format, name=logger)
        keep_lines()
        try:
            if not known_level:
                raise ConfigurationError(
                    f"logging level {logging_level} is unknown: use DEBUG, INFO, WARNING, ERROR or CRITICAL"
                )
            _check_platform()
            check_rq()
            self._check_classes()
            _check_strategy(dequeue_strategy)
            self._dequeue_strategy = dequeue_strategy
            self.with_scheduler = with_scheduler
            settings = self._load_settings()
            for module in settings.preload:
                _preload(module)
            if settings.app is not None:
                integrations.use_app(integrations.load_app(settings.app))
            with _loop_for_stop_signals() as loop:
                return self._work(settings, loop, burst, max_jobs, max_idle_time)
        except RQPooledError as error:
            self._refuse(error)

    def _work(
        self, settings: Settings, loop: Loop, burst: bool, max_jobs: int | None, max_idle_time: int | None
    ) -> bool:
        # What came in has served to find the server.
        close_idle(self.connection.connection_pool)
        scripts = shared_scripts()
        ledger = Ledger(scripts, settings, uuid4().hex)
        self._scripts, self._ledger = scripts, ledger
        command = CommandConnection(self._connector(settings, "command"), scripts.load(), settings.socket_timeout)
        self._command = command
        lease = self._lease_of(settings)
        names = [self.name] + [f"{self.name}-{i}" for i in range(1, settings.concurrency)]
        make_listen = self._connector(settings, "listen")
        listen = ListenConnection(
            lambda: beside(make_listen(), command.server), [f"rq:pubsub:{name}" for name in names]
        )
        self.pid, self.hostname = os.getpid(), socket.gethostname()
        self.birth_date = self.last_heartbeat = now()
        # RQ's own object only says what a scheduler's hash looks like; it opens and starts nothing.
        self.scheduler = RQScheduler(self.queues, connection=self.connection, name=self.name)
        self.scheduler.pid = self.pid
        try:
            version = startup.when_ready(
                lambda ends: self._begin(settings, loop, command, listen, names, lease, ends),
                settings,
                loop,
                STOP_SIGNALS,
                self.name,
            )
            if version is None:
                return False
            try:
                self.log.info(
                    "Worker %s: started with PID %d, rq %s, %d horse%s",
                    *(self.name, self.pid, self.version, len(names), "s" * (len(names) > 1)),
                )
                self._warn(settings)
                self.log.info("*** Listening on %s...", green(", ".join(self.queue_names())))
                parent = Parent(self, settings, scripts, ledger, command, listen, loop, lease=lease)
                multiplexer = self._multiplexer(parent) if settings.jobs_share else None
                arbiter = Arbiter(
                    parent,
                    names,
                    multiplexer,
                    self._prepare_horses(settings, version, parent.brake, multiplexer),
                    burst,
                    max_jobs,
                    max_idle_time,
                )
                exit_code = arbiter.run()
            finally:
                self._unregister(settings, command, names, lease)
        finally:
            command.close()
            listen.close()
        if arbiter.starts_anew and not exit_code:
            _start_anew()
        if exit_code is not None:
            raise SystemExit(exit_code)
        return bool(arbiter.completed)

    def _begin(
        self,
        settings: Settings,
        loop: Loop,
        command: CommandConnection,
        listen: ListenConnection,
        names: Sequence[str],
        lease: Lease | None,
        ends: float,
    ) -> tuple[int, int, int] | None:
        """Connect and register; return the server's version, None if a stop signal came first."""
        try:
            version = self._connect_when_admitted(settings, loop, command, listen, lease, ends)
            if version is not None:
                self.ip_address = command.address()
                self._register(command, names)
        except RQPooledError as error:
            if isinstance(error, ServerUnreachable) and is_away(error):
                raise startup.ServerNotReady(str(error)) from None
            raise
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise startup.ServerNotReady(f"the server was lost at the start: {error}") from None
        return version

    def _lease_of(self, settings: Settings) -> Lease | None:
        """Return what reserves this worker's connections, if there is a BUDGET: at its start, one for jobs included."""
        if settings.budget is None:
            return None
        need = ALWAYS if settings.jobs_share else ROLES + job_connections(settings) * settings.concurrency
        if need > settings.budget:
            what = (
                "command, listen, jobs" if settings.jobs_share else f"JOBS_SHARE=no, CONCURRENCY={settings.concurrency}"
            )
            raise ConfigurationError(
                f"BUDGET is {settings.budget}, and a worker needs {need} connections ({what}): raise BUDGET"
            )
        return Lease(settings, need, need, self._connector(settings, "probe"))

    def _connect_when_admitted(
        self,
        settings: Settings,
        loop: Loop,
        command: CommandConnection,
        listen: ListenConnection,
        lease: Lease | None,
        ends: float,
    ) -> tuple[int, int, int] | None:
        """Connect as soon as there is room; return the server's version, None if a stop signal came first."""
        versions: list[tuple[int, int, int]] = []
        found = is_watched(self._connector(settings, "command")())

        def open_command() -> None:
            startup.connect(command, found)
            if not versions:
                version = check_server(command.execute)
                check_rights(command.execute, self._scripts.rights())
                versions.append(version)

        def close() -> None:
            command.close()
            listen.close()

        admission = Admission(
            settings,
            self._scripts,
            command,
            open_command,
            lambda: startup.connect(listen),
            close,
            self.log,
            self.name,
            lease,
        )
        return versions[0] if admission.wait(loop, STOP_SIGNALS, ends) else None

    def _multiplexer(self, parent: Parent) -> Multiplexer:
        """Return what lets jobs use Redis through this process."""
        command = parent.command

        def ask(question: Command, on_reply: Callable[[Any], None]) -> None:
            command.submit(Exchange([question], lambda replies: on_reply(replies[0]), lambda _error: on_reply(None)))

        dialer = Dialer(parent.settings, lambda role: make_connection(parent.settings, role, self.connection))
        return Multiplexer(
            parent.loop,
            parent.settings,
            lambda text, *words: self.log.warning("Worker %s: " + text, self.name, *words),
            dialer,
            command.place,
            ask,
            parent.lease,
            parent.brake,
            lambda: command.answered_at,
        )

    def _prepare_horses(
        self, settings: Settings, version: tuple[int, int, int], brake: Brake, multiplexer: Multiplexer | None
    ) -> RunHorse:
        """Return what a forked child runs to be a horse until there is a reason to end.

        Everything that can be is made here, once, before the first fork: what a child makes is its own memory, what
        it inherits is shared.
        """
        pool = get_pool(settings, "job", client=self.connection)
        recorder = make_recorder(type(self.connection), pool, version)
        horse_class: Any = type("Horse", (HorseMixin, type(self)), {})
        queues = [
            self.queue_class.from_queue_key(
                queue.key,
                connection=recorder,
                job_class=queue.job_class,
                serializer=queue.serializer,
                death_penalty_class=self.death_penalty_class,
            )
            for queue in self.queues
        ]
        share = job_connections(settings)
        accepted_options(
            StreamConnection
        )  # remembered: looking at signatures dirties 2.5 MB, in each horse if done there
        warm_up(recorder)
        policies = maintenance_policies(settings)

        def run_horse(channel: ChildChannel, token: bytes | None) -> None:
            if multiplexer is not None and token is not None:
                door = multiplexer.door(token)
                pool.become("job", MOST_STREAMS, StreamConnection, stream_options(pool.connection_kwargs, door, "job"))
            else:
                pool.become("job", share)
                pool.brake = brake
            adopt(pool)
            horse: Any = self
            horse.__class__ = horse_class
            horse._is_horse = True
            horse.connection, horse.queues = recorder, queues
            limits = (settings.max_jobs_per_horse, settings.max_horse_memory)
            HorseProcess(horse, channel, *limits, policies, multiplexer is not None).run()

        return run_horse

    # -- what the arbiter asks for -------------------------------------------------------------------------------

    def log_claimed(self, claim: Claim) -> None:
        """Log a claimed job as RQ logs one that it has popped."""
        queue = green(claim.queue_key.removeprefix(self.queue_class.redis_queue_namespace_prefix))
        if self.log_job_description:
            description = blue(claim.raw.get(b"description", b"").decode(errors="replace"))
            self.log.info("Worker %s: %s: %s (%s)", claim.worker_name, queue, description, claim.job_id)
        else:
            self.log.info("Worker %s: %s: %s", claim.worker_name, queue, claim.job_id)

    def registration(self, states: Mapping[str, str], again: bool = False, dead: tuple[str, int] = ("", 0)) -> Command:
        """Return the command that registers slots, name -> state, as RQ workers; see register.lua."""
        self.last_heartbeat = now()
        fields = {key: value or "" for key, value in self.serialize().items()}
        slots = [(name, {**fields, "state": state}) for name, state in states.items()]
        return self._scripts.register(self.worker_ttl + 60, again, dead, self.queue_names(), slots)

    def promotion(self) -> Command:
        """Return the command that enqueues due scheduled jobs."""
        assert self.scheduler is not None
        self.scheduler.last_heartbeat = now()
        fields = {**self.scheduler.to_dict(), "rq_pooled": "1"}  # others of ours know by it whose lock it is
        return self._ledger.promote(self.queue_names(), self.scheduler.name, fields)

    def note_warm_shutdown(self, busy: Sequence[str]) -> None:
        """Log a warm shutdown, and note it in the hashes of busy workers as RQ does."""
        self._shutdown_requested_date = now()
        self.handle_warm_shutdown_request()
        if busy:
            date = utcformat(self._shutdown_requested_date)
            commands: list[Command] = [("HSET", f"rq:worker:{name}", "shutdown_requested_date", date) for name in busy]
            self._command.submit(Exchange(commands))

    # -- beginning and end ---------------------------------------------------------------------------------------

    def _check_classes(self) -> None:
        """Refuse classes with keys of their own, and handlers that RQ 3 cannot call."""
        classes = [type(self), self.queue_class, self.job_class]
        classes += [cls for queue in self.queues for cls in (type(queue), queue.job_class)]
        check_keys(dict.fromkeys(classes))
        check_handlers(type(self))

    def _load_settings(self) -> Settings:
        return Settings.load(self._arguments, _settings_module())

    def _connector(self, settings: Settings, role: str) -> Any:
        """Return what makes a connection to the server of the connection that came in."""
        return lambda: make_connection(settings, role, self.connection, protocol=2, health_check_interval=0)

    def _register(self, command: CommandConnection, names: Sequence[str]) -> None:
        """Register all slots or none. Names left by a process of this host that is dead are taken over.

        Raises:
            WorkerNameTaken: by a worker that lives, or whose process cannot be looked at from here.
        """
        states = dict.fromkeys(names, WorkerStatus.IDLE.value)
        (taken,) = command.execute([self.registration(states)])
        if isinstance(taken, Exception):
            raise ServerUnsupported(f"the server refused to register the worker: {taken}")
        if taken:
            name, host, pid = (part.decode() for part in taken)
            if host == self.hostname and pid.isdigit() and _is_dead(int(pid)):
                (taken,) = command.execute([self.registration(states, dead=(host, int(pid)))])
        if taken:
            name, host, pid = (part.decode() for part in taken)
            raise WorkerNameTaken(
                f"there is an active worker named {name!r} already (pid {pid} on {host}); choose another --name, or "
                f"wait until its registration has expired ({self.worker_ttl + 60} s after its last heartbeat)"
            )

    def _unregister(
        self, settings: Settings, command: CommandConnection, names: Sequence[str], lease: Lease | None
    ) -> None:
        if command.connected:
            try:
                death = self._scripts.unregister(utcformat(now()), self.name, self.queue_names(), names)
                left = [*withdraw(process_name(settings)), *(lease.release() if lease is not None else ())]
                command.execute([death, *left])
            except (RedisError, OSError) as error:
                self.log.warning("Worker %s: death not registered: %s", self.name, message_of(error))

    def _warn(self, settings: Settings) -> None:
        """Say once what an operator would want to know in advance."""
        if not is_tested():
            self.log.warning(
                "Worker %s: not tested with rq %s, but with %s", self.name, rq.version.VERSION, ", ".join(TESTED)
            )
        unheard = [name for name in NOT_CALLED if getattr(type(self), name, None) is not getattr(Worker, name, None)]
        if unheard:
            self.log.warning(
                "Worker %s: %s.%s is never called by rq_pooled", self.name, type(self).__name__, " or ".join(unheard)
            )
        for line in misspelt():
            self.log.warning("Worker %s: %s", self.name, line)
        jobs = 0 if settings.jobs_share else job_connections(settings) * settings.concurrency
        if ROLES + jobs > settings.max_connections:
            self.log.warning(
                "Worker %s: with JOBS_SHARE=no and CONCURRENCY=%d, jobs that use Redis may hold %d connections of "
                "their own, "
                "beyond MAX_CONNECTIONS=%d",
                self.name,
                settings.concurrency,
                jobs,
                settings.max_connections,
            )
        if multiprocessing.parent_process() is not None and settings.concurrency > 1:
            self.log.warning(
                "Worker %s: started by a pool of processes: each of them runs CONCURRENCY=%d jobs at once",
                self.name,
                settings.concurrency,
            )

    def _refuse(self, error: RQPooledError) -> NoReturn:
        """End with one line and the exit code that says whether trying again may help."""
        self.log.error("Worker %s: %s", self.name, message_of(error))
        if multiprocessing.parent_process() is not None:
            time.sleep(RESPAWN_PAUSE)  # rq worker-pool would start it again every second, whatever the exit code
        raise SystemExit(error.exit_code) from None


def job_connections(settings: Settings) -> int:
    """Return how many connections each horse may open for jobs that use Redis, with JOBS_SHARE=no."""
    return max(_JOB_NEEDS, (settings.max_connections - ROLES) // settings.concurrency)


def _has_no_connection(queues: Any) -> bool:
    items = [queues] if isinstance(queues, (str, bytes)) or not hasattr(queues, "__iter__") else list(queues)
    return all(isinstance(item, str) for item in items)


def _settings_module() -> dict[str, Any]:
    """Return the uppercase names of the module that ``rq worker -c`` was given: it reaches a worker only this way."""
    context = click.get_current_context(silent=True)
    name = context.params.get("config") if context is not None else None
    if not name:
        return {}
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module: whatever is wrong is said in one line
        raise ConfigurationError(
            f"the settings module {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from None
    return {key: value for key, value in vars(module).items() if key.isupper()}


def _start_anew() -> NoReturn:
    """Replace this process by a new one of the same command line; a child of ``rq worker-pool`` ends, and is replaced.

    The process id stays, so a service manager or a container does not notice.
    """
    if multiprocessing.parent_process() is not None:
        raise SystemExit(0)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _check_platform() -> None:
    if not hasattr(os, "fork"):
        raise PlatformUnsupported(f"rq_pooled's worker needs os.fork, which {platform.system()} does not have")


def _nothing(*_: object) -> None:
    """Do nothing."""


@contextlib.contextmanager
def _loop_for_stop_signals() -> Iterator[Loop]:
    """Return a loop whose first turn serves stop signals, and SIGHUP where it is not ignored (nohup), that come before
    it; later ones do nothing until the end.

    None of them ends the process while it registers its slots, or their death: they would stay behind.
    """
    loop = Loop()
    signals = [*STOP_SIGNALS, *([] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP])]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        previous = {signum: signal.signal(signum, _nothing) for signum in signals}
        for signum in signals:
            loop.on_signal(signum, _nothing)  # until the arbiter takes over
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield loop
    finally:
        loop.close()
        for signum, handler in previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def _check_strategy(strategy: Any) -> None:
    if strategy not in ("default", "random", "round_robin"):
        raise ConfigurationError(f"dequeue strategy {strategy!r} is not allowed: use default, random or round_robin")


def _preload(module: str) -> None:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
        raise ConfigurationError(
            f"PRELOAD names the module {module!r}, which cannot be imported: {type(error).__name__}: {error}"
        ) from None


def _is_dead(pid: int) -> bool:
    if pid == os.getpid():  # a restarted container gives the same pid again
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
