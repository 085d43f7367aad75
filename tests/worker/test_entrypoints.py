"""Every way in: each option of ``rq worker``, ``rq worker-pool``, a script, and monitors that only look."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import entry_jobs
import pytest
from keys import named
from redis import Redis
from rq import Queue
from rq.cli.workers import worker as rq_worker
from rq.job import Job
from rq.serializers import JSONSerializer
from support import PYTHONPATH, WorkerProcess, running_worker, wait_until

import rq_pooled
from rq_pooled.embedded import EmbeddedServer

STOCK = "rq.worker.Worker"
#: Options of ``rq worker`` and the test that uses each; a new one of RQ's must find its place here.
OPTIONS = {
    "burst": "test_burst",
    "logging_level": "test_quiet",
    "log_format": "test_formats_of_the_log",
    "date_format": "test_formats_of_the_log",
    "name": "test_name",
    "results_ttl": "test_results_ttl",
    "worker_ttl": "test_worker_ttl",
    "maintenance_interval": "test_maintenance_interval",
    "job_monitoring_interval": "test_job_monitoring_interval",
    "disable_job_desc_logging": "test_descriptions_are_left_out",
    "verbose": "test_verbose",
    "quiet": "test_quiet",
    "exception_handler": "test_exception_handler",
    "pid": "test_pid",
    "disable_default_exception_handler": "test_exception_handler",
    "max_jobs": "test_max_jobs",
    "max_idle_time": "test_max_idle_time",
    "with_scheduler": "test_with_scheduler",
    "dequeue_strategy": "test_order_is_that_of_stock_rq",
    "queues": "test_burst",
    "serializer": "test_serializer_json",
    "path": "test_path",
    "connection_class": "test_connection_class",
    "queue_class": "test_queue_class",
    "job_class": "test_job_class",
    "worker_class": "test_burst",
    "config": "test_settings_module",
    "url": "test_burst",
}

Run = Any


@pytest.fixture
def run(server: EmbeddedServer, tmp_path: Path) -> Run:
    """Run ``rq worker`` with our class until it ends well, warnings being errors; return what it has printed."""

    def call(*arguments: str, **options: Any) -> str:
        options = {"ready": None, "PYTHONWARNINGS": "error", **options}
        with running_worker(server.url, *arguments, log=tmp_path / "log", **options) as worker:
            code = worker.wait()
        assert code == 0, worker.output()
        return worker.output()

    return call


@pytest.fixture
def worker(server: EmbeddedServer, tmp_path: Path) -> Any:
    """Like ``running_worker``, on the test's server, warnings being errors."""

    def call(*arguments: str, **options: Any) -> Any:
        return running_worker(server.url, *arguments, log=tmp_path / "log", **{"PYTHONWARNINGS": "error", **options})

    return call


@pytest.fixture
def queue(redis: Redis) -> Queue:
    """The queue "q" as a program enqueues into it, with plain RQ."""
    return Queue("q", connection=redis)


def is_finished(job: Job) -> bool:
    return job.get_status() == "finished"


def registered(redis: Redis) -> set[str]:
    return {key.decode().removeprefix(named("rq:worker:")) for key in redis.smembers(named("rq:workers"))}


def noted(redis: Redis) -> list[str]:
    return [entry.decode() for entry in redis.lrange("order", 0, -1)]


def ours(redis: Redis) -> list[str]:
    """Return the names of rq_pooled's connections."""
    return [entry["name"] for entry in redis.client_list() if entry["name"].startswith(named("rq_pooled:"))]


# -- options of rq worker ----------------------------------------------------------------------------------------------


def test_every_option_has_a_test() -> None:
    """An option that a new RQ brings is noticed, and none is said to be tested that is not."""
    assert {parameter.name for parameter in rq_worker.params} == set(OPTIONS)
    assert [name for name in OPTIONS.values() if name not in globals()] == []


