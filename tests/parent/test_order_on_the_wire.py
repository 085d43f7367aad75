"""The arbiter's list of duties: what is due goes out in one write, in one order."""

from __future__ import annotations

from typing import Any

import pytest
from parts import claim_of, context_of, name_of, outcome_of

from rq_pooled.parent.arbiter import Arbiter
from rq_pooled.parent.exchange import Exchange
from rq_pooled.store.commit import Outcome
from rq_pooled.wire import Packed


def arbiter_of(**settings: Any) -> Any:
    """An arbiter without horses, of which everything is due that can be."""
    context = context_of(**settings)
    arbiter: Any = Arbiter(
        context,
        multiplexer=None,
        run_horse=lambda *_: None,
        burst=False,
        max_jobs=None,
        max_idle_time=None,
        with_scheduler=True,
    )
    for slot in arbiter._slots:
        slot.ready = True
    arbiter._recovery.due = arbiter._heartbeat.due = arbiter._scheduling.due = True
    arbiter._committer.add(outcome_of(claim_of("a")))
    arbiter._requests._waiting = [Exchange([("a horse's",)])]
    arbiter._cleaner._intermediate_due = True
    return arbiter


def sent(arbiter: Any) -> list[str]:
    """What one turn sends."""
    assert arbiter._due()
    arbiter._context.command.sent.clear()
    arbiter._send()
    return [name for name in arbiter._context.command.sent if name not in ("publish", "EVALSHA")]


def test_what_keeps_claims_goes_first_and_new_claims_last() -> None:
    """One write holds, in this order: lost claims, the heartbeat, results, horses' reads, scheduled jobs, clean-up,
    and new claims.
    """
    arbiter = arbiter_of(concurrency=2)
    assert sent(arbiter) == [
        *("HGETALL", "heartbeat", "commit", "a horse's", "promote", "intermediate", "scheduler_due", "claim")
    ]
    assert not arbiter._due(), "nothing is sent twice, nor while a write is under way"


def test_no_horse_ends_a_job_that_others_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a heartbeat is overdue tasks wait for its answer, which tells whose their jobs are."""
    clock = [1000.0]
    monkeypatch.setattr("rq_pooled.parent.heartbeat.since_boot", lambda: clock[0])
    arbiter, assigned = arbiter_of(concurrency=2), []
    arbiter._context.loop.turn = lambda _timeout: False
    arbiter._slots.assign_tasks = lambda: assigned.append(clock[0])
    clock[0] += 29  # of a lease of 60
    arbiter._turn(0)
    assert assigned == [1029.0]
    clock[0] += 2
    arbiter._context.command.waiting.clear()
    arbiter._heartbeat.beat()
    arbiter._turn(0)
    assert assigned == [1029.0]
    for exchange in arbiter._context.command.waiting:
        if name_of(exchange.commands[0]) == "heartbeat":
            exchange.on_replies([[[], [], 0, 0], None])
    arbiter._turn(0)
    assert assigned == [1029.0, 1031.0]


def test_with_one_slot_too_the_claim_is_in_the_write_of_the_commit() -> None:
    """One job at a time is RQ's strict order, which claim.lua keeps: the claim goes out right behind the commit."""
    arbiter = arbiter_of(concurrency=1)
    names = sent(arbiter)
    assert names.index("commit") < names.index("claim") == len(names) - 1
    assert not arbiter._due(), "nor is another one sent while they are under way"


def test_what_may_cost_the_connection_is_sent_alone() -> None:
    """An outcome at which the connection was lost goes out with nothing beside it, after the heartbeat had its turn."""
    arbiter = arbiter_of(concurrency=2)
    arbiter._committer._waiting.clear()
    large = Outcome(claim_of("b"), "finished", (0, Packed(0, b"")), (1, Packed(1, b"x" * 100_000)))
    arbiter._committer._suspects.append(large)
    assert "commit" not in sent(arbiter) and "heartbeat" in arbiter._context.command.sent
    arbiter._context.command.waiting.clear()
    arbiter._cleaner._intermediate_due = True
    assert sent(arbiter) == ["commit"]
