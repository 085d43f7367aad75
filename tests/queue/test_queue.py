"""The queue: what an enqueue that broke off says, and that repeating it cannot double a job."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import rq
import wrapt
from keys import named
from proxy import CutProxy
from redis import Connection, Redis
from redis.exceptions import ResponseError
from rq.exceptions import DuplicateJobError
from rq.job import Job, JobStatus
from rq.utils import now
from support import drop_pools, running_worker, wait_until

from rq_pooled.config import Settings
from rq_pooled.errors import ConfigurationError, EnqueueUnconfirmed, PoolExhausted, ServerUnreachable
from rq_pooled.pool import Pool
from rq_pooled.queue import Queue, confirming

JOB = "math.factorial"


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


@pytest.fixture
def proxy(server: Any, redis: Redis) -> Iterator[CutProxy]:
    """A proxy in front of the session's server, on an empty database."""
    with closing(CutProxy(server.port)) as running:
        yield running


def through(proxy: CutProxy, **settings: Any) -> Redis:
    """A client of a pool behind the proxy that has already connected, so that only the enqueue is cut."""
    settings = {"url": proxy.url, "socket_timeout": 5, **settings}
    client = Redis(connection_pool=Pool(Settings(**settings)))
    client.info("server")
    return client


def dump(client: Any) -> dict[str, Any]:
    """The whole key space, times replaced by a mark and ids by their order."""
    result: dict[str, Any] = {}
    for key in sorted(client.keys("*")):
        kind = client.type(key)
        if kind == b"hash":
            value: Any = {
                name: b"time" if name.endswith(b"_at") and content else content
                for name, content in client.hgetall(key).items()
            }
        elif kind == b"list":
            value = client.lrange(key, 0, -1)
        elif kind == b"set":
            value = sorted(client.smembers(key))
        else:
            value = client.zrange(key, 0, -1)
        result[key.decode()] = (value, client.ttl(key))
    return result


def enqueue_all_ways(queue: rq.Queue) -> None:
    """One job of each kind of enqueue, with ids that are known."""
    first = queue.enqueue(JOB, 3, job_id="plain", meta={"a": 1})
    queue.enqueue(JOB, 3, job_id="plain", description="the same id again")
    queue.enqueue(JOB, 3, job_id="front", at_front=True, ttl=500, retry=rq.Retry(2, [1, 2]))
    queue.enqueue(JOB, 3, job_id="child", depends_on=first)
    queue.enqueue_in(timedelta(hours=1), JOB, 3, job_id="later", at_front=True)
    queue.enqueue_many([queue.prepare_data(JOB, (3,), job_id="m1"), queue.prepare_data(JOB, (4,), job_id="m2")])
    finished = Job.create(JOB, id="finished", connection=queue.connection, status=JobStatus.FINISHED)
    finished.save()
    queue.enqueue(JOB, 3, job_id="ready", depends_on=finished)
    with queue.connection.pipeline() as pipe:
        queue.enqueue(JOB, 3, job_id="piped", pipeline=pipe)
        pipe.execute()


def test_redis_state_is_that_of_stock_rq(redis: Redis) -> None:
    """Every way to enqueue leaves exactly the keys, fields and expiries that stock RQ leaves."""
    enqueue_all_ways(rq.Queue("default", redis))
    stock = dump(redis)
    redis.flushall()
    enqueue_all_ways(Queue("default", redis))
    assert dump(redis) == stock


