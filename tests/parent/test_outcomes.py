"""What the parent does with the server's answers about outcomes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from engine import Engine, engine, finished
from keys import named
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.log_lines import WorkerLog
from rq_pooled.parent.committer import Committer
from rq_pooled.parent.events import Events
from rq_pooled.parent.heartbeat import Heartbeat
from rq_pooled.parent.slot import Slot, Task
from rq_pooled.store.counters import Counters


@pytest.fixture
def ours(server: EmbeddedServer, redis: Redis) -> Iterator[Engine]:
    """A ledger with three registered workers."""
    with engine(server.url) as one:
        one.register("w", "x", "y")
        yield one


class NoSlots(list[Slot]):
    """A worker without horses."""

    regular = claims = pids = lambda _self: []


def parent_of(ours: Engine) -> Any:
    """What a committer needs of the parent: the real connection, without loop and horses."""
    return SimpleNamespace(
        token=ours.token,
        command=ours.command,
        settings=ours.settings,
        counters=Counters(),
        log=WorkerLog(logging.getLogger("rq.worker"), "w"),
    )


def test_a_commit_refused_as_a_whole_harms_only_its_cause(ours: Engine, redis: Redis) -> None:
    """Where the script itself fails on one outcome, its neighbours are recorded once, and it alone is failed."""
    queue = Queue(connection=redis)
    for name in "abc":
        queue.enqueue("math.factorial", 3, job_id=name)
    first, broken, last = ours.claim("w", "x", "y").claims
    tasks: deque[Task] = deque()
    outcomes = Committer(parent_of(ours), Events(), tasks=tasks, burst=False)
    lie = finished(broken, ("INCR", "never"))
    lie.commands = (lie.commands[0] + 1, lie.commands[1])  # one command more than there is: the script runs off the end
    for outcome in (finished(first), lie, finished(last)):
        outcomes.add(outcome)
    for _ in range(10):
        if outcomes:
            exchange = outcomes.commit()
            exchange.on_replies(ours.command.execute(exchange.commands))
    assert not outcomes
    assert [redis.xlen(named(f"rq:results:{claim.job_id}")) for claim in (first, last)] == [1, 1]
    assert [redis.hget(named(f"rq:job:{claim.job_id}"), "status") for claim in (first, last)] == [b"finished"] * 2
    assert [(task.kind, task.claim and task.claim.job_id) for task in tasks] == [("fail", "b")]
    assert redis.zrange(named("rq:wip:default"), 0, -1) == [broken.member.encode()], (
        "its claim stands until that is recorded"
    )


def test_only_the_horse_that_waits_hears_of_its_record(ours: Engine, redis: Redis) -> None:
    """A horse that has taken the place of a dead one is not told what became of the other's outcome."""
    told: list[Any] = []
    outcomes = Committer(parent_of(ours), Events(), tasks=deque(), burst=False)
    for name in "ab":
        Queue(connection=redis).enqueue("math.factorial", 3, job_id=name)
    horses: Any = ("horse of w", "horse of x")
    waiting, gone = (Slot(name, lambda *words: told.append(words), horse=horse) for name, horse in zip("wx", horses))
    for slot, claim in zip((waiting, gone), ours.claim("w", "x").claims):
        slot.task = Task("perform", claim)
        outcome = finished(claim)
        outcome.receipt_for = (slot, slot.task)
        outcomes.add(outcome)
    gone.task = Task("perform", None)
    exchange = outcomes.commit()
    exchange.on_replies(ours.command.execute(exchange.commands))
    assert told == [("horse of w", ("committed", True))]


def test_commits_that_were_lost_together_are_sent_in_their_order(ours: Engine, redis: Redis) -> None:
    """Of several commits that a lost connection took along, what ended first is recorded first."""
    outcomes = Committer(parent_of(ours), Events(), tasks=deque(), burst=False)
    for name in "abc":
        Queue(connection=redis).enqueue("math.factorial", 3, job_id=name)
    for claim in ours.claim("w", "x", "y").claims:
        outcomes.add(finished(claim))
        ours.command.submit(outcomes.commit())
    ours.command.lose(RedisConnectionError("cut"))
    assert [claim.job_id for claim in outcomes.claims()] == ["a", "b", "c"]


def test_claims_whose_outcomes_wait_are_renewed(ours: Engine, redis: Redis) -> None:
    """However long an outcome waits to be recorded, nobody else is given its job meanwhile."""
    Queue(connection=redis).enqueue("math.factorial", 3, job_id="a")
    (claim,) = ours.claim("w").claims
    redis.zadd(named("rq_pooled:leases:default"), {claim.member: 1})
    parent = parent_of(ours)
    parent.lease, parent.listen = None, SimpleNamespace(connected=True)
    parent.identity = SimpleNamespace(name="w", ttl=480, queue_names=[])
    slots: Any = NoSlots()
    events, unknown = Events(), list[int]()
    events.claims_unknown.append(lambda: unknown.append(1))
    committer = Committer(parent, events, tasks=deque(), burst=False)
    committer.add(finished(claim))
    heartbeat = Heartbeat(parent, events, slots=slots, committer=committer, multiplexer=None)
    (exchange,) = heartbeat.exchanges()
    exchange.on_replies(ours.command.execute(exchange.commands))
    assert redis.zscore(named("rq_pooled:leases:default"), claim.member) > time.time() and not unknown
