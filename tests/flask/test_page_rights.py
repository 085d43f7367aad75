"""Who may do what on the page and at its endpoints: ``authorize(action, queue)``, asked about every queue."""

from __future__ import annotations

import functools
import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from failures import FACTORIAL, fail_jobs
from keys import named
from redis import Redis
from rq.job import Job
from support import drop_pools

from rq_pooled import Queue
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError
from rq_pooled.monitoring.audit import trail

pytest.importorskip("flask")
from page_client import client_of

from rq_pooled.flask import RIGHTS, WRITE

#: What a POST of the page does: its address, its body, and the right that it needs.
ACTIONS = {
    "requeue": ("queues/requeue", {"queue": "mail"}, "requeue"),
    "requeue-group": ("queues/requeue", {"queue": "mail", "exception": "ValueError", "exactly": "1"}, "requeue"),
    "sweep": ("queues/sweep", {"queue": "mail"}, "bury"),
    "bury": ("queues/sweep", {"queue": "mail", "policy": "bury", "exception": "ValueError"}, "bury"),
    "pause": ("queues/pause", {"queue": "mail"}, "pause"),
    "resume": ("queues/pause", {"queue": "mail", "act": "resume"}, "pause"),
    "limit": ("queues/limit", {"queue": "mail", "rate": "10/5s"}, "pause"),
    "unlimit": ("queues/limit", {"queue": "mail", "clear": "1"}, "pause"),
    "group": ("jobs", {"act": "requeue", "queue": "mail", "exception": "ValueError", "function": FACTORIAL}, "requeue"),
    "jobs-requeue": ("jobs", {"act": "requeue", "jobs": '["q-0"]'}, "requeue"),
    "jobs-bury": ("jobs", {"act": "bury", "jobs": '["q-0"]'}, "bury"),
    "jobs-delete": ("jobs", {"act": "delete", "jobs": '["q-0"]', "confirm": "1"}, "purge"),
    "purge": ("queues/sweep", {"queue": "mail", "policy": "purge", "all": "1", "confirm": "1"}, "purge"),
}


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


def of_mail(*actions: str) -> Callable[[str, Any], bool]:
    """An authorize for somebody who may do this with the queue mail, and may know of no other one."""
    return lambda action, queue: action in actions if queue == "mail" else action == "view" and queue is None


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("right", RIGHTS[1:])
def test_each_action_needs_its_right_and_no_other(
    server: EmbeddedServer, redis: Redis, action: str, right: str
) -> None:
    """Each action of the page is done with its own right, refused with every other one, and offered only with it."""
    fail_jobs(redis, "mail", ["ValueError: x"])
    path, body, needed = ACTIONS[action]
    client = client_of(server, of_mail("view", right))
    for address in ("", "failed", "job?id=q-0", "queue?name=mail"):
        page = client.get(f"/rq/{address}").text
        assert ("Requeue" in page) == (right == "requeue"), address
        assert (("Sweep entries" if "queue" in address else "Bury") in page) == (right == "bury"), address
        assert (">Pause queue</button>" in page) == (right == "pause" and address in ("", "queue?name=mail"))
        assert ("Set limit" in page) == (right == "pause" and address == "queue?name=mail")
        assert ("Delete" in page) == (right == "purge" and address in ("failed", "job?id=q-0"))
    for act, of in (("requeue", "requeue"), ("bury", "bury"), ("delete", "purge")):
        asked = client.get("/rq/failed/confirm", query_string={"act": act, "job": "q-0"})
        assert asked.status_code == (200 if of == right else 403)
    before = redis.zrange(named("rq:failed:mail"), 0, -1)
    code = client.post(f"/rq/{path}", data=body).status_code
    assert code == (200 if right == needed else 403)
    if right != needed:
        assert redis.zrange(named("rq:failed:mail"), 0, -1) == before


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_needs_the_sight_of_its_queue(server: EmbeddedServer, redis: Redis, action: str) -> None:
    """All rights but that to view a queue allow nothing with it; the answer is the same as for a queue that is not."""
    fail_jobs(redis, "mail", ["ValueError: x"])
    path, body, _ = ACTIONS[action]
    client = client_of(server, of_mail(*RIGHTS[1:]))
    other = {"jobs": '["none"]'} if "jobs" in body else {"queue": "none"}
    answers = [client.post(f"/rq/{path}", data=data) for data in (body, {**body, **other})]
    assert answers[0].status_code == answers[1].status_code == (200 if "jobs" in body else 403)
    assert answers[0].text.replace("mail", "none") == answers[1].text
    assert redis.zcard(named("rq:failed:mail")) == 1


