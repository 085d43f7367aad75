"""Whether another process only lacks a processor, as far as the kernel tells."""

from __future__ import annotations

import time

#: From <linux/posix-timers.h>: the clock of all processor time of a process.
_CPUCLOCK_SCHED = 2


def is_runnable(pid: int) -> bool:
    """Tell whether a process runs, or waits for nothing but a processor; False where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read(512).rpartition(b") ")[2][:1] == b"R"
    except OSError:
        return False


def processor_time(pid: int) -> float:
    """Return the seconds of processor time that a process has had; 0 where the system does not tell."""
    try:
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError:
        return 0.0
