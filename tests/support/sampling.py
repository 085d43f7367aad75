"""What a server sees of workers and their jobs, while they run and at the end."""

from __future__ import annotations

import threading
from typing import Any

from keys import named
from redis import Redis
from rq.job import Job
from support import wait_until


def of_worker(redis: Redis) -> dict[str, str]:
    """Return the server's connections that are ours: id to name."""
    return {
        entry["id"]: entry["name"] for entry in redis.client_list() if entry["name"].startswith(named("rq_pooled:"))
    }


def by_role(redis: Redis, role: str) -> list[str]:
    """Return the ids of our connections that have this role."""
    return [number for number, name in of_worker(redis).items() if name.endswith(":" + role)]


def received(redis: Redis) -> int:
    """Return how many connections the server has accepted since it started, less those of ``redis`` itself."""
    return int(redis.info("stats")["total_connections_received"]) - redis.connection_pool._created_connections


class Sampler:
    """Looks at CLIENT LIST all the time, over one connection; ``but`` is a role that does not count."""

    def __init__(self, url: str, but: str | None = None) -> None:
        self.most, self.samples, self.names = 0, 0, set[str]()
        self.strangers: set[str] = set()
        self._over = threading.Event()
        self._url, self._but = url, f":{but}"
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sampler:  # noqa: PYI034 - typing.Self needs Python 3.11
        self._thread.start()
        wait_until(lambda: self.samples, what="a first look")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with Redis.from_url(self._url, client_name="sampler") as client:
            while not self._over.wait(0.002):
                names = [entry["name"] for entry in client.client_list()]
                ours = [name for name in names if name.startswith(named("rq_pooled:"))]
                self.strangers |= set(names) - set(ours)
                self.most = max(self.most, sum(not name.endswith(self._but) for name in ours))
                self.names |= set(ours)
                self.samples += 1


def finished(jobs: list[Job], redis: Redis, timeout: float = 40) -> None:
    """Wait until all jobs have finished, asking in one round trip."""

    def all_finished() -> bool:
        pipeline = redis.pipeline(transaction=False)
        for job in jobs:
            pipeline.hget(job.key, "status")
        return all(status == b"finished" for status in pipeline.execute())

    wait_until(all_finished, timeout, f"{len(jobs)} jobs to finish")


ENDS = (b"finished", b"failed")


def ended(jobs: list[Job], redis: Redis, timeout: float = 60) -> None:
    """Wait until all jobs have ended, one way or the other."""
    wait_until(
        lambda: all(redis.hget(job.key, "status") in ENDS for job in jobs), timeout, f"the end of {len(jobs)} jobs"
    )


def roles(redis: Redis) -> list[str]:
    """Return the roles of our connections, sorted."""
    return sorted(name.rpartition(":")[2] for name in of_worker(redis).values())


def outcome(job: Job) -> Any:
    """Return the result of a job that has finished; what went wrong otherwise."""
    result = job.latest_result()
    assert result is not None and result.exc_string is None, result.exc_string if result else "no result"
    return result.return_value
