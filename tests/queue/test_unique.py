"""Unique calls: one job per function and arguments while it is queued or running; free again however it ends."""

from __future__ import annotations

import datetime
import decimal
import functools
import re
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import claim_jobs
import jobs
import once_jobs
import pytest
from engine import engine, key_space
from keys import named
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue as StockQueue
from rq import Retry, SimpleWorker
from rq.exceptions import DuplicateJobError
from rq.job import Job, JobStatus
from support import running_worker, wait_until

from rq_pooled import Queue
from rq_pooled.config import Settings
from rq_pooled.errors import AlreadyQueued, AlreadySpent, ConfigurationError
from rq_pooled.pool import Pool
from rq_pooled.queue.unique import call_key


def key(*args: Any, **kwargs: Any) -> str:
    """The key of a call of one function."""
    return call_key(Job.create(once_jobs.accept, args=args, kwargs=kwargs, connection=Redis()))


def test_equal_calls_have_one_key_however_they_are_made() -> None:
    """Order of keywords, sets and dictionaries, and which objects are shared, make no difference."""
    text, another = "ab" * 9, "ba" * 9  # a pickle refers back to an object that it has seen, not to an equal one
    assert key(text, text) == key(text, another[1:] + "b")
    assert key(a=1, b=2) == key(b=2, a=1)
    assert key({"x": 1, "y": [2]}) == key({"y": [2], "x": 1})
    words, backwards = [f"word{i}" for i in range(50)], [f"word{i}" for i in range(49, -1, -1)]
    assert key(set(words)) == key(set(backwards))
    one, day = uuid.uuid4(), datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
    assert key(one, day, decimal.Decimal("1.5")) == key(uuid.UUID(str(one)), day.replace(), decimal.Decimal("1.5"))
    assert key(datetime.timedelta(1), int, len) == key(datetime.timedelta(1), int, len)


