"""Forks processes that would otherwise each load RQ and rq_pooled anew, a third of a second of processor time.

Runs as a program, with one end of a socket as its argument; forked.py has the other end. It imports, makes neither
threads nor connections, and runs nothing itself.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import sys
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

#: What `rq worker`, `rq worker-pool` and `rq-pooled` load before they look at their arguments, and to connect.
PRELOADED = ("rq.cli.cli", "rq_pooled.cli.main", "rq_pooled.worker.worker", "encodings.idna", "_strptime")
#: Those of a new interpreter, without PYTHONPATH.
_BASE = [path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
#: Options with which a warning is an error; while the server loads modules it always is.
STRICT = ["-W", "error"]
#: Signals that a process which ignores or blocks them hands on to what it starts.
INHERITED = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCHLD),
)
_LENGTH = 4


def send(connection: socket.socket, message: Any, *descriptors: int) -> None:
    """Send a message and descriptors."""
    data = json.dumps(message).encode()
    socket.send_fds(connection, [len(data).to_bytes(_LENGTH, "big")], descriptors)
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """Return the next message and its descriptors; None once the other side is gone."""
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH, 3)
    data = b""
    length = int.from_bytes(head, "big")
    while head and len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            return None, descriptors
        data += part
    return (json.loads(data) if head else None), descriptors


def serve(connection: socket.socket) -> dict[str, Any]:
    """Answer until the tests are gone; return only in a forked process, with what it is to be."""
    while True:
        message, descriptors = receive(connection)
        if message is None:
            sys.exit(0)
        if message["do"] == "wait":
            # Only when it is asked for: until then it is a zombie, as a child of the tests themselves would be.
            pid, status = os.waitpid(message["pid"], os.WNOHANG)
            send(connection, os.waitstatus_to_exitcode(status) if pid else None)
            continue
        pid = os.fork()
        if pid == 0:
            connection.close()
            os.setsid()
            for target, descriptor in enumerate(descriptors):
                os.dup2(descriptor, target)
                os.close(descriptor)
            return dict(message)
        for descriptor in descriptors:
            os.close(descriptor)
        send(connection, pid)


def become(command: list[str], environment: dict[str, str], folder: str) -> Callable[[], object]:
    """Make this process what a new interpreter with this command would be; return what it does then."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    unbuffered = bool(environment.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = _stream(0, sys.stdin, False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, sys.stdout, unbuffered)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, sys.stderr, unbuffered)  # type: ignore[misc]
    sys.orig_argv, words = command[:], command[1:]
    if words[:2] == STRICT or environment.get("PYTHONWARNINGS") == STRICT[1]:
        sys.warnoptions.append(STRICT[1])
        warnings.simplefilter("error")
    words = words[2 * (words[:2] == STRICT) :]
    paths = [os.path.abspath(path) for path in environment.get("PYTHONPATH", "").split(os.pathsep)]
    first = {"-m": folder, "-c": ""}.get(words[0], os.path.dirname(words[0]))
    sys.path[:] = [first, *dict.fromkeys([*(paths if environment.get("PYTHONPATH") else []), *_BASE])]
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()
    # Its namespace is empty, and is filled by what runs.
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if words[0] == "-m":
        sys.argv = ["-m", *words[2:]]
        return lambda: runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        return lambda: exec(compile(words[1], "<string>", "exec"), vars(main))  # noqa: S102 - as the interpreter does
    sys.argv = words
    return lambda: runpy.run_path(words[0], run_name="__main__")


def _stream(descriptor: int, like: Any, unbuffered: bool) -> io.TextIOWrapper:
    """Return a standard stream as the interpreter makes it at its start."""
    mode = "w" if descriptor else "r"
    raw: Any = io.FileIO(descriptor, mode, closefd=False)
    raw.name = like.name
    buffer = raw if unbuffered else io.BufferedWriter(raw) if descriptor else io.BufferedReader(raw)
    by_line = not unbuffered and (descriptor == 2 or raw.isatty())
    options = {"line_buffering": by_line, "write_through": unbuffered}
    stream: Any = io.TextIOWrapper(buffer, like.encoding, like.errors, "\n", **options)
    stream.mode = mode
    return stream  # type: ignore[no-any-return]


def main() -> None:
    """Load what all need, serve, and in each forked process run its command to the end of the interpreter."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    # A test may ignore or block some at the moment.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for signum in INHERITED:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in PRELOADED:
            importlib.import_module(module)
    # Else each forked process would look through all of it, and copy it, at its end.
    gc.collect()
    gc.freeze()
    message = serve(connection)
    become(message["command"], message["environment"], message["folder"])()
