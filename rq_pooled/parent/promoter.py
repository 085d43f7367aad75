"""Enqueues scheduled jobs when they are due, as RQ's scheduler does, and under its lock."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError

from .complaint import Complaint
from .context import Context
from .exchange import Exchange
from .wakeup import Wakeup

#: Seconds until a promotion that the server refused is tried again.
PROMOTE_RETRY = 15.0


class Promoter:
    """Asks the server to promote; each reply says when to ask again.

    Args:
        context: as the name says.
        wakeup: tells who sleeps beside a sentry, and so leaves it to others to look whether who promotes has died. What
            it wants to know each second is asked for with the promotion.
    """

    def __init__(self, context: Context, *, wakeup: Wakeup) -> None:
        self._context = context
        self._wakeup = wakeup
        self._complaint = Complaint()
        #: Queues whose lock was ours, and seconds to the next look, by the last reply.
        self._locks, self._wait = 0, 0.0
        self.due = True

    def exchanges(self) -> list[Exchange]:
        """Return the exchange that enqueues scheduled jobs which are due."""
        self.due = False
        asked, more, on_found = self._wakeup.glance()

        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError):
                if self._complaint.add(str(replies[0])):
                    self._context.log.error("cannot enqueue scheduled jobs: %s", replies[0])
                self._wait = PROMOTE_RETRY
            else:
                self._complaint.end()
                self._locks, _moved, left, wait, found = replies[0]
                self._wait = 0.0 if left else wait / 1000
                if asked:
                    on_found([found, *replies[1:]])
            self._context.loop.call_later(self._wait, self._promote)

        return [Exchange([self._context.identity.promotion(asked), *more], on_replies, lambda _error: self._promote())]

    def _promote(self) -> None:
        if self._wakeup.dozing and not self._locks:
            self._context.loop.call_later(self._wait, self._promote)
        else:
            self.due = True
