"""A second socketpair between the parent and one horse, at which neither sleeps: permits one way, messages the other.

A permit is one byte. It belongs to a job that waits at the horse, and is taken by the process that reads it: by the
horse, which then begins its next waiting job, or by the parent, which takes back all that wait. So a job never begins
that was taken back.
"""

from __future__ import annotations

import contextlib
import socket

#: Bytes that are read at once: more than quiet messages of as many jobs as wait at a horse.
_MOST = 256 * 1024
#: More permits than there ever are at once.
_ALL = 4096
#: Bytes of one quiet message, of which a few wait until the parent looks; what is longer is said aloud.
MAX_QUIET = 8 * 1024


class ParentSide:
    """The parent's hold of both ends; it never blocks."""

    def __init__(self) -> None:
        self._mine, self.theirs = socket.socketpair()
        self._mine.setblocking(False)
        #: Permits were given since the horse was last known to have nothing to do: it may say something quietly.
        self.in_use = False

    def permit(self, count: int) -> None:
        """Give permits for so many jobs. A job whose permit is lost is put back when the horse has none left."""
        self.in_use = True
        with contextlib.suppress(OSError):
            self._mine.send(b"." * count)

    def take_back(self) -> int:
        """Take all permits that the horse has not taken, and return how many they were."""
        try:
            # The flag, since the horse's end is the same to the kernel, and blocks.
            return len(self.theirs.recv(_ALL, socket.MSG_DONTWAIT))
        except OSError:
            return 0

    def read(self) -> bytes:
        """Return what the horse has said quietly, which is all but for one that never stops."""
        try:
            return self._mine.recv(_MOST)
        except OSError:
            return b""

    def close(self) -> None:
        """Close both ends."""
        self._mine.close()
        self.theirs.close()

    def close_mine(self) -> None:
        """Close the parent's end, in the horse."""
        self._mine.close()


class ChildSide:
    """The horse's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def take_permit(self) -> bool:
        """Take the permit of the next waiting job; False: the parent has taken back all that wait."""
        try:
            return bool(self._socket.recv(1, socket.MSG_DONTWAIT))
        except OSError:
            return False

    def say(self, data: bytes) -> None:
        """Send bytes that the parent reads when it looks."""
        self._socket.sendall(data)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
