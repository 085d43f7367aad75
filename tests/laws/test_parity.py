"""After the same jobs, Redis holds what stock RQ leaves in it: every key, field, registry and time to live.

This is the alarm for changes in RQ. Each scenario runs twice on an empty database, once with RQ's own worker and once
with ours, each in a process of its own; the two dumps have to be equal.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import rq
from jobs import CustomJob, Exploding
from keys import named
from keyspace import differences, dump
from large_jobs import noise
from redis import Redis
from rq import Callback, Queue, Repeat, Retry
from rq.command import send_stop_job_command
from rq.group import Group
from rq.job import Dependency, Job, JobStatus
from rq.scheduler import RQScheduler
from rq.webhook import Webhook
from support import wait_until

import rq_pooled
from rq_pooled.rq_api import RQ3

QUEUES = ("default", "other")
NAME = "the-worker"


class Side:
    """One of the two that are compared: a database and a kind of worker."""

    def __init__(
        self, redis: Redis, url: str, worker_class: type, log: Path, arguments: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.redis, self.url, self.worker_class, self.log = redis, url, worker_class, log
        self.arguments = arguments
        self.ours = issubclass(worker_class, rq_pooled.Worker)
        self.began = time.time()

    def queue(self, name: str = "default", **kwargs: Any) -> Queue:
        return Queue(name, connection=self.redis, **kwargs)

    def work(self, *queues: str, **kwargs: Any) -> None:
        """Run a worker in a process of its own until the queues are empty."""
        with self.working(*queues, **kwargs):
            pass

    @contextmanager
    def working(self, *queues: str, **kwargs: Any) -> Iterator[None]:
        """Run a worker beside the block; both have to end."""
        self.redis.delete(named(f"rq:worker:{NAME}"))  # an earlier one's grave would add to its counts
        pid = os.fork()
        if pid == 0:
            self._be_worker(queues or QUEUES, kwargs)
        try:
            yield
        finally:
            _, status = os.waitpid(pid, 0)
        assert status == 0, self.log.read_text()

    def _be_worker(self, queues: tuple[str, ...], kwargs: dict[str, Any]) -> None:
        status = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)  # pytest's, which must not go off here
            faulthandler.disable()  # also pytest's; one job ends by SIGSEGV
            with open(self.log, "a") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            worker = self.worker_class(
                list(queues), name=NAME, connection=Redis.from_url(self.url), **kwargs, **self.arguments
            )
            worker.work(burst=True, logging_level="INFO")
            status = 0
        except BaseException:  # noqa: BLE001 - a forked child must not return into pytest
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def make_due(self, queue: str = "default") -> None:
        """Let the time of all scheduled jobs have come."""
        for job_id in self.redis.zrange(named(f"rq:scheduled:{queue}"), 0, -1):
            self.redis.zadd(named(f"rq:scheduled:{queue}"), {job_id: time.time() - 1})

    def promote(self, *queues: str) -> None:
        """Move due jobs to their queues, as RQ's scheduler does or as our worker does; run none."""
        if self.ours:
            self.redis.set(named("rq:suspended"), 1)
            self.work(*queues)
            self.redis.delete(named("rq:suspended"))
        else:
            scheduler = RQScheduler(list(queues or QUEUES), connection=self.redis)
            scheduler.acquire_locks()
            scheduler.enqueue_scheduled_jobs()
            scheduler.release_locks()
            scheduler.connection.connection_pool.disconnect()
            self.work("nobody-enqueues-here")
        self.redis.delete(named(f"rq:worker:{NAME}"))  # who moved them says nothing about the jobs

    def wait_started(self, job_id: str) -> None:
        wait_until(lambda: self.redis.exists(f"started:{job_id}"), what=f"start of {job_id}")

    def stop(self, job_id: str) -> None:
        self.wait_started(job_id)
        send_stop_job_command(self.redis, job_id)


Scenario = Callable[[Side], None]
SCENARIOS: dict[str, tuple[Scenario, type]] = {}


def scenario(function: Scenario) -> Scenario:
    """A scenario that RQ runs with its SimpleWorker."""
    SCENARIOS[function.__name__] = (function, rq.SimpleWorker)
    return function


def forking(function: Scenario) -> Scenario:
    """A scenario that needs RQ's forking worker."""
    SCENARIOS[function.__name__] = (function, rq.Worker)
    return function


