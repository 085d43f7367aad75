"""Processes on RQ 2 and on RQ 3 share one server: web processes and workers, RQ's own and ours, and deploys between the
two.

The suite runs on one RQ. The other major comes from the package index into a folder, at the first test that needs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rq
from keys import PREFIX, named
from redis import Redis
from rq.job import JobStatus
from rq.results import Result
from support import JOBS, PYTHONPATH, WorkerProcess, running_worker, wait_until

from rq_pooled.rq_api import RQ3

#: The majors that the suite's own RQ is tried with.
OTHERS = ("2.12.*",) if RQ3 else ("3.*",)
#: Leases end soon, so that the jobs of a killed worker do not take a minute.
QUICK = {
    "RQ_POOLED_HEARTBEAT_INTERVAL": "0.5",
    "RQ_POOLED_HEARTBEAT_TTL": "3",
    "RQ_POOLED_STALLED_INTERVAL": "1",
    "RQ_POOLED_RECONNECT_CAP": "0.5",
    "RQ_POOLED_SHUTDOWN_TIMEOUT": "1",
}
CLASSES = {"ours": "rq_pooled.Worker", "stock": "rq.Worker"}


pytestmark = pytest.mark.skipif(PREFIX != "rq", reason="RQ 2 knows no other prefix")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a folder with this version of RQ in it; without an index the test is skipped."""
    made: dict[str, Path] = {}

    def folder(version: str) -> Path:
        if version not in made:
            target = tmp_path_factory.mktemp("rq")
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(target),
                f"rq=={version}",
            ]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=50)
            except (subprocess.SubprocessError, OSError) as error:
                pytest.skip(f"pip brought no rq {version}: {getattr(error, 'stderr', None) or error}"[:300])
            made[version] = target
        return made[version]

    return folder


