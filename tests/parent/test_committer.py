"""The committer alone: what becomes of outcomes that the server's access control refuses, and when it is sent again."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from parts import claim_of, context_of, outcome_of
from redis.exceptions import NoPermissionError

from rq_pooled.errors import USAGE
from rq_pooled.parent import complaint
from rq_pooled.parent import forbidden as module
from rq_pooled.parent.committer import NOTHING_DONE, Committer
from rq_pooled.parent.events import Events
from rq_pooled.parent.forbidden import FORBIDDEN_FIRST, FORBIDDEN_RETRY

WORD = f"{NOTHING_DONE} to run the 'hset' command".encode()


class Parts:
    """A committer with the outcomes of the jobs ``a`` and ``b``, and a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, burst: bool = False) -> None:
        self.clock = 100.0
        for one in (module, complaint):
            monkeypatch.setattr(one, "time", SimpleNamespace(monotonic=lambda: self.clock))
        self.context, self.events = context_of(guard_wait=30.0), Events()
        self.committer = Committer(self.context, self.events, tasks=deque(), burst=burst)
        self.ends: list[int] = []
        self.done: list[None] = []
        self.events.work_refused.append(lambda _reason, code: self.ends.append(code))
        self.events.job_done.append(lambda: self.done.append(None))
        for job_id in "ab":
            self.committer.add(outcome_of(claim_of(job_id)))

    def commit(self, reply: Any) -> None:
        """Send what waits, and answer it."""
        self.committer.commit().on_replies([reply])


def test_what_is_forbidden_is_kept_and_sent_later_and_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused outcomes wait in their order, said once, until the user may record them; then nothing waits longer."""
    caplog.set_level("INFO")
    parts = Parts(monkeypatch)
    committer = parts.committer
    for pause in (FORBIDDEN_FIRST, 2 * FORBIDDEN_FIRST):
        assert committer.due
        parts.commit(NoPermissionError("NOPERM no"))
        assert not committer.due and committer.forbidden
        assert [claim.job_id for claim in committer.claims()] == ["a", "b"]
        assert parts.context.loop.fire() == pause
        parts.clock += pause
    for _ in range(9):
        parts.commit([WORD, WORD])
    assert parts.context.loop.fire() == FORBIDDEN_RETRY and not parts.ends and not parts.done
    assert len(caplog.messages) == 1 and "cannot record outcomes of 2 jobs" in caplog.messages[0]
    parts.commit([b"ok", WORD])
    assert [claim.job_id for claim in committer.claims()] == ["b"] and len(parts.done) == 1 and committer.forbidden
    parts.commit([b"ok"])
    assert not committer and not committer.forbidden and caplog.messages[-1] == "Worker w: recording outcomes again"


@pytest.mark.parametrize("burst", [False, True])
def test_a_worker_that_ends_gives_up_what_is_forbidden(monkeypatch: pytest.MonkeyPatch, burst: bool) -> None:
    """In burst mode, or once a shutdown has begun, refused outcomes are given up after GUARD_WAIT, with exit code 2."""
    parts = Parts(monkeypatch, burst)
    parts.commit([WORD, WORD])
    parts.clock += 31
    if not burst:
        parts.commit([WORD, WORD])
        assert parts.committer and not parts.ends
        parts.events.shutdown_began()
    parts.commit([WORD, WORD])
    assert not parts.committer and parts.ends == [USAGE] and len(parts.done) == 2
    assert parts.context.command.sent == ["HDEL", "HDEL"], "its claims are not put back at once"


def test_a_pause_holds_back_what_may_cost_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be sent alone waits like the rest for the end of the pause, and a hard stop sends it all the same."""
    parts = Parts(monkeypatch)
    parts.commit([WORD, b"ok"])
    parts.committer._suspects.append(parts.committer._waiting.popleft())
    assert not parts.committer.due and not parts.committer.singled_out
    parts.commit([b"ok"])
    assert not parts.committer
