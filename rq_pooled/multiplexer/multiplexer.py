"""Lets the jobs of all horses use Redis through the parent: their commands share one connection to the server.

A horse connects to a Unix socket here instead of to the server; redis-py in it does not notice. Each such connection is
a *stream*. Whole commands of all streams go to the server in one write and the replies are cut apart again. Commands
that cannot be shared (blocking, WATCH, subscriptions, anything long) go over a connection that the stream is lent.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..capacity.budget import Lease
from ..capacity.reservation import Ask, Reservation
from ..capacity.stop_flag import Brake
from ..config.settings import Settings
from ..connection.away import is_closed
from ..connection.framing import Malformed
from ..connection.place import Place
from ..connection.redirects import is_elsewhere
from ..horse.stream import Door
from ..process.event_loop import Loop
from .dialer import Dialer
from .guests import Guests
from .late_streams import LateStreams
from .lending import Lending
from .listener import Listener
from .opener import Opener
from .shared import Shared
from .sharing import Sharing
from .streams import LONG_REQUEST, MOST_UNREAD, Guest, Stream
from .telling import Telling
from .upstream import CHUNK, Upstream

#: Seconds of one turn of the loop that jobs may take; the rest is served in the next turn.
TURN = 0.005
#: Seconds between checks for streams that have waited too long.
_TICK = 0.25


class Multiplexer:
    """Listens for streams, and serves them in turns.

    Args:
        loop, settings: as the names say.
        warn: logs, as ``Logger.warning``.
        dialer: begins its connections to the server.
        place: returns where the command connection leads, None while it is not connected.
        ask: sends one command over the command connection; the reply comes later, None if the connection is lost.
        lease: the worker's place in the budget, None without one.
        brake: tells whether connections may be opened, and whether idle ones should be closed.
        answered_at: returns when the command connection last got a reply.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        warn: Callable[..., None],
        dialer: Dialer,
        place: Callable[[], Place | None],
        ask: Ask,
        lease: Lease | None,
        brake: Brake,
        answered_at: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._warn = warn
        self._pool_timeout = settings.pool_timeout
        self._dialer = dialer
        self._place = place
        #: The last node that was left still runs, but does not serve the slot; it answers commands sent to it.
        self._left = False
        self._lease = lease
        self._reservation = Reservation(lease, ask)
        opener = Opener(loop, settings, dialer, place, brake, self._queue)
        self._shared = Shared(loop, settings, warn, opener, self._go_on, answered_at)
        self._sharing = Sharing(loop, self._shared, ask, self._on_readable, self._go_on)
        self._lending = Lending(
            loop, settings, opener, self._reservation, self._sharing.known, brake, self._on_readable
        )
        self._late_streams = LateStreams(settings, opener, self._shared, self._sharing, self._lending)
        #: Sources with something to read, each with the function that reads it.
        self._ready: deque[tuple[Any, Callable[[Any], None]]] = deque()
        self._ask = ask
        self._guests = Guests(self._make_stream, Telling(loop, ask, place).tell)
        self._listener = Listener(loop, warn, self._accept)
        loop.call_every(_TICK, self._tick)

    # -- who may come --------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Return the path at which streams connect."""
        return self._listener.path

    def admit(self, describe: Callable[[], str]) -> Guest:
        """Return a guest for a horse that is about to be forked; ``describe`` returns a text of what it does."""
        return self._guests.admit(describe)

    def door(self, token: bytes) -> Door:
        """Return how the horse with this token opens streams."""
        return Door(self.path, token, self._dialer.protocol, self._dialer.db, self._dialer.slot, self._pool_timeout)

    def drop(self, guest: Guest) -> None:
        """Close all streams of a horse that has ended."""
        self._guests.drop(guest)

    def job_ended(self, guest: Guest) -> None:
        """Close the streams that a job has left unfinished, since the next job would get replies to its commands."""
        # The job's last stream may not be accepted yet, or be without a token.
        self._listener.accept_waiting()
        for stream in list(self._guests.strangers):
            self._serve_one(stream)
        for stream in list(guest.streams):
            stream.exclusive = False
            # The job's last commands may not have been read yet.
            self._serve_one(stream)
            if not stream.is_clean():
                stream.close()

    def _accept(self, accepted: socket.socket) -> None:
        stream = self._guests.accept(accepted)
        # Bytes that it has sent already are served in this turn.
        self._on_readable(stream)

    def _make_stream(self, accepted: socket.socket, now: float) -> Stream:
        return Stream(self._loop, accepted, now, self._on_readable, self._on_flushed, self._on_closed)

    def _on_flushed(self, stream: Stream) -> None:
        self._shared.on_flushed(stream)
        self._lending.on_flushed(stream)

    def _on_closed(self, stream: Stream) -> None:
        self._guests.forget(stream)
        self._shared.waiting.discard(stream)
        self._lending.on_closed(stream)
        self._shared.on_flushed(stream)

    # -- turns ---------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Tell whether something waits for the next turn."""
        return bool(self._ready)

    def turn(self) -> None:
        """Serve each source with something to read once, for ``TURN`` seconds in all; then write."""
        if self._ready:
            until = time.monotonic() + TURN
            for _ in range(len(self._ready)):
                source, serve = self._ready.popleft()
                source.queued = False
                serve(source)
                if time.monotonic() > until:
                    break
        self._shared.flush()

    def _queue(self, source: Any, serve: Callable[[Any], None]) -> None:
        """Call ``serve`` with a stream, or a connection to the server, in this turn or a later one."""
        if not source.queued:
            source.queued = True
            self._ready.append((source, serve))

    def _on_readable(self, stream: Stream) -> None:
        self._queue(stream, self._serve_one)

    def _serve_one(self, stream: Stream) -> None:
        try:
            self._serve(stream)
        except Exception as error:  # noqa: BLE001 - whatever one job has caused, others go on
            self._warn("a connection of %s is closed: %s: %s", _name(stream), type(error).__name__, error)
            stream.close()

    def _serve(self, stream: Stream) -> None:
        """Read what a stream has sent, and pass it on."""
        if stream.closed:
            return
        data = stream.receive(CHUNK)
        if data == b"":
            stream.close()
            return
        if data is None:
            self._serve_rest(stream)
            return
        if not stream.data and stream.is_plain and self._sharing.is_done_at_once(stream, data):
            return
        stream.data = stream.data + data if stream.data else data
        if stream.guest is not None or self._guests.introduce(stream):
            self._serve_rest(stream)

    def _serve_rest(self, stream: Stream) -> None:
        """Pass on what was read before; read no more of it for now if it is much."""
        if stream.waits_for is None:
            self._advance(stream)
        # A stream with unread replies may still have commands to send, since redis-py sends all before it reads.
        if stream.waits_for is not None and len(stream.data) > (MOST_UNREAD if stream.unread else LONG_REQUEST):
            stream.read_on(False)

    def _advance(self, stream: Stream) -> None:
        """Pass on as much of what a stream has sent as is possible now."""
        until = time.monotonic() + TURN
        try:
            while stream.data and stream.waits_for is None and not stream.closed:
                before = len(stream.data)
                # The rest has to wait for the next turn.
                if time.monotonic() > until:
                    self._on_readable(stream)
                    break
                if stream.loan is not None:
                    self._lending.pass_on(stream)
                elif stream.exclusive or stream.own_next:
                    self._borrow(stream)
                else:
                    self._sharing.pass_on(stream)
                if len(stream.data) == before and not stream.own_next:
                    break
        except Malformed as error:
            self._warn("%s sent what is no command (%s): closing that connection", _name(stream), error)
            stream.close()
        if stream.waits_for is None and not stream.closed:
            stream.read_on(not self._lending.is_clogged(stream))

    def _borrow(self, stream: Stream) -> None:
        stream.own_next = False
        # Replies keep their order, so its earlier commands must be answered first.
        if stream.pending:
            stream.own_next = True
            stream.wait("replies", time.monotonic())
        else:
            self._lending.borrow(stream)

    def _go_on(self, stream: Stream) -> None:
        if not stream.closed:
            stream.wait(None, time.monotonic())
            # The stream is queued rather than served here, since others may go on at the same time.
            self._on_readable(stream)

    # -- the server ----------------------------------------------------------------------------------------------

    def on_away(self, error: Exception) -> None:
        """Give up the jobs' connections to a server that is lost; keep those in use if the server may still answer.

        A server that has ended closes all connections itself. A server that only closed the command connection,
        because of a limit, still serves the jobs on the others. A cluster node that lost the slot still answers what
        was sent to it.
        """
        self._left = is_elsewhere(error)
        if self._left:
            self._shared.leave(str(error))
            self._lending.leave(str(error))
        elif is_closed(error):
            self._shared.close_idle()
            self._lending.close_idle_ones()
        else:
            self._give_up(str(error))

    def on_back(self) -> None:
        """Give up connections that lead to another server than the command connection, unless they may end there."""
        place = self._place()
        if self._left or place is None:
            return
        for upstream in self._upstreams():
            if not upstream.place.is_same(place):
                upstream.lose("the server is another one now")

    def _give_up(self, reason: str) -> None:
        for upstream in self._upstreams():
            upstream.lose(reason)

    def _upstreams(self) -> list[Upstream]:
        return [*self._shared.all(), *self._lending.all()]

    @property
    def places(self) -> int:
        """Return how many places in the budget the worker needs now."""
        return self._reservation.wanted

    def connections(self) -> dict[str, int]:
        """Return the number of connections by role."""
        return {"jobs": int(self._shared.exists), "exclusive": len(self._lending)}

    def _tick(self) -> None:
        now = time.monotonic()
        # The lease ends while the command connection is away, and its places may go to others.
        if self._lease is not None and self._lease.overdue:
            self._give_up("the worker's place in the application's BUDGET could not be renewed")
        self._late_streams.refuse(now)
        self._guests.close_strangers(now)
        self._shared.look_after(now)
        self._lending.close_idle(now)

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close everything."""
        self._listener.close()
        self._guests.close()
        self._shared.close()
        self._lending.close()

    def close_in_child(self) -> None:
        """Close forked copies of all descriptors."""
        self._listener.close_in_child()
        self._guests.close_in_child()
        self._shared.close_in_child()
        self._lending.close_in_child()


def _name(stream: Stream) -> str:
    return stream.guest.describe() if stream.guest is not None else "a process"
