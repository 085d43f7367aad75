"""The short way to record a plain success, against RQ's own handler on the recorder."""

from __future__ import annotations

import functools
import inspect
import time
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import rq
import wrapt
from keys import named
from keyspace import dump
from redis import Redis
from rq import Callback, Queue, Retry
from rq.defaults import UNSERIALIZABLE_RETURN_VALUE_PAYLOAD
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.registry import BaseRegistry
from rq.results import Result
from rq.worker import BaseWorker
from support import running_worker

import rq_pooled
from rq_pooled.horse import warmup
from rq_pooled.horse.recorder import make_recorder
from rq_pooled.horse.short import ShortRun
from rq_pooled.horse.success import ShortWay, is_plain, snapshot
from rq_pooled.horse.worker import HorseMixin
from rq_pooled.pool import Pool
from rq_pooled.rq_api import RQ3, enqueues_dependents


def _run(redis: Redis, url: str, log: Path, worker_class: str, **options: Any) -> tuple[dict[str, Any], int]:
    """Run one job and return the key space after it and how many commands of scripts named the job's keys."""
    redis.flushall()
    began = time.time()
    Queue("default", connection=redis).enqueue("jobs.add", 1, 2, job_id="a", **options)
    with redis.monitor() as monitor:
        with running_worker(url, "--burst", "--name", "w", log=log, worker_class=worker_class, ready=None) as worker:
            assert worker.wait() == 0, worker.output()
        redis.echo("the end")
        commands = 0
        while (seen := monitor.next_command())["command"] != "ECHO the end":
            commands += seen["client_type"] == "lua" and named("rq:job:") in seen["command"]
    redis.hdel(named("rq:worker:w"), "ip_address")  # the port of a connection that is gone
    return dump(redis, began), commands


