"""Tells processes of this user who holds the server's connections, as a full server refuses them the question."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from ..capacity.reservation import Ask
from ..connection.place import Place
from ..process.event_loop import Loop
from .streams import Stream

#: Seconds between two looks. The server writes a line per client, and a process may ask without end.
_BETWEEN = 0.25


class Telling:
    """Answers streams, all that ask meanwhile at once.

    Args:
        loop: keeps the time.
        ask: sends over the command connection, which is there in any case.
        place: returns where the server is, None while it is away.
    """

    def __init__(self, loop: Loop, ask: Ask, place: Callable[[], Place | None]) -> None:
        self._loop = loop
        self._ask = ask
        self._place = place
        self._askers: list[Stream] = []
        self._looked = 0.0

    def tell(self, stream: Stream) -> None:
        """Answer a stream, a moment later if others were answered just now."""
        self._askers.append(stream)
        if len(self._askers) == 1:
            self._loop.call_later(max(0.0, self._looked + _BETWEEN - time.monotonic()), self._look)

    def _look(self) -> None:
        found: list[Any] = []

        def on_reply(reply: Any) -> None:
            found.append(reply.decode(errors="replace") if isinstance(reply, bytes) else None)
            if len(found) == 2:
                self._answer(found)

        self._ask(("INFO", "clients"), on_reply)
        self._ask(("CLIENT", "LIST"), on_reply)

    def _answer(self, found: list[Any]) -> None:
        place = self._place()
        address = list(place.address) if place and isinstance(place.address, tuple) else None
        answer = json.dumps([address, *found]).encode() + b"\n"
        askers, self._askers, self._looked = self._askers, [], time.monotonic()
        for stream in askers:
            stream.deliver(answer)
