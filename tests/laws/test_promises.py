"""What RQ promises for a job is kept by our worker: callbacks, control commands, timeouts, webhooks and the rest.

Every test runs a real worker process on a real server. What the key space looks like afterwards is compared with
stock RQ in test_parity; here is what a user sees and can rely on while things happen.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jobs
import promise_jobs
import pytest
from keys import named
from proxy import CutProxy
from redis import Redis
from rq import Callback, Queue, Retry, Worker
from rq.command import send_kill_horse_command, send_shutdown_command, send_stop_job_command
from rq.group import Group
from rq.job import Job, JobStatus
from rq.results import Result
from rq.suspension import resume, suspend
from rq.webhook import Webhook
from sampling import names_of_clients
from stalls import abandon
from support import PYTHONPATH, WorkerProcess, keys_of_jobs, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.rq_api import RQ3

#: As ``running_worker``, on the session's server and the queue ``default``, under the name ``w``.
Start = Callable[..., AbstractContextManager[WorkerProcess]]

ENDS = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED)
UNEXPECTEDLY = "Work-horse terminated unexpectedly"


@pytest.fixture
def start(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> Start:
    """A function that runs a worker named ``w`` for the length of a block."""

    def start(*options: str, concurrency: int = 1, **settings: str) -> AbstractContextManager[WorkerProcess]:
        line = ("default", "--name", "w", *options)
        return running_worker(server.url, *line, log=tmp_path / "log", concurrency=concurrency, **settings)

    return start


@pytest.fixture
def queue(redis: Redis) -> Queue:
    """RQ's own queue: what a program that knows nothing of us enqueues to."""
    return Queue("default", connection=redis)


def ended(job: Job, timeout: float = 20) -> JobStatus:
    """Wait for the end of a job and return its status."""
    return wait_until(lambda: (status := job.get_status()) in ENDS and status, timeout, f"the end of {job.id}")


def result_of(job: Job) -> Result:
    """Return the last result; it has to exist."""
    result = job.latest_result()
    assert result is not None
    return result


def wait_running(redis: Redis, key: str, count: int = 1) -> list[int]:
    """Wait until ``count`` jobs have announced themselves in ``key``; return the pids of their horses."""
    wait_until(lambda: redis.llen(key) >= count, what=f"{count} running jobs")
    return [int(pid) for pid in redis.lrange(key, 0, -1)]


def texts(redis: Redis, key: str) -> list[str]:
    """Return a list of Redis as text."""
    return [item.decode() for item in redis.lrange(key, 0, -1)]


def worker_field(redis: Redis, name: str, field: str) -> str:
    """Return what a worker shows to the outside, "" for nothing."""
    return (redis.hget(named(f"rq:worker:{name}"), field) or b"").decode()


def residue(redis: Redis) -> list[str]:
    """Return what must not outlive a job that runs: keys, and what workers show."""
    patterns = (named("rq:execution:*"), named("rq:executions:*"), named("rq:wip:*"))
    left = [key.decode() for pattern in patterns for key in redis.scan_iter(pattern, count=1000)]
    left += [key.decode() for key in keys_of_jobs(redis)]
    for key in redis.scan_iter(named("rq:worker:*"), count=1000):
        if (
            key.endswith(b":executions")
            or redis.hget(key, "current_job")
            or redis.hget(key, "state") not in (None, b"idle")
        ):
            left.append(f"{key.decode()} is busy")
    return left


def assert_no_residue(redis: Redis) -> None:
    """Wait until nothing of a running job is left."""
    try:
        wait_until(lambda: not residue(redis), timeout=10)
    except AssertionError:
        raise AssertionError(f"left behind: {residue(redis)}") from None


def job_connections(redis: Redis) -> list[str]:
    """Return the roles of the connections that there are for jobs at this moment."""
    roles = [client["name"].rpartition(":")[2] for client in redis.client_list()]
    return sorted(role for role in roles if role in ("job", "jobs", "exclusive"))


# -- outcomes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [promise_jobs.count_and_return_row, promise_jobs.count_and_return_deep])
@pytest.mark.parametrize("plain", [True, False])
def test_an_error_after_the_outcome_does_not_change_it(
    start: Start, redis: Redis, queue: Queue, job: Any, plain: bool
) -> None:
    """A success whose result cannot be shown stands: the job runs once, and its dependents run."""
    queue.enqueue(jobs.announce, "horses")
    one = queue.enqueue(job, "runs", retry=Retry(1))
    queue.enqueue(jobs.announce, "horses")
    child = None if plain else queue.enqueue(jobs.nothing, depends_on=one)
    with start("--burst") as worker:
        assert worker.wait() == 0
        assert one.get_status() == JobStatus.FINISHED and redis.get("runs") == b"1"
        assert child is None or child.get_status() == JobStatus.FINISHED
        # RQ 3 does not show results any more. After an error nobody knows what a job has left in its horse.
        errors = 0 if RQ3 else 1
        assert worker.output().count("an error after its outcome, which is recorded") == errors
        assert len(set(redis.lrange("horses", 0, -1))) == 1 + errors
        assert_no_residue(redis)


# -- callbacks -------------------------------------------------------------------------------------------------------


