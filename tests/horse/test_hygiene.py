"""What one job leaves behind does not reach the next one in the same horse."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash_jobs
import psutil
import pytest
from redis import Redis
from rq import Callback, Queue
from rq.job import Job, JobStatus
from support import WorkerProcess, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.horse.cleanup import Surroundings

Run = Callable[..., Any]


@pytest.fixture
def worker(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> Iterator[WorkerProcess]:
    """A worker with one horse."""
    settings = {"RQ_POOLED_KILL_GRACE": "0.5", "RQ_POOLED_URL": server.url, "CALLBACK_RUNS": str(tmp_path / "runs")}
    with running_worker(server.url, "q", log=tmp_path / "log", **settings) as running:
        yield running


@pytest.fixture
def run(redis: Redis, worker: WorkerProcess) -> Run:
    """A function that has a job run and returns its result."""
    queue = Queue("q", connection=redis)

    def run(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        job = queue.enqueue(function, *args, **options)
        assert ended(job) == JobStatus.FINISHED, worker.output()
        return job.return_value()

    return run


def ended(job: Job, timeout: float = 20) -> JobStatus:
    """Wait for the end of a job and return its status."""
    ends = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED)
    return wait_until(lambda: (status := job.get_status()) in ends and status, timeout, f"the end of {job.id}")


def lives(pid: int) -> bool:
    """Tell whether a process is alive and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_horse_is_reused(run: Run) -> None:
    """Jobs that leave nothing behind run in one process, else the other laws of this file would hold by accident."""
    assert run(crash_jobs.pid) == run(crash_jobs.pid) == run(crash_jobs.pid)


def test_an_alarm_left_behind_does_not_fire_in_the_next_job(run: Run, redis: Redis) -> None:
    """A timer armed by one job neither ends nor interrupts the next."""
    first = run(crash_jobs.leave_alarm)
    job = Queue("q", connection=redis).enqueue(time.sleep, 0.3)
    assert ended(job) == JobStatus.FINISHED
    assert run(crash_jobs.pid) == first


def test_surroundings_are_given_back(run: Run) -> None:
    """Directory, umask and signal handlers changed by one job are as before for the next, in the same process."""
    before = run(crash_jobs.surroundings)
    pid = run(crash_jobs.leave_surroundings)
    after = run(crash_jobs.surroundings)
    assert after["pid"] == pid
    for name in ("cwd", "umask", "ignored", "worker"):
        assert after[name] == before[name]


def test_what_is_looked_at_stays_as_it_is() -> None:
    """The first job of a horse has the umask of the worker: reading it, which is setting it, changes nothing."""
    before = os.umask(0o077)
    try:
        Surroundings()
    finally:
        left = os.umask(before)
    assert left == 0o077


def test_a_blocked_alarm_is_heard_by_the_next_job(run: Run, redis: Redis) -> None:
    """A job that blocks SIGALRM does not take the time limit of the next one, in the same process."""
    pid = run(crash_jobs.block_alarm)
    assert run(crash_jobs.pid) == pid
    job = Queue("q", connection=redis).enqueue(time.sleep, 30, job_timeout=1)
    assert ended(job) == JobStatus.FAILED
    assert "JobTimeoutException" in str(job.latest_result().exc_string)


def test_an_alarm_that_was_blocked_is_dropped(run: Run) -> None:
    """An alarm that a job kept from being heard until its end neither fails it nor reaches the next one."""
    pid = run(crash_jobs.block_alarm, 1.2, job_timeout=1)
    assert run(crash_jobs.pid) == pid


def test_the_next_job_prints_where_the_first_did(run: Run, worker: WorkerProcess) -> None:
    """A stdout that a job put in the place of the process's is written out and taken away, in the same process."""
    pid = run(crash_jobs.wrap_stdout, ["buffered", "words"])
    worker.wait_for("buffered words")
    assert run(crash_jobs.replace_stdout) == pid
    assert run(crash_jobs.say, ["audible", "words"]) == pid
    worker.wait_for("audible words")


def test_a_closed_stdout_costs_the_horse(run: Run, worker: WorkerProcess) -> None:
    """After a job that closed its stdout the next one has a new process and prints."""
    first = run(crash_jobs.close_stdout)
    assert run(crash_jobs.say, ["audible", "words"]) != first
    worker.wait_for("audible words")


