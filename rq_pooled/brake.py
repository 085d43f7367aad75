"""One bit that a parent shows to its horses, in memory they share: whether new connections may be opened."""

from __future__ import annotations

import mmap


class Brake:
    """Made before the fork; set by the parent, read by its horses. Reading it costs no system call."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 1)

    @property
    def engaged(self) -> bool:
        """Tell whether nothing new is to be opened."""
        return self._page[0] != 0

    @engaged.setter
    def engaged(self, engaged: bool) -> None:
        self._page[0] = int(engaged)
