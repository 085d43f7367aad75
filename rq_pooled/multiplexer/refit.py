"""A connection that was lent is made fit for the next stream: nothing of the last one is left on it."""

from __future__ import annotations

import secrets

from ..wire import pack_commands
from .framing import Malformed, ReplyCutter
from .loan import Loan
from .upstream import Upstream

_UNWATCH, _DISCARD = pack_commands([("UNWATCH",)]), pack_commands([("DISCARD",)])


class Refit:
    """Ends what a loan has left on a connection, and waits for the answer."""

    def __init__(self) -> None:
        #: What ends with the bytes that are awaited, and the last that has come.
        self._marks: dict[Upstream, tuple[bytes, bytes]] = {}

    def begin(self, upstream: Upstream, loan: Loan) -> None:
        """Send what ends it."""
        if not loan.subscribed:
            upstream.send(_DISCARD if loan.in_transaction else _UNWATCH)
            return
        # What is published until the subscriptions end comes, too: a word that nothing else contains is the last.
        mark = secrets.token_hex(16)
        kinds = [("SUNSUBSCRIBE",)] if loan.sharded else [("UNSUBSCRIBE",), ("PUNSUBSCRIBE",)]
        self._marks[upstream] = (f"${len(mark)}\r\n{mark}\r\n".encode(), b"")
        upstream.send(pack_commands([*kinds, ("ECHO", mark)]))

    def ends_with(self, upstream: Upstream, reply: bytes) -> bool:
        """Take what has come; tell whether the connection is fit now.

        Raises:
            Malformed: that is no answer.
        """
        if upstream in self._marks:
            expected, seen = self._marks[upstream]
            seen = (seen + reply)[-len(expected) :]
            self._marks[upstream] = expected, seen
            if seen != expected:
                return False
            del self._marks[upstream]
            # A message may have been cut off.
            upstream.cutter = ReplyCutter()
        elif reply != b"+OK\r\n":
            raise Malformed(f"UNWATCH was answered with {reply[:40]!r}")
        return True

    def forget(self, upstream: Upstream) -> None:
        """Wait no longer: it is closed."""
        self._marks.pop(upstream, None)
