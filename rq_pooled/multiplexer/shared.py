"""The connection of the role ``jobs``: the commands of all horses go over it, and the replies come back in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from ..config.settings import Settings
from ..process.event_loop import Loop, Timer
from .framing import Malformed
from .opener import Opener
from .streams import LONG_REPLY, MOST_UNREAD, Guest, Stream
from .upstream import Upstream

ROLE = "jobs"
#: Seconds for which it is not read because one horse does not read.
_STUCK_TIME = 1.0
_DOLLAR, _MINUS = b"$-"


@dataclass(slots=True)
class _Debt:
    """So many replies that a stream is owed, and when it asked, by the monotonic clock."""

    stream: Stream
    count: int
    since: float


class Shared:
    """Opens it with the first command, and counts who is owed how many replies.

    Args:
        loop, settings, opener: as the names say.
        warn: logs, as ``Logger.warning``.
        go_on: called with each stream that waits for this no more.
        answered_at: returns when the command connection was last answered.
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
        #: In the order in which the replies will come.
        self._owed: deque[_Debt] = deque()
        self._outgoing: list[bytes] = []
        self._rest = b""
        #: It is closed as soon as no stream is owed anything: the server is elsewhere now.
        self._leaving = False
        #: Bytes of the reply that is being passed on in pieces.
        self._long = 0
        #: The server has sent something since the last look; when it had, and when a reply was last missing, at a look.
        self._heard = False
        self._heard_at = self._needed_at = time.monotonic()
        #: Streams that wait until it is open.
        self.waiting: set[Stream] = set()
        #: The horse for which it is not read.
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
        """Have a stream wait until it is open."""
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
        """Send what was taken, in one write."""
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
                # The shorter way of a whole string, as most replies are.
                if data[position] == _DOLLAR and cutter.fresh:
                    line = find(b"\r\n", position)
                    end = line + 4 + int(data[position + 1 : line]) if line > 0 and data[position + 1] != _MINUS else 0
                    if 0 < end <= size:
                        position, left = end, left - 1
                        continue
                end, done = cut(data, position)
                # No stream that shares a connection has asked for it.
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
        """Give a horse up that does not read, unless it begins to within a moment: all others wait for it."""
        self._stuck = guest
        for stream in guest.streams:
            # It may be about to send the last of its commands, before it reads.
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
        """Read again if this is where it was stuck: the stream has taken some of its replies, or is closed."""
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
        """Close it when it is idle; give it up when the server answers over the other connection only."""
        idle = self._settings.max_idle
        if self._heard:
            self._heard, self._heard_at = False, now
        if self._owed:
            self._needed_at = now
            # An answer that came later than SOCKET_TIMEOUT after this silence began was to something that was asked
            # later: a firewall has forgotten this connection.
            silent_since = max(self._owed[0].since, self._heard_at)
            if self._stuck is None and self._answered_at() - silent_since > self._settings.socket_timeout:
                for upstream in self.all():
                    upstream.lose("the server does not answer on it, but on others")
        elif idle and self.usable and now - max(self._needed_at, self._heard_at) > idle:
            self.close()

    def overdue(self, before: float) -> list[Stream]:
        """Return the streams that were owed a reply before then and have not got it."""
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
        """Return it, if there is one, open or being opened."""
        return [self._upstream] if self._upstream is not None else []

    def close_idle(self) -> None:
        """Close it if no stream waits for anything on it."""
        if self.usable and not self._owed and not self._outgoing:
            self.close()

    def leave(self, reason: str) -> None:
        """Open another one for what comes from now on; what was sent here is answered here."""
        if self._upstream is not None and not self._upstream.is_open:
            self._upstream.lose(reason)
        elif self._owed:
            self._leaving = True
        else:
            self.close()

    def close(self) -> None:
        """Close it while no stream is owed anything."""
        if self._upstream is not None:
            upstream, self._upstream, self._leaving = self._upstream, None, False
            self._rest = b""
            upstream.close()

    def close_in_child(self) -> None:
        """Close a forked copy of the descriptor."""
        if self._upstream is not None:
            self._upstream.close_in_child()
