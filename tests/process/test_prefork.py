"""Laws of the table of horses, on real forks."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from support import ROOT, wait_until

import rq_pooled.process.prefork as prefork_module
from rq_pooled.process.channel import ChildChannel, encode
from rq_pooled.process.event_loop import Loop
from rq_pooled.process.prefork import Horse, Prefork

Main = Callable[[int, ChildChannel], None]


class Stable:
    """A loop and its horses, with everything that was heard from them."""

    def __init__(self, main: Main, close_in_child: Callable[[], None] = lambda: None) -> None:
        self.loop = Loop()
        self.messages: list[tuple[Horse, Any]] = []
        self.exits: list[tuple[Horse, int]] = []
        self.prefork = Prefork(
            self.loop,
            main,
            close_in_child,
            lambda horse, message: self.messages.append((horse, message)),
            lambda horse, status, _rusage: self.exits.append((horse, status)),
        )

    def until(self, condition: Callable[[], Any], timeout: float = 10.0) -> None:
        """Turn the loop until the condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it never came to that"
            self.loop.turn(0.05)

    def said(self) -> list[Any]:
        """Return the messages without their senders."""
        return [message for _, message in self.messages]


@pytest.fixture(params=[True, False], ids=["pidfd", "sigchld"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stable]]:
    """A function that makes stables; with deaths seen by pidfd, and as where there is none."""
    if not request.param:
        monkeypatch.setattr(prefork_module, "pidfd_works", lambda: False)
    stables: list[Stable] = []

    def make(main: Main, **kwargs: Any) -> Stable:
        stables.append(Stable(main, **kwargs))
        return stables[-1]

    before = len(os.listdir("/proc/self/fd"))
    others = {child.pid for child in psutil.Process().children()}
    yield make
    for stable in stables:
        stable.prefork.close()
        stable.loop.close()
    assert len(os.listdir("/proc/self/fd")) == before
    # Nobody is left, not even a zombie; a server of the session may be a child of this process too.
    assert not {child.pid for child in psutil.Process().children()} - others


def echo(slot: int, channel: ChildChannel) -> None:
    """Send everything back until the parent closes."""
    channel.send(("hello", slot, os.getpid()))
    with contextlib.suppress(EOFError):
        while True:
            channel.send(channel.receive())


def test_messages_go_both_ways(make: Callable[..., Stable]) -> None:
    """Each horse knows its slot, gets what is sent to it and nothing else, in order; big messages too."""
    stable = make(echo)
    horses = [stable.prefork.spawn(slot) for slot in range(3)]
    stable.until(lambda: len(stable.messages) == 3)
    assert {message[1:] for message in stable.said()} == {(slot, horse.pid) for slot, horse in enumerate(horses)}
    stable.messages.clear()
    sent = {horse.pid: [(horse.pid, number, os.urandom(700_000)) for number in range(4)] for horse in horses}
    for horse in horses:
        for message in sent[horse.pid]:
            stable.prefork.send(horse, message)
    stable.until(lambda: len(stable.messages) == 12)
    for horse in horses:
        assert [message for sender, message in stable.messages if sender is horse] == sent[horse.pid]


@pytest.mark.parametrize("how", ["exit", "signal", "exception"])
def test_a_death_is_reported_once_after_the_last_message(make: Callable[..., Stable], how: str) -> None:
    """What a horse had sent whole is heard before its death is reported, with the status that the kernel gives."""

    def main(_slot: int, channel: ChildChannel) -> None:
        for number in range(100):
            channel.send((number, b"x" * 1000))
        if how == "exit":
            os._exit(7)
        if how == "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError("outside of a job")

    stable = make(main)
    horse = stable.prefork.spawn(0)
    stable.until(lambda: stable.exits)
    assert [message[0] for message in stable.said()] == list(range(100))
    status = {"exit": 7 << 8, "signal": signal.SIGKILL, "exception": 1 << 8}[how]
    assert stable.exits == [(horse, status)]
    stable.loop.turn(0.01)
    assert len(stable.exits) == 1
    assert not stable.prefork.horses


@pytest.mark.parametrize(("code", "status"), [(2**40 + 3, 3), (-1, 255), ("words", 1)])
def test_no_exit_code_lets_a_child_go_on(make: Callable[..., Stable], code: Any, status: int) -> None:
    """A child ends with the low byte of whatever it gives to sys.exit, and never runs the parent's code."""
    parent = os.getpid()
    stable = make(lambda _slot, _channel: sys.exit(code))
    try:
        stable.prefork.spawn(0)
    finally:
        if os.getpid() != parent:
            os._exit(99)
    stable.until(lambda: stable.exits)
    assert os.waitstatus_to_exitcode(stable.exits[0][1]) == status


