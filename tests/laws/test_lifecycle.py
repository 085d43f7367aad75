"""The life of an execution in the hands of two workers, any step in any order, next to a model.

A reply may be lost after any script: the server has done it and the worker does not know, sends it again, or finds what
it holds in its claims hash.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from typing import Any

import pytest
from engine import finished, residue
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from keys import named
from redis import Redis
from rq.job import Job
from two_workers import MAX_STALLS, SLOTS, TwoWorkers, answered, run_machine, workers

from rq_pooled.store.claim import Claim, known_claims, unknown_claims
from rq_pooled.store.leases import find_stalled, heartbeat, push_back, stalled_of

#: Few, so that things happen to the same job.
IDS = ("a", "b")
#: Fields of a job's hash -> what others may have written there, and what it counts as.
HOSTILE = {
    "ttl": ((sys.maxsize, 0), ("1e300", 0), ("nan", 0)),
    "timeout": ((sys.maxsize, 0), (-5, 0), ("soon", 0)),
    "rq_pooled_stalls": (("soon", 0), ("nan", 0), (sys.maxsize, 1_000_000)),
}

rarely = st.sampled_from([False, False, False, False, True])


class Lifecycle(TwoWorkers):
    """One queue. What the model calls ``standing`` is claimed; everything else of an execution is waiting or over."""

    @initialize()
    def begin(self) -> None:
        self.start()
        self.waiting: list[str] = []
        self.exists: set[str] = set()
        #: Claim -> what it is, of those that stand.
        self.standing: dict[str, Claim] = {}
        #: Claims whose lease is over, in the order in which it ended; with those that were cancelled or deleted since.
        self.lapsed: list[str] = []
        #: Every claim that there was, in order. Whatever is drawn is in this order: the ids are random.
        self.every: list[str] = []
        #: What the server has noted for each worker.
        self.noted: dict[str, set[str]] = defaultdict(set)
        self.stalls: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        #: Every place in a queue that was ever given to an id, and those that were taken away by somebody.
        self.entered = self.left = 0

    # -- what users do -------------------------------------------------------------------------------------------

    @rule(job_id=st.sampled_from(IDS), at_front=st.booleans(), claimed_by=st.sampled_from([None, *sorted(SLOTS)]))
    def enqueue(self, job_id: str, at_front: bool, claimed_by: str | None) -> None:
        if job_id in self.exists:  # an id that is queued once more, as after rq requeue
            (self.redis.lpush if at_front else self.redis.rpush)(self.queue.key, job_id)
        else:
            self.queue.enqueue("math.factorial", 3, job_id=job_id, at_front=at_front)
            self.exists.add(job_id)
        self.waiting.insert(0 if at_front else len(self.waiting), job_id)
        self.entered += 1
        if claimed_by is not None:  # most of what is interesting begins with a claim
            self.claim(claimed_by, 1, True)

    def drop(self, job_id: str) -> None:
        """What cancelling or deleting does to the queue and to claims."""
        if job_id in self.waiting:
            self.waiting.remove(job_id)  # RQ removes one
            self.left += 1
        for member in [member for member, claim in self.standing.items() if claim.job_id == job_id]:
            del self.standing[member]
            self.left += 1

    @precondition(lambda self: self.exists)
    @rule(data=st.data(), how=st.sampled_from(["cancel", "delete", "expire"]))
    def remove(self, data: Any, how: str) -> None:
        """Cancel or delete a job, or let it expire, whoever has it."""
        job_id = data.draw(st.sampled_from(sorted(self.exists)))
        if how == "expire":
            if any(claim.job_id == job_id for claim in self.standing.values()):
                return  # claims make their job persistent
            self.redis.delete(named(f"rq:job:{job_id}"))
        else:
            try:
                job = Job.fetch(job_id, self.redis)
            except (ValueError, AssertionError):  # a number that RQ cannot read
                return
            if how == "cancel" and job.is_canceled:
                return
            getattr(job, how)()
            self.drop(job_id)
        if how != "cancel":
            self.forget_job(job_id)

    @precondition(lambda self: self.exists)
    @rule(data=st.data(), field=st.sampled_from(sorted(HOSTILE)), number=st.integers(0, 2))
    def write_a_hostile_number(self, data: Any, field: str, number: int) -> None:
        """A field of a job says what nobody can take; of stalls only what is a number counts."""
        job_id = data.draw(st.sampled_from(sorted(self.exists)))
        value, counts_as = HOSTILE[field][number]
        self.redis.hset(named(f"rq:job:{job_id}"), field, value)
        if field == "rq_pooled_stalls":
            self.stalls[job_id] = counts_as

    def forget_job(self, job_id: str) -> None:
        self.exists.discard(job_id)
        self.stalls.pop(job_id, None)

    # -- what workers do -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.waiting and any(map(self.free, SLOTS)))
    @rule(worker=workers, number=st.integers(1, 2), answered=answered)
    def claim(self, worker: str, number: int, answered: bool) -> None:
        names = self.free(worker)[:number]
        if not names:
            return
        expected, stale, held = [], [], []
        blocked = {claim.job_id for claim in self.standing.values()}
        while self.waiting and len(expected) < len(names):
            job_id = self.waiting.pop(0)
            if job_id not in self.exists:
                stale.append(job_id)
            elif job_id in blocked:
                held.append(job_id)
            else:
                expected.append(job_id)
                blocked.add(job_id)
        self.waiting[:0] = held
        self.left += len(stale)
        claimed = self.engines[worker].claim(*names)
        assert [claim.job_id for claim in claimed.claims] == expected
        assert (claimed.stale, claimed.held) == (stale, len(held))
        self.take(worker, claimed.claims, answered)

    def take(self, worker: str, claims: list[Claim], answered: bool) -> None:
        """Note new claims, of which the worker knows only if the reply reached it."""
        for claim in claims:
            self.every.append(claim.member)
            self.standing[claim.member] = claim
            self.noted[worker].add(claim.member)
            if answered:
                self.known[worker][claim.member] = claim

    def age(self, claim: Claim) -> int:
        return self.every.index(claim.member)

    def one_of(self, data: Any, worker: str) -> Claim:
        return data.draw(st.sampled_from(sorted(self.known[worker].values(), key=self.age)))

    @precondition(lambda self: any(self.known.values()))
    @rule(data=st.data(), twice=st.booleans(), answered=answered)
    def commit(self, data: Any, twice: bool, answered: bool) -> None:
        """Record an outcome; one whose reply was lost stays with its worker, which will send it again."""
        worker = data.draw(st.sampled_from(sorted(worker for worker, claims in self.known.items() if claims)))
        claim = self.one_of(data, worker)
        outcome = finished(claim, ("INCR", f"count:{claim.member}"))
        stands = self.standing.pop(claim.member, None) is not None
        expected = ["ok" if stands else "lost", "lost"][: 1 + twice]
        assert self.engines[worker].commit(*[outcome] * (1 + twice)) == expected
        self.counts[claim.member] += stands
        self.left += stands
        self.settled(worker, claim, answered)

    @precondition(lambda self: any(self.known.values()))
    @rule(data=st.data(), begun=st.booleans(), answered=answered)
    def push_back(self, data: Any, begun: bool, answered: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(worker for worker, claims in self.known.items() if claims)))
        self.give_back(worker, self.one_of(data, worker), begun, answered)

    def give_back(self, worker: str, claim: Claim, begun: bool, answered: bool) -> None:
        ours, stands = self.engines[worker], claim.member in self.standing
        too_often = stands and self.stalls[claim.job_id] + begun > MAX_STALLS
        assert ours.run(push_back(ours.settings, ours.token, [claim], begun)) == (stands and not too_often)
        if too_often:  # stays claimed until somebody looks for stalled claims and fails it
            self.lapse(claim.member)
            self.noted[worker].discard(claim.member)
            if answered:
                del self.known[worker][claim.member]
            return
        if stands:
            del self.standing[claim.member]
            self.waiting.insert(0, claim.job_id)
            self.stalls[claim.job_id] += begun
        self.settled(worker, claim, answered)

    def settled(self, worker: str, claim: Claim, answered: bool) -> None:
        """Whatever the holder says about a claim, nothing of it is left."""
        self.noted[worker].discard(claim.member)
        if claim.member in self.lapsed:
            self.lapsed.remove(claim.member)
        if answered:
            del self.known[worker][claim.member]

    @precondition(lambda self: any(self.noted.values()))
    @rule(worker=workers)
    def recover(self, worker: str) -> None:
        """Put back what the claims hash holds and the worker does not know of."""
        ours, known = self.engines[worker], self.known[worker]
        unknown = unknown_claims(ours.run(known_claims(ours.token)), known)
        assert {claim.member for claim in unknown} == self.noted[worker] - set(known)
        for claim in sorted(unknown, key=self.age):
            known[claim.member] = claim
            self.give_back(worker, claim, begun=False, answered=True)

    @precondition(lambda self: any(self.known.values()))
    @rule(worker=workers)
    def heartbeat(self, worker: str) -> None:
        """Renew all leases that the worker knows of, and hear which claims others have been given."""
        ours, claims = self.engines[worker], list(self.known[worker].values())
        slots = [(name, "", 0.0) for name in SLOTS[worker]]
        missing, handed_on, noted, _clock = ours.run(heartbeat(ours.settings, ours.token, 480, slots, claims))
        gone = [(i, claim) for i, claim in enumerate(claims, 1) if claim.member not in self.standing]
        status = {i: self.redis.hget(named(f"rq:job:{claim.job_id}"), "status") for i, claim in gone}
        assert handed_on == [i for i, _ in gone if status[i] not in (None, b"canceled", b"stopped")]
        self.noted[worker] -= {claims[i - 1].member for i in handed_on}
        assert (missing, noted) == ([], len(self.noted[worker]))
        for claim in claims:
            if claim.member in self.standing and claim.member in self.lapsed:
                self.lapsed.remove(claim.member)

    # -- stalls --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.leased())
    @rule(data=st.data())
    def time_passes(self, data: Any) -> None:
        """The lease of a claim ends, as if nobody had renewed it."""
        self.lapse(data.draw(st.sampled_from(self.leased())))

    @precondition(lambda self: self.standing)
    @rule(data=st.data(), worker=workers, renewing=st.sampled_from(sorted(SLOTS)), renewed=st.booleans())
    def nearly_or_really_stalled(self, data: Any, worker: str, renewing: str, renewed: bool) -> None:
        """A lease ends, its holder comes back in time or does not, and somebody looks."""
        self.lapse(data.draw(st.sampled_from(sorted(self.standing, key=self.every.index))))
        if renewed:
            self.heartbeat(renewing)
        self.look_for_stalled(worker, True, False, False)

    def leased(self) -> list[str]:
        """Return the claims that have a lease which is not over."""
        members = {member.decode() for member in self.redis.zrange(named("rq_pooled:leases:default"), 0, -1)}
        return sorted(members - set(self.lapsed), key=self.every.index)

    def lapse(self, member: str) -> None:
        if member in self.lapsed:
            self.lapsed.remove(member)
        self.lapsed.append(member)
        # Distinct scores, so that the order is known.
        for number, one in enumerate(self.lapsed, 1):
            self.redis.zadd(named("rq_pooled:leases:default"), {one: number}, xx=True)

    @precondition(lambda self: self.lapsed)
    @rule(worker=workers, answered=answered, locked=rarely, late=rarely)
    def look_for_stalled(self, worker: str, answered: bool, locked: bool, late: bool) -> None:
        """Put expired claims back, and take those that have stalled too often in order to fail them. Nobody does while
        another one has just looked, nor when the server was frozen and reads the request only now."""
        ours = self.engines[worker]
        self.redis.delete(named("rq_pooled:lock:stalled"))
        if locked:
            self.redis.set(named("rq_pooled:lock:stalled"), "somebody")
        seconds = self.redis.time()[0]
        command = find_stalled(
            ours.settings, ours.token, [self.queue.key], SLOTS[worker][0], seconds - 5 if late else seconds + 3600
        )
        stalled = stalled_of(ours.run(command), SLOTS[worker][0])
        assert not stalled.more
        returned: list[str] = []
        taken: list[str] = []
        in_vain = locked or late
        for member in () if in_vain else self.lapsed:
            claim = self.standing.pop(member, None)
            if claim is not None:
                self.stalls[claim.job_id] += 1
                (taken if self.stalls[claim.job_id] > MAX_STALLS else returned).append(claim.job_id)
        if not in_vain:
            self.lapsed.clear()
        assert [job_id for job_id, *_ in stalled.returned] == returned
        assert [claim.job_id for claim, _ in stalled.taken] == taken
        self.waiting[:0] = returned
        self.take(worker, [claim for claim, _ in stalled.taken], answered)

    # -- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def each_execution_is_in_one_place(self) -> None:
        if not hasattr(self, "entered"):
            return
        standing = {member.encode() for member in self.standing}
        assert self.redis.lrange(self.queue.key, 0, -1) == [job_id.encode() for job_id in self.waiting]
        assert set(self.redis.zrange(named("rq:wip:default"), 0, -1)) == standing
        assert standing <= set(self.redis.zrange(named("rq_pooled:leases:default"), 0, -1))
        for worker in SLOTS:
            noted = {member.decode() for member in self.redis.hkeys(named(f"rq_pooled:claims:{worker}"))}
            assert noted == self.noted[worker]
        assert self.entered == len(self.waiting) + len(self.standing) + self.left, "none lost, none doubled"

    @invariant()
    def each_execution_counts_once(self) -> None:
        if not hasattr(self, "entered"):
            return
        for key in self.redis.keys("count:*"):
            member = key.decode().partition(":")[2]
            assert int(self.redis.get(key)) == self.counts[member] <= 1
        workers = [key for key in self.redis.keys(named("rq:worker:*")) if not key.endswith(b":executions")]
        recorded = sum(int(self.redis.hget(key, "successful_job_count") or 0) for key in workers)
        assert recorded == sum(self.counts.values())

    def teardown(self) -> None:
        """When everybody who holds a claim has answered, and what stalled was failed, nothing is left of any."""
        if not hasattr(self, "entered"):
            return
        for _ in range(2):  # what the first look takes is committed in the second round
            for worker in SLOTS:
                self.recover(worker)
                for claim in list(self.known[worker].values()):
                    self.engines[worker].commit(finished(claim))
                    self.standing.pop(claim.member, None)
                    self.settled(worker, claim, answered=True)
            self.look_for_stalled("one", True, False, False)
        self.redis.delete(named("rq_pooled:lock:stalled"))
        assert residue(self.redis) == []


@pytest.mark.timeout(300)
def test_any_order_of_steps_keeps_each_execution_in_one_place(server: Any, redis: Redis) -> None:
    """Whatever the order of claims, commits, heartbeats, stalls, push-backs, cancels and deletes, with replies lost
    anywhere, a model of one queue and two workers agrees: each execution is in one place and counted once."""
    run_machine(Lifecycle, server.url, redis, stateful_step_count=40)
