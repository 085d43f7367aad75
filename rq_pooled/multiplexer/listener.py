"""Takes the streams of jobs at a Unix socket in a folder of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from glob import glob

from ..errors import PlatformUnsupported
from ..process.event_loop import Loop
from ..process.peer import is_of_this_user

_PREFIX, _BACKLOG = "rq_pooled-", 1024
#: Seconds between checks that the socket's folder still exists.
_LOOK_AT_FOLDER = 2.0
#: Connections taken in one go at most.
_AT_ONCE = 100


class Listener:
    """Listens until it is closed.

    Args:
        loop: watches the socket.
        warn: logs, as ``Logger.warning``.
        on_accepted: called with the socket of each process of this user that connects.

    Raises:
        PlatformUnsupported: no socket can be made.
    """

    def __init__(self, loop: Loop, warn: Callable[..., None], on_accepted: Callable[[socket.socket], None]) -> None:
        self._loop = loop
        self._warn = warn
        self._on_accepted = on_accepted
        self._folder: str | None = None
        #: By which the path is known to be ours still.
        self._identity: tuple[int, ...] | None = None
        #: It was said that the path is gone.
        self._has_warned = False
        self._listener, self.path = self._listen()
        loop.watch(self._listener, self._accept)
        loop.call_every(_LOOK_AT_FOLDER, self._look_at_folder)

    def _listen(self) -> tuple[socket.socket, str]:
        """Return a listening socket and its path, which is an abstract name where no folder is writable."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        remove_stale_folders()
        try:
            self._folder = tempfile.mkdtemp(prefix=_PREFIX)
            path = os.path.join(self._folder, "jobs.sock")
            self._identity = _bind(listener, path)
        except OSError as error:
            self._remove_folder()
            listener.close()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            path = f"\0{_PREFIX}{os.getpid()}-{os.urandom(8).hex()}"
            try:
                listener.bind(path)
                listener.listen(_BACKLOG)
            except OSError:
                listener.close()
                raise PlatformUnsupported(
                    f"no Unix socket for jobs can be made ({error}): let TMPDIR name a folder that can be written to "
                    "and has a short path, or set JOBS_SHARE=no"
                ) from None
        listener.setblocking(False)
        return listener, path

    def _look_at_folder(self) -> None:
        """Make the folder again if a cleaner has removed it, because horses know only its path.

        Another user may have taken its name since. Horses show the token to no one but this user.
        """
        if self._folder is None or _identity_of(self.path) == self._identity:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._folder, 0o700)
            if os.lstat(self._folder).st_uid != os.geteuid():
                raise PermissionError(f"{self._folder} has another owner now")
            os.chmod(self._folder, 0o700)
            self._identity = _bind(listener, self.path)
        except OSError as error:
            listener.close()
            if not self._has_warned:
                self._warn("the socket for jobs is gone, and cannot be made again: %s: restart this worker", error)
            self._has_warned = True
            return
        self._has_warned = False
        self._warn("the socket for jobs, %s, was removed; it is made again: keep what cleans up from it", self.path)
        self._loop.unwatch(self._listener)
        self._listener.close()
        self._listener = listener
        self._loop.watch(listener, self._accept)

    def accept_waiting(self) -> None:
        """Take the connections that wait to be, as many as there are within bounds."""
        for _ in range(_AT_ONCE):
            if not self._accept():
                return

    def _accept(self) -> bool:
        try:
            accepted, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._warn("no further connection of a job can be taken (%s): raise the limit of open files", error)
                self._loop.unwatch(self._listener)
                self._loop.call_later(1.0, lambda: self._loop.watch(self._listener, self._accept))
            return False
        if not is_of_this_user(accepted):
            accepted.close()
            return True
        accepted.setblocking(False)
        self._on_accepted(accepted)
        return True

    def close(self) -> None:
        """Close the socket, and remove its folder."""
        self._loop.unwatch(self._listener)
        self._listener.close()
        self._remove_folder()

    def close_in_child(self) -> None:
        """Close a forked copy of the descriptor."""
        self._listener.close()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _bind(listener: socket.socket, path: str) -> tuple[int, ...] | None:
    """Listen first, then make the path appear: a path without a listener looks like a dead worker's."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + "~")
    listener.bind(path + "~")
    listener.listen(_BACKLOG)
    os.rename(path + "~", path)
    return _identity_of(path)


def _identity_of(path: str) -> tuple[int, ...] | None:
    """Return what tells a file from another at its path; a number of an inode is used again. None: there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def remove_stale_folders() -> None:
    """Remove the folders of killed workers: those in which no process listens any more."""
    for folder in glob(os.path.join(tempfile.gettempdir(), _PREFIX + "*")):
        with contextlib.suppress(OSError):
            if os.lstat(folder).st_uid != os.geteuid():
                continue
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(0.1)
                try:
                    probe.connect(os.path.join(folder, "jobs.sock"))
                except ConnectionRefusedError:
                    shutil.rmtree(folder, ignore_errors=True)