@pytest.mark.parametrize("options", [{}, {"result_ttl": 30}, {"result_ttl": -1}, {"result_ttl": -5}, {"ttl": 90}])
def test_the_short_way_leaves_what_the_long_way_leaves(
    redis: Redis, server: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    """A plain success recorded the short way leaves the key space that RQ's own handler leaves, with fewer commands."""
    short, few = _run(redis, server.url, tmp_path / "short", "rq_pooled.Worker", **options)
    long, many = _run(redis, server.url, tmp_path / "long", "long_way.LongWayWorker", **options)
    assert short == long
    assert few < many


@pytest.mark.parametrize(
    "change",
    [
        lambda job: setattr(job, "description", "other"),
        lambda job: setattr(job, "result_ttl", 7),
        lambda job: setattr(job, "retries_left", 7),
        lambda job: setattr(job, "repeats_left", 1),
        lambda job: setattr(job, "data", b"other"),
        lambda job: setattr(job, "failure_ttl", 9),
        lambda job: setattr(job, "anything", "new"),
        lambda job: job.retry_intervals.append(9),
        lambda job: job.webhooks.append("new"),
    ],
)
def test_a_job_that_changed_itself_goes_the_long_way(redis: Redis, change: Any) -> None:
    """Whatever a job changes on itself, RQ's handler writes it."""
    job = Queue("default", connection=redis).enqueue("jobs.add", 1, 2, retry=Retry(max=1, interval=[5]))
    raw = redis.hgetall(job.key)
    rebuilt = Job.fetch(job.id, connection=redis)
    before = snapshot(rebuilt)
    assert is_plain(rebuilt, raw, before, 500)
    change(rebuilt)
    assert not is_plain(rebuilt, raw, before, 500)


def test_a_result_that_ends_its_process_is_unserializable(redis: Redis, server: Any, tmp_path: Path) -> None:
    """A job whose result raises SystemExit when it is written has succeeded all the same, as with RQ."""
    results = []
    for number, worker_class in enumerate(("rq.Worker", "rq_pooled.Worker")):
        job = Queue("default", connection=redis).enqueue("jobs.return_what_exits")
        with running_worker(
            server.url, "--burst", log=tmp_path / f"log{number}", worker_class=worker_class, ready=None
        ) as worker:
            assert worker.wait() == 0, worker.output()
        results.append((job.get_status(), job.return_value()))
    assert results[0] == results[1] == (JobStatus.FINISHED, UNSERIALIZABLE_RETURN_VALUE_PAYLOAD)


def test_a_result_is_kept_from_the_end_of_its_callback_on(redis: Redis, server: Any, tmp_path: Path) -> None:
    """The finished registry forgets a job when its hash expires, not earlier by as long as its callback ran."""
    job = Queue("default", connection=redis).enqueue(
        "jobs.add", 1, 2, result_ttl=50, on_success=Callback("jobs.on_success_slow")
    )
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0, worker.output()
    score = redis.zscore(named("rq:finished:default"), job.id)
    assert score is not None and abs(score - (time.time() + redis.pttl(job.key) / 1000)) < 1.5


def test_the_times_of_a_plain_success_are_the_jobs(redis: Redis, server: Any, tmp_path: Path) -> None:
    """Result, hash and the worker's working time tell the same: when the job began, ended, and how long it ran."""
    began = time.time()
    Queue("default", connection=redis).enqueue("time.sleep", 0.3, job_id="a")
    with running_worker(server.url, "--burst", "--name", "w", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0, worker.output()
    ((_id, entry),) = redis.xrange(named("rq:results:a"))
    execution_began, ended = float(entry[b"execution_started_at"]), float(entry[b"execution_ended_at"])
    job = Job.fetch("a", redis)
    assert job.started_at and job.ended_at
    started = job.started_at.timestamp()
    assert began <= execution_began <= started <= started + 0.3 <= ended <= time.time()
    assert abs(job.ended_at.timestamp() - ended) < 0.001
    assert abs(float(redis.hget(named("rq:worker:w"), "total_working_time") or 0) - (ended - started)) < 0.001


def test_a_hash_of_another_version_goes_the_long_way(redis: Redis) -> None:
    """A job's hash that lacks a field which RQ always writes is completed by RQ's handler."""
    job = Queue("default", connection=redis).enqueue("jobs.add", 1, 2)
    raw = redis.hgetall(job.key)
    rebuilt = Job.fetch(job.id, connection=redis)
    del raw[b"group_id"]
    assert not is_plain(rebuilt, raw, snapshot(rebuilt), 500)


def _wraps(function: Any, seen: list[str]) -> Any:
    @functools.wraps(function)
    def around(*args: Any, **kwargs: Any) -> Any:
        seen.append(function.__name__)
        return function(*args, **kwargs)

    return around


def _wrapt(function: Any, seen: list[str]) -> Any:
    def around(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append(function.__name__)
        return wrapped(*args, **kwargs)

    return wrapt.FunctionWrapper(function, around)


def _patch(patched: pytest.MonkeyPatch, owner: type, name: str, wrap: Any, seen: list[str]) -> None:
    """Wrap a function, class method or property as instrumentations do: wrapt takes what the class holds as it is."""
    held = inspect.getattr_static(owner, name)
    if isinstance(held, property):
        patched.setattr(owner, name, property(wrap(held.fget, seen), held.fset, held.fdel))
    elif isinstance(held, (classmethod, staticmethod)) and wrap is _wraps:
        patched.setattr(owner, name, type(held)(wrap(held.__func__, seen)))
    else:
        patched.setattr(owner, name, wrap(held, seen))


_PASSED_OVER = [
    *((BaseWorker, name) for name in ("handle_job_success", "increment_successful_job_count")),
    *((rq.Worker, name) for name in ("handle_job_success", "increment_total_working_time")),
    *((Job, name) for name in ("_handle_success", "set_status", "save", "to_dict", "cleanup")),
    *((Result, "create"), (Result, "save"), (Result, "serialize"), (BaseRegistry, "add")),
    *((rq.Queue, function.__name__) for function in enqueues_dependents(rq.Queue, failed=False)),
]


def _is_open(way: ShortWay, worker_class: type, queue_class: type = rq.Queue) -> bool:
    handler = super(worker_class, worker_class(["q"], connection=Redis())).handle_job_success  # type: ignore[misc]
    return way.is_open(handler, worker_class, queue_class)


@pytest.mark.parametrize("wrap", [_wraps, _wrapt])
@pytest.mark.parametrize(("owner", "name"), _PASSED_OVER)
def test_what_is_wrapped_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, wrap: Any) -> None:
    """The short way closes as soon as an instrumentation wraps a function of RQ's that it passes over, however it does
    it.
    """
    way = ShortWay()
    assert _is_open(way, rq_pooled.Worker)
    with monkeypatch.context() as patched:
        _patch(patched, owner, name, wrap, [])
        assert not _is_open(way, rq_pooled.Worker)
    assert _is_open(way, rq_pooled.Worker)


@pytest.mark.parametrize("wrap", [_wraps, _wrapt])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *((rq.Worker, "perform_job"), (BaseWorker, "procline"), (rq.Queue, "enqueue_dependents")),
        *((Job, name) for name in ("prepare_for_execution", "get_result_ttl", "send_webhooks", "save")),
    ],
)
def test_what_is_wrapped_sees_plain_jobs(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, wrap: Any) -> None:
    """Plain jobs go no short way as soon as a function of RQ's that it passes over is wrapped."""
    worker = rq_pooled.Worker(["q"], connection=Redis())
    worker.__class__ = type("Horse", (HorseMixin, rq_pooled.Worker), {})
    queue, way = rq.Queue("q", connection=Redis()), ShortRun(worker, None)  # type: ignore[arg-type]
    assert way._look(queue)
    with monkeypatch.context() as patched:
        _patch(patched, owner, name, wrap, [])
        assert way._look(queue) is (RQ3 and name == "enqueue_dependents")
    assert way._look(queue)


