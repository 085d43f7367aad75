"""Job functions of the tests about connections, crashes, hygiene, bad input and entry points."""

from __future__ import annotations

import asyncio
import ctypes
import decimal
import faulthandler
import gc
import io
import locale
import logging
import logging.config
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from multiprocessing import shared_memory
from typing import Any

from redis import Redis
from rq import Retry, get_current_job

import rq_pooled
from rq_pooled.process.channel import ChildChannel, encode

_imported_by = os.getpid()


def nothing() -> None:
    """Do nothing."""


def add(a: int, b: int) -> int:
    """Return the sum."""
    return a + b


def pid() -> int:
    """Return the process that runs the job."""
    return os.getpid()


def pids() -> tuple[int, int]:
    """Return the process that runs the job and the one that imported this module."""
    return os.getpid(), _imported_by


def note(url: str, key: str, value: Any) -> None:
    """Append to a list in Redis, over a connection of its own."""
    with Redis.from_url(url) as client:
        client.rpush(key, value)


def wait_for(url: str, key: str, announce: str = "", patience: float = 30.0) -> int:
    """Announce the own pid in a list, then wait until ``key`` exists."""
    deadline = time.monotonic() + patience
    with Redis.from_url(url) as client:
        if announce:
            client.rpush(announce, os.getpid())
        while not client.exists(key):
            if time.monotonic() > deadline:
                raise TimeoutError(key)
            time.sleep(0.01)
    return os.getpid()


def wait_for_file(path: str, patience: float = 40.0) -> int:
    """Wait until a file exists; write the own pid beside it at the beginning."""
    with open(f"{path}.{os.getpid()}.pid", "w") as file:
        file.write(str(os.getpid()))
    deadline = time.monotonic() + patience
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)
    return os.getpid()


def fail(text: str = "on purpose") -> None:
    """Raise."""
    raise ValueError(text)


def fail_first(times: int) -> int:
    """Raise on the first runs of this job."""
    job = get_current_job()
    assert job is not None
    left = job.retries_left or 0
    if left > 3 - times:
        raise ValueError(f"{left} retries left")
    return left


def returned_retry() -> Any:
    """Ask to be run once more."""
    return Retry(max=1)


def use_redis() -> None:
    """Use both connections that a job has for a command that any may share."""
    job = get_current_job()
    assert job is not None
    job.connection.ping()
    rq_pooled.get_connection().ping()


def use_redis_of_job() -> int:
    """Use RQ's connection of the job; return how many connections the server sees of this process."""
    job = get_current_job()
    assert job is not None
    return _mine(job.connection)


def use_pooled_connection() -> int:
    """Use rq_pooled's connection; return how many connections the server sees of this process."""
    return _mine(rq_pooled.get_connection())


def _mine(client: Any) -> int:
    return sum(f":{os.getpid()}:" in str(entry["name"]) for entry in client.client_list())


def exit_at_once(status: int = 0) -> None:
    """End the process without a word."""
    os._exit(status)


def segfault() -> None:
    """Read from address zero."""
    ctypes.string_at(0)


# -- what a job leaves behind ------------------------------------------------------------------------------------------


def leave_alarm() -> int:
    """Arm a timer with the signal's default action, which ends the process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    return os.getpid()


def leave_surroundings() -> int:
    """Change directory, umask and signal handlers."""
    os.chdir("/")
    os.umask(0)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_IGN)
    return os.getpid()


def surroundings() -> dict[str, Any]:
    """Return what the previous job may have changed."""
    umask = os.umask(0o022)
    os.umask(umask)
    handlers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
    return {
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "umask": umask,
        "ignored": [int(signum) for signum in handlers if signal.getsignal(signum) is signal.SIG_IGN],
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0],
        "job": os.environ.get("RQ_JOB_ID"),
        "worker": os.environ.get("RQ_WORKER_ID"),
    }


def handlers() -> list[str]:
    """Return how each signal is handled but the one of the job's own time limit."""
    signums = sorted(signal.valid_signals() - {signal.SIGALRM})
    return [f"{signum} {signal.getsignal(signum)}" for signum in signums]


