"""Signals of a worker outside of its arbiter's time, and the start anew that SIGHUP asks for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from ..process.event_loop import Loop

#: Signals that begin a shutdown.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _nothing(*_: object) -> None:
    """Do nothing."""


@contextlib.contextmanager
def loop_for_stop_signals() -> Iterator[Loop]:
    """Return a loop whose first turn serves stop signals that come before it, and SIGHUP unless it is ignored (nohup).

    Later ones do nothing until the end. None of them ends the process while it registers its slots, or their death:
    they would stay behind.
    """
    loop = Loop()
    signals = [*STOP_SIGNALS, *([] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP])]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        previous = {signum: signal.signal(signum, _nothing) for signum in signals}
        for signum in signals:
            # This lasts until the arbiter takes over.
            loop.on_signal(signum, _nothing)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield loop
    finally:
        loop.close()
        for signum, handler in previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def start_anew() -> NoReturn:
    """Replace this process by a new one of the same command line; a child of ``rq worker-pool`` ends, and is replaced.

    The process id stays, so a service manager or a container does not notice.
    """
    if multiprocessing.parent_process() is not None:
        raise SystemExit(0)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
