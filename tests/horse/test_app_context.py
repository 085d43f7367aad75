"""Jobs inside the context of a Flask application: ``--app module:app_or_factory``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flask_jobs
import pytest
from keys import named
from redis import Redis
from rq import Callback, Queue
from rq.job import Job
from support import PYTHONPATH, ROOT, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer

pytest.importorskip("flask")


@pytest.fixture
def notes(tmp_path: Path) -> Callable[[], list[str]]:
    """What the application and its jobs have noted until now, a line each."""
    file = tmp_path / "notes"
    file.touch()
    return lambda: file.read_text().splitlines()


def ended(jobs: list[Job]) -> bool:
    return all(job.get_status() in ("finished", "failed", "stopped") for job in jobs)


def test_each_job_has_a_context_of_its_own(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, notes: Callable[[], list[str]]
) -> None:
    """The factory is called once, before forking; each job runs in a new context, torn down after it, however it
    ends.
    """
    queue = Queue("q", connection=redis)
    good = [queue.enqueue(flask_jobs.answer) for _ in range(6)]
    bad = queue.enqueue(flask_jobs.fail)
    environment = {"FLASK_NOTES": str(tmp_path / "notes"), "RQ_POOLED_APP": "flask_jobs:create_app"}
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=2, **environment) as worker:
        wait_until(lambda: ended([*good, bad]))
        assert [job.return_value() for job in good] == [(42, False)] * 6
        assert bad.get_status() == "failed" and "on purpose" in str(bad.latest_result().exc_string)
        created = [line for line in notes() if line.startswith("created")]
        assert created == [f"created {worker.pid}"]
        teardowns = Counter(line.split()[0] for line in notes() if line.startswith("teardown"))
        for job in [*good, bad]:
            assert teardowns[f"teardown:{job.id}:None"] == 1
        assert all(int(line.split()[1]) != worker.pid for line in notes() if f":{bad.id}:" in line)


def test_a_failing_teardown_does_not_change_the_outcome(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, notes: Callable[[], list[str]]
) -> None:
    """What a teardown function raises is logged; the job has succeeded, and the next one runs in the same horse."""
    queue = Queue("q", connection=redis)
    jobs = [queue.enqueue(flask_jobs.break_teardown), queue.enqueue(flask_jobs.answer)]
    environment = {"FLASK_NOTES": str(tmp_path / "notes"), "RQ_POOLED_APP": "flask_jobs:create_app()"}
    with running_worker(server.url, "q", log=tmp_path / "log", **environment) as worker:
        wait_until(lambda: ended(jobs))
        assert [job.return_value() for job in jobs] == ["done", (42, False)]
        assert "teardown on purpose" in worker.output()
        # Maintenance has a horse and a teardown of its own.
        pids = Counter(line.split()[1] for line in notes() if line.startswith("teardown"))
        assert max(pids.values()) == 2


def test_callbacks_run_in_the_context(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, notes: Callable[[], list[str]]
) -> None:
    """The failure callback of a job finds the application, also that of a job that RQ's maintenance gives up."""
    environment = {"FLASK_NOTES": str(tmp_path / "notes"), "RQ_POOLED_APP": "flask_jobs:create_app"}
    queue = Queue("q", connection=redis)
    failing = queue.enqueue(flask_jobs.fail, on_failure=Callback(flask_jobs.note_failure))
    abandoned = Job.create(
        flask_jobs.answer, on_failure=Callback(flask_jobs.note_failure), connection=redis, origin="q", status="started"
    )
    abandoned.save()
    redis.zadd(named("rq:wip:q"), {f"{abandoned.id}:execution": 1})
    with running_worker(server.url, "q", log=tmp_path / "log", **environment):
        wait_until(lambda: ended([failing, abandoned]))
        wait_until(lambda: sum(line.startswith("callback:42") for line in notes()) == 2)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("flask_jobs", "module:app_or_factory"),
        ("no_such_module:app", "cannot be imported: ModuleNotFoundError"),
        ("flask_jobs:missing", "cannot be imported: AttributeError"),
        ("flask_jobs:failing_factory", "failed: KeyError: 'DATABASE_URL'"),
        ("flask_jobs:leaving_factory", "failed: SystemExit: no configuration"),
        ("flask_jobs:not_an_app", "is a str and no Flask application"),
        ("flask_jobs:os", "is a module and no Flask application"),
    ],
)
def test_an_app_that_cannot_be_used_is_refused(server: EmbeddedServer, redis: Redis, target: str, words: str) -> None:
    """A wrong APP is one line and exit code 2, before anything is registered."""
    command = [sys.executable, "-m", "rq_pooled", "worker", "--url", server.url, "--app", target, "q"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, env=environment, check=False)
    said: Any = done.stdout + done.stderr
    assert done.returncode == 2 and words in said and "Traceback" not in said
    assert not redis.exists(named("rq:workers"))


def test_database_sessions_and_connections_stay_apart(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Flask-SQLAlchemy: each job has a new session, and no horse uses a connection that the factory opened."""
    pytest.importorskip("flask_sqlalchemy")
    (tmp_path / "shop_app.py").write_text(
        f"""
import os
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
db = SQLAlchemy()
def create_app():
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///{tmp_path}/shop.sqlite"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {{"connect_args": {{"check_same_thread": False}}}}
    db.init_app(app)
    with app.app_context():
        db.session.connection().info["pid"] = os.getpid()
        db.session.execute(text("create table t (x int)"))
        db.session.commit()
    return app
def job():
    made_by = db.session.connection().info.setdefault("pid", os.getpid())
    db.session.execute(text("insert into t values (1)"))
    count = db.session.execute(text("select count(*) from t")).scalar()
    return os.getpid(), made_by, count   # never committed: the teardown rolls back
"""
    )
    jobs = [Queue("q", connection=redis).enqueue("shop_app.job") for _ in range(5)]
    environment = {"RQ_POOLED_APP": "shop_app:create_app", "PYTHONPATH": str(tmp_path)}
    with running_worker(server.url, "q", log=tmp_path / "log", concurrency=1, **environment):
        wait_until(lambda: ended(jobs))
    for job in jobs:
        horse, made_by, count = job.return_value()
        assert horse == made_by and count == 1


FLASK_RQ = """
import os
from flask import Flask, current_app
from flask_rq import RQ

rq = RQ()

def create_app():
    app = Flask("shop")
    app.config.update(RQ_CONNECTION=os.environ["SHOP_URL"], SHOP="corner")
    rq.init_app(app)
    return app

@rq.job
def name():
    return current_app.config["SHOP"]

@rq.job
async def later():
    return current_app.config["SHOP"]

def enqueue():
    with create_app().app_context():
        print(name.enqueue().id, later.enqueue().id)
"""


def test_jobs_of_flask_rq_run_in_the_context(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """What flask-rq enqueues, coroutines too, runs in the context of its application."""
    pytest.importorskip("flask_rq")
    (tmp_path / "shop_app.py").write_text(FLASK_RQ)
    environment = {"SHOP_URL": server.url, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    enqueue = [sys.executable, "-c", "import shop_app; shop_app.enqueue()"]
    done = subprocess.run(enqueue, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    jobs = [Job.fetch(job_id, connection=redis) for job_id in done.stdout.split()]
    with running_worker(server.url, log=tmp_path / "log", RQ_POOLED_APP="shop_app:create_app", **environment):
        wait_until(lambda: ended(jobs))
    assert [job.return_value() for job in jobs] == ["corner"] * 2