def test_callbacks_have_a_working_connection(start: Start, redis: Redis, queue: Queue) -> None:
    """Success, failure and stopped callbacks can read and write Redis with the connection they are given."""
    with start():
        good = queue.enqueue(jobs.add, 1, 2, on_success=Callback(jobs.on_success))
        bad = queue.enqueue(jobs.fail, on_failure=Callback(jobs.on_failure))
        long = queue.enqueue(jobs.hang, "started", on_stopped=Callback(jobs.on_stopped))
        wait_running(redis, "started")
        send_stop_job_command(redis, long.id)
        assert ended(long) == JobStatus.STOPPED
        assert texts(redis, "callbacks") == [
            f"success {good.id} 3 finished",
            f"failure {bad.id} ValueError on purpose",
            f"stopped {long.id}",
        ]
        assert_no_residue(redis)
        assert job_connections(redis) == ["jobs"]


def test_no_callback_runs_in_the_parent(start: Start, redis: Redis, queue: Queue) -> None:
    """Callbacks are user code: each runs in a horse, the stopped one, whose own horse is dead, in another."""
    callback = promise_jobs.on_any_write_pid
    with start() as worker:
        good = queue.enqueue(jobs.announce, "started", on_success=Callback(callback))
        bad = queue.enqueue(promise_jobs.announce_and_fail, "started", on_failure=Callback(callback))
        long = queue.enqueue(jobs.hang, "started", on_stopped=Callback(callback))
        own = wait_running(redis, "started", 3)
        send_stop_job_command(redis, long.id)
        assert [ended(job) for job in (good, bad, long)] == [JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED]
        pids = [int(pid) for pid in redis.lrange("callbacks:pid", 0, -1)]
    assert redis.get("callbacks:count") == b"3"
    assert pids[:2] == own[:2]
    assert pids[2] != own[2]
    assert worker.pid not in pids


def test_a_callback_enqueues_a_job(start: Start, redis: Redis, queue: Queue) -> None:
    """What a success callback enqueues runs, also when the callback's own job leaves no trace."""
    with start():
        queue.enqueue(jobs.add, 1, 2, job_id="a", result_ttl=0, on_success=Callback(promise_jobs.on_success_enqueue))
        wait_until(lambda: redis.exists(named("rq:job:a-next")), what="the job that the callback enqueues")
        following = Job.fetch("a-next", connection=redis)
        assert ended(following) == JobStatus.FINISHED
        assert following.return_value() == 7
    assert not redis.exists(named("rq:job:a"))


def test_a_failing_success_callback_fails_the_job(start: Start, redis: Redis, queue: Queue) -> None:
    """As in RQ, a job whose success callback raises has failed, with that error."""
    with start():
        job = queue.enqueue(
            jobs.add, 1, 2, on_success=Callback(jobs.on_success_raise), on_failure=Callback(jobs.on_failure)
        )
        assert ended(job) == JobStatus.FAILED
        assert "RuntimeError: the success callback failed" in str(result_of(job).exc_string)
        assert texts(redis, "callbacks") == [f"failure {job.id} RuntimeError the success callback failed"]


def test_a_failing_stopped_callback_stops_the_job(start: Start, redis: Redis, queue: Queue) -> None:
    """A stopped callback that raises is logged; its job is recorded as stopped, once, and the worker goes on."""
    with start() as worker:
        job = queue.enqueue(jobs.hang, "started", on_stopped=Callback(jobs.on_stopped_raise))
        wait_running(redis, "started")
        send_stop_job_command(redis, job.id)
        assert ended(job) == JobStatus.STOPPED
        assert queue.failed_job_registry.get_job_ids() == [job.id]
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED
        assert "RuntimeError: the stopped callback failed" in worker.output()
        assert texts(redis, "callbacks") == [f"stopped {job.id}"]
        assert_no_residue(redis)


def test_a_stopped_callback_that_hangs_ends_too(start: Start, redis: Redis, queue: Queue) -> None:
    """A stopped callback past its timeout does not keep its job from being recorded as stopped."""
    with start(RQ_POOLED_KILL_GRACE="0.5"):
        polite = queue.enqueue(jobs.hang, "started", on_stopped=Callback(promise_jobs.on_stopped_hang, timeout=1))
        wait_running(redis, "started")
        send_stop_job_command(redis, polite.id)
        assert ended(polite) == JobStatus.STOPPED
        deaf = queue.enqueue(jobs.hang, "started", on_stopped=Callback(promise_jobs.on_stopped_hang_deaf, timeout=1))
        wait_running(redis, "started", 2)
        send_stop_job_command(redis, deaf.id)
        assert ended(deaf) == JobStatus.STOPPED
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED
        assert_no_residue(redis)


# -- dependents ------------------------------------------------------------------------------------------------------


def test_a_child_of_parents_that_end_together_runs_once(start: Start, redis: Redis, queue: Queue) -> None:
    """However the ends of its parents interleave, a job that depends on several is enqueued, and only once."""
    with start(concurrency=4):
        children = []
        for number in range(60):
            parents = [queue.enqueue(jobs.add, number, each) for each in range(3)]
            children.append(queue.enqueue(promise_jobs.count, f"runs:{number}", depends_on=parents))
        assert {ended(child) for child in children} == {JobStatus.FINISHED}
        assert_no_residue(redis)
    assert [redis.get(f"runs:{number}") for number in range(60)] == [b"1"] * 60
    assert redis.zcard(named("rq:deferred:default")) == redis.llen(named("rq:queue:default")) == 0


# -- groups ----------------------------------------------------------------------------------------------------------


