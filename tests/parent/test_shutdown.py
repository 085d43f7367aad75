"""The shutdown alone: what begins it, and in which order a hard one records and puts back."""

from __future__ import annotations

import itertools
import signal
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from keys import named
from parts import Stable, claim_of, context_of, name_of, outcome_of
from redis.exceptions import ConnectionError as RedisConnectionError

from rq_pooled.errors import TRY_AGAIN, USAGE
from rq_pooled.parent import shutdown as module
from rq_pooled.parent.committer import NOTHING_DONE, Committer
from rq_pooled.parent.events import Events
from rq_pooled.parent.recovery import Recovery
from rq_pooled.parent.shutdown import RECORDING_TIME, SAME_SIGNAL, Shutdown
from rq_pooled.parent.slot import Task


class Parts:
    """A worker whose slot runs the job ``a``."""

    def __init__(self, **settings: Any) -> None:
        self.context = context_of(**settings)
        self.command, self.events, self.slots = self.context.command, Events(), Stable("w")
        self.slots.give(self.slots[0], Task("perform", claim_of("a")))
        self.committer = Committer(self.context, self.events, tasks=deque(), burst=False)
        slots: Any = self.slots
        wakeup: Any = None
        held = {"slots": slots, "committer": self.committer}
        recovery = Recovery(self.context, self.events, **held, wakeup=wakeup)
        self.shutdown = Shutdown(self.context, self.events, **held, recovery=recovery, turn=self.turn)
        self.began: list[None] = []
        self.events.shutdown_began.append(lambda: self.began.append(None))
        self.shutdown.start()

    def turn(self, _timeout: float) -> None:
        """The horse has died: nothing of its job is there any more."""
        self.slots[0].task = None

    def signal(self, signum: int) -> None:
        """Receive a signal."""
        self.context.loop.signals[signum]()


def test_a_shutdown_begins_once() -> None:
    """Signals and commands that follow the first change nothing; busy workers are noted once, as RQ does."""
    parts = Parts(shutdown_timeout=9.0)
    parts.signal(signal.SIGTERM)
    parts.signal(signal.SIGINT)
    parts.shutdown.on_command()
    assert parts.shutdown.stopping and len(parts.began) == 1 and parts.shutdown.exit_code is None
    assert parts.command.sent == ["HSET"] and parts.command.waiting[0].commands[0][1] == named("rq:worker:w")
    assert [delay for delay, _ in parts.context.loop.later] == [9.0]


def test_a_second_signal_is_one_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two signals at once are the same signal, sent to a group of processes; a later one ends the worker now."""
    clock = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    parts = Parts()
    for after, code in ((0.0, None), (SAME_SIGNAL / 2, None), (SAME_SIGNAL, 0)):
        clock[0] += after
        parts.signal(signal.SIGTERM)
        assert parts.shutdown.exit_code == code
    assert ("close",) in parts.slots.done


def test_a_hard_stop_records_what_ended_and_then_puts_back_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """First the horses are dead, then outcomes are recorded, lost claims found, and interrupted jobs put back."""
    parts = Parts(shutdown_timeout=9.0)
    parts.shutdown.on_command()
    parts.committer.add(outcome_of(claim_of("b", "w-1")))
    order = parts.slots.done

    def execute(commands: list[Any]) -> list[Any]:
        order.extend((name_of(command),) for command in commands)
        return answer(commands)

    answer = parts.command.execute
    monkeypatch.setattr(parts.command, "execute", execute)
    # A server that is there gives what has ended some time to be recorded.
    parts.command.connected = False
    assert parts.context.loop.fire() == 9.0
    assert [name for name, *_ in order] == ["interrupt", "close", "commit", "HGETALL", "push_back"]
    assert parts.shutdown.exit_code == 0 and not parts.committer


def test_a_hard_stop_does_not_wait_for_a_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes that the access control refuses are left after a hard stop's time, and only what ran is put back."""
    clock = itertools.count(100.0, RECORDING_TIME / 4)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    parts = Parts(shutdown_timeout=9.0)
    parts.shutdown.on_command()
    parts.committer.add(outcome_of(claim_of("b", "w-1")))
    words = {"commit": [f"{NOTHING_DONE} to run 'hset'".encode()], "HGETALL": []}
    sent: list[Any] = []

    def execute(commands: list[Any]) -> list[Any]:
        sent.extend(commands)
        assert len(sent) < 20
        return [words.get(name_of(command), 1) for command in commands]

    monkeypatch.setattr(parts.command, "execute", execute)
    parts.context.loop.fire()
    assert [name_of(command) for command in sent[-3:]] == ["commit", "HGETALL", "push_back"]
    assert "a" in sent[-1] and "b" not in sent[-1]
    assert parts.shutdown.exit_code == 0 and [claim.job_id for claim in parts.committer.claims()] == ["b"]


def test_ending_without_the_server_names_the_jobs(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that gives the server up ends with 75, and says which jobs will run again."""
    parts = Parts()
    parts.committer.add(outcome_of(claim_of("b", "w-1")))
    parts.shutdown.end_away(RedisConnectionError("refused"))
    assert parts.shutdown.exit_code == TRY_AGAIN
    assert caplog.messages == ["Worker w: ending while the server is away (refused); jobs that will run again: a, b"]


def test_a_refused_worker_ends_in_order() -> None:
    """A claim that is refused for good begins a warm shutdown, and the first reason's code is the worker's."""
    parts = Parts()
    parts.events.work_refused("no right", USAGE)
    parts.events.work_refused("something else", TRY_AGAIN)
    assert parts.shutdown.stopping and parts.shutdown.exit_code is None and parts.shutdown.code_at_the_end == USAGE


@pytest.mark.parametrize("preload", [(), ("math",)])
def test_a_hangup_takes_up_new_code(preload: tuple[str, ...]) -> None:
    """SIGHUP replaces the horses; where the parent itself holds users' code it ends, to be started anew, unless a
    stop follows.
    """
    parts = Parts(preload=preload)
    parts.signal(signal.SIGHUP)
    assert parts.shutdown.stopping == parts.shutdown.reload == bool(preload)
    assert (("replace",) in parts.slots.done) == (not preload)
    parts.signal(signal.SIGTERM)
    assert parts.shutdown.stopping and not parts.shutdown.reload
