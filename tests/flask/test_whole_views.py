"""What views leave out: it is said, it is nothing that a worker serves, and no reader can be kept from his queues."""

from __future__ import annotations

import importlib.util
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import claim_jobs
import pytest
from failures import fail_jobs
from keys import named
from redis import Redis
from rq import Queue
from support import drop_pools, running_worker, wait_until

from rq_pooled import health
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.store import queues as store_queues
from rq_pooled.store import views
from rq_pooled.store.keys import SCHEDULED_JOBS

flask = pytest.importorskip("flask")
from page_client import client_of

from rq_pooled.flask.parameters import _once_each

NOT_WHOLE = "This page is not whole"
LISTS = ("", "failed", "workers", "schedule", "trail", "queues/status", "queues/failed-jobs")


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


def name_queues(redis: Redis, *names: str | bytes) -> None:
    """Have the server know these queues."""
    redis.sadd(named("rq:queues"), *(named(b"rq:queue:" + (n if isinstance(n, bytes) else n.encode())) for n in names))


def test_queues_that_workers_serve_are_shown_whatever_names_are_written(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """Thousands of names before its own hide no job of a served queue, and each list says that others are left out."""
    fail_jobs(redis, "mail", ["ValueError: x"])
    started, gate = tmp_path / "started", tmp_path / "gate"
    job = Queue("mail", redis).enqueue(claim_jobs.wait_for_file, str(started), str(gate))
    with running_worker(server.url, "mail", log=tmp_path / "log"):
        wait_until(started.exists)
        name_queues(redis, *(f"a{number:05}" for number in range(store_queues.MAX_QUEUES)))
        for allow in (lambda: "write", lambda action, queue: True):
            client = client_of(server, allow)
            shown = {path: client.get(f"/rq/{path}") for path in LISTS}
            assert "ValueError" in shown["failed"].text and job.id in shown["workers"].text
            assert shown["queues/failed-jobs"].get_json()["total"] == 1
            for path in ("failed", "workers", "schedule"):
                assert NOT_WHOLE in shown[path].text, path
            assert [shown[path].get_json()["whole"] for path in LISTS[-2:]] == [False, False]
        gate.touch()


def test_running_jobs_that_are_not_listed_are_stopped_and_said_to_be_left_out(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """A hundred claims that began before it keep no job from being stopped by its id."""
    started = tmp_path / "started"
    job = Queue("mail", redis).enqueue(claim_jobs.wait_for_file, str(started), str(tmp_path / "gate"))
    client = client_of(server)
    with running_worker(server.url, "mail", log=tmp_path / "log") as worker:
        wait_until(started.exists)
        assert NOT_WHOLE not in client.get("/rq/workers").text
        redis.zadd(named("rq:wip:mail"), {f"forged-{number}:e": 1 for number in range(100)})
        page = client.get("/rq/workers").text
        assert job.id not in page and NOT_WHOLE in page
        assert client.post("/rq/workers/stop", data={"job": job.id}).status_code == 200
        worker.wait_for("stopped")
        wait_until(lambda: job.get_status(refresh=True) == "stopped")


def test_forged_executions_keep_no_job_from_being_stopped(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A job that stands on the page is stopped there, whatever was written before its own execution."""
    started = tmp_path / "started"
    job = Queue("mail", redis).enqueue(claim_jobs.wait_for_file, str(started), str(tmp_path / "gate"))
    with running_worker(server.url, "mail", log=tmp_path / "log"):
        wait_until(started.exists)
        redis.zadd(named(f"rq:executions:{job.id}"), {f"forged-{number}": 1 for number in range(200)})
        assert client_of(server).post("/rq/workers/stop", data={"job": job.id}).status_code == 200
        wait_until(lambda: job.get_status(refresh=True) == "stopped")


def test_a_schedule_of_hidden_queues_hides_no_visible_one(server: EmbeddedServer, redis: Redis) -> None:
    """Jobs of rq-scheduler of a queue that may not be viewed take no place of those that may be."""
    for number in range(150):
        redis.hset(named(f"rq:job:hidden-{number}"), mapping={"origin": "bank", "description": "f()"})
        redis.zadd(SCHEDULED_JOBS, {f"hidden-{number}": 1_000 + number})
    redis.hset(named("rq:job:mine"), mapping={"origin": "mail", "description": "mine()"})
    redis.zadd(SCHEDULED_JOBS, {"mine": 5_000})
    name_queues(redis, "mail", "bank")
    client = client_of(server, lambda action, queue: queue in (None, "mail"))
    page = client.get("/rq/schedule").text
    assert "mine()" in page and "f()" not in page and NOT_WHOLE not in page
    # There is an end to how many are read.
    redis.zadd(SCHEDULED_JOBS, {f"none-{number}": 100 for number in range(1_000)})
    redis.hset(named("rq:job:none-999"), "origin", "bank")
    for number in range(1_000):
        redis.hset(named(f"rq:job:none-{number}"), "origin", "bank")
    page = client.get("/rq/schedule").text
    assert "mine()" not in page and NOT_WHOLE in page


def test_rights_are_asked_of_what_is_on_the_page(server: EmbeddedServer, redis: Redis) -> None:
    """The rights to act are asked of the queues whose jobs are listed, not of each queue that has a name."""
    fail_jobs(redis, "mail", ["ValueError: x"])
    name_queues(redis, *(f"a{number:03}" for number in range(300)))
    asked: list[Any] = []

    def authorize(action: str, queue: Any) -> bool:
        asked.append((action, queue))
        return action == "view"

    client = client_of(server, authorize)
    assert client.get("/rq/failed").status_code == 200
    assert {queue for action, queue in asked if action != "view"} == {"mail"}


def test_asking_ends_before_the_page_does(
    server: EmbeddedServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rights to act are asked within the time for sight, and a few slow questions take at most twice of it."""
    monkeypatch.setattr(views, "ASKING", 0.1)
    fail_jobs(redis, "mail", ["ValueError: x"])
    name_queues(redis, *(f"a{number:03}" for number in range(150)))
    asked: list[Any] = []

    def authorize(action: str, queue: Any) -> bool:
        asked.append((action, queue))
        time.sleep(0.01 if queue else 0)
        return action == "view"

    client = client_of(server, authorize)
    for path in LISTS:
        asked.clear()
        answer = client.get(f"/rq/{path}")
        assert answer.status_code == 200 and len(asked) <= 25, path
        assert answer.get_json()["whole"] is False if answer.is_json else NOT_WHOLE in answer.text, path


def test_names_in_statistics_take_no_time_from_queues(
    server: EmbeddedServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that publishes statistics with thousands of names hides no queue that the server knows."""
    monkeypatch.setattr(views, "ASKING", 0.2)
    fail_jobs(redis, "mail", ["ValueError: x"])
    name_queues(redis, "mail", "other")
    key = named("rq_pooled:stats:app:host:1")
    forged = json.dumps([f"a{number}" for number in range(3_000)])
    redis.hset(key, mapping={"kind": '"worker"', "worker": '"w"', "queues": forged, "concurrency": "1", "busy": "0"})
    redis.zadd(named("rq_pooled:stats"), {key: time.time() + 600})

    def authorize(action: str, queue: Any) -> bool:
        time.sleep(0.002 if queue else 0)
        return True

    client = client_of(server, authorize)
    for path in ("", "queues/status", "failed"):
        assert "mail" in client.get(f"/rq/{path}").text, path
    if importlib.util.find_spec("prometheus_client"):
        assert 'queue="mail"' in client.get("/rq/metrics").text
    assert "a99" not in client.get("/rq/workers").text


def test_a_name_that_authorize_cannot_take_is_left_out(
    server: EmbeddedServer, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue, a worker and a job whose queue's name makes ``authorize`` fail are hidden, said to be, and logged."""
    fail_jobs(redis, "mail", ["ValueError: x"])
    roles = sqlite3.connect(":memory:", check_same_thread=False)
    roles.execute("CREATE TABLE queues (name TEXT)")
    roles.execute("INSERT INTO queues VALUES ('mail')")

    def authorize(action: str, queue: Any) -> bool:
        found = roles.execute("SELECT 1 FROM queues WHERE name = ?", (queue,)).fetchone()
        return queue is None or found is not None

    client = client_of(server, authorize)
    before = client.get("/rq/failed").text
    assert NOT_WHOLE not in before
    name_queues(redis, b"\xff")
    redis.hset(named("rq:job:odd"), mapping={"origin": b"\xff", "description": "odd()"})
    redis.zadd(named("rq:failed:mail"), {"odd": 9e9})
    with caplog.at_level(logging.ERROR, "rq_pooled"):
        for path in (*LISTS, "metrics"):
            answer = client.get(f"/rq/{path}")
            assert answer.status_code == 200 or (path == "metrics" and answer.status_code == 501), path
            if path != "metrics":
                assert answer.get_json()["whole"] is False if answer.is_json else NOT_WHOLE in answer.text, path
        assert "ValueError" in client.get("/rq/failed").text
        assert client.get("/rq/job?id=odd").status_code == 404
    said = [record for record in caplog.records if "it is left out" in record.getMessage()]
    assert 0 < len(said) <= len(LISTS) + 3 and "UnicodeEncodeError" in caplog.text
    roles.close()


def test_a_hidden_job_is_not_read(server: EmbeddedServer, redis: Redis) -> None:
    """Of a job that may not be viewed, not even that its results are damaged is told."""
    redis.hset(named("rq:job:secret"), mapping={"origin": "bank", "status": "failed", "data": b"x"})
    redis.set(named("rq:results:secret"), "no stream")
    client = client_of(server, lambda action, queue: queue in (None, "mail"))
    answers = [client.get(f"/rq/job?id={one}") for one in ("secret", "nowhere")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].text == answers[1].text.replace("nowhere", "secret")


def test_metrics_of_all_queues_together_are_left_out_for_who_sees_some(server: EmbeddedServer, redis: Redis) -> None:
    """A rate that is not known is no rate of 0."""
    pytest.importorskip("prometheus_client")
    name_queues(redis, "mail", "bank")
    of_all = client_of(server, lambda action, queue: True).get("/rq/metrics").text
    of_some = client_of(server, lambda action, queue: queue != "bank").get("/rq/metrics").text
    for name in ("rq_pooled_failed_per_minute", "rq_pooled_finished_per_minute"):
        assert f"\n{name} 0.0" in of_all and name not in of_some


def test_what_authorize_does_ends_no_restriction(server: EmbeddedServer, redis: Redis) -> None:
    """Neither a request inside the request nor a copy of its context, here or in a thread, changes what is shown; and
    what the application reads afterwards is not restricted.
    """
    name_queues(redis, "mail", "bank")
    fail_jobs(redis, "bank", ["SecretError: x"])
    inner = client_of(server)

    def by_a_request() -> None:
        assert inner.get("/rq/health/redis").status_code == inner.get("/rq/queues/status").status_code == 200

    def by_a_copy() -> None:
        flask.copy_current_request_context(lambda: None)()

    def by_a_thread() -> None:
        thread = threading.Thread(target=flask.copy_current_request_context(lambda: None))
        thread.start()
        thread.join()

    for look in (by_a_request, by_a_copy, by_a_thread):

        def authorize(action: str, queue: Any, look: Any = look) -> bool:
            if queue == "bank":
                look()
            return queue in (None, "mail")

        outer = client_of(server, lambda action, queue, authorize=authorize: authorize(action, queue))
        assert [one["name"] for one in outer.get("/rq/queues/status").get_json()["queues"]] == ["mail"], look
        assert "SecretError" not in outer.get("/rq/").text, look
        assert [one["name"] for one in health.queues(redis)] == ["bank", "mail"], look


def test_a_body_of_many_members_is_read_in_a_moment() -> None:
    """Members of an object are not compared each with all others to find those that come twice."""
    compared: list[str] = []

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(self)
            return str.__eq__(self, other)

    pairs = [(Name(name), 1) for name in ("a", "b", "c") for _ in range(1_000)]
    assert _once_each([*pairs, ("once", 2)]) == {"a": None, "b": None, "c": None, "once": 2}
    assert len(compared) < 10 * len(pairs)


def test_a_job_of_no_queue_is_not_stopped(server: EmbeddedServer, redis: Redis) -> None:
    """A job that names no queue, whose right could be asked for, is told to stop by nobody."""
    redis.hset(named("rq:job:j"), mapping={"data": b"x", "origin": ""})
    redis.zadd(named("rq:wip:"), {"j:e": 9e9})
    redis.zadd(named("rq:executions:j"), {"e": 9e9})
    redis.hset(named("rq:execution:j:e"), mapping={"worker_name": "w", "created_at": "1"})
    client = client_of(server, lambda action, queue: queue is None)
    assert client.post("/rq/workers/stop", data={"job": "j"}).status_code == 400


@pytest.mark.parametrize("act", ["requeue", "bury"])
def test_a_group_that_is_gone_is_no_error(server: EmbeddedServer, redis: Redis, act: str) -> None:
    """The button of a group whose jobs were dealt with meanwhile leads back, from each page that has it."""
    name_queues(redis, "mail")
    group = {"queue": "mail", "exception": "ValueError", "function": "f"}
    for page in ("job", "failed", "page"):
        answer = client_of(server).post("/rq/jobs", data={**group, "act": act, "page": page})
        assert answer.status_code == 303, page


def test_a_link_back_has_no_control_characters(server: EmbeddedServer, redis: Redis) -> None:
    """What an address says that it came from stands encoded in the page."""
    fail_jobs(redis, "mail", ["ValueError: x"])
    page = client_of(server).get("/rq/failed/confirm?act=bury&job=q-0&back=queue%3Dm%1b%e2%80%aeq").text
    assert "/rq/failed?queue=m%1B%E2%80%AEq" in page and "\x1b" not in page and "\u202e" not in page
