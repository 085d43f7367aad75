"""What must hold after the faults, checked against three witnesses: Redis, the journal of the jobs, the log of
faults.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

from keys import named
from redis import Redis
from redis.exceptions import ResponseError
from rq.results import Result

from rq_pooled.config import Settings

from .jobs import QUEUE
from .journal import Run
from .load import CHILDREN, LIMIT, RETRIES, Crowd, Order
from .stage import CONCURRENCIES, INTERVAL, TTL, Deed

#: Statuses that are an end. A child whose parent failed stays deferred for ever, as RQ has it.
ENDS = ("finished", "failed")
#: What RQ writes for a job whose process was killed.
KILLED = "Work-horse terminated unexpectedly"
#: Law 1: what one worker may hold; the roles that it has, none of which is a horse's.
MOST = 3 + max(*CONCURRENCIES, Settings().max_connections - 3)
ROLES = ("command", "exclusive", "jobs", "listen")
ON_SERVER = ("freeze server", "crash server", "restart server", "cut connections")
#: Seconds by which clocks, samples and logs may disagree.
SLACK = 0.3
#: A server that was frozen shows for so long what was closed while it was.
LATE = 1.0


@dataclass
class Evidence:
    """Everything that is known at the end."""

    orders: dict[str, Order]
    runs: dict[str, list[Run]]
    deeds: list[Deed]
    #: Claim -> end of its lease as last seen; when the machine starved.
    leases: dict[str, float]
    gaps: list[tuple[float, float]]
    #: What processes held which connections; how often that was looked at; the process ids of the workers.
    crowds: list[Crowd] = field(default_factory=list)
    #: Most jobs of the limit that were seen admitted at once.
    admitted: int = 0
    looks: int = 0
    workers: frozenset[int] = frozenset()


@dataclass
class Record:
    """What Redis tells of one job."""

    job_id: str
    status: str
    retries_left: int
    results: list[Result]

    @property
    def last_error(self) -> str:
        """The reason of the last failure."""
        return next((result.exc_string or "" for result in self.results if result.type == Result.Type.FAILED), "")


@dataclass
class Verdict:
    """Problems by job ("" for none in particular), and figures."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)
    #: Why jobs ran more than once: how often each reason was the one.
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, job_id: str, text: str) -> None:
        """Note a problem."""
        self.problems.append((job_id, text))


def record_of(redis: Redis, job_id: str) -> Record | None:
    """Return what Redis tells of a job, None where it does not know it."""
    fields = redis.hgetall(named(f"rq:job:{job_id}"))
    if not fields:
        return None
    results = [
        Result.restore(job_id, entry.decode(), payload, connection=redis)
        for entry, payload in redis.xrevrange(named(f"rq:results:{job_id}"))
    ]
    left = int(fields.get(b"retries_left") or 0)
    return Record(job_id, fields.get(b"status", b"?").decode(), left, results)


def expected(evidence: Evidence) -> set[str]:
    """Return the ids of all jobs that must have ended: what was acknowledged, and what those have spawned."""
    ids = {order.job_id for order in evidence.orders.values() if order.acknowledged}
    for job_id, runs in evidence.runs.items():
        order = evidence.orders.get(job_id)
        if order is not None and order.kind in CHILDREN and any(run.end == "ok" for run in runs):
            ids |= {f"{job_id}_c{i}" for i in range(CHILDREN[order.kind])}
    return ids


def judge(redis: Redis, evidence: Evidence) -> Verdict:
    """Return what is wrong."""
    verdict = Verdict()
    must = expected(evidence)
    every = sorted(must | set(evidence.orders) | set(evidence.runs))
    records = {job_id: record for job_id in every if (record := record_of(redis, job_id)) is not None}
    for job_id in every:
        record, runs = records.get(job_id), evidence.runs.get(job_id, [])
        if record is None:
            if job_id in must:
                verdict.add(job_id, "lost: the server acknowledged it and does not know it")
            elif runs:
                verdict.add(job_id, "ran, and the server does not know it")
            continue
        _check_end(verdict, record, evidence, records)
        if record.status in ENDS:
            _check_recorded_once(verdict, record, runs, evidence)
            _check_runs(verdict, record, runs, evidence)
    killed = sum(KILLED in record.last_error for record in records.values() if record.status == "failed")
    kills = sum(deed.kind == "kill horse" for deed in evidence.deeds)
    if killed > kills:
        verdict.add("", f"{killed} jobs failed because their process was killed, and only {kills} were")
    _check_limit(verdict, evidence)
    _check_residue(verdict, redis)
    _check_connections(verdict, evidence)
    unconfirmed = [order for order in evidence.orders.values() if not order.acknowledged]
    verdict.figures = {
        "jobs": len(records),
        "finished": sum(record.status == "finished" for record in records.values()),
        "failed": sum(record.status == "failed" for record in records.values()),
        "of these killed": killed,
        "runs": sum(map(len, evidence.runs.values())),
        "enqueues unconfirmed": len(unconfirmed),
        "of these there": sum(order.job_id in records for order in unconfirmed),
        "faults": len(evidence.deeds),
        "looks at connections": evidence.looks,
        "most of a worker": max((len(crowd.roles) for crowd in evidence.crowds), default=0),
    }
    return verdict