def leave_handlers() -> int:
    """Handle signals in another way, with one that Python itself sets among them."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for signum in (signal.SIGPROF, signal.SIGVTALRM, signal.SIGQUIT, signal.SIGWINCH, signal.SIGRTMIN + 1):
        signal.signal(signum, lambda *_: None)
    return os.getpid()


def leave_processor_timers() -> int:
    """Arm the timers that count the processor's time, with the signals' default action, which ends the process."""
    for timer in (signal.ITIMER_PROF, signal.ITIMER_VIRTUAL):
        signal.setitimer(timer, 0.2)
    return os.getpid()


def leave_watchdog() -> int:
    """Have the process ended soon."""
    faulthandler.dump_traceback_later(0.2, exit=True)
    return os.getpid()


def leave_wakeup_descriptor() -> tuple[int, int]:
    """Have signals written to a socket; return the own pid and what was there."""
    mine, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.detach())
    mine.detach()
    return os.getpid(), before


def use_processor(seconds: float) -> int:
    """Use the processor for so long."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(100))
    return os.getpid()


def seed_and_draw() -> tuple[int, float, float]:
    """Draw numbers, then decide those that follow."""
    drawn = os.getpid(), random.random(), random.gauss(0, 1)
    random.seed(7)
    random.gauss(0, 1)  # keeps the second one of a pair
    return drawn


def draw_from_modules() -> tuple[int, list[float]]:
    """Draw from the generators of loaded_generators, then decide what follows."""
    import loaded_generators

    drawn = loaded_generators.draw()
    loaded_generators.seed(7)
    return os.getpid(), drawn


async def _nothing() -> int:
    return os.getpid()


def run_event_loop(how: str) -> int:
    """Use asyncio in one of the ways in which programs do."""
    if how == "run":
        return asyncio.run(_nothing())
    if how == "close":
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(_nothing())
        finally:
            loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return asyncio.get_event_loop().run_until_complete(_nothing())


def set_up_logging(how: str) -> int:
    """Silence what the worker logs, in one of the ways in which programs set up their own logging."""
    if how == "dictConfig":
        logging.config.dictConfig({"version": 1})
    elif how == "root":
        logging.config.dictConfig({"version": 1, "root": {"handlers": []}})
        logging.root.addHandler(logging.StreamHandler())
    elif how == "disable":
        logging.disable(logging.CRITICAL)
    elif how == "level":
        logging.getLogger("rq.worker").setLevel(logging.CRITICAL)
    elif how == "handlers":
        logging.getLogger("rq.worker").handlers.clear()
        logging.root.handlers.clear()
    else:
        logging.getLogger("rq.worker").addFilter(lambda _record: False)
    return os.getpid()


def leave_limits() -> int:
    """Lower limits, the priority, and the number of processors."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.RLIM_INFINITY))
    os.setpriority(os.PRIO_PROCESS, 0, 5)
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    return os.getpid()


def limits() -> list[Any]:
    """Return them."""
    limits = [resource.getrlimit(limit) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)]
    return [*map(list, limits), os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0))]


def all_limits(lower: bool = False) -> dict[str, Any]:
    """Return every soft limit of this system, and this process; lower those without which a job can go on, if asked."""
    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    found: dict[str, Any] = {name: resource.getrlimit(getattr(resource, name))[0] for name in names}
    for name in (
        ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_MSGQUEUE", "RLIMIT_NOFILE", "RLIMIT_SIGPENDING") if lower else ()
    ):
        if name in found:
            hard = resource.getrlimit(getattr(resource, name))[1]
            soft = 0 if name in ("RLIMIT_CORE", "RLIMIT_MSGQUEUE", "RLIMIT_SIGPENDING") else 1 << 30
            resource.setrlimit(getattr(resource, name), (100 if name == "RLIMIT_NOFILE" else soft, hard))
    return {**found, "pid": os.getpid()}


def become_nobody() -> int:
    """Give up the user's rights."""
    os.setegid(65534)
    os.seteuid(65534)
    return os.getpid()