def test_a_group_runs_and_is_found(start: Start, redis: Redis, queue: Queue) -> None:
    """All jobs of a group run, and the group knows them and their results afterwards."""
    with start(concurrency=3):
        group = Group.create(connection=redis)
        many = [Queue.prepare_data(jobs.add, (number, number)) for number in range(6)]
        members = group.enqueue_many(queue, many)
        assert {ended(job) for job in members} == {JobStatus.FINISHED}
        found = Group.fetch(group.name, connection=redis).get_jobs()
        assert sorted(job.return_value() for job in found) == [0, 2, 4, 6, 8, 10]


def test_a_group_ends_with_its_jobs(start: Start, redis: Redis, queue: Queue) -> None:
    """A group whose jobs are gone is removed by maintenance."""
    with start("--maintenance-interval", "1"):
        group = Group.create(connection=redis)
        group.enqueue_many(queue, [Queue.prepare_data(jobs.add, (1, 2), result_ttl=0) for _ in range(3)])
        assert redis.sismember(named("rq:groups"), group.name)
        wait_until(
            lambda: not redis.exists(named("rq:groups"), named(f"rq:groups:{group.name}")), what="the end of the group"
        )


# -- cancelled and deleted while running -----------------------------------------------------------------------------


@pytest.mark.parametrize("delete", [False, True], ids=["cancelled", "deleted"])
def test_the_outcome_of_a_job_taken_away_is_dropped(start: Start, redis: Redis, queue: Queue, delete: bool) -> None:
    """A job that is cancelled or deleted while it runs has no outcome and leaves no residue."""
    with start() as worker:
        job = queue.enqueue(jobs.wait_for, "go", "started", on_success=Callback(jobs.nothing))
        wait_running(redis, "started")
        Job.fetch(job.id, connection=redis).delete() if delete else Job.fetch(job.id, connection=redis).cancel()
        redis.rpush("go", 1)
        worker.wait_for(f"outcome of job {job.id} dropped")
        assert_no_residue(redis)
        assert not redis.exists(named(f"rq:results:{job.id}"))
        assert redis.zcard(named("rq:finished:default")) == redis.zcard(named("rq:failed:default")) == 0
        if delete:
            assert [key for key in redis.scan_iter("*") if job.id.encode() in key] == []
        else:
            assert job.get_status() == JobStatus.CANCELED
            assert queue.canceled_job_registry.get_job_ids() == [job.id]
        after = queue.enqueue(jobs.add, 1, 2)
        assert ended(after) == JobStatus.FINISHED
        assert worker_field(redis, "w", "successful_job_count") == "1"


@pytest.mark.parametrize("delete", [False, True], ids=["cancelled", "deleted"])
def test_a_job_taken_away_that_dies_leaves_nothing(start: Start, redis: Redis, queue: Queue, delete: bool) -> None:
    """Burying a job that was cancelled or deleted before its horse died records nothing, not even half a hash."""
    with start() as worker:
        job = queue.enqueue(jobs.hang, "started")
        wait_running(redis, "started")
        Job.fetch(job.id, connection=redis).delete() if delete else Job.fetch(job.id, connection=redis).cancel()
        send_kill_horse_command(redis, "w")
        worker.wait_for(f"outcome of job {job.id} dropped")
        assert_no_residue(redis)
        assert redis.zcard(named("rq:failed:default")) == 0
        assert bool(redis.exists(job.key)) is not delete
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED


# -- control commands ------------------------------------------------------------------------------------------------


def test_stop_job_stops_just_that_job(start: Start, redis: Redis, queue: Queue) -> None:
    """A stop command at concurrency 3 ends one job, not retried, in the failed registry; its neighbours finish."""
    with start(concurrency=3):
        one, two, three = (
            queue.enqueue(jobs.wait_for, f"go:{number}", "started", retry=Retry(max=3)) for number in range(3)
        )
        wait_running(redis, "started", 3)
        send_stop_job_command(redis, two.id)
        assert ended(two) == JobStatus.STOPPED
        assert queue.failed_job_registry.get_job_ids() == [two.id]
        assert "stopped by user" in str(result_of(two).exc_string)
        assert one.get_status() == three.get_status() == JobStatus.STARTED
        redis.rpush("go:0", 1)
        redis.rpush("go:2", 1)
        assert ended(one) == ended(three) == JobStatus.FINISHED
        assert redis.llen("started") == 3
        assert_no_residue(redis)


def test_stop_job_for_another_job_is_ignored(start: Start, redis: Redis, queue: Queue) -> None:
    """A stop command that comes too late, for a job that is over, does not harm the one that runs now."""
    with start() as worker:
        over = queue.enqueue(jobs.add, 1, 2)
        assert ended(over) == JobStatus.FINISHED
        runs = queue.enqueue(jobs.wait_for, "go", "started")
        wait_running(redis, "started")
        send_stop_job_command(redis, over.id)
        worker.wait_for(f"Not working on job {over.id}, command ignored.")
        redis.rpush("go", 1)
        assert ended(runs) == JobStatus.FINISHED


