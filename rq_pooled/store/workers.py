"""Registers workers in RQ's registries when they start, and removes them when they end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..durations import LONGEST
from ..wire import Command, Word
from .keys import STARTING
from .scripts import call


def admit(token: str, keep: bool, life: float) -> Command:
    """Reserve the connections of a starting worker for ``life`` seconds, or give them back."""
    return call("admit", [STARTING], token, int(keep), life)


def register_workers(
    worker_ttl: int,
    again: bool,
    dead: tuple[str, int],
    queues: Sequence[str],
    slots: Iterable[tuple[str, Mapping[str, Word]]],
) -> Command:
    """Register slots, each (worker name, its hash); ``dead`` is (host, pid) of a process whose names are free."""
    words: list[Word] = []
    for name, fields in slots:
        words += [name, 2 * len(fields), *(word for field in fields.items() for word in field)]
    return call("register", (), min(worker_ttl, LONGEST), int(again), *dead, len(queues), *queues, *words)


def unregister_workers(now: str, scheduler: str, queues: Sequence[str], names: Iterable[str]) -> Command:
    """Register the death of these workers and release the scheduler's locks."""
    return call("unregister", (), now, scheduler, len(queues), *queues, *names)