def test_a_horse_that_sends_garbage_is_killed(make: Callable[..., Stable], caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are no message end the horse at once, and harm no other."""

    def main(slot: int, channel: ChildChannel) -> None:
        if slot == 0:
            os.write(channel.fileno(), b"\xff" * 100)
            time.sleep(60)
        echo(slot, channel)

    stable = make(main)
    bad, good = stable.prefork.spawn(0), stable.prefork.spawn(1)
    stable.until(lambda: stable.exits)
    assert stable.exits == [(bad, signal.SIGKILL)]
    assert "no message" in caplog.text
    stable.prefork.send(good, "still here")
    stable.until(lambda: "still here" in stable.said())


def test_what_came_before_garbage_counts(make: Callable[..., Stable], caplog: pytest.LogCaptureFixture) -> None:
    """Messages that were whole before the garbage are heard; what comes after it is not, and it is reported once."""

    def main(_slot: int, channel: ChildChannel) -> None:
        os.write(channel.fileno(), encode("before") + b"\0\0\0\1?" + encode("after"))
        time.sleep(60)

    stable = make(main)
    horse = stable.prefork.spawn(0)
    stable.until(lambda: stable.exits)
    assert stable.said() == ["before"]
    assert stable.exits == [(horse, signal.SIGKILL)]
    assert caplog.text.count("no message") == 1


def test_an_idle_horse_ends_when_retired(make: Callable[..., Stable]) -> None:
    """Retiring closes the channel; the horse sees that and ends by itself."""
    stable = make(echo)
    horse = stable.prefork.spawn(0)
    stable.until(lambda: stable.messages)
    stable.prefork.retire(horse)
    stable.until(lambda: stable.exits)
    assert stable.exits == [(horse, 0)]


def test_no_horse_holds_another_ones_channel(make: Callable[..., Stable]) -> None:
    """Every horse sees that its channel was closed although others were forked after it."""
    stable = make(echo)
    horses = [stable.prefork.spawn(slot) for slot in range(4)]
    stable.until(lambda: len(stable.messages) == 4)
    for horse in horses:
        stable.prefork.retire(horse)
        stable.until(lambda horse=horse: (horse, 0) in stable.exits)  # by itself: status 0, not SIGKILL


def test_a_child_has_only_its_own_descriptors(make: Callable[..., Stable]) -> None:
    """A fork inherits neither epoll, wake-up socket, pidfds nor what the owner has to close."""
    mine, theirs = socket.socketpair()

    def main(_slot: int, channel: ChildChannel) -> None:
        own = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _exists(name)}
        channel.send(sorted(link for link in own if "socket" in link or "anon_inode" in link))
        channel.send(os.readlink(f"/proc/self/fd/{channel.fileno()}"))

    def close_in_child() -> None:
        mine.close()
        theirs.close()

    before = {_link(name) for name in os.listdir("/proc/self/fd")}
    stable = make(main, close_in_child=close_in_child)
    ours = {_link(fd) for fd in (mine.fileno(), theirs.fileno())}
    stable.prefork.spawn(0)
    stable.prefork.spawn(1)
    stable.until(lambda: len(stable.exits) == 2)
    for horse, _ in stable.exits:
        links, own = (message for sender, message in stable.messages if sender is horse)
        assert set(links) - (before - ours) == {own}
    mine.close()
    theirs.close()


def _exists(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")


def _link(name: object) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{name}")
    return ""


def test_the_signals_of_the_parent_are_not_those_of_the_child(make: Callable[..., Stable]) -> None:
    """In a horse SIGTERM and SIGINT pass without effect, are not ignored by its children, and nothing is blocked."""

    def main(_slot: int, channel: ChildChannel) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), signum)
        program = "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
        inherited = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        channel.send((len(blocked), inherited.stdout.strip(), os.getpgid(0) == os.getpid()))

    stable = make(main)
    stable.loop.on_signal(signal.SIGTERM, lambda: stable.messages.append((None, "the parent heard it")))  # type: ignore[arg-type]
    horse = stable.prefork.spawn(0)
    stable.until(lambda: stable.exits)
    assert stable.messages == [(horse, (0, "True", True))]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_only_the_horse_itself_speaks_on_its_channel(make: Callable[..., Stable]) -> None:
    """A copy of a horse says nothing, hears EOF, and does not keep the channel open when the horse has ended."""

    def main(_slot: int, channel: ChildChannel) -> None:
        descriptor = channel.fileno()
        reader, writer = os.pipe()
        copy = os.fork()
        if copy == 0:
            os.setpgid(0, 0)  # so that it outlives the horse
            channel.send("from the copy")
            try:
                channel.receive()
            except EOFError:
                os.write(writer, b"EOF")
            time.sleep(10)
            os._exit(0)
        heard = os.read(reader, 3)
        channel.send((heard, channel.fileno() == descriptor, copy))
        os._exit(0)

    stable = make(main)
    horse = stable.prefork.spawn(0)
    stable.until(lambda: stable.exits)
    try:
        assert [message[:2] for message in stable.said()] == [(b"EOF", True)]
        assert horse.channel.at_eof
    finally:
        for message in stable.said():
            os.kill(message[2], signal.SIGKILL)


def test_killing_takes_the_whole_group(make: Callable[..., Stable]) -> None:
    """A child that a job has left behind ends with its horse, whichever way the horse ends."""

    def main(_slot: int, channel: ChildChannel) -> None:
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        child.returncode = 0
        channel.send(child.pid)
        with contextlib.suppress(EOFError):
            channel.receive()

    stable = make(main)
    killed, retired = stable.prefork.spawn(0), stable.prefork.spawn(1)
    stable.until(lambda: len(stable.messages) == 2)
    stable.prefork.kill(killed)
    stable.prefork.retire(retired)
    stable.until(lambda: len(stable.exits) == 2)
    wait_until(lambda: not any(_lives(pid) for pid in stable.said()), 5, "the ends of the children")


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_close_ends_also_those_that_do_not_listen(make: Callable[..., Stable]) -> None:
    """At the end idle horses leave by themselves and the others are killed: none is left."""

    def main(slot: int, channel: ChildChannel) -> None:
        if slot == 0:
            channel.send("busy")
            while True:
                time.sleep(60)
        echo(slot, channel)

    stable = make(main)
    busy, idle = stable.prefork.spawn(0), stable.prefork.spawn(1)
    stable.until(lambda: len(stable.messages) == 2)
    stable.prefork.close(patience=0.3)
    assert dict(stable.exits) == {busy: signal.SIGKILL, idle: 0}


def test_a_horse_that_has_lost_its_channel_is_killed(make: Callable[..., Stable]) -> None:
    """A horse whose end is closed but who lives on is ended after a moment's grace."""

    def main(_slot: int, channel: ChildChannel) -> None:
        channel.send("hello")
        os.close(channel.fileno())
        time.sleep(60)

    stable = make(main)
    horse = stable.prefork.spawn(0)
    stable.until(lambda: stable.exits)
    assert stable.exits == [(horse, signal.SIGKILL)]


def test_many_replacements_cost_no_descriptor(make: Callable[..., Stable]) -> None:
    """After hundreds of horses the process has the descriptors and children it had after the first."""
    stable = make(lambda _slot, channel: channel.send("done"))
    stable.prefork.spawn(0)
    stable.until(lambda: len(stable.exits) == 1)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(2, 202):
        stable.prefork.spawn(0)
        stable.until(lambda number=number: len(stable.exits) == number)
    assert len(os.listdir("/proc/self/fd")) == before
    assert stable.said() == ["done"] * 201


def test_a_thread_in_the_parent_is_named_once(make: Callable[..., Stable], caplog: pytest.LogCaptureFixture) -> None:
    """Before a fork the parent says which thread of which module is in danger, and does not repeat itself."""
    stable = make(echo)
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="left-by-a-module")
    thread.start()
    try:
        with caplog.at_level(logging.WARNING, "rq_pooled.prefork"):
            stable.prefork._warn_about_threads()
            stable.prefork._warn_about_threads()
    finally:
        over.set()
        thread.join()
    assert caplog.text.count("left-by-a-module") == 1
    assert "threading" in caplog.text


ORPHANS = """
import os, signal, sys, time
from rq_pooled.process.event_loop import Loop
from rq_pooled.process import prefork
if sys.argv[1] == "watch":  # as where the kernel has no PR_SET_PDEATHSIG
    prefork._PR_SET_PDEATHSIG = 12345
def main(slot, channel):
    channel.send(os.getpid())
    while True:
        time.sleep(60)
loop = Loop()
heard = []
fork = prefork.Prefork(loop, main, lambda: None, lambda horse, message: heard.append(message), lambda *_: None)
for slot in range(3):
    fork.spawn(slot)
while len(heard) < 3:
    loop.turn(1)
print(*heard, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("means", ["kernel", "watch"])
def test_horses_die_with_their_parent(means: str) -> None:
    """When the parent is killed its busy horses are gone within a second, also without the kernel's help."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, means], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 3 and all(map(_lives, pids))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not any(map(_lives, pids)), 1.0, "the ends of the horses")