@pytest.mark.parametrize("concurrency", [1, 4])
def test_burst(run: Run, redis: Redis, queue: Queue, concurrency: int) -> None:
    """With --burst all jobs of the queues run, and the worker leaves neither connections nor registrations."""
    jobs = [Queue(name, connection=redis).enqueue(entry_jobs.add, i, 1) for i, name in enumerate("qrqrqr")]
    output = run("q", "r", "--burst", concurrency=concurrency, fresh=True)
    assert [job.return_value() for job in jobs] == [1, 2, 3, 4, 5, 6]
    assert "Warning" not in output and "Traceback" not in output
    assert not registered(redis) and not ours(redis)


def test_burst_without_jobs(run: Run, redis: Redis) -> None:
    """With --burst and nothing to do the worker ends at once."""
    assert "done, quitting" in run("--burst")


def test_max_jobs(run: Run, queue: Queue) -> None:
    """--max-jobs counts jobs of the whole worker, whatever its concurrency."""
    jobs = [queue.enqueue(entry_jobs.add, 1, 1) for _ in range(7)]
    run("q", "--max-jobs", "3", concurrency=2)
    assert sum(is_finished(job) for job in jobs) == 3
    assert len(queue) == 4


def test_max_idle_time(run: Run, queue: Queue) -> None:
    """--max-idle-time ends the worker after so many seconds without a job, not after so many seconds."""
    job = queue.enqueue(entry_jobs.add, 1, 1)
    output = run("q", "--max-idle-time", "1")
    assert is_finished(job)
    assert "idle for 1 seconds, quitting" in output
    job.refresh()
    assert job.ended_at is not None
    assert datetime.now(timezone.utc) - job.ended_at.astimezone(timezone.utc) >= timedelta(seconds=1)


def test_with_scheduler(worker: Any, queue: Queue) -> None:
    """--with-scheduler enqueues what is scheduled when it is due."""
    due = datetime.now(timezone.utc) + timedelta(seconds=1)
    job = queue.enqueue_at(due, entry_jobs.add, 1, 2)
    with worker("q", "--with-scheduler"):
        wait_until(lambda: is_finished(job), what="the scheduled job")
    job.refresh()
    assert job.enqueued_at is not None
    assert job.enqueued_at >= due.replace(microsecond=0)  # RQ counts whole seconds


def test_with_scheduler_in_a_burst(run: Run, queue: Queue) -> None:
    """A burst with scheduler includes the jobs that are due when it begins, and no later ones, as with RQ."""
    due = queue.enqueue_at(datetime(2020, 1, 1, tzinfo=timezone.utc), entry_jobs.add, 1, 2)
    later = queue.enqueue_in(timedelta(hours=1), entry_jobs.add, 1, 2)
    run("q", "--burst", "--with-scheduler")
    assert is_finished(due)
    assert later.get_status() == "scheduled"


@pytest.mark.parametrize("strategy", ["default", "round_robin"])
def test_order_is_that_of_stock_rq(run: Run, redis: Redis, strategy: str) -> None:
    """At concurrency 1 jobs of queues of uneven length run in the order in which a stock worker runs them."""
    orders = []
    for worker_class in (STOCK, "rq_pooled.Worker"):
        redis.flushall()
        for name, number in (("a", 2), ("b", 5), ("c", 4)):
            for i in range(number):
                Queue(name, connection=redis).enqueue(entry_jobs.note, job_id=f"{name}{i}")
        run("b", "a", "c", "--burst", "--dequeue-strategy", strategy, worker_class=worker_class)
        orders.append(noted(redis))
    assert len(orders[0]) == 11
    assert orders[1] == orders[0]


def test_random_strategy(run: Run, redis: Redis) -> None:
    """With the random strategy each queue keeps its own order, and no queue waits for another to be empty."""
    for name in "abc":
        for i in range(20):
            Queue(name, connection=redis).enqueue(entry_jobs.note, job_id=f"{name}{i:02}")
    run("a", "b", "c", "--burst", "-ds", "random")
    order = noted(redis)
    assert len(order) == 60
    for name in "abc":
        assert [job for job in order if job[0] == name] == [f"{name}{i:02}" for i in range(20)]
    assert order != sorted(order)
    assert order != [f"{name}{i:02}" for i in range(20) for name in "abc"]


