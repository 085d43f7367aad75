"""What a part of the parent that sends something looks like to the arbiter."""

from __future__ import annotations

from typing import Protocol

from .exchange import Exchange


class Duty(Protocol):
    """Something that is sent when it is due."""

    @property
    def due(self) -> bool:
        """Tell whether there is something to send now."""

    def exchanges(self) -> list[Exchange]:
        """Return what is to be sent; it is not due any longer."""
