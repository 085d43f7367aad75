"""Jobs that are claimed ahead: short ones come several at a time, and nothing else changes for anyone."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ahead_jobs
import pytest
from keys import named
from proxy import CutProxy
from redis import Redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.job import Job, JobStatus
from rq.suspension import resume, suspend
from support import QUICK, keys_of_jobs, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.process.runnable import is_runnable

#: What a job is told, see ahead_jobs.run.
Told = tuple[str, str]
SHORT: Told = ("", "")


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue("q", connection=redis)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def enqueue(queue: Queue, notes: Path, *told: Told, first: int = 0, **options: Any) -> list[str]:
    """Enqueue jobs in one step, each told something, and return their ids."""
    data = [
        Queue.prepare_data(ahead_jobs.run, (str(notes), *what), job_id=f"j{number}", result_ttl=600, **options)
        for number, what in enumerate(told, first)
    ]
    with queue.connection.pipeline() as pipe:
        jobs = queue.enqueue_many(data, pipeline=pipe)
        pipe.execute()
    return [job.id for job in jobs]


def begun(notes: Path, what: str = "begin") -> Counter[str]:
    """How often each job has begun, or ended."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return Counter(line.split()[1] for line in lines if line.startswith(what))


def once(notes: Path, ids: Sequence[str]) -> bool:
    """Tell whether each of these jobs has begun once."""
    counts = begun(notes)
    return all(counts[job_id] == 1 for job_id in ids)


def finished(queue: Queue, count: int, timeout: float = 40.0) -> None:
    """Wait until so many jobs have finished."""
    registry = queue.finished_job_registry
    wait_until(lambda: registry.get_job_count(cleanup=False) >= count, timeout, f"{count} finished jobs")


def claims(redis: Redis, ids: Sequence[str]) -> int:
    """How many claims took these finished jobs: ids of executions begin with that of their claim."""
    found = set()
    for job_id in ids:
        entries = redis.xrevrange(named(f"rq:results:{job_id}"))
        found.add(entries[0][1][b"execution_id"][:24])
    return len(found)


def warm(queue: Queue, notes: Path, count: int = 200) -> None:
    """Run short jobs until the worker knows that they are."""
    enqueue(queue, notes, *[SHORT] * count, first=10_000)
    finished(queue, count)
    queue.connection.delete(queue.finished_job_registry.key)


def stalls(redis: Redis, ids: Sequence[str]) -> list[str]:
    """The jobs that count a stall."""
    return [job_id for job_id in ids if redis.hget(named(f"rq:job:{job_id}"), "rq_pooled_stalls")]


def left(redis: Redis) -> list[bytes]:
    """What is left of claims."""
    kinds = ("rq:execution:*", "rq:executions:*", "rq:wip:*", "rq:workers:*:executions", "rq:worker:*:executions")
    return [key for kind in kinds for key in redis.keys(named(kind))] + keys_of_jobs(redis)


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_short_jobs_come_several_at_a_time(server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path) -> None:
    """A backlog of short jobs is claimed in far fewer steps than singly; each runs once, and only its result stays."""
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2):
        warm(queue, notes)
        ids = enqueue(queue, notes, *[SHORT] * 400)
        finished(queue, 400)
        assert claims(redis, ids) < 150
        assert set(begun(notes, "end").values()) == {1} and not stalls(redis, ids)
        wait_until(lambda: not left(redis), what="no traces of claims")
        spans: dict[tuple[bytes, bytes], list[tuple[float, float]]] = {}
        for job_id in ids:
            job = Job.fetch(job_id, connection=redis)
            ((_, entry),) = redis.xrange(named(f"rq:results:{job_id}"))
            assert job.started_at and job.ended_at and job.enqueued_at <= job.started_at <= job.ended_at
            of_claim = spans.setdefault((entry[b"execution_id"][:24], entry[b"worker_name"]), [])
            of_claim.append((float(entry[b"execution_started_at"]), float(entry[b"execution_ended_at"])))
        for of_claim in spans.values():
            of_claim.sort()
            assert all(end <= start for (_, end), (start, _) in pairwise(of_claim)), "each began when it did"
        assert {redis.hget(key, "state") for key in redis.smembers(named("rq:workers"))} == {b"idle"}
        assert not [key for key in redis.smembers(named("rq:workers")) if redis.hget(key, "current_job")]