def test_needs_no_connection(server: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queue("default") works on the process's pool, and every Queue without a connection shares one client."""
    monkeypatch.setenv("RQ_POOLED_URL", server.url)
    queue = Queue("default")
    job = queue.enqueue(JOB, 3)
    assert isinstance(queue.connection.connection_pool, Pool)
    assert Queue("other").connection is queue.connection
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [job.id.encode()]


def test_accepts_the_arguments_of_rq(redis: Redis) -> None:
    """Every argument of rq.Queue is accepted by position and by name, and a connection that is given is kept; what we
    add is given by name only."""
    queue = Queue("q", redis, 33, False, Job, "json", None)
    assert (queue.name, queue.connection, queue._default_timeout, queue._is_async) == ("q", redis, 33, False)
    assert Queue(name="q", connection=redis, is_async=True, default_timeout="1h")._default_timeout == 3600
    for name in ("enqueue_job", "schedule_job", "enqueue_many", "setup_dependencies", "_enqueue_async_job"):
        ours, stock = (inspect.signature(getattr(cls, name)).parameters for cls in (Queue, rq.Queue))
        assert [(p.name, p.kind, p.default) for p in ours.values() if p.kind != p.KEYWORD_ONLY] == [
            (p.name, p.kind, p.default) for p in stock.values()
        ]


def test_synchronous_jobs_run_at_once(redis: Redis) -> None:
    """With is_async=False a job runs inside enqueue, as in stock RQ."""
    assert Queue(connection=redis, is_async=False).enqueue(JOB, 4).return_value() == 24


@pytest.mark.parametrize("given_id", [None, "mine"])
def test_lost_reply_then_repeat_enqueues_once(proxy: CutProxy, redis: Redis, given_id: str | None) -> None:
    """An enqueue whose reply was lost says that the job may be there, and repeating it with that id leaves one job."""
    queue = Queue(connection=through(proxy))
    queue.enqueue(JOB, 1, job_id="warm-up")
    redis.delete(queue.key)
    proxy.cut_on(b"EVALSHA")
    with pytest.raises(EnqueueUnconfirmed, match="may have been enqueued") as caught:
        queue.enqueue(JOB, 3, job_id=given_id)
    assert proxy.done.is_set() and caught.value.job_id in str(caught.value)
    assert given_id in (None, caught.value.job_id)

    job = Queue(connection=queue.connection).enqueue(JOB, 3, job_id=caught.value.job_id)
    assert job.id == caught.value.job_id and job.get_status() == JobStatus.QUEUED
    assert redis.lrange(queue.key, 0, -1) == [job.id.encode()]


def test_repeat_after_a_request_that_arrives_late(proxy: CutProxy, redis: Redis) -> None:
    """A request that reaches the server only after it was repeated does not enqueue the job again."""
    queue = Queue(connection=through(proxy))
    queue.enqueue(JOB, 1, job_id="warm-up")
    redis.delete(queue.key)
    proxy.hold_on(b"EVALSHA")
    with pytest.raises(EnqueueUnconfirmed) as caught:
        queue.enqueue(JOB, 3)
    job = queue.enqueue(JOB, 3, job_id=caught.value.job_id)
    proxy.let_go()
    assert redis.lrange(queue.key, 0, -1) == [job.id.encode()]


@pytest.mark.parametrize("older", [1, 2])
def test_repeat_replaces_an_older_job_of_that_id(proxy: CutProxy, redis: Redis, older: int) -> None:
    """Where an older job, of the same call or another, has the id and the lost enqueue did not arrive, the repeat
    enqueues it.
    """
    queue = Queue(connection=through(proxy))
    queue.enqueue(JOB, older, job_id="again")
    redis.delete(queue.key)
    proxy.hold_on(b"EVALSHA")
    with pytest.raises(EnqueueUnconfirmed):
        queue.enqueue(JOB, 2, job_id="again")
    assert queue.enqueue(JOB, 2, job_id="again").args == (2,)
    assert redis.lrange(queue.key, 0, -1) == [b"again"]
    proxy.let_go()
    assert redis.lrange(queue.key, 0, -1) == [b"again"]


def test_unique_repeat_returns_the_job(proxy: CutProxy, redis: Redis) -> None:
    """With unique=True a repeat in this process returns the job that landed; an enqueue that nobody lost is refused."""
    queue = Queue(connection=through(proxy))
    queue.enqueue(JOB, 1, job_id="other", unique=True)
    proxy.cut_on(b"EVALSHA")
    with pytest.raises(EnqueueUnconfirmed):
        queue.enqueue(JOB, 3, job_id="mine", unique=True)
    assert queue.enqueue(JOB, 3, job_id="mine", unique=True).id == "mine"
    with pytest.raises(DuplicateJobError):
        queue.enqueue(JOB, 3, job_id="mine", unique=True)
    assert redis.lrange(queue.key, 0, -1) == [b"other", b"mine"]


def test_own_connection_that_sends_again(proxy: CutProxy, redis: Redis) -> None:
    """With a connection of the caller's own, where redis-py 6 and later repeats what was lost, a job is queued once."""
    with Redis(port=proxy.port) as client:
        queue = Queue(connection=client)
        queue.enqueue(JOB, 1, job_id="warm-up")
        redis.delete(queue.key)
        proxy.cut_on(b"EVALSHA")
        try:
            job = queue.enqueue(JOB, 3)
        except EnqueueUnconfirmed as error:  # redis-py 5 does not repeat
            job = queue.enqueue(JOB, 3, job_id=error.job_id)
        assert proxy.done.is_set() and redis.lrange(queue.key, 0, -1) == [job.id.encode()]


def test_another_process_repeats_with_unique(proxy: CutProxy, server: Any, redis: Redis) -> None:
    """Across processes RQ's unique=True keeps a repeated enqueue from doubling the job."""
    queue = Queue(connection=through(proxy))
    queue.enqueue(JOB, 1, job_id="warm-up")  # else the reply that is lost may be NOSCRIPT
    redis.delete(queue.key)
    proxy.cut_on(b"EVALSHA")
    with pytest.raises(EnqueueUnconfirmed):
        queue.enqueue(JOB, 3, job_id="mine")
    code = (
        "import sys; from redis import Redis; from rq_pooled.queue import Queue\n"
        "from rq.exceptions import DuplicateJobError\n"
        "try: Queue(connection=Redis.from_url(sys.argv[1])).enqueue('math.factorial', 3, job_id='mine', unique=True)\n"
        "except DuplicateJobError: print('there')"
    )
    done = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "there" and redis.llen(queue.key) == 1


@pytest.mark.parametrize("words", [b"dependents", named(b"rq:queues")])
def test_lost_reply_of_a_dependent_job(proxy: CutProxy, redis: Redis, words: bytes) -> None:
    """A dependent job whose registration broke off anywhere is registered once after the repeat, and never queued."""
    queue = Queue(connection=through(proxy))
    parent = queue.enqueue(JOB, 3)
    proxy.cut_on(words)
    with pytest.raises(EnqueueUnconfirmed) as caught:
        queue.enqueue(JOB, 4, depends_on=parent)
    child = queue.enqueue(JOB, 4, depends_on=parent, job_id=caught.value.job_id)
    assert redis.smembers(parent.dependents_key) == {child.id.encode()}
    assert redis.lrange(queue.key, 0, -1) == [parent.id.encode()]
    assert child.get_status() == JobStatus.DEFERRED


def test_dependent_that_was_queued_meanwhile_is_not_doubled(proxy: CutProxy, redis: Redis) -> None:
    """Where the dependency finished between a lost reply and the repeat, the job that it queued is returned."""
    queue = Queue(connection=through(proxy))
    parent = queue.enqueue(JOB, 3)
    proxy.cut_on(b"dependents")
    with pytest.raises(EnqueueUnconfirmed) as caught:
        queue.enqueue(JOB, 4, depends_on=parent)
    rq.SimpleWorker([rq.Queue(connection=redis)], connection=redis).work(burst=True, max_jobs=1)
    assert redis.lrange(queue.key, 0, -1) == [caught.value.job_id.encode()]
    queue.enqueue(JOB, 4, depends_on=parent, job_id=caught.value.job_id)
    assert redis.lrange(queue.key, 0, -1) == [caught.value.job_id.encode()]


def test_dependent_jobs_need_one_connection(server: Any, redis: Redis) -> None:
    """Enqueueing with depends_on takes one connection, so that callers on a small pool cannot wait for each other."""
    queue = Queue(
        connection=Redis(connection_pool=Pool(Settings(url=server.url, max_connections=3), max_connections=1))
    )
    parent, saved = queue.enqueue(JOB, 3), queue.create_job(JOB, args=(3,))
    saved.save()
    for dependencies in ([parent], [saved, "nowhere"], rq.job.Dependency([parent], allow_failure=True)):
        assert queue.enqueue(JOB, 3, depends_on=dependencies).get_status() == JobStatus.DEFERRED
    assert queue.enqueue(JOB, 3, depends_on="nowhere").get_status() == JobStatus.QUEUED
    with redis.pipeline() as pipe:
        queue.enqueue(JOB, 3, depends_on=parent, job_id="piped", pipeline=pipe)
        pipe.execute()
    assert redis.smembers(parent.dependents_key) >= {b"piped"}
    with ThreadPoolExecutor(8) as threads:
        jobs = list(threads.map(lambda _: queue.enqueue(JOB, 3, depends_on=parent), range(40)))
    assert len(queue.deferred_job_registry.get_job_ids()) == 4 + len(jobs)


class AskingJob(Job):
    """A job class that asks Redis while it is saved."""

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the job as RQ does."""
        self.connection.ping()
        super().save(*args, **kwargs)


def test_exhausted_pool_is_not_hidden_by_the_end_of_the_pipeline(server: Any, redis: Redis) -> None:
    """PoolExhausted while dependencies are watched is told as such, and does not open the breaker."""
    settings = Settings(url=server.url, max_connections=3, enqueue_deadline=0.2)
    pool = Pool(settings, max_connections=1)
    queue = Queue(connection=Redis(connection_pool=pool), job_class=AskingJob)
    parent = rq.Queue(connection=redis).enqueue(JOB, 3)
    with pytest.raises(PoolExhausted, match=r"was not enqueued .*ENQUEUE_DEADLINE"):
        queue.enqueue(JOB, 3, depends_on=parent)
    assert pool.stats()["in_use"] == 0
    Queue(connection=queue.connection).enqueue(JOB, 3)


@pytest.mark.parametrize("share", ["yes", "no"])
def test_stock_queue_in_a_job_has_the_two_connections_it_needs(
    server: Any, redis: Redis, tmp_path: Path, share: str
) -> None:
    """However many jobs run at once, each of them may use two connections, as RQ does; with JOBS_SHARE=no that is
    said.
    """
    settings = {"RQ_POOLED_POOL_TIMEOUT": "1", "RQ_POOLED_JOBS_SHARE": share}
    with running_worker(server.url, "default", log=tmp_path / "log", concurrency=5, **settings) as worker:
        job = rq.Queue(connection=redis).enqueue("jobs.enqueue_dependent")
        wait_until(lambda: job.get_status() in (JobStatus.FINISHED, JobStatus.FAILED), what="the job")
        assert job.get_status() == JobStatus.FINISHED
        warned = (
            "jobs that use Redis may hold 12 connections of their own, beyond MAX_CONNECTIONS=10" in worker.output()
        )
        assert warned == (share == "no")
    assert redis.llen(named("rq:queue:later")) == 1


def test_lost_reply_of_a_scheduled_job(proxy: CutProxy, redis: Redis) -> None:
    """enqueue_in whose reply was lost schedules the job once, with its data, after the repeat."""
    queue = Queue(connection=through(proxy))
    queue.enqueue_in(timedelta(hours=1), JOB, 1, job_id="warm-up")
    proxy.cut_on(b"EVALSHA")
    with pytest.raises(EnqueueUnconfirmed) as caught:
        queue.enqueue_in(timedelta(hours=1), JOB, 3)
    job = queue.enqueue_in(timedelta(hours=1), JOB, 3, job_id=caught.value.job_id)
    assert sorted(queue.scheduled_job_registry.get_job_ids()) == sorted(["warm-up", job.id])
    assert job.args == (3,) and redis.llen(queue.key) == 0


def test_lost_reply_of_many(proxy: CutProxy, redis: Redis) -> None:
    """enqueue_many whose reply was lost names every id, and repeating it with them leaves each job once."""
    queue = Queue(connection=through(proxy))
    proxy.cut_on(b"EVALSHA")
    with pytest.raises(EnqueueUnconfirmed) as caught:
        queue.enqueue_many([queue.prepare_data(JOB, (n,)) for n in range(3)])
    ids = caught.value.job_ids
    assert len(set(ids)) == 3 and all(job_id in str(caught.value) for job_id in ids)
    jobs = queue.enqueue_many([queue.prepare_data(JOB, (n,), job_id=job_id) for n, job_id in enumerate(ids)])
    assert [job.id for job in jobs] == list(ids)
    assert redis.lrange(queue.key, 0, -1) == [job_id.encode() for job_id in ids]


def test_not_enqueued_when_the_server_is_away(start_server: Any) -> None:
    """An enqueue that cannot connect says within its bound that the job was not enqueued, and why."""
    one = start_server()
    queue = Queue(connection=Redis(connection_pool=Pool(Settings(url=one.url, pool_timeout=2, breaker_delay=0))))
    url = one.url
    one.stop()
    for attempt in (
        lambda: queue.enqueue(JOB, 3),
        lambda: queue.enqueue_in(timedelta(hours=1), JOB, 3),
        lambda: queue.enqueue(JOB, 3, depends_on="parent"),
        lambda: queue.enqueue_many([queue.prepare_data(JOB, (3,)), queue.prepare_data(JOB, (3,))]),
    ):
        with pytest.raises(ServerUnreachable, match=r"not enqueued in 'default': cannot connect") as caught:
            attempt()
        assert url.rsplit("/", 1)[0].removeprefix("redis://") in str(caught.value)
    assert not confirming._unconfirmed.keys() & {"parent"}


def test_not_enqueued_when_the_pool_is_exhausted(server: Any, redis: Redis) -> None:
    """An enqueue that finds no free connection says that the job was not enqueued and which setting to change."""
    pool = Pool(Settings(url=server.url, max_connections=3, pool_timeout=0.05))
    taken = [pool.get_connection() for _ in range(3)]
    with pytest.raises(PoolExhausted, match=r"job \S+ was not enqueued in 'default': .*MAX_CONNECTIONS") as caught:
        Queue(connection=Redis(connection_pool=pool)).enqueue(JOB, 3)
    assert not isinstance(caught.value, EnqueueUnconfirmed) and redis.dbsize() == 0
    for connection in taken:
        pool.release(connection)


@pytest.mark.parametrize("words", [b"deferred", b"WATCH"])
def test_lost_reply_of_many_dependents(proxy: CutProxy, redis: Redis, words: bytes) -> None:
    """Dependents of enqueue_many that were saved and not registered are registered by the repeat."""
    queue = Queue(connection=through(proxy))
    parent = queue.enqueue(JOB, 3)
    datas = [queue.prepare_data(JOB, (n,), job_id=f"child{n}", depends_on=parent) for n in range(2)]
    proxy.cut_on(words)
    with pytest.raises(EnqueueUnconfirmed):
        queue.enqueue_many(datas)
    assert [job.get_status() for job in queue.enqueue_many(datas)] == [JobStatus.DEFERRED] * 2
    assert redis.smembers(parent.dependents_key) == {b"child0", b"child1"}
    rq.SimpleWorker([rq.Queue(connection=redis)], connection=redis).work(burst=True, max_jobs=1)
    assert sorted(redis.lrange(queue.key, 0, -1)) == [b"child0", b"child1"]


def test_lost_reply_of_many_with_met_dependencies(proxy: CutProxy, redis: Redis) -> None:
    """Jobs of enqueue_many that were registered, with nothing left to wait for, are enqueued by the repeat."""
    queue = Queue(connection=through(proxy))
    finished = Job.create(JOB, connection=redis, status=JobStatus.FINISHED)
    finished.save()
    datas = [queue.prepare_data(JOB, (3,), job_id="child", depends_on=finished)]
    proxy.hold_on(b"RPUSH")
    with pytest.raises(EnqueueUnconfirmed):
        queue.enqueue_many(datas)
    assert queue.deferred_job_registry.get_job_ids() == ["child"]
    assert queue.enqueue_many(datas)[0].get_status() == JobStatus.QUEUED
    assert redis.lrange(queue.key, 0, -1) == [b"child"] and not queue.deferred_job_registry.get_job_ids()


def test_refusal_is_not_a_lost_reply(redis: Redis, server: Any) -> None:
    """A command that the server refuses in words raises that refusal, not "may have been enqueued"."""
    redis.set(named("rq:queues"), "not a set")
    with pytest.raises(Exception, match="WRONGTYPE") as caught:
        Queue(connection=redis).enqueue(JOB, 3)
    assert not isinstance(caught.value, EnqueueUnconfirmed)


def test_memory_of_unconfirmed_ids_is_bounded(proxy: CutProxy, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many enqueues stay unconfirmed, only so many ids are remembered; a confirmed one is forgotten."""
    monkeypatch.setattr(confirming, "_REMEMBERED", 2)
    monkeypatch.setattr(confirming, "_unconfirmed", type(confirming._unconfirmed)())
    queue = Queue(connection=through(proxy))
    for name in ("a", "b", "c"):
        proxy.cut_on(b"EVALSHA")
        with pytest.raises(EnqueueUnconfirmed):
            queue.enqueue(JOB, 3, job_id=name)
    assert list(confirming._unconfirmed) == ["b", "c"]
    queue.enqueue(JOB, 3, job_id="c")
    assert list(confirming._unconfirmed) == ["b"]


def test_more_jobs_at_once_than_are_remembered(proxy: CutProxy, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ids of one unconfirmed enqueue_many are remembered, however many, so that its repeat doubles none."""
    monkeypatch.setattr(confirming, "_REMEMBERED", 2)
    queue = Queue(connection=through(proxy))
    datas = [queue.prepare_data(JOB, (n,), job_id=f"many{n}") for n in range(4)]
    proxy.cut_on(b"EVALSHA")
    with pytest.raises(EnqueueUnconfirmed):
        queue.enqueue_many(datas)
    queue.enqueue_many(datas)
    assert redis.lrange(queue.key, 0, -1) == [b"many0", b"many1", b"many2", b"many3"]


def test_another_call_with_an_unconfirmed_id_is_enqueued(proxy: CutProxy, redis: Redis) -> None:
    """An unconfirmed id that nobody repeated does not swallow a later call with other arguments, alone or among
    many.
    """
    queue = Queue(connection=through(proxy))
    for enqueue in (
        lambda number: queue.enqueue(JOB, number, job_id="sync-7"),
        lambda number: queue.enqueue_many([queue.prepare_data(JOB, (number,), job_id="sync-7")]),
    ):
        proxy.cut_on(b"EVALSHA")
        with pytest.raises(EnqueueUnconfirmed):
            enqueue(5)
        rq.SimpleWorker([rq.Queue(connection=redis)], connection=redis).work(burst=True)
        enqueue(6)
        assert redis.lrange(queue.key, 0, -1) == [b"sync-7"]
        assert Job.fetch("sync-7", connection=redis).args == (6,)
        redis.delete(queue.key)


@pytest.mark.parametrize("value", [("result_ttl", "soon"), ("created_at", b"\xff"), None])
def test_an_unconfirmed_job_that_was_damaged_is_told_in_words(
    proxy: CutProxy, redis: Redis, value: tuple[str, Any] | None
) -> None:
    """Where an unconfirmed job is there and cannot be read, the repeat says so in one line, and enqueues nothing."""
    queue = Queue(connection=through(proxy))
    queue.enqueue(JOB, 1, job_id="warm-up")
    redis.delete(queue.key)
    proxy.cut_on(b"EVALSHA")
    with pytest.raises(EnqueueUnconfirmed):
        queue.enqueue(JOB, 3, job_id="mine")
    key = named("rq:job:mine")
    if value is None:
        redis.delete(key)
        redis.set(key, "no hash")
    else:
        redis.hset(key, *value)
    with pytest.raises(ConfigurationError, match="job mine may have been enqueued .* cannot be read") as caught:
        queue.enqueue(JOB, 3, job_id="mine")
    assert key in str(caught.value) and "\n" not in str(caught.value)
    assert redis.lrange(queue.key, 0, -1) == [b"mine"]


def test_the_same_call_is_known_however_it_is_pickled(proxy: CutProxy, redis: Redis) -> None:
    """A repeat whose equal arguments have another pickle returns the job that landed."""
    queue = Queue(connection=through(proxy))
    queue.enqueue(JOB, 1, job_id="warm-up")
    redis.delete(queue.key)
    same = {"a": [1], "b": [1]}
    proxy.cut_on(b"EVALSHA")
    with pytest.raises(EnqueueUnconfirmed):
        queue.enqueue(JOB, same, job_id="mine")
    queue.enqueue(JOB, dict(reversed(same.items())), job_id="mine")
    assert redis.lrange(queue.key, 0, -1) == [b"mine"]


def test_each_unconfirmed_call_is_known(proxy: CutProxy, redis: Redis) -> None:
    """Of several unconfirmed enqueues with other pickles of one call, any that landed is returned."""
    queue = Queue(connection=through(proxy))
    queue.enqueue(JOB, 1, job_id="warm-up")
    redis.delete(queue.key)
    same = {"a": [1], "b": [1]}
    other = dict(reversed(same.items()))
    for arm, arguments in ((proxy.hold_on, same), (proxy.cut_on, other)):
        arm(b"EVALSHA")
        with pytest.raises(EnqueueUnconfirmed):
            queue.enqueue(JOB, arguments, job_id="mine")
    assert list(queue.enqueue(JOB, same, job_id="mine").args[0]) == ["b", "a"]
    assert redis.lrange(queue.key, 0, -1) == [b"mine"]
    proxy.let_go()


class CautiousQueue(Queue):
    """A queue of a user's, which looks at each job before RQ takes it."""

    def _enqueue_job(self, job: Job, pipeline: Any = None, **kwargs: Any) -> Job:
        assert pipeline is None
        return super()._enqueue_job(job, pipeline=pipeline, **kwargs)


@pytest.mark.parametrize(("cls", "calls"), [(Queue, 1), (rq.Queue, 2), (CautiousQueue, 2)])
def test_an_enqueue_is_one_round_trip(redis: Redis, monkeypatch: pytest.MonkeyPatch, cls: Any, calls: int) -> None:
    """An enqueue needs one round trip, where RQ needs two; a subclass that replaces one of RQ's steps is not passed
    by.
    """
    queue = cls("default", connection=redis)
    queue.enqueue(JOB, 1)
    requests: list[Any] = []
    send = Connection.send_packed_command

    def counted(self: Connection, *args: Any, **kwargs: Any) -> Any:
        requests.append(args)
        return send(self, *args, **kwargs)

    monkeypatch.setattr(Connection, "send_packed_command", counted)
    job = queue.enqueue(JOB, 2)
    assert len(requests) == calls
    assert redis.lpos(queue.key, job.id) == 1 and redis.sismember(named("rq:queues"), queue.key)


def test_what_else_was_written_to_the_step_is_done(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an instrumentation writes into the pipeline that it is given is done, and so is the queue's name where the
    job replaces another.
    """
    stock = rq.Queue._enqueue_job

    def chatty(self: rq.Queue, job: Job, pipeline: Any = None, **kwargs: Any) -> Job:
        pipeline.set("more", 1)
        return stock(self, job, pipeline=pipeline, **kwargs)

    queue = Queue("default", connection=redis)
    queue.enqueue(JOB, 1, job_id="a")
    redis.srem(named("rq:queues"), queue.key)
    monkeypatch.setattr(rq.Queue, "_enqueue_job", chatty)
    queue.enqueue(JOB, 2, job_id="a")
    assert redis.get("more") == b"1" and redis.sismember(named("rq:queues"), queue.key)
    assert redis.lrange(queue.key, 0, -1) == [b"a", b"a"], "as in stock RQ"


@pytest.mark.parametrize("key", [named("rq:queue:default"), named("rq:queues")])
def test_a_spoilt_key_leaves_no_half_of_a_job(redis: Redis, key: str) -> None:
    """Where a key that an enqueue needs is of another type, the enqueue fails with its name, and nothing is written."""
    redis.set(key, "text")
    with pytest.raises(ResponseError, match=f"WRONGTYPE .*{key} is no (list|set)"):
        Queue("default", connection=redis).enqueue(JOB, 1)
    assert redis.keys() == [key.encode()]


def test_a_patched_enqueue_job_is_called(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """An integration that replaces rq.Queue.enqueue_job, as Sentry's does, with (self, job, **kwargs) is called."""
    seen: list[str] = []
    stock = rq.Queue.enqueue_job

    def patched(self: rq.Queue, job: Job, **kwargs: Any) -> Job:
        seen.append(job.id)
        return stock(self, job, **kwargs)

    monkeypatch.setattr(rq.Queue, "enqueue_job", patched)
    job = Queue(connection=redis).enqueue(JOB, 3)
    assert seen == [job.id]


@pytest.mark.parametrize("wrap", [functools.wraps, wrapt.decorator])
def test_a_wrapped_setup_dependencies_is_called_once(
    server: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch, wrap: Any
) -> None:
    """An instrumentation around rq.Queue.setup_dependencies, as OpenTelemetry's, sees one call, also where a dependency
    changes meanwhile; what it writes to meta is saved, and one connection still does."""
    seen: list[str] = []
    stock, parent = rq.Queue.setup_dependencies, rq.Queue(connection=redis).enqueue(JOB, 3)

    def note(job: Job) -> None:
        seen.append(job.id)
        job.meta["traceparent"] = "00-1-1-01"

    if wrap is functools.wraps:

        @functools.wraps(stock)
        def patched(self: rq.Queue, job: Job, pipeline: Any = None) -> Job:
            note(job)
            return stock(self, job, pipeline=pipeline)
    else:

        @wrapt.decorator
        def around(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
            note(args[0])
            return wrapped(*args, **kwargs)

        patched = around(stock)
    monkeypatch.setattr(rq.Queue, "setup_dependencies", patched)

    class Changing(Job):
        def register_dependency(self, pipeline: Any = None) -> None:
            if self.enqueued_at is None:  # once
                self.enqueued_at = self.created_at
                redis.hset(parent.key, "status", "started")
            super().register_dependency(pipeline)

    queue = Queue(
        connection=Redis(connection_pool=Pool(Settings(url=server.url, max_connections=3), max_connections=1))
    )
    queue.job_class = Changing
    job = queue.enqueue(JOB, 3, depends_on=parent)
    assert seen == [job.id] and job.get_status() == JobStatus.DEFERRED
    assert Job.fetch(job.id, connection=redis).meta == {"traceparent": "00-1-1-01"}
    queue.job_class = Job
    with queue.connection.pipeline() as pipe:
        piped = queue.enqueue(JOB, 3, depends_on=parent, pipeline=pipe)
        pipe.execute()
    assert seen == [job.id, piped.id]
    assert redis.smembers(parent.dependents_key) == {job.id.encode(), piped.id.encode()}


def test_unique_needs_an_id(redis: Redis) -> None:
    """As in stock RQ, ``unique=True`` without a job id is refused: no id is made up that nothing can be equal to."""
    queue = Queue(connection=redis)
    with pytest.raises(ValueError, match="explicit job_id"):
        queue.enqueue_job(queue.create_job(JOB, args=(3,)), unique=True)
    with pytest.raises(ValueError, match="explicit job_id"):
        queue.schedule_job(queue.create_job(JOB, args=(3,)), now(), unique=True)
    with pytest.raises(ValueError, match="explicit job_id"):
        Queue(connection=redis, max_length=5).enqueue_job(queue.create_job(JOB, args=(3,)), unique=True)
    assert not redis.keys(named("rq:*"))


@pytest.mark.parametrize("refused", ["-@scripting", "-evalsha", "-script"])
def test_enqueueing_where_scripts_are_refused(
    start_server: Any, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """A web process that may run no scripts enqueues in RQ's own way, as rq.Queue does, and says so once."""
    server = start_server()
    redis = server.client()
    redis.execute_command("ACL", "SETUSER", "web", "on", ">pw", "~*", "&*", "+@all", refused)
    with Redis(host=server.host, port=server.port, username="web", password="pw") as client:
        queue = Queue(connection=client)
        first = queue.enqueue("time.time")
        assert queue.enqueue("time.time", depends_on="nowhere").get_status() == JobStatus.QUEUED
        waiting = queue.enqueue("time.time", depends_on=first)
        assert waiting.get_status() == JobStatus.DEFERRED
        later = queue.enqueue_in(timedelta(seconds=60), "time.time")
        many = queue.enqueue_many([Queue.prepare_data("time.time"), Queue.prepare_data("time.time")])
        assert redis.llen(queue.key) == 4 and len(many) == 2
        assert later in queue.scheduled_job_registry and later.get_status() == JobStatus.SCHEDULED
        with pytest.raises(ResponseError):  # these cannot be kept without a script
            queue.enqueue("time.time", once="key")
        with pytest.raises(ResponseError):
            queue.enqueue("time.time", job_id="own", unique=True)
    assert redis.llen(queue.key) == 4
    assert sum("the server refuses scripts" in record.message for record in caplog.records) == 1


def test_unique_is_asked_of_the_server_where_a_bound_is_too(redis: Redis) -> None:
    """A queue with a limit of its length refuses a second job of an id, as one without does, and keeps the first."""
    queue = Queue(connection=redis, max_length=5)
    queue.enqueue("math.factorial", 1, job_id="a", unique=True)
    with pytest.raises(DuplicateJobError):
        queue.enqueue("math.factorial", 2, job_id="a", unique=True)
    assert queue.job_ids == ["a"] and Job.fetch("a", redis).args == (1,)
