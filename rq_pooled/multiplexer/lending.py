"""Connections that streams are lent for what cannot be shared: a bounded number, kept for the next one."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ..capacity.reservation import Reservation
from ..connection import command_table
from ..process.event_loop import Loop
from ..wire import pack_commands
from .framing import Malformed, Passage, ReplyCutter, cut_command, words_of
from .opener import Opener
from .streams import LONG_REQUEST, MOST_UNREAD, Stream
from .upstream import Queue, Upstream

ROLE = "exclusive"
#: Seconds that a stream waits for one that is lent, before another is opened.
_PATIENCE = 0.02
#: Bytes that the server has not taken, beyond which the stream that sends them is not read.
_MOST_UNSENT = 1024 * 1024
#: Seconds beyond the usual for the reply to a long command: the kernel has taken megabytes that a slow line delivers
#: later.
_UNDER_WAY = 30.0
#: What makes a connection fit for the next stream.
_UNWATCH, _DISCARD = pack_commands([("UNWATCH",)]), pack_commands([("DISCARD",)])
#: Of shard channels.
_OF_SHARDS = frozenset((b"SSUBSCRIBE", b"SUNSUBSCRIBE"))
#: Goes to replicas like a write, and changes nothing.
_MARK = pack_commands([("PUBLISH", "rq_pooled:none", "")])
#: Bytes of whole commands that are passed on in one step: some hundred of the smallest.
_AT_ONCE = 16 * 1024
#: Words of a long command that are looked at.
_SOME_WORDS = 64


class Loan:
    """What a stream has done to the connection that it is lent."""

    __slots__ = (
        *(
            "doubtful",
            "ends_with_stream",
            "in_transaction",
            "mute",
            "passage",
            "patience",
            "pending",
            "rest",
            "sharded",
        ),
        *("subscribed", "transactional", "unsubscribing", "watching"),
    )

    def __init__(self) -> None:
        #: Replies that have not come; of these, so many that are not passed on, at first.
        self.pending = 0
        self.mute = 0
        self.watching = self.in_transaction = self.subscribed = False
        #: It has had to do with transactions; an error among the replies makes it uncertain what has come of them.
        self.transactional = self.doubtful = False
        #: The subscription is to shard channels, which are counted apart; a command that ends it has been sent.
        self.sharded = self.unsubscribing = False
        #: Something that no later command undoes.
        self.ends_with_stream = False
        #: A long command that is being passed on in pieces.
        self.passage: Passage | None = None
        #: What has come of a reply's header.
        self.rest = b""
        #: Seconds that the server may take beyond the usual, None for ever.
        self.patience: float | None = 0.0

    @property
    def is_over(self) -> bool:
        """Tell whether the connection is as it was, and can be given back."""
        kept = self.watching or self.in_transaction or self.subscribed or self.ends_with_stream
        return not (self.pending or self.passage or kept)

    def note(self, words: Sequence[bytes]) -> None:
        """Take note of a command that is sent now."""
        name = words[0].upper()
        self.pending += 1
        if name in command_table.SUBSCRIBE or name in command_table.UNSUBSCRIBE:
            self._note_subscription(name, words)
        elif self.subscribed:
            # Its reply cannot be told from what has been published.
            self.ends_with_stream = True
        if name in command_table.TRANSACTION:
            self.transactional = True
            if name == b"WATCH":
                self.watching = True
            elif name == b"MULTI":
                self.in_transaction = True
            elif name != b"UNWATCH":
                self.watching = self.in_transaction = False
            elif not self.in_transaction:
                self.watching = False
        elif command_table.is_lasting(words):
            self.ends_with_stream = True
        wait = command_table.block_of(words)
        if wait is None or self.patience is None:
            self.patience = None
        else:
            self.patience = max(wait, self.patience)

    def _note_subscription(self, name: bytes, words: Sequence[bytes]) -> None:
        """Take note of a change of subscriptions: only the plainest sequence has an end that its replies show."""
        sharded, ends = name in _OF_SHARDS, name in command_table.UNSUBSCRIBE
        mixed = self.subscribed and (self.unsubscribing or sharded != self.sharded)
        if mixed or self.in_transaction or (ends and len(words) > 2):
            self.ends_with_stream = True
        self.subscribed, self.sharded, self.unsubscribing = True, sharded, ends

    def note_reply(self, reply: bytes, is_push: bool) -> None:
        """Take note of a reply that has come whole, as far as it began in the piece at hand."""
        if self.transactional and reply[:1] in (b"-", b"!"):
            self.doubtful = True
        if self.subscribed:
            # Not counted: a subscription has as many as it has channels. The last number is of those that are left.
            if reply.endswith(b":0\r\n") and b"unsubscribe\r\n" in reply[:32]:
                self.subscribed, self.pending = False, 0
        elif not is_push and self.pending:
            self.pending -= 1
        if not self.pending:
            self.patience = 0.0


class Lending:
    """Lends connections in the order in which they are asked for.

    Args:
        loop, opener: as the names say.
        queue: has a function called with something that is to be read, when it is its turn.
        most: how many there may be.
        reservation: keeps a place in the budget for each.
        shared: the commands that leave nothing behind on a connection, by name; see CommandTable.
        is_full: tells whether others may be waiting for a connection to the server.
        on_lent, on_over: called with a stream that has been lent one, and that needs it no more.
    """

    def __init__(
        self,
        loop: Loop,
        opener: Opener,
        queue: Queue,
        most: int,
        reservation: Reservation,
        shared: Mapping[bytes, bool | None],
        is_full: Callable[[], bool],
        on_lent: Callable[[Stream], None],
        on_over: Callable[[Stream], None],
    ) -> None:
        self._loop = loop
        self._opener = opener
        self._queue = queue
        self._reservation = reservation
        self._shared = shared
        self._is_full = is_full
        self._on_lent = on_lent
        self._on_over = on_over
        self.most = most
        self._waiting: deque[Stream] = deque()
        self._opening: set[Upstream] = set()
        #: With the time at which it came back; the last one is lent first.
        self._idle: list[tuple[Upstream, float]] = []
        #: Who has it, None while it is made fit for the next one, and when something last happened to it.
        self._lent: dict[Upstream, tuple[Stream | None, float]] = {}
        #: By stream; the connection that it is lent.
        self._upstreams: dict[Stream, Upstream] = {}
        #: What ends with the bytes that are awaited, and the last that has come.
        self._marks: dict[Upstream, tuple[bytes, bytes]] = {}

    def __len__(self) -> int:
        return len(self._opening) + len(self._idle) + len(self._lent)

    # -- lending -------------------------------------------------------------------------------------------------

    def borrow(self, stream: Stream) -> None:
        """Lend a connection as soon as there is one; ``on_lent`` is called then, perhaps at once."""
        now = time.monotonic()
        stream.wait("a connection", now)
        self._waiting.append(stream)
        self._loop.call_later(_PATIENCE, self._serve)
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            stream = self._waiting[0]
            if stream.closed or stream.has_left():  # what it wanted would be done for nobody, a BLPOP even lost
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
        self._on_lent(stream)

    def _open_more(self) -> None:
        """Open what is needed: nobody waits for what was lent to others for a moment, unless there is nothing at
        all.
        """
        now = time.monotonic()
        impatient = sum(now - stream.since >= _PATIENCE and not stream.closed for stream in self._waiting)
        needed = impatient if len(self) else min(1, len(self._waiting))
        while len(self._opening) < needed and len(self) < self.most:
            upstream = self._opener.open(
                ROLE,
                self._opened,
                self._on_readable,
                self._lost,
                self._drained,
                self._serve,
                lambda: self._reservation.may_lend(len(self) + 1),
            )
            if upstream is None:
                return
            self._opening.add(upstream)

    def _opened(self, upstream: Upstream) -> None:
        self._opening.discard(upstream)
        self._take_back(upstream)

    def _take_back(self, upstream: Upstream) -> None:
        upstream.resume()  # its last borrower may not have read all yet, and that is no affair of the next one
        if len(self) and self._is_full():  # with the one that is left the own streams get on, one after the other
            upstream.close()
            self._serve()
            return
        self._idle.append((upstream, time.monotonic()))
        self._serve()

    # -- what streams send ---------------------------------------------------------------------------------------

    def pass_on(self, stream: Stream) -> None:
        """Send what the stream has sent, as far as it is commands, over the connection that it is lent."""
        loan, upstream = stream.loan, self._upstreams[stream]
        assert loan is not None
        data, size, position = stream.data, len(stream.data), 0
        prelude = b""
        while position < min(size, _AT_ONCE):
            if loan.passage is not None:
                position, done = loan.passage.follow(data, position)
                if not done:
                    break
                loan.passage = None
                continue
            end, name = cut_command(data, position)
            if end < 0:
                if size - position <= LONG_REQUEST:
                    break
                loan.note(words_of(data, position, _SOME_WORDS) or [b""])
                loan.passage = Passage()
                if loan.patience is not None:
                    loan.patience = max(loan.patience, _UNDER_WAY)
                continue
            if name.upper() in command_table.WAITS_FOR_REPLICAS and not loan.in_transaction:
                if loan.pending:
                    # What stands before it has to be answered first: of the replies only the first can be kept back.
                    break
                # The server waits for what this connection has written, and the writes that the job means went over
                # the shared one: something that is replicated after them stands for them.
                prelude, loan.mute, loan.pending = _MARK, 1, 1
            if self._shared.get(name) and not loan.subscribed:  # it leaves nothing behind: the shorter way
                loan.pending += 1
            else:
                loan.note(words_of(data, position, size))
            position = end
        stream.data = data[position:]
        if position:
            self._lent[upstream] = (stream, time.monotonic())
            upstream.send(prelude + data[:position] if prelude or position < size else data)

    def is_clogged(self, stream: Stream) -> bool:
        """Tell whether the server has not taken what the stream has sent, and it has to wait with more."""
        upstream = self._upstreams.get(stream)
        return upstream is not None and upstream.unsent > _MOST_UNSENT

    def _drained(self, upstream: Upstream) -> None:
        stream, _ = self._lent.get(upstream, (None, 0.0))
        if stream is not None:
            stream.read_on(True)

    # -- what the server sends -----------------------------------------------------------------------------------

    def _on_readable(self, upstream: Upstream) -> None:
        self._queue(upstream, self._serve_upstream)

    def _serve_upstream(self, upstream: Upstream) -> None:
        if upstream.closed or upstream.paused:
            return
        try:
            data = upstream.receive()
            if data is not None:
                self._hand_out(upstream, data)
        except Exception as error:  # noqa: BLE001 - who is owed what is not known any more
            upstream.lose(str(error) or type(error).__name__)

    def _hand_out(self, upstream: Upstream, data: bytes) -> None:
        if upstream not in self._lent:
            raise Malformed("the server sent what nobody asked for")
        stream, _ = self._lent[upstream]
        if stream is None:
            self._on_made_fit(upstream, data)
            return
        loan = stream.loan
        assert loan is not None
        data, loan.rest = loan.rest + data, b""
        position, size, start, done = 0, len(data), 0, True
        while position < size:
            looked_at = upstream.cutter.fresh and (loan.subscribed or loan.transactional)
            end, done = upstream.cutter.cut(data, position)
            if done:
                loan.note_reply(data[position:end] if looked_at else b"", upstream.cutter.push)
                if loan.mute:
                    loan.mute -= 1
                    start = end
                    if data[position : position + 1] == b"-":  # what follows would not be true
                        stream.refuse(
                            "LOST", f"WAIT is not possible: {data[position + 1 : end].decode(errors='replace')}"
                        )
                        return
            position = end
            if not done:
                break
        loan.rest = data[position:]
        stream.in_reply = not done and not upstream.cutter.fresh
        self._lent[upstream] = (stream, time.monotonic())
        stream.deliver(data[start:position])
        if stream.unread and stream.guest is not None and stream.guest.unread > MOST_UNREAD:
            upstream.pause()
        if stream.closed:
            return
        if loan.is_over:
            self._end_loan(stream)
        elif stream.data and not loan.pending:
            self._on_lent(stream)

    def on_flushed(self, stream: Stream) -> None:
        """Read the server again, once the stream has taken what there was for it."""
        upstream = self._upstreams.get(stream)
        if upstream is not None and upstream.paused and not stream.unread:
            upstream.resume()

    def _end_loan(self, stream: Stream) -> None:
        loan, upstream = stream.loan, self._upstreams.pop(stream)
        stream.loan = None
        if loan is not None and loan.doubtful:
            self._lent[upstream] = (None, time.monotonic())
            upstream.send(_UNWATCH)
        else:
            del self._lent[upstream]
            self._take_back(upstream)
        self._on_over(stream)

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
            upstream.close()
            self._serve()
        elif loan.subscribed:
            self._lent[upstream] = (None, time.monotonic())
            upstream.resume()
            self._unsubscribe(upstream, loan.sharded)
        else:
            self._lent[upstream] = (None, time.monotonic())
            upstream.resume()
            upstream.send(_DISCARD if loan.in_transaction else _UNWATCH)

    def _unsubscribe(self, upstream: Upstream, sharded: bool) -> None:
        """End all subscriptions. What is published until then comes, too: a word that nobody else knows is the last."""
        mark = secrets.token_hex(16)
        kinds = [("SUNSUBSCRIBE",)] if sharded else [("UNSUBSCRIBE",), ("PUNSUBSCRIBE",)]
        self._marks[upstream] = (f"${len(mark)}\r\n{mark}\r\n".encode(), b"")
        upstream.send(pack_commands([*kinds, ("ECHO", mark)]))

    def _on_made_fit(self, upstream: Upstream, reply: bytes) -> None:
        if upstream in self._marks:
            expected, seen = self._marks[upstream]
            seen = (seen + reply)[-len(expected) :]
            self._marks[upstream] = expected, seen
            if seen != expected:
                return
            del self._marks[upstream]
            upstream.cutter = ReplyCutter()  # a message may have been cut off
        elif reply != b"+OK\r\n":
            raise Malformed(f"UNWATCH was answered with {reply[:40]!r}")
        del self._lent[upstream]
        self._take_back(upstream)

    def _lost(self, upstream: Upstream, reason: str) -> None:
        self._opening.discard(upstream)
        self._idle = [entry for entry in self._idle if entry[0] is not upstream]
        stream, _ = self._lent.pop(upstream, (None, 0.0))
        self._marks.pop(upstream, None)
        if stream is not None:
            self._upstreams.pop(stream, None)
            stream.loan = None
            stream.refuse("LOST", reason)
        self._serve()

    # -- looking after -------------------------------------------------------------------------------------------

    def overdue(self, now: float, timeout: float) -> list[Stream]:
        """Return the streams for which the server has done nothing for longer than it may; close what nobody has by
        then.
        """
        late = []
        for upstream, (stream, since) in list(self._lent.items()):
            loan = stream.loan if stream is not None else None
            late_by = now - max(since, upstream.moved_at) - timeout
            if stream is None:
                if late_by > 0:
                    upstream.lose("no answer to UNWATCH or UNSUBSCRIBE")
            elif loan is None or not loan.pending or loan.subscribed or loan.patience is None or stream.unread:
                continue
            elif late_by > loan.patience:
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
        return said or ["nobody: they are being opened"]

    def close_idle(self, before: float) -> None:
        """Close what nobody has needed since before then."""
        for upstream, since in list(self._idle):
            if since < before:
                self._idle.remove((upstream, since))
                upstream.close()
        if not self._waiting:
            self._reservation.lend(len(self))

    def give_up(self, reason: str) -> None:
        """Close all; what was sent and is not answered fails."""
        for upstream in [*self._opening, *(upstream for upstream, _ in self._idle), *self._lent]:
            upstream.lose(reason)

    def close(self) -> None:
        """Close all without a word."""
        self._waiting.clear()
        for upstream in [*self._opening, *(upstream for upstream, _ in self._idle), *self._lent]:
            upstream.close()

    def close_in_child(self) -> None:
        """Close forked copies of the descriptors."""
        for upstream in [*self._opening, *(upstream for upstream, _ in self._idle), *self._lent]:
            upstream.close_in_child()