def test_kill_horse_fails_the_job(start: Start, redis: Redis, queue: Queue) -> None:
    """A kill-horse command ends the horse of that worker only, and its job fails as RQ's jobs fail by it."""
    with start(concurrency=2):
        both = [queue.enqueue(jobs.wait_for, "go", "started") for _ in range(2)]
        wait_running(redis, "started", 2)
        killed, other = (Job.fetch(job.id, connection=redis) for job in both)
        assert killed.worker_name and killed.worker_name != other.worker_name
        send_kill_horse_command(redis, killed.worker_name)
        assert ended(killed) == JobStatus.FAILED
        assert UNEXPECTEDLY in str(result_of(killed).exc_string)
        redis.rpush("go", 1)
        assert ended(other) == JobStatus.FINISHED
        assert_no_residue(redis)


def test_many_shutdown_commands_are_one_warm_shutdown(start: Start, redis: Redis, queue: Queue) -> None:
    """Shutdown commands to several slots, sent again and again, end the worker once: what runs finishes, exit 0."""
    with start(concurrency=3) as worker:
        running = [queue.enqueue(jobs.wait_for, f"go:{number}", "started") for number in range(2)]
        wait_running(redis, "started", 2)
        for _ in range(3):
            send_shutdown_command(redis, "w")
            send_shutdown_command(redis, "w-1")
        wait_until(lambda: worker.output().count("Received shutdown command") == 6)
        late = queue.enqueue(jobs.add, 1, 2)
        redis.rpush("go:0", 1)
        assert ended(running[0]) == JobStatus.FINISHED
        assert running[1].get_status() == JobStatus.STARTED
        redis.rpush("go:1", 1)
        assert worker.wait() == 0
        assert ended(running[1]) == JobStatus.FINISHED
        assert late.get_status() == JobStatus.QUEUED
        assert worker.output().lower().count("warm shut down requested") == 1, worker.output()
        assert redis.scard(named("rq:workers")) == 0
        assert_no_residue(redis)


def test_suspend_and_resume_reach_a_sleeping_worker(start: Start, redis: Redis, queue: Queue) -> None:
    """``rq suspend`` takes effect while the worker is asleep, and ``rq resume`` wakes it."""
    with start("--job-monitoring-interval", "1", concurrency=2) as worker:
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED
        suspend(redis)
        worker.wait_for("uspen")
        wait_until(lambda: worker_field(redis, "w", "state") == "suspended", what="the state suspended")
        job = queue.enqueue(jobs.add, 1, 2)
        before = worker_field(redis, "w", "last_heartbeat")
        wait_until(lambda: worker_field(redis, "w", "last_heartbeat") != before, what="another heartbeat")
        assert job.get_status() == JobStatus.QUEUED
        resume(redis)
        began = time.monotonic()
        assert ended(job) == JobStatus.FINISHED
        assert time.monotonic() - began < 5
        wait_until(lambda: worker_field(redis, "w", "state") == "idle", what="the state idle")


# -- timeouts --------------------------------------------------------------------------------------------------------


def test_timeouts_come_as_exceptions_first(start: Start, redis: Redis, queue: Queue) -> None:
    """A job past its timeout gets RQ's exception and may clean up; a horse that survives it is not killed."""
    with start(concurrency=1, RQ_POOLED_KILL_GRACE="20") as worker:
        job = queue.enqueue(jobs.hang_politely, "noted", job_timeout=1, on_failure=Callback(jobs.on_failure))
        assert ended(job) == JobStatus.FAILED
        assert texts(redis, "noted") == ["JobTimeoutException"]
        assert "JobTimeoutException" in str(result_of(job).exc_string)
        assert texts(redis, "callbacks")[0].startswith(f"failure {job.id} JobTimeoutException")
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED
        assert "killing its horse" not in worker.output()


@pytest.mark.parametrize("function", [jobs.hang_deaf, promise_jobs.hang_in_c])
def test_who_does_not_hear_the_alarm_is_killed(
    start: Start, redis: Redis, queue: Queue, function: Callable[..., None]
) -> None:
    """A job that does not react to its timeout is killed KILL_GRACE later and fails; others do not notice."""
    with start(concurrency=2, RQ_POOLED_KILL_GRACE="1"):
        other = queue.enqueue(jobs.wait_for, "go", "started")
        wait_running(redis, "started")
        began = time.monotonic()
        deaf = queue.enqueue(function, job_timeout=1)
        assert ended(deaf) == JobStatus.FAILED
        assert 1.9 < time.monotonic() - began < 10
        assert UNEXPECTEDLY in str(result_of(deaf).exc_string)
        redis.rpush("go", 1)
        assert ended(other) == JobStatus.FINISHED
        assert_no_residue(redis)


def test_callbacks_have_timeouts_of_their_own(start: Start, redis: Redis, queue: Queue) -> None:
    """A callback past its timeout gets the exception, is killed if it is deaf, and in both cases its job fails."""
    with start(concurrency=3, RQ_POOLED_KILL_GRACE="1"):
        success = queue.enqueue(jobs.nothing, job_timeout=30, on_success=Callback(jobs.on_success_hang, timeout=1))
        failure = queue.enqueue(jobs.fail, job_timeout=30, on_failure=Callback(jobs.on_failure_hang, timeout=1))
        deaf = queue.enqueue(jobs.nothing, job_timeout=30, on_success=Callback(jobs.on_success_hang_deaf, timeout=1))
        assert [ended(job) for job in (success, failure, deaf)] == [JobStatus.FAILED] * 3
        assert "JobTimeoutException" in str(result_of(success).exc_string)
        assert "JobTimeoutException" in str(result_of(failure).exc_string)
        assert UNEXPECTEDLY in str(result_of(deaf).exc_string)
        assert_no_residue(redis)


