"""Claims and commits on a connection of its own, without a worker around it, and what the server holds."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from keys import named
from redis import Redis

from rq_pooled.config import Settings
from rq_pooled.connection.options import make_connection
from rq_pooled.log_lines import WorkerLog
from rq_pooled.parent.command_connection import CommandConnection
from rq_pooled.parent.committer import Committer
from rq_pooled.parent.events import Events
from rq_pooled.parent.slot import Task
from rq_pooled.store.claim import Claim, Claimed, claim_jobs
from rq_pooled.store.commit import Outcome, commit_outcomes
from rq_pooled.store.counters import Counters
from rq_pooled.store.scripts import load
from rq_pooled.store.workers import register_workers
from rq_pooled.wire import Command, pack, pack_runs


class Engine:
    """Claims and commits as the worker's parent does, one command at a time."""

    def __init__(self, url: str, token: str = "token", **settings: Any) -> None:
        self.settings = Settings(url=url, **settings)
        self.token = token
        self.command = CommandConnection(
            lambda: make_connection(self.settings, "command"), load(), self.settings.socket_timeout
        )

    def run(self, command: Command) -> Any:
        """Return the reply to one command; an error of the server is raised."""
        (reply,) = self.command.execute([command])
        if isinstance(reply, Exception):
            raise reply
        return reply

    def register(self, *names: str, queues: Sequence[str] = ("default",), **options: Any) -> Any:
        """Register workers with the fields that the tests look at."""
        fields = {"birth": "b", "state": "idle", "hostname": "here", "pid": "1", "last_heartbeat": "h"}
        return self.run(
            register_workers(
                options.get("ttl", 480),
                options.get("again", False),
                options.get("dead", ("", 0)),
                queues,
                [(name, fields) for name in names],
            )
        )

    def claim(
        self,
        *names: str,
        queues: Sequence[str] = ("default",),
        strategy: str = "default",
        per_name: int = 1,
        crew: str = "",
    ) -> Claimed:
        """Claim one job for each name, and up to ``per_name`` ahead; wake one of ``crew`` where jobs are left."""
        keys = [named(f"rq:queue:{queue}") for queue in queues]
        command, request = claim_jobs(self.settings, self.token, keys, strategy, names, per_name, crew)
        return request.read(self.run(command))

    def commit(self, *outcomes: Outcome) -> list[str]:
        """Return commit's word for each outcome."""
        return [word.decode() for word in self.run(commit_outcomes(self.token, outcomes))]


def finished(claim: Claim, *more: Sequence[Any], guards: Sequence[Any] = ()) -> Outcome:
    """The outcome of a job that went well: what RQ's handlers write, in short, then the commands ``more``.

    A guard is (digest, words of a read).
    """
    commands = [
        ("HSET", named(f"rq:job:{claim.job_id}"), "status", "finished"),
        ("ZADD", named(f"rq:finished:{claim.queue}"), 1, claim.job_id),
        ("HINCRBY", named(f"rq:worker:{claim.worker_name}"), "successful_job_count", 1),
        ("XADD", named(f"rq:results:{claim.job_id}"), "*", "type", 1),
        *more,
    ]
    reads = pack(word for digest, words in guards for word in (digest, len(words), *words))
    return Outcome(claim, "finished", (len(guards), reads), (len(commands), pack_runs(commands)))


@contextmanager
def engine(url: str, token: str = "token", **settings: Any) -> Iterator[Engine]:
    """A connected engine."""
    one = Engine(url, token, **settings)
    one.command.connect()
    try:
        yield one
    finally:
        one.command.close()


def key_space(client: Redis) -> dict[str, Any]:
    """Everything in the database: key -> (value, whether it expires). What expires meanwhile is not there."""
    read = {
        b"hash": lambda key: client.hgetall(key),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": lambda key: sorted(client.smembers(key)),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"string": lambda key: client.get(key),
        b"stream": lambda key: [fields for _, fields in client.xrange(key)],
    }
    kinds = {key: client.type(key) for key in sorted(client.keys("*"))}
    return {key.decode(): (read[kind](key), client.ttl(key) >= 0) for key, kind in kinds.items() if kind != b"none"}


def residue(client: Redis) -> list[str]:
    """The keys that only running jobs have, and workers that still show one."""
    keys = [key.decode() for key in client.keys("*")]
    left = [key for key in keys if key.startswith((named("rq_pooled:"), named("rq:execution"), named("rq:wip:")))]
    left = [key for key in left if not key.startswith(named("rq_pooled:stats"))]
    return left + [key for key in keys if key.startswith(named("rq:worker:")) and _shows_a_job(client, key)]


def _shows_a_job(client: Redis, key: str) -> bool:
    """Tell whether a key of a worker is, or holds, what it has only while it runs a job."""
    return key.endswith(":executions") or bool(client.hexists(key, "current_job"))


def outcomes_of(ours: Engine, tasks: deque[Task]) -> Committer:
    """The outcomes of a parent without loop and horses."""
    parent: Any = SimpleNamespace(
        token=ours.token,
        command=ours.command,
        settings=ours.settings,
        counters=Counters(),
        log=WorkerLog(logging.getLogger("rq.worker"), "w"),
    )
    return Committer(parent, Events(), tasks=tasks, burst=False)
