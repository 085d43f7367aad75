"""Law 1: connections do not grow with work, and law 2 where a connection or the server is lost."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_jobs
import psutil
import pytest
from keys import named
from redis import Redis
from rq import Queue, Repeat, Retry
from rq.group import Group
from rq.job import Job
from sampling import Sampler, by_role, finished, of_worker, received
from support import keys_of_jobs, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer

NAME = re.compile(named(r"rq_pooled:[^:]+:[^:]+:(\d+):([a-z]+)"))
POLLING = "polling every 50 ms"
TRACKING = "wake-ups (client tracking)"


def enqueue_everything(redis: Redis, queues: list[str]) -> list[Job]:
    """Enqueue 400 jobs and more of all kinds; return those that will finish."""
    many = [Queue(name, connection=redis) for name in queues]
    first = many[0]
    jobs: list[Job] = []
    for queue in many:
        data = [Queue.prepare_data(crash_jobs.add, (i, i)) for i in range(400 // len(many))]
        jobs += queue.enqueue_many(data)
    for _ in range(5):
        parent = first.enqueue(crash_jobs.add, 1, 2)
        jobs += [parent, first.enqueue(crash_jobs.add, 3, 4, depends_on=parent)]
        jobs.append(first.enqueue(crash_jobs.fail_first, 1, retry=Retry(max=3)))
        jobs.append(first.enqueue(crash_jobs.fail_first, 1, retry=Retry(max=3, interval=1)))
        jobs.append(first.enqueue(crash_jobs.nothing, repeat=Repeat(times=2)))
    group = Group.create(connection=redis)
    jobs += group.enqueue_many(first, [Queue.prepare_data(crash_jobs.nothing) for _ in range(10)])
    return jobs


@pytest.mark.parametrize(
    ("queues", "options"), [(["a"], []), (["a", "b", "c"], ["--with-scheduler"])], ids=["one", "three"]
)
def test_two_connections_whatever_the_work(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, queues: list[str], options: list[str]
) -> None:
    """Ten horses with all kinds of jobs need two named connections, and open none while 400 jobs run."""
    with (
        Sampler(server.url) as sampler,
        running_worker(server.url, *queues, *options, log=tmp_path / "log", concurrency=10) as worker,
    ):
        worker.wait_for(TRACKING)
        wait_until(lambda: len(of_worker(redis)) == 2, what="both connections")
        before = received(redis)
        finished(enqueue_everything(redis, queues), redis)
        wait_until(lambda: not redis.zcard(named("rq:wip:a")), what="the end of all")
        assert received(redis) == before
        assert sampler.most == 2
        assert sampler.samples > 50
        parts = [NAME.fullmatch(name) for name in sampler.names]
        assert {part and part.group(2) for part in parts} == {"command", "listen"}
        assert {part and int(part.group(1)) for part in parts} == {worker.pid}
        assert f":{os.uname().nodename}:" in next(iter(sampler.names))
        assert worker.stop() == 0
        wait_until(lambda: not of_worker(redis), what="the end of both connections")


def test_failures_and_deaths_cost_no_connection(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Failing jobs, returned retries and killed horses are recorded over the same two connections."""
    with Sampler(server.url) as sampler, running_worker(server.url, "a", log=tmp_path / "log", concurrency=4):
        wait_until(lambda: len(of_worker(redis)) == 2, what="both connections")
        queue, before = Queue("a", connection=redis), received(redis)
        jobs = [queue.enqueue(crash_jobs.fail) for _ in range(10)]
        jobs += [queue.enqueue(crash_jobs.exit_at_once) for _ in range(5)]
        jobs += [queue.enqueue(crash_jobs.returned_retry)]
        wait_until(lambda: len(queue.failed_job_registry.get_job_ids(cleanup=False)) == 16, what="all failures")
        assert (received(redis), sampler.most) == (before, 2)


