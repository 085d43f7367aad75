"""The Flask extension: applications, queues, and who may see and do what at its endpoints."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import pytest
from failures import FACTORIAL, HOSTILE, fail_jobs
from flask_app import make_app
from keys import named
from redis import Redis
from rq import Queue as StockQueue
from rq.job import Job
from rq.registry import FailedJobRegistry
from support import ROOT, drop_pools, wait_until

from rq_pooled import Backoff, Queue
from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError
from rq_pooled.health import health

flask = pytest.importorskip("flask")
from rq_pooled.flask import RQPooled

SLACK = 3.0


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


@pytest.fixture
def operator(server: EmbeddedServer, redis: Redis) -> Any:
    """A client of an application that lets everybody do everything, from a page of its own site."""
    client = make_app(server.url, lambda: "write").test_client()
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    return client


# -- applications ------------------------------------------------------------------------------------------------------


def test_each_application_has_its_own_server(server: EmbeddedServer, redis: Redis, start_server: Any) -> None:
    """One RQPooled serves several applications, made by factories: each enqueues on the server of its own config."""
    other = start_server()
    rq = RQPooled()

    def create_app(url: str) -> Any:
        app = flask.Flask("shop")
        app.config["RQ_POOLED_URL"] = url
        rq.init_app(app)
        return app

    first, second = create_app(server.url), create_app(other.url)
    with first.app_context():
        rq.queue.enqueue(FACTORIAL, 3, job_id="first")
    with second.app_context():
        rq.get_queue("mail").enqueue(FACTORIAL, 3, job_id="second")
    assert redis.lrange(named("rq:queue:default"), 0, -1) == [b"first"]
    assert other.client().lrange(named("rq:queue:mail"), 0, -1) == [b"second"]
    with pytest.raises(ConfigurationError, match="several applications"):
        _ = rq.queue
    with flask.Flask("stranger").app_context(), pytest.raises(ConfigurationError, match="init_app"):
        _ = rq.queue


def test_one_application_needs_no_context(server: EmbeddedServer, redis: Redis) -> None:
    """With a single application its queues work in scripts and shells, too; without one the error says what to do."""
    with pytest.raises(ConfigurationError, match="call init_app"):
        _ = RQPooled().queue
    app = flask.Flask("shop")
    app.config["RQ_POOLED_URL"] = server.url
    rq = RQPooled(app, queue="orders", default_timeout=77)
    job = rq.queue.enqueue(FACTORIAL, 3)
    assert (job.origin, job.timeout) == ("orders", 77)
    assert isinstance(rq.queue, Queue) and rq.queue.connection is rq.get_queue("other").connection
    assert app.extensions["rq_pooled"] is rq


def test_config_is_checked_when_the_application_is_made(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong setting in app.config is refused at once, in one line; keys without our prefix are the application's
    own.
    """
    for config, words in (
        ({"RQ_POOLED_MAX_CONNECTIONS": "many"}, "MAX_CONNECTIONS"),
        ({"RQ_POOLED_MAX_CONECTIONS": 5}, "did you mean 'max_connections'"),
        ({"RQ_POOLED_URL": "redis://:secret@host:port"}, r"\*\*\*@"),
    ):
        app = flask.Flask("shop")
        app.config.update(config)
        with pytest.raises(ConfigurationError, match=words) as caught:
            RQPooled(app)
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:1")
    app = flask.Flask("shop")
    app.config.update(URL="nonsense", APP="nonsense", RQ_POOLED_URL=server.url, RQ_POOLED_MAX_CONNECTIONS=4)
    rq = RQPooled(app)
    assert rq.settings.url == server.url and rq.settings.max_connections == 4
    with pytest.raises(ConfigurationError, match="has an RQPooled already"):
        RQPooled(app)
    rq.init_app(app)  # the same one again is no error


def test_job_decorator(server: EmbeddedServer, redis: Redis, start_server: Any) -> None:
    """@rq.job gives a function delay and enqueue, which use the application that is current then, with RQ's options."""
    other = start_server()
    rq = RQPooled()

    @rq.job
    def plain(a: int, b: int = 0) -> int:
        return a + b

    @rq.job("mail", timeout=42, retry=Backoff(max=2))
    def send(to: str) -> None:
        """Send."""

    apps = []
    for url in (server.url, other.url):
        app = flask.Flask("shop")
        app.config["RQ_POOLED_URL"] = url
        rq.init_app(app)
        apps.append(app)
    with apps[0].app_context():
        job = plain.delay(1, b=2)
        assert (job.origin, job.args, job.kwargs) == ("default", (1,), {"b": 2})
    with apps[1].app_context():
        job = send.enqueue("a@b", job_id="mine")
        assert (job.id, job.origin, job.timeout, job.retries_left) == ("mine", "mail", 42, 2)
    assert plain(1, 2) == 3
    assert other.client().lrange(named("rq:queue:mail"), 0, -1) == [b"mine"] and redis.llen(named("rq:queue:mail")) == 0