def both(redis: Redis, url: str, tmp_path: Path, play: Scenario, stock: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Play with RQ's worker, then with ours; return what each leaves."""
    dumps = []
    for worker_class in (stock, rq_pooled.Worker):
        redis.flushall()
        side = Side(redis, url, worker_class, tmp_path / f"{worker_class.__module__}.log")
        play(side)
        dumps.append(dump(redis, side.began))
    return dumps[0], dumps[1]


# -- results ---------------------------------------------------------------------------------------------------------


@scenario
def plain(side: Side) -> None:
    side.queue().enqueue("jobs.nothing", job_id="a")
    side.work()


@scenario
def with_result(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a", description="one and two", meta={"who": "me"})
    side.queue().enqueue("jobs.big", 100_000, job_id="b", timeout=1234, result_ttl=600)
    side.queue("other").enqueue("jobs.add", 1, b=2, job_id="c")
    side.work()


@scenario
def result_ttls(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="gone", result_ttl=0)
    side.queue().enqueue("jobs.add", 1, 2, job_id="stays", result_ttl=-1)
    side.queue().enqueue("jobs.add", 1, 2, job_id="a-while", result_ttl=77)
    side.work()


@scenario
def default_result_ttl(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a")
    side.work(default_result_ttl=99)


@scenario
def default_result_ttl_0(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a")
    side.queue().enqueue("jobs.fail", job_id="b")
    side.work(default_result_ttl=0)


@scenario
def result_ttl_0_deletes_the_dependents_key(side: Side) -> None:
    job = side.queue().enqueue("jobs.add", 1, 2, job_id="a", result_ttl=0)
    side.queue().enqueue("jobs.add", 1, 2, job_id="b", depends_on=job)
    side.work()


@scenario
def ttl(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a", ttl=300)
    side.queue().enqueue("jobs.fail", job_id="b", ttl=300)
    side.queue().enqueue("jobs.fail_unless_last", job_id="c", ttl=300, retry=Retry(max=1))
    side.queue().enqueue("jobs.add", 1, 2, job_id="d", ttl=300, result_ttl=-1)
    side.queue().enqueue("jobs.fail", job_id="e", ttl=300, failure_ttl=-1)
    side.queue().enqueue("jobs.fail", job_id="f", ttl=300, retry=Retry(max=1, interval=60))
    side.queue().enqueue("jobs.add", 1, 2, job_id="g", ttl=300, repeat=Repeat(times=1, interval=60), result_ttl=-1)
    side.work()


@scenario
def unserialisable_result(side: Side) -> None:
    side.queue().enqueue("jobs.return_lock", job_id="a")
    side.work()


@scenario
def json_serializer(side: Side) -> None:
    queue = side.queue(serializer="rq.serializers.JSONSerializer")
    queue.enqueue("jobs.add", 1, 2, job_id="a", meta={"who": "me"})
    queue.enqueue("jobs.fail", job_id="b")
    queue.enqueue("jobs.return_set", job_id="c")
    first = queue.enqueue("jobs.meta", True, job_id="d")
    queue.enqueue("jobs.add", 1, 2, job_id="e", depends_on=first)
    side.work(serializer="rq.serializers.JSONSerializer")


@scenario
def coroutine_method_and_class(side: Side) -> None:
    from jobs import Counter

    side.queue().enqueue("jobs.coroutine", 4, job_id="a")
    side.queue().enqueue(Counter(3).up, by=2, job_id="b")
    side.queue().enqueue("jobs.Counter", 3, job_id="c")
    side.work()


@scenario
def custom_job_class(side: Side) -> None:
    queue = side.queue(job_class=CustomJob)
    queue.enqueue("jobs.add", 1, 2, job_id="a")
    queue.enqueue("jobs.fail", job_id="b")
    side.work(job_class=CustomJob)


# -- failures --------------------------------------------------------------------------------------------------------


@scenario
def failing(side: Side) -> None:
    side.queue().enqueue("jobs.fail", job_id="a")
    side.queue().enqueue("jobs.fail", "\N{SNOWMAN} " * 1000, job_id="b", failure_ttl=88)
    side.queue().enqueue("jobs.fail", job_id="c", failure_ttl=-1)
    side.queue().enqueue("jobs.fail", job_id="d", failure_ttl=0)
    side.work()


@scenario
def many_of_one_kind(side: Side) -> None:
    """From the second job on a horse knows their kind, and runs them the short way as far as they are plain."""
    queue, calls = side.queue(), 0
    for _ in range(2):
        for call in (
            *(("jobs.nothing",), ("jobs.add", 1, 2), ("jobs.fail",), ("jobs.add", "wrong"), ("jobs.leave", 0)),
            *(("jobs.return_set",), ("jobs.return_lock",), ("jobs.return_what_exits",), ("jobs.change_itself",)),
            *(("jobs.meta", True), ("jobs.meta", False, True), ("jobs.save_itself",), ("jobs.set_own_retries", 1)),
            *(("jobs.keep_result_for", 7), ("jobs.return_retry", 1), ("jobs.coroutine", 1)),
            *(("no_such_module.function",), ("jobs.no_such_function",), ("jobs.length", Exploding())),
            *(("builtins.len", b"four"), ("jobs.big", 2_000_000)),
            ("jobs.enqueue_dependents", f"d{calls}"),
        ):
            queue.enqueue(*call, job_id=f"j{calls:03}")
            calls += 1
    side.work()


@scenario
def cannot_be_imported(side: Side) -> None:
    side.queue().enqueue("no_such_module.function", job_id="a")
    side.queue().enqueue("jobs.no_such_function", job_id="b")
    side.queue().enqueue("jobs.add", "wrong", job_id="c")
    side.work()


@scenario
def leaves_by_system_exit(side: Side) -> None:
    side.queue().enqueue("jobs.leave", 0, job_id="a")
    side.queue().enqueue("jobs.leave", 3, job_id="b", on_failure=Callback("jobs.on_failure"))
    side.queue().enqueue("jobs.add", 1, 2, job_id="c", on_success=Callback("jobs.on_any_leave"))
    side.queue().enqueue("jobs.fail", job_id="d", on_failure=Callback("jobs.on_any_leave"), retry=Retry(max=1))
    side.work()


@scenario
def no_timeout(side: Side) -> None:
    side.queue(default_timeout=-1).enqueue("jobs.add", 1, 2, job_id="a")
    side.queue(default_timeout="2h").enqueue("jobs.fail", job_id="b")
    side.work()


@scenario
def cannot_be_deserialised(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a")
    side.redis.hset(named("rq:job:a"), "data", b"no pickle")
    side.queue().enqueue("jobs.length", Exploding(), job_id="b")
    side.work()


@scenario
def timed_out(side: Side) -> None:
    side.queue().enqueue("jobs.hang_politely", "how", job_id="a", job_timeout=1)
    side.work()


@scenario
def exception_handlers(side: Side) -> None:
    side.queue().enqueue("jobs.fail", job_id="a")
    side.work(exception_handlers=[_note_exception], disable_default_exception_handler=False)


@scenario
def default_handler_disabled(side: Side) -> None:
    side.queue().enqueue("jobs.fail", job_id="a")
    side.work(exception_handlers=[_note_exception], disable_default_exception_handler=True)


def _note_exception(job: Job, kind: Any, value: Any, _traceback: Any) -> bool:
    job.connection.rpush("handled", f"{job.id} {kind.__name__} {value}")
    job.meta["handled"] = True
    job.save_meta()
    return True


# -- large arguments and results -------------------------------------------------------------------------------------


@scenario
def large_arguments(side: Side) -> None:
    data, queue = noise(3_000_000), side.queue()
    queue.enqueue("large_jobs.digest", data, job_id="plain")
    queue.enqueue("large_jobs.in_meta", data, 10, job_id="long-way", meta={"who": "me"})
    queue.enqueue("large_jobs.failing", data, job_id="fails", on_failure=Callback("large_jobs.on_end"), failure_ttl=99)
    queue.enqueue("large_jobs.failing", data, job_id="again", retry=Retry(max=2, interval=[0, 60]))
    queue.enqueue("jobs.nothing", noise(1_000_000), meta={"more": noise(1_500_000)}, job_id="meta", result_ttl=-1)
    queue.enqueue("large_jobs.digest", data, job_id="gone", result_ttl=0)
    queue.enqueue("large_jobs.digest", data, job_id="repeats", repeat=Repeat(times=1, interval=60))
    first = queue.enqueue("large_jobs.digest", data, job_id="first", on_success=Callback("large_jobs.on_end"))
    queue.enqueue("large_jobs.digest", data, job_id="second", depends_on=first)
    queue.enqueue("large_jobs.digest", data, job_id="late", depends_on=Dependency(["plain", "second"]))
    side.work()


@scenario
def large_results(side: Side) -> None:
    queue = side.queue()
    queue.enqueue("large_jobs.returning", 3_000_000, job_id="plain")
    queue.enqueue("large_jobs.returning", 3_000_000, job_id="kept", result_ttl=-1, on_success=Callback("jobs.nothing"))
    first = queue.enqueue("large_jobs.returning", 3_000_000, job_id="first")
    queue.enqueue("large_jobs.returning", 2_000_000, job_id="second", depends_on=first)
    queue.enqueue("large_jobs.in_meta", b"x", 2_000_000, job_id="meta")
    queue.enqueue("large_jobs.in_meta", noise(2_000_000), 2_000_000, job_id="both")
    queue.enqueue("large_jobs.failing", b"x", 4_000_000, job_id="fails", retry=Retry(max=1))
    queue.enqueue("large_jobs.returning", 3_000_000, job_id="gone", result_ttl=0)
    side.work()


@forking
def horse_dies_of_large_arguments(side: Side) -> None:
    side.queue().enqueue("large_jobs.die", noise(3_000_000), job_id="a", on_failure=Callback("large_jobs.on_end"))
    side.queue().enqueue("large_jobs.die", noise(3_000_000), job_id="b", retry=Retry(max=1, interval=60))
    side.work()


# -- retries and repeats ---------------------------------------------------------------------------------------------


@scenario
def retry_at_once(side: Side) -> None:
    side.queue().enqueue("jobs.fail", job_id="a", retry=Retry(max=2))
    side.queue().enqueue("jobs.fail_unless_last", job_id="b", retry=Retry(max=2))
    side.work()


@scenario
def retry_delayed(side: Side) -> None:
    side.queue().enqueue("jobs.fail", job_id="a", retry=Retry(max=3, interval=[60, 120]))
    side.work()


@scenario
def retry_delayed_to_the_end(side: Side) -> None:
    side.queue().enqueue("jobs.fail", job_id="a", retry=Retry(max=3, interval=[60, 120]))
    side.queue().enqueue("jobs.fail_unless_last", job_id="b", retry=Retry(max=1, interval=60), ttl=500)
    for _ in range(4):
        side.work()
        side.make_due()
        side.promote()
    side.work()


@scenario
def retry_at_front(side: Side) -> None:
    side.queue().enqueue("jobs.fail_unless_last", job_id="a", retry=Retry(max=1, enqueue_at_front=True), result_ttl=-1)
    side.queue().enqueue("jobs.add", 1, 2, job_id="b")
    side.work()


@scenario
def retry_delayed_at_front(side: Side) -> None:
    side.queue().enqueue("jobs.fail", job_id="a", retry=Retry(max=1, interval=60, enqueue_at_front=True))
    side.work()
    side.queue().enqueue("jobs.add", 1, 2, job_id="b")
    side.make_due()
    side.promote()


@scenario
def returned_retry(side: Side) -> None:
    side.queue().enqueue("jobs.return_retry", 2, job_id="exceeded")
    side.queue().enqueue("jobs.return_retry", 2, 60, job_id="delayed")
    side.queue().enqueue("jobs.return_retry_once", job_id="once")
    side.queue().enqueue("jobs.return_retry", 2, 0, True, job_id="front", failure_ttl=66)
    side.work()


@scenario
def returned_retry_with_dependents(side: Side) -> None:
    exceeded = side.queue().enqueue("jobs.return_retry", 1, job_id="exceeded")
    side.queue().enqueue("jobs.add", 1, 2, job_id="never", depends_on=exceeded)
    once = side.queue().enqueue("jobs.return_retry_once", job_id="once")
    side.queue().enqueue("jobs.add", 1, 2, job_id="after", depends_on=once)
    side.work()


@scenario
def repeat_at_once(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a", repeat=Repeat(times=3))
    side.queue().enqueue("jobs.add", 1, 2, job_id="b", repeat=Repeat(times=1), result_ttl=0)
    side.work()


@scenario
def repeat_delayed(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a", repeat=Repeat(times=2, interval=[60, 120]))
    side.work()


@scenario
def repeat_delayed_to_the_end(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a", repeat=Repeat(times=2, interval=60), ttl=400)
    for _ in range(2):
        side.work()
        side.make_due()
        side.promote()
    side.work()


@scenario
def repeat_of_a_failing_job(side: Side) -> None:
    side.queue().enqueue("jobs.fail", job_id="a", repeat=Repeat(times=3))
    side.work()


@scenario
def repeat_with_dependents(side: Side) -> None:
    job = side.queue().enqueue("jobs.add", 1, 2, job_id="a", repeat=Repeat(times=1))
    side.queue().enqueue("jobs.add", 1, 2, job_id="b", depends_on=job)
    side.work()


# -- scheduled -------------------------------------------------------------------------------------------------------


@scenario
def scheduled_and_promoted(side: Side) -> None:
    side.queue().enqueue_in(timedelta(seconds=60), "jobs.add", 1, 2, job_id="a")
    side.queue().enqueue_in(timedelta(seconds=60), "jobs.add", 1, 2, job_id="ttl", ttl=300)
    side.queue().enqueue_in(timedelta(seconds=60), "jobs.add", 1, 2, job_id="timeout", job_timeout=33)
    side.queue().enqueue_in(timedelta(seconds=60), "jobs.add", 1, 2, job_id="front", at_front=True)
    side.queue("other").enqueue_in(timedelta(seconds=60), "jobs.add", 1, 2, job_id="c")
    side.queue().enqueue("jobs.add", 1, 2, job_id="waiting")
    side.make_due()
    side.make_due("other")
    side.promote()


@scenario
def scheduled_not_due(side: Side) -> None:
    side.queue().enqueue_in(timedelta(seconds=60), "jobs.add", 1, 2, job_id="a")
    side.promote()


@scenario
def scheduled_ghost(side: Side) -> None:
    side.queue().enqueue_in(timedelta(seconds=60), "jobs.add", 1, 2, job_id="a")
    side.make_due()
    side.redis.delete(named("rq:job:a"))
    side.promote()


@scenario
def scheduled_and_run(side: Side) -> None:
    side.queue().enqueue_in(timedelta(seconds=60), "jobs.add", 1, 2, job_id="a")
    side.queue().enqueue_in(timedelta(seconds=60), "jobs.fail", job_id="b")
    side.make_due()
    side.promote()
    side.work()


# -- dependents ------------------------------------------------------------------------------------------------------


@scenario
def dependents(side: Side) -> None:
    job = side.queue().enqueue("jobs.add", 1, 2, job_id="a")
    side.queue().enqueue("jobs.add", 1, 2, job_id="same", depends_on=job)
    side.queue("other").enqueue("jobs.add", 1, 2, job_id="other", depends_on=job)
    side.queue("nobody").enqueue("jobs.add", 1, 2, job_id="nobody", depends_on=job)
    side.queue().enqueue("jobs.add", 1, 2, job_id="second", depends_on="same")
    side.work()


@scenario
def dependents_at_front(side: Side) -> None:
    """One dependent per queue: RQ keeps dependents in a set, so the order of two in one queue is chance."""
    job = side.queue("other").enqueue("jobs.add", 1, 2, job_id="a")
    for name in ("nobody", "nobody-else"):
        dependency = Dependency(jobs=[job], enqueue_at_front=True)
        side.queue(name).enqueue("jobs.add", 1, 2, job_id=f"first-{name}", depends_on=dependency)
        side.queue(name).enqueue("jobs.add", 1, 2, job_id=f"waiting-{name}")
    side.work("other")


@scenario
def dependent_with_two_parents(side: Side) -> None:
    parents = [side.queue().enqueue("jobs.add", 1, 2, job_id=name) for name in ("a", "b")]
    side.queue().enqueue("jobs.add", 1, 2, job_id="child", depends_on=parents)
    late = side.queue("nobody").enqueue("jobs.add", 1, 2, job_id="late")
    side.queue().enqueue("jobs.add", 1, 2, job_id="waits", depends_on=[parents[0], late])
    side.work()


@scenario
def dependents_of_failing_jobs(side: Side) -> None:
    job = side.queue().enqueue("jobs.fail", job_id="a")
    side.queue().enqueue("jobs.add", 1, 2, job_id="never", depends_on=job)
    tolerant = Dependency(jobs=[job], allow_failure=True)
    side.queue().enqueue("jobs.add", 1, 2, job_id="anyway", depends_on=tolerant)
    side.queue().enqueue("jobs.fail", job_id="fails-too", depends_on=tolerant)
    good = side.queue().enqueue("jobs.add", 1, 2, job_id="good")
    both_of_them = Dependency(jobs=[job, good], allow_failure=True)
    side.queue().enqueue("jobs.add", 1, 2, job_id="of-both", depends_on=both_of_them)
    side.work()


@scenario
def dependents_of_a_retried_job(side: Side) -> None:
    job = side.queue().enqueue("jobs.fail_unless_last", job_id="a", retry=Retry(max=2))
    side.queue().enqueue("jobs.add", 1, 2, job_id="b", depends_on=job)
    side.work()


@scenario
def dependents_deleted_or_cancelled(side: Side) -> None:
    job = side.queue().enqueue("jobs.add", 1, 2, job_id="a")
    deleted = side.queue().enqueue("jobs.add", 1, 2, job_id="deleted", depends_on=job)
    cancelled = side.queue().enqueue("jobs.add", 1, 2, job_id="cancelled", depends_on=job)
    side.queue().enqueue("jobs.add", 1, 2, job_id="expired", depends_on=job)
    deleted.delete()
    cancelled.cancel()
    side.redis.delete(named("rq:job:expired"))
    side.work()


@scenario
def dependents_added_while_it_runs(side: Side) -> None:
    side.queue().enqueue("jobs.enqueue_dependents", "b", "c", job_id="a")
    side.queue().enqueue("jobs.enqueue_dependents", args=("e",), kwargs={"queue": "other"}, job_id="d")
    side.work()


@scenario
def dependents_added_to_others_while_it_runs(side: Side) -> None:
    job = side.queue().enqueue("jobs.enqueue_dependents", "c", job_id="a")
    side.queue().enqueue("jobs.add", 1, 2, job_id="b", depends_on=job)
    side.work()


@scenario
def dependents_added_while_it_fails(side: Side) -> None:
    side.queue().enqueue("jobs.enqueue_dependents", args=("b",), kwargs={"fails": True}, job_id="a")
    side.queue().enqueue("jobs.enqueue_tolerant_dependent", "d", job_id="c")
    side.work()


@scenario
def dependents_added_while_it_runs_result_ttl_0(side: Side) -> None:
    side.queue().enqueue("jobs.enqueue_dependents", "b", job_id="a", result_ttl=0)
    side.work()


# -- callbacks -------------------------------------------------------------------------------------------------------


@scenario
def callbacks(side: Side) -> None:
    kwargs: dict[str, Any] = {
        "on_success": Callback("jobs.on_success"),
        "on_failure": Callback("jobs.on_failure", timeout=30),
    }
    side.queue().enqueue("jobs.add", 1, 2, job_id="a", **kwargs)
    side.queue().enqueue("jobs.fail", job_id="b", **kwargs)
    side.queue().enqueue("jobs.fail", job_id="c", retry=Retry(max=1), **kwargs)
    side.queue().enqueue("jobs.return_retry", 1, job_id="d", **kwargs)
    side.queue().enqueue("jobs.add", 1, 2, job_id="e", on_success=Callback("jobs.on_success_save_meta"))
    side.work()


@scenario
def callbacks_that_raise(side: Side) -> None:
    success, failure = Callback("jobs.on_success_raise"), Callback("jobs.on_failure_raise")
    side.queue().enqueue("jobs.add", 1, 2, job_id="a", on_success=success)
    side.queue().enqueue("jobs.add", 1, 2, job_id="b", on_success=success, on_failure=Callback("jobs.on_failure"))
    side.queue().enqueue("jobs.fail", job_id="c", on_failure=failure)
    side.queue().enqueue("jobs.add", 1, 2, job_id="d", on_success=success, retry=Retry(max=1))
    side.queue().enqueue("jobs.add", 1, 2, job_id="e", on_success=Callback("jobs.no_such_callback"))
    job = side.queue().enqueue("jobs.add", 1, 2, job_id="f", on_success=success)
    side.queue().enqueue("jobs.add", 1, 2, job_id="g", depends_on=job)
    side.work()


@scenario
def callback_timeout(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a", on_success=Callback("jobs.on_success_hang", timeout=1))
    side.work()


@scenario
def webhooks(side: Side) -> None:
    with _web_server() as url:
        hooks = [Webhook(url, "finished"), Webhook(url, "failed", method="POST", headers={"X": "y"}, timeout=3)]
        side.queue().enqueue("jobs.add", 1, 2, job_id="a", webhooks=hooks)
        side.queue().enqueue("jobs.fail", job_id="b", webhooks=hooks)
        side.work()
    for name in ("a", "b"):  # the port differs
        side.redis.hset(
            named(f"rq:job:{name}"),
            "webhooks",
            side.redis.hget(named(f"rq:job:{name}"), "webhooks").replace(url.encode(), b"http://server/"),
        )


@contextmanager
def _web_server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_args: Any) -> None:
            pass

    # Served by a process: a thread here would be copied by the fork of the worker.
    server = HTTPServer(("127.0.0.1", 0), Handler)
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, 0)
        server.serve_forever()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        server.server_close()


# -- what a job does to itself ---------------------------------------------------------------------------------------


@scenario
def changes_its_own_result_ttl(side: Side) -> None:
    for seconds in (0, -1, 55):
        side.queue().enqueue("jobs.keep_result_for", seconds, job_id=f"a{seconds}", result_ttl=10)
    side.work()


@scenario
def changes_its_own_retries(side: Side) -> None:
    side.queue().enqueue("jobs.set_own_retries", 1, job_id="gets-one")
    side.queue().enqueue("jobs.set_own_retries", 0, job_id="gives-up", retry=Retry(max=3))
    side.work()


@scenario
def changes_other_fields_of_itself(side: Side) -> None:
    side.queue().enqueue("jobs.change_itself", job_id="a")
    side.work()


@scenario
def meta_saved_and_unsaved(side: Side) -> None:
    for save in (True, False):
        for fails in (True, False):
            side.queue().enqueue("jobs.meta", save, fails, job_id=f"{save}-{fails}", meta={"old": 1})
    side.work()


@scenario
def saves_itself(side: Side) -> None:
    side.queue().enqueue("jobs.save_itself", job_id="a", ttl=100)
    side.work()


@scenario
def group(side: Side) -> None:
    group = Group.create(side.redis, name="the-group")
    datas = [Queue.prepare_data("jobs.add", (1, 2), job_id=name) for name in ("a", "b")]
    datas.append(Queue.prepare_data("jobs.fail", job_id="c"))
    datas.append(Queue.prepare_data("jobs.add", (1, 2), job_id="d", result_ttl=0))
    group.enqueue_many(side.queue(), datas)
    side.work()
    assert {job.id for job in group.get_jobs()} == {"a", "b", "c"}


# -- odd ids and queues ----------------------------------------------------------------------------------------------


@scenario
def stale_ids(side: Side) -> None:
    for name in ("a", "b", "c"):
        side.queue().enqueue("jobs.add", 1, 2, job_id=name)
    side.redis.delete(named("rq:job:b"))
    side.work()


@scenario
def one_queue_only(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a")
    side.queue().enqueue("jobs.fail", job_id="b", retry=Retry(max=1))
    side.queue("other").enqueue("jobs.add", 1, 2, job_id="c")
    side.work("default")


@scenario
def nothing_to_do(side: Side) -> None:
    side.work()


@scenario
def moved_to_another_queue(side: Side) -> None:
    """An id that lies in another queue than the job's origin says.

    Two queues, since with one RQ leaves such ids in the intermediate list of the queue that it popped from.
    """
    side.queue("other").enqueue("jobs.add", 1, 2, job_id="a")
    side.queue("other").enqueue("jobs.fail", job_id="b")
    side.queue("other").enqueue("jobs.fail", job_id="c", retry=Retry(max=1))
    for _ in range(3):
        side.redis.lmove(named("rq:queue:other"), named("rq:queue:default"), "LEFT", "RIGHT")
    side.work("default", "nobody")


@scenario
def requeued(side: Side) -> None:
    side.queue().enqueue("jobs.fail", job_id="a")
    side.work()
    side.queue().failed_job_registry.requeue("a")
    side.work()


@scenario
def reenqueued_with_old_results(side: Side) -> None:
    job = side.queue().enqueue("jobs.add", 1, 2, job_id="a")
    for _ in range(3):
        side.work()
        side.queue().enqueue_job(job)
    side.work()


# -- stopped, killed, timed out: against RQ's forking worker ---------------------------------------------------------


@forking
def forked_plain(side: Side) -> None:
    side.queue().enqueue("jobs.add", 1, 2, job_id="a")
    side.queue().enqueue("jobs.fail", job_id="b")
    side.work()


@forking
def stopped(side: Side) -> None:
    job = side.queue().enqueue("jobs.hang", "started:a", job_id="a", meta={"old": 1})
    side.queue().enqueue("jobs.add", 1, 2, job_id="b", depends_on=job)
    with side.working():
        side.stop("a")
    side.redis.delete("started:a")


@forking
def stopped_with_retries_and_callbacks(side: Side) -> None:
    side.queue().enqueue(
        "jobs.hang",
        "started:a",
        job_id="a",
        retry=Retry(max=2),
        failure_ttl=44,
        on_stopped=Callback("jobs.on_stopped"),
        on_failure=Callback("jobs.on_failure"),
    )
    with side.working():
        side.stop("a")
    side.redis.delete("started:a")


@forking
def exits(side: Side) -> None:
    job = side.queue().enqueue("jobs.exit_with", 3, job_id="a", on_failure=Callback("jobs.on_failure"))
    tolerant = Dependency(jobs=[job], allow_failure=True)
    side.queue().enqueue("jobs.add", 1, 2, job_id="anyway", depends_on=tolerant)
    side.queue().enqueue("jobs.exit_with", 3, job_id="again", retry=Retry(max=1))
    side.queue().enqueue("jobs.exit_with", 3, job_id="later", retry=Retry(max=1, interval=60))
    side.work()


@forking
def exception_handler_that_raises(side: Side) -> None:
    side.queue().enqueue("jobs.fail", job_id="a")
    side.queue().enqueue("jobs.fail", job_id="b", retry=Retry(max=1))
    side.queue().enqueue("jobs.add", 1, 2, job_id="c")
    side.work(exception_handlers=[_raise])


def _raise(*_error: Any) -> None:
    raise RuntimeError("the exception handler failed")


@forking
def killed_with_dependents_and_repeats(side: Side) -> None:
    job = side.queue().enqueue("jobs.exit_with", 3, job_id="a", retry=Retry(max=1), repeat=Repeat(times=2), ttl=300)
    side.queue().enqueue("jobs.add", 1, 2, job_id="never", depends_on=job)
    side.queue().enqueue("jobs.add", 1, 2, job_id="anyway", depends_on=Dependency(jobs=[job], allow_failure=True))
    side.work()


@forking
def stopped_with_a_dependent_that_may(side: Side) -> None:
    job = side.queue().enqueue("jobs.hang", "started:a", job_id="a")
    side.queue().enqueue("jobs.add", 1, 2, job_id="b", depends_on=Dependency(jobs=[job], allow_failure=True))
    with side.working():
        side.stop("a")
    side.redis.delete("started:a")


@forking
def stuck_in_the_intermediate_queue(side: Side) -> None:
    """A stock worker died between taking these ids and registering their execution."""
    side.queue().enqueue("jobs.add", 1, 2, job_id="a", on_failure=Callback("jobs.on_failure"))
    side.queue().enqueue("jobs.add", 1, 2, job_id="again", retry=Retry(max=1, interval=60))
    side.queue().enqueue("jobs.add", 1, 2, job_id="new")
    side.queue().enqueue("jobs.add", 1, 2, job_id="ghost")
    for job_id in ("a", "again", "new", "ghost"):
        side.redis.lmove(named("rq:queue:default"), named("rq:queue:default:intermediate"), "LEFT", "LEFT")
        if job_id in ("a", "again"):
            side.redis.set(named(f"rq:queue:default:intermediate:first_seen:{job_id}"), time.time() - 90)
    side.redis.delete(named("rq:job:ghost"))
    side.work()
    for key in side.redis.keys("*:first_seen:*"):
        assert float(side.redis.get(key)) > 1e9
        side.redis.set(key, "a time", keepttl=True)


@forking
def killed(side: Side) -> None:
    side.queue().enqueue("jobs.kill_itself", int(signal.SIGKILL), job_id="a")
    side.queue().enqueue("jobs.kill_itself", int(signal.SIGSEGV), job_id="b", failure_ttl=55)
    side.work()


@forking
def forked_timeout(side: Side) -> None:
    side.queue().enqueue("jobs.hang_politely", "how", job_id="a", job_timeout=1, on_failure=Callback("jobs.on_failure"))
    side.work()


@pytest.mark.parametrize("name", SCENARIOS)
def test_leaves_what_rq_leaves(name: str, redis: Redis, server: Any, tmp_path: Path) -> None:
    """Whatever kind of job ran, the key space equals the one that RQ's own worker leaves."""
    play, stock = SCENARIOS[name]
    theirs, ours = both(redis, server.url, tmp_path, play, stock)
    assert not [key for key in ours if key.startswith(named("rq_pooled:"))]
    assert differences(theirs, ours) == []


#: Scenarios in which the order of jobs decides nothing.
UNORDERED = ("with_result", "result_ttls", "ttl", "failing", "retry_delayed", "repeat_delayed", "dependents", "group")
UNORDERED += ("meta_saved_and_unsaved", "saves_itself", "dependents_added_while_it_fails", "json_serializer")


@pytest.mark.parametrize("settings", [{"concurrency": 3}, {"max_jobs_per_horse": 1}], ids=["3-horses", "fresh-horses"])
@pytest.mark.parametrize("name", UNORDERED)
def test_leaves_the_same_with_other_settings(
    name: str, settings: dict[str, int], redis: Redis, server: Any, tmp_path: Path
) -> None:
    """Jobs beside each other, or each in a process of its own, leave what they leave one after the other."""
    play, stock = SCENARIOS[name]
    dumps = []
    for worker_class, arguments in ((stock, {}), (rq_pooled.Worker, settings)):
        redis.flushall()
        side = Side(redis, server.url, worker_class, tmp_path / f"{worker_class.__module__}.log", arguments)
        play(side)
        dumps.append(_as_one_worker(dump(redis, side.began)))
    theirs, ours = dumps
    assert differences(theirs, ours) == []


def _as_one_worker(keys: dict[str, Any]) -> Any:
    """Put what the slots did to the account of one worker."""
    counts = {"successful_job_count": 0, "failed_job_count": 0}
    for key in [key for key in keys if key.startswith(named("rq:worker:"))]:
        _kind, _life, fields = keys.pop(key)
        assert fields["state"] == b"idle" or fields["state"] == "idle"
        assert "current_job" not in fields
        for count in counts:
            counts[count] += int(fields.get(count, 0))

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rename(each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(rename(each) for each in value)
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        return NAME if isinstance(text, str) and text.startswith(f"{NAME}-") else value if text != NAME else NAME

    return rename(keys) | counts


def test_the_dump_tells_differences(redis: Redis) -> None:
    """The comparison itself sees a changed date format, time to live, field, score and type."""
    job = Queue("default", connection=redis).enqueue("jobs.add", 1, 2, job_id="a", ttl=100)
    began = time.time()
    before = dump(redis, began)
    assert dump(redis, began) == before
    changes: list[Callable[[], Any]] = [
        lambda: redis.hset(job.key, "enqueued_at", "2020-01-01T00:00:00.000000Z"),
        lambda: redis.hset(job.key, "enqueued_at", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())),
        lambda: redis.persist(job.key),
        lambda: redis.expire(job.key, 90),
        lambda: redis.hset(job.key, "new", ""),
        lambda: redis.rpush(named("rq:queue:default"), "a"),
    ]
    for change in changes:
        change()
        changed = dump(redis, began)
        assert changed != before
        before = changed
    redis.zadd("scores", {"a": time.time() + 100})
    before = dump(redis, began)
    redis.zadd("scores", {"a": time.time() + 110})
    assert dump(redis, began) != before


# -- rate limits and what else only RQ 3 has ---------------------------------------------------------------------------

if RQ3:
    from rq import RateLimit
    from rq.rate_limit import RateLimitRegistry

    def limited(side: Side, function: str, ids: str, limit: int = 1, **options: Any) -> None:
        """Enqueue jobs of one limit."""
        arguments = (1, 2) if function == "jobs.add" else ()
        for job_id in ids:
            side.queue().enqueue(function, *arguments, job_id=job_id, rate_limit=RateLimit("k", limit), **options)

    def note(side: Side, where: str) -> None:
        """Write down which jobs the limit has let through, and which wait."""
        registry = RateLimitRegistry("k", side.redis)
        words = [f"allowed {job_id}" for job_id in sorted(registry.get_allowed_job_ids())]
        words += [f"waits {job_id}" for job_id in sorted(registry.get_rate_limited_job_ids())]
        side.redis.rpush(where, *words or ["nothing"])

    @scenario
    def limited_success(side: Side) -> None:
        """Each success lets the next one in."""
        limited(side, "jobs.add", "abcd")
        note(side, "seen:1")
        side.work()
        note(side, "seen:2")

    @scenario
    def limited_failure(side: Side) -> None:
        """So does each failure."""
        limited(side, "jobs.fail", "abc")
        side.work()
        note(side, "seen:1")

    @scenario
    def limited_retry_at_once(side: Side) -> None:
        """A retry at once keeps its slot."""
        limited(side, "jobs.fail", "ab", retry=Retry(max=2))
        side.work()
        note(side, "seen:1")

    @scenario
    def limited_retry_delayed(side: Side) -> None:
        """A delayed retry gives its slot back, and passes the limit again when it is due."""
        limited(side, "jobs.fail_unless_last", "ab", retry=Retry(max=1, interval=60))
        side.work()
        note(side, "seen:1")
        side.make_due()
        side.promote()
        note(side, "seen:2")
        side.work()
        note(side, "seen:3")

    @scenario
    def limited_scheduled(side: Side) -> None:
        """Scheduled jobs pass their limit when they are due."""
        for job_id in "abc":
            limit = RateLimit("k", 2)
            side.queue().enqueue_in(timedelta(seconds=100), "jobs.add", 1, 2, job_id=job_id, rate_limit=limit)
        side.make_due()
        side.promote()
        note(side, "seen:1")
        side.work()

    @scenario
    def limited_repeat(side: Side) -> None:
        """A job that repeats keeps its slot if it does so at once, and gives it back if later."""
        limited(side, "jobs.add", "a", repeat=Repeat(times=2))
        limited(side, "jobs.add", "b", repeat=Repeat(times=1, interval=60))
        side.work()
        note(side, "seen:1")

    @scenario
    def limited_dependents(side: Side) -> None:
        """Dependents pass their limit when their dependency has ended."""
        parent = side.queue().enqueue("jobs.add", 1, 2, job_id="parent")
        for job_id in "abc":
            limit = RateLimit("k", 1)
            side.queue("other").enqueue("jobs.add", 1, 2, job_id=job_id, depends_on=parent, rate_limit=limit)
        side.queue().enqueue("jobs.add", 1, 2, job_id="front", depends_on=parent, at_front=True)
        side.work("default")
        note(side, "seen:1")
        side.work()
        note(side, "seen:2")

    @scenario
    def limited_result_ttl_0(side: Side) -> None:
        """A job that is deleted with its success gives its slot back."""
        limited(side, "jobs.add", "ab", result_ttl=0)
        side.work()
        note(side, "seen:1")

    @scenario
    def ready_left_by_a_dead_worker(side: Side) -> None:
        """Maintenance queues what a stock worker had noted as ready when it died."""
        job = side.queue().enqueue("jobs.add", 1, 2, job_id="a")
        with side.redis.pipeline() as pipe:
            side.redis.lrem(named("rq:queue:default"), 0, "a")
            job.set_status(JobStatus.READY_TO_ENQUEUE, pipeline=pipe)
            side.queue().ready_job_registry.add(job, pipeline=pipe)
            pipe.execute()
        side.work()
        side.work()

    @pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith(("limited_", "ready_"))])
    def test_same_key_space_with_what_only_rq_3_has(redis: Redis, server: Any, tmp_path: Path, name: str) -> None:
        """Jobs with a rate limit, and what dead stock workers leave, end with the key space that stock RQ 3 leaves."""
        play, stock = SCENARIOS[name]
        theirs, ours = both(redis, server.url, tmp_path, play, stock)
        assert differences(theirs, ours) == []