@pytest.mark.parametrize(("concurrency", "ahead"), [(1, "1"), (2, "0")])
def test_one_at_a_time_where_that_is_asked_for(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path, concurrency: int, ahead: str
) -> None:
    """With one slot, or with CLAIM_AHEAD=0, no slot holds a second job; one slot keeps the order of the queue."""
    settings = {"RQ_POOLED_CLAIM_AHEAD": ahead}
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=concurrency, **settings):
        warm(queue, notes)
        ids = enqueue(queue, notes, *[SHORT] * 100)
        finished(queue, 100)
        assert claims(redis, ids) >= 100 / concurrency
        if concurrency == 1:
            assert [job_id for job_id in begun(notes) if job_id in ids] == ids


def test_nothing_waits_behind_a_job_that_turns_out_long(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path
) -> None:
    """Short jobs behind one of the same function that takes long end beside it; viewers see the long one running."""
    gate = notes.parent / "gate"
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2):
        warm(queue, notes)
        ids = enqueue(queue, notes, *[SHORT] * 20, ("wait", str(gate)), *[SHORT] * 100)
        finished(queue, 120)
        long = Job.fetch(ids[20], connection=redis)
        assert long.get_status() == JobStatus.STARTED and long.worker_name
        if redis.hexists(named(f"rq:worker:{long.worker_name}"), "current_job"):
            assert redis.hget(named(f"rq:worker:{long.worker_name}"), "current_job") == long.id.encode()
        assert redis.scard(named(f"rq:worker:{long.worker_name}:executions")) == 1
        gate.touch()
        finished(queue, 121)
        wait_until(lambda: not left(redis), what="no traces of claims")
    assert set(begun(notes).values()) == {1} and not stalls(redis, ids)


def test_a_job_may_wait_for_one_behind_it(server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path) -> None:
    """A job that waits for the end of one that waits behind it holds up nothing, since that one runs elsewhere."""
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2):
        warm(queue, notes)
        ids: list[str] = []
        for first in range(0, 300, 30):
            told = [SHORT] * 2 + [("wait for", f"j{first + 6}")] + [SHORT] * 27
            ids += enqueue(queue, notes, *told, first=first)
            finished(queue, first + 30, timeout=15)
        assert once(notes, ids) and not stalls(redis, ids)


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_a_waiting_job_that_is_cancelled_does_not_run(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path, how: str
) -> None:
    """A job that waits behind a long one is cancelled or deleted: it goes back nowhere, and those beside it run."""
    gate = notes.parent / "gate"
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2) as worker:
        warm(queue, notes)
        ids = enqueue(queue, notes, ("freeze", str(gate)), *[SHORT] * 39)
        wait_until(lambda: is_stopped(worker.process.pid), what="a frozen worker")
        # It stands behind the first one, whose horse has every second job.
        gone = ids[2]
        assert gone not in begun(notes) and Job.fetch(gone, redis).get_status() == JobStatus.STARTED
        getattr(Job.fetch(gone, redis), how)()
        os.kill(worker.process.pid, signal.SIGCONT)
        finished(queue, 38)
        gate.touch()
        finished(queue, 39)
        assert gone not in begun(notes) and once(notes, [one for one in ids if one != gone])
        wait_until(lambda: not left(redis), what="no traces of claims")


def test_a_horse_that_dies_takes_no_waiting_job_with_it(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path
) -> None:
    """Jobs that kill their horse among short ones fail alone; those that waited behind them run once, uncharged."""
    deaths = {20: ("die", ""), 21: ("exit", "")}
    told = [deaths.get(number % 40, SHORT) for number in range(400)]
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2):
        warm(queue, notes)
        ids = enqueue(queue, notes, *told)
        finished(queue, 380)
        wait_until(lambda: queue.failed_job_registry.get_job_count(cleanup=False) == 20, what="20 failed jobs")
        counts = begun(notes)
        assert all(counts[job_id] == 1 for job_id in ids) and not stalls(redis, ids)
        wait_until(lambda: not left(redis), what="no traces of claims")