def test_making_an_application_connects_nowhere() -> None:
    """Neither init_app nor the blueprint opens a connection or loads the worker before something is enqueued."""
    code = (
        "import sys, flask; from rq_pooled.flask import RQPooled; from rq_pooled.pool import local_pools\n"
        "app = flask.Flask('x'); app.config['RQ_POOLED_URL'] = 'redis://192.0.2.1:6379'\n"
        "rq = RQPooled(app); app.register_blueprint(rq.blueprint(), url_prefix='/rq')\n"
        "assert not local_pools()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20, env=environment)


# -- who may -----------------------------------------------------------------------------------------------------------


def every_request(app: Any) -> Iterator[tuple[str, str]]:
    """Each method and address of the blueprint, /health/redis left out."""
    for rule in app.url_map.iter_rules():
        if rule.endpoint.startswith("rq_pooled.") and rule.endpoint != "rq_pooled.health_redis":
            path = rule.rule.replace("<path:filename>", "page.css")
            for method in rule.methods - {"OPTIONS", "HEAD"}:
                yield method, path


@pytest.mark.parametrize("authorize", [None, lambda: None, lambda: False, lambda: ""])
def test_everything_is_refused_until_the_application_allows_it(
    server: EmbeddedServer, redis: Redis, authorize: Any
) -> None:
    """Without authorize, and where it returns nothing true, every address is 403, and nothing is changed; but
    health.
    """
    fail_jobs(redis, "q", ["ValueError: x"])
    app = make_app(server.url, authorize)
    client = app.test_client()
    requests = list(every_request(app))
    assert len(requests) >= 8 and ("POST", "/rq/queues/sweep") in requests
    for method, path in requests:
        response = client.open(path, method=method, headers={"Sec-Fetch-Site": "same-origin"})
        assert response.status_code == 403, path
    assert redis.zcard(named("rq:failed:q")) == 1
    assert client.get("/rq/health/redis").status_code == 200


@pytest.mark.parametrize("said", [True, "read", 1, "writer", object()])
def test_a_post_needs_the_word_write(server: EmbeddedServer, redis: Redis, said: Any) -> None:
    """Whoever may look may not requeue or sweep, unless authorize says exactly "write"."""
    fail_jobs(redis, "q", ["ValueError: x"])
    client = make_app(server.url, lambda: said).test_client()
    page = client.get("/rq/")
    assert page.status_code == 200 and "<form" not in page.text
    for what in ("requeue", "sweep"):
        assert (
            client.post(
                f"/rq/queues/{what}", data={"queue": "q"}, headers={"Sec-Fetch-Site": "same-origin"}
            ).status_code
            == 403
        )
    assert redis.zcard(named("rq:failed:q")) == 1


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": "https://blog.localhost"}, False),
        ({"Sec-Fetch-Site": "cross-site", "X-Requested-With": "x"}, False),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "https://localhost"}, False),
        ({"Origin": "http://localhost:8080"}, False),
        ({"Origin": "//localhost"}, False),
        ({"Origin": "http://[localhost"}, False),
        ({"Origin": "http://localhost.evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"X-Requested-With": "curl"}, True),
        ({}, False),
    ],
)
def test_a_post_of_another_site_is_refused(
    server: EmbeddedServer, redis: Redis, headers: dict[str, str], allowed: bool
) -> None:
    """A form of another site cannot use the visitor's rights, whatever browser it is; programs say that they are
    none.
    """
    fail_jobs(redis, "q", ["ValueError: x"])
    client = make_app(server.url, lambda: "write").test_client()
    response = client.post("/rq/queues/requeue", data={"queue": "q"}, headers=headers)
    assert response.status_code == (200 if allowed else 403)
    assert redis.llen(named("rq:queue:q")) == int(allowed)


def test_what_authorize_raises_is_the_answer(server: EmbeddedServer) -> None:
    """An authorize that aborts decides the answer: 401 stays 401."""
    app = make_app(server.url, lambda: flask.abort(401))
    assert app.test_client().get("/rq/").status_code == 401


def test_headers(operator: Any) -> None:
    """Answers cannot be framed, cached or made to run a stranger's script."""
    headers = operator.get("/rq/").headers
    assert headers["Cache-Control"] == "no-store" and headers["X-Frame-Options"] == "DENY"
    assert (
        "default-src 'none'" in headers["Content-Security-Policy"]
        and "unsafe" not in headers["Content-Security-Policy"]
    )
    with operator.get("/rq/rq-pooled-static/page.css") as response:
        assert response.status_code == 200 and response.headers.get("Cache-Control") != "no-store"


# -- what is answered --------------------------------------------------------------------------------------------------


