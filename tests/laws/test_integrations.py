"""Programs that know RQ find what they expect: ``rq info``, django-rq, rq-dashboard, Sentry, Datadog, OpenTelemetry."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import entry_jobs
import pytest
import retry_jobs
import rq
from keys import named
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.registry import StartedJobRegistry
from support import PYTHONPATH, WorkerProcess, running_worker, wait_until

from rq_pooled import Backoff, Sweeper
from rq_pooled import Queue as PooledQueue
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.failed import Bury
from rq_pooled.rq_api import RQ3


def status(job: Job) -> str:
    return str(getattr(job.get_status(), "value", ""))


def execute(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """Run a Python program, warnings being errors, and return what it printed."""
    paths = [str(cwd)] if cwd else []
    done = subprocess.run(
        [sys.executable, *command],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=40,
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONWARNINGS": "error",
            "PYTHONPATH": os.pathsep.join([*paths, PYTHONPATH]),
            **environment,
        },
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# -- rq info and its like ----------------------------------------------------------------------------------------------


@pytest.fixture
def busy(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> Iterator[tuple[WorkerProcess, Job]]:
    """A worker named "seen" of three slots, one of which runs a job until the key "go" exists."""
    queue = Queue("q", connection=redis)
    job = queue.enqueue(entry_jobs.wait_for_key, "go")
    with running_worker(server.url, "q", "--name", "seen", concurrency=3, log=tmp_path / "log") as worker:
        wait_until(lambda: status(job) == "started")
        yield worker, job
        redis.set("go", 1)


def test_rq_info_lists_a_worker_for_each_slot(busy: tuple[WorkerProcess, Job], server: EmbeddedServer) -> None:
    """``rq info`` shows N workers for concurrency N, what each does, and the queue they share."""
    lines = execute("-m", "rq.cli", "info", "--url", server.url, "--raw").splitlines()
    workers = {line.split()[1]: line for line in lines if line.startswith("worker ")}
    assert set(workers) == {"seen", "seen-1", "seen-2"}
    assert sorted(line.split(")")[1].split()[0] for line in workers.values()) == ["busy", "idle", "idle"]
    assert "3 workers, 1 queues" in execute("-m", "rq.cli", "info", "--url", server.url)


def test_each_running_job_is_shown(busy: tuple[WorkerProcess, Job], server: EmbeddedServer, redis: Redis) -> None:
    """What viewers ask of RQ's workers, its job and its executions, names the job that runs, on each major."""
    _worker, job = busy
    workers = {worker.name: worker for worker in rq.Worker.all(connection=redis)}
    shown = {name: worker.get_current_job_id() for name, worker in workers.items()}
    holder = str(Job.fetch(job.id, connection=redis).worker_name)
    assert shown == {name: job.id if name == holder else None for name in ("seen", "seen-1", "seen-2")}
    if RQ3:
        running = {name: [each.job_id for each in worker.get_current_executions()] for name, worker in workers.items()}
        assert running == {name: [job.id] if name == holder else [] for name in workers}
        assert [worker.current_execution_count for _, worker in sorted(workers.items())] == [
            int(name == holder) for name in sorted(workers)
        ]


def test_looking_never_fails_a_running_job(
    busy: tuple[WorkerProcess, Job], server: EmbeddedServer, redis: Redis
) -> None:
    """No look at queues, workers or the started registry, all of which clean up, ends a job that runs."""
    _worker, job = busy
    queue = Queue("q", connection=redis)
    registry: StartedJobRegistry = queue.started_job_registry
    for _ in range(3):
        assert len(registry) == registry.count == 1
        assert registry.get_job_ids() == [job.id]
        execute("-m", "rq.cli", "info", "--url", server.url, "--by-queue")
    assert status(job) == "started"
    redis.set("go", 1)
    wait_until(lambda: status(job) == "finished")
    assert len(queue.failed_job_registry) == 0


