"""When jobs that wait at horses are taken back, tried on processes that only sleep."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from parts import Stable, Timers, claim_of, context_of

from rq_pooled.parent.ahead import WHILE_OTHERS, Ahead
from rq_pooled.parent.events import Events
from rq_pooled.parent.expected import Expected
from rq_pooled.parent.slot import Slot, Task


class Stables(Stable):
    """Slots of which it is noted together with what they have been asked to put back."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.put_back: list[tuple[Slot, ...]] = []
        self.waiting = SimpleNamespace(put_back=lambda *slots: self.put_back.append(slots))


@pytest.fixture
def sleeper() -> Iterator[Any]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield SimpleNamespace(pid=process.pid)
        process.kill()


def test_what_waits_at_several_slots_goes_back_in_one_step(sleeper: Any) -> None:
    """Jobs behind several long ones go back together, since only then their queue has its old order."""
    slots: Any = Stables("w", "w-1", "w-2")
    context = context_of(concurrency=3)
    ahead = Ahead(context, Events(), slots=slots, expected=Expected(), allowed=True)
    for number, slot in enumerate(slots):
        slot.horse, slot.since = sleeper, time.monotonic() + 60
        slots.give(slot, Task("perform", claim_of(f"j{number}")), [claim_of(f"waits{number}")])
    ahead.watch()
    loop: Timers = context.loop
    loop.fire()
    slots[0].since = slots[2].since = time.monotonic() - 2 * WHILE_OTHERS
    loop.fire()
    assert slots.put_back == [(slots[0], slots[2])]