def test_endpoints_agree_with_redis(operator: Any, redis: Redis) -> None:
    """Status, failed jobs, pool statistics and metrics show what is there, with stable keys."""
    queue = StockQueue("q", connection=redis)
    for _ in range(3):
        queue.enqueue(FACTORIAL, 3)
    fail_jobs(redis, "q", ["ValueError: one", "KeyError: 'two'", "ValueError: three"])
    (status,) = operator.get("/rq/queues/status").json["queues"]
    assert (status["name"], status["length"], status["failed"], status["rate"]) == ("q", 3, 3, 0)
    failed = operator.get("/rq/queues/failed-jobs?queue=q&exception=ValueError").json
    assert failed["total"] == 3 and {job["exception"] for job in failed["jobs"]} == {"ValueError"}
    page = operator.get("/rq/queues/failed-jobs?offset=2&limit=1").json
    assert len(page["jobs"]) == 1 and page["next_offset"] is None
    assert {"max", "created", "available", "in_use", "pools"} <= set(operator.get("/rq/redis/pool-stats").json)
    assert "rq_pooled_up 1.0" in operator.get("/rq/metrics").text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        *((query, "whole number") for query in ("offset=-1", "offset=x", "limit=1e9", "offset=9999999999")),
        ("offset=999999999", "at most 10000"),
        ("queues=mail", "cannot be used"),
        ("queue=a&queue=b", "cannot be used"),
    ],
)
def test_wrong_parameters_are_400(operator: Any, query: str, words: str) -> None:
    """A parameter that is no number, or not known, is refused in words."""
    response = operator.get(f"/rq/queues/failed-jobs?{query}")
    assert response.status_code == 400 and words in response.json["error"]


def test_requeue(operator: Any, redis: Redis) -> None:
    """Requeueing puts back those with the exception, or all; ghosts and strangers do not disturb it."""
    fail_jobs(redis, "q", ["ValueError: one", "shop.errors.CardExpired: two", "ValueError: three"])
    redis.zadd(named("rq:failed:q"), {"ghost": 9e9})
    report = operator.post("/rq/queues/requeue", json={"queue": "q", "exception": "CardExpired"}).json
    assert report["done"] == 1 and redis.lrange(named("rq:queue:q"), 0, -1) == [b"q-1"]
    assert operator.post("/rq/queues/requeue", data={"queue": "q"}).json["done"] == 2
    assert redis.llen(named("rq:queue:q")) == 3 and redis.zcard(named("rq:failed:q")) == 0
    assert operator.post("/rq/queues/requeue", data={"queue": "q"}).json["done"] == 0


def test_sweep(operator: Any, redis: Redis) -> None:
    """A sweep drops ghosts and leaves jobs; with a policy it buries or deletes those that are meant."""
    fail_jobs(redis, "q", ["ValueError: one", "KeyError: 'two'", "OSError: three"])
    redis.zadd(named("rq:failed:q"), {"ghost": 9e9})
    assert operator.post("/rq/queues/sweep", data={"queue": "q"}).json["done"] == 1
    assert redis.zcard(named("rq:failed:q")) == 3
    assert (
        operator.post("/rq/queues/sweep", data={"queue": "q", "policy": "bury", "exception": "KeyError"}).json["done"]
        == 1
    )
    assert (
        operator.post("/rq/queues/sweep", json={"queue": "q", "policy": "purge", "older_than": "1d"}).json["done"] == 0
    )
    assert (
        operator.post(
            "/rq/queues/sweep", json={"queue": "q", "policy": "purge", "exception": "OSError", "confirm": 1}
        ).json["done"]
        == 1
    )
    assert redis.zrange(named("rq:failed:q"), 0, -1) == [b"q-0"] and not redis.exists(named("rq:job:q-2"))


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("requeue", {"queue": "nowhere"}, 404),
        ("sweep", {"queue": "nowhere"}, 404),
        ("sweep", {"queue": "../../admin"}, 404),
        ("sweep", {}, 400),
        ("requeue", {"exception": "ValueError"}, 400),
        ("sweep", {"queue": "q", "policy": "everything"}, 400),
        ("sweep", {"queue": "q", "policy": "purge", "older_than": "a while"}, 400),
        ("sweep", {"queue": "q", "policy": "purge", "older-than": "30d"}, 400),
        ("sweep", {"queue": "q", "policy": "purge", "older_than": None}, 400),
        ("sweep", {"queue": "q", "policy": "purge", "older_than": ""}, 400),
        ("sweep", {"queue": "q", "policy": "purge"}, 400),
        ("sweep", {"queue": "q", "policy": "purge", "older_than": "0"}, 400),
        ("sweep", {"queue": "q", "policy": "purge", "exception": "Exception"}, 400),
        ("sweep", {"queue": "q", "policy": "purge", "all": "0"}, 400),
        ("sweep", {"queue": "q", "policy": "purge", "all": "yes"}, 400),
        ("sweep", {"queue": "q", "policy": "purge", "all": "1", "exception": "ValueError"}, 400),
        ("sweep", {"queue": "q", "policy": "bury", "all": "1"}, 400),
        ("sweep", {"queue": "q", "exception": "ValueError"}, 400),
        ("sweep", {"queue": "q", "policy": "bury", "exactly": "1"}, 400),
        ("requeue", {"queue": "q", "exception": ""}, 400),
        ("requeue", {"queue": "q", "exception": None}, 400),
        ("requeue", {"queue": "q", "exception": ["KeyError"]}, 400),
        ("requeue", {"queue": "q", "exception": "KeyError", "exactly": "no"}, 400),
        ("requeue", {"queue": "q", "older_than": "30d"}, 400),
        ("requeue", {"queue": "q", "page": "1"}, 400),
        ("requeue", ["no", "object"], 400),
    ],
)
def test_what_cannot_be_done_is_said(operator: Any, redis: Redis, path: str, body: Any, code: int) -> None:
    """An unknown queue is 404, a malformed request 400; both in words, and nothing is changed."""
    fail_jobs(redis, "q", ["ValueError: one"])
    response = operator.post(f"/rq/queues/{path}", json=body)
    assert response.status_code == code and response.json["error"]
    assert redis.zcard(named("rq:failed:q")) == 1


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("", {"data": '{"queue": "q", "exception": "KeyError"}'}),
        ("", {"data": '{"queue": "q"}', "content_type": "text/plain"}),
        ("", {"data": '{"queue": "q"}', "content_type": "application/x-www-form-urlencoded"}),
        ("", {"data": '{"queue": ', "content_type": "application/json"}),
        ("", {"data": "queue=q&older-than=30d", "content_type": "application/x-www-form-urlencoded"}),
        (
            "",
            {
                "data": "queue=q&exception=KeyError&exception=OSError",
                "content_type": "application/x-www-form-urlencoded",
            },
        ),
        ("", {"data": {"queue": "q", "exception": (io.BytesIO(b"KeyError"), "file")}}),
        ("", {"data": {"queue": "q", "exception": "x" * 100_000}}),
        ("?older_than=30d", {"data": {"queue": "q"}}),
        ("?queue=q", {}),
    ],
)
def test_a_body_that_is_not_understood_changes_nothing(
    operator: Any, redis: Redis, address: str, sent: dict[str, Any]
) -> None:
    """What would be left out is refused with 400: a filter that is not read means all jobs."""
    fail_jobs(redis, "q", ["ValueError: one"])
    response = operator.post(f"/rq/queues/requeue{address}", **sent)
    assert response.status_code == 400 and response.json["error"]
    assert redis.zcard(named("rq:failed:q")) == 1