def test_different_calls_have_different_keys() -> None:
    """Types count, and so does which argument is where."""
    keys = [
        key(), key(1), key("1"), key(1.0), key(True), key([1]), key((1,)), key({1}), key({1: 1}), key(a=1), key(b=1),
        key(1, 1), key([1, [2]]), key([[1], 2]), key(b"1"), key(None), key("a", "b"), key("ab"), key(["a", "b"]),
        key({"a": "b"}), key(datetime.date(2026, 1, 1)), key(datetime.date(2026, 1, 2)), key([[1, 2]]), key([1], 2),
        key([1, 2]),
        # Each part has its length before it: the end of one is not taken for the beginning of the next.
        key(b"", b"xbuiltins.bytesy"), key(b"builtins.bytesx", b"y"),
        key({(b"", b"xbuiltins.bytesy")}), key({(b"builtins.bytesx", b"y")}),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_methods_of_different_objects_are_different_calls() -> None:
    """A method's object counts as its arguments do."""
    one, same, other = (call_key(Job.create(jobs.Counter(i).up, connection=Redis())) for i in (1, 1, 2))
    assert one == same != other


def test_what_is_more_than_its_name_is_compared_as_a_whole(redis: Redis) -> None:
    """Methods of different objects, and types with different arguments, are different calls: each is enqueued."""
    queue = Queue(connection=redis)
    one, other = functools.partial(max, 1), functools.partial(max, 2)
    for wrapper in (one, other):
        functools.update_wrapper(wrapper, once_jobs.accept)
    arguments: list[Any] = [
        Counter(x=1).most_common, Counter(y=1).most_common, [1].append, [2].append, list[int], list[str], list, one,
        other, str.upper, "a".upper, "b".upper, dict.fromkeys, Counter.fromkeys, re.compile("a"), re.compile("b"),
        len, max,
    ]  # fmt: skip
    jobs = [queue.enqueue(once_jobs.accept, argument, unique_for=60) for argument in arguments]
    assert queue.get_job_ids() == [job.id for job in jobs]
    for first, argument in ((0, Counter(x=1).most_common), (4, list[int]), (10, "a".upper), (14, re.compile("a"))):
        assert queue.enqueue(once_jobs.accept, argument, unique_for=60).id == jobs[first].id


def test_arguments_without_a_value_are_refused() -> None:
    """What cannot be compared by value is refused, not guessed."""
    loop: list[Any] = []
    loop.append(loop)

    class Local:
        pass

    for argument in (threading.Lock(), loop, (i for i in range(3)), lambda: 1, Local, Local()):
        with pytest.raises(ConfigurationError, match="unique_for compares"):
            key(argument)


def test_second_call_returns_the_first_or_raises(redis: Redis) -> None:
    """While a job is queued, an equal call returns it, or raises; another call, or one that does not ask, gets in."""
    queue = Queue(connection=redis)
    first = queue.enqueue(once_jobs.accept, 1, b=2, unique_for=60)
    assert queue.enqueue(once_jobs.accept, 1, b=2, unique_for=60).id == first.id
    assert Queue("other", redis).enqueue(once_jobs.accept, 1, b=2, unique_for="1m").id == first.id
    with pytest.raises(AlreadyQueued) as caught:
        queue.enqueue(once_jobs.accept, 1, b=2, unique_for=60, on_duplicate="raise")
    assert caught.value.job_id == first.id
    assert queue.enqueue(once_jobs.accept, 1, b=3, unique_for=60).id != first.id
    assert queue.enqueue(once_jobs.accept, 1, b=2).id != first.id
    assert queue.count == 3
    (pttl,) = {redis.pttl(call_key(first))}
    assert 0 < pttl <= 60_000


def end_by_success(_redis: Redis, worker: SimpleWorker, _job: Job) -> None:
    worker.work(burst=True)


def end_by_cancel(_redis: Redis, _worker: Any, job: Job) -> None:
    job.cancel()


def end_by_delete(_redis: Redis, _worker: Any, job: Job) -> None:
    job.delete()


def end_by_expiry(redis: Redis, _worker: Any, job: Job) -> None:
    redis.pexpire(job.key, 1)
    wait_until(lambda: not redis.exists(job.key))


def end_by_emptying(_redis: Redis, _worker: Any, _job: Job) -> None:
    StockQueue(connection=_redis).empty()


@pytest.mark.parametrize("end", [end_by_success, end_by_cancel, end_by_delete, end_by_expiry, end_by_emptying])
@pytest.mark.parametrize("function", ["nothing", "fail_unless_file"])
def test_freed_however_the_job_ends(redis: Redis, end: Any, function: str) -> None:
    """The call is free again when its job has ended, by whomever and however: here nobody of rq_pooled had a hand in
    it.
    """
    queue, arguments = Queue(connection=redis), ("/nowhere",) if function == "fail_unless_file" else ()
    call = getattr(claim_jobs, function)
    first = queue.enqueue(call, *arguments, unique_for=600)
    assert queue.enqueue(call, *arguments, unique_for=600).id == first.id
    end(redis, SimpleWorker([StockQueue(connection=redis)], connection=redis), first)
    second = queue.enqueue(call, *arguments, unique_for=600)
    assert second.id != first.id
    assert queue.enqueue(call, *arguments, unique_for=600).id == second.id


def test_held_while_running_and_until_failed_for_good(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A running job, and one that waits for its next try, count; with their last failure they do not."""
    queue, started, gate = Queue(connection=redis), str(tmp_path / "started"), tmp_path / "gate"
    with running_worker(server.url, log=tmp_path / "log"):
        job = queue.enqueue(claim_jobs.wait_for_file, started, str(gate), unique_for=600)
        wait_until(lambda: job.get_status() == JobStatus.STARTED)
        assert queue.enqueue(claim_jobs.wait_for_file, started, str(gate), unique_for=600).id == job.id
        gate.touch()
        wait_until(lambda: job.get_status() == JobStatus.FINISHED)
        assert queue.enqueue(claim_jobs.wait_for_file, started, str(gate), unique_for=600).id != job.id
        failing = queue.enqueue(claim_jobs.fail_unless_file, "/nowhere", unique_for=600, retry=Retry(1, interval=3600))
        wait_until(lambda: failing.get_status() == JobStatus.SCHEDULED)
        assert queue.enqueue(claim_jobs.fail_unless_file, "/nowhere", unique_for=600).id == failing.id
        redis.zadd(named("rq:scheduled:default"), {failing.id: 1})
        wait_until(lambda: failing.get_status() == JobStatus.FAILED)
        assert queue.enqueue(claim_jobs.fail_unless_file, "/nowhere", unique_for=600).id != failing.id


def test_two_workers_and_a_crash(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A job whose worker is killed between its start and its record still counts, is put back, and is free when it has
    run.
    """
    queue, started, gate = Queue(connection=redis), tmp_path / "started", tmp_path / "gate"
    quick = {"RQ_POOLED_HEARTBEAT_INTERVAL": "0.5", "RQ_POOLED_HEARTBEAT_TTL": "3", "RQ_POOLED_STALLED_INTERVAL": "0.5"}
    call = (claim_jobs.wait_for_file, str(started), str(gate))
    with running_worker(server.url, log=tmp_path / "a", **quick) as first:
        job = queue.enqueue(*call, unique_for=600)
        wait_until(started.exists)
        with running_worker(server.url, log=tmp_path / "b", **quick):
            first.kill()
            assert queue.enqueue(*call, unique_for=600).id == job.id
            wait_until(lambda: len(started.read_text().split()) == 2, timeout=30)
            assert queue.enqueue(*call, unique_for=600).id == job.id
            gate.touch()
            wait_until(lambda: job.get_status() == JobStatus.FINISHED)
            assert queue.enqueue(*call, unique_for=600).id != job.id


def test_what_belongs_to_a_job_expires_with_it(redis: Redis) -> None:
    """A job with a ttl that is enqueued once more takes its dependents and dependencies with it when it expires."""
    keys = (named("rq:job:a"), named("rq:job:a:dependents"), named("rq:job::a:dependencies"))
    for key in keys[1:]:
        redis.sadd(key, "another")
    Queue(connection=redis).enqueue(once_jobs.accept, job_id="a", ttl=500, unique_for=60)
    assert all(490 < redis.ttl(key) <= 500 for key in keys)


def test_at_most_for_so_long(redis: Redis) -> None:
    """After unique_for the next call gets in, although the first still waits."""
    queue = Queue(connection=redis)
    first = queue.enqueue(once_jobs.accept, unique_for=0.2)
    wait_until(lambda: not redis.exists(call_key(first)))
    assert queue.enqueue(once_jobs.accept, unique_for=0.2).id != first.id
    assert queue.count == 2


def test_a_thousand_concurrent_enqueues_of_one_call(server: Any, redis: Redis) -> None:
    """Of a thousand equal calls from ten threads one job is made, and everybody gets it."""
    barrier, pool = threading.Barrier(10), Pool(Settings(url=server.url, max_connections=10))

    def enqueue(_number: int) -> set[str]:
        queue = Queue(connection=Redis(connection_pool=pool))
        barrier.wait(20)
        return {queue.enqueue(once_jobs.accept, {"b": 1, "a": 2}, unique_for=600).id for _ in range(100)}

    with ThreadPoolExecutor(10) as threads:
        ids = set.union(*threads.map(enqueue, range(10)))
    pool.disconnect()
    assert StockQueue(connection=redis).get_job_ids() == list(ids)
    assert len(redis.keys(named("rq:job:*"))) == len(ids) == 1


def test_own_id_twice(redis: Redis) -> None:
    """With an id of the caller's own, the same call again is the same job, not a replaced one."""
    queue = Queue(connection=redis)
    first = queue.enqueue(once_jobs.accept, 1, unique_for=60, job_id="mine")
    assert queue.enqueue(once_jobs.accept, 1, unique_for=60, job_id="mine").id == first.id
    assert queue.get_job_ids() == ["mine"]


def test_an_id_that_is_to_be_unique_is_refused_whatever_else_is_asked_for(redis: Redis) -> None:
    """``unique=True`` replaces no job, also where the call is to be unique by its arguments."""
    queue = Queue(connection=redis)
    queue.enqueue(once_jobs.accept, 1, unique_for=60, job_id="mine")
    with pytest.raises(DuplicateJobError):
        queue.enqueue(once_jobs.accept, 2, unique_for=60, job_id="mine", unique=True)
    assert Job.fetch("mine", redis).args == (1,) and queue.get_job_ids() == ["mine"]


@pytest.mark.parametrize("status", list(JobStatus))
def test_a_call_counts_until_its_job_has_ended(redis: Redis, status: JobStatus) -> None:
    """Whoever changes the state of a job, it keeps the same call from being enqueued exactly while it is still to
    end.
    """
    queue = Queue(connection=redis)
    queue.enqueue(once_jobs.accept, 1, unique_for=60, job_id="first").set_status(status)
    over = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED, JobStatus.CREATED)
    second = queue.enqueue(once_jobs.accept, 1, unique_for=60, job_id="second")
    assert second.id == ("second" if status in over else "first")


@pytest.mark.parametrize("asking", [{"unique_for": 600}, {}])
def test_an_id_that_was_used_again_names_another_call(redis: Redis, asking: dict[str, Any]) -> None:
    """A job that ended does not count again because another call has taken its id."""
    queue = Queue(connection=redis)
    queue.enqueue(once_jobs.accept, 1, job_id="sync-7", unique_for=600)
    SimpleWorker([StockQueue(connection=redis)], connection=redis).work(burst=True)
    queue.enqueue(once_jobs.accept, 2, job_id="sync-7", **asking)
    third = queue.enqueue(once_jobs.accept, 1, unique_for=600)
    assert queue.get_job_ids() == ["sync-7", third.id]
    assert queue.enqueue(once_jobs.accept, 1, unique_for=600).id == third.id


def test_what_a_synchronous_job_enqueues_is_its_own(server: Any, redis: Redis) -> None:
    """A job that runs inside its enqueue (is_async=False) does not pass on what that enqueue asked for."""
    job = Queue("outer", redis, is_async=False).enqueue(
        once_jobs.enqueue_three, server.url, once="order-1", unique_for=60
    )
    assert job.get_status() == JobStatus.FINISHED
    inner = Queue("inner", redis)
    ids = inner.get_job_ids() + inner.scheduled_job_registry.get_job_ids()
    assert len(set(ids)) == 3
    assert not [name for name in ids if redis.hexists(named(f"rq:job:{name}"), "rq_pooled_once")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"unique_for": "soon"}, "45s, 10m"),
        ({"unique_for": 0}, "more than 0"),
        ({"unique_for": 1e300}, "100 years"),
        ({"unique_for": 60, "depends_on": "other"}, "depends_on"),
        ({"unique_for": 60, "on_duplicate": True}, "'return' or 'raise'"),
    ],
)
def test_bad_arguments_are_refused_in_words(redis: Redis, arguments: dict[str, Any], words: str) -> None:
    """What cannot be meant or done is refused before anything is sent."""
    queue = Queue(connection=redis)
    with pytest.raises(ConfigurationError, match=words):
        queue.enqueue(claim_jobs.nothing, **arguments)
    with pytest.raises(ConfigurationError, match="leave it out of enqueue_at"):
        queue.enqueue_at(datetime.datetime.now(datetime.timezone.utc), claim_jobs.nothing, unique_for=5)
    with redis.pipeline() as pipeline, pytest.raises(ConfigurationError, match="pipeline"):
        queue.enqueue(claim_jobs.nothing, unique_for=5, pipeline=pipeline)
    assert redis.keys("*") == []


