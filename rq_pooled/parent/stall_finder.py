"""Looks for claims that nobody renews any more: of workers that were killed, cut off or stopped; see stalled.lua."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from .context import Parent
from .exchange import Exchange
from .slots import Slots, Task

#: Jobs named in one line of the log.
_NAMED = 10


class Stalls:
    """Says when a look is due, and makes the exchange.

    Args:
        parent, slots: as the names say.
        beat: has a heartbeat sent, which is to come before each look.
        trusted_until: tells until when, by the server's clock, this worker may judge others; see Upkeep.
    """

    def __init__(
        self, parent: Parent, slots: Slots, beat: Callable[[], None], trusted_until: Callable[[], float | None]
    ) -> None:
        self._parent = parent
        self._slots = slots
        self._beat = beat
        self._trusted_until = trusted_until
        self._wanted = False
        self._due = False

    def start(self) -> None:
        """Begin to look every STALLED_INTERVAL."""
        self._parent.loop.call_every(self._parent.settings.stalled_interval, self._on_interval)

    @property
    def due(self) -> bool:
        """Tell whether a look should be sent; asked at that moment, since an outage may have come between."""
        return self._due and self._trusted_until() is not None

    def _on_interval(self) -> None:
        self._wanted = True
        self._beat()

    def on_answered(self) -> None:
        """Look now if it is time: a heartbeat was answered, so what this process slept through has been noticed."""
        self._due, self._wanted = self._due or self._wanted, False

    def exchange(self) -> Exchange:
        """Return the exchange that puts stalled jobs back and claims those to be failed."""
        self._due = False
        parent = self._parent
        keys = [queue.key for queue in parent.worker.queues]
        command = parent.ledger.stalled(keys, parent.name, self._trusted_until() or 0.0)

        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError):
                parent.log.error("Worker %s: cannot look for stalled jobs: %s", parent.name, replies[0])
                return
            stalled = parent.ledger.stalled_reply(replies[0], parent.name)
            self._due = stalled.more
            parent.counters.stalls += len(stalled.returned) + len(stalled.taken)
            if stalled.returned:
                named = ", ".join(
                    f"{job_id} (stall {stalls} of {parent.settings.max_stalls}, worker {holder or 'unknown'})"
                    for job_id, _queue, holder, stalls in stalled.returned[:_NAMED]
                )
                more = len(stalled.returned) - _NAMED
                parent.log.warning(
                    "Worker %s: put back %d stalled jobs: %s%s",
                    parent.name,
                    len(stalled.returned),
                    named,
                    f" and {more} more" if more > 0 else "",
                )
            for claim, stalls in stalled.taken:
                reason = f"stalled {stalls} times, more often than MAX_STALLS={parent.settings.max_stalls} allows"
                parent.log.error("Worker %s: job %s %s; failing it", parent.name, claim.job_id, reason)
                self._slots.tasks.append(Task("abandon", claim, (reason, False)))

        return Exchange([command], on_replies)