def _check_end(verdict: Verdict, record: Record, evidence: Evidence, records: dict[str, Record]) -> None:
    """A job has ended as its kind demands, or its process was killed."""
    order = evidence.orders.get(record.job_id)
    kind = order.kind if order else "ok"
    parent = records.get(order.depends_on) if order and order.depends_on else None
    if record.status == "deferred" and parent is not None and parent.status in ("failed", "deferred"):
        return
    if record.status not in ENDS:
        verdict.add(record.job_id, f"is {record.status}: neither finished nor failed")
    elif kind == "fail":
        if record.status != "failed":
            verdict.add(record.job_id, f"is {record.status}, and should have failed")
    elif record.status == "failed" and KILLED not in record.last_error:
        verdict.add(record.job_id, f"failed: {record.last_error.strip()[-300:]}")
    if parent is not None and parent.status != "finished" and record.status == "finished":
        verdict.add(record.job_id, f"ran although {parent.job_id} is {parent.status}")


def _recorded(record: Record, order: Order | None) -> int:
    """Return how many executions were recorded: an entry each, but for failures that are tried again."""
    retried = RETRIES - record.retries_left if order is not None and order.kind == "retry" else 0
    return len(record.results) + retried


def _check_recorded_once(verdict: Verdict, record: Record, runs: list[Run], evidence: Evidence) -> None:
    """One final entry; no execution twice; no success that no run can vouch for."""
    order = evidence.orders.get(record.job_id)
    final = [result for result in record.results if result.type != Result.Type.RETRIED]
    if len(final) != 1:
        verdict.add(record.job_id, f"has {len(final)} final results, not one")
    executions = [result.execution_id for result in record.results]
    if len(set(executions)) != len(executions):
        verdict.add(record.job_id, "an execution was recorded twice")
    if order is not None and order.kind == "again" and len(record.results) - len(final) > 1:
        verdict.add(record.job_id, "was sent back by itself more than once")
    ended = {run.execution for run in runs if run.end == "ok"}
    for result in record.results:
        if result.type == Result.Type.SUCCESSFUL and result.execution_id not in ended:
            verdict.add(
                record.job_id, f"execution {result.execution_id} is recorded as a success and did not run to its end"
            )
    if order is not None and order.kind == "retry" and record.status == "finished" and record.retries_left:
        verdict.add(record.job_id, f"succeeded with {record.retries_left} retries left")


def _check_runs(verdict: Verdict, record: Record, runs: list[Run], evidence: Evidence) -> None:
    """Every run that was not recorded was broken off by a fault, and no two runs overlap unless a claim had expired."""
    order = evidence.orders.get(record.job_id)
    kept = {result.execution_id for result in record.results}
    unexplained = []
    for i, run in enumerate(runs):
        if run.execution in kept:
            continue
        until = runs[i + 1].start if i + 1 < len(runs) else run.last + 3600
        reason = reason_for(run, until, evidence)
        if reason:
            verdict.reasons[reason] += 1
        else:
            unexplained.append(run)
    # A failure that is tried again leaves no entry: so many runs need no other reason.
    retried = _recorded(record, order) - len(record.results)
    if len(unexplained) > retried:
        pids = ", ".join(f"{run.pid} of {run.parent}" for run in unexplained)
        verdict.add(
            record.job_id,
            f"{len(unexplained)} runs were not recorded ({pids}), {retried} of them retries: no fault explains it",
        )
    if len({run.execution for run in runs}) != len(runs):
        verdict.add(record.job_id, "an execution ran twice")
    for first, second in itertools.pairwise(runs):
        # A killed process may have lived on between its last sign and its end, never longer.
        if first.last > second.start + SLACK and not _expired(first, second.start, evidence):
            verdict.add(
                record.job_id, f"runs {first.pid} and {second.pid} overlap, and the first claim had not expired"
            )