def test_a_server_without_tracking_is_polled(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """Where an ACL refuses CLIENT TRACKING jobs run all the same, over two connections, and the log says so."""
    server = start_server()
    redis = server.client()
    redis.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all", "-client|tracking")
    url = f"redis://worker:secret@{server.host}:{server.port}/0"
    with Sampler(server.url) as sampler, running_worker(url, "a", "b", log=tmp_path / "log", concurrency=4) as worker:
        worker.wait_for(POLLING)
        for name in ("a", "b"):
            finished([Queue(name, connection=redis).enqueue(crash_jobs.nothing) for _ in range(20)], redis)
        assert sampler.most == 2
        assert worker.stop() == 0
        assert "secret" not in worker.output()


def test_a_user_who_may_not_ask_for_its_id_is_polled(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """Where CLIENT is refused altogether the worker still works, without names and wake-ups."""
    server = start_server()
    redis = server.client()
    redis.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all", "-client")
    url = f"redis://worker:secret@{server.host}:{server.port}/0"
    with running_worker(url, "a", log=tmp_path / "log") as worker:
        worker.wait_for(POLLING)
        finished([Queue("a", connection=redis).enqueue(crash_jobs.nothing)], redis)


@pytest.mark.parametrize("function", [crash_jobs.use_redis_of_job, crash_jobs.use_pooled_connection])
def test_a_horse_opens_no_connection_of_its_own(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, function: Callable[[], int]
) -> None:
    """Jobs that use Redis do so over their worker's connections, and one more of the worker serves all of them."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2, RQ_POOLED_URL=server.url):
        wait_until(lambda: len(of_worker(redis)) == 2, what="both connections")
        before = received(redis)
        jobs = [Queue("a", connection=redis).enqueue(crash_jobs.use_redis) for _ in range(10)]
        finished(jobs, redis)
        assert received(redis) == before + 1
        mine = [Queue("a", connection=redis).enqueue(function) for _ in range(10)]
        finished(mine, redis)
        assert [job.return_value() for job in mine] == [0] * 10


@pytest.mark.parametrize("role", ["command", "listen"])
def test_a_connection_closed_by_the_server_is_replaced(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, role: str
) -> None:
    """After CLIENT KILL the worker connects again, records what was running, once, and takes new work."""
    queue, gate = Queue("a", connection=redis), tmp_path / "gate"
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=4) as worker:
        running = [queue.enqueue(crash_jobs.wait_for_file, str(gate)) for _ in range(4)]
        waiting = [queue.enqueue(crash_jobs.nothing) for _ in range(10)]
        wait_until(lambda: len(list(tmp_path.glob("gate.*.pid"))) == 4, what="four running jobs")
        for _ in range(3):
            (victim,) = wait_until(lambda: by_role(redis, role), what=role)
            redis.client_kill_filter(_id=victim)
            wait_until(lambda: by_role(redis, role) not in ([], [victim]), what="a new connection")  # noqa: B023
        gate.touch()
        finished(running + waiting, redis)
        for job in running:
            assert len(job.results()) == 1
        finished([queue.enqueue(crash_jobs.nothing)], redis)
        assert len(of_worker(redis)) == 2
        # A connection that is closed while the other one is still being opened is no outage of its own.
        lost = wait_until(
            lambda: worker.output().count("lost the server") == worker.output().count("the server is back") > 0
        )
        assert lost and worker.output().count("lost the server") <= 3
        assert not keys_of_jobs(redis)


def test_a_connection_is_lost_under_load_without_losing_jobs(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """Whatever is under way when a connection is closed, every job is executed and counted once in its results."""
    queue = Queue("a", connection=redis)
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=4):
        jobs = queue.enqueue_many([Queue.prepare_data(crash_jobs.add, (i, 1)) for i in range(1500)])
        for _ in range(5):
            waiting = len(queue)
            wait_until(lambda: len(queue) < waiting, what="some progress")  # noqa: B023
            for number in of_worker(redis):
                redis.client_kill_filter(_id=number)
        finished(jobs, redis)
    assert all(redis.xlen(named(f"rq:results:{job.id}")) == 1 for job in jobs)
    assert not keys_of_jobs(redis)


def test_flushed_scripts_are_loaded_again(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """SCRIPT FLUSH while jobs run loses nothing and is not taken for a lost server."""
    queue = Queue("a", connection=redis)
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=4) as worker:
        jobs = queue.enqueue_many([Queue.prepare_data(crash_jobs.nothing) for _ in range(1000)])
        for _ in range(10):
            redis.script_flush()
        finished(jobs, redis)
        redis.script_flush()
        finished([queue.enqueue(crash_jobs.nothing)], redis)
        assert "lost the server" not in worker.output()
        assert "rror" not in worker.output()
    assert all(redis.xlen(named(f"rq:results:{job.id}")) == 1 for job in jobs)


def test_an_idle_worker_registers_again_after_a_flush(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """After FLUSHALL all slots are back in rq:workers within a heartbeat, with everything monitors read."""
    with running_worker(
        server.url, "a", "--name", "w", log=tmp_path / "log", concurrency=3, RQ_POOLED_HEARTBEAT_INTERVAL="0.2"
    ):
        names = {named(b"rq:worker:w"), named(b"rq:worker:w-1"), named(b"rq:worker:w-2")}
        wait_until(lambda: redis.smembers(named("rq:workers")) == names, what="registration")
        redis.flushall()
        wait_until(lambda: redis.smembers(named("rq:workers")) == names, 2, "registration again")
        assert redis.smembers(named("rq:workers:a")) == names
        for name in names:
            assert redis.hget(name, "state") == b"idle"
            assert redis.hget(name, "queues") == b"a"
            assert redis.ttl(name) > 0
        finished([Queue("a", connection=redis).enqueue(crash_jobs.nothing)], redis)


def test_a_restarted_server_loses_no_outcome(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """The server is killed while four jobs run, and is away when they end: all four are recorded, once."""
    server = start_server({"appendonly": "yes", "appendfsync": "always"})
    redis, gate = server.client(), tmp_path / "gate"
    queue = Queue("a", connection=redis)
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=4) as worker:
        jobs = [queue.enqueue(crash_jobs.wait_for_file, str(gate)) for _ in range(4)]
        wait_until(lambda: len(list(tmp_path.glob("gate.*.pid"))) == 4, what="four running jobs")
        server.kill()
        worker.wait_for("lost the server")
        gate.touch()
        server.start()
        worker.wait_for("the server is back")
        finished(jobs, redis)
        assert len({job.return_value() for job in jobs}) == 4
        assert all(len(job.results()) == 1 for job in jobs)
        assert worker.output().count("lost the server") == 1
        finished([queue.enqueue(crash_jobs.nothing)], redis)
        assert worker.stop() == 0


def test_a_worker_can_be_stopped_while_the_server_is_away(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """SIGTERM during an outage ends an idle worker, without a traceback."""
    server = start_server()
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2) as worker:
        server.kill()
        worker.wait_for("lost the server")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0
        assert "Traceback" not in worker.output()


def test_giving_up_is_an_exit_code(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """After RECONNECT_ATTEMPTS attempts in vain the worker ends with 75: a supervisor may try again."""
    server = start_server()
    with running_worker(
        server.url, "a", log=tmp_path / "log", RQ_POOLED_RECONNECT_ATTEMPTS="2", RQ_POOLED_RECONNECT_CAP="0.2"
    ) as worker:
        server.kill()
        assert worker.wait(10) == 75
        assert "gave up after 2 attempts" in worker.output()
        assert "Traceback" not in worker.output()


def test_an_idle_worker_costs_the_server_nothing(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Without work nothing polls the queues: a suspended or idle worker only says now and then that it lives."""
    with running_worker(server.url, "a", "b", log=tmp_path / "log", concurrency=4):
        wait_until(lambda: quiet(redis), 20, "a quarter of a second in which EXISTS was not called")


def quiet(redis: Redis) -> bool:
    """Tell whether the queues were not looked at for a moment."""

    def calls() -> Any:
        return redis.info("commandstats").get("cmdstat_exists", {}).get("calls", 0)

    first, over = calls(), time.monotonic() + 0.25
    while time.monotonic() < over:
        if calls() != first:
            return False
    return True


def claims_made(redis: Redis) -> int:
    """Return how many scripts the server has run."""
    return int(redis.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


def test_an_id_that_is_held_back_does_not_make_the_worker_spin(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """While an id waits for another execution of its job, the worker looks a few times a second, not all the time."""
    queue = Queue("a", connection=redis)
    gate = tmp_path / "gate"
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=3):
        job = queue.enqueue(crash_jobs.wait_for_file, str(gate))
        wait_until(lambda: job.get_status() == "started", what="the first execution")
        redis.rpush(queue.key, job.id)
        began, before = time.monotonic(), claims_made(redis)
        wait_until(lambda: time.monotonic() - began > 2)
        assert claims_made(redis) - before < 30
        gate.touch()
        wait_until(lambda: not redis.llen(queue.key) and job.get_status() == "finished", what="both executions")


def test_a_refused_claim_does_not_make_the_worker_spin(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """A server that is out of memory is asked for jobs once a second."""
    server = start_server({"maxmemory-policy": "noeviction"})
    redis = server.client()
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=3) as worker:
        Queue("a", connection=redis).enqueue(crash_jobs.nothing)
        wait_until(lambda: not redis.llen(named("rq:queue:a")), what="an idle worker")
        redis.rpush(named("rq:queue:b"), "x")
        redis.config_set("maxmemory", 1)
        # Only what needs no memory can put a job before the worker now.
        redis.rename(named("rq:queue:b"), named("rq:queue:a"))
        worker.wait_for("cannot claim jobs")
        began, before = time.monotonic(), claims_made(redis)
        wait_until(lambda: time.monotonic() - began > 2)
        assert claims_made(redis) - before < 20
        redis.config_set("maxmemory", 0)
        worker.wait_for("claiming jobs again")


def test_an_idle_limit_does_not_make_a_busy_worker_spin(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A job that runs longer than --max-idle-time costs the parent no processor time."""
    queue = Queue("a", connection=redis)
    gate = tmp_path / "gate"
    with running_worker(server.url, "a", "--max-idle-time", "1", log=tmp_path / "log") as worker:
        job = queue.enqueue(crash_jobs.wait_for_file, str(gate))
        wait_until(lambda: job.get_status() == "started", what="the job")
        began, parent = time.monotonic(), psutil.Process(worker.pid)
        wait_until(lambda: time.monotonic() - began > 1.2)
        before = sum(parent.cpu_times()[:2])
        wait_until(lambda: time.monotonic() - began > 2.2)
        assert sum(parent.cpu_times()[:2]) - before < 0.3
        gate.touch()
        assert worker.wait(10) == 0