def test_a_job_that_cannot_begin_leaves_its_callback_its_time(start: Start, redis: Redis, queue: Queue) -> None:
    """A job that fails before its own time starts (its data cannot be read) does not shorten its callback's time."""
    with start(RQ_POOLED_KILL_GRACE="0.2"):
        callback = Callback(promise_jobs.on_failure_take_time, timeout=30)
        with queue.connection.pipeline() as pipeline:
            job = queue.enqueue(jobs.nothing, job_timeout=1, on_failure=callback, pipeline=pipeline)
            pipeline.hset(job.key, "data", b"no pickle")
            pipeline.execute()
        assert ended(job) == JobStatus.FAILED
        assert texts(redis, "callbacks") == [job.id]
        assert "DeserializationError" in str(result_of(job).exc_string)


# -- webhooks --------------------------------------------------------------------------------------------------------


class Hooks:
    """A web server that notes each request and what Redis said about the job at that moment.

    ``open`` is set while it answers; a request waits for that.
    """

    def __init__(self, url: str) -> None:
        self.seen: list[tuple[str, str, dict[str, Any]]] = []
        self.arrived = 0
        self.open = threading.Event()
        self.open.set()
        hooks = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with Redis.from_url(url) as client:
                    status = (client.hget(named(f"rq:job:{body['job_id']}"), "status") or b"").decode()
                hooks.arrived += 1
                hooks.open.wait(30)
                hooks.seen.append((self.path, status, body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def hook(self, path: str, status: str) -> Webhook:
        """Return a webhook that ends here."""
        host, port = self._server.server_address[:2]
        return Webhook(f"http://{host!s}:{port}/{path}", status, method="POST", timeout=30)  # type: ignore[arg-type]

    def both(self) -> list[Webhook]:
        """Return one for each end of a job."""
        return [self.hook("good", "finished"), self.hook("bad", "failed")]

    def close(self) -> None:
        """End it."""
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def hooks(server: EmbeddedServer) -> Iterator[Hooks]:
    """A local web server."""
    running = Hooks(server.url)
    try:
        yield running
    finally:
        running.close()


def test_webhooks_are_sent_once_when_recorded(start: Start, redis: Redis, queue: Queue, hooks: Hooks) -> None:
    """Each webhook is sent once, for its own status, after that status is in Redis."""
    with start():
        good = queue.enqueue(jobs.add, 1, 2, webhooks=hooks.both())
        bad = queue.enqueue(jobs.fail, webhooks=hooks.both())
        assert [ended(job) for job in (good, bad)] == [JobStatus.FINISHED, JobStatus.FAILED]
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED  # by the same horse, afterwards
    assert [(path, status, body["job_id"]) for path, status, body in hooks.seen] == [
        ("/good", "finished", good.id),
        ("/bad", "failed", bad.id),
    ]
    assert "on purpose" in hooks.seen[1][2]["exc_info"]


def test_webhooks_of_a_job_that_dies(start: Start, redis: Redis, queue: Queue, hooks: Hooks) -> None:
    """A job whose horse dies sends its webhook for failed jobs; one that is stopped sends none, as in RQ."""
    with start():
        dead = queue.enqueue(jobs.exit_with, 3, webhooks=hooks.both())
        assert ended(dead) == JobStatus.FAILED
        stopped = queue.enqueue(jobs.hang, "started", webhooks=hooks.both())
        wait_running(redis, "started")
        send_stop_job_command(redis, stopped.id)
        assert ended(stopped) == JobStatus.STOPPED
        wait_until(lambda: hooks.seen, what="the webhook")
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED
    assert [(path, status, body["job_id"]) for path, status, body in hooks.seen] == [("/bad", "failed", dead.id)]
    assert UNEXPECTEDLY in hooks.seen[0][2]["exc_info"]


def test_a_webhook_shows_no_password(start: Start, queue: Queue) -> None:
    """The log names a webhook's host and nothing else of its address, when it is sent and when that fails."""
    addresses = (
        *("http://127.0.0.1:1/ended?sig=hunter2", "http://127.0.0.1:1/T1/B1/hunter2?token=1'hunter2 3"),
        *(
            "http://user:hunter2@127.0.0.1/x",
            "http://127.0.0.1:hunter2/x",
            " http://127.0.0.1:1/x@hunter2",
            "http://hunter2 x@127.0.0.1/x",
        ),
    )
    hooks = [Webhook(address, "finished", method="POST", timeout=3) for address in addresses]
    with start("--logging_level", "DEBUG") as worker:
        assert ended(queue.enqueue(jobs.add, 1, 2, webhooks=hooks)) == JobStatus.FINISHED
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED  # by the same horse, afterwards
        said = worker.output()
        assert said.count("http://127.0.0.1:1/***") == 6 and said.count("Failed to send webhook") == 6
        assert "hunter2" not in said and "URLError: Connection refused" in said


def test_a_retry_sends_no_webhook(start: Start, redis: Redis, queue: Queue, hooks: Hooks) -> None:
    """Only the last failure of a job that is retried sends its webhook."""
    with start():
        job = queue.enqueue(jobs.fail, retry=Retry(max=2), webhooks=hooks.both())
        assert ended(job) == JobStatus.FAILED
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED
    assert [(path, status) for path, status, _body in hooks.seen] == [("/bad", "failed")]


def test_the_webhook_of_a_job_with_dependents_waits_for_the_record(
    start: Start, redis: Redis, queue: Queue, hooks: Hooks
) -> None:
    """A job with dependents is recorded in two steps; its webhook leaves after the second."""
    with start():
        for number in range(10):
            first = queue.enqueue(jobs.add, 1, 2, webhooks=hooks.both())
            second = queue.enqueue(jobs.add, 3, 4, depends_on=first)
            assert ended(second) == JobStatus.FINISHED
            wait_until(lambda number=number: len(hooks.seen) == number + 1, what="the webhook")
    assert [status for _path, status, _body in hooks.seen] == ["finished"] * 10


def test_a_dropped_outcome_sends_no_webhook(start: Start, redis: Redis, queue: Queue, hooks: Hooks) -> None:
    """A job that was cancelled while it ran is not announced as finished."""
    with start() as worker:
        job = queue.enqueue(jobs.wait_for, "go", "started", webhooks=hooks.both())
        wait_running(redis, "started")
        Job.fetch(job.id, connection=redis).cancel()
        redis.rpush("go", 1)
        worker.wait_for(f"outcome of job {job.id} dropped")
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED
    assert hooks.seen == []


@pytest.mark.parametrize(("job", "path", "words"), [
    (jobs.add, "/good", b"successful_job_count"),
    (jobs.fail_whatever, "/bad", b"failed_job_count"),
])  # fmt: skip
def test_a_commit_that_is_cut_in_flight_sends_one_webhook(
    server: EmbeddedServer, redis: Redis, queue: Queue, hooks: Hooks, tmp_path: Path, job: Any, path: str, words: bytes
) -> None:
    """Where the server has recorded the outcome and its answer is lost, the webhook is sent all the same, and once."""
    proxy = CutProxy(server.port)
    try:
        with running_worker(proxy.url, "default", log=tmp_path / "log") as worker:
            proxy.cut_on(words)
            one = queue.enqueue(job, 1, 2, webhooks=hooks.both())
            assert proxy.done.wait(20)
            worker.wait_for("the server is back")
            assert ended(queue.enqueue(jobs.nothing)) == JobStatus.FINISHED
            wait_until(lambda: hooks.seen, what="the webhook")
            assert worker.stop() == 0
    finally:
        proxy.close()
    assert [(path, body["job_id"]) for path, _status, body in hooks.seen] == [(path, one.id)]
    assert len(one.results()) == 1


def test_a_slow_web_server_stalls_nobody_else(start: Start, redis: Redis, queue: Queue, hooks: Hooks) -> None:
    """While a webhook waits for its server, its job counts as finished and the other slot goes on."""
    hooks.open.clear()
    with start(concurrency=2):
        slow = queue.enqueue(jobs.add, 1, 2, webhooks=hooks.both())
        wait_until(lambda: hooks.arrived, what="the webhook")
        others = [queue.enqueue(jobs.add, number, 1) for number in range(20)]
        assert {ended(job) for job in others} == {JobStatus.FINISHED}
        assert slow.get_status() == JobStatus.FINISHED
        assert hooks.seen == []
        assert_no_residue(redis)
        hooks.open.set()
        wait_until(lambda: hooks.seen, what="the answered webhook")


# -- kinds of jobs ---------------------------------------------------------------------------------------------------


def test_coroutines_are_run(start: Start, queue: Queue) -> None:
    """A coroutine function as a job is awaited."""
    with start():
        job = queue.enqueue(jobs.coroutine, 21)
        assert ended(job) == JobStatus.FINISHED
        assert job.return_value() == 42


def test_a_job_class_is_honoured(start: Start, redis: Redis, queue: Queue) -> None:
    """``--job-class`` with its own perform and save decides how jobs run and are saved."""
    with start("--job-class", "jobs.CustomJob"):
        job = queue.enqueue(jobs.add, 1, 2, description="not this")
        assert ended(job) == JobStatus.FINISHED
        assert job.return_value() == "custom 3"
        job.refresh()
        assert job.description == "saved by CustomJob"
        assert job.get_meta() == {"performed": "custom"}


def test_a_job_class_need_not_call_rq(start: Start, queue: Queue) -> None:
    """A job class whose perform does all itself works too."""
    with start("--job-class", "promise_jobs.Eager"):
        job = queue.enqueue(jobs.add, 1, 2)
        assert ended(job) == JobStatus.FINISHED
        assert job.return_value() == [3, 3]


def test_meta_is_seen_while_the_job_runs(start: Start, redis: Redis, queue: Queue) -> None:
    """What a job saves in its meta is seen outside at once, and what is written outside is seen by ``refresh``."""
    with start():
        job = queue.enqueue(promise_jobs.report_progress, "go", "started", meta={"who": "me"})
        wait_running(redis, "started")
        outside = Job.fetch(job.id, connection=redis)
        assert outside.meta == {"who": "me", "progress": 50}
        outside.meta["from"] = "outside"
        outside.save_meta()
        redis.rpush("go", 1)
        assert ended(job) == JobStatus.FINISHED
        assert job.return_value() == {"who": "me", "progress": 50, "from": "outside"}
        assert Job.fetch(job.id, connection=redis).meta == {"who": "me", "progress": 100, "from": "outside"}


def test_jobs_share_one_connection_that_closes_when_idle(start: Start, redis: Redis, queue: Queue) -> None:
    """``job.connection`` works in every usual way; WATCH is lent another; both close after MAX_IDLE."""
    with start(concurrency=2, RQ_POOLED_MAX_IDLE="1"):
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED
        assert job_connections(redis) == []
        waiting = queue.enqueue(jobs.wait_for, "go", "started")
        wait_running(redis, "started")
        assert job_connections(redis) == ["jobs"]
        job = queue.enqueue(jobs.use_connection, "counter")
        assert ended(job) == JobStatus.FINISHED
        stored, status, counts, _number = job.return_value()
        assert (stored, status, counts) == (1, "started", [1, 2])
        assert job_connections(redis) == ["exclusive", "jobs"]
        redis.rpush("go", 1)
        assert ended(waiting) == JobStatus.FINISHED
        wait_until(lambda: not job_connections(redis), what="the end of the jobs' connections")


def test_the_environment_names_worker_and_job(start: Start, redis: Redis, queue: Queue) -> None:
    """RQ_WORKER_ID and RQ_JOB_ID tell each job who it is, whichever slot it runs in."""
    with start(concurrency=2):
        blocking = queue.enqueue(jobs.wait_for, "go", "started")
        wait_running(redis, "started")
        for _ in range(2):
            job = queue.enqueue(jobs.environment)
            assert ended(job) == JobStatus.FINISHED
            other = {"w", "w-1"} - {str(Job.fetch(blocking.id, connection=redis).worker_name)}
            assert job.return_value() == [other.pop(), job.id]
        redis.rpush("go", 1)


def test_big_results_and_arguments(start: Start, redis: Redis, queue: Queue) -> None:
    """A result over 1 MB and arguments over 5 MB pass, beside small ones."""
    with start(concurrency=3):
        size = 5_500_000
        result = queue.enqueue(jobs.big, 1_500_000)
        arguments = queue.enqueue(jobs.length, b"x" * size, description="big")
        small = [queue.enqueue(jobs.add, 1, 2) for _ in range(5)]
        assert {ended(job) for job in (result, arguments, *small)} == {JobStatus.FINISHED}
        assert result.return_value() == b"x" * 1_500_000
        assert arguments.return_value() == size


def test_a_busy_slot_says_so(start: Start, redis: Redis, queue: Queue) -> None:
    """While its job runs, a slot's hash says busy and names the job; the other slot is idle with none."""
    with start(concurrency=2):
        job = queue.enqueue(jobs.wait_for, "go", "started")
        wait_running(redis, "started")
        name = str(Job.fetch(job.id, connection=redis).worker_name)
        (other,) = {"w", "w-1"} - {name}
        workers = {worker.name: worker for worker in Worker.all(connection=redis)}
        assert (worker_field(redis, name, "state"), workers[name].get_current_job_id()) == ("busy", job.id)
        assert (worker_field(redis, other, "state"), workers[other].get_current_job_id()) == ("idle", None)
        if RQ3:
            assert [execution.job_id for execution in workers[name].get_current_executions()] == [job.id]
            assert (workers[name].current_execution_count, workers[other].current_execution_count) == (1, 0)
        redis.rpush("go", 1)
        assert ended(job) == JobStatus.FINISHED
        assert_no_residue(redis)


# -- handlers --------------------------------------------------------------------------------------------------------


def test_exception_handlers_run_in_the_horse(start: Start, redis: Redis, queue: Queue) -> None:
    """``--exception-handler`` functions run where the job ran, in their order, until one returns False."""
    names = ("handle_exception", "handle_exception_last", "handle_exception_never")
    options = [part for name in names for part in ("--exception-handler", f"jobs.{name}")]
    with start(*options) as worker:
        job = queue.enqueue(promise_jobs.announce_and_fail, "started")
        wait_until(lambda: redis.llen("handled") == 2, what="two handlers")
        (horse,) = wait_running(redis, "started")
        assert ended(job) == JobStatus.FAILED
        assert ended(queue.enqueue(jobs.add, 1, 2)) == JobStatus.FINISHED
        assert texts(redis, "handled") == [f"{horse} {job.id} ValueError", "second"]
        assert horse != worker.pid


def test_the_killed_handler_hears_how_the_horse_died(
    server: EmbeddedServer, redis: Redis, queue: Queue, tmp_path: Path
) -> None:
    """``work_horse_killed_handler`` is called with the dead horse's pid, status and usage, and not in the parent."""
    code = "import sys, promise_jobs; promise_jobs.run_worker_with_killed_handler(sys.argv[1])"
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    worker = WorkerProcess([sys.executable, "-W", "error", "-c", code, server.url], env, tmp_path / "log")
    try:
        worker.wait_for("connections: command")
        pid = queue.enqueue(promise_jobs.pid)
        assert ended(pid) == JobStatus.FINISHED
        job = queue.enqueue(jobs.kill_itself, 9)
        assert ended(job) == JobStatus.FAILED
        caller, job_id, horse, status, maxrss = texts(redis, "killed")[0].split()
        assert redis.llen("killed") == 1
        assert (job_id, int(horse), int(status)) == (job.id, pid.return_value(), 9)
        assert int(caller) not in (worker.pid, int(horse))
        assert int(maxrss) > 1000
        assert worker.stop() == 0
    finally:
        worker.kill()


def test_a_killed_handler_that_raises_costs_nothing(
    server: EmbeddedServer, redis: Redis, queue: Queue, tmp_path: Path
) -> None:
    """A ``work_horse_killed_handler`` that raises is logged; the job fails by what killed its horse."""
    code = (
        "import sys, jobs, promise_jobs as p; p.run_worker_with_killed_handler(sys.argv[1], jobs.handle_killed_raise)"
    )
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    worker = WorkerProcess([sys.executable, "-W", "error", "-c", code, server.url], env, tmp_path / "log")
    try:
        worker.wait_for("connections: command")
        job = queue.enqueue(jobs.kill_itself, 9)
        assert ended(job) == JobStatus.FAILED
        assert "waitpid returned 9 (signal 9)" in str(result_of(job).exc_string)
        assert worker.output().count("RuntimeError: the handler failed") == 1
        assert worker.stop() == 0
    finally:
        worker.kill()


def test_a_copy_of_the_horse_that_a_job_makes_is_not_a_horse(start: Start, redis: Redis, queue: Queue) -> None:
    """A job that forks and lets both processes return has one outcome, that of the process that is the horse."""
    with start():
        job = queue.enqueue(jobs.fork_and_return, "copies", job_timeout=5)
        assert ended(job) == JobStatus.FINISHED
        assert job.return_value() == "parent"
        assert redis.llen("copies") == 1
        assert [ended(queue.enqueue(jobs.add, 1, 2)) for _ in range(3)] == [JobStatus.FINISHED] * 3
        assert worker_field(redis, "w", "successful_job_count") == "4"


# -- maintenance -----------------------------------------------------------------------------------------------------


MAINTAINING = ("--maintenance-interval", "1", "--job-monitoring-interval", "1")


def test_abandoned_jobs_fail_in_a_horse(start: Start, redis: Redis, queue: Queue) -> None:
    """An expired job of a dead stock worker fails; its callback runs in a horse, and uses the connection of jobs."""
    with start(*MAINTAINING) as worker:
        suspend(redis)  # so that the job is not taken before it is made an abandoned one
        wait_until(lambda: worker_field(redis, "w", "state") == "suspended", what="the first heartbeat")
        opened = redis.info("stats")["total_connections_received"]
        job = queue.enqueue(jobs.nothing, on_failure=Callback(promise_jobs.on_abandoned))
        abandon(redis, job)
        assert ended(job) == JobStatus.FAILED
        wait_until(lambda: queue.failed_job_registry.get_job_ids(cleanup=False) == [job.id])
        assert redis.info("stats")["total_connections_received"] == opened + 1
        assert [name for name in names_of_clients(redis) if name.endswith(":jobs")]
        pid, job_id, kind = texts(redis, "abandoned")[0].split()
        assert (job_id, kind) == (job.id, "AbandonedJobError")
        assert int(pid) != worker.pid
        assert redis.llen("abandoned") == 1
        assert not redis.exists(named("rq:wip:default"))


def test_an_abandoned_job_whose_callback_raises_fails_too(start: Start, redis: Redis, queue: Queue) -> None:
    """A failure callback that raises or hangs does not keep its abandoned job, or others, from being failed."""
    with start(*MAINTAINING) as worker:
        suspend(redis)
        wait_until(lambda: worker_field(redis, "w", "state") == "suspended", what="the first heartbeat")
        bad = queue.enqueue(jobs.nothing, on_failure=Callback(jobs.on_failure_raise))
        missing = queue.enqueue(jobs.nothing, on_failure=Callback("jobs.no_such_callback"))
        slow = queue.enqueue(jobs.nothing, on_failure=Callback(jobs.on_failure_hang, timeout=1))
        good = queue.enqueue(jobs.nothing, on_failure=Callback(promise_jobs.on_abandoned))
        abandon(redis, bad, missing, slow, good)
        assert [ended(job) for job in (bad, missing, slow, good)] == [JobStatus.FAILED] * 4
        assert texts(redis, "abandoned")[0].split()[1:] == [good.id, "AbandonedJobError"]
        assert "RuntimeError: the failure callback failed" in worker.output()
        assert "died during" not in worker.output()


def test_an_abandoned_job_whose_callback_is_deaf_does_not_keep_the_slot(
    start: Start, redis: Redis, queue: Queue
) -> None:
    """A failure callback that maintenance cannot end by its timeout costs a horse, not the slot."""
    with start(*MAINTAINING, RQ_POOLED_KILL_GRACE="0.5"):
        suspend(redis)
        wait_until(lambda: worker_field(redis, "w", "state") == "suspended", what="the first heartbeat")
        deaf = queue.enqueue(jobs.nothing, on_failure=Callback(promise_jobs.on_failure_hang_deaf, timeout=1))
        abandon(redis, deaf)
        wait_until(lambda: redis.exists("deaf"), what="the callback")
        resume(redis)
        assert ended(queue.enqueue(jobs.add, 1, 2), timeout=10) == JobStatus.FINISHED


def test_abandoned_jobs_are_retried(start: Start, redis: Redis, queue: Queue) -> None:
    """An expired job of a dead stock worker that has retries left runs again."""
    with start(*MAINTAINING):
        suspend(redis)
        wait_until(lambda: worker_field(redis, "w", "state") == "suspended", what="the first heartbeat")
        job = queue.enqueue(jobs.add, 1, 2, retry=Retry(max=1))
        abandon(redis, job)
        wait_until(lambda: job.get_status() == JobStatus.QUEUED, what="the retry")
        resume(redis)
        assert ended(job, timeout=5) == JobStatus.FINISHED
        assert job.return_value() == 3