@pytest.mark.parametrize("form", ["multipart/form-data; boundary=b", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "queues/pause"), ("POST", "jobs"), ("GET", "queues/failed-jobs?x=1")]
)
def test_a_large_body_is_not_read(operator: Any, method: str, path: str, form: str) -> None:
    """What is too large is refused by its size, or for want of one: the files of a form would fill the disk."""

    class Unread(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _into: Any) -> int:
            raise AssertionError("the body is read")

    for length in (
        {"CONTENT_LENGTH": "600000000"},
        {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True},
    ):
        environ = {"CONTENT_TYPE": form, "wsgi.input": Unread(), **length}
        response = operator.open(f"/rq/{path}", method=method, environ_overrides=environ)
        assert response.status_code == 400 and response.json["error"]


def test_purging_all_has_to_be_said(operator: Any, redis: Redis) -> None:
    """With all=1 a purge without a filter deletes the failed jobs of the queue."""
    fail_jobs(redis, "q", ["ValueError: one", "KeyError: 2"])
    assert (
        operator.post("/rq/queues/sweep", json={"queue": "q", "policy": "purge", "all": True, "confirm": "2"}).json[
            "done"
        ]
        == 2
    )


def test_a_queues_name_leads_nowhere_else(operator: Any, redis: Redis) -> None:
    """The buttons of a queue with any name go to the endpoints of this page, and change that queue."""
    name = "../../admin/delete?x=1#"
    fail_jobs(redis, name, ["ValueError: one"])
    for address, act, doors in (
        ("/rq/", "", {"/rq/queues/pause", "/rq/jobs"}),
        ("/rq/queue", "", {"/rq/queues/pause", "/rq/queues/limit"}),
        ("/rq/queue", "requeue", {"/rq/queues/requeue", "/rq/queues/limit"}),
    ):
        page = operator.get(address, query_string={"name": name, "act": act} if address != "/rq/" else {}).text
        actions = set(re.findall(r'action="(.*?)"', page))
        assert actions == doors and f'name="queue" value="{name}"' in page
    assert operator.post("/rq/queues/requeue", data={"queue": name, "page": "1"}).status_code == 303
    assert redis.llen(named(f"rq:queue:{name}")) == 1