def test_strict_order_over_many_jobs(run: Run, redis: Redis) -> None:
    """At concurrency 1, 200 jobs run strictly one after the other in the order in which they were enqueued."""
    queue = Queue("q", connection=redis)
    for i in range(200):
        queue.enqueue(entry_jobs.note, job_id=f"{i:03}")
    run("q", "--burst", "-q")
    assert noted(redis) == [f"{i:03}" for i in range(200)]
    times = [(job.started_at, job.ended_at) for job in Job.fetch_many(noted(redis), redis) if job]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_name(worker: Any, redis: Redis) -> None:
    """--name names the first slot, and the others after it."""
    with worker("q", "--name", "given", concurrency=3):
        assert registered(redis) == {"given", "given-1", "given-2"}


def test_results_ttl(run: Run, redis: Redis, queue: Queue) -> None:
    """--results-ttl is how long a job and its result are kept that do not say so themselves."""
    plain, own = queue.enqueue(entry_jobs.add, 1, 1), queue.enqueue(entry_jobs.add, 1, 1, result_ttl=5000)
    run("q", "--burst", "--results-ttl", "100")
    assert 90 < redis.ttl(plain.key) <= 100
    assert 4990 < redis.ttl(own.key) <= 5000


def test_worker_ttl(worker: Any, redis: Redis) -> None:
    """Each slot's registration lives as long as its leases without a heartbeat, at most --worker-ttl and a minute."""
    for ttl, lives in (("60", 60), ("600", 137)):
        with worker("q", "--worker-ttl", "77", "--name", "w", concurrency=2, RQ_POOLED_HEARTBEAT_TTL=ttl):
            assert all(lives - 10 < redis.ttl(named(f"rq:worker:{name}")) <= lives for name in ("w", "w-1"))


def test_maintenance_interval(worker: Any, redis: Redis) -> None:
    """--maintenance-interval is how often registries are cleaned, the first time at once."""
    with worker("q", "--maintenance-interval", "1"):
        for _ in range(2):
            redis.zadd(named("rq:finished:q"), {"expired": 1})
            wait_until(lambda: not redis.exists(named("rq:finished:q")), timeout=10, what="maintenance")


def test_job_monitoring_interval(worker: Any, redis: Redis, queue: Queue) -> None:
    """--job-monitoring-interval makes the heartbeats of a running job more frequent."""
    job = queue.enqueue(entry_jobs.wait_for_key, "go")
    with worker("q", "--job-monitoring-interval", "1", "--name", "w"):
        wait_until(lambda: job.get_status() == "started")
        for _ in range(2):
            last = redis.hget(named("rq:worker:w"), "last_heartbeat")
            wait_until(lambda last=last: redis.hget(named("rq:worker:w"), "last_heartbeat") != last, timeout=5)
        redis.set("go", 1)
        wait_until(lambda: is_finished(job))


@pytest.mark.parametrize("name", ["json", "rq.serializers.JSONSerializer"])
def test_serializer_json(run: Run, redis: Redis, name: str) -> None:
    """With the JSON serializer, by alias or path, arguments and results are JSON, and stored as such."""
    job = Queue("q", connection=redis, serializer=JSONSerializer).enqueue(entry_jobs.add, 20, 22)
    run("q", "--burst", "--serializer", name)
    assert is_finished(job)
    assert job.return_value() == 42


def test_job_class(run: Run, redis: Redis) -> None:
    """--job-class is the class that runs the jobs."""
    job = Queue("q", connection=redis, job_class=entry_jobs.OwnJob).enqueue(entry_jobs.add, 1, 2)
    run("q", "--burst", "--job-class", "entry_jobs.OwnJob")
    assert job.return_value() == ["own job", 3]


@pytest.mark.parametrize("name", ["entry_jobs.OwnQueue", "rq_pooled.Queue"])
def test_queue_class(run: Run, queue: Queue, name: str) -> None:
    """--queue-class, of RQ's kind or ours, is the class whose methods are called for the jobs."""
    job = queue.enqueue(entry_jobs.add, 1, 2)
    dependent = queue.enqueue(entry_jobs.add, 3, 4, depends_on=job)
    output = run("q", "--burst", "--queue-class", name, concurrency=2)
    assert is_finished(job) and is_finished(dependent)
    assert (f"own queue for {job.id}" in output) is (name == "entry_jobs.OwnQueue")


