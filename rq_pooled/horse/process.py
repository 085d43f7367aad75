"""The loop of a horse: the parent gives it tasks, and it answers each with its outcome."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from typing import Any

from .. import rq_api
from ..failed.policies import Policy
from ..process.channel import ChildChannel
from ..process.memory import resident_megabytes
from ..signing.policy import current
from ..store import due
from ..store.claim import Claim
from . import abandoned, dates, dependents, imports, intervals, screening
from .children import has_children, has_doomed_children, let_resource_trackers_live
from .cleanup import Surroundings
from .large import Gone, LargeValues, Refused
from .outcome import Outcomes
from .relay import Relay
from .stream import StreamConnection
from .tasks import TASKS, Tasks
from .time_limits import announcing
from .worker import HorseMixin

#: Seconds within which the server answers on a connection that a job has left, if it owes nothing.
_PATIENCE = 0.25
#: Seconds for which jobs may wait here. A parent takes them back sooner, unless it is frozen: then they are handed on.
_MAX_WAIT = 0.5


class HorseProcess:
    """One horse.

    Args:
        worker: the forked copy of the parent's worker, with the recorder as its connection.
        channel: to the parent.
        max_jobs: leave after so many jobs.
        max_memory: leave after a job when more MB than this are resident; None never.
        policies: what maintenance does to failed jobs.
        shares: whether jobs use Redis through the parent.
        lease: seconds for which a claim stands unless it is renewed.
    """

    def __init__(
        self,
        worker: HorseMixin,
        channel: ChildChannel,
        max_jobs: int,
        max_memory: float | None = None,
        policies: Sequence[Policy] = (),
        shares: bool = True,
        lease: float = float("inf"),
    ) -> None:
        self._worker = worker
        self._recorder = worker.connection
        self._channel = channel
        self._max_jobs = max_jobs
        self._max_memory = max_memory
        self._shares = shares
        self._lease = lease
        self._surroundings = Surroundings()
        let_resource_trackers_live()
        dates.use_in_jobs()
        imports.use_in_jobs()
        due.use_in_jobs()
        dependents.use_in_handlers()
        intervals.use_in_handlers()
        screening.use_in_jobs(current())
        self._large = LargeValues(self._recorder.connection_pool, Relay(channel, self._recorder).execute, worker.log)
        self._outcomes = Outcomes(worker, channel, self._large)
        self._tasks = Tasks(worker, self._outcomes, Relay(channel, self._recorder, self._large), policies)
        worker.announce = lambda seconds: channel.send(("phase", seconds))
        worker.death_penalty_class = announcing(worker.death_penalty_class, worker)
        # RQ's maintenance would fork the scheduler's own process from here; the parent promotes what is due.
        worker.scheduler = None
        rq_api.survive_spoilt_limits(worker.log)
        abandoned.use_in_maintenance(worker)

    def run(self) -> None:
        """Serve tasks until the parent closes the channel, or until this process should not be used again."""
        gc.enable()
        self._channel.send(("free", False))
        leaving = False
        while not leaving:
            try:
                kind, *rest = self._channel.receive_task()
            except (EOFError, OSError):
                return
            if kind == "perform":
                leaving = self._perform_all(rest)
            else:
                leaving = self._do(kind, *rest)
                self._send("free", leaving)

    def _perform_all(self, claims: Sequence[tuple[Any, ...]]) -> bool:
        """Run jobs, the first one at once, each other one once its permit is taken; return whether to leave then."""
        latest = time.monotonic() + _MAX_WAIT
        for at, fields in enumerate(claims):
            claim = Claim.from_message(fields)
            if claim.is_stale(self._lease):
                # The parent has the server find out whose they are. A process whose clock a job has set must not go on.
                self._worker.log.warning(
                    "Worker %s: not beginning job %s: its horse stood still after it was claimed",
                    claim.worker_name,
                    claim.job_id,
                )
                self._channel.send(("free", True))
                return True
            begun, sent = time.perf_counter(), StreamConnection.sent
            leaving = self._do("perform", claim, at > 0)
            seconds = max(0.0, self._outcomes.delivered_at - begun)
            if leaving or at == len(claims) - 1:
                self._send("free", leaving, seconds, StreamConnection.sent != sent)
                return leaving
            if StreamConnection.sent != sent:
                # Streams with replies on their way are the parent's to close, before the next job uses them.
                self._send("next", True, seconds)
                self._channel.receive()
            else:
                self._channel.send_quietly(*self._outcomes.messages("next", False, seconds))
            # The parent puts back what is left when it hears that this process is free.
            if time.monotonic() > latest or not self._channel.take_permit():
                break
        self._channel.send(("free", False))
        return False

    def _do(self, kind: str, *rest: Any) -> bool:
        """Do one task and clean up after it; return whether this process should end. What it says is in the outbox."""
        horse = os.getpid()
        try:
            TASKS[kind](self._tasks, *rest)
        except Refused as error:
            self._outcomes.outbox.append(("failure", str(error)))
        except Gone:
            self._outcomes.outbox.append(("gone",))
        # This is a copy that user code made by os.fork, and let return.
        if os.getpid() != horse:
            os._exit(0)
        try:
            return self._clean_up()
        except Exception:
            self._worker.log.exception("Worker %s: error while cleaning up after a job", self._worker.name)
            return True

    def _send(self, kind: str, flag: bool, seconds: float | None = None, streams: bool = False) -> None:
        """Send the outbox and a message in one write, so that the parent's answer is one write too."""
        self._channel.send(*self._outcomes.messages(kind, flag, seconds, streams))

    def _clean_up(self) -> bool:
        """Leave nothing of a job to the next one; return whether this process should end instead."""
        self._large.known.clear()
        self._recorder.running = self._recorder.outcome = None
        pool: Any = self._recorder.connection_pool
        # A read that was interrupted would give the next job the reply of another. The parent closes the streams that
        # are owed one; with JOBS_SHARE=no the server is asked.
        if pool.in_use or self._worker.alarm_fired:
            pool.disconnect()
        if not self._shares:
            pool.close_unanswered(_PATIENCE)
        self._surroundings.restore()
        return (
            self._tasks.jobs >= self._max_jobs
            or self._worker.alarm_fired
            or self._tasks.must_leave
            or not pool.is_whole
            or self._surroundings.has_new_threads()
            or self._surroundings.has_closed_streams()
            or self._surroundings.is_spoilt()
            or self._has_children()
            or self._is_too_big()
        )

    def _has_children(self) -> bool:
        if not has_children():
            return False
        if has_doomed_children():
            self._worker.log.warning(
                "Worker %s: a job left a process behind, which ends now with its horse; "
                "subprocess.Popen(..., start_new_session=True) lets it live",
                self._worker.name,
            )
        return True

    def _is_too_big(self) -> bool:
        if self._max_memory is None or (size := resident_megabytes()) <= self._max_memory:
            return False
        self._worker.log.info(
            "Worker %s: its horse holds %.0f MB, above MAX_HORSE_MEMORY=%g; replacing it",
            self._worker.name,
            size,
            self._max_memory,
        )
        return True
