"""The page of one queue: its limit is shown and set there, and its failed jobs are counted before they change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from failures import HOSTILE, fail_jobs
from keys import named
from redis import Redis
from rq import Queue
from support import drop_pools

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.monitoring.audit import trail
from rq_pooled.queue.limits import Limit, declare_limit, limits_in_force, make_limit

pytest.importorskip("flask")
from page_client import client_of


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


@pytest.fixture
def operator(server: EmbeddedServer) -> Any:
    """A client that may do everything."""
    return client_of(server)


def test_a_limit_is_shown_set_and_cleared(redis: Redis, operator: Any) -> None:
    """What code declared stands at the queue until the page sets another; clearing that gives it back."""
    Queue("mail", redis).enqueue(print)
    declare_limit(redis, "mail", make_limit("7/1m"))
    for address in ("/rq/", "/rq/queue?name=mail"):
        assert "most 7 starts in 1m" in operator.get(address).text
    assert "declared by code" in operator.get("/rq/queue?name=mail").text
    sent = {"queue": "mail", "rate": "10/5s", "max_running": "3", "page": "queue"}
    done = operator.post("/rq/queues/limit", data=sent)
    page = operator.get(done.location).text
    assert done.status_code == 303 and "“mail” has a new limit" in page and "set by an operator" in page
    assert limits_in_force(redis)["mail"] == (Limit(10, 5.0, 3), True)
    (one,) = trail(redis)
    assert one["what"] == "at most 10 starts in 5s, at most 3 running at once"
    operator.post("/rq/queues/limit", data={"queue": "mail", "rate": "", "max_running": "2", "page": "queue"})
    assert limits_in_force(redis)["mail"] == (Limit(0, 0.0, 2), True)
    cleared = operator.post("/rq/queues/limit", json={"queue": "mail", "clear": 1})
    assert cleared.json["limit"] == "at most 7 starts in 1m" and not limits_in_force(redis)["mail"].by_operator


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({}, "a limit needs a rate such as 10/5s"),
        ({"rate": "", "max_running": ""}, "a limit needs a rate such as 10/5s"),
        ({"rate": HOSTILE}, "write it as 10/5s"),
        ({"rate": "0/5s"}, "it must be 1 to"),
        ({"max_running": "0"}, "it must be a whole number of at least 1"),
        ({"max_running": "-3"}, "give a whole number"),
        ({"max_running": "99999999"}, "it must be a whole number"),
        ({"clear": "1", "rate": "1/5s"}, "clear=1 excludes"),
    ],
)
def test_a_limit_that_is_none_is_refused(redis: Redis, operator: Any, sent: dict[str, str], words: str) -> None:
    """A limit that cannot be used is answered with a page that says what to write, and changes nothing."""
    refused = operator.post("/rq/queues/limit", data={"queue": "mail", "page": "queue", **sent})
    assert refused.status_code == 400 and words in refused.text and "<script>alert" not in refused.text
    assert limits_in_force(redis) == {} and trail(redis) == []


def test_limits_of_another_type_cost_no_queue_its_page(redis: Redis, operator: Any) -> None:
    """Where the limits of queues are of another type, as for workers there is none, and each queue has its page."""
    Queue("mail", redis).enqueue(print)
    redis.set(named("rq_pooled:limits"), "spoilt")
    assert operator.get("/rq/queue?name=mail").status_code == 200
    operator.post("/rq/queues/limit", data={"queue": "mail", "max_running": "2"})
    assert limits_in_force(redis)["mail"].limit == Limit(max_running=2)


def test_failed_jobs_are_counted_before_they_change(redis: Redis, operator: Any) -> None:
    """Requeue and sweep name their number first, and a requeue takes no more than that, though more failed since."""
    fail_jobs(redis, "mail", ["ValueError: x"] * 3)
    redis.zadd(named("rq:failed:mail"), {"ghost": 9e9})
    asked = operator.get("/rq/queue?name=mail&act=requeue").text
    assert "Requeue 3 failed jobs" in asked and redis.zcard(named("rq:failed:mail")) == 4
    assert "Sweep 1 entry without a job" in operator.get("/rq/queue?name=mail&act=sweep").text
    assert redis.zcard(named("rq:failed:mail")) == 4
    swept = operator.post("/rq/queues/sweep", data={"queue": "mail", "page": "queue"})
    assert "1 entry without a job removed" in operator.get(swept.location).text
    fail_jobs(redis, "mail", ["OSError: y"] * 2, "late")
    done = operator.post("/rq/queues/requeue", data={"queue": "mail", "confirm": "3", "page": "queue"})
    assert "3 jobs requeued in “mail”" in operator.get(done.location).text
    assert Queue("mail", redis).count == 3
    assert "There is nothing to sweep" in operator.get("/rq/queue?name=mail&act=sweep").text


def test_a_queue_that_is_not_or_may_not_be_seen_has_no_page(
    server: EmbeddedServer, redis: Redis, operator: Any
) -> None:
    """An unknown queue is 404, a hidden one 403, an unknown act 400, and a name of markup is only text."""
    Queue("mail", redis).enqueue(print)
    Queue(HOSTILE, redis).enqueue(print)
    assert operator.get("/rq/queue?name=none").status_code == 404
    assert operator.get("/rq/queue?name=mail&act=purge").status_code == 400
    hidden = client_of(server, lambda action, queue: queue != "mail")
    assert hidden.get("/rq/queue?name=mail").status_code == 403
    page = operator.get("/rq/queue", query_string={"name": HOSTILE})
    assert page.status_code == 200 and "<script>alert" not in page.text
