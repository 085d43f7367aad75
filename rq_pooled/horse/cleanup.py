"""What a job may change in its process, and how it is put right after it."""

from __future__ import annotations

import _random
import _signal  # type: ignore[import-not-found] # CPython and PyPy have it, typeshed does not
import contextlib
import faulthandler
import gc
import multiprocessing.context
import os
import random
import resource
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .logs import Logs
from .set_at_import import SetAtImport

#: What stands behind signal.getsignal, which looks up an enum's member for each answer: that takes longer than all else
#: here.
_getsignal: Callable[[int], Any] = _signal.getsignal
#: The same, with a mask of plain numbers.
_sigmask: Callable[[int, Any], set[int]] = _signal.pthread_sigmask

_SIGNALS = sorted({int(signum) for signum in signal.valid_signals()} - {signal.SIGKILL, signal.SIGSTOP})
#: All limits that this system has; one of them has two names.
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


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
        self._logs = Logs()
        self._imported = SetAtImport()
        self._processes: Any = vars(multiprocessing.context)["_default_context"]
        self._start_method: Any = self._processes._actual_context
        self._spoilt = False
        self._next_gauss: float | None = -1.0
        self._seed_generators()

    def _seed_generators(self) -> None:
        """Give this job other numbers than the one before, and than those of horses with the same ancestor.

        The generators are those of modules that are loaded; objects that programs make themselves cannot be found.
        """
        generator: Any = random._inst
        # The generator is left alone unless it was seeded, or set to a state: both replace the number from which its
        # next call of gauss begins. Seeding takes 5 us.
        if generator.gauss_next is not self._next_gauss:
            # As random.seed() does, in half the time: it would read 2500 bytes.
            _random.Random.seed(generator, int.from_bytes(os.urandom(32), "big"))
            generator.gauss_next = None
            self._next_gauss = generator.gauss(0.0, 1.0)
            generator.gauss_next = self._next_gauss
        _seed_others()

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
        handlers = list(map(_getsignal, _SIGNALS))
        if handlers != self._handlers:
            for signum, before, after in zip(_SIGNALS, self._handlers, handlers):
                # None is a handler that Python did not set.
                if before != after and before is not None:
                    signal.signal(signum, before)
        os.umask(self._umask)
        if self._directory is not None and _directory() != self._directory:
            with self._or_spoilt():
                os.chdir(self._directory)
        self._restore_limits()
        # A module may have set a higher one at its import.
        if sys.getrecursionlimit() < self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        if (sys.gettrace(), sys.getprofile()) != self._hooks:
            sys.settrace(self._hooks[0])
            sys.setprofile(self._hooks[1])
        gc.enable()
        self._logs.restore()
        self._imported.restore()
        self._restore_start_method()
        _renew_event_loop()
        self._seed_generators()
        for name, original in self._streams.items():
            _flush(getattr(sys, name, None))
            if getattr(sys, name, None) is not original:
                setattr(sys, name, original)
                _flush(original)

    def _restore_limits(self) -> None:
        """Give back resource limits that were lowered, processors and priority; a higher limit may be a module's."""
        limits = list(map(resource.getrlimit, _LIMITS))
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
        # The identity is not given back: its change also ends what makes the kernel kill this process with its parent.
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
        # A pending signal was for the job that blocked it: ignoring it discards it.
        for signum in signal.sigpending():
            handler = signal.getsignal(signum)
            signal.signal(signum, signal.SIG_IGN)
            signal.signal(signum, handler)
        _sigmask(signal.SIG_SETMASK, self._mask)


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


def _seed_others() -> None:
    if numpy_random := sys.modules.get("numpy.random"):
        # With an argument this takes 10 us, without one 80.
        with contextlib.suppress(Exception):
            numpy_random.seed(struct.unpack("4I", os.urandom(16)))
    if torch := sys.modules.get("torch"):
        # Only the processor's generator: those of graphics cards do not survive a fork.
        with contextlib.suppress(Exception):
            torch.default_generator.manual_seed(int.from_bytes(os.urandom(7), "big"))


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        # The job has removed it.
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
