"""What a job may change in its process, and how it is put right after it."""

from __future__ import annotations

import _random
import _signal  # type: ignore[import-not-found] # CPython and PyPy have it, typeshed does not
import contextlib
import faulthandler
import gc
import locale
import logging
import multiprocessing.context
import multiprocessing.util
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

#: What stands behind signal.getsignal, which looks up an enum's member for each answer: that takes longer than all else
#: here.
_getsignal: Callable[[int], Any] = _signal.getsignal
#: Likewise, with a mask of plain numbers.
_sigmask: Callable[[int, Any], set[int]] = _signal.pthread_sigmask

_SIGNALS = sorted({int(signum) for signum in signal.valid_signals()} - {signal.SIGKILL, signal.SIGSTOP})
#: All limits that this system has; one of them has two names.
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
#: Variables that differ from job to job because the horse sets them.
_OWN_VARIABLES = (b"RQ_JOB_ID", b"RQ_WORKER_ID")


class Surroundings:
    """What a job may change in its process, as it was when the process began."""

    def __init__(self) -> None:
        self._handlers = [signal.SIG_DFL if signum == signal.SIGALRM else _getsignal(signum) for signum in _SIGNALS]
        self._mask = _sigmask(signal.SIG_BLOCK, ())
        self._streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._descriptors = _descriptors()
        self._recursion_limit = sys.getrecursionlimit()
        self._threads = threading.active_count()
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._directory = _directory()
        self._limits = [resource.getrlimit(limit) for limit in _LIMITS]
        self._processors = _processors()
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        self._identity = _identity()
        self._hooks = sys.gettrace(), sys.getprofile()
        self._logs = _Logs()
        self._imported = _SetAtImport()
        self._processes: Any = vars(multiprocessing.context)["_default_context"]
        self._start_method: Any = self._processes._actual_context
        self._spoilt = False
        _seed_generators()

    def has_new_threads(self) -> bool:
        """Tell whether the job left a thread running."""
        return threading.active_count() > self._threads

    def has_closed_streams(self) -> bool:
        """Tell whether the job closed what this process, and the next job, would print to."""
        return any(getattr(stream, "closed", False) for stream in self._streams.values())

    def is_spoilt(self) -> bool:
        """Tell whether the job changed what cannot be given back: user ids, a priority, a hard limit, the directory.

        Likewise descriptors 0 to 2: what a job closed may be the number of something else by now.
        """
        return self._spoilt or _descriptors() != self._descriptors

    def restore(self) -> None:
        """Stop timers, give back what was changed, write out what is buffered, and seed the random generators.

        docs/architecture.md lists what is not given back.
        """
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.set_wakeup_fd(-1)
        if _sigmask(signal.SIG_BLOCK, ()) != self._mask:
            self._unblock()
        handlers = [_getsignal(signum) for signum in _SIGNALS]
        if handlers != self._handlers:
            for signum, before, after in zip(_SIGNALS, self._handlers, handlers):
                if before != after and before is not None:  # None is a handler that Python did not set
                    signal.signal(signum, before)
        os.umask(self._umask)
        if self._directory is not None and _directory() != self._directory:
            with self._or_spoilt():
                os.chdir(self._directory)
        self._restore_limits()
        if sys.getrecursionlimit() < self._recursion_limit:  # a higher one may be a module's, set at its import
            sys.setrecursionlimit(self._recursion_limit)
        if (sys.gettrace(), sys.getprofile()) != self._hooks:
            sys.settrace(self._hooks[0])
            sys.setprofile(self._hooks[1])
        gc.enable()
        self._logs.restore()
        self._imported.restore()
        self._restore_start_method()
        _renew_event_loop()
        _seed_generators()
        for name, original in self._streams.items():
            _flush(getattr(sys, name, None))
            if getattr(sys, name, None) is not original:
                setattr(sys, name, original)
                _flush(original)

    def _restore_limits(self) -> None:
        """Give back resource limits that were lowered, processors and priority; a higher limit may be a module's."""
        limits = [resource.getrlimit(limit) for limit in _LIMITS]
        if limits != self._limits:
            for limit, before, after in zip(_LIMITS, self._limits, limits):
                if any(_is_lower(now, then) for now, then in zip(after, before)):
                    with self._or_spoilt():
                        resource.setrlimit(limit, before)
        if _processors() != self._processors:
            with self._or_spoilt():
                os.sched_setaffinity(0, self._processors)
        if os.getpriority(os.PRIO_PROCESS, 0) != self._priority:
            with self._or_spoilt():
                os.setpriority(os.PRIO_PROCESS, 0, self._priority)
        # Not given back: a change of them also ends what makes the kernel kill this process with its parent.
        self._spoilt = self._spoilt or _identity() != self._identity

    def _restore_start_method(self) -> None:
        """Let the next job choose how multiprocessing starts processes, which can be done once.

        Where a job has chosen an unusual way, a module may have, at its import: that needs a new process.
        """
        chosen = self._processes._actual_context
        if chosen is not self._start_method:
            self._processes._actual_context = self._start_method
            self._spoilt = self._spoilt or chosen is not self._processes._default_context

    @contextlib.contextmanager
    def _or_spoilt(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            self._spoilt = True

    def _unblock(self) -> None:
        for signum in signal.sigpending():  # it was for the job that blocked it: ignoring a signal discards it
            handler = signal.getsignal(signum)
            signal.signal(signum, signal.SIG_IGN)
            signal.signal(signum, handler)
        _sigmask(signal.SIG_SETMASK, self._mask)


class _Logs:
    """Keeps what the worker logs going where it went; how a job's own loggers are set up is theirs."""

    def __init__(self) -> None:
        manager = logging.root.manager
        #: Of no use but to tell that a job has disabled all loggers that existed, as dictConfig does.
        self._any = logging.getLogger("rq_pooled.surroundings.any")
        self._any.disabled = False
        loggers = [logger for logger in manager.loggerDict.values() if isinstance(logger, logging.Logger)]
        self._all = {logger: logger.disabled for logger in loggers}
        self._ours = [
            (logger, self._state(logger)) for logger in self._all if logger.name.split(".")[0] in ("rq", "rq_pooled")
        ]
        self._disabled = manager.disable
        self._root_handlers = logging.root.handlers.copy()
        self._worker = logging.getLogger("rq.worker")
        self._handlers = _effective_handlers(self._worker)
        self._levels = [(handler, handler.level) for handler in self._handlers]

    @staticmethod
    def _state(logger: logging.Logger) -> tuple[Any, ...]:
        return logger.level, logger.propagate, logger.handlers.copy(), logger.filters.copy()

    def restore(self) -> None:
        """Give it back."""
        if logging.root.manager.disable != self._disabled:
            logging.disable(self._disabled)
        if self._any.disabled:
            for logger, disabled in self._all.items():
                logger.disabled = disabled
        for logger, state in self._ours:
            level, propagate, handlers, filters = state
            if logger.disabled and not self._all[logger]:
                logger.disabled = False
            if logger.level != level:
                logger.setLevel(level)
            if logger.handlers != handlers or logger.propagate != propagate or logger.filters != filters:
                logger.handlers[:], logger.filters[:], logger.propagate = handlers, filters, propagate
        # The root logger's handlers are the program's; the worker's lines go where they went.
        if logging.root.handlers != self._root_handlers:
            self._root_handlers = logging.root.handlers.copy()
            self._worker.handlers[:], self._worker.propagate = self._handlers, False
            self._ours = [(logger, self._state(logger)) for logger, _ in self._ours]
        for handler, level in self._levels:
            if handler.level != level:
                handler.setLevel(level)


def _effective_handlers(logger: logging.Logger | None) -> list[logging.Handler]:
    handlers = []
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    return handlers


class _SetAtImport:
    """What modules set when they are first imported, which in a reused process happens once.

    After a job that imported something all of it stays as it is; after another one it is given back.
    """

    def __init__(self) -> None:
        self._environ = os.environ
        self._note()

    def _note(self) -> None:
        self._modules = len(sys.modules)
        self._variables: dict[bytes, bytes] = dict(self._environ._data)  # type: ignore[attr-defined]
        self._path, self._argv = sys.path.copy(), sys.argv.copy()
        self._filters: list[Any] = list(warnings.filters)
        self._timeout = socket.getdefaulttimeout()
        self._locale = locale.setlocale(locale.LC_ALL)
        self._thresholds = gc.get_threshold()
        decimal: Any = sys.modules.get("decimal")
        self._decimal = decimal and decimal.getcontext().copy()

    def restore(self) -> None:
        """Give it back, or keep it as it now is."""
        os.environ = self._environ  # noqa: B003 - it is the object that was here before a job put its own there
        if len(sys.modules) != self._modules:
            self._note()
            return
        variables: dict[bytes, bytes] = self._environ._data  # type: ignore[attr-defined]
        for name in _OWN_VARIABLES:
            if name in variables:
                self._variables[name] = variables[name]
        if variables != self._variables:
            self._restore_variables(variables)
        if sys.path != self._path:
            sys.path[:] = self._path
        if sys.argv != self._argv:
            sys.argv[:] = self._argv
        if warnings.filters != self._filters:
            # No public way keeps their order; resetwarnings tells the interpreter's cache that they have changed.
            warnings.resetwarnings()
            warnings.filters[:] = self._filters  # type: ignore[index]
        if socket.getdefaulttimeout() != self._timeout:
            socket.setdefaulttimeout(self._timeout)
        if locale.setlocale(locale.LC_ALL) != self._locale:
            locale.setlocale(locale.LC_ALL, self._locale)
        if gc.get_threshold() != self._thresholds:
            gc.set_threshold(*self._thresholds)
        if self._decimal is not None:
            decimal: Any = sys.modules["decimal"]
            if _arithmetic(decimal.getcontext()) != _arithmetic(self._decimal):
                decimal.setcontext(self._decimal.copy())

    def _restore_variables(self, variables: dict[bytes, bytes]) -> None:
        zone = variables.get(b"TZ")
        for name in variables.keys() - self._variables.keys():
            del os.environb[name]
        for name, value in self._variables.items():
            if variables.get(name) != value:
                os.environb[name] = value
        if variables.get(b"TZ") != zone:
            time.tzset()


def let_resource_trackers_live() -> None:
    """Let the process that multiprocessing starts to remove what a program leaves in /dev/shm outlive this one.

    It does so when the pipe from here is closed. In this process's group it would be killed before that.
    """
    spawn: Callable[[Any, Any, Any], int] = multiprocessing.util.spawnv_passfds

    def spawn_apart(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
        if not any("multiprocessing.resource_tracker" in os.fsdecode(arg) for arg in args):
            return spawn(path, args, passfds)
        tracker = subprocess.Popen(
            args, executable=path, pass_fds=passfds, restore_signals=False, start_new_session=True
        )
        tracker.returncode = 0  # who asked for it waits for it
        return tracker.pid

    multiprocessing.util.spawnv_passfds = spawn_apart


def _renew_event_loop() -> None:
    """Let asyncio.get_event_loop find that nothing was set, where the job closed its loop or took it away.

    An open one stays: modules keep the loop, and connections that belong to it, from one call to the next.
    """
    events: Any = sys.modules.get("asyncio.events")
    local = getattr(getattr(events, "_event_loop_policy", None), "_local", None)
    if local is None:
        return
    loop = local._loop
    if loop.is_closed() if loop is not None else getattr(local, "_set_called", False):
        events._event_loop_policy._local = type(local)()


def _seed_generators() -> None:
    """Give this job other numbers than the one before, and than those of horses with the same ancestor.

    The generators are those of modules that are loaded; objects that programs make themselves cannot be found.
    """
    # As random.seed() does, in half the time: it would read 2500 bytes.
    _random.Random.seed(random._inst, int.from_bytes(os.urandom(32), "big"))
    random._inst.gauss_next = None  # type: ignore[attr-defined]
    if numpy_random := sys.modules.get("numpy.random"):
        with contextlib.suppress(Exception):  # likewise: without an argument it takes 80 us, so 10
            numpy_random.seed(struct.unpack("4I", os.urandom(16)))
    if torch := sys.modules.get("torch"):
        with contextlib.suppress(Exception):  # the processor's; those of graphics cards do not survive a fork
            torch.default_generator.manual_seed(int.from_bytes(os.urandom(7), "big"))


def _arithmetic(context: Any) -> tuple[Any, ...]:
    return context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp, context.traps


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # removed under us
        return None


def _identity() -> tuple[Any, ...]:
    ids = (os.getresuid(), os.getresgid()) if hasattr(os, "getresuid") else (os.getuid(), os.geteuid(), os.getegid())
    return (*ids, os.getgroups(), os.getpgrp(), os.getsid(0))


def _descriptors() -> list[tuple[int, int] | None]:
    """Return which files standard input and output are."""
    found: list[tuple[int, int] | None] = []
    for descriptor in (0, 1, 2):
        try:
            status = os.fstat(descriptor)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return found


def _processors() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _is_lower(now: int, then: int) -> bool:
    return now != resource.RLIM_INFINITY and (then == resource.RLIM_INFINITY or now < then)


def _flush(stream: Any) -> None:
    with contextlib.suppress(Exception):
        stream.flush()


def has_children() -> bool:
    """Tell whether the job left processes behind, dead or alive, in this one's group or not."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def has_doomed_children() -> bool:
    """Tell whether processes of this one's group still run, which end with it; the dead are waited for."""
    if not hasattr(os, "waitid"):
        return True
    try:
        while os.waitid(os.P_PGID, os.getpgrp(), os.WEXITED | os.WNOHANG):
            pass
    except ChildProcessError:
        return False
    return True