def test_a_single_job_runs_under_the_workers_own_name(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Of several free slots a job is given the lowest, at the start too: names and logs look like stock RQ's."""
    queue, names = Queue("q", connection=redis), []
    job = queue.enqueue(entry_jobs.add, 1, 2)
    with running_worker(server.url, "q", "--name", "w", concurrency=4, log=tmp_path / "log", ready=None):
        for _ in range(5):
            wait_until(lambda job=job: status(job) == "finished")
            job.refresh()
            names.append(job.worker_name)
            job = queue.enqueue(entry_jobs.add, 1, 2)
    assert names == ["w"] * 5


# -- a program that runs a worker itself ------------------------------------------------------------------------------

SHARING = """
import sys, threading
from redis import BlockingConnectionPool, ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq_pooled import Worker, get_pool
from rq_pooled.config import Settings

url, kind = sys.argv[1:]
if kind == "ours":
    client = Redis(connection_pool=get_pool(Settings.load({"url": url})))
else:
    pool = {"plain": ConnectionPool, "blocking": BlockingConnectionPool}[kind]
    client = Redis(connection_pool=pool.from_url(url, retry=Retry(NoBackoff(), 0)))
done, errors, entered = threading.Event(), [], threading.Barrier(4)

def use():
    entered.wait()
    # On the server nearly all the time: a connection that is in use.
    while not done.is_set():
        try:
            client.blpop("nothing", timeout=0.05)
        except Exception as error:
            errors.append(repr(error))

threads = [threading.Thread(target=use) for _ in range(3)]
for thread in threads:
    thread.start()
idle = client.connection_pool.get_connection("PING")
client.connection_pool.release(idle)
entered.wait()
for _ in range(3):
    Worker(["q"], connection=client, concurrency=1).work(burst=True, logging_level="ERROR")
done.set()
for thread in threads:
    thread.join()
print("errors:", errors)
"""


@pytest.mark.parametrize("kind", ["plain", "blocking", "ours"])
def test_work_leaves_connections_in_use_alone(server: EmbeddedServer, redis: Redis, kind: str) -> None:
    """A worker started with a client that other threads use closes none of the connections that are in use."""
    assert "errors: []" in execute("-W", "ignore", "-c", SHARING, server.url, kind)


# -- django-rq ---------------------------------------------------------------------------------------------------------

DJANGO_SETTINGS = """
SECRET_KEY = "x"
USE_TZ = True
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {database!r}}}}}
INSTALLED_APPS = ["django_rq"]
RQ_QUEUES = {{"default": {{"URL": {url!r}}}, "low": {{"URL": {url!r}}}}}
RQ_EXCEPTION_HANDLERS = ["shop_jobs.handler"]
SHOP = "corner"
"""

DJANGO_JOBS = """
import os
import django_rq
from django.conf import settings
from django.db import connection

def price():
    fresh = connection.connection is None
    with connection.cursor() as cursor:
        cursor.execute("select 6 * 7")
        return [settings.SHOP, cursor.fetchone()[0], fresh, os.getpid()]

def order():
    return django_rq.enqueue(price).id

def fail():
    raise ValueError("on purpose")

def handler(job, *exc_info):
    job.connection.rpush("handled", job.id)
    return True
"""


@pytest.fixture
def project(server: EmbeddedServer, tmp_path: Path) -> Path:
    """A Django project that uses django-rq."""
    settings = DJANGO_SETTINGS.format(database=str(tmp_path / "db.sqlite3"), url=server.url)
    (tmp_path / "shop_settings.py").write_text(settings)
    (tmp_path / "shop_jobs.py").write_text(DJANGO_JOBS)
    return tmp_path


def rqworker(project: Path, *arguments: str, **environment: str) -> str:
    """Run ``manage.py rqworker``, by default with our class."""
    options = ["--worker-class", "rq_pooled.Worker"]
    return execute(
        "-m",
        "django",
        "rqworker",
        *arguments,
        *options,
        cwd=project,
        DJANGO_SETTINGS_MODULE="shop_settings",
        **environment,
    )


OUR_QUEUES = """
import django, django_rq, rq_pooled
django.setup()

@django_rq.job("default", retry=rq_pooled.Backoff(max=7))
def report():
    pass

queue, job = django_rq.get_queue("default"), report.delay()
print(type(queue) is rq_pooled.Queue, queue._default_timeout, job.timeout, job.retries_left, job.is_queued)
"""


@pytest.mark.skipif(find_spec("django_rq") is None, reason="django-rq is not installed")
def test_queues_of_django_rq_may_be_ours(project: Path) -> None:
    """With QUEUE_CLASS django-rq makes our queues, with the timeout of RQ_QUEUES and the options of @job, and they
    enqueue at once.
    """
    settings = project / "shop_settings.py"
    more = 'RQ = {"QUEUE_CLASS": "rq_pooled.Queue"}\nRQ_QUEUES["default"]["DEFAULT_TIMEOUT"] = 77\n'
    settings.write_text(settings.read_text() + more)
    (project / "ours.py").write_text(OUR_QUEUES)
    printed = execute("ours.py", cwd=project, DJANGO_SETTINGS_MODULE="shop_settings").split()
    assert printed == ["True", "77", "77", "7", "True"]


@pytest.mark.skipif(find_spec("django_rq") is None, reason="django-rq is not installed")
def test_hangup_brings_new_code_to_django(project: Path, redis: Redis, tmp_path: Path) -> None:
    """SIGHUP has `manage.py rqworker` execute itself anew, since Django loads the project's code in its own process."""
    line = [sys.executable, "-m", "django", "rqworker", "default", "--worker-class", "rq_pooled.Worker"]
    path = os.pathsep.join([str(project), PYTHONPATH])
    set_here = {"PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "shop_settings", "PYTHONDONTWRITEBYTECODE": "1"}
    worker = WorkerProcess(line, {**os.environ, **set_here}, tmp_path / "log", project, fresh=True)
    try:
        worker.wait_for("connections: command")
        (project / "shop_jobs.py").write_text(DJANGO_JOBS.replace("6 * 7", "6 * 8 + 0"))
        worker.process.send_signal(signal.SIGHUP)
        wait_until(lambda: worker.output().count("connections: command") == 2, what="the start anew")
        job = Queue("default", connection=redis).enqueue("shop_jobs.price")
        wait_until(lambda: status(job) == "finished")
        assert job.return_value()[1] == 48
        assert worker.stop() == 0
    finally:
        worker.kill()


@pytest.mark.skipif(find_spec("django_rq") is None, reason="django-rq is not installed")
@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_django_rq(project: Path, redis: Redis, concurrency: str) -> None:
    """``rqworker --worker-class rq_pooled.Worker`` runs jobs that use Django, each with a database connection of its
    own making, enqueues what they enqueue and calls the project's exception handlers."""
    default = Queue("default", connection=redis)
    jobs = [Queue(name, connection=redis).enqueue("shop_jobs.price") for name in ("default", "low") * 3]
    order, failing = default.enqueue("shop_jobs.order"), default.enqueue("shop_jobs.fail")
    output = rqworker(project, "default", "low", "--burst", RQ_POOLED_CONCURRENCY=concurrency)
    results = [job.return_value() for job in jobs]
    assert [result[:3] for result in results] == [["corner", 42, True]] * 6, output
    if concurrency == "1":
        assert len({result[3] for result in results}) == 1
    ordered = Job.fetch(order.return_value(), connection=redis)
    assert ordered.return_value()[0] == "corner"
    assert status(failing) == "failed"
    assert redis.lrange("handled", 0, -1) == [failing.id.encode()]
    assert not redis.smembers(named("rq:workers"))


ADMIN = """
import json, sys, warnings, django
from django.conf import settings
from django.urls import include, path
names = ["admin", "auth", "contenttypes", "sessions", "messages"]
settings.INSTALLED_APPS += ["django.contrib." + name for name in names]
settings.MIDDLEWARE = ["django.contrib." + name for name in (
    "sessions.middleware.SessionMiddleware", "auth.middleware.AuthenticationMiddleware",
    "messages.middleware.MessageMiddleware")]
settings.TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {
    "context_processors": ["django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
                           "django.contrib.messages.context_processors.messages"]}}]
settings.ROOT_URLCONF, settings.STATIC_URL, settings.ALLOWED_HOSTS = "__main__", "/static/", ["testserver"]
django.setup()
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
urlpatterns = [path("admin/", admin.site.urls), path("rq/", include("django_rq.urls"))]
call_command("migrate", verbosity=0)
client = Client()
client.force_login(User.objects.create_superuser("boss"))
pages, pushes = json.loads(sys.argv[1])
found = {}
for page in pages:
    answer = client.get("/" + page, follow=True)
    assert answer.status_code == 200, (page, answer.status_code)
    found[page] = answer.content.decode()
for page in pushes:
    assert client.post("/" + page, follow=True).status_code == 200, page
print(json.dumps(found))
"""


@pytest.mark.skipif(find_spec("django_rq") is None, reason="django-rq is not installed")
def test_pages_of_django_rq(project: Path, server: EmbeddedServer, redis: Redis) -> None:
    """Each page of django-rq's admin shows our workers and the job that one of them runs, and its button stops it."""
    queue = Queue("default", connection=redis)
    running = queue.enqueue(entry_jobs.wait_for_key, "go")
    with running_worker(server.url, "default", "--name", "seen", concurrency=3, log=project / "log"):
        wait_until(lambda: status(running) == "started", what="the start")
        good, failing = queue.enqueue(entry_jobs.add, 1, 2), queue.enqueue(entry_jobs.fail)
        wait_until(lambda: (status(good), status(failing)) == ("finished", "failed"), what="the other two")
        holder = str(Job.fetch(running.id, connection=redis).worker_name)
        names = ["seen", "seen-1", "seen-2"]
        lists = ["", *(f"{name}/" for name in ("details", "started", "finished", "failed", "scheduled", "deferred"))]
        pages = ["admin/django_rq/dashboard/", "rq/", "rq/stats.json", "rq/metrics", "rq/workers/0/"]
        pages += [f"rq/queues/0/{name}" for name in lists] + [
            named(f"rq/workers/0/rq:worker:{name}/") for name in names
        ]
        pages += [f"rq/queues/0/{job.id}/" for job in (running, good, failing)]
        results = [f"rq/queues/0/{job.id}/results/{job.latest_result().id}/" for job in (good, failing)]
        pages += results
        words = json.dumps([pages, [f"rq/queues/0/{running.id}/stop/"]])
        found = json.loads(execute("-c", ADMIN, words, cwd=project, DJANGO_SETTINGS_MODULE="shop_settings"))
        wait_until(lambda: status(running) == "stopped", what="the stop")
    shown = {
        name: [job.id in found[f"rq/queues/0/{name}/"] for job in (running, good, failing)]
        for name in ("started", "finished", "failed")
    }
    assert shown == {"started": [True, False, False], "finished": [False, True, False], "failed": [False, False, True]}
    assert [running.id in found[named(f"rq/workers/0/rq:worker:{name}/")] for name in names] == [
        name == holder for name in names
    ]
    assert all(name in found["rq/workers/0/"] for name in names)
    assert "on purpose" in found[results[1]] and "started" in found[f"rq/queues/0/{running.id}/"]
    (numbers, _) = json.loads(found["rq/stats.json"])["queues"]
    expected = {"workers": 3, "started_jobs": 1, "finished_jobs": 1, "failed_jobs": 1, "jobs": 0}
    assert {name: numbers[name] for name in expected} == expected


TASKS = """
from django_tasks import task

@task
def add(a, b):
    return a + b

@task(takes_context=True)
def fail(context):
    raise ValueError(context.task_result.id)
"""

ENQUEUE_TASKS = """
import json, sys, django
django.setup()
from django_tasks import default_task_backend
from shop_tasks import add, fail
if sys.argv[1:]:
    results = [default_task_backend.get_result(one) for one in sys.argv[1:]]
    good, bad = results
    print(json.dumps([good.status, good.return_value, good.worker_ids, bad.status, bad.errors[0].exception_class_path]))
else:
    print(json.dumps([add.enqueue(1, 2).id, fail.enqueue().id]))
"""


@pytest.mark.skipif(find_spec("django_tasks_rq") is None, reason="django-tasks-rq is not installed")
def test_django_tasks(project: Path, redis: Redis) -> None:
    """Django's tasks, enqueued by ``@task`` and ``enqueue``, run on our worker, and their results are read as
    Django's.
    """
    with open(project / "shop_settings.py", "a") as file:
        file.write(
            'INSTALLED_APPS += ["django_tasks"]\nTASKS = {"default": {"BACKEND": "django_tasks_rq.RQBackend"}}\n'
        )
    (project / "shop_tasks.py").write_text(TASKS)

    def ask(*ids: str) -> Any:
        options = {"DJANGO_SETTINGS_MODULE": "shop_settings", "PYTHONWARNINGS": ""}
        return json.loads(execute("-W", "ignore", "-c", ENQUEUE_TASKS, *ids, cwd=project, **options))

    ids = ask()
    rqworker(project, "default", "--burst", "--name", "w", "--job-class", "django_tasks_rq.Job", PYTHONWARNINGS="")
    assert ask(*ids) == ["SUCCESSFUL", 3, ["w"], "FAILED", "builtins.ValueError"]


# -- rq-dashboard ------------------------------------------------------------------------------------------------------


def test_dashboard(busy: tuple[WorkerProcess, Job], server: EmbeddedServer, redis: Redis) -> None:
    """Each page of rq-dashboard, and the data it loads, shows our workers and their jobs, and leaves them alone."""
    flask = pytest.importorskip("flask")
    dashboard = pytest.importorskip("rq_dashboard", reason="rq-dashboard, or six that it needs, is not installed")
    from rq_dashboard.web import setup_rq_connection

    _worker, job = busy
    queue = Queue("q", connection=redis)
    good, failing = queue.enqueue(entry_jobs.add, 1, 2), queue.enqueue(entry_jobs.fail)
    wait_until(lambda: (status(good), status(failing)) == ("finished", "failed"))
    app = flask.Flask("dashboard")
    app.config["RQ_DASHBOARD_REDIS_URL"] = server.url
    setup_rq_connection(app)
    app.register_blueprint(dashboard.blueprint, url_prefix="/rq")
    client = app.test_client()

    def get(path: str) -> Any:
        response = client.get(f"/rq/0/{path}", follow_redirects=True)
        assert response.status_code == 200, path
        return response.get_json() if path.endswith(".json") else response.get_data(as_text=True)

    registries = {"queued": 0, "started": 1, "finished": 1, "failed": 1, "scheduled": 0, "deferred": 0, "canceled": 0}
    pages = [
        "",
        "view",
        "view/queues",
        "view/workers",
        "view/jobs",
        *(f"view/job/{each.id}" for each in (job, good, failing)),
    ]
    for page in [*pages, *(f"view/jobs/q/{registry}/8/asc/1" for registry in registries)]:
        assert "</html>" in get(page)
    workers = {worker["name"]: worker for worker in get("data/workers.json")["workers"]}
    assert set(workers) == {"seen", "seen-1", "seen-2"}
    assert sum("busy" in worker["state"].lower() for worker in workers.values()) == 1
    assert sum(worker["successful_job_count"] for worker in workers.values()) == 1
    assert [each["current_job"]["job_id"] for each in workers.values() if each["current_job"] != "idle"] == [job.id]
    (shown,) = get("data/queues.json")["queues"]
    assert (shown["name"], shown["failed_job_registry_count"]) == ("q", 1)
    for registry, number in registries.items():
        assert len(get(f"data/jobs/q/{registry}/8/asc/1.json")["jobs"]) == number, registry
    assert get(f"data/job/{good.id}.json")["status"] == "finished"
    assert "on purpose" in get(f"data/job/{failing.id}.json")["exc_info"]
    assert get(f"data/job/{job.id}.json")["status"] == "started"
    app.redis_conn.close()


def test_dashboard_shows_retries_and_failures(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A job that waits for its retry is among the scheduled ones, one without tries left among the failed ones; a dead
    letter is still a failed job on its own page."""
    flask = pytest.importorskip("flask")
    dashboard = pytest.importorskip("rq_dashboard", reason="rq-dashboard, or six that it needs, is not installed")
    from rq_dashboard.web import setup_rq_connection

    queue = PooledQueue("q", redis)
    waits = queue.enqueue(retry_jobs.fail, "Busy", retry=Backoff(2, 3600, cap=3600, jitter=None))
    failed = queue.enqueue(retry_jobs.fail, "Busy", retry=Backoff(2, on=ValueError))
    dead = queue.enqueue(retry_jobs.fail, "ValueError")
    with running_worker(server.url, "q", log=tmp_path / "log"):
        wait_until(lambda: (status(waits), status(failed), status(dead)) == ("scheduled", "failed", "failed"))
    assert Sweeper(queue, policies=Bury(exceptions=ValueError)).run()[0].done == 1

    app = flask.Flask("dashboard")
    app.config["RQ_DASHBOARD_REDIS_URL"] = server.url
    setup_rq_connection(app)
    app.register_blueprint(dashboard.blueprint, url_prefix="/rq")
    client = app.test_client()

    def get(path: str) -> Any:
        response = client.get(f"/rq/0/{path}", follow_redirects=True)
        assert response.status_code == 200, path
        return response.get_json() if path.endswith(".json") else response.get_data(as_text=True)

    for registry, jobs in (("scheduled", [waits]), ("failed", [failed]), ("queued", [])):
        shown = get(f"data/jobs/q/{registry}/8/asc/1.json")["jobs"]
        assert [job["id"] for job in shown] == [job.id for job in jobs], registry
    (numbers,) = get("data/queues.json")["queues"]
    assert (numbers["scheduled_job_registry_count"], numbers["failed_job_registry_count"]) == (1, 1)
    for job, text in ((waits, "scheduled"), (failed, "failed"), (dead, "failed")):
        assert get(f"data/job/{job.id}.json")["status"] == text
        assert "</html>" in get(f"view/job/{job.id}")
    assert "retry_jobs.Busy" in get(f"data/job/{failed.id}.json")["exc_info"]
    app.redis_conn.close()


# -- Sentry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3])
def test_sentry_captures_a_failure_once(server: EmbeddedServer, redis: Redis, tmp_path: Path, concurrency: int) -> None:
    """With Sentry's RQ integration preloaded each failed job is one event that names the job; a good one is none."""
    pytest.importorskip("sentry_sdk")
    queue = Queue("q", connection=redis)
    jobs = [queue.enqueue(function) for function in (entry_jobs.fail, entry_jobs.preloaded, entry_jobs.fail)]
    file = tmp_path / "events"
    with running_worker(
        server.url,
        "q",
        "--burst",
        log=tmp_path / "log",
        ready=None,
        concurrency=concurrency,
        RQ_POOLED_PRELOAD="entry_sentry",
        ENTRY_SENTRY_FILE=str(file),
        PYTHONWARNINGS="error",
    ) as worker:
        assert worker.wait() == 0, worker.output()
    assert [status(job) for job in jobs] == ["failed", "finished", "failed"], worker.output()
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(event["job"] for event in events) == sorted([jobs[0].id, jobs[2].id]), events
    assert all(event["type"] == ["ValueError"] for event in events)


# -- Datadog, OpenTelemetry, Sentry's traces --------------------------------------------------------------------------

ENQUEUES = """
import importlib, sys
apm = importlib.import_module(sys.argv[1])
import rq, rq_pooled
from redis import Redis
from rq import Callback, Retry
queue = {"stock": rq.Queue, "ours": rq_pooled.Queue}[sys.argv[2]](connection=Redis.from_url(sys.argv[3]))
good = queue.enqueue("jobs.add", 1, 2, job_id="good")
queue.enqueue("jobs.fail", job_id="bad")
queue.enqueue("jobs.add", 1, 2, job_id="child", depends_on=good)
queue.enqueue("jobs.add", 1, 2, job_id="gone", result_ttl=0)
queue.enqueue("jobs.fail", job_id="again", retry=Retry(1))
queue.enqueue("jobs.add", 1, 2, job_id="callback", on_success=Callback("jobs.nothing"))
queue.enqueue("jobs.fail", job_id="failing-callback", on_failure=Callback("jobs.nothing"))
queue.enqueue("jobs.return_retry", 1, job_id="returned")
"""
IN_A_TRANSACTION = ENQUEUES.replace("queue = {", "apm.sentry_sdk.start_transaction(name='shop').__enter__()\nqueue = {")


def spans(redis: Redis, url: str, tmp_path: Path, module: str, side: str, **options: Any) -> list[list[dict[str, Any]]]:
    """Return the spans of enqueueing eight jobs, and those of running them; trace ids are numbered."""
    found: list[list[dict[str, Any]]] = []
    traces: dict[Any, int] = {}
    redis.flushall()
    for what in ("enqueue", "work"):
        file = tmp_path / f"{side}-{what}"
        file.touch()
        if what == "enqueue":
            program = IN_A_TRANSACTION if module == "entry_sentry" else ENQUEUES
            execute("-W", "ignore", "-c", program, module, side, url, ENTRY_SPANS=str(file), PYTHONWARNINGS="")
        else:
            log = tmp_path / f"{side}-log"
            with running_worker(
                url, "--burst", "--name", "w", log=log, ready=None, ENTRY_SPANS=str(file), **options
            ) as worker:
                assert worker.wait() == 0, worker.output()
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            line["trace"] = traces.setdefault(line.get("trace"), len(traces))
        found.append(sorted(lines, key=repr))  # dependents are enqueued in a step of their own, a little later
    return found


@pytest.mark.parametrize("module", ["entry_ddtrace", "entry_otel", "entry_sentry"])
def test_spans_are_those_of_stock_rq(server: EmbeddedServer, redis: Redis, tmp_path: Path, module: str) -> None:
    """Datadog, OpenTelemetry and Sentry tell the same of enqueueing and running jobs as with RQ's own queue and worker:
    names, errors, statuses, which belongs to which trace; and nothing of jobs that nobody enqueued."""
    needs = {"entry_ddtrace": "ddtrace", "entry_otel": "opentelemetry_instrumentation_rq", "entry_sentry": "sentry_sdk"}
    pytest.importorskip(needs[module])
    if module == "entry_otel" and RQ3:
        pytest.skip(
            "opentelemetry-instrumentation-rq 0.1.4 wraps methods of Job that RQ 3 does not have: it does not start"
        )
    stock = spans(redis, server.url, tmp_path, module, "stock", worker_class=f"{module}.Stock")
    ours = spans(redis, server.url, tmp_path, module, "ours", RQ_POOLED_PRELOAD=module)
    assert [len(lines) for lines in ours] == [0 if module == "entry_sentry" else 8, len(stock[1])]
    if module == "entry_sentry":  # what enqueues is still in its transaction, and the jobs belong to that trace
        assert {(line["trace"], line["root"], line["queue"]) for line in ours[1]} == {(0, False, "default")}
    for theirs, mine in zip(stock, ours):
        assert mine == theirs


def test_span_of_a_failed_job_is_an_error(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Datadog's span of a job says how it ended, with several jobs at once too."""
    pytest.importorskip("ddtrace")
    _, found = spans(
        redis, server.url, tmp_path, "entry_ddtrace", "ours", RQ_POOLED_PRELOAD="entry_ddtrace", concurrency=3
    )
    roots = [(line["job.id"], line["job.status"], line["error"]) for line in found if line["root"]]
    assert sorted(roots) == [
        ("again", "failed", 1),
        ("again", "queued", 0),
        ("bad", "failed", 1),
        ("callback", "finished", 0),
        ("child", "finished", 0),
        ("failing-callback", "failed", 1),
        ("gone", "None", 0),
        ("good", "finished", 0),
        ("returned", "failed", 1),
        ("returned", "queued", 0),
    ]