@pytest.mark.parametrize("act", ["requeue", "bury", "delete"])
def test_an_act_reaches_only_the_queue_that_its_right_was_asked_of(
    server: EmbeddedServer, redis: Redis, act: str
) -> None:
    """A job that is another queue's by the time of the act is left alone, also where its hash said otherwise before."""
    fail_jobs(redis, "secret", ["ValueError: x"])
    redis.hset(named("rq:job:q-0"), "origin", "mail")

    def authorize(action: str, queue: Any) -> bool:
        if queue == "mail":
            # Its hash was read: from now on the job is the other queue's again.
            redis.hset(named("rq:job:q-0"), "origin", "secret")
        return of_mail(*RIGHTS)(action, queue)

    client = client_of(server, authorize)
    client.post("/rq/jobs", data={"act": act, "jobs": '["q-0"]', "confirm": "1"})
    assert redis.zscore(named("rq:failed:secret"), "q-0") and redis.hexists(named("rq:job:q-0"), "data")
    assert not redis.exists(named("rq:queue:secret"), named("rq:queue:mail"), named("rq_pooled:dead:secret"))


def test_what_may_not_be_viewed_is_nowhere(server: EmbeddedServer, redis: Redis) -> None:
    """Names, jobs, errors and numbers of a queue that may not be viewed are in no page, JSON, metric or sum."""
    pytest.importorskip("prometheus_client")
    fail_jobs(redis, "mail", ["ValueError: of mail"])
    fail_jobs(redis, "payroll", ["LookupError: of payroll"] * 41, prefix="payroll")
    for _ in range(43):
        Queue("payroll", connection=redis).enqueue(FACTORIAL, 3)
    Queue("payroll", connection=redis).enqueue_at(_next_year(), FACTORIAL, 3)
    redis.set(named("rq:canceled:payroll"), "of another type")
    # A worker of ours that serves both: its numbers are sums over both.
    published = {"kind": "worker", "worker": "w1", "queues": ["mail", "payroll"], "failed": 47, "concurrency": 1}
    key = named("rq_pooled:stats:rq:host:77")
    redis.hset(key, mapping={name: json.dumps(value) for name, value in published.items()})
    redis.zadd(named("rq_pooled:stats"), {key: 9e9})
    client = client_of(server, of_mail("view"))
    # Two minutes ago 41 jobs failed, of all queues together.
    redis.lpush(named("rq_pooled:stats:ended"), f"{int(time.time()) // 15 - 8} 43 41")
    paths = (
        "",
        "failed",
        "failed?dead=1",
        "queues/status",
        "queues/failed-jobs",
        "metrics",
        "redis/pool-stats",
        "queues/failed-jobs?queue=mail",
    )
    texts = [client.get(f"/rq/{path}") for path in paths]
    assert [answer.status_code for answer in texts] == [200] * len(paths)
    for path, answer in zip(paths, texts):
        for word in ("payroll", "LookupError", ">41<", ">42<", ">43<", ": 41", "47.0", ">47<"):
            assert word not in answer.text, (path, word)
    assert "mail" in texts[0].text and texts[4].get_json()["total"] == 1
    for address in ("queues/failed-jobs?queue=payroll", "failed?queue=payroll", "failed?queue=payroll&exception="):
        assert client.get(f"/rq/{address}").status_code == 403
    hidden, gone = client.get("/rq/job?id=payroll-0"), client.get("/rq/job?id=nowhere-0")
    assert hidden.status_code == gone.status_code == 404 and hidden.text.replace("payroll", "nowhere") == gone.text
    redis.sadd(named("rq:job:q-0:dependents"), "payroll-1", "q-0")
    redis.hset(named("rq:job:q-0"), "dependency_id", "payroll-2")
    mine = client.get("/rq/job?id=q-0")
    assert mine.status_code == 200 and "payroll" not in mine.text
    # Their number counts those that are hidden, also where none of them is among the few that are read.
    assert "<dt>dependents<" in mine.text and "2 dependents<" not in mine.text
    for number in range(30):
        redis.hset(named(f"rq:job:q-{number}"), "origin", "mail")
        redis.sadd(named("rq:job:q-0:dependents"), f"q-{number}")
    assert "<dt>dependents<" in client.get("/rq/job?id=q-0").text
    everything = client_of(server, lambda action, queue: action == "view").get("/rq/").text
    assert "payroll" in everything and "LookupError" in everything


