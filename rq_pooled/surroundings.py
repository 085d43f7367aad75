"""What a job may change in its process, and how it is put right after it."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # CPython and PyPy have it, typeshed does not
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

#: What stands behind signal.getsignal, which looks up an enum's member for each answer: that takes longer than all else
#: here.
_getsignal: Callable[[int], Any] = _signal.getsignal
#: Likewise, with a mask of plain numbers.
_sigmask: Callable[[int, Any], set[int]] = _signal.pthread_sigmask


class Surroundings:
    """What a job may change in its process, as it was when the process began."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)

    def __init__(self) -> None:
        self._handlers = {signum: _getsignal(signum) for signum in self._SIGNALS} | {signal.SIGALRM: signal.SIG_DFL}
        self._mask = _sigmask(signal.SIG_BLOCK, ())
        self._streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._recursion_limit = sys.getrecursionlimit()
        self._threads = threading.active_count()
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        try:
            self._directory: str | None = os.getcwd()
        except OSError:  # removed under us
            self._directory = None

    def has_new_threads(self) -> bool:
        """Tell whether the job left a thread running."""
        return threading.active_count() > self._threads

    def has_closed_streams(self) -> bool:
        """Tell whether the job closed what this process, and the next job, would print to."""
        return any(getattr(stream, "closed", False) for stream in self._streams.values())

    def restore(self) -> None:
        """Stop timers, give back what was changed, write out what is buffered.

        Not the environment, ``sys.path``, context variables or default timeouts: modules set these when they are first
        imported, which in a reused process happens once.
        """
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _sigmask(signal.SIG_BLOCK, ()) != self._mask:
            self._unblock()
        for signum, handler in self._handlers.items():
            if _getsignal(signum) != handler:
                signal.signal(signum, handler)
        os.umask(self._umask)
        if self._directory is not None:
            with contextlib.suppress(OSError):
                if os.getcwd() != self._directory:
                    os.chdir(self._directory)
        if sys.getrecursionlimit() < self._recursion_limit:  # a higher one may be a module's, set at its import
            sys.setrecursionlimit(self._recursion_limit)
        for name, original in self._streams.items():
            _flush(getattr(sys, name, None))
            if getattr(sys, name, None) is not original:
                setattr(sys, name, original)
                _flush(original)

    def _unblock(self) -> None:
        for signum in signal.sigpending():  # it was for the job that blocked it: ignoring a signal discards it
            handler = signal.getsignal(signum)
            signal.signal(signum, signal.SIG_IGN)
            signal.signal(signum, handler)
        _sigmask(signal.SIG_SETMASK, self._mask)


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
