"""What a kill or a signal does to horses, to the parent and to the jobs: nothing is lost, nobody else notices."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_jobs
import psutil
import pytest
from keys import named
from proxy import CutProxy
from redis import Redis
from rq import Queue
from rq.command import PUBSUB_CHANNEL_TEMPLATE, send_stop_job_command
from rq.job import Job, JobStatus
from support import WorkerProcess, keys_of_jobs, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.process.channel import encode


def horses(worker: WorkerProcess) -> set[int]:
    """Return the living children of a worker."""
    return {child.pid for child in psutil.Process(worker.pid).children() if not gone(child.pid)}


def zombies(worker: WorkerProcess) -> int:
    """Return how many dead children nobody has waited for."""
    found = 0
    for child in psutil.Process(worker.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += child.status() == psutil.STATUS_ZOMBIE
    return found


def gone(pid: int) -> bool:
    """Tell whether a process has ended (a zombie has)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ended(job: Job, timeout: float = 20) -> JobStatus:
    """Wait for the end of a job and return its status."""
    ends = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED)
    return wait_until(lambda: (status := job.get_status()) in ends and status, timeout, f"the end of {job.id}")


def start_waiting(queue: Queue, gate: Path, count: int) -> tuple[list[Job], list[int]]:
    """Enqueue jobs that wait for ``gate``; return them and the processes that run them."""
    jobs = [queue.enqueue(crash_jobs.wait_for_file, str(gate)) for _ in range(count)]
    return jobs, running_pids(gate, count)


def running_pids(gate: Path, count: int) -> list[int]:
    """Wait until ``count`` jobs wait for ``gate``; return their processes."""
    wait_until(lambda: len(list(gate.parent.glob(f"{gate.name}.*.pid"))) == count, what=f"{count} running jobs")
    return [int(path.name.split(".")[-2]) for path in gate.parent.glob(f"{gate.name}.*.pid")]


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue("q", connection=redis)


def test_a_killed_horse_fails_its_job_alone(server: EmbeddedServer, queue: Queue, tmp_path: Path) -> None:
    """kill -9 of a horse fails its job in RQ's words, is replaced, and the jobs beside it notice nothing."""
    gate = tmp_path / "gate"
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=3) as worker:
        before = wait_until(lambda: len(found := horses(worker)) == 3 and found)
        jobs, pids = start_waiting(queue, gate, 3)
        os.kill(pids[0], signal.SIGKILL)
        failed = wait_until(lambda: [job for job in jobs if job.get_status() == JobStatus.FAILED])
        assert len(failed) == 1
        assert (
            "Work-horse terminated unexpectedly; waitpid returned 9 (signal 9)" in failed[0].latest_result().exc_string
        )
        wait_until(lambda: len(horses(worker)) == 3, what="a replacement")
        assert horses(worker) - before and len(horses(worker) & before) == 2
        assert ended(queue.enqueue(crash_jobs.nothing)) == JobStatus.FINISHED  # the slot works again
        gate.touch()
        others = [job for job in jobs if job is not failed[0]]
        assert [ended(job) for job in others] == [JobStatus.FINISHED] * 2
        assert {job.return_value() for job in others} == set(pids[1:])
        assert not zombies(worker)


@pytest.mark.parametrize("function", [crash_jobs.exit_at_once, crash_jobs.segfault])
def test_a_job_that_ends_its_process_fails(
    server: EmbeddedServer, queue: Queue, tmp_path: Path, function: Callable[[], None]
) -> None:
    """A job that ends its process has failed, whatever the exit status, and costs nobody else anything."""
    with running_worker(server.url, "q", log=tmp_path / "log") as worker:
        bad, good = queue.enqueue(function), queue.enqueue(crash_jobs.nothing)
        assert (ended(bad), ended(good)) == (JobStatus.FAILED, JobStatus.FINISHED)
        assert "Work-horse terminated unexpectedly" in bad.latest_result().exc_string
        wait_until(lambda: len(horses(worker)) == 1 and not zombies(worker), what="one horse and no zombie")


