"""Two threads beside the faults: one enqueues jobs and notes which the server has acknowledged, one watches leases."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from random import Random

import rq
from keys import named
from redis.exceptions import RedisError
from rq import Queue, Retry

from rq_pooled.rq_api import RQ3

from .jobs import QUEUE
from .stage import client

#: kind -> weight.
KINDS = {
    "ok": 6,
    "sleep": 6,
    "slow": 2,
    "fail": 2,
    "retry": 3,
    "again": 2,
    "use_redis": 3,
    "share": 4,
    "spawn": 2,
    "chain": 3,
    "flood": 2,
}
#: Jobs of a flood: enough to be claimed ahead.
FLOOD = 300
#: Children of a job that enqueues, by its kind; retries of one that fails at first.
CHILDREN = {"spawn": 2, "share": 1}
#: Jobs of RQ 3's limit ``chaos`` that may be admitted at once.
LIMIT = 2
if RQ3:
    KINDS["limited"] = 4
RETRIES = 2
#: Jobs that may wait in the queue before the enqueuer pauses: what is to be seen is faults, not a long queue.
BACKLOG = 60
#: How rq_pooled names its connections: the process id, and the role.
NAME = re.compile(named(r"rq_pooled:[^:]+:[^:]+:(\d+):([a-z]+)"))
FOREVER = {"result_ttl": 86400, "failure_ttl": 86400}


@dataclass
class Order:
    """A job that was enqueued, or perhaps was."""

    job_id: str
    kind: str
    at: float
    #: The server said so.
    acknowledged: bool
    #: The job that it waits for.
    depends_on: str = ""


class _Worker(threading.Thread):
    """A thread that repeats a step until it is stopped, and keeps the error that ended it."""

    pause = 0.1

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._stop_event = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Work until stopped."""
        try:
            while not self._stop_event.wait(self.pause):
                self.step()
        except BaseException as error:  # noqa: BLE001 - shown by stop()
            self.error = error

    def step(self) -> None:
        """Do it once."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the thread; raise what ended it before, if anything did."""
        self._stop_event.set()
        self.join()
        if self.error is not None:
            raise self.error


class Enqueuer(_Worker):
    """Enqueues jobs of all kinds at about ``rate`` per second, in an order that the seed decides."""

    def __init__(self, url: str, seed: int, rate: float) -> None:
        super().__init__("enqueuer")
        self.orders: dict[str, Order] = {}
        self._random = Random(f"load {seed}")
        self._queue = Queue(QUEUE, connection=client(url, 0.5))
        self._count = 0
        #: The server answered last time.
        self._answered = True
        self.pause = 1 / rate

    def step(self) -> None:
        """Enqueue a job, or a chain of three that wait for each other."""
        kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
        seconds = self._random.uniform(0.05, 1.0) if kind == "sleep" else self._random.uniform(2.0, 5.0)
        self._count += 1
        job_id = f"{kind}-{self._count}"
        if self._answered:  # else it enqueues without looking: that is how orders become unconfirmed
            try:
                if self._queue.count > BACKLOG:
                    return
            except (RedisError, OSError):
                self._answered = False
        if kind == "chain":
            before = ""
            for i in range(3):
                self._enqueue(f"{job_id}_{i}", kind, "ok", depends_on=before)
                before = f"{job_id}_{i}"
        elif kind == "limited":
            self._enqueue(job_id, kind, "sleep", round(seconds / 10, 2))
        elif kind in ("sleep", "slow"):
            self._enqueue(job_id, kind, "sleep", round(seconds, 2))
        elif kind == "spawn":
            self._enqueue(job_id, kind, "spawn", CHILDREN[kind])
        elif kind == "flood":
            self._flood(job_id)
        else:
            self._enqueue(job_id, kind, kind)

    def _flood(self, name: str) -> None:
        """Enqueue many short jobs at once."""
        ids, at = [f"{name}_{i}" for i in range(FLOOD)], time.time()
        data = [Queue.prepare_data("chaos.jobs.ok", job_id=job_id, description=job_id, **FOREVER) for job_id in ids]
        try:
            self._queue.enqueue_many(data)
            self._answered = True
        except (RedisError, OSError):
            self._answered = False
        self.orders |= {job_id: Order(job_id, "flood", at, self._answered) for job_id in ids}

    def _enqueue(self, job_id: str, kind: str, function: str, *args: object, depends_on: str = "") -> None:
        if depends_on and (depends_on not in self.orders or not self.orders[depends_on].acknowledged):
            return
        retry = Retry(max=RETRIES, interval=[0, 1]) if kind == "retry" else None
        at = time.time()
        limit = {"rate_limit": rq.RateLimit("chaos", LIMIT)} if kind == "limited" else {}
        try:
            self._queue.enqueue(
                f"chaos.jobs.{function}",
                *args,
                **limit,
                job_id=job_id,
                retry=retry,
                depends_on=depends_on or None,
                description=job_id,
                **FOREVER,
            )
            self._answered = True
        except (RedisError, OSError):
            self._answered = False
        self.orders[job_id] = Order(job_id, kind, at, self._answered, depends_on)


@dataclass(frozen=True)
class Crowd:
    """The connections of one process, as CLIENT LIST showed them at a time."""

    at: float
    pid: int
    roles: tuple[str, ...]


class Watch(_Worker):
    """Notes until when each lease was seen to last, who held which connections, and when this machine kept no time."""

    #: Longer than this without a step is a machine that starves its processes.
    STARVED = 0.7

    def __init__(self, url: str) -> None:
        super().__init__("watch")
        self._redis = client(url, 0.3)
        #: Claim -> the end of its lease, as last seen.
        self.leases: dict[str, float] = {}
        #: From, to.
        self.gaps: list[tuple[float, float]] = []
        #: Each combination of a process and its roles, as often as it was seen after another one.
        self.crowds: list[Crowd] = []
        self.looks = 0
        #: Most jobs of the limit that were admitted at once.
        self.admitted = 0
        self._roles: dict[int, tuple[str, ...]] = {}
        self._last = time.time()

    def step(self) -> None:
        """Look once."""
        now = time.time()
        if now - self._last > self.STARVED:
            self.gaps.append((self._last, now))
        try:
            for member, score in self._redis.zrange(named(f"rq_pooled:leases:{QUEUE}"), 0, -1, withscores=True):
                self.leases[member.decode()] = score
            self.admitted = max(self.admitted, self._redis.zcard(named("rq:rl:chaos:allowed")))
            self._count(self._redis.client_list())
        except (RedisError, OSError):
            pass
        # Waiting for a server that is away says nothing about the machine.
        self._last = time.time()

    def _count(self, entries: list[dict[str, str]]) -> None:
        """Note who has which connections, where that has changed."""
        now, roles = time.time(), defaultdict(list)
        for entry in entries:
            match = NAME.fullmatch(entry["name"])
            # On a cluster its own stand beside those of workers, and those that ask for the owner are left at once.
            if match and match[2] not in ("harness", "cluster"):
                roles[int(match[1])].append(match[2])
        found = {pid: tuple(sorted(some)) for pid, some in roles.items()}
        self.crowds += [Crowd(now, pid, some) for pid, some in found.items() if self._roles.get(pid) != some]
        self._roles = found
        self.looks += 1
