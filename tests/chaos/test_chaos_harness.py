"""The harness that says that all is well is no yes-man."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from keys import named
from redis import Redis
from rq import Queue, SimpleWorker

import rq_pooled
from chaos import plan
from chaos.jobs import QUEUE
from chaos.journal import Run
from chaos.load import Crowd, Order
from chaos.run import run
from chaos.stage import Deed
from chaos.verdict import MOST, Evidence, judge


@pytest.mark.timeout(300)
def test_the_harness_sees_a_missing_fence(_server_available: None, tmp_path: Path) -> None:
    """With an engine that records outcomes whose claim is gone, and does not ask whether it was handed on, the same
    harness finds jobs that were recorded twice."""
    engine = tmp_path / "engine"
    shutil.copytree(Path(rq_pooled.__file__).parent, engine / "rq_pooled")
    for name, guard, instead in (
        ("commit.lua", "or 'lost'", "or 'ok'"),
        ("heartbeat.lua", "handed_on[#handed_on + 1] = number", ""),
    ):
        script = engine / "rq_pooled" / "store" / "lua" / name
        text = script.read_text()
        assert guard in text
        script.write_text(text.replace(guard, instead))
    texts = []
    for seed in range(1, 9):  # a job has to end in the moment between its worker's thaw and the next heartbeat's reply
        directory = tmp_path / str(seed)
        directory.mkdir()
        report = run(seed, 20, engine, frozenset({"freeze worker"}), directory)
        texts.append(report.text())
        if any("not one" in problem for _, problem in report.verdict.problems):
            return
    raise AssertionError("\n".join(texts))


def _evidence(*ids: str, **more: Any) -> Evidence:
    orders = {job_id: Order(job_id, "ok", 0.0, True) for job_id in ids}
    return Evidence(**{"orders": orders, "runs": {}, "deeds": [], "leases": {}, "gaps": [], **more})


def test_the_verdict_names_what_is_lost_stuck_or_recorded_twice(redis: Redis) -> None:
    """An acknowledged job that is gone, one that never ran, and one with two results are each named; so is what is
    left.
    """
    queue = Queue(QUEUE, connection=redis)
    twice = queue.enqueue("math.factorial", 3, job_id="twice")
    SimpleWorker([queue], connection=redis).work(burst=True)
    queue.enqueue_job(twice)
    SimpleWorker([queue], connection=redis).work(burst=True)
    queue.enqueue("math.factorial", 3, job_id="stuck")
    problems = judge(redis, _evidence("gone", "stuck", "twice")).problems
    texts = [f"{job_id}: {text}" for job_id, text in problems]
    for expected in (
        "gone: lost",
        "stuck: is queued",
        "twice: has 2 final results",
        "did not run to its end",
        named("rq:queue:"),
    ):
        assert any(expected in text for text in texts), (expected, texts)


def test_the_verdict_wants_a_reason_for_every_second_run(redis: Redis) -> None:
    """A run that was not recorded needs a fault that was done to it, and two at once need a lease that was over."""
    queue = Queue(QUEUE, connection=redis)
    job = queue.enqueue("math.factorial", 3, job_id="a")
    SimpleWorker([queue], connection=redis).work(burst=True)
    recorded = job.latest_result().execution_id
    runs = [Run("a", "first", 11, 1, 100.0, 101.0, "ok"), Run("a", recorded, 21, 2, 105.0, 106.0, "ok")]

    def problems(**more: Any) -> list[str]:
        return [text for _, text in judge(redis, _evidence("a", **{"runs": {"a": runs}, **more})).problems]

    assert len(problems()) == 1 and "no fault explains it" in problems()[0]
    assert problems(deeds=[Deed(101.0, 101.0, "kill worker", 1)]) == []
    assert problems(deeds=[Deed(101.0, 101.0, "kill worker", 2)]) != [], "another worker's"
    assert problems(deeds=[Deed(90.0, 90.0, "kill worker", 1)]) != [], "before it began"
    assert problems(deeds=[Deed(100.5, 101.0, "freeze worker", 1)]) != [], "not for as long as a lease"
    assert problems(deeds=[Deed(100.5, 104.5, "freeze worker", 1)]) == []
    assert problems(deeds=[Deed(100.5, 104.5, "freeze server", 0)]) != [], "an outage is no reason"
    runs[0].last = 107.0
    frozen = {"deeds": [Deed(100.5, 104.5, "freeze worker", 1)]}
    assert problems(**frozen, leases={"a:first": 104.0}) == []
    assert any("overlap" in text for text in problems(**frozen, leases={"a:first": 108.0}))


def test_the_verdict_counts_connections(redis: Redis) -> None:
    """Law 1: too many of a worker, two that share, or one of a horse are each named; a frozen server's leftovers are
    not.
    """
    few, full = ("command", "jobs", "listen"), ("command", "jobs", "listen", *["exclusive"] * (MOST - 3))

    def problems(*roles: str, pid: int = 1, **more: Any) -> list[str]:
        evidence = _evidence(crowds=[Crowd(100.0, pid, roles)], looks=1, workers=frozenset({1}), **more)
        return [text for _, text in judge(redis, evidence).problems]

    assert problems(*few) == problems(*full) == []
    assert len(problems(*full, "exclusive")) == len(problems(*few, "jobs")) == len(problems(*few, "job")) == 1
    assert len(problems("job", pid=2)) == 1
    frozen = [Deed(95.0, 99.5, "freeze server", 0)]
    assert problems(*few, "jobs", deeds=frozen) == [] and len(problems("job", pid=2, deeds=frozen)) == 1
    assert len(problems(*few, "jobs", deeds=[Deed(95.0, 98.0, "freeze server", 0)])) == 1


def test_a_seed_is_a_schedule() -> None:
    """The same seed gives the same faults, another seed others; each is over in time, and the server has one at a
    time.
    """
    assert plan.make(7, 300) == plan.make(7, 300) != plan.make(8, 300)
    for seed in range(50):
        faults = plan.make(seed, 300)
        assert {fault.kind for fault in faults} <= set(plan.KINDS) and len(faults) > 60
        assert all(fault.at + fault.length <= 300 for fault in faults)
        on_server = [fault for fault in faults if fault.kind in plan.ON_SERVER]
        assert all(a.at + a.length < b.at for a, b in zip(on_server, on_server[1:]))  # noqa: RUF007
    assert {fault.kind for fault in plan.make(7, 300)} == set(plan.KINDS)