def test_a_sweep_under_way_is_409(operator: Any, redis: Redis) -> None:
    """Where somebody else sweeps the queue, the answer is 409 and says so; a button's answer is a page."""
    fail_jobs(redis, "q", ["ValueError: one"])
    redis.set(named("rq_pooled:sweep:q"), "host:1:x", ex=30)
    assert operator.post("/rq/queues/sweep", data={"queue": "q"}).status_code == 409
    response = operator.post("/rq/queues/sweep", data={"queue": "q", "page": "1"})
    assert response.status_code == 409 and "under way" in response.text and "<h1>" in response.text


def test_what_the_server_refuses_is_403_in_words(start_server: Any) -> None:
    """Where an ACL refuses a command the page and the endpoints say which with 403, and which user the page needs."""
    one = start_server()
    # The server's words name the user. This one is called like a URL, so that there is a password that could be shown.
    user = "redis://web:s3cr3t@elsewhere/0"
    one.client().execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all", "-sismember", "-sscan")
    app = make_app(f"redis://{quote(user, safe='')}:pw@{one.host}:{one.port}/0", lambda: "write")
    client = app.test_client()
    for path in ("", "queues/status", "queues/failed-jobs", "metrics"):
        response = client.get(f"/rq/{path}")
        assert response.status_code == 403 and "sscan" in response.text and "s3cr3t" not in response.text
    assert "Redis refuses" in client.get("/rq/").text
    response = client.post("/rq/queues/requeue", data={"queue": "q"}, headers={"X-Requested-With": "test"})
    assert response.status_code == 403 and "sismember" in response.json["error"]
    assert "a page that acts logs in as the user page" in response.json["error"]


def test_a_group_is_known_by_the_name_that_its_button_sends(operator: Any, redis: Redis) -> None:
    """Failures are grouped by the very name by which they are chosen, whatever an exception is called or says."""
    inner = 'Traceback (most recent call last):\n  File "far.py", line 1, in f\nKeyError: 1'
    errors = ["shop.pay.<locals>.Declined: no", f"shop.RemoteError: it said\n{inner}", "ValueError: one"]
    fail_jobs(redis, "q", errors)
    jobs = operator.get("/rq/queues/failed-jobs").json["jobs"]
    names = ["shop.pay.<locals>.Declined", "shop.RemoteError", "ValueError"]
    assert sorted(job["exception"] for job in jobs) == sorted(names)
    for name in names:
        assert operator.post("/rq/queues/requeue", json={"queue": "q", "exception": name}).json["done"] == 1


@pytest.mark.parametrize("act", ["requeue", "bury"])
def test_a_groups_buttons_touch_that_group_only(operator: Any, redis: Redis, act: str) -> None:
    """The buttons beside "Exception" change the jobs counted there: no descendants, no classes of the same name."""
    fail_jobs(redis, "q", ["Exception: one", "ValueError: two", "shop.Exception: three", "OSError: four"])
    page = operator.get("/rq/").text
    forms = [form for form in re.findall(r"<form.*?</form>", page, re.DOTALL) if f'value="{act}"' in form]
    (form,) = [form for form in forms if 'value="Exception"' in form]
    data = dict(re.findall(r'name="(\w+)" value="(.*?)"', form))
    assert operator.post("/rq/jobs", data=data).status_code == 303
    left = operator.get("/rq/queues/failed-jobs").json["jobs"]
    assert sorted(job["exception"] for job in left) == ["OSError", "ValueError", "shop.Exception"]


def test_asking_for_no_failed_jobs_reads_none(operator: Any, redis: Redis) -> None:
    """limit=0 returns the total alone, without fetching a registry, however long it is."""
    fail_jobs(redis, "q", ["ValueError: one"])
    redis.zadd(named("rq:failed:q"), {f"{'x' * 50}-{number}": number for number in range(20_000)})
    before = redis.info("stats")["total_net_output_bytes"]
    page = operator.get("/rq/queues/failed-jobs?limit=0").json
    assert page["total"] == 20_001 and page["jobs"] == []
    assert redis.info("stats")["total_net_output_bytes"] - before < 100_000


def test_commands_and_probes_are_no_part_of_the_budget(server: EmbeddedServer, redis: Redis) -> None:
    """The page counts against the budget what is reserved from it: a probe or a command in between is not."""
    others = [
        Redis.from_url(server.url, client_name=named(f"rq_pooled:mine:host:1:{role}")) for role in ("cli", "probe")
    ]
    for other in others:
        other.ping()
    app = make_app(server.url, lambda: True, RQ_POOLED_BUDGET=7, RQ_POOLED_BUDGET_NAME="mine")
    assert "1 of the budget of 7" in app.test_client().get("/rq/").text
    for other in others:
        other.close()


def test_an_address_cannot_put_words_into_the_page(operator: Any) -> None:
    """The message on the page is what a button has done, not what a link says."""
    for link in (
        "did=requeued&queue=q&count=Call+0800+now.+0",
        "did=purged&count=5&queue=Call+0800+now",
        "did=" + "0" * 32,
    ):
        page = operator.get(f"/rq/?{link}")
        assert page.status_code == 200 and "Call" not in page.text and 'class="message"' not in page.text


