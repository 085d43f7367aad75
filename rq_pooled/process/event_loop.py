"""A selector loop: readable descriptors, timers and signals of one single-threaded process.

It knows neither Redis nor RQ. A callback may do anything, but must not block for long.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

logger = logging.getLogger("rq_pooled.loop")

Callback = Callable[[], object]


class Timer:
    """One call in the future. ``cancel`` is final and may be called at any time, more than once."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callback) -> None:
        self.due = due
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Forget the call; the loop drops the entry when its time comes."""
        self.callback = None


class Loop:
    """Waits for the first of a readable or writable descriptor, a timer and a signal, and calls its callback.

    Times are seconds of ``time.monotonic``. A callback that raises a subclass of Exception is logged, and the loop
    goes on, because one broken duty must not end the others. SystemExit and KeyboardInterrupt pass through.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        # Entries are kept by source, since a closed source no longer knows its number.
        self._descriptors: dict[Any, int] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        #: The number of callbacks called, and of those that counted themselves as minor: they made no duty due.
        self._calls = self.minor_calls = 0
        # The number keeps timers of the same instant in order, and keeps them from being compared.
        self._sequence = itertools.count()
        self._signals: dict[int, Callback] = {}
        self._previous_handlers: dict[int, Any] = {}
        self._wakeup, self._wakeup_sender = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_sender.setblocking(False)
        self._previous_wakeup_fd = -1
        self.watch(self._wakeup, self._on_signal)

    # -- descriptors ---------------------------------------------------------------------------------------------

    def watch(self, source: Any, on_readable: Callback | None, on_writable: Callback | None = None) -> None:
        """Call ``on_readable`` and ``on_writable`` when ``source``, a descriptor or an object with ``fileno``, is.

        At least one of the two is given. Watching a source again replaces its callbacks.
        """
        self.unwatch(source)
        fd = source if isinstance(source, int) else source.fileno()
        events = (selectors.EVENT_READ if on_readable else 0) | (selectors.EVENT_WRITE if on_writable else 0)
        # The last source with this number was closed without unwatch.
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)
        self._selector.register(fd, events, (on_readable, on_writable))
        self._descriptors[source] = fd

    def unwatch(self, source: Any) -> None:
        """Stop watching. The source may be unknown or already closed."""
        fd = self._descriptors.pop(source, None)
        if fd is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(fd)

    # -- timers --------------------------------------------------------------------------------------------------

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Call ``callback`` once, ``delay`` seconds from now."""
        timer = Timer(time.monotonic() + delay, callback)
        heapq.heappush(self._timers, (timer.due, next(self._sequence), timer))
        return timer

    def call_every(self, interval: float, callback: Callback) -> Callback:
        """Call ``callback`` every ``interval`` seconds from now on, and return a function that ends it.

        The next call is planned before the present one runs, so that an error in it does not end the series. Calls
        that were missed while the process was stopped are not repeated.
        """
        timer: Timer

        def tick() -> None:
            nonlocal timer
            timer = self.call_later(interval, tick)
            callback()

        timer = self.call_later(interval, tick)
        return lambda: timer.cancel()

    # -- signals -------------------------------------------------------------------------------------------------

    def on_signal(self, signum: int, callback: Callback) -> None:
        """Call ``callback`` from the loop, never from inside other code, after the process received ``signum``.

        The Python-level handler does nothing: the C-level one writes the signal's number to the wake-up socket,
        which cannot be lost, be reentered or interrupt a half-done write to Redis.
        """
        if not self._signals:
            self._previous_wakeup_fd = signal.set_wakeup_fd(self._wakeup_sender.fileno(), warn_on_full_buffer=False)
        self._signals[signum] = callback
        self._previous_handlers.setdefault(signum, signal.signal(signum, _no_op))
        signal.siginterrupt(signum, False)

    def _on_signal(self) -> None:
        try:
            received = self._wakeup.recv(4096)
        except BlockingIOError:
            return
        # Each number counts once, because a burst of SIGCHLD needs one check. Repeats that matter (a second SIGTERM)
        # are seconds apart.
        for signum in dict.fromkeys(received):
            if callback := self._signals.get(signum):
                self._call(callback)

    # -- running -------------------------------------------------------------------------------------------------

    def turn(self, timeout: float | None = None) -> bool:
        """Wait until something is ready, at most ``timeout`` seconds (None: for ever), and serve all that is.

        Returns whether callbacks were called and all were minor; then the caller need not check its duties.
        """
        self._calls = self.minor_calls = 0
        next_timer = self._time_to_next_timer()
        if next_timer is not None and (timeout is None or next_timer < timeout):
            timeout = next_timer
        for key, events in self._selector.select(timeout):
            on_readable, on_writable = key.data
            if events & selectors.EVENT_WRITE and on_writable:
                self._call(on_writable)
            if events & selectors.EVENT_READ and on_readable:
                self._call(on_readable)
        self._run_due_timers()
        return 0 < self._calls == self.minor_calls

    def _time_to_next_timer(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _run_due_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                self._call(timer.callback)

    def _call(self, callback: Callback) -> None:
        self._calls += 1
        try:
            callback()
        except Exception:
            logger.exception("error in %r; the loop goes on", callback)

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back the signal handlers and close the descriptors that the loop itself opened."""
        if self._signals:
            signal.set_wakeup_fd(self._previous_wakeup_fd)
            for signum, previous in self._previous_handlers.items():
                signal.signal(signum, signal.SIG_DFL if previous is None else previous)
            self._signals.clear()
        self._close_descriptors()

    def close_in_child(self) -> None:
        """Close the loop's descriptors in a forked child, without any effect on the parent.

        The epoll instance is shared with the parent, so it is closed, and no source is unregistered from it.
        """
        signal.set_wakeup_fd(-1)
        for signum in self._signals:
            signal.signal(signum, signal.SIG_DFL)
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._selector.close()
        self._wakeup.close()
        self._wakeup_sender.close()


def _no_op(_signum: int, _frame: FrameType | None) -> None:
    """Stand in as a Python-level handler, so that the C-level one writes to the wake-up descriptor."""