@pytest.mark.parametrize("options", [[], ["--disable-default-exception-handler"]], ids=["with", "without"])
def test_exception_handler(run: Run, redis: Redis, queue: Queue, options: list[str]) -> None:
    """--exception-handler is called once for a failed job; the job fails as it does with a stock worker."""
    results = []
    for worker_class in (STOCK, "rq_pooled.Worker"):
        redis.flushall()
        job = queue.enqueue(entry_jobs.fail, job_id="failing")
        output = run("q", "--burst", "--exception-handler", "entry_jobs.handler", *options, worker_class=worker_class)
        handled = redis.lrange("handled", 0, -1)
        results.append((handled, job.get_status(), output.count("ValueError: on purpose")))
    assert results[0][0] == [b"failing ValueError"]
    assert results[1] == results[0]


@pytest.mark.parametrize("options", [["-q"], ["--quiet"], ["--logging_level", "WARNING"]], ids=" ".join)
def test_quiet(run: Run, queue: Queue, options: list[str]) -> None:
    """Told to be quiet, the worker prints nothing at all while all is well."""
    job = queue.enqueue(entry_jobs.add, 1, 2)
    output = run("q", "--burst", *options, concurrency=2)
    assert is_finished(job)
    assert output == ""


@pytest.mark.parametrize("options", [["-v"], ["--logging_level", "DEBUG"]], ids=" ".join)
def test_verbose(run: Run, queue: Queue, options: list[str]) -> None:
    """Told to be verbose, the worker logs what a plain run does, and more."""
    queue.enqueue(entry_jobs.add, 1, 2, job_id="first")
    plain = run("q", "--burst", "--name", "w")
    queue.enqueue(entry_jobs.add, 1, 2, job_id="first")
    verbose = run("q", "--burst", "--name", "w", *options)
    assert "first" in plain and "first" in verbose
    assert len(verbose.splitlines()) > len(plain.splitlines())


def test_descriptions_are_left_out(run: Run, queue: Queue) -> None:
    """A job's description is logged with its id; with --disable-job-desc-logging only its id is."""
    for options, shown in (([], True), (["--disable-job-desc-logging"], False)):
        job = queue.enqueue(entry_jobs.add, 1, 2, description="who pays whom")
        output = run("q", "--burst", *options)
        assert job.id in output
        assert ("who pays whom" in output) is shown


def test_formats_of_the_log(run: Run, queue: Queue) -> None:
    """--log-format and --date-format hold for each line of the log."""
    queue.enqueue(entry_jobs.add, 1, 2)
    output = run("q", "--burst", "--log-format", "%(asctime)s|%(name)s|%(message)s", "--date-format", "<%Y>")
    assert output
    assert [line for line in output.splitlines() if not re.match(r"<\d{4}>\|rq[._]\w+\|", line)] == []


def test_pid(worker: Any, redis: Redis, tmp_path: Path) -> None:
    """--pid writes the process to which signals are to be sent."""
    with worker("q", "--pid", str(tmp_path / "pid")) as process:
        assert int((tmp_path / "pid").read_text()) == process.pid


def test_path(run: Run, queue: Queue, tmp_path: Path) -> None:
    """--path is where jobs are imported from."""
    (tmp_path / "entry_elsewhere.py").write_text("def job():\n    return 'found'\n")
    job = queue.enqueue("entry_elsewhere.job")
    run("q", "--burst", "--path", str(tmp_path))
    assert job.return_value() == "found"


def test_connection_class(run: Run, queue: Queue, tmp_path: Path) -> None:
    """The client that a job is given is of --connection-class."""
    (tmp_path / "entry_client.py").write_text(
        "import redis, rq\n"
        "class Client(redis.Redis):\n    pass\n"
        "def job():\n    return isinstance(rq.get_current_job().connection, Client)\n"
    )
    job = queue.enqueue("entry_client.job")
    run("q", "--burst", "--path", str(tmp_path), "--connection-class", "entry_client.Client")
    assert job.return_value() is True


