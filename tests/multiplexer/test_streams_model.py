"""Random programs of ten horses at once, against a model: each reply is the right one, whoever dies meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import model_jobs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from rq import Queue
from sampling import by_role, of_worker
from support import running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer

pytestmark = pytest.mark.timeout(300)
HORSES = 10
#: What one horse may hold at most: programs hold two or three at once, in threads and children too.
MOST = 60
KINDS = ["set", "get", "mget", "incr", "push", "range", "blpop", "xread", "echo", "eval", "wrong", "unknown", "name"]
ACTS = ["each", "pipe", "multi", "steps", "watch", "held", "leave", "torn", "select", "listen"]

commands = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 15)), max_size=8)
pieces = st.lists(st.integers(0, 60), max_size=4)


def acts(inner: st.SearchStrategy[Any], kinds: list[str] = ACTS) -> st.SearchStrategy[Any]:
    """Return a strategy of acts."""
    return st.tuples(st.sampled_from(kinds), commands, pieces, inner)


branches = st.just(()) | st.lists(acts(st.just(())), max_size=3)
programs = st.tuples(
    st.lists(acts(branches), min_size=1, max_size=6),
    st.just([]) | st.just([]) | st.lists(acts(st.just(()), ["die"]), max_size=1),
).map(lambda pair: pair[0] + pair[1])


class Stage:
    """A worker of ten, and what must not change while it works."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.queue = Queue("a", connection=redis)
        self.compared = self.killed = 0
        self.run([[("each", [("set", 1)], [], ())]])
        self.shared = by_role(redis, "jobs")

    def run(self, many: list[Any]) -> None:
        """Run programs at once, and check what came of them."""
        jobs = [self.queue.enqueue(model_jobs.run, program, job_timeout=30) for program in many]

        def ended() -> bool:
            with self.redis.pipeline(transaction=False) as pipeline:
                for job in jobs:
                    pipeline.hget(job.key, "status")
                return all(status in (b"finished", b"failed") for status in pipeline.execute())

        wait_until(ended, 45, "the programs to end")
        for job, program in zip(jobs, many):
            result = job.latest_result()
            assert result is not None
            if result.exc_string is not None:
                assert program[-1][0] == "die" and "Work-horse terminated" in result.exc_string, result.exc_string
                self.killed += 1
                continue
            wrong, count = result.return_value
            assert not wrong, (program, wrong)
            self.compared += count


@pytest.fixture(scope="module")
def stage(_server_available: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A worker on a server of its own."""
    folder = tmp_path_factory.mktemp("model")
    environment = {"RQ_POOLED_MAX_CONNECTIONS": str(MOST), "RQ_POOLED_MAX_IDLE": "600"}
    with (
        EmbeddedServer(kind=os.environ.get("RQ_POOLED_TEST_SERVER")) as server,
        running_worker(server.url, "a", log=folder / "log", concurrency=HORSES, **environment) as worker,
    ):
        redis = server.client()
        yield Stage(redis)
        redis.close()
        assert "Traceback" not in worker.output(), worker.output()


@given(st.lists(programs, min_size=HORSES, max_size=HORSES))
@settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
def test_each_reply_is_the_right_one(stage: Stage, many: list[Any]) -> None:
    """Commands, pipelines, transactions, WATCH, waits, closes and deaths of ten horses: each gets what its model says.

    Nothing that was cut off reaches the server, the shared connection lives on, and the bound holds.
    """
    stage.run(many)
    redis = stage.redis
    assert not redis.exists("model:torn")
    assert by_role(redis, "jobs") == stage.shared
    assert len(of_worker(redis)) <= MOST
    for key in redis.scan_iter("model:*", count=1000):
        redis.unlink(key)


def test_the_programs_were_worth_running(stage: Stage) -> None:
    """Many replies were compared, and horses were killed."""
    assert stage.compared > 2000 and stage.killed > 20