@pytest.mark.parametrize("note", ["no JSON", "[1, 2]", "5", b"\xff", ""])
def test_a_notice_that_others_wrote_breaks_no_page(operator: Any, redis: Redis, note: Any) -> None:
    """What stands where a button's notice belongs is left out of the page if it is none."""
    redis.set(named("rq_pooled:notice:") + "a" * 32, note)
    page = operator.get("/rq/?did=" + "a" * 32)
    assert page.status_code == 200 and 'class="message"' not in page.text


@pytest.mark.parametrize(
    "body",
    [
        '{"queue": "q", "policy": "purge", "older_than": "30d", "older_than": "0"}',
        '{"queue": "\\ud800", "policy": "purge", "all": 1}',
        "[" * 30_000,
    ],
    ids=["twice", "surrogate", "nested"],
)
def test_odd_json_is_refused(operator: Any, redis: Redis, body: str) -> None:
    """JSON that names a parameter twice, holds what is no text, or is nested too deeply is 400 and changes nothing."""
    fail_jobs(redis, "q", ["ValueError: one"])
    response = operator.post("/rq/queues/sweep", data=body, content_type="application/json")
    assert response.status_code == 400 and response.json["error"]
    assert redis.zcard(named("rq:failed:q")) == 1


def test_probes_that_come_before_the_first_answer_share_it(start_server: Any) -> None:
    """Requests for the health of a server that has not answered yet open one connection, however many they are."""
    one = start_server()
    client = one.client()
    app = make_app(one.url)
    before = client.info("stats")["total_connections_received"]
    codes: list[int] = []
    gate = threading.Barrier(8)

    def ask() -> None:
        gate.wait()
        codes.append(app.test_client().get("/rq/health/redis").status_code)

    client.client_pause(500)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 8
    assert client.info("stats")["total_connections_received"] - before == 1


def test_buttons_lead_back_to_the_page(operator: Any, redis: Redis) -> None:
    """A button's POST is answered with a redirect to the page, which tells what was done."""
    fail_jobs(redis, "mail:eu", ["ValueError: one"])
    response = operator.post("/rq/queues/requeue", data={"queue": "mail:eu", "page": "1", "exception": "ValueError"})
    assert response.status_code == 303
    page = operator.get(response.location)
    assert re.search(r"1 job\s+requeued in", page.text) and "mail:eu" in page.text


def test_the_page_shows_what_counts_for_the_budget(server: EmbeddedServer, redis: Redis) -> None:
    """Against the budget stand the connections of its application, not those of others on the same server."""
    stranger = Redis.from_url(server.url, client_name=named("rq_pooled:other:host:1:web"))
    stranger.ping()
    app = make_app(server.url, lambda: True, RQ_POOLED_BUDGET=7, RQ_POOLED_BUDGET_NAME="mine")
    page = app.test_client().get("/rq/").text
    assert "1 of the budget of 7" in page and "2 of this application" in page
    stranger.close()


def test_nothing_of_a_job_is_unescaped_and_no_secret_is_shown(start_server: Any) -> None:
    """Descriptions, errors, names of queues and clients are text, whatever is in them; the password is nowhere."""
    one = start_server({"requirepass": "s3cr3t"})
    redis = one.client()
    queue = StockQueue(HOSTILE, connection=redis)
    queue.enqueue(FACTORIAL, 3, description=HOSTILE)
    queue.schedule_job(Job.create(FACTORIAL, (3,), connection=redis, origin=HOSTILE, description=HOSTILE), _tomorrow())
    (failed,) = fail_jobs(redis, HOSTILE, [f"ValueError: {HOSTILE}"])
    redis.hset(named(f"rq:job:{failed}"), "description", HOSTILE)
    redis.client_setname("<b>client</b>")
    client = make_app(one.url, lambda: "write").test_client()
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    pages = [
        client.get(path) for path in ("/rq/", f"/rq/?did=requeued&queue={HOSTILE}&count={HOSTILE}", "/rq/health/redis")
    ]
    pages += [client.get(path) for path in ("/rq/redis/pool-stats", "/rq/queues/status", "/rq/metrics")]
    for page in pages:
        assert page.status_code == 200 and "s3cr3t" not in page.text
    for page in pages[:2]:
        assert "<script>alert" not in page.text and "<img" not in page.text and "<b>client" not in page.text
        assert "&lt;script&gt;alert" in page.text


def _tomorrow() -> datetime:
    return datetime.now(timezone.utc) + timedelta(days=1)


# -- Redis away --------------------------------------------------------------------------------------------------------


