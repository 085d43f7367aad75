"""The functions of a reader's application, which pages enqueue."""

from __future__ import annotations

from typing import Any


def work(*arguments: Any, **options: Any) -> None:
    """Do nothing."""


checksum = send = pay = recount = poll = nightly = load = charge = cleanup = send_invoice = report = work


def refuse() -> None:
    """Fail as a call of a service that is away."""
    raise ConnectionError("connection refused")
