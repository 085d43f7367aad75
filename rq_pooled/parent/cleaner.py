"""Cleans up what others left behind: ids in intermediate lists, registry entries without a job, halves of executions.

Each step is one bounded page, so that neither the server nor this worker's loop is held up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redis.exceptions import ResponseError
from rq.utils import now, utcformat

from ..foreign import MAX_VALUE, is_wrong_type, printable
from ..store.keys import registry_key
from ..store.repair import queue_ready, remove_executions, remove_ghosts, rescue_intermediate
from ..wire import Command
from .context import Context
from .exchange import Exchange
from .heartbeat import Heartbeat

#: Seconds between looks at the intermediate lists, and after which an id there counts as left. It is rescued within 45
#: seconds; RQ would fail it after 60.
INTERMEDIATE_INTERVAL, INTERMEDIATE_AGE = 15.0, 20.0
#: Entries and keys of one page, and seconds between two pages: together some percent of the server's time at most.
PAGE, KEYS_PAGE, PAUSE = 500, 1000, 0.05
#: Pages of keys in one round: a database with more than 500 000 other keys is gone through in several.
MAX_KEY_PAGES = 500
#: The cursor at the end, and where another worker goes through them.
ENDS = ("0", "-1")
#: RQ's registries of job ids, but for three. RQ may write an entry of a scheduled job before the job, and promotion
#: drops the others. The ghosts of started ones are stalled.lua's affair, and those of failed ones failed/sweeper.py's.
REGISTRIES = ("finished", "deferred", "canceled")


class Cleaner:
    """Goes through lists and keys in rounds, a page at a time.

    Args:
        context: as the name says.
        heartbeat: says whether this worker may judge others.
    """

    def __init__(self, context: Context, *, heartbeat: Heartbeat) -> None:
        self._context = context
        self._heartbeat = heartbeat
        self._intermediate_due = False
        self._pages: Iterator[None] = iter(())
        self._page: Exchange | None = None
        self._cursor = "0"
        self._keys_cursor = "0"
        self._removed = 0
        self._in_round = False

    def start(self) -> None:
        """Begin."""
        loop = self._context.loop
        loop.call_every(INTERMEDIATE_INTERVAL, self._on_interval)
        loop.call_every(self._context.identity.maintenance_interval, self._begin_round)

    @property
    def due(self) -> bool:
        """Tell whether an exchange should be sent."""
        return self._intermediate_due or self._page is not None

    def _on_interval(self) -> None:
        self._intermediate_due = True

    def exchanges(self) -> list[Exchange]:
        """Return the next exchange."""
        if self._intermediate_due:
            self._intermediate_due = False
            return [self._intermediate()]
        assert self._page is not None
        page, self._page = self._page, None
        return [page]

    # -- intermediate lists --------------------------------------------------------------------------------------

    def _intermediate(self) -> Exchange:
        context = self._context
        keys = context.identity.queue_keys

        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError):
                context.log.error("cannot look at intermediate queues: %s", replies[0])
                return
            rescued = [
                (printable(job_id, MAX_VALUE), printable(key, MAX_VALUE)) for job_id, key, back in replies[0] if back
            ]
            for job_id, key in rescued:
                context.log.warning("job %s was left in %s:intermediate; put back into its queue", job_id, key)
            for job_id, key, queued in replies[1] if not isinstance(replies[1], ResponseError) else ():
                if queued:
                    words = (printable(job_id, MAX_VALUE), printable(key, MAX_VALUE))
                    context.log.warning("dependent job %s was left ready; put into %s", *words)

        ready = queue_ready(keys, INTERMEDIATE_AGE, utcformat(now()))
        return Exchange([rescue_intermediate(keys, INTERMEDIATE_AGE), ready], on_replies)

    # -- entries without a job -----------------------------------------------------------------------------------

    def _begin_round(self) -> None:
        if self._heartbeat.settled() and not self._in_round:
            self._in_round = True
            self._removed = 0
            self._pages = self._round()
            self._next_page()

    def _round(self) -> Iterator[None]:
        """Prepare one page after the other; each ends when its reply has come."""
        owner = self._context.token
        # Longer than any pause between two pages; it keeps others from beginning a round of their own, too.
        lock_ttl = max(2, int(self._context.identity.maintenance_interval * 0.9))
        for queue in self._context.identity.queue_names:
            for name in REGISTRIES:
                registry, self._cursor = registry_key(name, queue), ""
                while self._cursor not in ENDS:
                    cursor = self._cursor or "0"
                    self._prepare(remove_ghosts(registry, cursor, PAGE, owner, lock_ttl))
                    yield
        for _ in range(MAX_KEY_PAGES):
            self._prepare(remove_executions(self._keys_cursor, KEYS_PAGE, owner, lock_ttl))
            yield
            if self._cursor == "-1":
                break
            self._keys_cursor = self._cursor
            if self._cursor == "0":
                break
        if self._removed:
            self._context.log.info("removed %d registry entries and executions without a job", self._removed)

    def _prepare(self, command: Command) -> None:
        def on_replies(replies: list[Any]) -> None:
            if isinstance(replies[0], ResponseError) and is_wrong_type(replies[0]):
                # This registry is a key of another type. The others are cleaned up.
                self._context.log.error("a registry is not cleaned up: %s", replies[0])
                self._cursor = ENDS[0]
                self._context.loop.call_later(PAUSE, self._next_page)
                return
            if isinstance(replies[0], ResponseError):
                self._context.log.error("clean-up given up: %s", replies[0])
                self._end_round()
                return
            cursor, removed = replies[0]
            self._cursor = cursor.decode()
            self._removed += removed
            self._context.loop.call_later(PAUSE, self._next_page)

        self._page = Exchange([command], on_replies, lambda _error: self._end_round())

    def _next_page(self) -> None:
        if next(self._pages, self) is self:
            self._end_round()

    def _end_round(self) -> None:
        """Be ready for the next round, which begins at its time; a lost server ends one, too."""
        self._in_round = False
