"""What the parent does with the server's answers about outcomes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from engine import Engine, engine, finished
from redis import Redis
from rq import Queue

from rq_pooled.counters import Counters
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.outcomes import Outcomes
from rq_pooled.slots import Task


@pytest.fixture
def ours(server: EmbeddedServer, redis: Redis) -> Iterator[Engine]:
    """A ledger with three registered workers."""
    with engine(server.url) as one:
        one.register("w", "x", "y")
        yield one


def parent_of(ours: Engine) -> Any:
    """What Outcomes needs of the parent: the real ledger and connection, without loop and horses."""
    return SimpleNamespace(
        ledger=ours.ledger,
        command=ours.command,
        settings=ours.settings,
        counters=Counters(),
        log=logging.getLogger("rq.worker"),
        name="w",
    )


def test_a_commit_refused_as_a_whole_harms_only_its_cause(ours: Engine, redis: Redis) -> None:
    """Where the script itself fails on one outcome, its neighbours are recorded once, and it alone is failed."""
    queue = Queue(connection=redis)
    for name in "abc":
        queue.enqueue("math.factorial", 3, job_id=name)
    first, broken, last = ours.claim("w", "x", "y").claims
    tasks: list[Task] = []
    outcomes = Outcomes(parent_of(ours), tasks.append, lambda _slot, _message: None, lambda: None)
    lie = finished(broken, ("INCR", "never"))
    lie.commands = (lie.commands[0] + 1, lie.commands[1])  # one command more than there is: the script runs off the end
    for outcome in (finished(first), lie, finished(last)):
        outcomes.add(outcome)
    for _ in range(10):
        if outcomes:
            exchange = outcomes.commit()
            exchange.on_replies(ours.command.execute(exchange.commands))
    assert not outcomes
    assert [redis.xlen(f"rq:results:{claim.job_id}") for claim in (first, last)] == [1, 1]
    assert [redis.hget(f"rq:job:{claim.job_id}", "status") for claim in (first, last)] == [b"finished"] * 2
    assert [(task.kind, task.claim and task.claim.job_id) for task in tasks] == [("fail", "b")]
    assert redis.zrange("rq:wip:default", 0, -1) == [broken.member.encode()], "its claim stands until that is recorded"
