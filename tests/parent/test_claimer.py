"""The claimer alone: when a claim may be sent, and what becomes of its reply."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from parts import Stable, claim_of, claimed, context_of, name_of, outcome_of
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, OutOfMemoryError

from rq_pooled.errors import USAGE
from rq_pooled.parent.ahead import Ahead
from rq_pooled.parent.claimer import Claimer
from rq_pooled.parent.committer import Committer
from rq_pooled.parent.events import Events
from rq_pooled.parent.expected import Expected
from rq_pooled.parent.recovery import Recovery
from rq_pooled.parent.refusals import Refusals
from rq_pooled.parent.wakeup import Wakeup


class Parts:
    """A claimer, and what it needs."""

    def __init__(self, *names: str, max_jobs: int | None = None, burst: bool = False, **settings: Any) -> None:
        self.context = context_of(concurrency=len(names), **settings)
        self.events, self.slots = Events(), Stable(*names)
        refusals = Refusals(self.context, self.events, burst=burst)
        self.committer = Committer(self.context, self.events, tasks=deque(), burst=False)
        self.wakeup = Wakeup(self.context, self.events, refusals=refusals, slots=self.slots, burst=burst)  # type: ignore[arg-type]
        slots: Any = self.slots
        held = {"slots": slots, "committer": self.committer, "wakeup": self.wakeup}
        self.recovery = Recovery(self.context, self.events, **held)
        self.expected = Expected()
        self.ahead = Ahead(self.context, self.events, slots=slots, expected=self.expected, allowed=max_jobs is None)
        others = {"recovery": self.recovery, "refusals": refusals, "ahead": self.ahead}
        self.claimer = Claimer(self.context, self.events, **held, **others, max_jobs=max_jobs)

    def claim(self, *replies: Any) -> None:
        """Send a claim; where a reply is given, it is answered."""
        assert self.claimer.due
        self.context.command.submit(*self.claimer.exchanges())
        if replies:
            self.context.command.answer(*replies)


def test_a_slot_is_claimed_for_once_at_a_time() -> None:
    """While a claim is under way its slots are reserved; when it is lost they are free, and the server is asked what
    it noted.
    """
    parts = Parts("w", "w-1")
    parts.claim()
    assert [slot.reserved for slot in parts.slots] == [True, True] and not parts.claimer.due
    parts.context.command.lose(RedisConnectionError("cut"))
    assert not any(slot.reserved for slot in parts.slots) and parts.recovery.due


def test_each_claimed_job_goes_to_the_slot_it_was_claimed_for() -> None:
    """Jobs are handed out in the order of the slots; less than was asked for means that the queues are empty."""
    parts = Parts("w", "w-1", "w-2")
    dispatched: list[None] = []
    parts.events.job_dispatched.append(lambda: dispatched.append(None))
    parts.claim(claimed("a", "b"))
    assert [slot.claim and slot.claim.job_id for slot in parts.slots] == ["a", "b", None]
    assert len(dispatched) == parts.claimer.dispatched == 2
    assert not parts.claimer.due and parts.wakeup.due


def knows(parts: Parts, seconds: float, description: bytes = b"f(1)") -> None:
    """Have the worker see a job that took so long."""
    parts.expected.add(claim_of("z")._replace(raw={b"description": description}), seconds)


def asked(parts: Parts) -> int:
    """Send a claim, and return how many jobs it asks for."""
    assert parts.claimer.due
    (exchange,) = parts.claimer.exchanges()
    parts.context.command.submit(exchange)
    words = list(exchange.commands[0])
    return int(words[words.index("w") - 5])


def test_several_jobs_are_asked_for_while_they_are_short() -> None:
    """A slot is given up to 16 jobs that take 5 ms together, and one where jobs are longer, or nothing is known."""
    for seconds, most in ((None, 2), (0.0001, 32), (0.001, 10), (0.002, 4), (0.004, 2), (1.0, 2)):
        parts = Parts("w", "w-1")
        if seconds is not None:
            knows(parts, seconds)
        assert asked(parts) == most
    for parts in (
        Parts("w"),
        Parts("w", "w-1", claim_ahead=0),
        Parts("w", "w-1", max_jobs=50),
        Parts("w", "w-1", max_jobs_per_horse=1),
    ):
        knows(parts, 0.0001)
        assert asked(parts) == len(parts.slots)


def test_what_is_lost_is_looked_for_singly() -> None:
    """After a claim that was lost with what it took, none is claimed ahead until the one to blame is known."""
    parts = Parts("w", "w-1")
    knows(parts, 0.0001)
    parts.recovery.singly = 2
    assert asked(parts) == 1


def of_function(parts: Parts, jobs: dict[str, bytes]) -> list[Any]:
    """The reply to a claim of jobs that call these."""
    return claimed(*jobs, hashes=[(b"description", function + b"()") for function in jobs.values()])


def test_a_long_job_comes_last_and_only_one_per_slot() -> None:
    """Of what was claimed ahead a slot is given 5 ms of work and at most one long job behind it; the rest goes back."""
    parts = Parts("w", "w-1")
    knows(parts, 1.0, b"long()")
    for _ in range(200):
        knows(parts, 0.0001, b"short()")
    knows(parts, 0.003, b"middling()")
    kinds = {"a": "long", "b": "short", "c": "short", "d": "long", "e": "short", "f": "middling", "g": "short"}
    kinds |= {"h": "middling", "i": "short"}
    parts.claim(of_function(parts, {job_id: kind.encode() for job_id, kind in kinds.items()}))
    first, second = parts.slots
    assert [first.claim and first.claim.job_id, *(claim.job_id for claim in first.waiting)] == list("cegia")
    assert [second.claim and second.claim.job_id, *(claim.job_id for claim in second.waiting)] == list("bfd")
    assert parts.context.command.sent[-1] == "push_back"


def test_no_job_waits_behind_a_long_one() -> None:
    """Of two long jobs that were claimed for one slot the first one runs, and the second one goes back."""
    parts = Parts("w", "w-1")
    knows(parts, 1.0, b"long()")
    for _ in range(200):
        knows(parts, 0.0001, b"short()")
    parts.claim(of_function(parts, {"a": b"long", "b": b"short", "c": b"long", "d": b"short", "e": b"long"}))
    assert [slot.claim and slot.claim.job_id for slot in parts.slots] == ["a", "b"]
    assert [claim.job_id for slot in parts.slots for claim in slot.waiting] == ["d"]


def test_what_waits_goes_back_when_a_shutdown_begins() -> None:
    """A shutdown, or a suspension, takes back what waits in all slots."""
    for happens in (lambda events: events.shutdown_began(), lambda events: events.suspension_changed(True)):
        parts = Parts("w", "w-1")
        knows(parts, 0.0001)
        parts.claim(claimed("a", "b", "c"))
        assert [claim.job_id for claim in parts.slots[0].waiting] == ["c"]
        taken: list[Any] = []
        parts.slots.waiting = SimpleNamespace(put_back=taken.append)  # type: ignore[attr-defined]
        happens(parts.events)
        assert taken == [parts.slots[0]]


def test_what_is_claimed_when_a_shutdown_begins_goes_back() -> None:
    """A claim that is answered after a shutdown began starts nothing, and its jobs are put back."""
    parts = Parts("w")
    parts.claim()
    parts.events.shutdown_began()
    parts.context.command.answer(claimed("a"))
    assert parts.slots[0].task is None and parts.context.command.sent == ["claim", "push_back"]
    assert not parts.claimer.due


def test_no_more_is_claimed_than_may_run() -> None:
    """With ``max_jobs`` the jobs that run, and those that a claim may bring, are counted before the next claim."""
    parts = Parts("w", "w-1", "w-2", max_jobs=2)
    parts.claim()
    assert [slot.reserved for slot in parts.slots] == [True, True, False] and not parts.claimer.due
    parts.context.command.answer(claimed("a", "b"))
    assert parts.claimer.exhausted and not parts.claimer.due


@pytest.mark.parametrize(("names", "asks"), [("w", 1), ("wx", 0)])
def test_one_job_at_a_time_is_recorded_before_the_next_is_claimed(names: str, asks: int) -> None:
    """With one slot a claim behind a commit takes nothing unless that ends the job: what a job enqueues at its end
    stands before the next claim. The claim that got nothing leaves all as it was, and the next one asks no more.
    """
    parts = Parts(*names)
    parts.committer.add(outcome_of(claim_of("a")))
    assert not parts.claimer.due, "outcomes that did not fit into a commit are recorded first"
    parts.context.command.submit(parts.committer.commit())
    assert parts.claimer.due
    (exchange,) = parts.claimer.exchanges()
    assert exchange.commands[0][-1 - len(names)] == asks
    parts.context.command.answer([b"ok"])
    exchange.on_replies([None])
    assert not any(slot.reserved for slot in parts.slots) and parts.wakeup.awake
    assert parts.claimer.due
    assert parts.claimer.exchanges()[0].commands[0][-1 - len(names)] == 0


@pytest.mark.parametrize("burst", [False, True])
def test_a_right_that_was_never_there_ends_the_worker(burst: bool) -> None:
    """A claim that is forbidden ends the worker, unless one was answered before: then it is tried again, later and
    later.
    """
    parts = Parts("w", burst=burst)
    ends: list[int] = []
    parts.events.work_refused.append(lambda _reason, code: ends.append(code))
    if not burst:
        parts.claim(OutOfMemoryError("OOM"))
        assert not parts.claimer.due and parts.context.loop.fire() == 1.0 and not ends
        parts.claim(claimed())
        parts.wakeup.wake()
        parts.claim(NoPermissionError("NOPERM"))
        delays = [parts.context.loop.fire()]
        parts.claim(NoPermissionError("NOPERM"))
        assert [*delays, parts.context.loop.fire()] == [1.0, 2.0] and not ends
        parts = Parts("w")
        parts.events.work_refused.append(lambda _reason, code: ends.append(code))
    parts.claim(NoPermissionError("NOPERM"))
    assert ends == [USAGE] and not parts.context.loop.later


def test_claims_whose_reply_was_lost_are_put_back_and_claimed_singly() -> None:
    """What the server noted and nothing here holds goes back; the next claims take one job each, to find which is to
    blame.
    """
    parts = Parts("w", "w-1", "w-2")
    parts.slots[2].task, parts.slots[2].ready = None, False
    parts.committer.add(outcome_of(claim_of("known")))
    (exchange,) = parts.recovery.exchanges()
    note = b"7 17 defaultrq:queue:defaultw"
    exchange.on_replies([[b"known:e", note, b"a:1", note, b"b:2", note]])
    (back,) = parts.context.command.waiting
    assert name_of(back.commands[0]) == "push_back" and {"a", "b"} < set(map(str, back.commands[0]))
    assert "known" not in map(str, back.commands[0]) and parts.recovery.singly == 2
    parts.committer.commit()
    for reserved in ([True, False], [True, False], [True, True]):
        parts.claim()
        assert [slot.reserved for slot in parts.slots][:2] == reserved
        parts.context.command.waiting.pop().on_replies([claimed()])
        parts.wakeup.wake()


def test_nothing_is_claimed_while_outcomes_wait() -> None:
    """An outcome that did not fit into a commit is sent before its slot gets a job, whose notes it would clear."""
    parts = Parts("w")
    assert parts.claimer.due
    parts.committer.add(outcome_of(claim_of("one more than fits")))
    assert not parts.claimer.due
    parts.committer.commit().on_replies([[b"ok"]])
    assert parts.claimer.due


def test_jobs_whose_claims_were_lost_are_counted_within_bounds() -> None:
    """A worker whose claims are lost again and again, of other jobs each time, does not remember them all."""
    parts = Parts("w")
    for number in range(3000):
        parts.recovery._on_unanswered([claim_of(f"job-{number}")])
    assert parts.context.command.sent == ["push_back"] * 3000
    assert len(parts.recovery._unanswered) <= 1001


def test_notes_that_are_no_claims_are_dropped() -> None:
    """A note that no claim has written is removed, and what is noted beside it goes back; a second look finds
    nothing.
    """
    parts = Parts("w")
    (exchange,) = parts.recovery.exchanges()
    exchange.on_replies([[b"strange", b"no note", b"a:1", b"7 17 defaultrq:queue:defaultw"]])
    assert parts.context.command.sent == ["HDEL", "push_back"]
    assert parts.context.command.waiting[0].commands[0][2:] == (b"strange",)