@contextlib.contextmanager
def started(command: list[str], log: Path, **environment: str) -> Iterator[WorkerProcess]:
    """Run a command with the tests importable and nothing else set, warnings being errors."""
    paths = os.pathsep.join([PYTHONPATH, str(log.parent)])
    env = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error", **environment}
    process = WorkerProcess([sys.executable, *command], env, log)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.kill()


@pytest.mark.parametrize("name", ["RQ_POOLED_CONCURRENCY", "CONCURRENCY"])
def test_settings_module(server: EmbeddedServer, redis: Redis, tmp_path: Path, name: str) -> None:
    """-c names a module that says server, queues, name and, with or without prefix, settings of rq_pooled."""
    module = f"entry_settings_{name.lower()}"
    (tmp_path / f"{module}.py").write_text(
        f"REDIS_URL = {server.url!r}\nQUEUES = ['high', 'low']\nNAME = 'configured'\n{name} = 3\n"
    )
    job = Queue("low", connection=redis).enqueue(entry_jobs.add, 1, 2)
    command = ["-m", "rq.cli", "worker", "-c", module, "--worker-class", "rq_pooled.Worker"]
    with started(command, tmp_path / "log") as process:
        wait_until(lambda: is_finished(job) or process.process.poll() is not None)
        assert registered(redis) == {"configured", "configured-1", "configured-2"}, process.output()
        assert process.stop() == 0


# -- rq worker-pool ----------------------------------------------------------------------------------------------------


def test_pool_in_a_burst(run: Run, redis: Redis, queue: Queue) -> None:
    """``rq worker-pool -b -n 2`` with our class runs all jobs and ends, leaving nothing behind."""
    jobs = [queue.enqueue(entry_jobs.add, i, 1) for i in range(20)]
    run("q", "--burst", "-n", "2", command=("worker-pool",), concurrency=2)
    assert [job.return_value() for job in jobs] == list(range(1, 21))
    assert not registered(redis) and not ours(redis)


@pytest.mark.parametrize("to_group", [False, True], ids=["to the pool", "Ctrl-C"])
def test_pool_stopped_by_sigint(worker: Any, redis: Redis, queue: Queue, to_group: bool) -> None:
    """SIGINT to a pool, or to all its processes, ends its workers warmly: the job that runs is finished first."""
    job = queue.enqueue(entry_jobs.wait_for_key, "go")
    with worker("q", "-n", "2", command=("worker-pool",), ready=None, concurrency=2) as pool:
        wait_until(lambda: len(registered(redis)) == 4 and job.get_status() == "started", what="two workers")
        (os.killpg if to_group else os.kill)(pool.pid, signal.SIGINT)
        wait_until(lambda: pool.output().count("arm shut down requested") >= 2, what="both to stop")
        redis.set("go", 1)
        pool.wait()
        assert is_finished(job)
        wait_until(lambda: not registered(redis) and not ours(redis), what="both workers to end")


# -- scripts -----------------------------------------------------------------------------------------------------------


def script(tmp_path: Path, text: str, **environment: str) -> Any:
    """Run a program that ends by printing JSON, and return that."""
    with started(["-c", text], tmp_path / "script.log", **environment) as process:
        assert process.wait() == 0, process.output()
        return json.loads(process.output().splitlines()[-1])


@pytest.mark.parametrize("worker_class", ["rq.SimpleWorker", "rq_pooled.Worker"])
def test_work_tells_whether_there_was_work(
    server: EmbeddedServer, queue: Queue, tmp_path: Path, worker_class: str
) -> None:
    """In a script ``work(burst=True)`` returns True if any job was executed, else False, again and again."""
    queue.enqueue(entry_jobs.add, 1, 2)
    text = f"""
import json, entry_jobs, redis, rq, rq_pooled
client = redis.Redis.from_url({server.url!r})
answers = [{worker_class}(["q"], connection=client).work(burst=True) for _ in range(2)]
rq.Queue("q", connection=client).enqueue(entry_jobs.fail)
answers.append({worker_class}(["q"], connection=client).work(burst=True))
client.close()
print(json.dumps(answers))
"""
    assert script(tmp_path, text) == [True, False, True]


