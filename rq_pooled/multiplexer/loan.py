"""What a stream has done to the connection that it is lent, and whether that can be given back as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..connection import command_table
from ..connection.framing import Passage, ReplyCutter, cut_command, words_of
from ..store.keys import NONE
from ..wire import pack_commands
from .streams import LONG_REQUEST

#: Extra seconds for the reply to a long command, because the kernel takes megabytes that a slow line delivers later.
_UNDER_WAY = 30.0
#: The commands of shard channels.
_OF_SHARDS = frozenset((b"SSUBSCRIBE", b"SUNSUBSCRIBE"))
#: A command that is replicated like a write, and changes nothing.
_MARK = pack_commands([("PUBLISH", NONE, "")])
#: Bytes of whole commands that are passed on in one step: some hundreds of the smallest.
_AT_ONCE = 16 * 1024
#: The number of words of a long command that are read.
_SOME_WORDS = 64


class Loan:
    """Records what a stream has done to the connection that it is lent."""

    __slots__ = (
        *("doubtful", "ends_with_stream", "in_transaction", "mute", "passage", "patience", "pending", "rest"),
        *("sharded", "subscribed", "transactional", "unsubscribing", "watching"),
    )

    def __init__(self) -> None:
        #: The number of outstanding replies, and how many of the first ones are not passed on.
        self.pending = 0
        self.mute = 0
        self.watching = self.in_transaction = self.subscribed = False
        #: The stream has sent transaction commands; an error among the replies leaves the outcome uncertain.
        self.transactional = self.doubtful = False
        #: The subscription is to shard channels, which are counted apart; an unsubscribing command has been sent.
        self.sharded = self.unsubscribing = False
        #: The stream has done something that no later command undoes, so the connection ends with it.
        self.ends_with_stream = False
        #: A long command that is being passed on in pieces.
        self.passage: Passage | None = None
        #: The part of a reply's header that has arrived.
        self.rest = b""
        #: Seconds that the server may take beyond SOCKET_TIMEOUT; None for no limit.
        self.patience: float | None = 0.0

    @property
    def is_over(self) -> bool:
        """Tell whether the connection is in its first state again, and can be given back."""
        kept = self.watching or self.in_transaction or self.subscribed or self.ends_with_stream
        return not (self.pending or self.passage or kept)

    def is_overdue(self, late_by: float) -> bool:
        """Tell whether a reply that is this many seconds past SOCKET_TIMEOUT is overdue."""
        return bool(self.pending) and not self.subscribed and self.patience is not None and late_by > self.patience

    def take(self, data: bytes, plain: Mapping[bytes, bool | None]) -> tuple[int, bytes]:
        """Note the commands at the beginning of ``data``; return their length, and the bytes to send before them.

        Args:
            plain: maps a command's name to whether it leaves nothing behind on a connection.

        Raises:
            Malformed: the bytes are no command.
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
                    # Earlier commands are answered first, because only the first replies can be kept back.
                    break
                # WAIT counts only this connection's writes, and the job's writes went over the shared connection. A
                # mark that is replicated after them stands for them.
                prelude, self.mute, self.pending = _MARK, 1, 1
            # This is the shorter way for commands that leave nothing behind.
            if plain.get(name) and not self.subscribed:
                self.pending += 1
            else:
                self.note(words_of(data, position, size))
            position = end
        return position, prelude

    def note(self, words: Sequence[bytes]) -> None:
        """Note one command that is sent now."""
        name = words[0].upper()
        self.pending += 1
        if name in command_table.SUBSCRIBE or name in command_table.UNSUBSCRIBE:
            self._note_subscription(name, words)
        elif self.subscribed:
            # Its reply cannot be told apart from published messages.
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
        """Note a change of subscriptions. Only after the plainest sequence do the replies show the end."""
        sharded, ends = name in _OF_SHARDS, name in command_table.UNSUBSCRIBE
        mixed = self.subscribed and (self.unsubscribing or sharded != self.sharded)
        if mixed or self.in_transaction or (ends and len(words) > 2):
            self.ends_with_stream = True
        self.subscribed, self.sharded, self.unsubscribing = True, sharded, ends

    def follow(self, data: bytes, cutter: ReplyCutter) -> tuple[bytes, bool, str]:
        """Note what the server has sent.

        Returns:
            The bytes for the stream, whether they end inside a reply, and the error in reply to the mark before WAIT:
            after it, the reply to WAIT would be untrue.
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
        """Note a complete reply; ``reply`` holds only its part in the present piece."""
        if self.transactional and reply[:1] in (b"-", b"!"):
            self.doubtful = True
        if self.subscribed:
            # Replies are not counted, since a subscription has one per channel. Its last number is the channels left.
            if reply.endswith(b":0\r\n") and b"unsubscribe\r\n" in reply[:32]:
                self.subscribed, self.pending = False, 0
        elif not is_push and self.pending:
            self.pending -= 1
        if not self.pending:
            self.patience = 0.0
