"""Job functions, callbacks, handlers and job classes that tests hand to workers."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from rq import Queue, Repeat, Retry, get_current_job
from rq.job import Dependency, Job

__all__ = ["Repeat"]


def held_execution() -> list[str]:
    """Return the job's id, and whose execution the worker up the stack holds."""
    job = get_current_job()
    assert job is not None
    frame: Any = sys._getframe(1)
    while not hasattr(worker := frame.f_locals.get("worker", frame.f_locals.get("self")), "perform_job"):
        frame = frame.f_back
    return [job.id, worker.execution.job_id, worker.execution.id]


# -- outcomes --------------------------------------------------------------------------------------------------------


def add(a: int, b: int) -> int:
    return a + b


def nothing(*_args: Any, **_kwargs: Any) -> None:
    pass


def fail(text: str = "on purpose") -> None:
    raise ValueError(text)


def fail_whatever(*_args: Any) -> None:
    raise ValueError("on purpose")


def fail_unless_last() -> str:
    """Fail as long as there is a retry left."""
    job = get_current_job()
    if job.retries_left:
        raise ValueError(f"{job.retries_left} left")
    return "at last"


def return_retry(times: int = 3, interval: Any = 0, enqueue_at_front: bool = False) -> Retry:
    return Retry(max=times, interval=interval, enqueue_at_front=enqueue_at_front)


def return_retry_once() -> Any:
    return "done" if get_current_job().number_of_retries else Retry(max=3)


def return_lock() -> Any:
    """Return what no serializer can write."""
    return threading.Lock()


def return_set() -> set[int]:
    """Return what JSON cannot write."""
    return {1, 2}


def big(size: int) -> bytes:
    return b"x" * size


def fail_with_noise(size: int) -> None:
    """Fail with a message of so many characters, which cannot be compressed to less than half."""
    raise ValueError(os.urandom(size).hex())


def length(data: bytes) -> int:
    return len(data)


class Exiting:
    """Ends the process that pickles it."""

    def __reduce__(self) -> Any:
        sys.exit(1)


def return_what_exits() -> Any:
    return Exiting()


class Exploding:
    """Pickles well, cannot be unpickled."""

    def __reduce__(self) -> Any:
        return (fail, ("cannot be unpickled",))


async def coroutine(a: int) -> int:
    return a * 2


class Counter:
    """Its methods are jobs."""

    def __init__(self, start: int) -> None:
        self.start = start

    def up(self, by: int = 1) -> int:
        return self.start + by


# -- what a job does to itself and with Redis ------------------------------------------------------------------------


def keep_result_for(ttl: int) -> str:
    get_current_job().result_ttl = ttl
    return "kept"


def set_own_retries(left: int) -> None:
    job = get_current_job()
    job.retries_left = left
    if not job.meta.get("seen"):
        job.meta["seen"] = True
        job.save_meta()
        raise ValueError("once")


def change_itself() -> None:
    """Set all kinds of attributes; stock RQ writes them with the outcome."""
    job = get_current_job()
    job.description = "another description"
    job.failure_ttl = 77
    job.meta["unsaved"] = True


def meta(save: bool, fails: bool = False) -> dict[str, Any]:
    job = get_current_job()
    job.meta["progress"] = 50
    if save:
        job.save_meta()
    if fails:
        raise ValueError("after meta")
    return job.get_meta()


def save_itself() -> None:
    job = get_current_job()
    job.meta["saved"] = "all of it"
    job.save()


def enqueue_dependents(*names: str, queue: str = "default", fails: bool = False) -> None:
    """Enqueue jobs that depend on this one, while it runs."""
    job = get_current_job()
    for name in names:
        Queue(queue, connection=job.connection).enqueue(add, 1, 2, job_id=name, depends_on=job)
    if fails:
        raise ValueError("after enqueueing dependents")


def enqueue_tolerant_dependent(name: str) -> None:
    job = get_current_job()
    Queue("default", connection=job.connection).enqueue(
        add, 1, 2, job_id=name, depends_on=Dependency(jobs=[job], allow_failure=True)
    )
    raise ValueError("after enqueueing a dependent")


def cancel_itself() -> str:
    job = get_current_job()
    Job.fetch(job.id, connection=job.connection).cancel()
    return "ran on"


def delete_itself() -> str:
    job = get_current_job()
    Job.fetch(job.id, connection=job.connection).delete()
    return "ran on"


def use_connection(key: str) -> list[Any]:
    """Use a real connection in all the usual ways; return what came back and the server's number of it."""
    job = get_current_job()
    connection = job.connection
    job.meta["step"] = 1
    job.save_meta()
    stored = job.get_meta()["step"]
    job.refresh()
    with connection.pipeline() as pipeline:
        pipeline.watch(key)
        pipeline.multi()
        pipeline.incr(key)
        pipeline.incr(key)
        counts = pipeline.execute()
    return [stored, job.get_status(), counts, connection.client_id()]


# -- time and death --------------------------------------------------------------------------------------------------


def announce(key: str) -> None:
    """Push the horse's pid to a list: the job is running."""
    get_current_job().connection.rpush(key, os.getpid())


