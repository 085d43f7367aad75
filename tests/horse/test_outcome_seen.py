"""What user code sees of a job's outcome, and adds to it, between RQ's handler and the record: the same as in stock RQ.

Each scenario runs twice on an empty database, with RQ's worker and with ours; what was seen and what is left are equal.
"""

from __future__ import annotations

import ast
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keys import named
from keyspace import differences, dump
from redis import Redis
from rq import Callback, Queue, Repeat, Retry
from support import running_worker

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.horse.effects import Effects


def work(server: EmbeddedServer, log: Path, worker_class: str, *arguments: str) -> None:
    """Run a worker until the queues are empty."""
    names = ("default", "other", "--burst", "--name", "w", "--worker-class", worker_class, *arguments)
    with running_worker(server.url, *names, log=log, ready=None) as worker:
        assert worker.wait() == 0, worker.output()


def left(redis: Redis, began: float) -> dict[str, Any]:
    """Return what is in Redis, without the port of a connection that is gone."""
    redis.hdel(named("rq:worker:w"), "ip_address")
    return dump(redis, began)


def test_the_outcome_is_a_fact_once_it_is_decided(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """After ``perform_job`` a program reads status, result, times and meta of the job as in stock RQ, by every way that
    RQ has, and what it writes to the job then is the last word."""
    seen, dumps = [], []
    for worker_class in ("outcome_jobs.StockLookingWorker", "outcome_jobs.LookingWorker"):
        redis.flushall()
        began = time.time()
        queue = Queue(connection=redis)
        queue.enqueue("jobs.add", 1, 2, job_id="plain", meta={"who": "me"})
        queue.enqueue("jobs.nothing", job_id="none")
        queue.enqueue("outcome_jobs.save_meta", 3, job_id="meta")
        for ttl in (0, -1, -5):
            queue.enqueue("jobs.add", 1, 2, job_id=f"ttl{ttl}", result_ttl=ttl)
        queue.enqueue("jobs.add", 1, 2, job_id="callback", on_success=Callback("jobs.nothing"))
        queue.enqueue("jobs.fail", job_id="failed")
        queue.enqueue("jobs.fail", job_id="forgotten", failure_ttl=0)
        queue.enqueue("jobs.fail", job_id="again", retry=Retry(1))
        queue.enqueue("jobs.fail", job_id="later", retry=Retry(1, interval=60))
        queue.enqueue("jobs.return_retry", 1, job_id="returned")
        queue.enqueue("jobs.add", 1, 2, job_id="repeat", repeat=Repeat(times=1, interval=60))
        queue.enqueue("jobs.add", 1, 2, job_id="at-once", repeat=Repeat(times=1, interval=0))
        work(server, tmp_path / worker_class, worker_class)
        seen.append([ast.literal_eval(word.decode()) for word in redis.lrange("seen", 0, -1)])
        redis.delete("seen")
        dumps.append(left(redis, began))
    stock, ours = seen
    assert len(ours) == 17
    assert ours == stock
    assert dumps[0] == dumps[1], differences(*dumps)


def test_an_outcome_is_read_without_a_connection(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """Status and result of a job that has ended are read by its own horse without asking the server: none is opened."""
    queue = Queue(connection=redis)
    jobs = [queue.enqueue(f"jobs.{name}") for name in ("nothing", "fail") * 10]
    before = redis.info("stats")["total_connections_received"]
    work(server, tmp_path / "log", "outcome_jobs.AskingWorker")
    assert redis.info("stats")["total_connections_received"] - before <= 4
    redis.hdel(named("rq:worker:w"), "ip_address")
    assert [job.is_failed for job in jobs] == [False, True] * 10


FOLLOWERS = [
    ("outcome_jobs.StockBeforeWorker", "outcome_jobs.BeforeWorker", "rq.Queue", True),
    ("outcome_jobs.StockBeforeWorker", "outcome_jobs.BeforeWorker", "rq_pooled.Queue", False),
    ("outcome_jobs.StockAfterWorker", "outcome_jobs.AfterWorker", "rq.Queue", True),
    ("outcome_jobs.StockAfterWorker", "outcome_jobs.AfterWorker", "rq_pooled.Queue", False),
    ("outcome_jobs.StockAroundWorker", "outcome_jobs.AroundWorker", "rq.Queue", False),
    ("rq.SimpleWorker", "rq_pooled.Worker", "outcome_jobs.FollowingQueue", True),
    # What stock RQ leaves lying about with these classes is not left here.
    ("rq.SimpleWorker", "rq_pooled.Worker", "outcome_jobs.ByHandQueue", False),
    ("rq.SimpleWorker", "rq_pooled.Worker", "outcome_jobs.CountingQueue", False),
]


@pytest.mark.parametrize(("stock", "ours", "queue_class", "same"), FOLLOWERS)
def test_dependents_of_subclasses_are_enqueued(
    redis: Redis, server: EmbeddedServer, tmp_path: Path, stock: str, ours: str, queue_class: str, same: bool
) -> None:
    """A job that a handler, or an own ``enqueue_dependents``, enqueues with ``depends_on`` this one runs, once, as in
    RQ.
    """
    ends, dumps = [], []
    for worker_class in (stock, ours):
        redis.flushall()
        began = time.time()
        queue = Queue(connection=redis)
        queue.enqueue("jobs.add", 1, 2, job_id="good")
        queue.enqueue("jobs.fail", job_id="bad")
        queue.enqueue("jobs.nothing", job_id="parent")
        queue.enqueue("jobs.nothing", job_id="parent-child", depends_on="parent")
        work(server, tmp_path / worker_class, worker_class, "--queue-class", queue_class)
        keys = sorted(key for key in redis.keys(named("rq:job:*")) if redis.type(key) == b"hash")
        runs = [redis.xlen(named(f"rq:results:{key.decode().removeprefix('rq:job:')}")) for key in keys]
        ends.append([(key, redis.hget(key, "status"), ran) for key, ran in zip(keys, runs)])
        dumps.append(left(redis, began))
    assert ends[0] == ends[1]
    assert len(ends[1]) > 4 or "Queue" in queue_class
    if same:
        assert dumps[0] == dumps[1], differences(*dumps)


NAMES, VALUES = st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([b"1", b"2"])
WRITES = st.one_of(
    st.tuples(st.just(b"HSET"), st.just(b"h"), NAMES, VALUES),
    st.tuples(st.just(b"HMSET"), st.just(b"h"), NAMES, VALUES, NAMES, VALUES),
    st.tuples(st.just(b"HDEL"), st.just(b"h"), NAMES),
    st.tuples(st.sampled_from([b"SADD", b"SREM"]), st.just(b"s"), NAMES),
    st.tuples(st.just(b"XADD"), st.just(b"x"), st.just(b"*"), NAMES, VALUES),
    st.tuples(
        st.just(b"XADD"), st.just(b"x"), st.just(b"MAXLEN"), st.just(b"~"), st.just(b"10"), st.just(b"*"), NAMES, VALUES
    ),
    st.tuples(st.sampled_from([b"DEL", b"UNLINK"]), st.sampled_from([b"h", b"s", b"x"])),
    st.tuples(st.just(b"EXPIRE"), st.sampled_from([b"h", b"s", b"x"]), st.sampled_from([b"-5", b"0", b"100"])),
)
READS: list[tuple[Any, ...]] = [
    *((b"HGET", b"h", name) for name in (b"a", b"b", b"c")),
    *((b"HEXISTS", b"h", name) for name in (b"a", b"b", b"c")),
    *((b"SISMEMBER", b"s", name) for name in (b"a", b"b", b"c")),
    *((b"HMGET", b"h", b"a", b"c"), (b"HGETALL", b"h"), (b"SMEMBERS", b"s"), (b"XLEN", b"x")),
    *(
        (b"XREVRANGE", b"x", b"+", b"-", b"COUNT", b"1"),
        (b"XREVRANGE", b"x", b"+", b"-"),
        (b"XRANGE", b"x", b"-", b"+"),
    ),
]


@given(old=st.lists(WRITES, max_size=4), new=st.lists(WRITES, max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_effects_are_those_of_the_server(redis: Redis, old: Any, new: Any) -> None:
    """A read over recorded commands gives what the server gives once it has done them."""

    def ask(words: Any) -> Any:
        reply = redis.execute_command(*(word.decode() if i == 0 else word for i, word in enumerate(words)))
        if words[0] == b"EXISTS":
            return int(reply)
        return [fields for _id, fields in reply] if words[0] in (b"XRANGE", b"XREVRANGE") else reply

    redis.flushall()
    for words in old:
        redis.execute_command(*words)
    effects = Effects()
    for words in new:
        effects.write(words)
    reads = [
        *READS,
        *((b"EXISTS", key) for key in (b"h", b"s", b"x") if not any(words[0] in (b"HDEL", b"SREM") for words in new)),
    ]
    foreseen = []
    for words in reads:
        if words[0] in (b"XRANGE", b"XREVRANGE"):
            found = effects.read(words, lambda words=words: redis.execute_command(words[0].decode(), *words[1:]))
            foreseen.append([fields for _id, fields in found])
        else:
            foreseen.append(effects.read(words, lambda words=words: ask(words)))
    for words in new:
        redis.execute_command(*words)
    assert foreseen == [ask(words) for words in reads]


def test_waiting_for_a_result_that_is_there_ends_at_once() -> None:
    """RQ's ``latest_result(timeout=…)`` in the horse that holds the result returns it, and waits for no other one."""
    effects = Effects()
    effects.write([b"XADD", b"x", b"*", b"type", b"1"])
    words = [b"XREAD", b"BLOCK", b"60000", b"STREAMS", b"x", b"0-0"]
    ((key, ((_id, fields),)),) = effects.read(words, lambda: pytest.fail("asked the server"))
    assert (key, fields) == (b"x", {b"type": b"1"})
    assert effects.read([*words[:-2], b"other", b"0-0"], lambda: "asked") == "asked"
    assert effects.read([*words[:-1], b"$"], lambda: "asked") == "asked"