def test_errors_and_time_limits_are_those_of_their_job(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path
) -> None:
    """A job that raises, or that reaches its time limit, among short ones fails alone, with its own reason."""
    told = [SHORT] * 90
    told[30], told[60] = ("raise", "on purpose"), ("sleep", "30")
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2):
        warm(queue, notes)
        ids = enqueue(queue, notes, *told, timeout=1)
        finished(queue, 88)
        wait_until(lambda: queue.failed_job_registry.get_job_count(cleanup=False) == 2, what="2 failed jobs")
        for at, reason in ((30, "on purpose"), (60, "JobTimeoutException")):
            result = Job.fetch(ids[at], connection=redis).latest_result()
            assert result is not None and reason in str(result.exc_string)
        assert once(notes, ids)


def test_replaced_horses_leave_nothing_behind(server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path) -> None:
    """With a horse for every seven jobs each job runs once, and none counts a try."""
    settings = {"RQ_POOLED_MAX_JOBS_PER_HORSE": "7"}
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2, **settings):
        warm(queue, notes, 60)
        ids = enqueue(queue, notes, *[SHORT] * 200)
        finished(queue, 200)
        assert claims(redis, ids) < 190
        pids = Counter(line.split()[2] for line in notes.read_text().splitlines() if line.startswith("begin"))
        assert max(pids.values()) <= 7 and once(notes, ids)
        assert not stalls(redis, ids)


def test_each_job_reads_its_own_replies(server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path) -> None:
    """Jobs that use Redis, and leave replies unread, come several at a time; each gets its own replies."""
    told = [[("save", ""), ("owe", ""), ("ask", ""), SHORT][number % 4] for number in range(200)]
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2):
        warm(queue, notes)
        ids = enqueue(queue, notes, *told)
        finished(queue, 200)
        for job_id, (what, _) in zip(ids, told):
            job = Job.fetch(job_id, connection=redis)
            assert what != "save" or job.meta == {"saved": job_id}
            assert what != "ask" or job.return_value() == job_id


def test_a_warm_shutdown_ends_what_runs_and_returns_the_rest(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path
) -> None:
    """SIGTERM amid short jobs: what has begun is recorded, all else is in the queue, and none of it counts a try."""
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2) as worker:
        warm(queue, notes)
        ids = enqueue(queue, notes, *[SHORT] * 3000)
        finished(queue, 300)
        assert worker.stop() == 0
    ended = set(queue.finished_job_registry.get_job_ids(cleanup=False))
    rest = queue.get_job_ids()
    assert rest and not ended & set(rest) and ended | set(rest) == set(ids)
    assert {job_id for job_id in begun(notes) if job_id in set(ids)} == ended
    assert not stalls(redis, ids) and not left(redis)
    assert {redis.hget(named(f"rq:job:{job_id}"), "status") for job_id in rest} == {b"queued"}


def test_a_hard_stop_charges_only_what_runs(server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path) -> None:
    """Two SIGTERM: jobs that run go back with a stall, and those that wait without one."""
    gate = notes.parent / "gate"
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2) as worker:
        warm(queue, notes)
        ids = enqueue(queue, notes, *[SHORT] * 3, *[("wait", str(gate))] * 2, *[SHORT] * 100)
        wait_until(lambda: {ids[3], ids[4]} <= set(begun(notes)), what="two long jobs")
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(1.1)  # signals that are closer together count as one
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert sorted(stalls(redis, ids)) == [ids[3], ids[4]]
    assert set(queue.get_job_ids()) == set(ids) - set(queue.finished_job_registry.get_job_ids(cleanup=False))
    assert not left(redis)