def _next_year() -> Any:
    from datetime import datetime, timedelta, timezone

    return datetime.now(timezone.utc) + timedelta(days=365)


def test_no_request_sees_with_the_eyes_of_another(server: EmbeddedServer, redis: Redis) -> None:
    """What one request may not see is hidden from that request only, in the same thread and however it ended."""
    from rq_pooled.health import queues

    fail_jobs(redis, "mail", ["ValueError: x"])
    fail_jobs(redis, "payroll", ["ValueError: x"])
    client = client_of(server, of_mail("view"))
    for path in ("", "queues/status", "queues/failed-jobs?queue=payroll", "nowhere"):
        client.get(f"/rq/{path}")
        assert [queue["name"] for queue in queues(redis)] == ["mail", "payroll"]


def test_each_request_is_asked_anew_whatever_the_application_has_pushed(server: EmbeddedServer, redis: Redis) -> None:
    """In an application context that lives as long as the process, no answer to one visitor holds for another."""
    from flask import request

    fail_jobs(redis, "mail", ["ValueError: x"])
    client = client_of(server, lambda action, queue: request.headers.get("X-User") == "admin")
    with client.application.app_context():
        for user, code in (("admin", 200), ("nobody", 403), ("admin", 200), ("", 403)):
            assert client.get("/rq/queues/status", headers={"X-User": user}).status_code == code
        body = {"act": "delete", "jobs": '["q-0"]', "confirm": "1"}
        assert client.post("/rq/jobs", data=body, headers={"X-User": "nobody"}).status_code == 403
    assert redis.zcard(named("rq:failed:mail")) == 1


@pytest.mark.parametrize("said", ["read", "write", 1, WRITE, object(), [True]])
def test_only_true_allows(server: EmbeddedServer, redis: Redis, said: Any) -> None:
    """authorize(action, queue) allows with True alone: a function of the old form in disguise opens nothing."""
    assert client_of(server, lambda action, queue: said).get("/rq/").status_code == 403
    assert client_of(server, lambda *_: said).get("/rq/").status_code == 403


@pytest.mark.parametrize("said", ["write", WRITE])
def test_the_old_form_works(server: EmbeddedServer, redis: Redis, said: Any) -> None:
    """An authorize without arguments that returns WRITE, or the word of old, does everything with every queue."""
    fail_jobs(redis, "mail", ["ValueError: x"])
    client = client_of(server, lambda: said)
    assert ">Requeue 1</button>" in client.get("/rq/").text
    path, body, _ = ACTIONS["requeue"]
    assert client.post(f"/rq/{path}", data=body).status_code == 200
    assert redis.llen(named("rq:queue:mail")) == 1


