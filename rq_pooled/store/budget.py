"""Reserves connections of a budget, see capacity/budget.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..wire import Command
from .scripts import call


def reserve(
    keys: Sequence[str],
    token: str,
    number: int,
    wanted: int,
    least: int,
    budget: int,
    term: float,
    wish: float,
    gone: Iterable[str],
) -> Command:
    """Reserve ``wanted`` connections of a budget, or at least ``least``; ``gone`` are tokens of ended processes."""
    return call("budget", keys, token, number, wanted, least, budget, term, wish, *gone)
