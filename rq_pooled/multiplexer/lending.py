"""Lends streams connections for commands that cannot be shared: a bounded number, kept for the next stream.

The file is long because it holds all states of such a connection, from being opened to being closed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from ..capacity.reservation import Reservation
from ..capacity.stop_flag import Brake
from ..config.settings import Settings
from ..connection.framing import Malformed
from ..process.event_loop import Loop
from .loan import Loan
from .opener import Opener
from .refit import Refit
from .streams import MOST_UNREAD, Stream
from .upstream import Upstream

ROLE = "exclusive"
#: Seconds that a stream waits for a lent connection to come back, before another is opened.
_PATIENCE = 0.02
#: A stream is not read while the server has more than this many of its bytes still to take.
_MOST_UNSENT = 1024 * 1024
#: Seconds for which a connection stays idle: while another process waits for a place in the budget, and while the
#: server is above GUARD_WARN.
_CROWDED_IDLE, _TIGHT_IDLE = 0.1, 1.0


class Lending:
    """Lends connections in the order of the requests.

    Args:
        loop, settings, opener: as the names say.
        reservation: keeps a place in the budget for each connection.
        plain: maps a command's name to whether it leaves nothing behind on a connection; see CommandTable.
        brake: tells whether others may be waiting for a connection to the server.
        serve: called with a stream when a loan begins, and when it ends.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        opener: Opener,
        reservation: Reservation,
        plain: Mapping[bytes, bool | None],
        brake: Brake,
        serve: Callable[[Stream], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._opener = opener
        self._reservation = reservation
        self._plain = plain
        self._brake = brake
        self._serve_stream = serve
        self._refit = Refit()
        #: The most connections that there may be.
        self.most = max(settings.concurrency, settings.max_connections - 3)
        self._waiting: deque[Stream] = deque()
        self._opening: set[Upstream] = set()
        #: Idle connections with the time at which each came back; the last one is lent first.
        self._idle: list[tuple[Upstream, float]] = []
        #: Each connection's stream, None while it is made fit for the next, and the time of its last event.
        self._lent: dict[Upstream, tuple[Stream | None, float]] = {}
        #: Lent connections that are closed when they come back.
        self._leaving: set[Upstream] = set()
        #: The connection that each stream is lent.
        self._upstreams: dict[Stream, Upstream] = {}

    def __len__(self) -> int:
        return len(self._opening) + len(self._idle) + len(self._lent)

    # -- lending -------------------------------------------------------------------------------------------------

    def borrow(self, stream: Stream) -> None:
        """Lend a connection as soon as one is free, perhaps at once."""
        now = time.monotonic()
        stream.wait("a connection", now)
        self._waiting.append(stream)
        self._loop.call_later(_PATIENCE, self._serve)
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            stream = self._waiting[0]
            # A stream that has left can take no reply: its BLPOP would lose an element.
            if stream.closed or stream.has_left():
                self._waiting.popleft()
                stream.close()
            elif self._idle:
                self._waiting.popleft()
                self._lend(stream, self._idle.pop()[0])
            else:
                break
        self._open_more()

    def _lend(self, stream: Stream, upstream: Upstream) -> None:
        now = time.monotonic()
        stream.loan = Loan()
        stream.wait(None, now)
        self._lent[upstream] = (stream, now)
        self._upstreams[stream] = upstream
        self._serve_stream(stream)

    def _open_more(self) -> None:
        """Open one for each stream that has waited for a moment; open the very first at once."""
        now = time.monotonic()
        impatient = sum(now - stream.since >= _PATIENCE and not stream.closed for stream in self._waiting)
        needed = impatient if len(self) else min(1, len(self._waiting))
        while len(self._opening) < needed and len(self) < self.most:
            upstream = self._opener.open(
                ROLE,
                self._take_back,
                self._hand_out,
                self._lost,
                self._drained,
                self._serve,
                lambda: self._reservation.may_lend(len(self) + 1),
            )
            if upstream is None:
                return
            self._opening.add(upstream)

    def _take_back(self, upstream: Upstream) -> None:
        self._opening.discard(upstream)
        # It is paused if its last borrower has not read all replies, which must not hold up the next one.
        upstream.resume()
        if upstream in self._leaving:
            self._leaving.discard(upstream)
            upstream.close()
            self._serve()
            return
        # One remaining connection is enough for this worker's streams, which use it in turn.
        if len(self) and self._brake.engaged:
            upstream.close()
            self._serve()
            return
        self._idle.append((upstream, time.monotonic()))
        self._serve()

    # -- what streams send ---------------------------------------------------------------------------------------

    def pass_on(self, stream: Stream) -> None:
        """Send the commands that have arrived from the stream over the connection that it is lent."""
        loan, upstream, data = stream.loan, self._upstreams[stream], stream.data
        assert loan is not None
        position, prelude = loan.take(data, self._plain)
        stream.data = data[position:]
        if position:
            self._lent[upstream] = (stream, time.monotonic())
            upstream.send(prelude + data[:position] if prelude or stream.data else data)

    def is_clogged(self, stream: Stream) -> bool:
        """Tell whether the stream must stop sending, because the server has not taken enough of its bytes."""
        upstream = self._upstreams.get(stream)
        return upstream is not None and upstream.unsent > _MOST_UNSENT

    def _drained(self, upstream: Upstream) -> None:
        stream, _ = self._lent.get(upstream, (None, 0.0))
        if stream is not None:
            stream.read_on(True)

    # -- what the server sends -----------------------------------------------------------------------------------

    def _hand_out(self, upstream: Upstream, data: bytes) -> None:
        if upstream not in self._lent:
            raise Malformed("the server sent what no command asked for")
        stream, _ = self._lent[upstream]
        if stream is None:
            if self._refit.ends_with(upstream, data):
                del self._lent[upstream]
                self._take_back(upstream)
            return
        loan = stream.loan
        assert loan is not None
        replies, stream.in_reply, error = loan.follow(data, upstream.cutter)
        if error:
            stream.refuse("LOST", f"WAIT is not possible: {error}")
            return
        self._lent[upstream] = (stream, time.monotonic())
        stream.deliver(replies)
        if stream.unread and stream.guest is not None and stream.guest.unread > MOST_UNREAD:
            upstream.pause()
        if stream.closed:
            return
        if loan.is_over:
            self._end_loan(stream)
        elif stream.data and not loan.pending:
            self._serve_stream(stream)

    def on_flushed(self, stream: Stream) -> None:
        """Read the server again once the stream has taken all its replies."""
        upstream = self._upstreams.get(stream)
        if upstream is not None and upstream.paused and not stream.unread:
            upstream.resume()

    def _end_loan(self, stream: Stream) -> None:
        loan, upstream = stream.loan, self._upstreams.pop(stream)
        stream.loan = None
        if loan is not None and loan.doubtful:
            self._make_fit(upstream, loan)
        else:
            del self._lent[upstream]
            self._take_back(upstream)
        self._serve_stream(stream)

    def _make_fit(self, upstream: Upstream, loan: Loan) -> None:
        self._lent[upstream] = (None, time.monotonic())
        upstream.resume()
        self._refit.begin(upstream, loan)

    # -- the end of a stream, and of a connection ----------------------------------------------------------------

    def on_closed(self, stream: Stream) -> None:
        """Take back a closed stream's connection; close it if the stream still waited for replies on it."""
        loan, upstream = stream.loan, self._upstreams.pop(stream, None)
        stream.loan = None
        if upstream is None or loan is None:
            return
        # The replies to subscriptions are not counted, see note_reply. UNSUBSCRIBE would wait behind a blocking
        # command.
        pending = loan.patience != 0.0 if loan.subscribed else loan.pending
        if pending or loan.passage or loan.ends_with_stream:
            del self._lent[upstream]
            self._leaving.discard(upstream)
            upstream.close()
            self._serve()
        else:
            self._make_fit(upstream, loan)

    def _lost(self, upstream: Upstream, reason: str) -> None:
        self._opening.discard(upstream)
        self._leaving.discard(upstream)
        self._idle = [entry for entry in self._idle if entry[0] is not upstream]
        stream, _ = self._lent.pop(upstream, (None, 0.0))
        self._refit.forget(upstream)
        if stream is not None:
            self._upstreams.pop(stream, None)
            stream.loan = None
            stream.refuse("LOST", reason)
        self._serve()

    # -- looking after -------------------------------------------------------------------------------------------

    def overdue(self, now: float) -> list[Stream]:
        """Return the streams to which the server has not replied within SOCKET_TIMEOUT.

        A connection that is not fit for the next stream within that time is closed.
        """
        late = []
        for upstream, (stream, since) in list(self._lent.items()):
            late_by = now - max(since, upstream.moved_at) - self._settings.socket_timeout
            if stream is None:
                if late_by > 0:
                    upstream.lose("no answer to UNWATCH or UNSUBSCRIBE")
            elif stream.loan is not None and not stream.unread and stream.loan.is_overdue(late_by):
                late.append(stream)
        return late

    def waited_since(self, before: float) -> list[Stream]:
        """Return the streams that began to wait for a connection before this time, and drop them."""
        late = [stream for stream in self._waiting if stream.since < before]
        for stream in late:
            self._waiting.remove(stream)
        return late

    def holders(self) -> list[str]:
        """Return a text for each horse that has a connection."""
        guests = [stream.guest for stream, _ in self._lent.values() if stream is not None]
        said = [guest.describe() for guest in guests if guest is not None]
        return said or ["none: they are being opened"]

    def close_idle(self, now: float) -> None:
        """Close connections that have been idle for MAX_IDLE, or for less where others need connections."""
        idle = _CROWDED_IDLE if self._reservation.crowded else _TIGHT_IDLE if self._brake.tight else None
        idle = idle or self._settings.max_idle
        if not idle:
            return
        for upstream, since in list(self._idle):
            if since < now - idle:
                self._idle.remove((upstream, since))
                upstream.close()
        if not self._waiting:
            self._reservation.lend(len(self))

    def all(self) -> list[Upstream]:
        """Return all connections, open or being opened."""
        return [*self._opening, *(upstream for upstream, _ in self._idle), *self._lent]

    def close_idle_ones(self) -> None:
        """Close the connections that no stream has."""
        idle, self._idle = self._idle, []
        for upstream, _ in idle:
            upstream.close()

    def leave(self, reason: str) -> None:
        """Lend only new connections from now on; a loan that has begun goes on over its old connection."""
        for upstream in [*self._opening, *(upstream for upstream, _ in self._idle)]:
            upstream.lose(reason)
        self._leaving.update(self._lent)

    def close(self) -> None:
        """Close all connections and report none as lost."""
        self._waiting.clear()
        for upstream in self.all():
            upstream.close()

    def close_in_child(self) -> None:
        """Close forked copies of the descriptors."""
        for upstream in self.all():
            upstream.close_in_child()
