"""What is to come, as `rq-pooled schedule` and the page show it, and how one of it is cancelled."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from commands import refusal, run_command
from failures import FACTORIAL, HOSTILE
from keys import named
from redis import Redis
from rq import Queue, Retry
from rq.job import Job
from support import drop_pools

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError
from rq_pooled.monitoring.audit import trail
from rq_pooled.monitoring.schedules import cancel, schedules

pytest.importorskip("flask")
from page_client import client_of

pytest.importorskip("rq_scheduler")
from rq_pooled import Scheduler

SOON = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


@pytest.fixture
def everything(server: EmbeddedServer, redis: Redis) -> dict[str, Any]:
    """One of each kind, by its id."""
    mail = Queue("mail", redis)
    mail.enqueue_in(SOON, FACTORIAL, 3, job_id="later")
    tried = mail.enqueue_in(2 * SOON, FACTORIAL, 3, job_id="tried", retry=Retry(max=3))
    # The last of its retries is one, too.
    redis.hset(tried.key, mapping={"started_at": "2026-01-01T00:00:00.000000Z", "retries_left": 0})
    scheduler = Scheduler("mail", connection=redis)
    scheduler.schedule(datetime.now(timezone.utc) + 3 * SOON, FACTORIAL, (3,), interval=30, id="periodic")
    scheduler.cron("0 3 * * *", FACTORIAL, (3,), id="nightly")
    result = run_command(
        server.url,
        "schedule-sweep",
        "--cron",
        "0 4 * * *",
        "--ghosts",
        "-q",
        "mail",
        "--name",
        "s",
        "--in-queue",
        "mail",
    )
    assert result.returncode == 0, result.stderr
    redis.delete(named("rq_pooled:audit"))
    jobs = [
        {
            "func_name": "shop.report",
            "queue_name": "mail",
            "cron": "5 * * * *",
            "interval": None,
            "next_enqueue_time": "2036-01-01T00:00:00.000000Z",
            "latest_enqueue_time": "2026-01-01T00:00:00.000000Z",
        }
    ]
    redis.hset(named("rq:cron_scheduler:c"), "cron_jobs", json.dumps(jobs))
    redis.zadd(named("rq:cron_schedulers"), {"c": time.time()})
    return {one["id"]: one for one in schedules(redis)}


def test_each_kind_is_listed(everything: dict[str, Any], server: EmbeddedServer) -> None:
    """RQ's scheduled jobs and retries, rq-scheduler's, recurring sweeps and RQ's cron tell when they come, came, and
    come again.
    """
    kinds = {name: (one["kind"], one["every"], one["queue"]) for name, one in everything.items()}
    assert kinds == {
        "later": ("scheduled", "", "mail"),
        "tried": ("retry", "", "mail"),
        "periodic": ("rq-scheduler", 30, "mail"),
        "nightly": ("rq-scheduler", "0 3 * * *", "mail"),
        "rq_pooled-sweep-s": ("sweep", "0 4 * * *", "mail"),
        "": ("cron", "5 * * * *", "mail"),
    }
    assert abs(everything["later"]["next"] - time.time() - 3600) < 60 and everything["later"]["last"] is None
    assert everything["tried"]["last"] == everything[""]["last"] == 1767225600.0
    lines = run_command(server.url, "schedule", "list").stdout
    assert all(name in lines for name in kinds) and "shop.report" in lines
    assert len(json.loads(run_command(server.url, "schedule", "list", "--json", "--limit", "2").stdout)) == 2
    page = client_of(server).get("/rq/schedule").text
    assert all(name in page for name in kinds) and "shop.report" in page and page.count("Cancel …") == 5


@pytest.mark.parametrize("name", ["later", "tried", "periodic", "nightly", "rq_pooled-sweep-s"])
@pytest.mark.parametrize("by", ["page", "command"])
def test_one_is_cancelled(everything: dict[str, Any], server: EmbeddedServer, redis: Redis, name: str, by: str) -> None:
    """A cancel takes one off the schedule and leaves the others, and the trail has it; a second one says that it is
    gone.
    """
    client = client_of(server)
    if by == "page":
        assert "Cancel 1 job" in client.get(f"/rq/schedule?cancel={name}").text
        done = client.post("/rq/schedule/cancel", data={"job": name, "page": "1"})
        assert done.status_code == 303 and "1 job of “mail” is cancelled" in client.get(done.location).text
    else:
        assert run_command(server.url, "schedule", "cancel", name).stdout == f"{name}: cancelled\n"
    assert {one["id"] for one in schedules(redis)} == set(everything) - {name}
    if everything[name]["kind"] in ("scheduled", "retry"):
        assert redis.zrange(named("rq:canceled:mail"), 0, -1) == [name.encode()]
        assert Job.fetch(name, redis).is_canceled
    (one,) = trail(redis)
    # A sweep's id names queues that others may not view.
    queue = "" if everything[name]["kind"] == "sweep" else "mail"
    assert (one["action"], one["queue"], one["what"]) == ("cancel", queue, f"of {name}")
    assert client.post("/rq/schedule/cancel", data={"job": name}).status_code == 400
    assert "is not scheduled" in refusal(run_command(server.url, "schedule", "cancel", name))


def test_a_job_is_cancelled_only_in_the_queue_that_was_asked_about(everything: dict[str, Any], redis: Redis) -> None:
    """A job that has moved since the right was asked stays scheduled in its new queue."""
    with pytest.raises(ConfigurationError, match="is not scheduled, or not any more"):
        cancel(redis, "later", "other")
    assert "later" in {one["id"] for one in schedules(redis)} and not Job.fetch("later", redis).is_canceled


@pytest.mark.parametrize("right", ["view", "requeue", "bury", "purge", "stop", "pause"])
def test_a_cancel_needs_its_right(everything: dict[str, Any], server: EmbeddedServer, right: str) -> None:
    """Cancelling is offered and done with the right to purge the queue, and with no other."""
    client = client_of(server, lambda action, queue: action in ("view", right))
    assert ("Cancel …" in client.get("/rq/schedule").text) == (right == "purge")
    code = client.post("/rq/schedule/cancel", data={"job": "later"}).status_code
    assert code == (200 if right == "purge" else 403)


def test_what_may_not_be_viewed_is_not_to_come(everything: dict[str, Any], server: EmbeddedServer) -> None:
    """Schedules of a queue that may not be viewed are left out, and cancelling one is as if there were none."""
    client = client_of(server, lambda action, queue: queue != "mail")
    page = client.get("/rq/schedule").text
    assert "Nothing is scheduled" in page and "mail" not in page
    answers = [client.post("/rq/schedule/cancel", data={"job": name}) for name in ("later", "nowhere")]
    assert answers[0].status_code == answers[1].status_code == 400 and answers[0].text == answers[1].text


def test_a_sweep_is_shown_to_who_may_view_all_queues(server: EmbeddedServer, redis: Redis) -> None:
    """A recurring sweep names other queues than the one in which it runs, and so does the entry of its removal."""
    redis.sadd(named("rq:queues"), named("rq:queue:mail"), named("rq:queue:hidden"))
    words = ("schedule-sweep", "--cron", "0 4 * * *", "--ghosts", "-q", "hidden", "--in-queue", "mail")
    assert run_command(server.url, *words).returncode == 0
    tenant, operator = client_of(server, lambda action, queue: queue != "hidden"), client_of(server)
    refused = tenant.post("/rq/schedule/cancel", data={"job": "rq_pooled-sweep-ghosts-hidden"})
    assert refused.status_code == 400 and "is not scheduled" in refused.text
    assert run_command(server.url, *words, "-q", "mail", "--name", "of-hidden-and-mail").returncode == 0
    assert "of-hidden" in operator.get("/rq/trail").text and "of-hidden" not in tenant.get("/rq/trail").text
    assert run_command(server.url, "schedule-sweep", "--remove", "of-hidden-and-mail").returncode == 0
    assert "hidden" in operator.get("/rq/schedule").text and "hidden" not in tenant.get("/rq/schedule").text
    assert run_command(server.url, "schedule-sweep", "--remove", "ghosts-hidden").returncode == 0
    assert operator.get("/rq/trail").text.count("ghosts-hidden") == 2 and "hidden" not in tenant.get("/rq/trail").text


def test_what_others_wrote_breaks_nothing(server: EmbeddedServer, redis: Redis) -> None:
    """Keys of another type, jobs that are gone, odd times and odd JSON cost neither page nor command its answer."""
    Queue("mail", redis).enqueue_in(SOON, FACTORIAL, 3, job_id="later")
    odd = {b"\xff": 5, HOSTILE: 1e17, "early": -1e15, "never": 1e300, "inf": float("inf")}
    redis.zadd(named("rq:scheduler:scheduled_jobs"), odd)
    redis.hset(named("rq:job:" + HOSTILE), mapping={"description": HOSTILE, "meta": b"\x80\x04junk", "origin": HOSTILE})
    for name, told in (
        ("a", "[" * 9000),
        ("b", '[1, {"queue_name": 5}, {"queue_name": "x", "cron": [1]}]'),
        ("c", "{}"),
    ):
        redis.hset(named(f"rq:cron_scheduler:{name}"), "cron_jobs", told)
        redis.zadd(named("rq:cron_schedulers"), {name: 1})
    redis.zadd(named("rq:cron_schedulers"), {"d": 1})
    redis.set(named("rq:cron_scheduler:d"), "x")
    client = client_of(server)
    page = client.get("/rq/schedule")
    assert page.status_code == 200 and "<script>alert" not in page.text and "later" in page.text
    assert run_command(server.url, "schedule", "list").returncode == 0
    redis.delete(named("rq:scheduler:scheduled_jobs"), named("rq:cron_schedulers"))
    redis.set(named("rq:scheduler:scheduled_jobs"), "x")
    redis.set(named("rq:cron_schedulers"), "x")
    assert client.get("/rq/schedule").status_code == 200
