"""enqueue_many: what RQ leaves, in few steps, from a list or a generator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import rq
from keys import named
from keyspace import dump
from redis import Redis
from redis.exceptions import ResponseError
from rq.queue import EnqueueData

from rq_pooled import Queue
from rq_pooled.config.settings import Settings
from rq_pooled.pool import Pool
from rq_pooled.store.enqueue import MANY

JOB = "math.factorial"


_pools: list[Pool] = []


@pytest.fixture(autouse=True)
def no_connection_stays() -> Iterator[None]:
    """Close what a test has opened, since others count connections."""
    yield
    while _pools:
        _pools.pop().disconnect()


def pooled(url: str) -> Redis:
    """A client on a pool of ours."""
    _pools.append(Pool(Settings(url=url)))
    return Redis(connection_pool=_pools[-1])


def wanted() -> list[EnqueueData]:
    """Jobs of several kinds, more than one step takes, with one id that is there already."""
    kinds: list[dict[str, Any]] = [
        {},
        {"at_front": True},
        {"ttl": 500, "result_ttl": 9},
        {"meta": {"ä": 1}, "description": "für alle"},
        {"retry": rq.Retry(2, [1, 2])},
    ]
    datas = [
        rq.Queue.prepare_data(JOB, (number,), job_id=f"j{number}", **kinds[number % len(kinds)])
        for number in range(MANY + 20)
    ]
    return [
        *datas,
        rq.Queue.prepare_data(JOB, (9,), job_id="there"),
        rq.Queue.prepare_data(JOB, (b"x" * 20_000,), job_id="l"),
    ]


def left_by(redis: Redis, queue: rq.Queue, datas: Any) -> Any:
    """What enqueueing leaves: keys, order of the queue, and the jobs that the call returns."""
    redis.flushall()
    rq.Queue("default", connection=redis).enqueue(JOB, 1, job_id="there", meta={"old": 1})
    jobs = queue.enqueue_many(datas)
    space = dump(redis, 0)
    return space, redis.lrange(queue.key, 0, -1), [(job.id, job.get_status(refresh=False)) for job in jobs]


@pytest.mark.parametrize("way", ["pool", "client", "generator"])
def test_leaves_what_rq_leaves(redis: Redis, server: Any, way: str) -> None:
    """Every key, field, life and place in the queue is the one that RQ's MULTI leaves."""
    ours = Queue("default", pooled(server.url) if way != "client" else Redis.from_url(server.url))
    stock, order, jobs = left_by(redis, rq.Queue("default", redis), wanted())
    mine = left_by(redis, ours, iter(wanted()) if way == "generator" else wanted())
    assert mine[1:] == (order, jobs)
    assert mine[0].keys() == stock.keys()
    for key in stock:
        assert mine[0][key] == stock[key], key


def test_takes_few_steps(redis: Redis, server: Any) -> None:
    """250 jobs are one script, and a generator is read a thousand jobs at a time."""
    read = []

    def datas() -> Iterator[EnqueueData]:
        for number in range(1001):
            read.append(number)
            if number == 1000:
                assert redis.llen(named("rq:queue:default")) == 1000
            yield rq.Queue.prepare_data(JOB, (1,))

    queue = Queue("default", pooled(server.url))
    before = redis.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
    assert len(queue.enqueue_many(datas())) == 1001 == len(read)
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] - before <= 6
    assert redis.llen(queue.key) == 1001


@pytest.mark.parametrize("key", ["rq:queue:default", "rq:job:b", "rq:queues"])
def test_a_key_of_another_type_leaves_nothing(redis: Redis, server: Any, key: str) -> None:
    """Where the queue or a job's key is something else, no job of the step is written."""
    redis.mset({named(key): "spoilt"})
    with pytest.raises(ResponseError):
        Queue("default", pooled(server.url)).enqueue_many(
            [rq.Queue.prepare_data(JOB, (1,), job_id=job_id) for job_id in "ab"]
        )
    assert redis.exists(named("rq:job:a")) == 0


def test_a_subclass_that_writes_in_its_own_way_is_called(redis: Redis, server: Any) -> None:
    """A queue class that overrides a step of RQ's is asked for each job."""
    seen = []

    class Own(Queue):
        def _enqueue_async_job(self, job: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(job.id)
            return super()._enqueue_async_job(job, *args, **kwargs)

    Own("default", pooled(server.url)).enqueue_many(
        [rq.Queue.prepare_data(JOB, (1,), job_id=job_id) for job_id in "ab"]
    )
    assert seen == ["a", "b"] and redis.llen(named("rq:queue:default")) == 2


def test_where_scripts_are_refused_rq_writes(start_server: Any) -> None:
    """Jobs are enqueued in RQ's own way on a server that runs no scripts."""
    one = start_server()
    with Redis.from_url(one.url) as admin:
        admin.acl_setuser(
            "web", enabled=True, passwords=["+p"], categories=["+@all"], commands=["-evalsha", "-eval"], keys=["*"]
        )
        queue = Queue("default", pooled(one.url.replace("redis://", "redis://web:p@", 1)))
        assert len(queue.enqueue_many(wanted())) == MANY + 22
        assert admin.llen(named("rq:queue:default")) == MANY + 22