def test_a_job_that_never_stops_talking_holds_up_no_other(server: EmbeddedServer, queue: Queue, tmp_path: Path) -> None:
    """While a job floods the parent with messages, the jobs beside it begin, end and are recorded."""
    end = tmp_path / "end"
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=2) as worker:
        try:
            flood = queue.enqueue(crash_jobs.flood_the_parent, str(end))
            wait_until(lambda: flood.get_status() == JobStatus.STARTED)
            assert [ended(queue.enqueue(crash_jobs.nothing)) for _ in range(20)] == [JobStatus.FINISHED] * 20
            assert flood.get_status() == JobStatus.STARTED
        finally:
            end.touch()
        assert ended(flood) == JobStatus.FINISHED
        assert worker.stop() == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\5(\0\0\0\4",
        encode(("outcome", "finished", (0, 0, ""), (0, 0, b""), (0, 0, b""), False)),
        encode(("outcome", "finished", (0, 0, b""), (1, 9, b"$1\r\n1\r\n$4\r\nPING\r\n"), (0, 0, b""), False)),
        encode(("phase", "soon")),
        encode(("relay", [["PING"]])),
        encode(("relay", [[b"SUBSCRIBE", b"channel"]])),
        encode(("relay", [[b"SELECT", b"3"]])),
        encode(("relay", [[b"BLPOP", b"nothing", b"0"]])),
        encode(("relay", [[b"PING"]])) * 2,
        encode(("relay", [[b"GET", b"large"]])),
        encode(("free",)),
        encode([]),
    ],
    ids=["memory", "text", "words", "phase", "relay", "subscribe", "select", "block", "twice", "get", "free", "shape"],
)
def test_a_wrong_message_ends_its_horse_alone(
    server: EmbeddedServer, queue: Queue, tmp_path: Path, data: bytes
) -> None:
    """A job that writes nonsense to the parent fails at once; the worker, and the job beside it, go on."""
    gate = tmp_path / "gate"
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=2) as worker:
        (beside,), pids = start_waiting(queue, gate, 1)
        bad = queue.enqueue(crash_jobs.write_to_the_parent, data)
        assert ended(bad) == JobStatus.FAILED
        assert "Work-horse terminated unexpectedly; waitpid returned 9" in bad.latest_result().exc_string
        assert ended(queue.enqueue(crash_jobs.nothing)) == JobStatus.FINISHED
        gate.touch()
        assert ended(beside) == JobStatus.FINISHED
        assert beside.return_value() == pids[0]
        assert worker.output().count("no message") == 1
        assert "error in" not in worker.output()


def test_idle_horses_that_are_killed_are_replaced(server: EmbeddedServer, queue: Queue, tmp_path: Path) -> None:
    """Killing all horses of an idle worker fails no job and leaves it able to work."""
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=4) as worker:
        for _ in range(3):
            before = wait_until(lambda: len(found := horses(worker)) == 4 and found)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(horses(worker)) == 4 and not horses(worker) & before, what="new ones")  # noqa: B023
        jobs = [queue.enqueue(crash_jobs.nothing) for _ in range(20)]
        assert {ended(job) for job in jobs} == {JobStatus.FINISHED}


def test_horses_die_with_the_parent(server: EmbeddedServer, queue: Queue, redis: Redis, tmp_path: Path) -> None:
    """After kill -9 of the parent no horse, busy or idle, and nothing a job started, lives on for a second."""
    gate = tmp_path / "gate"
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=4) as worker:
        _, busy = start_waiting(queue, gate, 2)
        every = wait_until(lambda: len(found := horses(worker)) == 4 and found)
        assert set(busy) < every
        worker.kill()
        wait_until(lambda: all(gone(pid) for pid in every), 1.0, "the ends of all horses")
        gate.touch()
    assert redis.zcard(named("rq:wip:q")) == 2  # claims stand until their lease is over: nothing was recorded


