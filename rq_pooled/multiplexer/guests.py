"""Lets horses and the processes that they fork open streams. A stream begins with its horse's token.

A process of this user may also ask who holds the server's connections. A full server refuses such a question.
"""

from __future__ import annotations

import hmac
import socket
import time
from collections.abc import Callable

from .streams import Guest, Stream

#: The most streams that may lack a token at a time, and the seconds within which one must send it.
_MOST_STRANGERS, _STRANGER_TIME = 100, 5.0
#: The most bytes that a token may have.
_MAX_TOKEN = 64
#: What stands in place of a token where that is the question.
WHO = b"who"


class Guests:
    """Knows the horses and their streams.

    Args:
        make: makes a stream of a socket and the time at which it connected.
        tell: answers a stream that asks who holds the server's connections.
    """

    def __init__(self, make: Callable[[socket.socket, float], Stream], tell: Callable[[Stream], None]) -> None:
        self._make = make
        self._tell = tell
        self._guests: dict[bytes, Guest] = {}
        self._streams: set[Stream] = set()
        #: The streams that have sent no token yet.
        self.strangers: set[Stream] = set()

    def admit(self, describe: Callable[[], str]) -> Guest:
        """Return a guest, whose token opens streams until ``drop``."""
        guest = Guest(describe)
        self._guests[guest.token] = guest
        return guest

    def drop(self, guest: Guest) -> None:
        """Close all streams of a horse that has ended; its token opens nothing from then on."""
        self._guests.pop(guest.token, None)
        for stream in list(guest.streams):
            stream.close()

    def accept(self, accepted: socket.socket) -> Stream:
        """Return the stream of a socket that has connected; of too many strangers the one that came first goes."""
        if len(self.strangers) >= _MOST_STRANGERS:
            min(self.strangers, key=lambda stranger: stranger.since).close()
        stream = self._make(accepted, time.monotonic())
        self._streams.add(stream)
        self.strangers.add(stream)
        return stream

    def introduce(self, stream: Stream) -> bool:
        """Find a stream's guest by the token it has sent; return whether the guest is known now."""
        token, end, rest = stream.data.partition(b"\n")
        if not end:
            if len(token) > _MAX_TOKEN:
                stream.close()
            return False
        if token == WHO:
            stream.data = b""
            # One question each: it may read no answer, and a job may ask without end.
            stream.read_on(False)
            self._tell(stream)
            return False
        guest = next((guest for own, guest in self._guests.items() if hmac.compare_digest(own, token)), None)
        if guest is None:
            stream.close()
            return False
        self.strangers.discard(stream)
        stream.guest, stream.data = guest, rest
        guest.streams.add(stream)
        return True

    def forget(self, stream: Stream) -> None:
        """Drop a closed stream from the lists."""
        self._streams.discard(stream)
        self.strangers.discard(stream)

    def close_strangers(self, now: float) -> None:
        """Close the streams that have not sent their token in time."""
        for stream in [one for one in self.strangers if now - one.since > _STRANGER_TIME]:
            stream.close()

    def close(self) -> None:
        """Close all streams."""
        for stream in list(self._streams):
            stream.close()

    def close_in_child(self) -> None:
        """Close the forked copies of the streams' descriptors."""
        for stream in self._streams:
            stream.close_in_child()
