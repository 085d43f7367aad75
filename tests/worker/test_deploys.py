"""Stopping and replacing workers: what runs ends or goes back, at once, and is not lost."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import crash_jobs
import jobs
import psutil
import pytest
from engine import residue
from keys import named
from redis import Redis
from rq import Queue, Retry
from rq.job import Job, JobStatus
from support import PYTHONPATH, WorkerProcess, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer


def stop(worker: WorkerProcess, signum: int = signal.SIGTERM) -> None:
    """Send a signal to the parent only."""
    worker.process.send_signal(signum)


def test_after_the_deadline_running_jobs_go_back(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """SHUTDOWN_TIMEOUT over: running jobs are stopped, go to the front of their queue, and have stalled once."""
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", concurrency=2, RQ_POOLED_SHUTDOWN_TIMEOUT="1") as worker:
        held = [queue.enqueue(jobs.hang, "running", retry=Retry(max=1)) for _ in range(2)]
        wait_until(lambda: redis.llen("running") == 2)
        behind = queue.enqueue(jobs.nothing)
        horses = [int(pid) for pid in redis.lrange("running", 0, -1)]
        stop(worker)
        assert worker.wait(20) == 0
        assert redis.lrange(named("rq:queue:default"), 0, -1) == [job.id.encode() for job in (*held, behind)]
        for job in held:
            fields = redis.hgetall(job.key)
            assert (fields[b"status"], fields[b"rq_pooled_stalls"], fields[b"retries_left"]) == (b"queued", b"1", b"1")
        assert residue(redis) == []
        assert not [pid for pid in horses if psutil.pid_exists(pid)]
        assert redis.smembers(named("rq:workers")) == set()


def test_a_job_that_ends_in_time_is_recorded(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Before SHUTDOWN_TIMEOUT is over a shutdown is a warm one: what runs ends, nothing new begins."""
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", RQ_POOLED_SHUTDOWN_TIMEOUT="30") as worker:
        held, behind = queue.enqueue(jobs.wait_for, "go", "running"), queue.enqueue(jobs.nothing)
        wait_until(lambda: redis.llen("running") == 1)
        stop(worker)
        worker.wait_for("warm shut down requested")
        redis.lpush("go", 1)
        assert worker.wait(20) == 0
        assert held.get_status() == JobStatus.FINISHED
        assert behind.get_status() == JobStatus.QUEUED