def test_sigterm_to_the_whole_group_is_a_warm_shutdown(
    server: EmbeddedServer, queue: Queue, redis: Redis, tmp_path: Path
) -> None:
    """SIGTERM to parent and horses, as platforms send it, lets running jobs finish, and ends with 0."""
    gate = tmp_path / "gate"
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=3) as worker:
        jobs, pids = start_waiting(queue, gate, 3)
        for pid in [worker.pid, *pids]:
            os.kill(pid, signal.SIGTERM)
        worker.wait_for("warm shut down requested")
        queued = queue.enqueue(crash_jobs.nothing)
        gate.touch()
        assert worker.wait() == 0
        assert [job.get_status() for job in jobs] == [JobStatus.FINISHED] * 3
        assert {job.return_value() for job in jobs} == set(pids)
        assert queue.get_job_ids() == [queued.id]
        assert not keys_of_jobs(redis)
        assert not redis.smembers(named("rq:workers"))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_hard(
    server: EmbeddedServer, queue: Queue, redis: Redis, tmp_path: Path, signum: signal.Signals
) -> None:
    """A second signal after a second puts running jobs back to the front of their queue, in order; they run again."""
    gate = tmp_path / "gate"
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=2) as worker:
        jobs, pids = start_waiting(queue, gate, 2)
        behind = queue.enqueue(crash_jobs.nothing)
        first = time.monotonic()
        worker.process.send_signal(signum)
        wait_until(lambda: time.monotonic() - first > 1.05)
        worker.process.send_signal(signum)
        assert worker.wait(5) == 0
        assert all(gone(pid) for pid in pids)
        assert queue.get_job_ids() == [*(job.id for job in jobs), behind.id]
        assert [job.get_status() for job in jobs] == [JobStatus.QUEUED] * 2
        assert not redis.zcard(named("rq:wip:q")) and not redis.keys(named("rq:execution*")) and not keys_of_jobs(redis)
        assert not redis.smembers(named("rq:workers"))
    gate.touch()
    with running_worker(server.url, "q", "--burst", log=tmp_path / "second", ready=None) as worker:
        assert worker.wait() == 0
    assert [job.get_status() for job in [*jobs, behind]] == [JobStatus.FINISHED] * 3
    assert [len(job.results()) for job in jobs] == [1, 1]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_two_signals_within_a_second_are_one(
    server: EmbeddedServer, queue: Queue, tmp_path: Path, signum: signal.Signals
) -> None:
    """A signal repeated at once (worker-pool and Ctrl-C both send it) does not cost the running jobs."""
    gate = tmp_path / "gate"
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=2) as worker:
        jobs, pids = start_waiting(queue, gate, 2)
        worker.process.send_signal(signum)
        worker.wait_for("warm shut down requested")
        worker.process.send_signal(signum)
        worker.process.send_signal(signal.SIGTERM)
        gate.touch()
        assert worker.wait() == 0
        assert {job.return_value() for job in jobs} == set(pids)
        assert worker.output().count("warm shut down requested") == 1
        assert "cold shut down" not in worker.output()


def test_horses_that_die_at_once_do_not_make_the_parent_spin(
    server: EmbeddedServer, queue: Queue, tmp_path: Path
) -> None:
    """Horses that die before they are ready are forked again with growing delay, while signals are still obeyed."""
    with running_worker(
        server.url, "q", log=tmp_path / "log", worker_class="stillborn_worker.Worker", ready=None
    ) as worker:
        deaths = lambda: worker.output().count("a horse ended before it was ready")
        wait_until(deaths, what="the first death")
        began = time.monotonic()
        wait_until(lambda: deaths() >= 5, 15, "a few more")
        # 0.1, 0.2, 0.4 and 0.8 s lie between them: with any constant delay it would be far less.
        assert time.monotonic() - began > 1.4
        assert psutil.Process(worker.pid).is_running()
        worker.kill()