def remove_directory() -> int:
    """Leave the process in a directory that does not exist any longer."""
    directory = tempfile.mkdtemp()
    os.chdir(directory)
    shutil.rmtree(directory)
    return os.getpid()


def leave_globals() -> int:
    """Change what every library sees, without an import."""
    os.environ["LEFT_BEHIND"] = "1"
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    os.environ.pop("CALLBACK_RUNS")
    os.environ["RQ_POOLED_URL"] = "elsewhere"
    sys.path.insert(0, "/left/behind")
    sys.argv.append("left behind")
    warnings.simplefilter("error")
    socket.setdefaulttimeout(0.5)
    locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C")
    decimal.getcontext().prec = 2
    decimal.getcontext().traps[decimal.Inexact] = True
    gc.disable()
    gc.set_threshold(5)
    sys.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)
    return os.getpid()


def globals_seen() -> list[Any]:
    """Return what leave_globals changes."""
    variables = {name: value for name, value in os.environ.items() if name != "RQ_JOB_ID"}
    seen = [variables, time.timezone, sys.path, sys.argv, [str(entry) for entry in warnings.filters]]
    seen += [socket.getdefaulttimeout(), locale.setlocale(locale.LC_ALL), gc.isenabled(), gc.get_threshold()]
    return [*seen, str(sys.gettrace()), str(sys.getprofile()), repr(decimal.getcontext().copy())]


def import_late(name: str) -> int:
    """Import a module."""
    __import__(name)
    return os.getpid()


def leave_thread() -> int:
    """Leave a thread running for ever."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return os.getpid()


def leave_child(seconds: float = 60, **options: Any) -> tuple[int, int]:
    """Leave a child running; return the own pid and the child's."""
    child = subprocess.Popen([sys.executable, "-S", "-c", f"import time; time.sleep({seconds})"], **options)
    child.returncode = 0  # so that Popen.__del__ does not complain
    return os.getpid(), child.pid


def leave_dead_child() -> int:
    """Leave a child that has ended, and that nobody has waited for."""
    _, child = leave_child(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    return os.getpid()


def end_a_process_at_once() -> int:
    """Start processes and end each before it can have run a line; return the status of the last."""
    for _ in range(20):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join()
    return child.exitcode or 0


def leave_a_pool() -> None:
    """Leave the block of a Pool whose processes are at work."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.apply_async(time.sleep, (60,))


def _sleep_lightly() -> None:
    """Sleep so that a signal that comes right before a sleep is handled after it."""
    for _ in range(1000):
        time.sleep(0.01)


def end_a_copy(signum: int) -> int:
    """Fork, end the copy by a signal, return the wait status."""
    job = os.getpid()
    try:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(1)
    except KeyboardInterrupt:
        if os.getpid() != job:
            # The signal came later than the copy's own handler: it ends as an interpreter does.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        raise
    os.kill(child, signum)
    return os.waitpid(child, 0)[1]


def interrupt_a_copy() -> int:
    """Fork, interrupt the copy while it is at work, return its exit code: 3 for a KeyboardInterrupt."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, b"at work")
            _sleep_lightly()
        except KeyboardInterrupt:
            os._exit(3)
    os.read(reader, 7)
    os.kill(child, signal.SIGINT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def own_handler_in_a_copy() -> int:
    """Set a handler, fork, have the copy call it; return the copy's exit code."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"at work")
        _sleep_lightly()
        os._exit(1)
    os.read(reader, 7)
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def be_ended_politely() -> int:
    """Send to the own process what platforms send to all."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), signum)
    return os.getpid()


def fail_in_a_grandchild(gate: str) -> int:
    """Leave a process, child of no process here, that waits for a file, then raises."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return os.getpid()
    if os.fork():
        os._exit(0)
    wait_for_file(gate)
    raise ValueError("in a copy")


def on_failure_hang(_job: Any, _connection: Any, *_error: Any) -> None:
    """A failure callback that says that it runs, then never hears its time limit."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    with open(os.environ["CALLBACK_RUNS"], "w"):
        time.sleep(60)


def outlive_a_callback(gate: str, runs: str, seconds: float) -> int:
    """Open the gate, wait for the callback behind it, and go on for some seconds."""
    with open(gate, "w"):
        pass
    wait_for_file(runs)
    time.sleep(seconds)
    return os.getpid()


def leave_shared_memory(name: str, end: str) -> None:
    """Create shared memory, start a process that uses it, and end in one of the ways in which jobs do."""
    memory = shared_memory.SharedMemory(name, create=True, size=1000)
    multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,)).start()
    memory.buf[0] = 1
    if end == "raise":
        raise ValueError("on purpose")
    if end == "exit":
        os._exit(0)
    if end == "deaf":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(60)


