"""A table of forked children ("horses"), each with a channel to the parent: spawn, reap, terminate.

It knows neither Redis nor RQ. The parent is single-threaded; a horse never outlives it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import PlatformUnsupported
from .channel import LAST, ChildChannel, ParentChannel
from .child import become_horse
from .deaths import kill_group, pidfd_works, wait_for
from .event_loop import Loop
from .side_channel import ChildSide, ParentSide

logger = logging.getLogger("rq_pooled.prefork")

#: Seconds that a horse may live on with a closed channel before it is killed.
_EOF_GRACE = 1.0


class Unexpected(Exception):
    """A message is well-formed, and was not to be said then: code of a job has written it."""


class Horse:
    """One forked child as the parent sees it."""

    def __init__(self, pid: int, channel: ParentChannel) -> None:
        self.pid = pid
        self.channel = channel
        self.pidfd: int | None = None
        self.retiring = False
        #: The horse has sent garbage.
        self.distrusted = False


class Prefork:
    """Owns the horses: forks them, hands their messages on, notices their deaths and ends them.

    Args:
        loop: the parent's loop.
        main: runs in the child with ``(slot, channel)``; the child exits when it returns.
        close_in_child: closes the parent's other descriptors (sockets to Redis); runs first in the child.
        on_message: called with ``(horse, message)`` for every message; raises Unexpected for one that is as bad as
            garbage.
        on_exit: called with ``(horse, wait status, rusage)`` after the last message of a horse that is gone.
        check: raises ValueError for a message that must not reach ``on_message``.
        ahead: horses are given jobs that wait there, see side_channel.py.
    """

    def __init__(
        self,
        loop: Loop,
        main: Callable[[int, ChildChannel], None],
        close_in_child: Callable[[], None],
        on_message: Callable[[Horse, Any], None],
        on_exit: Callable[[Horse, int, resource.struct_rusage], None],
        check: Callable[[Any], None] = lambda _message: None,
        ahead: bool = False,
    ) -> None:
        if not hasattr(os, "fork"):
            raise PlatformUnsupported(f"rq_pooled's worker needs os.fork, which {sys.platform} does not have")
        self._loop = loop
        self._main = main
        self._close_in_child = close_in_child
        self._on_message = on_message
        self._on_exit = on_exit
        self._check = check
        self._ahead = ahead
        self.horses: dict[int, Horse] = {}
        self._named_threads: set[str] = set()
        self._has_pidfd = pidfd_works()
        if not self._has_pidfd:
            loop.on_signal(signal.SIGCHLD, self.reap)
        elif os.getpid() == 1:
            loop.on_signal(signal.SIGCHLD, self._reap_strangers)

    # -- spawn ---------------------------------------------------------------------------------------------------

    def spawn(self, slot: int) -> Horse:
        """Fork a horse for ``slot``. Only from the main thread; raises OSError when the system has no room."""
        self._warn_about_threads()
        parent_end, child_end = socket.socketpair()
        side = ParentSide() if self._ahead else None
        # Buffered output would be written twice, by parent and child.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # This keeps the collector from dirtying pages that parent and horses share; once is enough.
        if not self.horses:
            gc.freeze()
        parent = os.getpid()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._run_child(parent, slot, (parent_end, child_end), side, blocked)
        finally:
            # Only the parent gets here, because the child never leaves _run_child.
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        child_end.close()
        # Parent and child both set the group, so that it exists when either needs it.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        horse = Horse(pid, ParentChannel(parent_end, side))
        self.horses[pid] = horse
        self._loop.watch(horse.channel, lambda: self._on_readable(horse))
        if self._has_pidfd:
            horse.pidfd = os.pidfd_open(pid)
            self._loop.watch(horse.pidfd, lambda: self._reap(horse))
        return horse

    def _run_child(
        self,
        parent: int,
        slot: int,
        ends: tuple[socket.socket, socket.socket],
        side: ParentSide | None,
        mask: set[Any],
    ) -> NoReturn:
        status = 1
        try:
            # Closing comes first. An open end of another horse's channel would hide that horse's EOF from the parent,
            # and an open Redis socket would keep the connection alive after the parent closed it.
            ends[0].close()
            if side is not None:
                side.close_mine()
            for horse in self.horses.values():
                horse.channel.close_in_child()
                if horse.pidfd is not None:
                    os.close(horse.pidfd)
            self._close_in_child()
            self._loop.close_in_child()
            channel = ChildChannel(ends[1], ChildSide(side.theirs) if side is not None else None)
            become_horse(parent, channel)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._main(slot, channel)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except (EOFError, BrokenPipeError, ConnectionResetError):
            # The parent has closed the channel during the horse's work, and waits for no answer.
            pass
        except BaseException:
            logger.exception("horse %d: error outside of a job", os.getpid())
        finally:
            try:
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(Exception):
                        stream.flush()
            finally:
                # The child must exit here, or it would go on as a second parent.
                # The kernel keeps only these bits of the code, too, and os._exit raises for a larger number.
                os._exit(status & 0xFF)

    def _warn_about_threads(self) -> None:
        """Log the names of threads that user modules started in the parent: a fork copies their locks, but not them."""
        for thread in threading.enumerate():
            if thread is threading.main_thread() or thread.name in self._named_threads:
                continue
            self._named_threads.add(thread.name)
            target = getattr(thread, "_target", None)
            origin = getattr(target, "__module__", None) or type(thread).__module__
            logger.warning(
                "thread %r of module %s runs in the parent; a job that needs a lock which it holds during a fork "
                "will hang. Start it inside the job, or not at import.",
                thread.name,
                origin,
            )

    # -- messages ------------------------------------------------------------------------------------------------

    def send(self, horse: Horse, message: Any) -> None:
        """Send ``message`` without blocking; the rest follows when the horse reads."""
        if not horse.channel.send(message):
            self._loop.watch(
                horse.channel, lambda: self._on_readable(horse), on_writable=lambda: self._on_writable(horse)
            )

    def _on_writable(self, horse: Horse) -> None:
        if horse.pid in self.horses and horse.channel.flush():
            self._loop.watch(horse.channel, lambda: self._on_readable(horse))

    def _on_readable(self, horse: Horse) -> None:
        # The horse was reaped earlier in the same turn.
        if horse.pid not in self.horses:
            return
        self._receive(horse)
        if horse.channel.at_eof:
            # EOF is only a hint: the horse may be about to die, or a job has closed descriptors that are not its own.
            self._loop.unwatch(horse.channel)
            self._loop.call_later(_EOF_GRACE, lambda: self.kill(horse))

    def receive_last(self, horse: Horse) -> None:
        """Pass on all that the horse has sent: it is dead, or about to be killed, and a complete outcome counts."""
        self._receive(horse, LAST)

    def _receive(self, horse: Horse, *most: int) -> None:
        """Pass on the horse's messages. A horse that sends garbage is killed, and its later messages are ignored."""
        if horse.distrusted:
            return
        for message in horse.channel.receive(*most):
            try:
                self._check(message)
            except ValueError as error:
                horse.channel.garbage = error
                break
            try:
                self._on_message(horse, message)
            except Unexpected as error:
                horse.channel.garbage = error
                break
        if horse.channel.garbage is not None:
            horse.distrusted = True
            logger.error("horse %d sent what is no message (%s); killing it", horse.pid, horse.channel.garbage)
            self._loop.unwatch(horse.channel)
            self.kill(horse)

    # -- death ---------------------------------------------------------------------------------------------------

    def kill(self, horse: Horse, signum: int = signal.SIGKILL) -> None:
        """Send ``signum`` to the horse and to every process of its group. A horse that is gone is ignored."""
        if horse.pid not in self.horses:
            return
        kill_group(horse.pid, signum)

    def retire(self, horse: Horse) -> None:
        """Close the channel of an idle horse, which exits when it sees that; its death is reported as any other."""
        horse.retiring = True
        self._loop.unwatch(horse.channel)
        horse.channel.close()
        self._loop.call_later(_EOF_GRACE, lambda: self.kill(horse))

    def reap(self) -> None:
        """Collect every horse that has died. Only horses are waited for, never other children."""
        for horse in list(self.horses.values()):
            self._reap(horse)
        if os.getpid() == 1:
            self._reap_strangers()

    def _reap(self, horse: Horse) -> None:
        if horse.pid not in self.horses:
            return
        ended = wait_for(horse.pid)
        if ended is None:
            return
        if not horse.retiring:
            self.receive_last(horse)
        del self.horses[horse.pid]
        self._loop.unwatch(horse.channel)
        horse.channel.close()
        if horse.pidfd is not None:
            self._loop.unwatch(horse.pidfd)
            os.close(horse.pidfd)
        self._on_exit(horse, *ended)

    def _reap_strangers(self) -> None:
        """Wait, as PID 1 of a container, for orphans that the kernel handed to us, so that no zombies pile up."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            # A horse is reported through its pidfd.
            if found is None or found.si_pid in self.horses:
                return
            with contextlib.suppress(ChildProcessError):
                os.waitpid(found.si_pid, os.WNOHANG)

    def close(self, patience: float = 1.0) -> None:
        """End all horses: idle ones by closing their channels, the rest by SIGKILL after ``patience`` seconds."""
        for horse in list(self.horses.values()):
            if not horse.retiring:
                self.retire(horse)
        deadline = time.monotonic() + patience
        while self.horses and time.monotonic() < deadline:
            self._loop.turn(timeout=0.05)
            self.reap()
        for horse in list(self.horses.values()):
            self.kill(horse)
        while self.horses:
            self._loop.turn(timeout=0.05)
            self.reap()
