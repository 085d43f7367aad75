"""Sends a stream's whole commands over the shared connection, up to the first that may not be shared."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..capacity.reservation import Ask
from ..connection.command_table import CommandTable
from ..connection.framing import cut_command, words_of
from ..process.event_loop import Loop
from .shared import Shared
from .streams import LONG_REQUEST, Stream

#: Seconds for the rest of a transaction to come: redis-py sends it in one go.
_TRANSACTION_TIME = 0.02
#: Seconds between two questions about a command while the server is away.
_ASK_AGAIN = 0.25


class Sharing:
    """Sends commands that may be shared, and asks the server about unknown ones.

    Args:
        loop, shared: as the names say.
        ask: sends one command over the command connection; the reply comes later, None if the connection is lost.
        serve: called with a stream to serve in its turn.
        go_on: called with a stream when its wait for an answer ends.
    """

    def __init__(
        self,
        loop: Loop,
        shared: Shared,
        ask: Ask,
        serve: Callable[[Stream], None],
        go_on: Callable[[Stream], None],
    ) -> None:
        self._loop = loop
        self._shared = shared
        self._ask = ask
        self._serve = serve
        self._go_on = go_on
        self._table = CommandTable()
        #: Maps a command's name to whether it may be shared; None where its words decide.
        self.known = self._table.known
        #: By command name, the streams that wait for the server's answer about the command.
        self._for_answer: dict[bytes, set[Stream]] = {}

    @property
    def waiting(self) -> list[Stream]:
        """Return the streams that wait for an answer about a command."""
        return [stream for asked in self._for_answer.values() for stream in asked]

    def is_done_at_once(self, stream: Stream, data: bytes) -> bool:
        """Send ``data`` if it is one command that may be shared, the commonest case; tell whether it was sent."""
        if not self._shared.usable:
            return False
        end, name = cut_command(data, 0)
        if end == len(data) and self.known.get(name) and end + stream.under_way <= LONG_REQUEST:
            self._shared.add(stream, data, 1, time.monotonic())
            return True
        return False

    def pass_on(self, stream: Stream) -> None:
        """Send the commands that may be shared, up to the first that may not."""
        data, size, position, count = stream.data, len(stream.data), 0, 0
        known, most, asked = self.known, LONG_REQUEST - stream.under_way, None
        while position < size:
            end, name = cut_command(data, position)
            if end < 0:
                stream.own_next = size - position > LONG_REQUEST
                break
            shared = known.get(name)
            if shared is None:
                if not self._table.is_known(name):
                    asked = name
                    break
                shared = self._table.is_shared(name, words_of(data, position, size))
            number = 1
            if not shared and name.upper() == b"MULTI":
                end, number, unknown = self._transaction(data, position)
                if unknown is not None:
                    asked = unknown
                    break
                if end < 0 and size - position <= LONG_REQUEST:
                    self._expect_more(stream)
                    break
                shared = number > 0
            if not shared or end > most:
                stream.own_next = True
                break
            position, count = end, count + number
        if not count:
            if asked is not None:
                self._find_out(stream, asked)
            return
        if not self._shared.usable:
            stream.own_next = False
            self._shared.want(stream)
            return
        stream.data = data[position:]
        self._shared.add(stream, data if position == size else data[:position], count, time.monotonic())
        # This comes last, since the answer may come at once, and the stream then goes on from here.
        if asked is not None:
            self._find_out(stream, asked)

    def _transaction(self, data: bytes, start: int) -> tuple[int, int, bytes | None]:
        """Return a transaction's end, its number of commands, and the name of an unknown command in it.

        The end is -1 if bytes are missing; the number is 0 if the transaction cannot be shared.
        """
        end, _ = cut_command(data, start)
        number, size = 1, len(data)
        while end < size:
            position = end
            end, name = cut_command(data, position)
            if end < 0:
                return -1, 0, None
            number += 1
            if name.upper() == b"EXEC":
                # EXEC with more words is an error, after which old servers keep the transaction open.
                return end, number if data.startswith(b"*1\r\n", position) else 0, None
            if not self._table.is_known(name):
                return end, 0, name
            if not self._table.is_shared(name, words_of(data, position, size)):
                return end, 0, None
        return -1, 0, None

    def _expect_more(self, stream: Stream) -> None:
        """Wait a moment for the rest of a transaction; after that, the program sends it step by step."""
        seen = len(stream.data)

        def look() -> None:
            if not stream.closed and stream.loan is None and stream.waits_for is None and len(stream.data) == seen:
                stream.own_next = True
                self._serve(stream)

        self._loop.call_later(_TRANSACTION_TIME, look)

    def _find_out(self, stream: Stream, name: bytes) -> None:
        """Ask the server about a command, once for all streams that wait for it."""
        stream.wait("the server's table of commands", time.monotonic())
        asked = self._for_answer.get(name)
        if asked is not None:
            asked.add(stream)
            return
        self._for_answer[name] = {stream}
        self._ask_about(name)

    def _ask_about(self, name: bytes) -> None:
        self._ask(self._table.question(name), lambda reply: self._learn(name, reply))

    def _learn(self, name: bytes, reply: Any) -> None:
        if reply is None:
            # The server is away; the question is repeated, because a wrong guess would count for the process's life.
            self._loop.call_later(_ASK_AGAIN, lambda: self._ask_about(name))
            return
        self._table.learn(name, reply)
        for stream in self._for_answer.pop(name, ()):
            self._go_on(stream)