def test_a_killed_parent_loses_nothing(server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path) -> None:
    """kill -9 of the parent amid short jobs: another worker runs all that are not recorded, held ahead or not."""
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2, **QUICK) as worker:
        warm(queue, notes)
        ids = enqueue(queue, notes, *[SHORT] * 2000)
        finished(queue, 200)
        worker.kill()
    with running_worker(server.url, "q", log=notes.parent / "log2", concurrency=2, **QUICK):
        finished(queue, 2000)
        counts = begun(notes)
        # What ran, and was not recorded, runs again; that is what waited in two slots at most.
        assert all(counts[job_id] in (1, 2) for job_id in ids)
        assert sum(counts[job_id] == 2 for job_id in ids) <= 34
        # Notes of the killed worker expire.
        kinds = [named(kind) for kind in ("rq:execution:*", "rq:executions:*", "rq:wip:*", "rq_pooled:leases:*")]
        wait_until(lambda: not [key for kind in kinds for key in redis.keys(kind)], what="no traces of claims")


def test_what_waits_at_a_frozen_worker_runs_elsewhere_alone(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path
) -> None:
    """A worker is frozen, and its jobs are handed on: its horse begins none of those that waited there."""
    gate = notes.parent / "gate"
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2, **QUICK) as worker:
        warm(queue, notes)
        ids = enqueue(queue, notes, ("freeze", str(gate)), *[SHORT] * 39)
        wait_until(lambda: ids[0] in begun(notes), what="the job that freezes its worker")
        horse = next(int(line.split()[2]) for line in notes.read_text().splitlines() if f" {ids[0]} " in line)
        try:
            with running_worker(server.url, "q", log=notes.parent / "log2", concurrency=2, **QUICK):
                finished(queue, 40)
                gate.touch()
                wait_until(lambda: begun(notes, "end")[ids[0]] == 2, what="the end of the job that froze its worker")
                # It has nothing more to do when it sleeps.
                wait_until(lambda: not is_runnable(horse), what="the horse waits")
        finally:
            os.kill(worker.process.pid, signal.SIGCONT)
        wait_until(lambda: not left(redis), what="no traces of claims")
        lines = [line.split() for line in notes.read_text().splitlines()]
        assert [line[1] for line in lines if line[2] == str(horse) and line[1] in ids] == [ids[0]] * 2


@pytest.mark.parametrize("concurrency", [1, 2])
def test_what_a_frozen_worker_claimed_runs_elsewhere_alone(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path, concurrency: int
) -> None:
    """A worker is frozen between its claim and its horses until the jobs are handed on: it begins none of them."""
    proxy = CutProxy(server.port)
    try:
        with running_worker(proxy.url, "q", log=notes.parent / "log", concurrency=concurrency, **QUICK) as worker:
            warm(queue, notes)
            # The strategy is a word of claims alone.
            proxy.delay_on(b"\r\ndefault\r\n")
            ids = enqueue(queue, notes, *[SHORT] * 40)
            assert proxy.done.wait(20)
            os.kill(worker.process.pid, signal.SIGSTOP)
            try:
                proxy.deliver()
                with running_worker(server.url, "q", log=notes.parent / "log2", concurrency=2, **QUICK):
                    finished(queue, 40)
            finally:
                os.kill(worker.process.pid, signal.SIGCONT)
            worker.wait_for("stood still")
            assert once(notes, ids)
            wait_until(lambda: not left(redis), what="no traces of claims")
            enqueue(queue, notes, *[SHORT] * 40, first=100)
            finished(queue, 80)
    finally:
        proxy.close()


@pytest.mark.parametrize("concurrency", [1, 2])
def test_what_a_frozen_machine_was_about_to_begin_runs_elsewhere_alone(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path, concurrency: int
) -> None:
    """A worker and its horses are frozen before these have read of jobs that are handed on: none of them begins."""
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=concurrency, **QUICK) as worker:
        warm(queue, notes)
        horses = {int(line.split()[2]) for line in notes.read_text().splitlines()}
        frozen = [*horses, worker.process.pid]
        try:
            for horse in horses:
                os.kill(horse, signal.SIGSTOP)
            ids = enqueue(queue, notes, *[SHORT] * 40)
            registry = queue.started_job_registry
            wait_until(lambda: registry.get_job_count(cleanup=False) >= concurrency, what="claims")
            time.sleep(0.05)  # its horses are told by then
            os.kill(worker.process.pid, signal.SIGSTOP)
            with running_worker(server.url, "q", log=notes.parent / "log2", concurrency=2, **QUICK):
                finished(queue, 40)
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        worker.wait_for("stood still")
        assert once(notes, ids)
        wait_until(lambda: not left(redis), what="no traces of claims")
        enqueue(queue, notes, *[SHORT] * 40, first=100)
        finished(queue, 80)


