"""Processes of ``rq`` and ``rq-pooled`` that are forked where a new interpreter would make no difference.

``can_fork`` says where. A forked process differs from a new one in four things: its parent is the fork server, /proc
has the server's words for its command line, it shares memory with the server, and its modules were loaded before and
are left out of its garbage collections. A test about one of these asks for a new interpreter.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fork_server

_SUPPORT = Path(__file__).resolve().parent
#: That of the tests before one of them changes it, but for what conftest.py removes after this module is loaded.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
_ROOT = _SUPPORT.parent.parent
_MODULES = ("rq.cli", "rq_pooled")
#: A text of `python -c` that begins so asks for nothing that the server has not loaded before it does anything else.
_TEXTS = ("from rq_pooled import Worker\n", "import sys\nfrom redis import Redis\nfrom rq_pooled import Worker\n")
#: A module of such a name in another folder would be found before what the server has loaded, or run at the start.
_SHADOWS = ("rq", "redis", "click", "rq_pooled", "sitecustomize", "usercustomize")
#: Variables with such names are read by the interpreter, or by modules when they are loaded.
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "OTEL_", "RQ_KEY_PREFIX")
_TAKEN_OVER = ("PYTHONPATH", "PYTHONUNBUFFERED")


class ForkServer:
    """The server's process and the connection to it."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        self.environment = {**_ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(_SUPPORT), str(_ROOT)])}
        line = [sys.executable, "-c", "import fork_server; fork_server.main()", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                line,
                env=self.environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._lock = threading.Lock()
        self.owner = os.getpid()

    def ask(self, message: dict[str, Any], *descriptors: int) -> Any:
        """Return the answer."""
        with self._lock:
            fork_server.send(self._connection, message, *descriptors)
            answer, _ = fork_server.receive(self._connection)
            return answer

    def close(self) -> None:
        """Let it end, and what it has started go on."""
        self._connection.close()
        if self.owner == os.getpid():
            self._process.wait()


_servers: list[ForkServer] = []


def _server() -> ForkServer:
    """Return the server of this process, started by the first use."""
    if not _servers or _servers[-1].owner != os.getpid():
        _servers.append(ForkServer())
        atexit.register(_servers[-1].close)
    return _servers[-1]


def can_fork(command: list[str], environment: Mapping[str, str], cwd: Path) -> bool:
    """Tell whether a forked process does what a new interpreter with this command would do."""
    words = command[1:]
    if words[:2] == fork_server.STRICT:
        words = words[2:]
    is_known = (
        (words[0] == "-m" and words[1] in _MODULES)
        or (words[0] == "-c" and words[1].lstrip().startswith(_TEXTS))
        or Path(words[0]).parent == _SUPPORT / "jobs"
    )
    if command[0] != sys.executable or not is_known:
        return False
    if any(signal.getsignal(signum) == signal.SIG_IGN for signum in fork_server.INHERITED):
        return False
    ours = _server().environment
    for name in environment.keys() | ours.keys():
        value = environment.get(name)
        is_strict = (name, value) == ("PYTHONWARNINGS", fork_server.STRICT[1])
        if name.startswith(_READ_AT_START) and name not in _TAKEN_OVER and value != ours.get(name) and not is_strict:
            return False
    folders = {cwd, *(Path(path) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path)}
    others = folders - {_ROOT}
    return _ROOT in folders and not any(
        (folder / name).exists() or (folder / f"{name}.py").exists() for folder in others for name in _SHADOWS
    )


class Forked:
    """A process that the server has forked, with those methods of ``subprocess.Popen`` that tests use."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], streams: tuple[Any, Any, Any], cwd: Path | None = None
    ) -> None:
        self.args = command
        self.returncode: int | None = None
        self._server = _server()
        message = {"do": "fork", "command": command, "environment": dict(environment), "folder": str(cwd or Path.cwd())}
        self.pid: int = self._server.ask(message, *(stream.fileno() for stream in streams))

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ask({"do": "wait", "pid": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended and return its exit code."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._until_it_ends(left)
        assert self.returncode is not None
        return self.returncode

    def _until_it_ends(self, seconds: float | None) -> None:
        descriptor = os.pidfd_open(self.pid)
        try:
            select.select([descriptor], [], [], seconds)
        finally:
            os.close(descriptor)

    def send_signal(self, signum: int) -> None:
        """Send a signal if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen[bytes]


def start(
    command: list[str], environment: Mapping[str, str], out: Any, cwd: Path | None = None, fresh: bool = False
) -> Process:
    """Start a command in a session of its own; all that it says goes to ``out``, and it can read nothing.

    Args:
        fresh: whether it needs a new interpreter in any case.
    """
    with open(os.devnull) as nothing:
        if not fresh and can_fork(command, environment, cwd or Path.cwd()):
            return Forked(command, environment, (nothing, out, out), cwd)
        return subprocess.Popen(
            command, env=environment, cwd=cwd, stdout=out, stderr=out, stdin=nothing, start_new_session=True
        )


def run(
    command: list[str], environment: Mapping[str, str], timeout: float, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it can read nothing."""
    if not can_fork(command, environment, cwd or Path.cwd()):
        return subprocess.run(  # noqa: PLW1510 - the exit code is what the tests are about
            command,
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
    with open(os.devnull) as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Forked(command, environment, (nothing, out, err), cwd)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
            process.wait()
        texts = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
    return subprocess.CompletedProcess(command, code, *texts)
