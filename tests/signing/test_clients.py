"""Processes that run no jobs load nothing of what stands in Redis, and unpack no bomb; with keys and without."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

import pytest
import signed_jobs
from commands import PYTHONPATH
from keys import named
from proxy import CutProxy
from redis import Redis
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.utils import now, utcformat
from signed_jobs import Evil
from signing_scene import K1, Signing
from support import drop_pools

from rq_pooled import Queue, Scheduler
from rq_pooled.config import Settings
from rq_pooled.errors import EnqueueUnconfirmed
from rq_pooled.failed.dead_letters import DeadLetterRegistry
from rq_pooled.pool import Pool
from rq_pooled.store.keys import SCHEDULED_JOBS

EVIL_CALL = zlib.compress(pickle.dumps(("signed_jobs.note", None, (Evil(),), {})))
PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)
#: Each way to enqueue a note in a queue.
WAYS: dict[str, Callable[[Queue], Any]] = {
    "enqueue": lambda queue: queue.enqueue(signed_jobs.note, "mine", job_id="mine"),
    "many": lambda queue: queue.enqueue_many([queue.prepare_data(signed_jobs.note, ("mine",), job_id="mine")])[0],
    "schedule": lambda queue: queue.enqueue_in(timedelta(hours=1), signed_jobs.note, "mine", job_id="mine"),
}
#: Words of a program that does one thing with the job "bomb".
DOORS = {
    "unique_for": "queue.enqueue(signed_jobs.note, 'x', unique_for=600)",
    "once": "queue.enqueue(signed_jobs.note, 'x', once='spent')",
    "cancel": "cancel(redis, 'bomb')",
    "get_jobs": "assert [job.id for job in Scheduler(connection=redis).get_jobs()] == ['good']",
    "enqueue_jobs": "assert [job.id for job in Scheduler(connection=redis).enqueue_jobs()] == ['good']",
    "requeue": "DeadLetterRegistry(connection=redis).requeue('bomb')",
}
PROGRAM = """
import os, redis, signed_jobs
from rq_pooled import Queue, Scheduler
from rq_pooled.errors import NotVerified, AlreadyQueued, AlreadySpent
from rq_pooled.failed.dead_letters import DeadLetterRegistry
from rq_pooled.monitoring.schedules import cancel
redis = redis.Redis.from_url(os.environ["RQ_POOLED_URL"])
queue = Queue(connection=redis)
try:
    {door}
except (NotVerified, AlreadyQueued, AlreadySpent) as error:
    print(error)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.fixture(params=["no keys", "accept-unsigned"])
def client(signing: Signing, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Signing]:
    """This process without keys, and with keys while it accepts what is not signed."""
    monkeypatch.setenv("EVIL_URL", signing.server.url)
    if request.param == "no keys":
        signing.use(None)
    else:
        signing.use(K1, signing="accept-unsigned")
    yield signing
    drop_pools()


@cache
def bomb(size: int) -> bytes:
    """As many megabytes of zeros, packed into as many kilobytes."""
    packer = zlib.compressobj(9)
    block = bytes(1024 * 1024)
    return b"".join([*(packer.compress(block) for _ in range(size)), packer.flush()])


def lost(signing: Signing, enqueue: Callable[[Queue], Any]) -> Queue:
    """Enqueue over a connection that is lost before the reply; return the queue."""
    with closing(CutProxy(signing.server.port)) as proxy:
        settings = Settings(url=proxy.url, socket_timeout=5)
        queue = Queue(connection=Redis(connection_pool=Pool(settings)))
        queue.enqueue(signed_jobs.note, "warm-up")
        proxy.cut_on(b"EVALSHA")
        with pytest.raises(EnqueueUnconfirmed):
            enqueue(queue)
    return Queue(connection=signing.redis)


@pytest.mark.parametrize("way", WAYS)
def test_a_repeat_loads_nothing_that_others_wrote(client: Signing, way: str) -> None:
    """Where a forged job took the place of an unconfirmed one, its repeat loads none of it, and replaces it."""
    queue = lost(client, WAYS[way])
    forged = {"data": EVIL_CALL, "meta": pickle.dumps(Evil()), "result": pickle.dumps(Evil())}
    later = utcformat(now() + timedelta(seconds=5))
    client.redis.hset(named("rq:job:mine"), mapping={**forged, "created_at": later})  # type: ignore[arg-type]
    assert WAYS[way](queue).args == ("mine",)
    assert client.ran == []
    assert client.redis.hget(named("rq:job:mine"), "data") != EVIL_CALL


@pytest.mark.parametrize("way", WAYS)
def test_a_repeat_knows_its_own_job(client: Signing, way: str) -> None:
    """Where the unconfirmed job is there, its repeat returns that one."""
    queue = lost(client, WAYS[way])
    created = client.redis.hget(named("rq:job:mine"), "created_at")
    assert created and WAYS[way](queue).args == ("mine",)
    assert client.redis.hget(named("rq:job:mine"), "created_at") == created


