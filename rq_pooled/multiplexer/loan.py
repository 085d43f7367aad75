"""What a stream has done to the connection that it is lent, and whether that can be given back as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..connection import command_table
from ..store.keys import NONE
from ..wire import pack_commands
from .framing import Passage, ReplyCutter, cut_command, words_of
from .streams import LONG_REQUEST

#: Seconds beyond the usual for the reply to a long command: the kernel has taken megabytes that a slow line delivers
#: later.
_UNDER_WAY = 30.0
#: Of shard channels.
_OF_SHARDS = frozenset((b"SSUBSCRIBE", b"SUNSUBSCRIBE"))
#: Goes to replicas like a write, and changes nothing.
_MARK = pack_commands([("PUBLISH", NONE, "")])
#: Bytes of whole commands that are passed on in one step: some hundred of the smallest.
_AT_ONCE = 16 * 1024
#: Words of a long command that are looked at.
_SOME_WORDS = 64


class Loan:
    """What a stream has done to the connection that it is lent."""

    __slots__ = (
        *("doubtful", "ends_with_stream", "in_transaction", "mute", "passage", "patience", "pending", "rest"),
        *("sharded", "subscribed", "transactional", "unsubscribing", "watching"),
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

    def is_overdue(self, late_by: float) -> bool:
        """Tell whether a reply is missing that is this many seconds later than the usual."""
        return bool(self.pending) and not self.subscribed and self.patience is not None and late_by > self.patience

    def take(self, data: bytes, plain: Mapping[bytes, bool | None]) -> tuple[int, bytes]:
        """Take note of what is sent now; return how many bytes of ``data`` that is, and what is to be sent before them.

        Args:
            plain: by name, whether a command leaves nothing behind on a connection.

        Raises:
            Malformed: it is no command.
        """
        size, position, prelude = len(data), 0, b""
        while position < min(size, _AT_ONCE):
            if self.passage is not None:
                position, done = self.passage.follow(data, position)
                if not done:
                    break
                self.passage = None
                continue
            end, name = cut_command(data, position)
            if end < 0:
                if size - position <= LONG_REQUEST:
                    break
                self.note(words_of(data, position, _SOME_WORDS) or [b""])
                self.passage = Passage()
                if self.patience is not None:
                    self.patience = max(self.patience, _UNDER_WAY)
                continue
            if name.upper() in command_table.WAITS_FOR_REPLICAS and not self.in_transaction:
                if self.pending:
                    # What stands before it has to be answered first: of the replies only the first can be kept back.
                    break
                # The server waits for what this connection has written, and the writes that the job means went over
                # the shared one: something that is replicated after them stands for them.
                prelude, self.mute, self.pending = _MARK, 1, 1
            # The shorter way of what leaves nothing behind.
            if plain.get(name) and not self.subscribed:
                self.pending += 1
            else:
                self.note(words_of(data, position, size))
            position = end
        return position, prelude

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

    def follow(self, data: bytes, cutter: ReplyCutter) -> tuple[bytes, bool, str]:
        """Take note of what the server has sent.

        Returns:
            What of it is for the stream, whether that ends inside a reply, and the error that is the reply to what was
            sent before WAIT: what follows would not be true then.
        """
        data, self.rest = self.rest + data, b""
        position, size, start, done = 0, len(data), 0, True
        while done and position < size:
            looked_at = cutter.fresh and (self.subscribed or self.transactional)
            end, done = cutter.cut(data, position)
            if done:
                self.note_reply(data[position:end] if looked_at else b"", cutter.push)
                if self.mute:
                    self.mute -= 1
                    start = end
                    if data[position : position + 1] == b"-":
                        return b"", False, data[position + 1 : end].decode(errors="replace")
            position = end
        self.rest = data[position:]
        return data[start:position], not done and not cutter.fresh, ""

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
