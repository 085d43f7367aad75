"""One bit that a parent shows to its horses, in memory they share: whether new connections may be opened."""

from __future__ import annotations

import mmap
from collections.abc import Callable


def _nothing() -> None:
    """Look at the usual interval."""


class Brake:
    """Made before the fork; set by the parent, read by its horses. Reading it costs no system call."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 1)
        #: In the parent: the server is fuller than it should be, and what is idle is better closed.
        self.tight = False
        #: In the parent: has the guard look soon, since there is one connection more.
        self.on_opening: Callable[[], None] = _nothing

    @property
    def engaged(self) -> bool:
        """Tell whether nothing new is to be opened."""
        return self._page[0] != 0

    @engaged.setter
    def engaged(self, engaged: bool) -> None:
        self._page[0] = int(engaged)