def test_a_worker_without_living_horses_can_be_stopped(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A warm shutdown ends although no horse comes up: nothing runs that it would have to wait for."""
    with running_worker(server.url, "q", log=tmp_path / "log", worker_class="stillborn_worker.Worker") as worker:
        worker.wait_for("ended before it was ready")
        assert worker.stop(3) == 0


def test_one_job_per_horse(server: EmbeddedServer, queue: Queue, tmp_path: Path) -> None:
    """With MAX_JOBS_PER_HORSE=1 every job has a process of its own, as in stock RQ."""
    with running_worker(
        server.url, "q", log=tmp_path / "log", concurrency=2, RQ_POOLED_MAX_JOBS_PER_HORSE="1"
    ) as worker:
        jobs = [queue.enqueue(crash_jobs.pid) for _ in range(30)]
        assert {ended(job) for job in jobs} == {JobStatus.FINISHED}
        assert len({job.return_value() for job in jobs}) == 30
        wait_until(lambda: not zombies(worker) and len(horses(worker)) == 2, what="two horses")


def test_replacements_leak_nothing(server: EmbeddedServer, queue: Queue, redis: Redis, tmp_path: Path) -> None:
    """After 300 replaced horses the parent has its descriptors and children of the beginning, and no zombie."""
    with running_worker(
        server.url, "q", log=tmp_path / "log", concurrency=2, RQ_POOLED_MAX_JOBS_PER_HORSE="1"
    ) as worker:

        def run(count: int) -> int:
            jobs = queue.enqueue_many([Queue.prepare_data(crash_jobs.nothing) for _ in range(count)])
            wait_until(lambda: all(redis.hget(job.key, "status") == b"finished" for job in jobs[-3:]), 30)
            wait_until(lambda: len(horses(worker)) == 2 and not zombies(worker), what="two horses")
            return stable_descriptors(worker)

        before = run(10)
        assert run(300) == before
        assert len(psutil.Process(worker.pid).children(recursive=True)) == 2


def stable_descriptors(worker: WorkerProcess) -> int:
    """Return the number of descriptors once it is the same many times in a row."""
    history: list[int] = []

    def same() -> int:
        history.append(len(os.listdir(f"/proc/{worker.pid}/fd")))
        return len(history) > 30 and len(set(history[-30:])) == 1

    wait_until(same, 10, "a steady number of descriptors")
    return history[-1]


def test_a_stop_command_arriving_with_a_wakeup_is_obeyed(
    server: EmbeddedServer, queue: Queue, redis: Redis, tmp_path: Path
) -> None:
    """Neither of a command and a wake-up that travel in one segment is lost, in any of many rounds."""
    with running_worker(server.url, "q", "--name", "w", log=tmp_path / "log", concurrency=2) as worker:
        prepared = Queue("elsewhere", connection=redis)
        for number in range(25):
            gate = tmp_path / f"gate{number}"
            (running,), _ = start_waiting(queue, gate, 1)
            other = prepared.enqueue(crash_jobs.nothing)
            name = redis.hget(running.key, "worker_name").decode()
            payload = f'{{"command": "stop-job", "job_id": "{running.id}"}}'
            channel = PUBSUB_CHANNEL_TEMPLATE % name
            with redis.pipeline() as together:
                if number % 2:
                    together.publish(channel, payload)
                together.rpush(queue.key, other.id)
                if not number % 2:
                    together.publish(channel, payload)
                together.execute()
            assert (ended(running), ended(other)) == (JobStatus.STOPPED, JobStatus.FINISHED), (number, worker.output())
        assert worker.process.poll() is None


def test_a_stop_command_is_obeyed_before_the_claim_is_answered(
    server: EmbeddedServer, queue: Queue, redis: Redis, tmp_path: Path
) -> None:
    """A job is stopped as soon as the server says that it is started, also where the worker has not heard of it yet."""
    proxy = CutProxy(server.port)
    try:
        with running_worker(proxy.url, "q", "--name", "w", "--verbose", log=tmp_path / "log") as worker:
            assert ended(queue.enqueue(crash_jobs.nothing)) == JobStatus.FINISHED
            # Until it is asleep: what it asks for next is the claim.
            wait_until(lambda: redis.info("stats")["tracking_total_items"] == 2, what="the worker to sleep")
            proxy.delay_on(queue.key.encode())
            job = queue.enqueue(time.sleep, 30)
            wait_until(lambda: job.get_status() == JobStatus.STARTED, what="the claim")
            send_stop_job_command(redis, job.id)
            worker.wait_for(f"Received command to stop job {job.id}")
            proxy.deliver()
            assert ended(job, 10) == JobStatus.STOPPED, worker.output()
            assert "command ignored" not in worker.output()
    finally:
        proxy.close()


def test_a_job_stopped_while_others_run(server: EmbeddedServer, queue: Queue, redis: Redis, tmp_path: Path) -> None:
    """A stop command ends the job that it names and no other, whichever slot runs it."""
    gate = tmp_path / "gate"
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=4):
        jobs, _ = start_waiting(queue, gate, 4)
        names = {redis.hget(job.key, "worker_name").decode() for job in jobs}
        assert len(names) == 4
        for name in names:  # a wrong worker ignores it
            redis.publish(PUBSUB_CHANNEL_TEMPLATE % name, f'{{"command": "stop-job", "job_id": "{jobs[2].id}"}}')
        assert ended(jobs[2]) == JobStatus.STOPPED
        gate.touch()
        assert [ended(jobs[i]) for i in (0, 1, 3)] == [JobStatus.FINISHED] * 3


@pytest.mark.parametrize(
    "payload",
    [b"\xff\xfe", b"[]", b"{}", b'{"command": "no-such"}', b'{"command": "stop-job"}', b"[" * 100_000],
    ids=["bytes", "list", "empty", "unknown", "no-job", "nested"],
)
def test_a_malformed_command_is_ignored(
    server: EmbeddedServer, queue: Queue, redis: Redis, tmp_path: Path, payload: Any
) -> None:
    """Whatever is published on a control channel, the worker goes on."""
    with running_worker(server.url, "q", "--name", "w", log=tmp_path / "log") as worker:
        redis.publish(PUBSUB_CHANNEL_TEMPLATE % "w", payload)
        assert ended(queue.enqueue(crash_jobs.nothing)) == JobStatus.FINISHED
        assert "Traceback" not in worker.output()
