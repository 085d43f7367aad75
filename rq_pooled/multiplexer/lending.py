"""Connections that streams are lent for what cannot be shared: a bounded number, kept for the next one.

It is long since all that can happen to a lent connection stands in one place.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from ..capacity.reservation import Reservation
from ..capacity.stop_flag import Brake
from ..config.settings import Settings
from ..process.event_loop import Loop
from .framing import Malformed
from .loan import Loan
from .opener import Opener
from .refit import Refit
from .streams import MOST_UNREAD, Stream
from .upstream import Upstream

ROLE = "exclusive"
#: Seconds that a stream waits for one that is lent, before another is opened.
_PATIENCE = 0.02
#: Bytes that the server has not taken, beyond which the stream that sends them is not read.
_MOST_UNSENT = 1024 * 1024
#: Seconds for which a connection stays idle while another process waits for a place in the budget, and while the server
#: is fuller than it should be.
_CROWDED_IDLE, _TIGHT_IDLE = 0.1, 1.0


class Lending:
    """Lends connections in the order in which they are asked for.

    Args:
        loop, settings, opener: as the names say.
        reservation: keeps a place in the budget for each.
        plain: by name, whether a command leaves nothing behind on a connection; see CommandTable.
        brake: whether others may be waiting for a connection to the server.
        serve: called with a stream that has been lent one, and that needs it no more.
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
        #: How many there may be.
        self.most = max(settings.concurrency, settings.max_connections - 3)
        self._waiting: deque[Stream] = deque()
        self._opening: set[Upstream] = set()
        #: With the time at which it came back; the last one is lent first.
        self._idle: list[tuple[Upstream, float]] = []
        #: Who has it, None while it is made fit for the next one, and when something last happened to it.
        self._lent: dict[Upstream, tuple[Stream | None, float]] = {}
        #: Lent ones that are closed when they come back.
        self._leaving: set[Upstream] = set()
        #: By stream; the connection that it is lent.
        self._upstreams: dict[Stream, Upstream] = {}

    def __len__(self) -> int:
        return len(self._opening) + len(self._idle) + len(self._lent)

    # -- lending -------------------------------------------------------------------------------------------------

    def borrow(self, stream: Stream) -> None:
        """Lend a connection as soon as there is one, perhaps at once."""
        now = time.monotonic()
        stream.wait("a connection", now)
        self._waiting.append(stream)
        self._loop.call_later(_PATIENCE, self._serve)
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            stream = self._waiting[0]
            # For a stream that has left, what it wanted would be done in vain, and a BLPOP would lose something.
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
        """Open one for each stream that has waited for a moment; the first one of all at once."""
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
        # Its last borrower may not have read all yet, and that is no affair of the next one.
        upstream.resume()
        if upstream in self._leaving:
            self._leaving.discard(upstream)
            upstream.close()
            self._serve()
            return
        # With the one that is left the own streams get on, one after the other.
        if len(self) and self._brake.engaged:
            upstream.close()
            self._serve()
            return
        self._idle.append((upstream, time.monotonic()))
        self._serve()

    # -- what streams send ---------------------------------------------------------------------------------------

    def pass_on(self, stream: Stream) -> None:
        """Send what the stream has sent, as far as it is commands, over the connection that it is lent."""
        loan, upstream, data = stream.loan, self._upstreams[stream], stream.data
        assert loan is not None
        position, prelude = loan.take(data, self._plain)
        stream.data = data[position:]
        if position:
            self._lent[upstream] = (stream, time.monotonic())
            upstream.send(prelude + data[:position] if prelude or stream.data else data)

    def is_clogged(self, stream: Stream) -> bool:
        """Tell whether the server has not taken what the stream has sent, and it has to wait with more."""
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
        """Read the server again, once the stream has taken what there was for it."""
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
        """Take back what was lent to a stream that is closed; whatever it waits for ends with the connection."""
        loan, upstream = stream.loan, self._upstreams.pop(stream, None)
        stream.loan = None
        if upstream is None or loan is None:
            return
        # The replies to subscriptions are not counted, see note_reply; one behind a command that waits would wait with
        # it.
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
        """Return the streams for which the server has done nothing for too long.

        A connection that is not fit for the next stream by then is closed.
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
        """Return, and forget, the streams that have waited for a connection since before then."""
        late = [stream for stream in self._waiting if stream.since < before]
        for stream in late:
            self._waiting.remove(stream)
        return late

    def holders(self) -> list[str]:
        """Say who has a connection, in words."""
        guests = [stream.guest for stream, _ in self._lent.values() if stream is not None]
        said = [guest.describe() for guest in guests if guest is not None]
        return said or ["none: they are being opened"]

    def close_idle(self, now: float) -> None:
        """Close what has not been needed for a while, which is short where others need connections."""
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

    def _all(self) -> list[Upstream]:
        return [*self._opening, *(upstream for upstream, _ in self._idle), *self._lent]

    def give_up(self, reason: str) -> None:
        """Close all; what was sent and is not answered fails."""
        for upstream in self._all():
            upstream.lose(reason)

    def leave(self, reason: str) -> None:
        """Lend others from now on; what streams have begun over those that are lent, they end there."""
        for upstream in [*self._opening, *(upstream for upstream, _ in self._idle)]:
            upstream.lose(reason)
        self._leaving.update(self._lent)

    def close(self) -> None:
        """Close all without a word."""
        self._waiting.clear()
        for upstream in self._all():
            upstream.close()

    def close_in_child(self) -> None:
        """Close forked copies of the descriptors."""
        for upstream in self._all():
            upstream.close_in_child()
