"""The slots of a worker alone, with real horses and no server: what has arrived counts, and what hangs is ended."""

from __future__ import annotations

import logging
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from keys import named
from rq import Queue

import rq_pooled.parent.slots as slots_module
from rq_pooled.log_lines import WorkerLog
from rq_pooled.parent.slot import Slot, Task
from rq_pooled.parent.slots import Slots
from rq_pooled.process.channel import ChildChannel
from rq_pooled.process.event_loop import Loop
from rq_pooled.store.claim import Claim
from rq_pooled.store.commit import Outcome
from rq_pooled.store.counters import Counters

NONE = (0, 0, b"")


def run_horse(channel: ChildChannel, _token: bytes | None) -> None:
    """Do what the job's id says: "ends" sends an outcome and hangs, "ends and is free" goes on, "says ..." says it; all
    others hang.
    """
    channel.send(("free", False))
    while True:
        _kind, *rest = channel.receive()
        said = rest[0][0] if isinstance(rest[0], tuple) else ""
        if said.startswith("ends"):
            channel.send(("outcome", "finished", NONE, NONE, NONE, False))
        if said.startswith("says next"):
            channel.send(("next", False, 0.001))
        elif said.startswith("says free"):
            channel.send(("free", said.endswith("and leaves")))
        if said.startswith("ends, is free, and asks by "):
            channel.send(("free", False), (said.rpartition(" ")[2], [[b"GET", b"key"]]))
        if said == "asks much":
            channel.send(("relay", [[b"PING"]] * 2))
        if said == "ends and is free":
            channel.send(("free", False))
        else:
            time.sleep(600)


class Stable:
    """Slots, and the outcomes that came out of them."""

    def __init__(self, *names: str) -> None:
        self.loop = Loop()
        self.outcomes: list[Outcome] = []
        self.requests: list[Any] = []
        self.untouched: list[list[Claim]] = []
        self.charged: list[list[Claim]] = []
        nothing = SimpleNamespace(close_in_child=lambda: None)
        parent: Any = SimpleNamespace(
            loop=self.loop,
            settings=SimpleNamespace(kill_grace=0.1, heartbeat_ttl=60.0, max_jobs_per_horse=2),
            counters=Counters(),
            log=WorkerLog(logging.getLogger("rq.worker"), names[0]),
            identity=SimpleNamespace(name=names[0], names=names, default_timeout=Queue.DEFAULT_TIMEOUT),
            command=nothing,
            listen=nothing,
        )
        self.slots = Slots(
            parent,
            tasks=deque(),
            run_horse=run_horse,
            multiplexer=None,
            on_outcome=self.outcomes.append,
            on_request=lambda *asked: self.requests.append(asked),
            on_untouched=self.untouched.append,
            on_begun=self.charged.append,
            on_ran=lambda *_: None,
            ahead=True,
        )
        self.slots.start()
        self.until(lambda: all(slot.ready for slot in self.slots))

    def until(self, condition: Callable[[], Any], timeout: float = 10.0) -> None:
        """Turn the loop until the condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it never came to that"
            self.loop.turn(0.02)

    def give(self, slot: Slot, job_id: str, age: float = 0.0) -> Claim:
        """Hand a job to a slot's horse that was claimed so many seconds ago."""
        claim = Claim(job_id, "execution", "default", named("rq:queue:default"), slot.name, time.time() - age, {})
        self.slots.give(slot, Task("perform", claim))
        return claim

    def give_and_wait(self, slot: Slot, job_id: str) -> Claim:
        """Hand a job over, and wait until its outcome lies in the socket, where nobody has looked yet."""
        claim = self.give(slot, job_id)
        assert slot.horse is not None and select.select([slot.horse.channel], [], [], 10)[0]
        return claim


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stable]]:
    """A function that makes stables whose deadlines are short."""
    # Hypothesis, loaded later, looks for referrers, which a freeze hides.
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr(slots_module, "CLEAN_UP_TIME", 0.2)
    monkeypatch.setattr(slots_module, "SCHEDULE_TIME", 0.2)
    monkeypatch.setattr("rq_pooled.parent.deadlines.DEADLINE_INTERVAL", 0.05)
    made: list[Stable] = []

    def make(*names: str) -> Stable:
        made.append(Stable(*names))
        return made[-1]

    yield make
    for one in made:
        one.slots.close()
        one.loop.close()


def pid_of(slot: Slot) -> int:
    """The process id of the slot's horse, 0 for none."""
    return slot.horse.pid if slot.horse is not None else 0


@pytest.mark.parametrize("said", ["says next", "says free", "says free and leaves"])
def test_code_of_a_job_cannot_send_it_back(make: Callable[..., Stable], said: str) -> None:
    """A horse that says that a job is over, and not how it ended, is killed, and its job fails: it is not run again and
    again.
    """
    stable = make("w", "w-1")
    slot = next(iter(stable.slots))
    before = slot.horse
    claim = stable.give(slot, said)
    stable.until(lambda: slot.horse is not before)
    assert [(task.kind, task.claim) for task in stable.slots.tasks] == [("bury", claim)]
    assert not stable.untouched and not stable.outcomes