@pytest.mark.parametrize(("descriptors", "closes"), [((1,), True), ((2,), True), ((0, 1, 2), True), ((1, 2), False)])
def test_output_that_a_job_led_elsewhere_costs_the_horse(
    run: Run, worker: WorkerProcess, descriptors: tuple[int, ...], closes: bool
) -> None:
    """Standard descriptors that a job closed or redirected are, to the next job and to the log, as they were."""
    left = run(crash_jobs.redirect, *descriptors, closes=closes)
    assert run(crash_jobs.say, ["said by the next job"]) != left
    wait_until(lambda: "said by the next job" in worker.output())
    assert "Successfully completed crash_jobs.say" in worker.output()


def test_a_job_may_choose_how_processes_are_started(run: Run) -> None:
    """Each job finds multiprocessing without a start method, which a process can choose once."""
    assert run(crash_jobs.choose_start_method) != run(crash_jobs.choose_start_method)


def test_another_process_group_costs_the_horse(run: Run) -> None:
    """A job that left its process group does not take the next one's children out of it."""
    left = run(crash_jobs.leave_group)
    assert run(crash_jobs.pid) != left


def test_a_lowered_recursion_limit_is_given_back(run: Run) -> None:
    """A job's lower limit is its own; a higher one stays, as modules raise it when they are imported."""
    limit = run(sys.getrecursionlimit)
    pid = run(crash_jobs.set_recursion_limit, 150)
    assert run(sys.getrecursionlimit) == limit
    assert run(crash_jobs.set_recursion_limit, limit + 500) == pid
    assert run(sys.getrecursionlimit) == limit + 500


def test_all_signal_handlers_are_given_back(run: Run) -> None:
    """However a job handles signals, the next one in its process finds each as it was."""
    before = run(crash_jobs.handlers)
    pid = run(crash_jobs.leave_handlers)
    assert run(crash_jobs.handlers) == before
    assert run(crash_jobs.pid) == pid


@pytest.mark.parametrize("leave", [crash_jobs.leave_processor_timers, crash_jobs.leave_watchdog])
def test_no_timer_left_behind_ends_the_next_job(run: Run, leave: Callable[[], int]) -> None:
    """Neither an interval timer nor faulthandler's watchdog of one job ends the next."""
    pid = run(leave)
    assert run(crash_jobs.use_processor, 0.6) == pid


def test_signals_are_not_written_to_a_socket_of_an_earlier_job(run: Run) -> None:
    """A wake-up descriptor that a job set is taken away."""
    assert run(crash_jobs.leave_wakeup_descriptor) == run(crash_jobs.leave_wakeup_descriptor)


def test_no_job_decides_the_random_numbers_of_the_next(run: Run) -> None:
    """RQ seeds the generator anew for each job; so is it in a process that runs many."""
    drawn = [run(crash_jobs.seed_and_draw) for _ in range(4)]
    assert [len(set(numbers)) for numbers in zip(*drawn)] == [1, 4, 4]


def test_horses_draw_different_numbers_from_loaded_modules(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """A generator that the parent loaded gives each horse, and each job in it, numbers of its own."""
    queue = Queue("q", connection=redis)
    jobs = [queue.enqueue(crash_jobs.draw_from_modules) for _ in range(12)]
    settings = {"RQ_POOLED_PRELOAD": "loaded_generators", "RQ_POOLED_MAX_JOBS_PER_HORSE": "3"}
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=2, **settings):
        assert {ended(job) for job in jobs} == {JobStatus.FINISHED}
    results = [job.return_value() for job in jobs]
    assert len({pid for pid, _ in results}) >= 4
    assert len({number for _, drawn in results for number in drawn}) == 24


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="get_event_loop makes no loop any more")
@pytest.mark.parametrize("first", ["get", "run", "close"])
def test_an_event_loop_that_a_job_closed_is_in_nobodys_way(run: Run, first: str) -> None:
    """After a job that used asyncio in any way, asyncio.get_event_loop works in the next one."""
    pid = run(crash_jobs.run_event_loop, first)
    assert run(crash_jobs.run_event_loop, "get") == run(crash_jobs.run_event_loop, "run") == pid
    assert run(crash_jobs.run_event_loop, "get") == pid


@pytest.mark.parametrize("how", ["dictConfig", "root", "disable", "level", "handlers", "filter"])
def test_the_worker_logs_whatever_a_job_does_to_logging(
    run: Run, redis: Redis, worker: WorkerProcess, how: str
) -> None:
    """A job that sets up logging does not silence, or double, what the worker says of later jobs in the process."""
    pid = run(crash_jobs.set_up_logging, how)
    assert run(crash_jobs.set_up_logging, how) == pid
    assert ended(Queue("q", connection=redis).enqueue(crash_jobs.fail, "seen by operators")) == JobStatus.FAILED
    wait_until(lambda: "ValueError: seen by operators" in worker.output(), 5, "the traceback")
    assert run(crash_jobs.pid) == pid
    assert worker.output().count("ValueError: seen by operators") == 1


