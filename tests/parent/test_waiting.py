"""Jobs that wait at a real horse, without a server: whatever happens to it, what has not begun is known exactly."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from keys import named
from rq import Queue

from rq_pooled.log_lines import WorkerLog
from rq_pooled.parent.commands import Commands
from rq_pooled.parent.slot import Slot, Task
from rq_pooled.parent.slots import Slots
from rq_pooled.process.channel import ChildChannel
from rq_pooled.process.event_loop import Loop
from rq_pooled.store.claim import Claim
from rq_pooled.store.commit import Outcome
from rq_pooled.store.counters import Counters
from rq_pooled.store.keys import commands_channel

NONE = (0, 0, b"")
OUTCOME = ("outcome", "finished", NONE, NONE, NONE, False)


def run_horse(channel: ChildChannel, _token: bytes | None) -> None:
    """Do what the ids of jobs say, as a horse does.

    "hangs" never ends; "dies after" ends its process after its outcome, before it takes the next permit; "steals" takes
    all permits; "asks" wants an answer; "leaves" is the last job of its process; what ends in "naps" takes a moment;
    each other one ends at once.
    """
    channel.send(("free", False))
    while True:
        _kind, *claims = channel.receive_task()
        for at, claim in enumerate(claims):
            said, last = claim[0], at == len(claims) - 1
            if said == "hangs":
                time.sleep(600)
            if said.endswith("naps"):
                time.sleep(1e-5)
            if said == "steals":
                while channel.take_permit():
                    pass
            if last or said == "leaves":
                channel.send(OUTCOME, ("free", said == "leaves", 0.001))
                if said == "leaves":
                    return
                break
            if said == "asks":
                channel.send(OUTCOME, ("next", True, 0.001))
                assert channel.receive() == ("begin",)
            else:
                channel.send_quietly(OUTCOME, ("next", False, 0.001))
            if said == "dies after":
                os._exit(1)
            if not channel.take_permit():
                channel.send(("free", False))
                break


class Stable:
    """Slots, and what came out of them."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.outcomes: list[Outcome] = []
        self.untouched: list[Claim] = []
        self.charged: list[Claim] = []
        self.tasks: deque[Task] = deque()
        self.counters = Counters()
        nothing = SimpleNamespace(close_in_child=lambda: None)
        parent: Any = SimpleNamespace(
            loop=self.loop,
            settings=SimpleNamespace(kill_grace=0.1, heartbeat_ttl=60.0, max_jobs_per_horse=1000),
            counters=self.counters,
            log=WorkerLog(logging.getLogger("rq.worker"), "w"),
            identity=SimpleNamespace(name="w", names=["w"], default_timeout=Queue.DEFAULT_TIMEOUT),
            command=nothing,
            listen=nothing,
        )
        self.slots = Slots(
            parent,
            tasks=self.tasks,
            run_horse=run_horse,
            multiplexer=None,
            on_outcome=self.outcomes.append,
            on_request=lambda *_: None,
            on_untouched=self.untouched.extend,
            on_begun=self.charged.extend,
            on_ran=lambda *_: None,
            ahead=True,
        )
        self.commands = Commands(
            parent, slots=self.slots, stop=lambda: None, make_sentry=lambda _work: None, hold_changed=lambda _held: None
        )
        self.slots.start()
        self.slot: Slot = next(iter(self.slots))
        self.until(lambda: self.slot.ready)

    def until(self, condition: Callable[[], Any]) -> None:
        """Turn the loop until the condition holds."""
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it never came to that"
            self.loop.turn(0.02)

    def give(self, *job_ids: str) -> list[Claim]:
        """Hand jobs to the horse."""
        claims = [Claim(one, one, "default", named("rq:queue:default"), "w", time.time(), {}) for one in job_ids]
        self.slots.give(self.slot, Task("perform", claims[0]), claims[1:])
        return claims

    def receive_until(self, count: int) -> None:
        """Read what the horse says until so many outcomes are there."""
        deadline = time.monotonic() + 10
        while len(self.outcomes) < count:
            assert time.monotonic() < deadline
            self.slots.receive(self.slot)

    def end(self) -> None:
        """Kill the horse, and wait until its end has been dealt with."""
        before = self.slot.horse
        self.slots.kill(self.slot)
        self.until(lambda: self.slot.horse is not before)

    def recorded(self) -> list[str]:
        """The jobs that have outcomes."""
        return [outcome.claim.job_id for outcome in self.outcomes]


@pytest.fixture
def stable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stable]:
    # Hypothesis, loaded later, looks for referrers, which a freeze hides.
    monkeypatch.setattr("gc.freeze", lambda: None)
    made = Stable()
    yield made
    made.slots.close()
    made.loop.close()


def ids(claims: Sequence[Claim]) -> list[str]:
    """Their jobs."""
    return [claim.job_id for claim in claims]


def test_all_that_wait_run_one_after_the_other(stable: Stable) -> None:
    """Jobs given together end in their order, and their horse is free once."""
    stable.give("a", "asks", "b", "c")
    assert ids(stable.slots.claims()) == ["a", "asks", "b", "c"]
    stable.until(lambda: stable.slot.ready)
    assert stable.recorded() == ["a", "asks", "b", "c"] and not stable.slots.claims() and not stable.untouched
    stable.give("d", "e")
    stable.until(lambda: stable.slot.ready)
    assert stable.recorded()[4:] == ["d", "e"]