def test_a_stale_job_that_was_not_begun_goes_back_charged(make: Callable[..., Stable]) -> None:
    """A horse that leaves since its job is stale costs the job a stall: so putting back has an end."""
    stable = make("w", "w-1")
    slot = next(iter(stable.slots))
    claim = stable.give(slot, "says free and leaves", age=31.0)
    stable.until(lambda: slot.ready)
    assert stable.charged == [[claim]] and not stable.untouched and not stable.slots.tasks


def test_what_has_ended_is_not_put_back_by_a_hard_stop(make: Callable[..., Stable]) -> None:
    """An outcome that lies in the socket when a worker is stopped hard is recorded; only jobs that run are put back."""
    stable = make("w", "w-1")
    ended, running = stable.slots
    stable.give_and_wait(ended, "ends")
    claim = stable.give(running, "hangs")
    assert stable.slots.interrupt() == [claim]
    assert [outcome.claim.job_id for outcome in stable.outcomes] == ["ends"]
    assert running.killed and not ended.killed


def test_an_outcome_that_has_arrived_spares_its_horse(make: Callable[..., Stable]) -> None:
    """A job that is handed on while its outcome lies in the socket costs no horse: the fence refuses that outcome."""
    stable = make("w", "w-1")
    ended, running = stable.slots
    for slot, claim in ((ended, stable.give_and_wait(ended, "ends")), (running, stable.give(running, "hangs"))):
        stable.slots.hand_on(claim)
        assert slot.claim is None
    assert [outcome.claim.job_id for outcome in stable.outcomes] == ["ends"]
    assert running.killed and not ended.killed


def test_a_horse_that_hangs_after_its_outcome_is_replaced(make: Callable[..., Stable]) -> None:
    """What hangs while it cleans up is killed, and its job is not buried; a horse that waits for a job lives on."""
    stable = make("w", "w-1")
    waiting, hanging = stable.slots
    stable.give(waiting, "ends and is free")
    stable.until(lambda: waiting.free)
    before = pid_of(waiting), pid_of(hanging)
    stable.give(hanging, "ends")
    stable.until(lambda: hanging.free and pid_of(hanging) != before[1])
    assert [outcome.claim.job_id for outcome in stable.outcomes] == ["ends and is free", "ends"]
    assert not stable.slots.tasks and waiting.free and pid_of(waiting) == before[0]


def test_a_horse_that_hangs_while_it_moves_scheduled_jobs_is_replaced(make: Callable[..., Stable]) -> None:
    """What rq-scheduler's jobs hold may hang whoever unpickles it: that ends, and is not begun again at once."""
    stable = make("w")
    (slot,) = stable.slots
    before = pid_of(slot)
    stable.slots.give(slot, Task("schedule", None, ("token", 5)))
    stable.until(lambda: slot.free and pid_of(slot) != before)
    assert not stable.slots.tasks and not stable.outcomes


def test_a_horse_that_was_killed_is_given_nothing(make: Callable[..., Stable]) -> None:
    """What a horse still says after it was sent SIGKILL makes it no horse that waits: a job would die with it."""
    stable = make("w")
    (slot,) = stable.slots
    stable.give_and_wait(slot, "ends and is free")
    stable.slots.kill(slot)
    stable.until(lambda: stable.slots.receive(slot) or stable.outcomes)
    assert not slot.free


def test_a_horse_does_not_decide_that_it_stays(make: Callable[..., Stable]) -> None:
    """A horse that was given MAX_JOBS_PER_HORSE jobs is replaced, though it says that it is free for another."""
    stable = make("w", "w-1")
    slot = next(iter(stable.slots))
    first = slot.horse
    for ended in (1, 2):
        assert slot.horse is first
        stable.give(slot, "ends and is free")
        stable.until(lambda: len(stable.outcomes) == ended and slot.ready)  # noqa: B023 - it is awaited in this turn
    assert slot.horse is not first and not slot.worn and slot.jobs == 0


def test_a_job_asks_about_one_thing_at_a_time(make: Callable[..., Stable]) -> None:
    """Many questions in one message would hold the parent up: its horse is killed."""
    stable = make("w")
    slot = next(iter(stable.slots))
    before = slot.horse
    stable.give(slot, "asks much")
    stable.until(lambda: slot.horse is not before and slot.ready)
    assert not stable.requests


@pytest.mark.parametrize("kind", ["read", "relay"])
def test_who_has_no_task_asks_for_nothing(make: Callable[..., Stable], kind: str) -> None:
    """What a job has left behind in its horse is not answered by the server: the horse is killed, and replaced."""
    stable = make("w", "w-1")
    slot = next(iter(stable.slots))
    before = slot.horse
    stable.give(slot, f"ends, is free, and asks by {kind}")
    stable.until(lambda: slot.horse is not before and slot.ready)
    assert not stable.requests and len(stable.outcomes) == 1