def test_limits_are_given_back(run: Run) -> None:
    """Resource limits, priority and processors are as before for the next job, in another process if need be."""
    before = run(crash_jobs.limits)
    run(crash_jobs.leave_limits)
    assert run(crash_jobs.limits) == before


def test_every_soft_limit_is_given_back_to_the_same_process(run: Run) -> None:
    """Each resource limit that the system knows is the next job's as it was, without a new process for it."""
    before = run(crash_jobs.all_limits, True)
    assert run(crash_jobs.all_limits) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_costs_the_horse(run: Run) -> None:
    """After a job that gave up the user's rights the next one runs as the worker's user, in a new process."""
    pid = run(crash_jobs.become_nobody)
    assert run(os.geteuid) == 0
    assert run(crash_jobs.pid) != pid


def test_a_directory_that_is_gone_is_left(run: Run) -> None:
    """The next job is in the worker's directory, also where the one that the job before was in is removed."""
    before = run(os.getcwd)
    pid = run(crash_jobs.remove_directory)
    assert run(os.getcwd) == before
    assert run(crash_jobs.pid) == pid


def test_what_every_library_sees_is_given_back(run: Run) -> None:
    """Environment, sys.path and the like that a job changed are as before for the next, in the same process."""
    run(crash_jobs.globals_seen)
    before = run(crash_jobs.globals_seen)
    pid = run(crash_jobs.leave_globals)
    assert run(crash_jobs.globals_seen) == before
    assert run(crash_jobs.pid) == pid


def test_what_a_module_sets_at_its_import_stays(run: Run) -> None:
    """A variable set by a module that a job imported first is there for all jobs: no other will set it again."""
    pid = run(crash_jobs.import_late, "late_module")
    assert run(os.getenv, "SET_BY_LATE_MODULE") == run(os.getenv, "SET_BY_LATE_MODULE") == "1"
    assert run(crash_jobs.pid) == pid


def test_each_job_is_told_its_own_id(run: Run, redis: Redis) -> None:
    """RQ_JOB_ID names the job that runs, whatever an earlier one wrote there."""
    run(crash_jobs.leave_environment)
    job = Queue("q", connection=redis).enqueue(crash_jobs.surroundings)
    ended(job)
    assert job.return_value()["job"] == job.id


def test_a_thread_left_behind_costs_the_horse(run: Run) -> None:
    """After a job that left a thread the next one has a new process without it."""
    first = run(crash_jobs.leave_thread)
    assert run(crash_jobs.pid) != first
    assert run(crash_jobs.threads_and_warnings) == ["MainThread"]


def test_a_child_left_behind_is_ended_with_the_horse(run: Run, worker: WorkerProcess) -> None:
    """After a job that left a child process the next one has a new process, the child is gone, and the log says why."""
    first, child = run(crash_jobs.leave_child)
    assert run(crash_jobs.pid) != first
    wait_until(lambda: not lives(child) and not lives(first), 5, "the end of the child")
    assert worker.output().count("left a process behind") == 1
    assert "start_new_session=True" in worker.output()


def test_a_child_with_a_session_of_its_own_lives(run: Run, worker: WorkerProcess) -> None:
    """A child process that a job starts with start_new_session=True outlives the horse, without a warning."""
    first, child = run(crash_jobs.leave_child, start_new_session=True)
    try:
        assert run(crash_jobs.pid) != first
        wait_until(lambda: not lives(first), 5, "the end of the horse")
        assert lives(child)
        assert "left a process behind" not in worker.output()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_has_ended_is_no_warning(run: Run, worker: WorkerProcess) -> None:
    """Of a child process that has ended nothing is lost, and nothing is said."""
    first = run(crash_jobs.leave_dead_child)
    assert run(crash_jobs.pid) != first
    assert "left a process behind" not in worker.output()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="shared memory cannot be listed")
