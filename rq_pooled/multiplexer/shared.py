"""The connection of the role ``jobs``: the commands of all horses go over it, and the replies come back in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from .framing import Malformed
from .opener import Opener
from .streams import LONG_REPLY, MOST_UNREAD, Guest, Stream
from .upstream import Queue, Upstream

ROLE = "jobs"
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
        opener: opens connections.
        queue: has a function called with something that is to be read, when it is its turn.
        on_open: called when it may be used.
        on_answered: called with each stream that is owed nothing any more.
        on_stuck: called with a guest that leaves too much unread: nothing is read for anybody until ``resume``.
    """

    def __init__(
        self,
        opener: Opener,
        queue: Queue,
        on_open: Callable[[], None],
        on_answered: Callable[[Stream], None],
        on_stuck: Callable[[Guest], None],
    ) -> None:
        self._opener = opener
        self._queue = queue
        self._on_open = on_open
        self._on_answered = on_answered
        self._on_stuck = on_stuck
        self._upstream: Upstream | None = None
        #: In the order in which the replies will come.
        self._owed: deque[_Debt] = deque()
        self._outgoing: list[bytes] = []
        self._rest = b""
        #: Bytes of the reply that is being passed on in pieces.
        self._long = 0
        #: The server has sent something since this was last set to False.
        self.heard = False
        #: Somebody has asked for it and it is not open yet.
        self._wanted = False

    @property
    def usable(self) -> bool:
        """Tell whether commands can be sent."""
        return self._upstream is not None and self._upstream.is_open

    @property
    def exists(self) -> bool:
        """Tell whether there is a connection, open or being opened."""
        return self._upstream is not None

    @property
    def owes(self) -> bool:
        """Tell whether anybody waits for a reply."""
        return bool(self._owed)

    def want(self) -> None:
        """Have it opened; ``on_open`` is called then."""
        self._wanted = True
        if self._upstream is None:
            self._upstream = self._opener.open(
                ROLE, self._opened, self._on_readable, self._lost, lambda _upstream: None, self._again
            )

    def _again(self) -> None:
        if self._wanted and self._upstream is None:
            self.want()

    def _opened(self, _upstream: Upstream) -> None:
        self._wanted = False
        self._on_open()

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

    def _on_readable(self, upstream: Upstream) -> None:
        self._queue(upstream, self._serve)

    def _serve(self, upstream: Upstream) -> None:
        if upstream.closed or upstream.paused:
            return
        try:
            data = upstream.receive()
            if data:
                self._hand_out(upstream, self._rest + data if self._rest else data)
        except Exception as error:  # noqa: BLE001 - who is owed what is not known any more
            upstream.lose(str(error) or type(error).__name__)

    def _hand_out(self, upstream: Upstream, data: bytes) -> None:
        """Give each stream the replies in ``data`` that are its own."""
        owed, cutter, size, find = self._owed, upstream.cutter, len(data), data.find
        cut = cutter.cut
        self.heard = True
        start = position = 0
        done = True
        while done and position < size:
            if not owed:
                raise Malformed("the server sent what nobody asked for")
            debt = owed[0]
            stream, left = debt.stream, debt.count
            while left and position < size:
                if data[position] == _DOLLAR and cutter.fresh:  # a whole string, as most replies are: the shorter way
                    line = find(b"\r\n", position)
                    end = line + 4 + int(data[position + 1 : line]) if line > 0 and data[position + 1] != _MINUS else 0
                    if 0 < end <= size:
                        position, left = end, left - 1
                        continue
                end, done = cut(data, position)
                if cutter.push and done:  # nobody who shares a connection has asked for it
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
                    self._on_stuck(guest)
            if not stream.pending:
                stream.under_way = 0
                self._on_answered(stream)
        self._rest = data[position:]

    def _note_long(self, stream: Stream, size: int, done: bool) -> None:
        self._long += size
        if done:
            if self._long > LONG_REPLY:
                stream.exclusive = True
            self._long = 0

    def resume(self) -> None:
        """Read again."""
        if self._upstream is not None:
            self._upstream.resume()

    def overdue(self, before: float) -> list[Stream]:
        """Return the streams that were owed a reply before then and have not got it."""
        if self._upstream is None or self._upstream.paused:
            return []
        late = takewhile(lambda debt: debt.since < before, self._owed)
        return list(dict.fromkeys(debt.stream for debt in late if not debt.stream.closed))

    @property
    def waiting_since(self) -> float | None:
        """Return when the oldest reply that has not come was asked for."""
        return self._owed[0].since if self._owed else None

    # -- the end -------------------------------------------------------------------------------------------------

    def _lost(self, upstream: Upstream, reason: str) -> None:
        if upstream is not self._upstream:
            return
        self._upstream = None
        self._rest, self._long = b"", 0
        self._outgoing.clear()
        owed, self._owed = self._owed, deque()
        for debt in owed:
            debt.stream.refuse("LOST", reason)
        if self._wanted:
            self.want()

    def give_up(self, reason: str) -> None:
        """Close it: what was sent and is not answered fails."""
        if self._upstream is not None:
            self._upstream.lose(reason)

    def close(self) -> None:
        """Close it while nobody is owed anything."""
        if self._upstream is not None:
            upstream, self._upstream = self._upstream, None
            self._rest = b""
            upstream.close()

    def close_in_child(self) -> None:
        """Close a forked copy of the descriptor."""
        if self._upstream is not None:
            self._upstream.close_in_child()