def reason_for(run: Run, until: float, evidence: Evidence) -> str:
    """Return which fault broke a run off, or kept its outcome from being recorded, before ``until``; "" for none."""
    for deed in evidence.deeds:
        if deed.at > until + SLACK or deed.until < run.start - SLACK:
            continue
        if deed.kind == "kill horse" and deed.pid == run.pid:
            return "its process was killed"
        if deed.pid == run.parent and deed.kind in ("kill worker", "stop worker"):
            return f"its worker was {'killed' if deed.kind == 'kill worker' else 'stopped'}"
        # A lease is renewed every INTERVAL: what is left of it when the freeze begins is that much shorter.
        long_enough = deed.until - deed.at > TTL - 2 * INTERVAL - SLACK
        if deed.pid == run.parent and deed.kind == "freeze worker" and long_enough:
            return "its worker was frozen until the lease was over"
    # An outage alone is no reason, however long: nobody takes a job whose worker is as much cut off as itself.
    if _expired(run, until, evidence) and any(start < until and end > run.start for start, end in evidence.gaps):
        return "the machine starved its worker"
    return ""


def _expired(run: Run, at: float, evidence: Evidence) -> bool:
    """Tell whether the lease of a run was over at this time, as far as it was ever seen."""
    return evidence.leases.get(f"{run.job_id}:{run.execution}", 0.0) <= at + SLACK


def _check_connections(verdict: Verdict, evidence: Evidence) -> None:
    """No worker ever holds more than it may, one of each role of which there is one, and no horse holds any."""
    frozen = [(deed.at - SLACK, deed.until + LATE) for deed in evidence.deeds if deed.kind == "freeze server"]
    for crowd in evidence.crowds:
        if crowd.pid not in evidence.workers:
            verdict.add("", f"process {crowd.pid}, which is no worker, held {', '.join(crowd.roles)} at {crowd.at:.3f}")
            continue
        if any(begin <= crowd.at <= end for begin, end in frozen):
            continue
        twice = [role for role in ("command", "jobs", "listen") if crowd.roles.count(role) > 1]
        if len(crowd.roles) > MOST or twice or set(crowd.roles) - set(ROLES):
            verdict.add(
                "", f"worker {crowd.pid} held {len(crowd.roles)} of {MOST} ({', '.join(crowd.roles)}) at {crowd.at:.3f}"
            )


def _check_limit(verdict: Verdict, evidence: Evidence) -> None:
    """No more jobs of a limit were admitted than it allows."""
    if evidence.admitted > LIMIT:
        verdict.add("", f"{evidence.admitted} jobs of a limit of {LIMIT} were admitted at once")


def _check_residue(verdict: Verdict, redis: Redis) -> None:
    """No queue, registry, lease, claim, limit or intermediate list holds anything of a job that has ended."""
    for key in sorted(redis.keys("*")):
        name = key.decode()
        if name == named(f"rq:queue:{QUEUE}") or name.endswith(":intermediate"):
            verdict.add("", f"{name} holds {redis.lrange(key, 0, 9)}")
        elif name.startswith((named("rq:wip:"), named("rq_pooled:leases:"), named("rq:scheduled:"))) or name.endswith(
            (":allowed", ":rate_limited")
        ):
            verdict.add("", f"{name} holds {redis.zrange(key, 0, 9)}")
        elif name.startswith((named("rq:execution:"), named("rq:executions:"))):
            verdict.add("", f"{name} is left")
        elif name.startswith(named("rq_pooled:claims:")) and redis.ttl(key) < 0:
            verdict.add("", f"{name} is left for ever with {redis.hkeys(key)[:10]}")
        elif name.startswith(named("rq:worker:")) and name.endswith(":executions"):
            verdict.add("", f"{name} holds {redis.smembers(key)}")
        elif name.startswith(named("rq:worker:")) and not redis.hexists(key, "death"):
            try:
                current = redis.hget(key, "current_job")
            except ResponseError:
                current = None
            if current:
                verdict.add("", f"{name} still shows {current.decode()}")
