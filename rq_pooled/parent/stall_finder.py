"""Looks for claims that are not renewed any more: of workers that were killed, cut off or stopped; see stalled.lua."""

from __future__ import annotations

from collections import deque
from typing import Any

from redis.exceptions import ResponseError

from ..store.leases import find_stalled, stalled_of
from .context import Context
from .events import Events
from .exchange import Exchange
from .heartbeat import Heartbeat
from .slot import Task

#: Jobs named in one line of the log.
_NAMED = 10


class StallFinder:
    """Looks at intervals, each time right after a heartbeat was answered.

    Args:
        context, events: as the names say.
        heartbeat: comes before each look, and says whether this worker may judge others.
        tasks: wait for horses; one is added for each job that has stalled too often.
    """

    def __init__(self, context: Context, events: Events, *, heartbeat: Heartbeat, tasks: deque[Task]) -> None:
        self._context = context
        self._events = events
        self._heartbeat = heartbeat
        self._tasks = tasks
        self._wanted = False
        self._due = False
        events.heartbeat_answered.append(self._on_answered)

    def start(self) -> None:
        """Begin to look every STALLED_INTERVAL."""
        self._context.loop.call_every(self._context.settings.stalled_interval, self._on_interval)

    @property
    def due(self) -> bool:
        """Tell whether a look should be sent; asked at that moment, since an outage may have come between."""
        ended = self._events.shutdown_began.happened
        return self._due and not ended and self._heartbeat.trusted_until() is not None

    def _on_interval(self) -> None:
        self._wanted = True
        self._heartbeat.beat()

    def _on_answered(self) -> None:
        # Look now if it is time: what this process slept through has been noticed.
        self._due, self._wanted = self._due or self._wanted, False

    def exchanges(self) -> list[Exchange]:
        """Return the exchange that puts stalled jobs back and claims those to be failed."""
        self._due = False
        context = self._context
        name = context.identity.name
        command = find_stalled(
            context.settings, context.token, context.identity.queue_keys, name, self._heartbeat.trusted_until() or 0.0
        )

        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError):
                context.log.error("cannot look for stalled jobs: %s", replies[0])
                return
            stalled = stalled_of(replies[0], name)
            self._due = stalled.more
            context.counters.stalls += len(stalled.returned) + len(stalled.taken)
            if stalled.returned:
                named = ", ".join(
                    f"{job_id} (stall {stalls} of {context.settings.max_stalls}, worker {holder or 'unknown'})"
                    for job_id, _queue, holder, stalls in stalled.returned[:_NAMED]
                )
                more = len(stalled.returned) - _NAMED
                context.log.warning(
                    "put back %d stalled jobs: %s%s",
                    len(stalled.returned),
                    named,
                    f" and {more} more" if more > 0 else "",
                )
            for claim, stalls in stalled.taken:
                reason = f"stalled {stalls} times, more often than MAX_STALLS={context.settings.max_stalls} allows"
                context.log.error("job %s %s; failing it", claim.job_id, reason)
                self._tasks.append(Task("abandon", claim, (reason, False)))

        return [Exchange([command], on_replies)]