def leave_output(words: list[str]) -> int:
    """Print the words in one line without flushing."""
    sys.stdout.reconfigure(line_buffering=False, write_through=False)  # type: ignore[union-attr]
    print(*words, end=" ")
    return os.getpid()


def block_alarm(seconds: float = 0) -> int:
    """Block SIGALRM, then use up the time limit."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(seconds)
    return os.getpid()


def replace_stdout() -> int:
    """Print to somewhere else from now on."""
    sys.stdout = io.StringIO()
    return os.getpid()


def wrap_stdout(words: list[str]) -> int:
    """Print the words in one line through another object with a buffer of its own."""
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=10000)
    print(*words)
    return os.getpid()


def close_stdout() -> int:
    """Close what this process prints to."""
    sys.stdout.close()
    return os.getpid()


def say(words: list[str]) -> int:
    """Print the words in one line."""
    print(*words)
    return os.getpid()


def set_recursion_limit(limit: int) -> int:
    """Set it."""
    sys.setrecursionlimit(limit)
    return os.getpid()


def leave_environment() -> int:
    """Overwrite what RQ says about the job."""
    os.environ["RQ_JOB_ID"] = "somebody else's"
    return os.getpid()


def write_to_the_parent(data: bytes) -> None:
    """Write into the channel between horse and parent, then go on for long."""
    (channel,) = (thing for thing in gc.get_objects() if isinstance(thing, ChildChannel))
    os.write(channel.fileno(), data)
    time.sleep(60)


def flood_the_parent(until: str) -> None:
    """Write well-formed messages to the parent without a pause, from a process of its own, until a file exists."""
    (channel,) = (thing for thing in gc.get_objects() if isinstance(thing, ChildChannel))
    flood = socket.socket(fileno=os.dup(channel.fileno()))
    # So much room and so short writes that there is always more to read.
    flood.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
    message = encode(("phase", 600.0))
    if (pid := os.fork()) == 0:
        try:
            while not os.path.exists(until):
                flood.sendall(message * (8192 // len(message)))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def close_all_descriptors() -> None:
    """Close everything that the process has inherited."""
    os.closerange(0, 4096)


def interrupted_read() -> None:
    """Wait for a reply that the job's timeout cuts off; the reply is sent later nevertheless."""
    job = get_current_job()
    assert job is not None
    job.connection.blpop(["never:pushed", "pushed:later"], timeout=30)


def echo_from_server(text: str) -> str:
    """Return what the server answers to ECHO, on the connection that a job is given."""
    job = get_current_job()
    assert job is not None
    reply = job.connection.execute_command("ECHO", text)
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def threads_and_warnings() -> list[str]:
    """Return the names of the threads of this process."""
    return [thread.name for thread in threading.enumerate()]


def ping_through_the_pool() -> str:
    """Use the process's connection; return where it leads."""
    rq_pooled.get_connection().ping()
    return str(rq_pooled.get_pool().address)


def redirect(*descriptors: int, closes: bool) -> int:
    """Close standard descriptors, or lead them nowhere, as programs do that become daemons; return the process."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.close(descriptor) if closes else os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return os.getpid()


def choose_start_method() -> int:
    """Say how multiprocessing is to start processes, which a process can do once; return the process."""
    multiprocessing.set_start_method("spawn")
    return os.getpid()


def leave_group() -> int:
    """Join the process group of the worker; return the process."""
    os.setpgid(0, os.getpgid(os.getppid()))
    return os.getpid()