def test_with_redis_down_everything_answers(start_server: Any) -> None:
    """With Redis gone the page and the endpoints say so with 503."""
    one = start_server()
    app = make_app(one.url, lambda: "write")
    one.stop()
    client = app.test_client()
    answer = client.get("/rq/health/redis")
    assert answer.status_code == 503 and answer.json == {"ok": False, "status": "away"}
    page = client.get("/rq/")
    assert page.status_code == 503 and "Redis does not answer" in page.text
    for path in ("/rq/queues/status", "/rq/queues/failed-jobs"):
        assert client.get(path).status_code == 503
    assert (
        client.post("/rq/queues/requeue", data={"queue": "q"}, headers={"Sec-Fetch-Site": "same-origin"}).status_code
        == 503
    )
    assert client.get("/rq/redis/pool-stats").status_code == 200
    assert "rq_pooled_up 0.0" in client.get("/rq/metrics").text


def test_health_tells_everybody_a_word_and_opens_a_connection_a_second(start_server: Any) -> None:
    """What anybody may ask says how Redis is and nothing else, and many requests are one look at the server."""
    one = start_server()
    redis = one.client()
    client = make_app(one.url).test_client()
    before, began = redis.info("stats")["total_connections_received"], time.monotonic()
    for _ in range(100):
        answer = client.get("/rq/health/redis")
        assert (answer.status_code, answer.json) == (200, {"ok": True, "status": "healthy"})
    opened = redis.info("stats")["total_connections_received"] - before
    assert opened <= 2 + (time.monotonic() - began)
    one.stop()
    wait_until(lambda: client.get("/rq/health/redis").status_code == 503, 10)


def test_health_tells_nobody_what_is_wrong_with_the_url(server: Any) -> None:
    """With a URL that cannot be used health is one word and 503, and the URL's parameters are told to nobody."""
    answer = make_app(f"{server.url}?ssl_certfile=/secret").test_client().get("/rq/health/redis")
    assert (answer.status_code, answer.json) == (503, {"ok": False, "status": "misconfigured"})


def test_health_answers_within_two_seconds_of_a_frozen_server(start_server: Any) -> None:
    """With Redis stopped by SIGSTOP health is 503 within 2 s, and the page within its deadline."""
    one = start_server()
    client = make_app(one.url, lambda: True).test_client()
    assert client.get("/rq/").status_code == 200  # has connections now
    one.pause()
    try:
        started = time.monotonic()
        assert client.get("/rq/health/redis").status_code == 503
        assert time.monotonic() - started < 2.0 + SLACK
        started = time.monotonic()
        assert client.get("/rq/").status_code == 503
        assert time.monotonic() - started < 4.0 + SLACK
    finally:
        one.resume()


@pytest.mark.parametrize("with_flask", [True, False])
def test_health_answers_within_two_seconds_of_a_trickling_server(with_flask: bool) -> None:
    """A server that answers one byte at a time does not stretch the answer of health, at the endpoint or called."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(20)

        def trickle() -> None:
            with listener.accept()[0] as connection:
                try:
                    for _ in range(400):
                        connection.send(b"+")
                        time.sleep(0.05)
                except OSError:
                    pass

        thread = threading.Thread(target=trickle)
        thread.start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        client = make_app(url).test_client()
        started = time.monotonic()
        if with_flask:
            assert client.get("/rq/health/redis").status_code == 503
        else:
            assert health(2.0, Settings(url=url))["status"] == "away"
        assert time.monotonic() - started < 2.0 + SLACK
        thread.join()


def test_a_page_that_finds_no_free_connection_says_so(start_server: Any) -> None:
    """With the pool exhausted the answer is 503 in time, and not a request that waits for POOL_TIMEOUT."""
    app = make_app(start_server().url, lambda: True, RQ_POOLED_MAX_CONNECTIONS=3)
    with app.app_context():
        pool: Any = app.extensions["rq_pooled"].connection.connection_pool
    taken = [pool.get_connection() for _ in range(3)]
    try:
        response = app.test_client().get("/rq/queues/status")
        assert response.status_code == 503 and "MAX_CONNECTIONS" in response.json["error"]
    finally:
        for connection in taken:
            pool.release(connection)


# -- beside others -----------------------------------------------------------------------------------------------------

_BESIDE = """
import json, sys
import flask, rq_dashboard
from flask_rq import RQ
from rq_pooled.flask import RQPooled
url = sys.argv[1]
app = flask.Flask("shop")
app.config.update(RQ_POOLED_URL=url, RQ_DASHBOARD_REDIS_URL=url, RQ_CONNECTION=url)
theirs, ours = RQ(app), RQPooled(app)
rq_dashboard.web.setup_rq_connection(app)
app.register_blueprint(rq_dashboard.blueprint, url_prefix="/dashboard")
app.register_blueprint(ours.blueprint(authorize=lambda: True), url_prefix="/rq")
with app.app_context():
    theirs.queue.enqueue("math.factorial", 3)
    ours.queue.enqueue("math.factorial", 3)
