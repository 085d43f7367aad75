"""Tells the connections of RQ's handlers, which run in a horse, from those of programs and jobs."""

from __future__ import annotations

from typing import Any


def is_recording(connection: Any) -> bool:
    """Tell whether commands become part of a job's outcome, which holds no scripts."""
    return bool(getattr(connection, "recording", False))


def is_of_handlers(connection: Any) -> bool:
    """Tell whether RQ's handlers or its maintenance use a connection."""
    return is_recording(connection) or getattr(connection, "relay", None) is not None
