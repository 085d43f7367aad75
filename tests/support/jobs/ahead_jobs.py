"""Jobs that are short, but for those that turn out not to be; each notes in a file when it began, and where."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rq import get_current_job


def note(path: str, what: str) -> None:
    """Append a line of the running job to a file: what, its id, the process, the time."""
    job = get_current_job()
    assert job is not None
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{what} {job.id} {os.getpid()} {time.time()}\n".encode())
    finally:
        os.close(descriptor)


def run(path: str, what: str = "", argument: str = "") -> str:
    """Do nothing but note it; or sleep, wait for a file or another job, raise, end this process, freeze its worker, as
    it is told.
    """
    note(path, "begin")
    if what == "sleep":
        time.sleep(float(argument))
    elif what == "freeze":
        # Once: another worker that gets the job lives.
        if not Path(f"{argument}.frozen").exists():
            Path(f"{argument}.frozen").touch()
            os.kill(os.getppid(), signal.SIGSTOP)
            while not Path(argument).exists():
                time.sleep(0.01)
    elif what == "wait":
        while not Path(argument).exists():
            time.sleep(0.01)
    elif what == "wait for":
        while f"end {argument} " not in Path(path).read_text():
            time.sleep(0.001)
    elif what == "exit":
        os._exit(0)
    elif what == "raise":
        raise ValueError(argument)
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "save":
        job = get_current_job()
        assert job is not None
        job.meta["saved"] = job.id
        job.save_meta()
    elif what == "owe":
        job = get_current_job()
        assert job is not None
        # It asks, gives the connection back, and never reads the answer.
        connection = job.connection.connection_pool.get_connection("ECHO")
        connection.send_command("ECHO", job.id)
        job.connection.connection_pool.release(connection)
    elif what == "ask":
        job = get_current_job()
        assert job is not None
        return job.connection.echo(job.id).decode()
    note(path, "end")
    return "done"