def test_positional_arguments(server: EmbeddedServer, redis: Redis, queue: Queue, tmp_path: Path) -> None:
    """Queues, name, default_result_ttl and connection may be given by position, in RQ's order."""
    job = queue.enqueue(entry_jobs.add, 1, 2)
    text = f"""
import json, redis, rq, rq_pooled
client = redis.Redis.from_url({server.url!r})
worker = rq_pooled.Worker([rq.Queue("q", connection=client)], "by position", 77, client)
assert worker.connection is client
print(json.dumps([worker.name, worker.work(burst=True)]))
"""
    assert script(tmp_path, text) == ["by position", True]
    assert 67 < redis.ttl(job.key) <= 77


@pytest.mark.parametrize("queues", ['["q"]', '"q"', "[]"])
def test_no_connection_at_all(server: EmbeddedServer, queue: Queue, tmp_path: Path, queues: str) -> None:
    """A worker that is given names only works on the server of RQ_POOLED_URL."""
    job = queue.enqueue(entry_jobs.add, 1, 2)
    names = queues if queues != "[]" else '("q",)'
    text = f"import json, rq_pooled; print(json.dumps(rq_pooled.Worker({names}).work(burst=True)))"
    assert script(tmp_path, text, RQ_POOLED_URL=server.url) is True
    assert is_finished(job)


@pytest.mark.parametrize("url", ["redis://u:s3cr3t@shop:6380/0", "{}", "redis://localhost:{port}/0", "sentinel://a/b"])
def test_another_server_than_that_of_rq_pooled_url(run: Run, server: EmbeddedServer, url: str) -> None:
    """`rq worker` does not read RQ_POOLED_URL: a worker says at its start if that names another server than its own."""
    port = server.url.split("/")[2].rpartition(":")[2]
    output = run("q", "--burst", RQ_POOLED_URL=url.format(server.url, port=port))
    wanted = f"RQ_POOLED_URL names redis://shop:6380/0, and this worker serves redis://127.0.0.1:{port}/0: `rq worker`"
    assert (wanted in output) == ("RQ_POOLED_URL names" in output) == ("shop" in url)
    assert "s3cr3t" not in output


# -- monitors ----------------------------------------------------------------------------------------------------------


def everything(redis: Redis) -> dict[str, Any]:
    """Return all that a look could change: keys and their values, connections and their names."""
    clients = {entry["id"]: entry["name"] for entry in redis.client_list()}
    return {
        "connections": int(redis.info("stats")["total_connections_received"]),
        "clients": clients,
        "keys": {key: redis.dump(key) for key in redis.keys("*")},
    }


def test_looking_changes_nothing(worker: Any, redis: Redis, queue: Queue, server: EmbeddedServer) -> None:
    """Listing, finding and constructing workers opens and names no connection and writes nothing."""
    job = queue.enqueue(entry_jobs.wait_for_key, "go")
    with worker("q", "--name", "seen", concurrency=2) as process:
        wait_until(lambda: len(ours(redis)) == 3, what="the job's own connection")
        os.kill(process.pid, signal.SIGSTOP)  # what changes now is our doing
        try:
            before = everything(redis)
            workers = rq_pooled.Worker.all(connection=redis)
            one = rq_pooled.Worker.find_by_key(named("rq:worker:seen"), connection=redis)
            rq_pooled.Worker(["q"], name="other", connection=redis)
            rq_pooled.Worker([queue], "another", 500, redis)
            rq_pooled.Worker([queue])
            after = everything(redis)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert after == before
        assert {each.name for each in workers} == {"seen", "seen-1"}
        assert all(isinstance(each, rq_pooled.Worker) and each.pid == process.pid for each in workers)
        assert sorted(str(each.get_state()) for each in workers) == ["busy", "idle"]
        assert [each.get_current_job_id() for each in workers if each.get_state() == "busy"] == [job.id]
        assert one is not None and one.queue_names() == ["q"]
        redis.set("go", 1)
        wait_until(lambda: is_finished(job))


