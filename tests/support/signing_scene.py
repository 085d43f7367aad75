"""What tests about signatures share: keys for this process and its workers, and what ran."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keys import named
from redis import Redis
from rq.job import Job
from signed_jobs import RAN
from support import running_worker

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.signing import policy

K1, K2 = "k1:the-first-secret-of-all", "k2:the-second-secret-of-all"
LEFT_OUT = tuple(f"RQ_POOLED_{name.upper()}" for name in policy.NAMES)


class Signing:
    """One test's server, with this process's settings; workers are started with the same, or with others."""

    def __init__(self, redis: Redis, server: EmbeddedServer, directory: Path, monkeypatch: Any) -> None:
        self.redis, self.server, self._directory, self._monkeypatch = redis, server, directory, monkeypatch
        self._count = 0

    def use(self, keys: str | None = K1, **settings: str) -> None:
        """Have this process, and workers that are started after this, have these settings."""
        for name in LEFT_OUT:
            self._monkeypatch.delenv(name, raising=False)
        if keys is not None:
            self._monkeypatch.setenv("RQ_POOLED_SIGNING_KEYS", keys)
        for name, value in settings.items():
            self._monkeypatch.setenv(f"RQ_POOLED_{name.upper()}", value)
        policy.use(None)

    def work(self, *arguments: str, worker_class: str = "rq_pooled.Worker", **environment: str) -> str:
        """Run a worker until the queues are empty; return what it printed."""
        self._count += 1
        names = ("default", "other") if not any(word in ("default", "other") for word in arguments) else ()
        environment = {"EVIL_URL": self.server.url, **environment}
        with running_worker(
            self.server.url,
            *names,
            "--burst",
            *arguments,
            log=self._directory / f"worker{self._count}",
            ready=None,
            worker_class=worker_class,
            **environment,
        ) as worker:
            assert worker.wait() == 0, worker.output()
            return worker.output()

    @property
    def ran(self) -> list[str]:
        """What ran, in order."""
        return [word.decode() for word in self.redis.lrange(RAN, 0, -1)]

    def status(self, job_id: str) -> str:
        """Return a job's status."""
        return (self.redis.hget(named(f"rq:job:{job_id}"), "status") or b"gone").decode()

    def reason(self, job_id: str) -> str:
        """Return the last line of why a job failed."""
        job = Job(job_id, connection=self.redis)
        result = job.latest_result()
        assert result is not None, f"{job_id} has no result: {self.redis.hgetall(job.key)}"
        return (result.exc_string or "").strip().splitlines()[-1]

    def refused(self, job_id: str) -> str:
        """Return why a job was refused; it failed, stands in the registry, and nothing of it ran."""
        assert self.status(job_id) == "failed"
        assert self.redis.zscore(named("rq:failed:default"), job_id) or self.redis.zscore(
            named("rq:failed:other"), job_id
        )
        reason = self.reason(job_id)
        assert reason.startswith("rq_pooled.errors.NotVerified: "), reason
        return reason.partition(": ")[2]


@pytest.fixture
def signing(redis: Redis, server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Signing]:
    """A server whose jobs are signed with one key."""
    scene = Signing(redis, server, tmp_path, monkeypatch)
    scene.use()
    yield scene
    policy.use(None)