def test_an_authorize_that_cannot_be_called_is_refused(server: EmbeddedServer) -> None:
    """An authorize of other arguments, or an asynchronous one, is refused when the blueprint is made, in words."""

    async def later(action: str, queue: str) -> bool:
        return True

    class Later:
        async def __call__(self, action: str, queue: str) -> bool:
            return True

    called = functools.partial(later, "view")
    for authorize, words in (
        (lambda action: True, "take .action, queue"),
        *((one, "authorize is asynchronous") for one in (later, Later(), called)),
    ):
        with pytest.raises(ConfigurationError, match=words):
            client_of(server, authorize)
    with pytest.raises(ConfigurationError, match="who is asynchronous"):
        client_of(server, who=later)


@pytest.mark.parametrize("form", ["old", "new"])
def test_an_answer_that_nothing_awaits_allows_nothing(
    server: EmbeddedServer, redis: Redis, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    """A function that returns a coroutine, which any test for truth takes for a yes, opens nothing and is logged."""

    async def later(*_about: Any) -> Any:
        return WRITE

    fail_jobs(redis, "mail", ["ValueError: x"])
    client = client_of(server, (lambda: later()) if form == "old" else lambda action, queue: later(action, queue))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert client.get("/rq/").status_code == 403
        assert client.post("/rq/queues/requeue", data={"queue": "mail"}).status_code == 403
        gc.collect()
    assert "authorize returned a coroutine, which is never awaited" in caplog.text
    client = client_of(server, who=lambda: later())
    assert client.post("/rq/queues/requeue", data={"queue": "mail"}).status_code == 200
    assert trail(redis)[0]["who"] == "" and "who returned a coroutine" in caplog.text


def test_who_may_be_any_text(server: EmbeddedServer, redis: Redis) -> None:
    """Half of a character in the visitor's name costs neither the action nor its entry."""
    fail_jobs(redis, "mail", ["ValueError: x"])
    done = client_of(server, who=lambda: "a\ud800b").post("/rq/queues/requeue", data={"queue": "mail"})
    assert done.get_json()["done"] == 1 and trail(redis)[0]["who"] == "a\\ud800b"


def test_authorize_is_asked_once(server: EmbeddedServer, redis: Redis) -> None:
    """One request asks about each action and queue at most once, since the answer may cost a look into a database."""
    for name in ("mail", "payroll"):
        fail_jobs(redis, name, ["ValueError: x"], prefix=name)
    asked: list[tuple[str, Any]] = []

    def authorize(action: str, queue: Any) -> bool:
        asked.append((action, queue))
        return True

    client_of(server, authorize).get("/rq/")
    assert len(asked) == len(set(asked)) and ("view", None) in asked and ("requeue", "mail") in asked


def test_a_purge_is_confirmed_with_its_number(server: EmbeddedServer, redis: Redis) -> None:
    """A purge deletes nothing until it is confirmed with the number that goes; where more have failed since, nothing
    goes either.
    """
    ids = fail_jobs(redis, "mail", ["ValueError: x"] * 3 + ["LookupError: x"])
    client = client_of(server, lambda action, queue: True)
    body = {"queue": "mail", "policy": "purge", "exception": "ValueError"}
    for given in ({}, {"confirm": "2"}, {"confirm": "0"}):
        answer = client.post("/rq/queues/sweep", data={**body, **given})
        assert answer.status_code == 400 and "deletes 3 jobs" in answer.get_json()["error"]
        assert "confirm=3" in answer.get_json()["error"] and redis.zcard(named("rq:failed:mail")) == 4
    assert client.post("/rq/queues/sweep", data={**body, "confirm": "3"}).get_json()["done"] == 3
    assert redis.zcard(named("rq:failed:mail")) == 1 and Job.exists(ids[3], redis)
    assert client.post("/rq/queues/sweep", data={**body, "confirm": "0"}).get_json()["done"] == 0