def test_the_worker_holds_the_execution_of_the_job_that_runs(redis: Redis, server: Any, tmp_path: Path) -> None:
    """Jobs of one kind, of which all but the first go the short way, find their own execution up the stack."""
    queue = Queue("default", connection=redis)
    ran = [queue.enqueue("jobs.held_execution") for _ in range(4)]
    with running_worker(server.url, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0, worker.output()
    found = [job.return_value() for job in ran]
    assert [one[:2] for one in found] == [[job.id, job.id] for job in ran]
    assert len({one[2] for one in found}) == 4


def test_what_a_subclass_overrides_is_not_passed_over() -> None:
    """The short way is closed to worker and queue classes that override what it passes over."""

    class Counting(rq_pooled.Worker):
        def increment_successful_job_count(self, pipeline: Any = None) -> None:
            super().increment_successful_job_count(pipeline)

    name = enqueues_dependents(rq.Queue, failed=False)[0].__name__
    Following = type("Following", (rq.Queue,), {name: lambda self, *args: getattr(super(Following, self), name)(*args)})
    assert not _is_open(ShortWay(), Counting)
    assert not _is_open(ShortWay(), rq_pooled.Worker, Following)
    assert _is_open(ShortWay(), rq_pooled.Worker, rq_pooled.Queue)


def _functions_of(owner: type) -> list[tuple[type, str]]:
    kinds = (FunctionType, classmethod, staticmethod, property)
    return [(owner, name) for name, held in vars(owner).items() if isinstance(held, kinds)]


@pytest.mark.parametrize("wrap", [_wraps, _wrapt])
def test_warming_up_is_no_job_to_instrumentations(redis: Redis, monkeypatch: pytest.MonkeyPatch, wrap: Any) -> None:
    """What wraps any of RQ's functions sees nothing of the job that warms up, which nobody enqueued."""
    pool = Pool(client=redis)
    recorder = make_recorder(Redis, pool, (7, 0, 0))
    ran: list[str] = []
    monkeypatch.setattr(warmup, "is_plain", lambda *_: ran.append("round"))
    for owner, name in [*_functions_of(Job), *_functions_of(Execution)]:
        seen: list[str] = []
        with monkeypatch.context() as patched:
            _patch(patched, owner, name, wrap, seen)
            warmup.warm_up(recorder)
        assert seen == [], name
        if name == "perform":
            assert ran == ["round"] * warmup.ROUNDS, "RQ's own function below the wrapper is used"
        ran.clear()
    pool.disconnect()