def test_what_waits_is_taken_back(stable: Stable) -> None:
    """While a job hangs all behind it can be taken back, in their order; its own end is its own."""
    stable.give("a", "hangs", "b", "c")
    stable.receive_until(1)
    assert ids(stable.slots.waiting.take_back(stable.slot)) == ["b", "c"]
    assert stable.slot.claim is not None and stable.slot.claim.job_id == "hangs" and not stable.slot.waiting
    stable.end()
    assert [task.kind for task in stable.tasks] == ["bury"] and not stable.untouched


def test_nothing_is_both_run_and_taken_back(stable: Stable) -> None:
    """Taken back at any moment, each job either ends here or is returned, and the horse is free for others after it."""
    returned: list[str] = []
    given: list[str] = []
    for turn in range(200):
        names = [f"{turn}-{number}-naps" for number in range(16)]
        given += names
        stable.give(*names)
        deadline = time.monotonic() + turn * 5e-6
        while time.monotonic() < deadline:
            pass
        returned += ids(stable.slots.waiting.take_back(stable.slot))
        stable.until(lambda: stable.slot.ready)
    assert sorted(stable.recorded() + returned) == sorted(given)
    assert returned and len(returned) < len(given) and not stable.untouched


@pytest.mark.parametrize(
    ("jobs", "ended", "buried", "untouched"),
    [
        (["hangs", "b", "c"], [], ["hangs"], ["b", "c"]),
        (["a", "hangs", "c"], ["a"], ["hangs"], ["c"]),
        (["a", "b", "hangs"], ["a", "b"], ["hangs"], []),
        (["dies after", "b", "c"], ["dies after"], [], ["b", "c"]),
        (["a", "dies after", "c"], ["a", "dies after"], [], ["c"]),
    ],
)
def test_the_death_of_a_horse_concerns_one_job(
    stable: Stable, jobs: list[str], ended: list[str], buried: list[str], untouched: list[str]
) -> None:
    """A horse that dies, at any moment, fails the job that it ran; what ended is recorded, what waited goes back."""
    before = stable.slot.horse
    stable.give(*jobs)
    if "hangs" in jobs:
        stable.receive_until(len(ended))
        stable.end()
    stable.until(lambda: stable.slot.horse is not before)
    assert stable.recorded() == ended and ids(stable.untouched) == untouched
    assert [task.claim.job_id for task in stable.tasks if task.claim] == buried
    assert not stable.slot.waiting and stable.slot.task is None


def test_a_horse_that_leaves_begins_no_other_job(stable: Stable) -> None:
    """What waits at a horse that ends after its job goes back, and its slot gets another horse."""
    before = stable.slot.horse
    stable.give("a", "leaves", "b", "c")
    stable.until(lambda: stable.slot.horse is not before and stable.slot.ready)
    assert stable.recorded() == ["a", "leaves"] and ids(stable.untouched) == ["b", "c"] and not stable.tasks


def test_permits_that_a_job_takes_are_not_lost_jobs(stable: Stable) -> None:
    """Where code of a job has taken the permits, those that waited go back when the horse is free; the first of them
    is charged, since it may have begun.
    """
    stable.give("steals", "b", "c")
    stable.until(lambda: stable.slot.ready)
    assert stable.recorded() == ["steals"] and ids(stable.untouched) == ["c"] and ids(stable.charged) == ["b"]
    stable.give("d", "e")
    stable.until(lambda: stable.slot.ready)
    assert stable.counters.claims == len(stable.recorded()) == 3


def test_a_hard_stop_takes_what_runs_and_returns_what_waits(stable: Stable) -> None:
    """Of a slot that is interrupted only the job that runs is charged; those that wait go back as they came."""
    stable.give("a", "hangs", "b")
    stable.receive_until(1)
    assert ids(stable.slots.interrupt()) == ["hangs"] and ids(stable.untouched) == ["b"]


def test_a_job_that_waits_can_be_stopped(stable: Stable) -> None:
    """stop-job of a waiting job fails it as stopped, and costs neither the running job nor those beside it anything."""
    stable.give("hangs", "b", "c")
    stable.commands.obey(commands_channel("w"), {"command": "stop-job", "job_id": "b"})
    assert [(task.kind, task.claim and task.claim.job_id, task.arguments[3]) for task in stable.tasks] == [
        ("bury", "b", True)
    ]
    assert ids(stable.untouched) == ["c"] and not stable.slot.killed
    stable.commands.obey(commands_channel("w"), {"command": "stop-job", "job_id": "hangs"})
    assert stable.slot.killed and stable.slot.stopped


def test_a_waiting_job_that_was_handed_on_is_dropped(stable: Stable) -> None:
    """Of a waiting job that another worker has been given nothing runs here, and the job before it goes on."""
    claims = stable.give("hangs", "b", "c")
    stable.slots.hand_on(claims[1])
    assert ids(stable.untouched) == ["b", "c"] and not stable.slot.killed
    assert ids(stable.slots.claims()) == ["hangs"]
