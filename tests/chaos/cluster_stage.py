"""A cluster in the place of the one server: its slot moves besides, and the server that is broken is its owner."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from cluster import Cluster
from keys import PREFIX
from redis.exceptions import RedisError

from .inflict import BreakableStage, Later
from .jobs import QUEUE
from .plan import Fault
from .stage import client


class ClusterStage(BreakableStage):
    """Three masters without replicas, each with its journal: whatever happens, what was acknowledged is kept."""

    def __init__(self, directory: Path, journal: Path, engine: Path | None = None) -> None:
        super().__init__(directory, journal, engine)
        self.cluster = Cluster(None, replicas=False)
        self._find()

    @property
    def url(self) -> str:
        """The cluster, by way of all its nodes."""
        return self.cluster.url

    def _find(self) -> None:
        """Break the owner from now on."""
        self.server = self.cluster.owner(PREFIX).server

    def start(self, workers: int) -> None:
        """Start so many workers."""
        self._admin = client(self.url, 5)
        for _ in range(workers):
            self.start_worker()

    def command(self, name: str) -> list[str]:
        """Return what runs a worker: RQ's own command knows no cluster."""
        return [sys.executable, "-m", "rq_pooled", "worker", "--url", self.url, "--name", name, QUEUE]

    def _move_slot(self, fault: Fault) -> Later:
        """Begin to move the slot, and end it later: half of the keys are here and half there meanwhile."""
        # One that was crashed before may not have been noticed as back.
        self.cluster.wait_until_whole()
        deed = self._note("move slot", 0, fault.length)
        target = self.cluster.other(self.cluster.owner(PREFIX))
        # A full node takes no keys, and the end of that fault may have come to another owner.
        target.call("CONFIG", "SET", "maxmemory", 0)
        stack = contextlib.ExitStack()
        move = stack.enter_context(self.cluster.moving(PREFIX, target))
        move(1 + int(50 * fault.pick))

        def end() -> None:
            stack.close()
            self._find()
            self._ended(deed)

        return fault.length, end

    def close(self) -> None:
        """End everything that this stage started."""
        with contextlib.suppress(RedisError, OSError):
            super().close()
        self.cluster.close()
