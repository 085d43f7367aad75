"""The heartbeat alone: what it renews, and what its reply says of this worker and of others."""

from __future__ import annotations

import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from parts import Stable, claim_of, context_of, outcome_of
from redis.exceptions import ResponseError

from rq_pooled.parent import complaint
from rq_pooled.parent import heartbeat as module
from rq_pooled.parent.committer import Committer
from rq_pooled.parent.events import Events
from rq_pooled.parent.heartbeat import Heartbeat
from rq_pooled.parent.promoter import Promoter
from rq_pooled.parent.slot import Task

TTL = 90.0


class Parts:
    """A worker with two slots, whose first runs the job ``a``; the outcome of ``b`` waits to be recorded."""

    def __init__(self, **options: Any) -> None:
        self.context = context_of(heartbeat_ttl=TTL, reconnect_cap=3.0)
        for name, value in options.items():
            object.__setattr__(self.context, name, value)
        self.events, self.slots = Events(), Stable("w", "w-1")
        self.slots.give(self.slots[0], Task("perform", claim_of("a")))
        committer = Committer(self.context, self.events, tasks=deque(), burst=False)
        committer.add(outcome_of(claim_of("b", "w-1")))
        slots: Any = self.slots
        self.heartbeat = Heartbeat(self.context, self.events, slots=slots, committer=committer, multiplexer=None)

    def beat(self, *reply: Any, more: tuple[Any, ...] = ()) -> Any:
        """Send a heartbeat, and answer it; return its command."""
        self.heartbeat.beat()
        (exchange,) = self.heartbeat.exchanges()
        assert not self.heartbeat.due
        exchange.on_replies([list(reply), None, *more])
        return exchange.commands[0]


def test_what_runs_and_what_waits_is_renewed() -> None:
    """Claims whose jobs run and claims whose outcomes wait are renewed alike, and idle slots show their state."""
    parts = Parts()
    words = [str(word) for word in parts.beat([], [], 2, 0)]
    assert [word for word in words if word in ("a", "b", "w", "w-1", "idle")] == ["w", "w-1", "idle", "a", "b"]
    parts.events.suspension_changed(True)
    assert parts.heartbeat.due and "suspended" in parts.beat([], [], 2, 0)


def test_a_job_that_was_handed_on_costs_its_horse() -> None:
    """A claim that others have got is ended here; one whose outcome waits is left to the commit."""
    parts = Parts()
    parts.beat([], [1, 2], 2, 0)
    assert parts.slots.done == [("hand_on", claim_of("a"))] and parts.context.counters.lost_claims == 1


def test_the_server_is_asked_about_claims_that_are_unknown_here() -> None:
    """More claims noted by the server than held here means that the reply to a claim was lost."""
    parts = Parts()
    unknown: list[None] = []
    parts.events.claims_unknown.append(lambda: unknown.append(None))
    parts.beat([], [], 2, 0)
    assert not unknown
    parts.beat([], [], 3, 0)
    assert unknown


def test_what_the_server_has_forgotten_is_registered_again() -> None:
    """After a flush exactly the slots that are gone are registered again, each in the state that it has."""
    parts = Parts()
    parts.beat([b"w"], [], 2, 0)
    ((again,),) = [exchange.commands for exchange in parts.context.command.waiting]
    assert parts.context.command.sent == ["register"] and "w" in again and "w-1" not in again and "busy" in again


def test_others_are_judged_only_while_nothing_kept_them_from_renewing(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the start, an outage or a pause a whole lease has to pass before a lease that is over means a dead
    worker.
    """
    clock = [time.monotonic()]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    parts = Parts()
    answered: list[None] = []
    parts.events.heartbeat_answered.append(lambda: answered.append(None))

    def beat(after: float, server: float) -> float | None:
        clock[0] += after
        parts.beat([], [], 2, server * 1000)
        return parts.heartbeat.trusted_until()

    assert parts.heartbeat.trusted_until() is None
    assert [beat(30, 1000 + 30 * number) for number in range(4)] == [None] * 4
    assert beat(30, 1120) == 1120 + parts.context.settings.socket_timeout
    # The server's clock has moved on by more than half a lease between two answers.
    assert beat(30, 1120 + TTL / 2 + 1) is None
    assert len(answered) == 6
    clock[0] += 1000
    assert parts.heartbeat.settled() and parts.heartbeat.trusted_until() is None, "the last answer is too old"
    parts.context.command.connected = False
    assert not parts.heartbeat.settled()


def test_outages_in_a_row_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short outages within the life of a lease keep a worker from judging as a long one does: others may have come
    back only after the last; one that is long over does not.
    """
    clock = [time.monotonic()]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    parts = Parts()
    server = [1000.0]

    def beat(after: float, back: bool = False) -> float | None:
        clock[0] += after
        server[0] += after
        if back:
            parts.events.server_back()
        parts.beat([], [], 2, server[0] * 1000)
        return parts.heartbeat.trusted_until()

    part = TTL / 3
    while beat(part / 2) is None:
        pass
    assert beat(part, back=True) is not None, "one alone is shorter than half a lease"
    assert beat(part / 2) is not None and beat(part, back=True) is None
    while beat(part / 2) is None:
        pass
    for _ in range(8):
        beat(part / 2)
    assert beat(part, back=True) is not None


def test_without_its_place_in_the_budget_a_worker_has_no_connection() -> None:
    """A lease of the budget that was taken meanwhile closes the connections, and the reply is not acted on."""
    lease = SimpleNamespace(accept=lambda reply: reply == 1, command=lambda _places: ("EVALSHA", "lease", 0))
    parts = Parts(lease=lease)
    parts.beat([], [1], 2, 0, more=(1,))
    assert parts.context.command.connected and parts.slots.done
    parts.slots.done.clear()
    parts.beat([], [1], 2, 0, more=(0,))
    assert not parts.context.command.connected and not parts.slots.done


class Wakeful:
    """A wake-up of a worker that does not sleep."""

    dozing = False

    def glance(self) -> Any:
        return (), [], None


def test_what_is_refused_again_and_again_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A heartbeat and a promotion name each reason once, again after a while, and again after a reply without one."""
    clock = [100.0]
    monkeypatch.setattr(complaint, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    parts = Parts()
    promoter = Promoter(parts.context, wakeup=Wakeful())  # type: ignore[arg-type]

    def refuse(*reasons: str) -> list[str]:
        caplog.clear()
        for reason in reasons:
            for duty in (parts.heartbeat, promoter):
                (exchange,) = duty.exchanges()
                exchange.on_replies([ResponseError(reason), None])
        return caplog.messages

    first = ["Worker w: heartbeat refused: one", "Worker w: cannot enqueue scheduled jobs: one"]
    assert refuse("one", "one") == first
    assert refuse("one") == [] and len(refuse("two", "two", "one", "one")) == 4
    clock[0] += complaint.SAY_AGAIN
    assert refuse("one", "one") == first
    parts.beat([], [], 2, 0)
    (exchange,) = promoter.exchanges()
    exchange.on_replies([[0, 0, 0, 5, 0]])
    assert refuse("one", "one") == first
