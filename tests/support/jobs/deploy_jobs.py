"""Job functions of the tests about deploys and horses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import rq_pooled

_kept: list[bytearray] = []


def keep(megabytes: int) -> int:
    """Leave memory behind in this process, and return its pid."""
    _kept.append(bytearray(b"x") * (megabytes * 1024 * 1024))
    return os.getpid()


def leave_orphan() -> None:
    """Start a process that starts another one and ends: the second is nobody's child, in a session of its own."""
    inner = "import time; time.sleep(0.5)"
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", outer], check=True)


class HangingWorker(rq_pooled.Worker):
    """Does not get done with a job whose process died."""

    def handle_work_horse_killed(self, *_: Any) -> None:
        self.connection.rpush("handling", "1")
        time.sleep(60)
