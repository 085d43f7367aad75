"""What parts of the parent are tried on: a connection and a loop that only record, and slots without horses."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

from keys import named
from redis import Redis
from rq.scheduler import RQScheduler
from rq.utils import now

from rq_pooled import Worker
from rq_pooled.config import Settings
from rq_pooled.log_lines import WorkerLog
from rq_pooled.parent.context import Context
from rq_pooled.parent.exchange import Exchange
from rq_pooled.parent.identity import Identity
from rq_pooled.parent.slot import Slot, Task
from rq_pooled.process.event_loop import Timer
from rq_pooled.store.claim import Claim
from rq_pooled.store.commit import NOTHING, Outcome
from rq_pooled.store.scripts import scripts

_NAMES = {
    scripts()[name].sha1: name
    for name in (
        *("claim", "commit", "heartbeat", "intermediate", "promote", "publish", "push_back", "reads", "register"),
        *("scheduler_due", "stalled", "doze"),
    )
}


class Connection:
    """A command connection that keeps what it is given; the test says what comes of it."""

    def __init__(self) -> None:
        self.connected = True
        self.answered = True
        self.in_cluster = False
        self.waiting: list[Exchange] = []
        #: Every command that was sent, by the name of its script, else by its first word.
        self.sent: list[str] = []
        #: The error of each attempt to connect, the next one first; where there is none left it succeeds.
        self.errors: list[Exception] = []
        self.patience: list[float | None] = []

    @property
    def in_flight(self) -> int:
        return len(self.waiting)

    def submit(self, *exchanges: Exchange) -> None:
        self.waiting += exchanges
        self.sent += [name_of(command) for exchange in exchanges for command in exchange.commands]

    def execute(self, commands: Any) -> list[Any]:
        self.sent += [name_of(command) for command in commands]
        return [{"commit": [b"ok"], "HGETALL": []}.get(name_of(command), 1) for command in commands]

    def answer(self, *replies: Any) -> None:
        """Answer the oldest exchange."""
        self.waiting.pop(0).on_replies(list(replies))

    def lose(self, error: Exception) -> None:
        self.connected = False
        waiting, self.waiting = self.waiting, []
        for exchange in reversed(waiting):
            exchange.on_lost(error)

    def connect(self, patience: float | None = None) -> None:
        self.patience.append(patience)
        if self.errors:
            raise self.errors.pop(0)
        self.connected = True

    def close(self) -> None:
        self.connected = False

    def check_deadline(self) -> Exception | None:
        return None


class Timers:
    """A loop that only notes what is to be called."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Timer]] = []
        self.signals: dict[int, Callable[[], None]] = {}

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(0.0, callback)
        self.later.append((delay, timer))
        return timer

    def call_every(self, interval: float, callback: Callable[[], None]) -> None:
        """Call nothing."""

    def on_signal(self, signum: int, callback: Callable[[], None]) -> None:
        self.signals[signum] = callback

    def watch(self, *_: Any) -> None:
        """Watch nothing."""

    unwatch = watch

    def fire(self) -> float:
        """Call what was noted last, and return the delay that it had."""
        delay, timer = self.later.pop()
        if timer.callback is not None:
            timer.callback()
        return delay


class Stable(list[Slot]):
    """The slots of a worker without horses."""

    def __init__(self, *names: str) -> None:
        super().__init__(Slot(name, lambda *_: None, ready=True) for name in names)
        self.tasks: deque[Task] = deque()
        self.starting = False
        self.done: list[Any] = []

    def regular(self) -> list[Slot]:
        return list(self)

    def claims(self) -> list[Claim]:
        return [slot.claim for slot in self if slot.claim is not None]

    def pids(self) -> list[int]:
        return []

    def busy(self) -> bool:
        return bool(self.claims())

    def give(self, slot: Slot, task: Task, behind: Sequence[Claim] = ()) -> None:
        slot.task, slot.ready = task, False
        slot.waiting.extend(behind)

    def __getattr__(self, name: str) -> Callable[..., list[Claim]]:
        """Note everything else that is done to them."""
        if name.startswith("_"):
            raise AttributeError(name)

        def note(*words: Any) -> list[Claim]:
            self.done.append((name, *words))
            return self.claims() if name == "interrupt" else []

        return note


def context_of(*, burst: bool = False, **settings: Any) -> Any:
    """The context of a worker ``w`` on the queue ``default``, whose server is a record."""
    ours = Settings(**settings)
    worker = Worker(["default"], name="w", connection=Redis())
    worker.birth_date = now()
    worker.scheduler = RQScheduler(["default"], connection=Redis(), name="w")
    log = WorkerLog(logging.getLogger("rq.worker"), "w")
    listen = SimpleNamespace(connected=True, client_id=7, connect=lambda _patience: None, close=lambda: None)
    parts: Any = (Identity(worker, ours), ours, "token", Connection(), listen)
    return Context(*parts, Timers(), log)  # type: ignore[arg-type]


def claim_of(job_id: str, name: str = "w", execution: str = "e") -> Claim:
    """A claim of a job of the queue ``default``."""
    return Claim(job_id, execution, "default", named("rq:queue:default"), name, 1.0, {})


def outcome_of(claim: Claim) -> Outcome:
    """An outcome that says little."""
    return Outcome(claim, "finished", NOTHING, NOTHING)


def claimed(*job_ids: str, suspended: bool = False, hashes: Sequence[Sequence[bytes]] = ()) -> list[Any]:
    """The reply to a claim that took these jobs, of which these are the hashes."""
    return [
        suspended,
        0,
        [],
        [
            b"|".join([named(b"rq:queue:default"), job_id.encode(), b"default", b"0", *raw])
            for job_id, raw in zip_longest(job_ids, hashes, fillvalue=())
        ],
        [],
        bool(job_ids),
        0,
        b"|",
    ]


def name_of(command: Any) -> str:
    """The name of a command's script, else its first word."""
    return _NAMES.get(str(command[1]), "EVALSHA") if command[0] == "EVALSHA" else str(command[0])