@pytest.mark.parametrize("end", ["raise", "timeout", "deaf", "exit"])
def test_no_shared_memory_is_left(run: Run, redis: Redis, worker: WorkerProcess, end: str) -> None:
    """Shared memory of a job is removed when the job has ended, however it ended, with the processes that used it."""
    before = run(crash_jobs.pid)
    name = f"rq_pooled_{os.getpid()}_{end}"
    job = Queue("q", connection=redis).enqueue(crash_jobs.leave_shared_memory, name, end, job_timeout=1)
    wait_until(lambda: os.path.exists(f"/dev/shm/{name}") or job.get_status() == JobStatus.FAILED)
    others = psutil.Process(before).children(recursive=True) if end == "deaf" else []
    assert ended(job) == JobStatus.FAILED
    wait_until(lambda: not os.path.exists(f"/dev/shm/{name}"), 10, "the end of the shared memory")
    wait_until(lambda: not any(lives(process.pid) for process in others), 10, "the ends of what the job started")
    assert run(crash_jobs.pid) != before


def test_a_job_can_end_its_own_processes(run: Run) -> None:
    """Processes that a job forks end by the signals by which any program's do, however early the signal comes."""
    assert run(crash_jobs.end_a_process_at_once, job_timeout=30) == -signal.SIGTERM
    run(crash_jobs.leave_a_pool, job_timeout=30)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        assert run(crash_jobs.end_a_copy, signum, job_timeout=30) == signum
    assert run(crash_jobs.interrupt_a_copy, job_timeout=30) == 3
    assert run(crash_jobs.own_handler_in_a_copy, job_timeout=30) == 7


def test_a_job_that_has_forked_still_lets_signals_pass(run: Run) -> None:
    """Resetting the signals of a copy leaves those of the horse as they are."""
    pid = run(crash_jobs.be_ended_politely)
    assert run(crash_jobs.pid) == pid


def test_a_copy_that_fails_later_says_nothing(run: Run, tmp_path: Path) -> None:
    """A process that a job left sets no time limit for the next job when RQ handles its failure there."""
    gate, runs = str(tmp_path / "gate"), str(tmp_path / "runs")
    pid = run(crash_jobs.fail_in_a_grandchild, gate, on_failure=Callback(crash_jobs.on_failure_hang, timeout=1))
    assert run(crash_jobs.outlive_a_callback, gate, runs, 2.5) == pid


def test_output_is_written_by_the_end_of_the_job(run: Run, worker: WorkerProcess) -> None:
    """What a job printed is out when it has ended, once, although its horse lives on."""
    first = run(crash_jobs.leave_output, ["buffered", "words"])
    assert run(crash_jobs.pid) == first
    worker.wait_for("buffered words")
    assert worker.output().count("buffered words") == 1


def test_an_interrupted_read_never_answers_the_next_job(run: Run, redis: Redis) -> None:
    """A reply that a job's timeout cut off never becomes the answer to another job's question."""
    queue = Queue("q", connection=redis)
    for number in range(3):
        redis.delete("pushed:later")
        cut = queue.enqueue(crash_jobs.interrupted_read, job_timeout=1)
        waiting = [queue.enqueue(crash_jobs.echo_from_server, f"{number} {i}") for i in range(4)]
        assert ended(cut) == JobStatus.FAILED
        redis.rpush("pushed:later", "late reply")
        assert "JobTimeoutException" in str(cut.latest_result().exc_string)
        for i, job in enumerate(waiting):
            assert ended(job) == JobStatus.FINISHED
            assert job.return_value() == f"{number} {i}"


def test_a_timeout_costs_the_horse(run: Run, redis: Redis) -> None:
    """After a job whose alarm fired, anywhere in anybody's code, the next one has a new process."""
    before = run(crash_jobs.pid)
    job = Queue("q", connection=redis).enqueue(time.sleep, 30, job_timeout=1)
    assert ended(job) == JobStatus.FAILED
    assert run(crash_jobs.pid) != before


def test_a_job_that_closes_all_descriptors_fails_alone(run: Run, redis: Redis, worker: WorkerProcess) -> None:
    """A job that closes what it did not open loses its own outcome; the worker and the next jobs go on."""
    queue = Queue("q", connection=redis)
    bad = queue.enqueue(crash_jobs.close_all_descriptors)
    good = [queue.enqueue(crash_jobs.add, i, i) for i in range(5)]
    assert ended(bad) == JobStatus.FAILED
    assert "Work-horse terminated unexpectedly" in str(bad.latest_result().exc_string)
    for i, job in enumerate(good):
        assert ended(job) == JobStatus.FINISHED
        assert job.return_value() == 2 * i
    assert worker.process.poll() is None


def test_the_job_is_not_told_of_the_workers_settings(run: Run) -> None:
    """The environment of a job is the worker's, with the id of the worker that runs it."""
    assert run(crash_jobs.surroundings)["worker"]
    assert os.environ.get("RQ_JOB_ID") is None
