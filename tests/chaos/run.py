"""One run of the harness from the beginning to the verdict."""

from __future__ import annotations

import heapq
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from keys import named
from redis.exceptions import RedisError

from . import journal, plan
from .cluster_stage import ClusterStage
from .inflict import BreakableStage
from .jobs import QUEUE
from .load import Enqueuer, Watch
from .stage import Stage
from .verdict import ENDS, Evidence, Verdict, expected, judge

WORKERS = 3
#: Jobs enqueued per second, about.
RATE = 6.0
#: Seconds until everything has ended after the last fault: the lock of a killed scheduler lives for 61 s, and others
#: look at it every 15 s. Seconds until a worker has ended after SIGTERM.
DRAIN, STOP = 100.0, 20.0


@dataclass
class Report:
    """What a run has found."""

    seed: int
    faults: list[plan.Fault]
    verdict: Verdict
    evidence: Evidence
    #: Per problem job, what Redis tells.
    states: dict[str, str]
    logs: str

    @property
    def ok(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.verdict.problems

    def text(self) -> str:
        """Return it for people: short if all is well, else with all that is needed to understand it."""
        figures = ", ".join(f"{name} {number}" for name, number in self.verdict.figures.items())
        again = "; ".join(f"{number} times because {why}" for why, number in self.verdict.reasons.most_common())
        lines = [f"seed {self.seed}: {'ok' if self.ok else 'FAILED'}: {figures}; run again {again or 'never'}"]
        if not self.ok:
            lines += ["", f"reproduce with: make chaos SEED={self.seed}", "", "what is wrong:"]
            lines += [f"  {job_id or '(all)'}: {text}" for job_id, text in self.verdict.problems[:100]]
            lines += ["", "schedule:", *(f"  {fault}" for fault in self.faults)]
            lines += ["", "done:", *(f"  {deed}" for deed in self.evidence.deeds)]
            for job_id in dict.fromkeys(job_id for job_id, _ in self.verdict.problems[:10] if job_id):
                lines += ["", f"{job_id}: {self.evidence.orders.get(job_id)}"]
                lines += [f"  {event}" for run in self.evidence.runs.get(job_id, []) for event in run.milestones()]
                leases = {claim: end for claim, end in self.evidence.leases.items() if claim.startswith(f"{job_id}:")}
                lines += [f"  leases, as last seen: {leases}", f"  {self.states.get(job_id)}"]
            lines += ["", f"logs of workers and server: {self.logs}"]
        return "\n".join(lines)


def run(
    seed: int,
    seconds: float,
    engine: Path | None = None,
    only: frozenset[str] = frozenset(),
    directory: Path | None = None,
    say: Callable[[str], None] = lambda _line: None,
    cluster: bool = False,
    workers: int = WORKERS,
) -> Report:
    """Break things for ``seconds`` seconds, wait for the end of all jobs, and judge.

    Blocks for ``seconds`` and up to 100 s more. Args: see __main__.
    """
    directory = directory or Path(tempfile.mkdtemp(prefix="chaos-"))
    notes = directory / "journal"
    faults = plan.make(seed, seconds, only, plan.CLUSTER_KINDS if cluster else plan.KINDS)
    stage = (ClusterStage if cluster else BreakableStage)(directory, notes, engine)
    threads: list[Enqueuer | Watch] = []
    deaths: list[str] = []
    try:
        stage.start(workers)
        enqueuer, watch = Enqueuer(stage.url, seed, RATE), Watch(stage.url)
        threads = [watch, enqueuer]
        for thread in threads:
            thread.start()
        _play(stage, faults, seconds, say, deaths)
        enqueuer.stop()
        while sum(member.alive and not member.leaving for member in stage.members) < 2:
            stage.start_worker()
        evidence = Evidence(enqueuer.orders, {}, stage.deeds, watch.leases, watch.gaps)
        say("waiting for all jobs to end")
        _drain(stage, evidence, notes, deaths)
        _stop(stage, deaths)
        watch.stop()
        evidence.runs = journal.read(notes)
        evidence.crowds, evidence.looks, evidence.admitted = watch.crowds, watch.looks, watch.admitted
        evidence.workers = frozenset(member.process.pid for member in stage.members)
        verdict = judge(stage.admin, evidence)
        verdict.problems += [("", text) for text in deaths]
        states = {
            job_id: named(f"{stage.admin.hgetall(f'rq:job:{job_id}')} {stage.admin.xrange(f'rq:results:{job_id}')}")
            for job_id, _ in verdict.problems
            if job_id
        }
        return Report(seed, faults, verdict, evidence, states, str(directory))
    finally:
        for thread in threads:
            thread._stop_event.set()
        stage.close()


def _play(
    stage: BreakableStage, faults: list[plan.Fault], seconds: float, say: Callable[[str], None], deaths: list[str]
) -> None:
    """Do each fault at its time, and end it at its time."""
    began = time.monotonic()
    number = itertools.count()
    busy = False
    todo: list[tuple[float, int, Callable[[], object]]] = [
        (fault.at, next(number), lambda fault=fault: fault) for fault in faults
    ]
    heapq.heapify(todo)
    while todo or time.monotonic() - began < seconds:
        at = todo[0][0] if todo else seconds
        while (left := began + at - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
            _look_for_deaths(stage, deaths)
        if not todo:
            return
        fault = heapq.heappop(todo)[2]()
        if not isinstance(fault, plan.Fault):
            continue
        on_server = fault.kind in plan.ON_SERVER
        if busy and (on_server or fault.kind in plan.THROUGH_SERVER):
            # This machine is slower than the plan: the server has not come back yet.
            heapq.heappush(todo, (time.monotonic() - began + 0.1, next(number), lambda fault=fault: fault))
            continue
        say(str(fault))
        end = stage.do(fault)
        if end is not None:
            busy = busy or on_server

            def mend(call: Callable[[], None] = end[1], on_server: bool = on_server) -> None:
                nonlocal busy
                call()
                busy = busy and not on_server

            heapq.heappush(todo, (time.monotonic() - began + end[0], next(number), mend))


def _look_for_deaths(stage: Stage, deaths: list[str]) -> None:
    """Note workers that ended although nobody told them to."""
    for member in list(stage.members):
        if not member.alive and not member.leaving:
            member.leaving = True
            if not member.began:  # RQ's command line gives up where the server is away: a supervisor starts it again
                stage.start_worker()
                continue
            tail = "\n    ".join(member.process.output().splitlines()[-15:])
            deaths.append(f"worker {member.name} ended with {member.process.process.returncode}:\n    {tail}")


def _drain(stage: Stage, evidence: Evidence, notes: Path, deaths: list[str]) -> None:
    """Wait until every job that must end has ended, at most DRAIN seconds, and nothing waits or runs."""
    deadline = time.monotonic() + DRAIN
    left = None
    while time.monotonic() < deadline:
        _look_for_deaths(stage, deaths)
        try:
            if left is None or not left:
                evidence.runs = journal.read(notes)
                left = expected(evidence)
            with stage.admin.pipeline(transaction=False) as pipe:
                ids = sorted(left)
                for job_id in ids:
                    pipe.hget(named(f"rq:job:{job_id}"), "status")
                statuses = pipe.execute()
            # Deferred ones follow when their parent ends; where it failed they never do.
            left = {
                i
                for i, status in zip(ids, statuses)
                if status is not None and status.decode() not in (*ENDS, "deferred")
            }
            busy = stage.admin.llen(named(f"rq:queue:{QUEUE}")) + stage.admin.zcard(named(f"rq:wip:{QUEUE}"))
            busy += stage.admin.zcard(named("rq:rl:chaos:allowed"))  # a slot that leaked is freed within 15 seconds
            if not left and not busy and not stage.admin.zcard(named(f"rq:scheduled:{QUEUE}")):
                return
        except RedisError:
            pass
        time.sleep(0.2)


def _stop(stage: Stage, deaths: list[str]) -> None:
    """Stop the workers as a deploy does; each ends with 0."""
    leaving = [member for member in stage.members if member.alive]
    asked = {member.name for member in leaving if not member.leaving}
    for member in leaving:
        member.leaving = True
        member.process.process.terminate()
    for member in leaving:
        try:
            code = member.process.wait(STOP)
        except AssertionError as error:
            deaths.append(f"worker {member.name}: {error}")
        else:
            if code and member.name in asked and member.began:
                deaths.append(f"worker {member.name} ended with {code} on SIGTERM")
