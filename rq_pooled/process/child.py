"""Makes a forked child a horse, which dies with its parent, and leaves the parent's signals to the parent."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from typing import Any, NoReturn

from .channel import ChildChannel

# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
#: Signals that only the parent handles, and that have no effect in a horse.
_PASSING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def become_horse(parent: int, channel: ChildChannel) -> None:
    """Make this process, which was just forked by ``parent``, a horse that speaks on ``channel``; signals are blocked.

    It leads a process group of its own, so that the processes of its jobs end with it.
    """
    os.setpgid(0, 0)
    _die_with_parent(parent)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Platforms send SIGTERM to every process of a container, and only the parent decides what it means for a running
    # job. The handlers do nothing; SIG_IGN is not used, because the job's own subprocesses would inherit it.
    signal.signal(signal.SIGTERM, _no_op)
    signal.signal(signal.SIGINT, _no_op)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _no_op)
    _set_copies_free(channel)


def _die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent dies, so that no job runs on while another worker has it."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        armed = libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0
    except (OSError, AttributeError):
        armed = False
    # The parent died before the kernel was told.
    if os.getppid() != parent:
        os._exit(1)
    if not armed:
        threading.Thread(target=_watch_parent, args=(parent,), name="rq_pooled-parent-watch", daemon=True).start()


def _watch_parent(parent: int) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _set_copies_free(channel: ChildChannel) -> None:
    """Let the processes that a job forks from here end by signals like any program, and stay off ``channel``.

    A process that a job starts by exec needs neither: the kernel gives it default handlers, Python closes the channel.
    """
    before = threading.local()

    def block() -> None:
        # A signal that reaches the copy before its handlers are reset would have no effect.
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSING)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def reset() -> None:
        channel.close_in_copy()
        passing = [signum for signum in _PASSING if signal.getsignal(signum) is _no_op]
        for signum in passing:
            signal.signal(signum, signal.SIG_DFL)
        unblock()
        # This comes last, since Python drops a KeyboardInterrupt that is raised in here.
        if signal.SIGINT in passing:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def _no_op(_signum: int, _frame: Any) -> None:
    """Do nothing at a signal; unlike SIG_IGN, this is not inherited."""