def test_constructing_without_a_connection_connects_nowhere(
    redis: Redis, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that finds its server by RQ_POOLED_URL does not connect before it works."""
    monkeypatch.setenv("RQ_POOLED_URL", server.url)
    before = everything(redis)
    rq_pooled.Worker(["q"])
    assert everything(redis) == before


# -- beginning and end -------------------------------------------------------------------------------------------------


def test_preload_is_imported_once_before_forking(worker: Any, redis: Redis, queue: Queue, tmp_path: Path) -> None:
    """Modules of RQ_POOLED_PRELOAD are imported by the parent alone, and horses inherit them."""
    file = tmp_path / "imports"
    with worker("q", concurrency=3, RQ_POOLED_PRELOAD="entry_preload", ENTRY_PRELOAD_FILE=str(file)) as process:
        jobs = [queue.enqueue(entry_jobs.preloaded) for _ in range(6)]
        wait_until(lambda: all(is_finished(job) for job in jobs))
        for job in jobs:
            horse, imported_by = job.return_value()
            assert horse != process.pid
            assert imported_by == [process.pid]
    assert file.read_text().split() == [str(process.pid)]


def test_a_warm_shutdown_leaves_nothing(worker: Any, redis: Redis, queue: Queue) -> None:
    """After SIGTERM no connection of worker or horses is open, and all slots have registered their death."""
    jobs = [queue.enqueue(entry_jobs.wait_for_key, "go") for _ in range(2)]
    waiting = queue.enqueue(entry_jobs.add, 1, 2, at_front=False)
    with worker("q", "--name", "w", concurrency=2) as process:
        wait_until(lambda: all(job.get_status() == "started" for job in jobs))
        process.process.send_signal(signal.SIGTERM)
        process.wait_for("arm shut down requested")
        redis.set("go", 1)
        assert process.wait() == 0
    assert all(is_finished(job) for job in jobs)
    assert waiting.get_status() == "queued"
    assert ours(redis) == []
    assert registered(redis) == set() and not redis.exists(named("rq:workers:q"))
    for name in ("w", "w-1"):
        assert redis.hget(named(f"rq:worker:{name}"), "death")
        assert 0 < redis.ttl(named(f"rq:worker:{name}")) <= 60


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_at_the_worst_moments(run: Run, redis: Redis, queue: Queue, name: str) -> None:
    """A signal just after the registration begins a warm shutdown, and one during the end does not cut it short."""
    job = queue.enqueue(entry_jobs.add, 1, 2)
    output = run("q", worker_class="entry_worker.Worker", concurrency=2, ENTRY_SIGNAL=name)
    assert "arm shut down requested" in output and "Traceback" not in output
    assert job.get_status() == "queued"
    assert not registered(redis) and not ours(redis)


def test_no_warnings(run: Run, redis: Redis, queue: Queue) -> None:
    """A run with every kind of end prints no warning of Python's, each of which is an error here."""
    queue.enqueue(entry_jobs.add, 1, 2)
    queue.enqueue(entry_jobs.fail)
    queue.enqueue(entry_jobs.note)
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "rq.cli", "worker"]
    url = redis.connection_pool.connection_kwargs
    done = subprocess.run(
        [*command, "--url", f"redis://{url['host']}:{url['port']}/0", "--worker-class", "rq_pooled.Worker", "-b", "q"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
        env={
            **os.environ,
            "PYTHONPATH": PYTHONPATH,
            "RQ_POOLED_CONCURRENCY": "3",
        },
    )
    assert "Warning" not in done.stdout + done.stderr
    assert noted(redis)


def test_a_class_is_told_which_of_its_methods_are_never_called(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """Who overrides what RQ does with its one work horse reads in the log that it has no effect; ours says nothing."""
    for worker_class, said in (("unheard_worker.Worker", True), ("rq_pooled.Worker", False)):
        log = tmp_path / worker_class
        with running_worker(server.url, "--burst", log=log, worker_class=worker_class, ready=None) as worker:
            assert worker.wait() == 0
        assert ("Worker.execute_job is never called by rq_pooled" in worker.output()) is said
