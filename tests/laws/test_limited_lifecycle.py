"""Jobs of a rate limit in the hands of two workers, any step in any order: how many are admitted, and who waits.

Beside test_lifecycle.py, which predicts each step, this one states laws: RQ's own Lua decides who is admitted.
"""

from __future__ import annotations

import time
from typing import Any

import jobs
import pytest
from engine import finished, residue
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from keys import named
from redis import Redis
from rq.job import Job
from rq.utils import now, utcformat
from two_workers import SLOTS, TwoWorkers, answered, run_machine, workers

from rq_pooled.rq_api import RQ3
from rq_pooled.store.claim import Claim, known_claims, unknown_claims
from rq_pooled.store.leases import find_stalled, push_back, stalled_of
from rq_pooled.store.rate_limits import release_commands
from rq_pooled.store.repair import queue_ready
from rq_pooled.store.scheduled import promote

IDS = ("a", "b", "c", "d", "e")
CONCURRENCY = 2
ALLOWED, WAITING = named("rq:rl:k:allowed"), named("rq:rl:k:rate_limited")


class LimitedLifecycle(TwoWorkers):
    """One limit of two, five jobs of it."""

    @initialize()
    def begin(self) -> None:
        self.start()
        self.expired = False

    def status(self, job_id: str) -> str | None:
        found: Any = self.redis.hget(named(f"rq:job:{job_id}"), "status")
        return None if found is None else found.decode()

    def ids(self, key: str) -> set[str]:
        found: Any = self.redis.zrange(key, 0, -1)
        return {job_id.decode() for job_id in found}

    # -- what users do -------------------------------------------------------------------------------------------

    @rule(job_id=st.sampled_from(IDS), at_front=st.booleans(), claimed_by=st.sampled_from([None, *sorted(SLOTS)]))
    def enqueue(self, job_id: str, at_front: bool, claimed_by: str | None) -> None:
        from rq import RateLimit

        if self.status(job_id) is None and job_id not in self.ids(ALLOWED):
            limit = RateLimit("k", CONCURRENCY)
            self.queue.enqueue(jobs.nothing, job_id=job_id, at_front=at_front, rate_limit=limit)
        if claimed_by is not None:
            self.claim(claimed_by, 1, True)

    @rule(job_id=st.sampled_from(IDS), how=st.sampled_from(["cancel", "delete", "expire", "requeue"]))
    def change(self, job_id: str, how: str) -> None:
        """Cancel, delete or requeue a job, or let it expire while it waits."""
        status = self.status(job_id)
        if status is None:
            return
        job = Job.fetch(job_id, self.redis)
        if how == "expire":
            if status == "queued":
                self.redis.delete(job.key)
                self.expired = True
        elif how == "requeue":
            if status == "canceled" and not self.redis.zcard(named(f"rq:executions:{job_id}")):
                self.queue.canceled_job_registry.requeue(job_id)
        elif how == "delete" or status != "canceled":
            getattr(job, how)()

    # -- what workers do -----------------------------------------------------------------------------------------

    @rule(worker=workers, number=st.integers(1, 2), answered=answered)
    def claim(self, worker: str, number: int, answered: bool) -> None:
        names = self.free(worker)[:number]
        if names:
            claims = self.engines[worker].claim(*names).claims
            self.known[worker].update({claim.member: claim for claim in claims if answered})

    def one_of(self, data: Any) -> tuple[str, Claim]:
        held = [(worker, member) for worker in sorted(SLOTS) for member in self.known[worker]]
        worker, member = data.draw(st.sampled_from(held))
        return worker, self.known[worker][member]

    def outcome(self, claim: Claim, end: str) -> Any:
        """Return what RQ's handlers write for one end of a job."""
        release = release_commands(claim.raw, claim.job_id, utcformat(now()))
        job = named(f"rq:job:{claim.job_id}")
        more: dict[str, list[Any]] = {
            "finished": release,
            "at once": [("HSET", job, "status", "queued"), ("RPUSH", self.queue.key, claim.job_id)],
            "delayed": [
                ("HSET", job, "status", "scheduled"),
                ("ZADD", named("rq:scheduled:default"), time.time() - 5, claim.job_id),
                *release,
            ],
            "deleted": [("DEL", job), *release],
        }
        return finished(claim, *more[end])

    @precondition(lambda self: any(self.known.values()))
    @rule(
        data=st.data(),
        end=st.sampled_from(["finished", "at once", "delayed", "deleted"]),
        twice=st.booleans(),
        answered=answered,
        due=st.booleans(),
    )
    def commit(self, data: Any, end: str, twice: bool, answered: bool, due: bool) -> None:
        worker, claim = self.one_of(data)
        self.engines[worker].commit(*[self.outcome(claim, end)] * (1 + twice))
        if answered:
            del self.known[worker][claim.member]
        if due:
            self.promote(worker)

    @precondition(lambda self: any(self.known.values()))
    @rule(data=st.data(), begun=st.booleans(), answered=answered)
    def push_back(self, data: Any, begun: bool, answered: bool) -> None:
        worker, claim = self.one_of(data)
        ours = self.engines[worker]
        ours.run(push_back(ours.settings, ours.token, [claim], begun))
        if answered:
            del self.known[worker][claim.member]

    @rule(worker=workers)
    def promote(self, worker: str) -> None:
        ours = self.engines[worker]
        ours.run(promote(["default"], worker, {"name": worker}))

    @rule(worker=workers)
    def recover(self, worker: str) -> None:
        """Put back what the claims hash holds and the worker does not know of."""
        ours, known = self.engines[worker], self.known[worker]
        unknown = unknown_claims(ours.run(known_claims(ours.token)), known)
        if unknown:
            ours.run(push_back(ours.settings, ours.token, unknown, False))

    @rule(worker=workers, dies=st.sampled_from([None, *sorted(SLOTS)]))
    def look_for_stalled(self, worker: str, dies: str | None) -> None:
        """All leases end, as those of a killed worker, which knows nothing of its claims any more."""
        ours = self.engines[worker]
        if dies is not None:
            self.known[dies].clear()
        for member in self.redis.zrange(named("rq_pooled:leases:default"), 0, -1):
            self.redis.zadd(named("rq_pooled:leases:default"), {member: 1})
        self.redis.delete(named("rq_pooled:lock:stalled"))
        command = find_stalled(
            ours.settings, ours.token, [self.queue.key], SLOTS[worker][0], self.redis.time()[0] + 3600
        )
        stalled = stalled_of(ours.run(command), SLOTS[worker][0])
        for claim, _ in stalled.taken:
            self.known[worker][claim.member] = claim

    @rule(worker=workers)
    def look_for_free_slots(self, worker: str) -> None:
        """What each worker does every 15 seconds."""
        ours = self.engines[worker]
        ours.run(queue_ready([self.queue.key], 0, utcformat(now())))
        self.expired = False

    # -- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def no_more_are_admitted_than_the_limit_allows(self) -> None:
        assert self.redis.zcard(ALLOWED) <= CONCURRENCY

    @invariant()
    def what_is_queued_or_runs_is_admitted(self) -> None:
        queued = {job_id.decode() for job_id in self.redis.lrange(named("rq:queue:default"), 0, -1)}
        standing = {member.rpartition(":")[0] for member in self.ids(named("rq:wip:default"))}
        live = {job_id for job_id in queued | standing if self.status(job_id) in ("queued", "started")}
        assert live <= self.ids(ALLOWED), (queued, standing, self.ids(ALLOWED))

    @invariant()
    def no_job_waits_while_a_slot_is_free(self) -> None:
        if self.redis.zcard(WAITING):
            assert self.redis.zcard(ALLOWED) == CONCURRENCY
        for job_id in IDS:
            assert (self.status(job_id) == "rate_limited") <= (job_id in self.ids(WAITING))

    def commit_all(self, worker: str) -> None:
        for claim in self.known[worker].values():
            self.engines[worker].commit(self.outcome(claim, "finished"))
        self.known[worker].clear()

    def teardown(self) -> None:
        """Let all jobs run to their end: no slot is taken, none waits, and nothing of an execution is left."""
        if not hasattr(self, "expired"):
            return
        for _ in range(20):
            for worker in sorted(SLOTS):
                self.recover(worker)
                self.commit_all(worker)
                self.look_for_stalled(worker, None)
                self.promote(worker)
                self.look_for_free_slots(worker)
                self.commit_all(worker)
                self.claim(worker, 2, True)
                self.commit_all(worker)
            if not any(self.known.values()) and not self.redis.exists(
                named("rq:queue:default"), named("rq:wip:default"), WAITING
            ):
                break
        self.look_for_free_slots("one")
        assert (self.ids(ALLOWED), self.ids(WAITING)) == (set(), set())
        assert {self.status(job_id) for job_id in IDS} <= {None, "finished", "canceled"}
        self.redis.delete(named("rq_pooled:lock:stalled"), named("rq_pooled:none"))
        assert [key for key in residue(self.redis) if not key.startswith(named("rq_pooled:lock"))] == []


@pytest.mark.skipif(not RQ3, reason="of RQ 3")
@pytest.mark.timeout(300)
def test_a_limit_holds_and_leaks_nothing_in_any_order_of_steps(server: Any, redis: Redis) -> None:
    """Whatever happens to limited jobs, with replies lost and workers killed, at most so many are admitted, none waits
    beside a free slot, and no slot leaks once all has ended."""
    run_machine(LimitedLifecycle, server.url, redis, stateful_step_count=30, phases=[Phase.generate])