client = app.test_client()
paths = ("/rq/", "/rq/queues/status", "/dashboard/", "/rq/rq-pooled-static/page.css")
codes = [client.get(path).status_code for path in paths]
print(json.dumps([codes, client.get("/rq/queues/status").json["queues"][0]["length"]]))
"""


def test_beside_flask_rq_and_rq_dashboard(server: EmbeddedServer, redis: Redis) -> None:
    """flask-rq, rq-dashboard and rq_pooled live in one application, on the same queues."""
    pytest.importorskip("flask_rq")
    pytest.importorskip("rq_dashboard")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", _BESIDE, server.url]
    done = subprocess.run(run, capture_output=True, text=True, timeout=40, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[200] * 4, 2]


def test_an_application_with_csrf_protection_of_its_own(server: EmbeddedServer, redis: Redis) -> None:
    """Where the application's templates have csrf_token (Flask-WTF), each form of the page carries it."""
    fail_jobs(redis, "q", ["ValueError: one"])
    app = make_app(server.url, lambda: "write")
    app.jinja_env.globals["csrf_token"] = lambda: "token-1"
    app.config["WTF_CSRF_FIELD_NAME"] = "own_name"
    page = app.test_client().get("/rq/").text
    assert page.count("<form") == page.count('name="own_name" value="token-1"') > 0


def test_failed_registry_is_rqs_own(operator: Any, redis: Redis) -> None:
    """What the buttons leave behind is what RQ's own tools expect: a requeued job is queued, and runs."""
    ids = fail_jobs(redis, "q", ["ValueError: one"])
    operator.post("/rq/queues/requeue", data={"queue": "q"})
    job = Job.fetch(ids[0], connection=redis)
    assert job.get_status() == "queued" and job.id in StockQueue("q", connection=redis).job_ids
    assert FailedJobRegistry("q", connection=redis).get_job_count() == 0


def test_names_bring_no_control_characters_into_pages_and_metrics(operator: Any, redis: Redis) -> None:
    """Escape and bell characters in names, ids and errors are shown as text, in HTML and in metrics."""
    bad = "q\x1b]0;x\x07\x7f\x9b"
    job = StockQueue(bad, connection=redis).enqueue(FACTORIAL, -1, description=f"d{bad}")
    redis.delete(named(f"rq:queue:{bad}"))
    redis.rpush(named(f"rq:queue:{bad}"), job.id)
    redis.zadd(named(f"rq:failed:{bad}"), {job.id: time.time() + 99})
    redis.hset(job.key, mapping={"status": "failed", "exc_info": f"Traceback\nshop.Declined{bad}: {bad}"})
    redis.zadd(named(f"rq:scheduled:{bad}"), {job.id: time.time() + 99})
    worker = json.dumps(f"w{bad}")
    fields = {"kind": '"worker"', "worker": worker, "concurrency": "2", "published_at": "1", "queues": f"[{worker}]"}
    redis.hset(named(f"rq_pooled:stats:a{bad}:h{bad}:1"), mapping=fields)
    redis.zadd(named("rq_pooled:stats"), {named(f"rq_pooled:stats:a{bad}:h{bad}:1"): time.time() + 60})
    for path in ("/rq/", "/rq/metrics"):
        answer = operator.get(path)
        text = answer.get_data(as_text=True)
        assert answer.status_code == 200 and r"q\x1b]0;x\x07\x7f\x9b" in text.replace("\\\\", "\\")
        assert not {character for character in text if not character.isprintable()} - {"\n", "\u202f"}, path
    wrong = operator.post("/rq/queues/sweep", data={"page": "1", "queue": bad + "?", "policy": "ghosts"})
    assert wrong.status_code == 404 and "\x1b" not in wrong.get_data(as_text=True)


def test_a_huge_name_makes_no_huge_answer(operator: Any, redis: Redis) -> None:
    """Names of queues of 1 kB cost pages, JSON and metrics a line, and two stay two queues; one of 1 MB is left out."""
    for last in "ab":
        redis.sadd(named("rq:queues"), named("rq:queue:") + "n" * 900 + last)
        redis.rpush(named("rq:queue:") + "n" * 900 + last, "x")
    redis.sadd(named("rq:queues"), named("rq:queue:") + "n" * 1_000_000)
    metrics = operator.get("/rq/metrics").get_data(as_text=True)
    assert len(metrics) < 50_000 and len(re.findall(r'(?m)^rq_pooled_queue\{.*state="queued"\} 1.0$', metrics)) == 2
    assert len(set(re.findall(r'queue="(.*?)"', metrics))) == 2
    assert len(operator.get("/rq/").get_data()) < 100_000
    queues = operator.get("/rq/queues/status").get_json()["queues"]
    assert len({queue["name"] for queue in queues}) == 2 and all(len(queue["name"]) < 1_000 for queue in queues)
    redis.zadd(named("rq:failed:") + "n" * 900 + "a", {"j" * 1_000_000 + last: 9e9 for last in "ab"})
    failed = operator.get("/rq/queues/failed-jobs")
    assert len({job["id"] for job in failed.get_json()["jobs"]}) == 2 and len(failed.get_data()) < 10_000
