"""What a worker is to RQ: its name, its slots, its queues, and what RQ's own Worker writes about them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rq.logutils import blue, green
from rq.utils import now, utcformat
from rq.worker import Worker

from ..config.describing import shown_description
from ..config.settings import Settings
from ..frequent_lines import FrequentLines
from ..store.claim import Claim
from ..store.keys import worker_key
from ..store.scheduled import promote
from ..store.workers import register_workers
from ..wire import Command


class Identity:
    """The one place where the parent asks RQ's Worker, and calls the methods of it that users override.

    Args:
        worker: of RQ's class; its scheduler only says what a scheduler's hash looks like.
        settings: CONCURRENCY, which is how many slots there are, and HEARTBEAT_TTL.
    """

    def __init__(self, worker: Worker, settings: Settings) -> None:
        self._worker = worker
        self._lines = FrequentLines(worker.log)
        self.name = worker.name
        #: The names of the slots. Each is an RQ worker to the outside.
        self.names = [worker.name, *(f"{worker.name}-{number}" for number in range(1, settings.concurrency))]
        self._queues = {queue.key: queue for queue in worker.queues}
        self.queue_keys = [queue.key for queue in worker.queues]
        self.queue_names: list[str] = worker.queue_names()
        #: Seconds between two rounds of maintenance.
        self.maintenance_interval = max(1, worker.maintenance_interval)
        #: Seconds for which a slot's hash outlives its heartbeat: RQ's are a minute more than its worker may wait until
        #: the next. Ours never wait so long, and one whose leases are over counts for no queue.
        self.ttl = math.ceil(min(worker.worker_ttl + 60, settings.heartbeat_ttl))
        #: RQ's --job-monitoring-interval, its heartbeat while a job runs.
        self.monitoring_interval = max(1, worker.job_monitoring_interval)
        #: Seconds that a job may run which does not say so itself.
        self.default_timeout = worker.queue_class.DEFAULT_TIMEOUT

    # -- claims --------------------------------------------------------------------------------------------------

    def order(self) -> tuple[list[str], str]:
        """Return the keys of the queues in the order in which they are served next, and the name of the strategy."""
        worker = self._worker
        strategy = getattr(worker._dequeue_strategy, "value", worker._dequeue_strategy) or "default"
        return [queue.key for queue in worker._ordered_queues], strategy

    def note_claim(self, claim: Claim) -> None:
        """Serve the claim's queue as the strategy says, and log the job as RQ logs one that it has popped."""
        worker = self._worker
        if claim.queue_key in self._queues:
            worker.reorder_queues(reference_queue=self._queues[claim.queue_key])
        if not worker.log.isEnabledFor(logging.INFO):
            return
        queue = green(claim.queue_key.removeprefix(worker.queue_class.redis_queue_namespace_prefix))
        if worker.log_job_description:
            text = claim.raw.get(b"description", b"").decode(errors="replace")
            description = blue(shown_description(text, own_code_only=True))
            self._lines.info("Worker %s: %s: %s (%s)", claim.worker_name, queue, description, claim.job_id)
        else:
            self._lines.info("Worker %s: %s: %s", claim.worker_name, queue, claim.job_id)

    # -- what is written about it --------------------------------------------------------------------------------

    def registration(self, states: Mapping[str, str], again: bool = False, dead: tuple[str, int] = ("", 0)) -> Command:
        """Return the command that registers slots, name -> state, as RQ workers; see register.lua."""
        self._worker.last_heartbeat = now()
        fields = {key: value or "" for key, value in self._worker.serialize().items()}
        slots = [(name, {**fields, "state": state}) for name, state in states.items()]
        return register_workers(self.ttl, again, dead, self.queue_names, slots)

    def promotion(self, asked: Sequence[Any] = ()) -> Command:
        """Return the command that enqueues due scheduled jobs, then counts which of the keys ``asked`` for exist."""
        scheduler = self._worker.scheduler
        assert scheduler is not None
        scheduler.last_heartbeat = now()
        # Others of ours know by it whose lock it is.
        fields = {**scheduler.to_dict(), "rq_pooled": "1"}
        return promote(self.queue_names, scheduler.name, fields, asked)

    def warm_shutdown(self, busy: Sequence[str]) -> list[Command]:
        """Log a warm shutdown, and return the commands that note it in the hashes of busy workers as RQ does."""
        self._worker._shutdown_requested_date = now()
        self._worker.handle_warm_shutdown_request()
        date = utcformat(self._worker._shutdown_requested_date)
        return [("HSET", worker_key(name), "shutdown_requested_date", date) for name in busy]