def test_fields_are_what_rq_writes(server: Any, redis: Redis) -> None:
    """A job that was admitted by our script is, but for its own fields, what RQ's enqueue leaves."""
    options: dict[str, Any] = {"job_id": "job", "ttl": 100, "meta": {"a": 1}, "result_ttl": 7, "at_front": True}
    StockQueue(connection=redis).enqueue(once_jobs.accept, 1, **options)
    expected = key_space(redis)
    redis.flushdb()
    Queue(connection=redis, max_length=5).enqueue(once_jobs.accept, 1, **options, unique_for=60, once="k")
    found = key_space(redis)
    for space in (expected, found):
        for field in (b"created_at", b"enqueued_at"):
            space[named("rq:job:job")][0].pop(field)
    fields = found[named("rq:job:job")][0]
    assert (fields.pop(b"rq_pooled_once"), fields.pop(b"rq_pooled_once_ttl")) == (b"k", b"0")
    assert fields.pop(b"rq_pooled_once_of").endswith(b"Z")  # created_at
    found = {name: value for name, value in found.items() if not name.startswith(named("rq_pooled:unique:"))}
    assert found == expected
    with engine(server.url) as ours:
        (claim,) = ours.claim("w").claims
        assert claim.job_id == "job"


#: What may stand in a job's hash, and RQ's own code cannot read.
DAMAGED: list[tuple[str, Any]] = [
    ("origin", b"\xff"),
    ("description", b"\xff"),
    ("timeout", "x"),
    ("result_ttl", "soon"),
    ("dependency_ids", "no json"),
]


