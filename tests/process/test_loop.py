"""Laws of the loop, on real descriptors and signals."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from rq_pooled.process.event_loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    one = Loop()
    yield one
    one.close()


def run_until(loop: Loop, condition: object, timeout: float = 5.0) -> None:
    """Turn the loop until ``condition()`` is true."""
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the loop never got there"
        loop.turn(0.05)


def test_timers_run_in_the_order_in_which_they_are_due(loop: Loop) -> None:
    """Timers fire by due time, and those of one instant in the order in which they were made."""
    fired: list[int] = []
    for number, delay in enumerate([0.03, 0.01, 0.02, 0.0, 0.0]):
        loop.call_later(delay, lambda number=number: fired.append(number))
    run_until(loop, lambda: len(fired) == 5)
    assert fired == [3, 4, 1, 2, 0]


def test_a_timer_never_fires_early(loop: Loop) -> None:
    """A timer fires at its time or after, never before."""
    fired: list[float] = []
    due = loop.call_later(0.05, lambda: fired.append(time.monotonic())).due
    run_until(loop, lambda: fired)
    assert fired[0] >= due


def test_a_cancelled_timer_does_not_fire(loop: Loop) -> None:
    """Cancelling is final, also from a callback of the same turn, and also twice."""
    fired: list[str] = []
    second = loop.call_later(0.01, lambda: fired.append("second"))

    def first() -> None:
        fired.append("first")
        second.cancel()
        second.cancel()

    second_due_too = second.due
    loop.call_later(0.0, first)
    loop.call_later(0.03, lambda: fired.append("last"))
    while time.monotonic() < second_due_too:
        pass  # both are due when the turn begins
    run_until(loop, lambda: "last" in fired)
    assert fired == ["first", "last"]


def test_turn_waits_no_longer_than_the_next_timer(loop: Loop) -> None:
    """A turn without a limit ends when a timer is due; a cancelled one does not hold it up."""
    fired: list[int] = []
    loop.call_later(60, lambda: fired.append(0)).cancel()
    loop.call_later(0.01, lambda: fired.append(1))
    run_until(loop, lambda: fired)
    assert fired == [1]


def test_a_repeated_call_survives_its_own_error(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """An error in a repeated duty is logged and the duty goes on; ending it is final."""
    runs: list[int] = []

    def duty() -> None:
        runs.append(1)
        raise RuntimeError("broken duty")

    end = loop.call_every(0.001, duty)
    with caplog.at_level(logging.ERROR, "rq_pooled.loop"):
        run_until(loop, lambda: len(runs) >= 3)
    assert "broken duty" in caplog.text
    end()
    count = len(runs)
    over: list[int] = []
    loop.call_later(0.02, lambda: over.append(1))
    run_until(loop, lambda: over)
    assert len(runs) == count


def test_an_error_in_one_callback_does_not_take_the_others_down(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """In one turn every descriptor is served although the callback of one raises."""
    pairs = [socket.socketpair() for _ in range(3)]
    served: list[int] = []

    def serve(number: int) -> None:
        pairs[number][0].recv(1)
        served.append(number)
        if number == 0:
            raise ValueError("bad apple")

    for number, (mine, theirs) in enumerate(pairs):
        loop.watch(mine, lambda number=number: serve(number))
        theirs.send(b"x")
    loop.turn(1)
    assert sorted(served) == [0, 1, 2]
    assert "bad apple" in caplog.text
    for mine, theirs in pairs:
        loop.unwatch(mine)
        mine.close()
        theirs.close()


def test_system_exit_passes_through(loop: Loop) -> None:
    """SystemExit is a decision to end, not an error of a callback."""

    def leave() -> None:
        raise SystemExit(3)

    loop.call_later(0, leave)
    with pytest.raises(SystemExit):
        loop.turn(1)


def test_watch_replaces_and_unwatch_forgets(loop: Loop) -> None:
    """A source watched again has only its new callback; an unwatched or closed one has none, and its number is free."""
    mine, theirs = socket.socketpair()
    heard: list[str] = []
    loop.watch(mine, lambda: heard.append("old"))
    loop.watch(mine, lambda: heard.append("new"), on_writable=lambda: heard.append("writable"))
    theirs.send(b"x")
    loop.turn(1)
    assert heard == ["writable", "new"]
    number = mine.fileno()
    mine.close()  # without a word to the loop
    loop.unwatch(mine)
    loop.unwatch(mine)
    again, other = socket.socketpair()
    assert number in (again.fileno(), other.fileno())  # the kernel gives the lowest free one
    loop.watch(again, lambda: heard.append("again"))
    other.send(b"x")
    heard.clear()
    run_until(loop, lambda: heard)
    assert heard == ["again"]
    loop.unwatch(again)
    for one in (theirs, again, other):
        one.close()


def test_a_number_closed_behind_the_loops_back_can_be_watched_again(loop: Loop) -> None:
    """A descriptor whose number belonged to a source that was closed while watched works like any other."""
    mine, theirs = socket.socketpair()
    loop.watch(mine, lambda: None)
    number = mine.fileno()
    mine.close()
    heard: list[int] = []
    again, other = socket.socketpair()
    source = again if again.fileno() == number else other
    sender = other if source is again else again
    loop.watch(source, lambda: heard.append(1))
    sender.send(b"x")
    run_until(loop, lambda: heard)
    for one in (theirs, again, other):
        one.close()


def test_signals_reach_callbacks_from_the_loop_only(loop: Loop) -> None:
    """A signal's callback runs in a later turn, never inside other code; several signals all arrive."""
    heard: list[int] = []
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        loop.on_signal(signum, lambda signum=signum: heard.append(signum))
    for _ in range(5):
        os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert heard == []
    run_until(loop, lambda: len(set(heard)) == 2)