def test_a_job_that_no_deploy_lets_end_fails_at_last(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A job stopped by more deploys than MAX_STALLS does not go back for ever: the next worker fails it, and says
    why.
    """
    queue = Queue(connection=redis)
    settings = {"RQ_POOLED_SHUTDOWN_TIMEOUT": "0.3", "RQ_POOLED_MAX_STALLS": "1"}
    job = queue.enqueue(jobs.hang, "running")
    for deploy in (1, 2):
        with running_worker(server.url, log=tmp_path / f"{deploy}", **settings) as worker:
            wait_until(lambda number=deploy: redis.llen("running") == number)
            stop(worker)
            assert worker.wait(20) == 0
    quick = {
        "RQ_POOLED_HEARTBEAT_INTERVAL": "0.3",
        "RQ_POOLED_HEARTBEAT_TTL": "1",
        "RQ_POOLED_STALLED_INTERVAL": "0.3",
        "RQ_POOLED_RECONNECT_CAP": "0.3",
    }
    with running_worker(server.url, log=tmp_path / "3", **{**settings, **quick}):
        wait_until(lambda: job.get_status() == JobStatus.FAILED)
        result = job.latest_result()
        assert result is not None and "stalled 2 times, more often than MAX_STALLS=1" in result.exc_string
        assert redis.llen("running") == 2


def test_a_second_signal_puts_running_jobs_back(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Without a deadline, a second signal does what the deadline would."""
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log") as worker:
        job = queue.enqueue(jobs.hang, "running")
        wait_until(lambda: redis.llen("running") == 1)
        stop(worker)
        worker.wait_for("warm shut down requested")
        time.sleep(1.2)  # within a second it is the same signal
        stop(worker)
        assert worker.wait(20) == 0
        assert (redis.hget(job.key, "status"), redis.hget(job.key, "rq_pooled_stalls")) == (b"queued", b"1")


def test_a_job_popped_while_stopping_goes_back(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Stopping a worker under load in any instant: every job has finished or waits in its queue, none is in between."""
    queue = Queue(connection=redis)
    enqueued: list[Job] = []
    for attempt in range(6):
        with running_worker(server.url, log=tmp_path / f"{attempt}", concurrency=4, ready=None) as worker:
            worker.wait_for("connections: command")
            enqueued += [queue.enqueue(jobs.nothing) for _ in range(40)]
            wait_until(lambda n=attempt: redis.zcard(named("rq:finished:default")) > n * 8)
            stop(worker)
            assert worker.wait(20) == 0
        waiting = set(queue.job_ids)
        for job in enqueued:
            assert (job.get_status() == JobStatus.FINISHED) != (job.id in waiting)
            assert not redis.hexists(job.key, "rq_pooled_stalls")
        assert residue(redis) == []


# -- SIGHUP ----------------------------------------------------------------------------------------------------------


def horses(worker: WorkerProcess) -> set[int]:
    """The processes of the worker's children."""
    return {child.pid for child in psutil.Process(worker.pid).children()}


def test_hangup_replaces_horses(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """SIGHUP: idle horses are replaced at once, a busy one after its job; nothing is interrupted, the parent stays."""
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", concurrency=3) as worker:
        wait_until(lambda: len(horses(worker)) == 3)
        held = queue.enqueue(jobs.wait_for, "go", "running")
        wait_until(lambda: redis.llen("running") == 1)
        before, busy = horses(worker), int(redis.lindex("running", 0))
        stop(worker, signal.SIGHUP)
        worker.wait_for("SIGHUP: replacing all horses")
        wait_until(lambda: horses(worker) & before == {busy} and len(horses(worker)) == 3, what="two new horses")
        redis.lpush("go", 1)
        wait_until(lambda: held.get_status() == JobStatus.FINISHED)
        wait_until(lambda: not horses(worker) & before and len(horses(worker)) == 3, what="three new horses")
        done = queue.enqueue(jobs.add, 1, 2)
        wait_until(lambda: done.get_status() == JobStatus.FINISHED)
        assert "ended before it was ready" not in worker.output()
        assert worker.stop() == 0


def test_hangup_with_preloaded_code_starts_anew(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """SIGHUP with PRELOAD: what runs ends, then the same process imports the new code and goes on."""
    queue = Queue(connection=redis)
    module = tmp_path / "deployed.py"
    module.write_text("def version():\n    return 1\n")
    environment = {"RQ_POOLED_PRELOAD": "deployed", "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ["PYTHONPATH"] = str(tmp_path)  # running_worker keeps what is there
    try:
        with running_worker(server.url, "--name", "w", "default", log=tmp_path / "log", **environment) as worker:
            first, held = queue.enqueue("deployed.version"), queue.enqueue(jobs.wait_for, "go", "running")
            wait_until(lambda: redis.llen("running") == 1)
            module.write_text("def version():\n    return 2\n")
            stop(worker, signal.SIGHUP)
            worker.wait_for("SIGHUP: finishing what runs, then starting anew")
            after = queue.enqueue("deployed.version")
            redis.lpush("go", 1)
            wait_until(lambda: after.get_status() == JobStatus.FINISHED)
            assert held.get_status() == JobStatus.FINISHED
            assert (first.return_value(), after.return_value()) == (1, 2)
            assert len(re.findall(rf"started with PID {worker.pid}", worker.output())) == 2
            assert redis.smembers(named("rq:workers")) == {named(b"rq:worker:w")}
            assert worker.stop() == 0
    finally:
        del os.environ["PYTHONPATH"]


def test_nohup_is_respected(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A worker started under nohup ignores SIGHUP."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running_worker(server.url, log=tmp_path / "log") as worker:
            wait_until(lambda: len(horses(worker)) == 1)
            before = horses(worker)
            stop(worker, signal.SIGHUP)
            job = Queue(connection=redis).enqueue(jobs.add, 1, 2)
            wait_until(lambda: job.get_status() == JobStatus.FINISHED)
            assert horses(worker) == before and "SIGHUP" not in worker.output()
    finally:
        signal.signal(signal.SIGHUP, previous)


# -- horses ----------------------------------------------------------------------------------------------------------


def test_a_horse_that_has_grown_is_replaced(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """MAX_HORSE_MEMORY is looked at between jobs: one that left more behind is the last of its horse."""
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", RQ_POOLED_MAX_HORSE_MEMORY="300") as worker:
        small = [queue.enqueue(crash_jobs.pid) for _ in range(3)]
        big = queue.enqueue("deploy_jobs.keep", 400)
        after = [queue.enqueue(crash_jobs.pid) for _ in range(2)]
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in (*small, big, *after)))
        first, second = ({job.return_value() for job in some} for some in (small, after))
        assert len(first) == len(second) == 1 and first != second
        assert first == {big.return_value()}
        assert "above MAX_HORSE_MEMORY=300" in worker.output()


def test_no_zombies_as_process_one(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """As PID 1 of a container the worker also collects the orphans that dead horses leave to it."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "true"]
    if os.system(" ".join(command) + " 2>/dev/null") != 0:
        pytest.skip("unshare --pid is not allowed here")
    queue = Queue(connection=redis)
    script = (
        "import sys; from rq.cli import main; sys.argv = ['rq', 'worker', '--url', sys.argv[1], '--worker-class', "
        "'rq_pooled.Worker']; main()"
    )
    env = {**os.environ, "PYTHONPATH": PYTHONPATH, "RQ_POOLED_CONCURRENCY": "2"}
    line = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", script, server.url]
    worker = WorkerProcess(line, env, tmp_path / "log")
    try:
        worker.wait_for("started with PID 1,")
        parent = psutil.Process(worker.pid).children()[0]
        left = [queue.enqueue("deploy_jobs.leave_orphan") for _ in range(5)]
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in left))
        last = queue.enqueue(jobs.nothing)
        wait_until(lambda: last.get_status() == JobStatus.FINISHED)
        wait_until(
            lambda: (
                len(parent.children(recursive=True)) == 2
                and not any(child.status() == psutil.STATUS_ZOMBIE for child in parent.children(recursive=True))
            ),
            what="two horses and no zombie",
        )
        parent.terminate()
        assert worker.wait(20) == 0
    finally:
        if worker.process.poll() is None:
            worker.kill()


def preloading(tmp_path: Path) -> dict[str, str]:
    """Settings under which SIGHUP has the worker start anew."""
    (tmp_path / "empty.py").touch()
    return {"RQ_POOLED_PRELOAD": "json"}


def test_hangup_with_a_deadline_starts_anew_too(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """SIGHUP with PRELOAD and SHUTDOWN_TIMEOUT: what still runs then goes back, and the worker starts anew, not
    ends.
    """
    queue = Queue(connection=redis)
    settings = {**preloading(tmp_path), "RQ_POOLED_SHUTDOWN_TIMEOUT": "0.5"}
    with running_worker(server.url, log=tmp_path / "log", **settings) as worker:
        job = queue.enqueue(jobs.wait_for, "go", "running")
        wait_until(lambda: redis.llen("running") == 1)
        stop(worker, signal.SIGHUP)
        wait_until(lambda: redis.llen("running") == 2, what="the job runs again in the new worker")
        redis.lpush("go", 1)
        wait_until(lambda: job.get_status() == JobStatus.FINISHED)
        assert worker.output().count(f"started with PID {worker.pid}") == 2
        assert worker.stop() == 0


def test_a_stop_during_a_reload_is_a_stop(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """SIGTERM while a worker drains because of SIGHUP ends it: it does not start anew."""
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", **preloading(tmp_path)) as worker:
        job = queue.enqueue(jobs.wait_for, "go", "running")
        wait_until(lambda: redis.llen("running") == 1)
        stop(worker, signal.SIGHUP)
        worker.wait_for("SIGHUP: finishing what runs")
        stop(worker)  # is heard before what the job's end leads to
        redis.lpush("go", 1)
        assert worker.wait(20) == 0
        assert job.get_status() == JobStatus.FINISHED
        assert worker.output().count("started with PID") == 1


def test_hangup_of_the_whole_group_harms_no_job(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A SIGHUP that reaches horses, too, as from a service manager, kills none of them."""
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log") as worker:
        job = queue.enqueue(jobs.wait_for, "go", "running")
        wait_until(lambda: redis.llen("running") == 1)
        os.kill(int(redis.lindex("running", 0)), signal.SIGHUP)
        stop(worker, signal.SIGHUP)
        worker.wait_for("replacing all horses")
        redis.lpush("go", 1)
        wait_until(lambda: job.get_status() == JobStatus.FINISHED)
        assert worker.stop() == 0


def test_what_has_ended_is_recorded_by_a_hard_stop(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A job with dependents that has just ended when the deadline is over is recorded, and does not run again."""
    queue = Queue(connection=redis)
    with running_worker(server.url, log=tmp_path / "log", concurrency=2, RQ_POOLED_SHUTDOWN_TIMEOUT="1") as worker:
        first = queue.enqueue(jobs.wait_for, "go", "running")
        dependents = [queue.enqueue(jobs.nothing, depends_on=first) for _ in range(3)]
        hanging = queue.enqueue(jobs.hang, "running")
        wait_until(lambda: redis.llen("running") == 2)
        stop(worker)
        worker.wait_for("warm shut down requested")
        redis.lpush("go", 1)
        assert worker.wait(20) == 0
        assert first.get_status() == JobStatus.FINISHED
        assert set(queue.job_ids) == {hanging.id, *(job.id for job in dependents)}


def test_a_hard_stop_puts_back_what_a_handler_has_not_finished(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """A job whose process died, and whose handler for that hangs when the deadline is over, goes back to its queue."""
    queue, kind = Queue(connection=redis), "deploy_jobs.HangingWorker"
    with running_worker(server.url, log=tmp_path / "log", worker_class=kind, RQ_POOLED_SHUTDOWN_TIMEOUT="1") as worker:
        job = queue.enqueue(jobs.kill_itself, int(signal.SIGKILL))
        wait_until(lambda: redis.llen("handling") == 1)
        stop(worker)
        assert worker.wait(20) == 0
        assert "1 job goes back to its queue" in worker.output()
    assert queue.job_ids == [job.id] and job.get_status() == JobStatus.QUEUED
    assert not redis.zcard(named("rq:wip:default"))