@pytest.mark.parametrize(("field", "value"), DAMAGED)
def test_an_earlier_job_that_cannot_be_read_is_named(redis: Redis, field: str, value: Any) -> None:
    """A call that is queued already, or a key that is spent, is told in one line, whatever stands in the job's hash."""
    queue = Queue("q", connection=redis)
    job = queue.enqueue(once_jobs.accept, 1, unique_for=60)
    redis.hset(job.key, field, value)
    redis.set(named("rq_pooled:once:k"), job.id)
    with pytest.raises(AlreadyQueued, match=f"job {job.id} calls .* cannot be read .*: not enqueued") as queued:
        queue.enqueue(once_jobs.accept, 1, unique_for=60)
    with pytest.raises(AlreadySpent, match=f"spent by job {job.id}, which cannot be read .*: not enqueued") as spent:
        queue.enqueue(once_jobs.accept, 1, once="k")
    assert queued.value.job_id == spent.value.job_id == job.id
    assert "\n" not in f"{queued.value}{spent.value}" and len(queue) == 1


def test_an_id_of_any_bytes_has_spent_its_key(redis: Redis, server: Any, tmp_path: Path) -> None:
    """A key that a job of any id has spent stays spent, for enqueues and for jobs that wait already."""
    queue = Queue("q", connection=redis)
    job = queue.enqueue(once_jobs.accept, 1, once="k")
    redis.set(named("rq_pooled:once:k"), b"\xff\n")
    with pytest.raises(AlreadySpent, match=r"spent by job \\xff\\n, which cannot be read"):
        queue.enqueue(once_jobs.accept, 1, once="k")
    with running_worker(server.url, "q", "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0, worker.output()
    assert redis.hget(job.key, "rq_pooled_duplicate_of") == b"\xff\n" and r"spent by job \xff\n" in worker.output()


@pytest.mark.parametrize("options", [{"once": "k"}, {"once": "k", "depends_on": "other"}])
def test_a_spent_key_of_another_type_is_named(redis: Redis, options: dict[str, Any]) -> None:
    """Where the key of a spent-once key has become something else the error names it, and nothing is enqueued."""
    redis.hset(named("rq_pooled:once:k"), "a", "b")
    queue = Queue("q", connection=redis)
    with pytest.raises(ResponseError, match=re.escape(named("WRONGTYPE rq_pooled:once:k is"))):
        queue.enqueue(once_jobs.accept, 1, job_id="j", **options)
    assert not redis.exists(named("rq:job:j"), named("rq:queue:q"))


def test_the_key_of_a_call_of_another_type_counts_for_nothing(redis: Redis) -> None:
    """A job that is no hash, and a key of a call that is no text, keep no call from its queue."""
    queue = Queue("q", connection=redis)
    job = queue.enqueue(once_jobs.accept, 1, unique_for=60)
    redis.delete(job.key)
    redis.set(job.key, "no hash")
    assert queue.enqueue(once_jobs.accept, 1, unique_for=60).id != job.id
    (key,) = redis.keys(named("rq_pooled:unique:*"))
    redis.delete(key)
    redis.lpush(key, "no text")
    queue.enqueue(once_jobs.accept, 1, unique_for=60)
    assert len(queue) == 3 and redis.type(key) == b"string"