def test_a_signal_ends_a_wait_at_once(loop: Loop) -> None:
    """A signal that arrives while the loop waits without limit is served."""
    heard: list[int] = []
    loop.on_signal(signal.SIGALRM, lambda: heard.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    loop.turn()  # for ever
    run_until(loop, lambda: heard)


def test_a_flood_of_signals_is_survived(loop: Loop) -> None:
    """More signals than the wake-up socket holds neither block the process nor are forgotten altogether."""
    heard: list[int] = []
    loop.on_signal(signal.SIGUSR1, lambda: heard.append(1))
    for _ in range(20_000):
        os.kill(os.getpid(), signal.SIGUSR1)
    run_until(loop, lambda: heard)


def test_close_gives_back_handlers_and_descriptors() -> None:
    """After close, handlers and wake-up descriptor are as before and nothing is left open."""
    before_handler = signal.getsignal(signal.SIGUSR1)
    before = len(os.listdir("/proc/self/fd"))
    one = Loop()
    one.on_signal(signal.SIGUSR1, lambda: None)
    one.close()
    assert signal.getsignal(signal.SIGUSR1) is before_handler
    assert signal.set_wakeup_fd(-1) == -1
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_child_that_lets_go_leaves_the_parents_loop_working(loop: Loop) -> None:
    """What a forked child closes of the loop, epoll instance included, the parent still has."""
    mine, theirs = socket.socketpair()
    heard: list[bytes] = []
    loop.watch(mine, lambda: heard.append(mine.recv(1)))
    loop.on_signal(signal.SIGUSR1, lambda: heard.append(b"signal"))
    pid = os.fork()
    if pid == 0:
        loop.close_in_child()
        os._exit(0 if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL else 1)
    assert os.waitpid(pid, 0)[1] == 0
    theirs.send(b"x")
    os.kill(os.getpid(), signal.SIGUSR1)
    run_until(loop, lambda: sorted(heard) == [b"signal", b"x"])
    loop.unwatch(mine)
    mine.close()
    theirs.close()
