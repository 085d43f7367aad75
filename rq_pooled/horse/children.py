"""Processes that a job leaves behind."""

from __future__ import annotations

import multiprocessing.util
import os
import subprocess
from collections.abc import Callable, Sequence
from typing import Any


def has_children() -> bool:
    """Tell whether the job left processes behind, dead or alive, in this one's group or not."""
    # macOS has none before Python 3.13.
    if not hasattr(os, "waitid"):
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
        # The caller waits for it.
        tracker.returncode = 0
        return tracker.pid

    multiprocessing.util.spawnv_passfds = spawn_apart
