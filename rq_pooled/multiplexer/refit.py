"""Makes a lent connection fit for the next stream, so that nothing of the last one is left on it."""

from __future__ import annotations

import secrets

from ..connection.framing import Malformed, ReplyCutter
from ..wire import pack_commands
from .loan import Loan
from .upstream import Upstream

_UNWATCH, _DISCARD = pack_commands([("UNWATCH",)]), pack_commands([("DISCARD",)])


class Refit:
    """Ends what a loan has left on a connection, and waits for the answer."""

    def __init__(self) -> None:
        #: By connection: the bytes that end the refit, and the last bytes that have arrived.
        self._marks: dict[Upstream, tuple[bytes, bytes]] = {}

    def begin(self, upstream: Upstream, loan: Loan) -> None:
        """Send the commands that end the loan's transaction or subscriptions."""
        if not loan.subscribed:
            upstream.send(_DISCARD if loan.in_transaction else _UNWATCH)
            return
        # Messages still arrive until the subscriptions end, so an unguessable word marks the last reply.
        mark = secrets.token_hex(16)
        kinds = [("SUNSUBSCRIBE",)] if loan.sharded else [("UNSUBSCRIBE",), ("PUNSUBSCRIBE",)]
        self._marks[upstream] = (f"${len(mark)}\r\n{mark}\r\n".encode(), b"")
        upstream.send(pack_commands([*kinds, ("ECHO", mark)]))

    def ends_with(self, upstream: Upstream, reply: bytes) -> bool:
        """Take what the server has sent; tell whether the connection is fit now.

        Raises:
            Malformed: the server sent an unexpected reply.
        """
        if upstream in self._marks:
            expected, seen = self._marks[upstream]
            seen = (seen + reply)[-len(expected) :]
            self._marks[upstream] = expected, seen
            if seen != expected:
                return False
            del self._marks[upstream]
            # The cutter may stand inside a message.
            upstream.cutter = ReplyCutter()
        elif reply != b"+OK\r\n":
            raise Malformed(f"UNWATCH was answered with {reply[:40]!r}")
        return True

    def forget(self, upstream: Upstream) -> None:
        """Stop waiting for a connection that is closed."""
        self._marks.pop(upstream, None)
