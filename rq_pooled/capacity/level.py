"""How full a server is: from two numbers to ``ok``, ``warn`` or ``stop``, and back with hysteresis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config.settings import Settings

#: The guard leaves ``stop`` half-way between the two thresholds, and ``warn`` at this share of GUARD_WARN.
_LEAVE_WARN = 0.95


@dataclass(frozen=True)
class Level:
    """``ok``, ``warn``, ``stop``, or ``unknown`` where the server does not say how full it is."""

    connected: int | None
    maxclients: int | None
    name: str

    @property
    def share(self) -> float | None:
        """The share of the server's connections in use."""
        if self.connected is None or not self.maxclients:
            return None
        return self.connected / self.maxclients

    def __str__(self) -> str:
        if self.share is None:
            return "an unknown share of the server's connections is in use"
        return f"{self.connected} of {self.maxclients} connections of the server are in use ({self.share:.0%})"


def level_of(settings: Settings, connected: int | None, maxclients: int | None, before: str = "ok") -> Level:
    """Return the level at so many connections, by GUARD_WARN and GUARD_STOP.

    Args:
        before: the last level: it is left only when the share is clearly below what led to it.
    """
    if connected is None or not maxclients:
        return Level(connected, maxclients, "unknown")
    warn, stop = settings.guard_warn, settings.guard_stop
    if before == "stop":
        stop = (warn + stop) / 2
    if before in ("warn", "stop"):
        warn *= _LEAVE_WARN
    share = connected / maxclients
    return Level(connected, maxclients, "stop" if share >= stop else "warn" if share >= warn else "ok")


def ceiling(settings: Settings, maxclients: int) -> int:
    """Return how many clients the server may have before the guard says ``stop``."""
    return int(settings.guard_stop * maxclients)


#: Asks for the limit where INFO does not tell it; its reply is for ``read_limit``.
ASK_LIMIT = ("CONFIG", "GET", "maxclients")


def read_limit(reply: Any) -> int | None:
    """Return maxclients of the raw reply to ``ASK_LIMIT``; None where it is refused."""
    told = isinstance(reply, list) and len(reply) == 2 and reply[1].isdigit()
    return int(reply[1]) if told else None


def info_fields(reply: bytes | str) -> dict[str, str]:
    """Return the fields of the raw reply to INFO."""
    lines = (reply.decode(errors="replace") if isinstance(reply, bytes) else reply).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def read_info(text: Any) -> tuple[int | None, int | None]:
    """Return (connected clients, maxclients) of the raw reply to INFO clients; None for what it does not tell."""
    if not isinstance(text, (bytes, str)):
        return None, None
    found = info_fields(text)
    numbers = [found.get(name, "") for name in ("connected_clients", "maxclients")]
    connected, maxclients = (int(number) if number.isdigit() else None for number in numbers)
    return connected, maxclients or None