class Fleet:
    """Starts processes of both majors on one server."""

    def __init__(self, url: str, other: Path, logs: Path) -> None:
        self.url = url
        self._paths = {2: None if not RQ3 else other, 3: other if not RQ3 else None}
        self._logs = logs
        self._count = 0

    def worker(self, kind: str, major: int, **settings: str) -> contextlib.AbstractContextManager[WorkerProcess]:
        """Run a worker for the length of a block."""
        self._count += 1
        ready = "connections: command" if kind == "ours" else "Listening on default"
        environment = {**QUICK, **settings, **({"PYTHONPATH": str(self._paths[major])} if self._paths[major] else {})}
        return running_worker(
            self.url,
            "--name",
            f"{kind}-{major}-{self._count}",
            log=self._logs / f"{kind}-{major}-{self._count}",
            worker_class=CLASSES[kind],
            ready=ready,
            concurrency=2,
            **environment,
        )

    def web(self, kind: str, major: int, *what: str) -> Any:
        """Have a web process do something, see fleet_web.py, and return what it answers."""
        paths = [str(path) for path in (self._paths[major], PYTHONPATH) if path]
        done = subprocess.run(
            [sys.executable, str(JOBS / "fleet_web.py"), self.url, kind, *what],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert done.returncode == 0, done.stderr
        version, answer = json.loads(done.stdout)
        assert version.startswith(f"{major}.")
        return answer


@pytest.fixture(params=OTHERS)
def fleet(request: pytest.FixtureRequest, server: Any, redis: Redis, folder_of: Any, tmp_path: Path) -> Fleet:
    """A fleet with each other major, on an empty database."""
    return Fleet(server.url, folder_of(request.param), tmp_path)


def status(redis: Redis, job_id: str) -> str | None:
    """Return the status that the hash of a job says."""
    found: Any = redis.hget(named(f"rq:job:{job_id}"), "status")
    return None if found is None else found.decode()


def left(redis: Redis) -> list[str]:
    """Return what only waiting and running jobs have; a note of RQ's that it has seen an id expires by itself."""
    names = (
        named("rq:queue:*"),
        named("rq:wip:*"),
        named("rq:execution*"),
        named("rq:ready:*"),
        named("rq:scheduled:*"),
        named("rq_pooled:leases:*"),
    )
    return sorted(key.decode() for name in names for key in redis.keys(name) if b":first_seen:" not in key)


def nothing_is_left(redis: Redis) -> None:
    """Wait until nothing is."""
    try:
        wait_until(lambda: not left(redis))
    except AssertionError:
        assert left(redis) == []


def check_ends(redis: Redis, ends: dict[str, list[Any]]) -> None:
    """Wait until each job has ended as it is to end; then compare runs and results, and what is left."""
    for job_id, (end, *_) in ends.items():
        wait_until(lambda job_id=job_id, end=end: status(redis, job_id) == end, 30, f"{job_id} to be {end}")
    nothing_is_left(redis)
    found = {
        job_id: [
            status(redis, job_id),
            redis.llen(f"runs:{job_id}"),
            sum(
                int(fields[b"type"]) != Result.Type.RETRIED.value
                for _, fields in redis.xrange(named(f"rq:results:{job_id}"))
            ),
        ]
        for job_id in ends
    }
    assert found == ends
    assert redis.llen("called:called") == 1


#: web process, workers.
FLEETS: list[tuple[tuple[str, int], list[tuple[str, int]]]] = [
    (("stock", 3), [("ours", 2)]),
    (("ours", 3), [("ours", 2)]),
    (("stock", 2), [("ours", 3)]),
    (("ours", 2), [("ours", 3)]),
    (("stock", 3), [("stock", 3), ("ours", 2)]),
    (("ours", 2), [("stock", 2), ("ours", 3)]),
    (("ours", 3), [("ours", 2), ("ours", 3), ("stock", 2), ("stock", 3)]),
    (("ours", 2), [("ours", 2), ("ours", 3), ("stock", 2), ("stock", 3)]),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("web", "workers"), FLEETS, ids=lambda side: str(side).translate({ord(c): None for c in "[]()' ,"})
)
def test_every_kind_of_job_ends_as_it_should(
    fleet: Fleet, redis: Redis, web: tuple[str, int], workers: list[tuple[str, int]]
) -> None:
    """Whatever majors the web process and the workers are on, each job runs as often as it should and its end counts
    once.
    """
    ends = fleet.web(*web, "all")
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.enter_context(fleet.worker(*worker))
        check_ends(redis, ends)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
def test_a_deploy_between_majors_loses_nothing(fleet: Fleet, redis: Redis, kind: str, before: int, after: int) -> None:
    """While web processes of both majors enqueue, workers of one are stopped, one is killed, and the other's take
    over.
    """
    ids: list[str] = []
    web = threading.Thread(target=lambda: ids.extend(fleet.web("stock", before, "for", "6")))
    with contextlib.ExitStack() as stack:
        stopped, killed = (stack.enter_context(fleet.worker("ours", before)) for _ in range(2))
        if kind == "stock":
            stack.enter_context(fleet.worker("stock", before))
        web.start()
        wait_until(lambda: redis.zcard(named("rq:finished:default")) > 15)
        if kind == "stock":
            stack.enter_context(fleet.worker("stock", after))
        stack.enter_context(fleet.worker("ours", after))
        killed.kill()
        assert stopped.stop() == 0
        web.join()
        for job_id in ids:
            wait_until(lambda job_id=job_id: status(redis, job_id) == "finished", 30, job_id)
        nothing_is_left(redis)
    assert len(ids) > 50
    assert all(redis.xlen(named(f"rq:results:{job_id}")) == 1 for job_id in ids)
    twice = [job_id for job_id in ids if redis.llen(f"runs:{job_id}") > 1]
    # Two slots of the killed worker, and two of the stopped one, which had a second to end.
    assert len(twice) <= 4


@pytest.mark.parametrize(("web", "worker"), [(2, 3), (3, 2)])
def test_the_other_major_sees_stops_and_requeues(fleet: Fleet, redis: Redis, web: int, worker: int) -> None:
    """A process on one major stops and requeues jobs of our worker on the other, and lists its slots."""
    with fleet.worker("ours", worker):
        rq.Queue(connection=redis).enqueue("fleet_jobs.wait_for", "go", job_id="one")
        wait_until(lambda: redis.llen("runs:one") == 1)
        seen = fleet.web("stock", web, "look")
        assert len(seen) == 2 and sorted(state for state, _ in seen.values()) == ["busy", "idle"]
        # RQ 2 looks for a field that workers on RQ 3 do not write.
        assert [job_id for _, job_id in seen.values() if job_id] == (["one"] if web == 3 else [])
        fleet.web("stock", web, "stop", "one")
        wait_until(lambda: status(redis, "one") == JobStatus.STOPPED.value, what="the stop")
        fleet.web("stock", web, "requeue", "one")
        wait_until(lambda: redis.llen("runs:one") == 2)
        redis.rpush("go", 1)
        wait_until(lambda: status(redis, "one") == "finished")


def test_limited_jobs_wait_for_a_worker_on_rq_3(fleet: Fleet, redis: Redis) -> None:
    """Our worker on RQ 2 runs an admitted job, frees its slot and leaves the others; one on RQ 3 runs them."""
    assert fleet.web("stock", 3, "limited") == ["queued", "rate_limited", "rate_limited"]
    assert fleet.web("stock", 2, "fetch", "l-1") == "ValueError: 'rate_limited' is not a valid JobStatus"
    with fleet.worker("ours", 2):
        wait_until(lambda: status(redis, "l-0") == "finished" and not redis.exists(named("rq:wip:default")))
        assert not redis.exists(named("rq:rl:k:allowed")) and redis.zcard(named("rq:rl:k:rate_limited")) == 2
    with fleet.worker("ours", 3):
        wait_until(lambda: status(redis, "l-1") == status(redis, "l-2") == "finished", 30, "the others")
    assert [redis.llen(f"runs:l-{i}") for i in range(3)] == [1, 1, 1]
