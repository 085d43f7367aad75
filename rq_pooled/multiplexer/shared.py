"""Holds the connection of the role ``jobs``: all horses' commands go over it, and the replies come back in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from ..config.settings import Settings
from ..connection.framing import Malformed
from ..process.event_loop import Loop, Timer
from .opener import Opener
from .streams import LONG_REPLY, MOST_UNREAD, Guest, Stream
from .upstream import Upstream

ROLE = "jobs"
#: Seconds for which the connection is not read because one horse does not read its replies.
_STUCK_TIME = 1.0
_DOLLAR, _MINUS = b"$-"


@dataclass(slots=True)
class _Debt:
    """The number of replies that a stream is owed, and when it asked, by the monotonic clock."""

    stream: Stream
    count: int
    since: float


class Shared:
    """Opens the shared connection with the first command, and counts the replies that each stream is owed.

    Args:
        loop, settings, opener: as the names say.
        warn: logs, as ``Logger.warning``.
        go_on: called with each stream that stops waiting for this connection.
        answered_at: returns when the command connection last got a reply.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        warn: Callable[..., None],
        opener: Opener,
        go_on: Callable[[Stream], None],
        answered_at: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._warn = warn
        self._opener = opener
        self._go_on = go_on
        self._answered_at = answered_at
        self._upstream: Upstream | None = None
        #: The debts in the order of the replies.
        self._owed: deque[_Debt] = deque()
        self._outgoing: list[bytes] = []
        self._rest = b""
        #: The server is elsewhere now, so the connection is closed once no stream is owed a reply.
        self._leaving = False
        #: Bytes of the reply that is being passed on in pieces.
        self._long = 0
        #: The server has sent something since the last check; the last check that found this, and that found a debt.
        self._heard = False
        self._heard_at = self._needed_at = time.monotonic()
        #: Streams that wait until the connection is open.
        self.waiting: set[Stream] = set()
        #: The horse because of which the connection is not read.
        self._stuck: Guest | None = None
        self._stuck_timer: Timer | None = None

    @property
    def usable(self) -> bool:
        """Tell whether commands can be sent."""
        return self._upstream is not None and self._upstream.is_open and not self._leaving

    @property
    def exists(self) -> bool:
        """Tell whether there is a connection, open or being opened."""
        return self._upstream is not None

    def want(self, stream: Stream) -> None:
        """Let a stream wait until the connection is open."""
        stream.wait("the shared connection", time.monotonic())
        self.waiting.add(stream)
        self._open()

    def _open(self) -> None:
        if self._upstream is None and self.waiting:
            self._upstream = self._opener.open(
                ROLE, self._opened, self._hand_out, self._lost, lambda _upstream: None, self._open
            )

    def _opened(self, _upstream: Upstream) -> None:
        waiting, self.waiting = self.waiting, set()
        for stream in waiting:
            self._go_on(stream)

    # -- commands ------------------------------------------------------------------------------------------------

    def add(self, stream: Stream, commands: bytes, count: int, now: float) -> None:
        """Take whole commands of a stream; ``flush`` sends those of all."""
        self._outgoing.append(commands)
        self._owed.append(_Debt(stream, count, now))
        stream.pending += count
        stream.under_way += len(commands)

    def flush(self) -> None:
        """Send the commands of all streams in one write."""
        if self._outgoing and self._upstream is not None:
            data = self._outgoing[0] if len(self._outgoing) == 1 else b"".join(self._outgoing)
            self._outgoing.clear()
            self._upstream.send(data)

    # -- replies -------------------------------------------------------------------------------------------------

    def _hand_out(self, upstream: Upstream, data: bytes) -> None:
        """Give each stream the replies in ``data`` that are its own."""
        if self._rest:
            data = self._rest + data
        owed, cutter, size, find = self._owed, upstream.cutter, len(data), data.find
        cut = cutter.cut
        self._heard = True
        start = position = 0
        done = True
        while done and position < size:
            if not owed:
                raise Malformed("the server sent what no command asked for")
            debt = owed[0]
            stream, left = debt.stream, debt.count
            while left and position < size:
                # Most replies are whole strings; this is the shorter way for them.
                if data[position] == _DOLLAR and cutter.fresh:
                    line = find(b"\r\n", position)
                    end = line + 4 + int(data[position + 1 : line]) if line > 0 and data[position + 1] != _MINUS else 0
                    if 0 < end <= size:
                        position, left = end, left - 1
                        continue
                end, done = cut(data, position)
                # A push answers no command of a stream that shares the connection, so it is not counted.
                if cutter.push and done:
                    stream.deliver(data[start:position])
                    start = position = end
                    continue
                if self._long or not done:
                    self._note_long(stream, end - position, done)
                position = end
                if not done:
                    break
                left -= 1
            stream.pending -= debt.count - left
            debt.count = left
            if not left:
                owed.popleft()
            if position > start:
                stream.in_reply = not done and not cutter.fresh
                stream.deliver(data[start:position])
                start = position
                guest = stream.guest
                if stream.unread and guest is not None and guest.unread > MOST_UNREAD and not upstream.paused:
                    upstream.pause()
                    self._wait_for(guest)
            if not stream.pending:
                stream.under_way = 0
                if stream.waits_for == "replies":
                    self._go_on(stream)
        self._rest = data[position:]
        if self._leaving and not owed:
            self.close()
            self._open()

    def _note_long(self, stream: Stream, size: int, done: bool) -> None:
        self._long += size
        if done:
            if self._long > LONG_REPLY:
                stream.exclusive = True
            self._long = 0

    # -- a horse that does not read ------------------------------------------------------------------------------

    def _wait_for(self, guest: Guest) -> None:
        """Give up a horse that does not begin to read within a moment, because all others wait for it."""
        self._stuck = guest
        for stream in guest.streams:
            # The horse may have to send the rest of its commands before it reads.
            if stream.unread:
                stream.read_on(True)
        self._stuck_timer = self._loop.call_later(_STUCK_TIME, lambda: self._give_up_on(guest))

    def _give_up_on(self, guest: Guest) -> None:
        if guest.unread > MOST_UNREAD and guest.streams:
            self._warn("%s does not read its replies: closing its connection", guest.describe())
            max(guest.streams, key=lambda stream: stream.unread).close()
        if self._stuck is guest:
            self._read_on()

    def on_flushed(self, stream: Stream) -> None:
        """Read the server again once the stuck horse has taken enough of its replies, or has closed the stream."""
        if self._stuck is not None and self._stuck is stream.guest and self._stuck.unread <= MOST_UNREAD // 2:
            self._read_on()

    def _read_on(self) -> None:
        self._stuck = None
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
        if self._upstream is not None:
            self._upstream.resume()

    # -- looking after -------------------------------------------------------------------------------------------

    def look_after(self, now: float) -> None:
        """Close an idle connection; give up one on which the server is silent while it answers on another."""
        idle = self._settings.max_idle
        if self._heard:
            self._heard, self._heard_at = False, now
        if self._owed:
            self._needed_at = now
            # The server answered a later command on another connection, so a firewall has probably dropped this one.
            silent_since = max(self._owed[0].since, self._heard_at)
            if self._stuck is None and self._answered_at() - silent_since > self._settings.socket_timeout:
                for upstream in self.all():
                    upstream.lose("the server does not answer on it, but on others")
        elif idle and self.usable and now - max(self._needed_at, self._heard_at) > idle:
            self.close()

    def overdue(self, before: float) -> list[Stream]:
        """Return the streams whose replies have been due since before this time."""
        if self._upstream is None or self._upstream.paused:
            return []
        late = takewhile(lambda debt: debt.since < before, self._owed)
        return list(dict.fromkeys(debt.stream for debt in late if not debt.stream.closed))

    # -- the end -------------------------------------------------------------------------------------------------

    def _lost(self, upstream: Upstream, reason: str) -> None:
        if upstream is not self._upstream:
            return
        self._upstream, self._leaving = None, False
        self._rest, self._long = b"", 0
        self._outgoing.clear()
        owed, self._owed = self._owed, deque()
        for debt in owed:
            debt.stream.refuse("LOST", reason)
        self._open()

    def all(self) -> list[Upstream]:
        """Return the connection in a list, open or being opened; an empty list without one."""
        return [self._upstream] if self._upstream is not None else []

    def close_idle(self) -> None:
        """Close the connection if no stream waits for a reply on it."""
        if self.usable and not self._owed and not self._outgoing:
            self.close()

    def leave(self, reason: str) -> None:
        """Use a new connection for later commands; commands sent on this one are answered on it."""
        if self._upstream is not None and not self._upstream.is_open:
            self._upstream.lose(reason)
        elif self._owed:
            self._leaving = True
        else:
            self.close()

    def close(self) -> None:
        """Close the connection; no stream is owed a reply then."""
        if self._upstream is not None:
            upstream, self._upstream, self._leaving = self._upstream, None, False
            self._rest = b""
            upstream.close()

    def close_in_child(self) -> None:
        """Close a forked copy of the descriptor."""
        if self._upstream is not None:
            self._upstream.close_in_child()