def wait_for(key: str, start: str | None = None, seconds: float = 30.0) -> str:
    """Say that it runs (``start``), then wait until somebody pushes to ``key``."""
    connection = get_current_job().connection
    if start is not None:
        announce(start)
    deadline = time.monotonic() + seconds
    while connection.lpop(key) is None:
        if time.monotonic() > deadline:
            raise AssertionError(f"nobody pushed to {key}")
        time.sleep(0.005)
    return "went on"


def wait_for_file(path: str, started: str | None = None, seconds: float = 30.0) -> str:
    """Wait for a file; uses no Redis."""
    if started is not None:
        open(started, "w").close()
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise AssertionError(f"{path} did not appear")
        time.sleep(0.005)
    return "went on"


def hang(start: str | None = None) -> None:
    """Sleep until stopped."""
    if start is not None:
        announce(start)
    time.sleep(60)


def hang_politely(key: str) -> str:
    """Sleep until the timeout, and note that the exception came inside the job."""
    try:
        time.sleep(60)
    except Exception as error:
        get_current_job().connection.rpush(key, type(error).__name__)
        raise
    return "never"


def hang_deaf() -> None:
    """Do not hear the alarm."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(60)


def hang_in_c() -> None:
    """Stay inside a C function that does not come back for signals and holds the interpreter."""
    libc = ctypes.PyDLL(None)
    while True:
        libc.sleep(60)


def exit_with(code: int) -> None:
    os._exit(code)


def leave(code: int) -> None:
    sys.exit(code)


def fork_and_return(key: str) -> str:
    """Return twice: in this process and, a little later, in a copy of it."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return "parent"
    get_current_job().connection.rpush(key, os.getpid())
    return "child"


def kill_itself(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(60)


def leave_child() -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid


def environment() -> list[str | None]:
    return [os.environ.get("RQ_WORKER_ID"), os.environ.get("RQ_JOB_ID")]


# -- callbacks -------------------------------------------------------------------------------------------------------


def on_success(job: Job, connection: Any, result: Any) -> None:
    connection.rpush("callbacks", f"success {job.id} {result} {job.get_status(refresh=False).value}")


def on_failure(job: Job, connection: Any, kind: Any, value: Any, _traceback: Any) -> None:
    connection.rpush("callbacks", f"failure {job.id} {kind.__name__} {value}")


def on_stopped(job: Job, connection: Any) -> None:
    connection.rpush("callbacks", f"stopped {job.id}")


def on_stopped_say_where(job: Job, connection: Any) -> None:
    connection.rpush("callbacks", os.getpid())


def on_success_slow(_job: Job, _connection: Any, _result: Any) -> None:
    """Take longer than what a test compares is exact."""
    time.sleep(2.5)


def on_success_save_meta(job: Job, _connection: Any, result: Any) -> None:
    job.meta["from"] = "callback"
    job.save_meta()


def on_success_raise(job: Job, _connection: Any, _result: Any) -> None:
    raise RuntimeError("the success callback failed")


def on_failure_raise(job: Job, _connection: Any, *_error: Any) -> None:
    raise RuntimeError("the failure callback failed")


def on_stopped_raise(job: Job, connection: Any) -> None:
    connection.rpush("callbacks", f"stopped {job.id}")
    raise RuntimeError("the stopped callback failed")


def on_any_leave(job: Job, *_rest: Any) -> None:
    sys.exit(4)


def on_success_hang(job: Job, _connection: Any, _result: Any) -> None:
    time.sleep(60)


def on_failure_hang(job: Job, _connection: Any, *_error: Any) -> None:
    time.sleep(60)


def on_success_hang_deaf(job: Job, _connection: Any, _result: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(60)


# -- handlers and classes --------------------------------------------------------------------------------------------


def handle_exception(job: Job, kind: Any, value: Any, _traceback: Any) -> bool:
    """An exception handler: says where it ran and keeps later ones from running."""
    job.connection.rpush("handled", f"{os.getpid()} {job.id} {kind.__name__}")
    return True


def handle_exception_last(job: Job, *_error: Any) -> bool:
    job.connection.rpush("handled", "second")
    return False


def handle_exception_never(job: Job, *_error: Any) -> bool:
    job.connection.rpush("handled", "third")
    return True


def handle_killed(job: Job, pid: int, status: int, rusage: Any) -> None:
    """A work_horse_killed_handler."""
    job.connection.rpush("killed", f"{os.getpid()} {job.id} {pid} {status} {rusage.ru_maxrss}")


def handle_killed_raise(job: Job, *_rest: Any) -> None:
    """A work_horse_killed_handler that does not work."""
    raise RuntimeError("the handler failed")


class CustomJob(Job):
    """A job class with a perform and a save of its own."""

    def perform(self) -> Any:
        self.meta["performed"] = "custom"
        self.save_meta()
        return f"custom {super().perform()}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.description = "saved by CustomJob"
        super().save(*args, **kwargs)


def enqueue_dependent() -> None:
    """Enqueue a job that depends on this one as stock RQ does, over two connections at once."""
    job = get_current_job()
    assert job is not None
    Queue("later", connection=job.connection).enqueue("math.factorial", 3, depends_on=job)