def test_a_death_at_a_frozen_worker_is_judged_by_its_lease(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path
) -> None:
    """A horse dies while its worker is frozen, and the job ends well elsewhere: nothing is told of the death, however
    late the server tells whose job it is.
    """
    gate = notes.parent / "gate"
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2, **QUICK) as worker:
        (job_id,) = enqueue(queue, notes, ("freeze", str(gate)))
        wait_until(lambda: is_stopped(worker.process.pid), what="a frozen worker")
        os.kill(int(notes.read_text().split()[2]), signal.SIGKILL)
        with running_worker(server.url, "q", log=notes.parent / "log2", concurrency=2, **QUICK):
            finished(queue, 1)
            redis.execute_command("CLIENT", "PAUSE", 500, "WRITE")
            os.kill(worker.process.pid, signal.SIGCONT)
            worker.wait_for("was handed on")
        assert "unexpectedly" not in worker.output() and "Work horse killed" not in worker.output()
        assert Job.fetch(job_id, connection=redis).get_status() == JobStatus.FINISHED


def test_suspending_puts_back_what_waits(server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path) -> None:
    """Once a worker has noticed that RQ is suspended, nothing is claimed or begun until it is resumed."""
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2) as worker:
        warm(queue, notes)
        ids = enqueue(queue, notes, *[SHORT] * 3000)
        finished(queue, 300)
        suspend(redis)
        worker.wait_for("suspended")
        registry = queue.started_job_registry
        wait_until(lambda: registry.get_job_count(cleanup=False) == 0, what="no started job")
        count = len(begun(notes))
        assert len(queue) + queue.finished_job_registry.get_job_count(cleanup=False) == 3000
        time.sleep(0.3)
        assert len(begun(notes)) == count
        resume(redis)
        finished(queue, 3000)
        assert once(notes, ids) and not stalls(redis, ids)


def test_stopping_a_job_stops_no_other(server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path) -> None:
    """stop-job of a long job amid short ones ends that one; those around it run once."""
    with running_worker(server.url, "q", log=notes.parent / "log", concurrency=2):
        warm(queue, notes)
        ids = enqueue(queue, notes, *[SHORT] * 5, ("sleep", "60"), *[SHORT] * 3000)
        wait_until(lambda: ids[5] in begun(notes), what="the long job")
        send_stop_job_command(redis, ids[5])
        finished(queue, 3005)
        assert Job.fetch(ids[5], connection=redis).get_status() == JobStatus.STOPPED
        assert once(notes, ids)


def test_free_slots_of_another_worker_find_jobs(
    server: EmbeddedServer, redis: Redis, queue: Queue, notes: Path
) -> None:
    """Of two workers with jobs of 1 ms, then of 100 ms, no slot stands idle beside jobs that wait at another one."""
    told = [("sleep", "0.001")] * 100 + [("sleep", "0.1")] * 100
    with (
        running_worker(server.url, "q", log=notes.parent / "log1", concurrency=4),
        running_worker(server.url, "q", log=notes.parent / "log2", concurrency=4),
    ):
        warm(queue, notes)
        ids = enqueue(queue, notes, *told)
        finished(queue, 200)
    long = set(ids[100:])
    lines = [line.split() for line in notes.read_text().splitlines()]
    begins = {(pid, float(at)) for what, job_id, pid, at in lines if what == "begin" and job_id in long}
    ends = [(pid, float(at)) for what, job_id, pid, at in lines if what == "end" and job_id in long]
    assert len({pid for pid, _ in begins}) == 8, "all slots are busy"
    last = max(at for _, at in begins)
    idle = []
    for pid, at in ends:
        later = [begin for other, begin in begins if other == pid and begin > at]
        if at < last:
            idle.append((min(later) if later else last) - at)
    # The machine may have other things to do now and then.
    assert sorted(idle)[len(idle) * 3 // 4] < 0.02, sorted(idle)
