"""Ends horses and notices their deaths, together with the processes left in their process groups."""

from __future__ import annotations

import contextlib
import os
import resource
import signal


def pidfd_works() -> bool:
    """Tell whether deaths can be waited for as descriptors: Linux 5.3, and no sandbox that forbids it."""
    if not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def wait_for(pid: int) -> tuple[int, resource.struct_rusage] | None:
    """Return (wait status, rusage) of a child that has ended, and end its process group; None while it lives."""
    try:
        # macOS has none before Python 3.13.
        if not hasattr(os, "waitid"):
            reaped, status, rusage = os.wait4(pid, os.WNOHANG)
            if reaped == 0:
                return None
            kill_group(pid)
            return status, rusage
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        # No other process can get its number until it is waited for.
        kill_group(pid)
        return os.wait4(pid, 0)[1:]
    except ChildProcessError:
        # Other code has waited for it, so the cause is unknown, but the death is certain.
        return int(signal.SIGKILL), resource.getrusage(resource.RUSAGE_CHILDREN)


def kill_group(pid: int, signum: int = signal.SIGKILL) -> None:
    """Send ``signum`` to every process of a horse's group, if there is any."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)