def test_an_unconfirmed_job_that_was_fetched_is_not_loaded(client: Signing) -> None:
    """Enqueueing a fetched job does not load its call, though the connection is lost."""
    client.redis.hset(
        named("rq:job:mine"), mapping={"data": EVIL_CALL, "origin": "default", "status": "failed", "description": "x"}
    )

    def enqueue(queue: Queue) -> Any:
        job = queue.fetch_job("mine")
        assert job is not None
        return queue.enqueue_job(job)

    enqueue(lost(client, enqueue))
    assert client.ran == []


@pytest.mark.parametrize("ask", ["count", "get_job_ids", "get_job_and_execution_ids", "cleanup"])
def test_a_registry_calls_nothing(signing: Signing, ask: str) -> None:
    """With keys, or an allow-list, no process that asks for started jobs calls what an abandoned one's hash names;
    without them the registry is RQ's.
    """
    for checks in (True, False):
        signing.use(K1 if checks else None)
        if not checks:
            signing.use(None, ALLOWED="signed_jobs.note")
        hash_of = {
            "origin": "default",
            "status": "started",
            "data": b"x",
            "failure_callback_name": "signed_jobs.forged",
        }
        signing.redis.hset(named("rq:job:evil"), mapping=hash_of)  # type: ignore[arg-type]
        signing.redis.zadd(named("rq:wip:default"), {"evil:abc": 1})
        found = getattr(Queue(connection=signing.redis).started_job_registry, ask)
        found = found() if callable(found) else found
        assert signing.ran == [] and signing.redis.zcard(named("rq:wip:default")) == 1
    signing.use(None)
    assert type(Queue(connection=signing.redis).started_job_registry) is StartedJobRegistry


def test_lists_load_no_meta(client: Signing) -> None:
    """Neither `Scheduler.get_jobs` nor `DeadLetterRegistry.requeue` loads a class that meta or an old result names."""
    scheduler, registry = Scheduler(connection=client.redis), DeadLetterRegistry(connection=client.redis)
    scheduler.enqueue_at(PAST, signed_jobs.note, "evil", job_id="evil")
    forged = {"data": EVIL_CALL, "meta": pickle.dumps({"a": 1, "e": Evil()}), "result": pickle.dumps(Evil())}
    client.redis.hset(named("rq:job:evil"), mapping={**forged, "status": "failed"})  # type: ignore[arg-type]
    registry.add(Job("evil", connection=client.redis))
    for job in (*scheduler.get_jobs(), registry.requeue("evil")):
        assert job.meta["a"] == 1
    assert client.ran == []


@pytest.mark.parametrize("field", ["data", "exc_info"])
@pytest.mark.parametrize("door", DOORS)
def test_a_bomb_costs_no_memory(client: Signing, door: str, field: str) -> None:
    """A gigabyte that was packed into a megabyte is not unpacked, whichever way leads to its job."""
    redis = client.redis
    queue = Queue(connection=redis)
    queue.enqueue(signed_jobs.note, "x", job_id="bomb", unique_for=600)
    redis.set(named("rq_pooled:once:spent"), "bomb")
    if door == "requeue":
        redis.hset(named("rq:job:bomb"), "status", "failed")
        DeadLetterRegistry(connection=redis).add(Job("bomb", connection=redis))
    if door == "cancel":
        redis.zadd(named("rq:scheduled:default"), {"bomb": time.time() + 1000})
    if door.endswith("jobs"):
        redis.zadd(SCHEDULED_JOBS, {"bomb": 1})
        Scheduler(connection=redis).enqueue_at(PAST, signed_jobs.note, "good", job_id="good")
    redis.hset(named("rq:job:bomb"), field, bomb(1024))
    expected = DOORS[door] if field == "data" else DOORS[door].replace("['good']", "['bomb', 'good']")
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "RQ_POOLED_URL": client.server.url}
    code = PROGRAM.format(door=expected)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 300 * 1024, done.stdout
    if door == "cancel":
        assert client.status("bomb") == "canceled"


def test_many_bombs_cost_as_much_as_one(client: Signing) -> None:
    """A scheduler keeps nothing of the jobs that it has moved, so that several that are within the bound do no harm."""
    scheduler = Scheduler(connection=client.redis)
    for number in range(16):
        scheduler.enqueue_at(PAST, signed_jobs.note, "x", job_id=f"bomb{number}")
        client.redis.hset(named(f"rq:job:bomb{number}"), "data", bomb(32))
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "RQ_POOLED_URL": client.server.url}
    code = PROGRAM.format(door="Scheduler(connection=redis).run(burst=True)")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert client.redis.llen(named("rq:queue:default")) == 16
    assert int(done.stdout.split()[-1]) < 300 * 1024, done.stdout
