"""A job class of a user's that ends its process when a ready job is first queued, between WATCH and EXEC."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from rq.job import Job


class Deadly(Job):
    """As any other, but for the one whose id is deadly."""

    def should_enqueue_at_front(self) -> bool:
        """End the process the first time, and leave a file that tells so."""
        told = Path(os.environ["DEADLY"])
        if self.id == "deadly" and not told.exists():
            told.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().should_enqueue_at_front()
