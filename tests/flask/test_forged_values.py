"""Values that others wrote into any field and score: the page, its endpoints, metrics and commands go on."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from commands import run_command
from keys import named
from redis import Redis
from support import drop_pools

from rq_pooled import health
from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.metrics import metrics
from rq_pooled.monitoring.overview import overview
from rq_pooled.monitoring.schedules import cancel, schedules
from rq_pooled.monitoring.verdict import verdict
from rq_pooled.store import queues as store_queues
from rq_pooled.store import views
from rq_pooled.store.keys import LIMITS, PAUSED, SCHEDULED_JOBS

pytest.importorskip("flask")
from page_client import client_of

JOB, WORKER, EXECUTION = named("rq:job:j"), named("rq:worker:w"), named("rq:execution:j:e")
FIELDS = {
    JOB: "created_at enqueued_at started_at ended_at timeout retries_left status repeats_left meta exc_info worker_name"
    " group_id dependency_id description retry_intervals ttl result_ttl rq_pooled:requeues",
    WORKER: "birth last_heartbeat queues pid hostname state current_job successful_job_count failed_job_count"
    " total_working_time version python_version",
    EXECUTION: "created_at last_heartbeat worker_name",
    LIMITS: "mail",
    PAUSED: "mail",
}
REGISTRIES = ("rq:failed", "rq_pooled:dead", "rq:scheduled", "rq:deferred", "rq:finished", "rq:wip")
VIEWS = (
    *("", "queues/status", "queues/failed-jobs", "redis/pool-stats", "failed", "failed?dead=1", "workers", "schedule"),
    *("trail", "queue?name=mail", "job?id=j", "failed?queue=mail&exception=ValueError&function=f"),
)
COMMANDS = (["stats"], ["failed", "j"], ["schedule", "list"])
VALUES: tuple[str | bytes, ...] = (
    *("9" * 5000, "-" + "9" * 5000, "nan", "inf", "-1", "1e999", "1e308", "1_000", "²", "[" * 1000, "null", b"\xff"),
    *("9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-11-28T00:00:00+23:59"),
)


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


def put(redis: Redis, score: float | None = None) -> None:
    """Write a job that failed, is scheduled and runs, and a worker."""
    redis.sadd(named("rq:queues"), named("rq:queue:mail"))
    redis.rpush(named("rq:queue:mail"), "j")
    redis.hset(JOB, mapping={"origin": "mail", "description": "f(1)", "data": b"x", "status": "failed"})
    for name in REGISTRIES:
        redis.zadd(named(f"{name}:mail"), {"j:e" if name == "rq:wip" else "j": time.time() if score is None else score})
    redis.sadd(named("rq:workers"), WORKER)
    redis.sadd(named("rq:workers:mail"), WORKER)


def look(server: EmbeddedServer, redis: Redis) -> None:
    """Ask for all that shows what stands in Redis."""
    client = client_of(server)
    for view in VIEWS:
        answer = client.get(f"/rq/{view}")
        assert answer.status_code < 500, (view, answer.text[-300:])
    assert "rq_pooled_up 1.0" in metrics(redis)
    for command in COMMANDS:
        result = run_command(server.url, *command)
        assert "Traceback (most recent call last):\n  File" not in result.stderr, (command, result.stderr[-300:])


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_no_value_of_a_field_hides_the_others(server: EmbeddedServer, redis: Redis, value: str | bytes) -> None:
    """One value in every field that RQ and rq_pooled write costs neither page, metrics nor a command its answer."""
    put(redis)
    for key, names in FIELDS.items():
        redis.hset(key, mapping={name: value for name in names.split()})
    redis.xadd(named("rq:results:j"), {name: value for name in ("type", "created_at", "exc_string", "worker_name")})
    look(server, redis)


@pytest.mark.parametrize("score", [float("inf"), float("-inf"), 1e300, -1e300, 1e15, -5.0])
def test_no_score_hides_the_others(server: EmbeddedServer, redis: Redis, score: float) -> None:
    """A score that is no time costs neither page, metrics nor a command its answer, and is no lag of the schedule."""
    put(redis, score)
    redis.zadd(SCHEDULED_JOBS, {"j": score})
    look(server, redis)
    json.dumps(health.queues(redis), allow_nan=False)


@pytest.mark.parametrize(
    "interval", [10**5000, float("nan"), float("inf"), -(10**5000)], ids=["big", "nan", "inf", "low"]
)
def test_no_interval_hides_the_schedule(server: EmbeddedServer, redis: Redis, interval: Any) -> None:
    """A job of rq-scheduler whose interval is no number to reckon with is listed without it, as JSON, too."""
    put(redis)
    redis.hset(JOB, "meta", pickle.dumps({"interval": interval}))
    redis.zadd(SCHEDULED_JOBS, {"j": time.time() + 60})
    look(server, redis)
    assert [one["every"] for one in schedules(redis) if one["kind"] == "rq-scheduler"] == [""]
    json.dumps(schedules(redis), allow_nan=False)


def test_what_is_cancelled_leaves_its_schedule(redis: Redis) -> None:
    """A scheduled job whose status says otherwise is not scheduled any more when it was cancelled."""
    put(redis)
    assert cancel(redis, "j") == "mail" and redis.zscore(named("rq:scheduled:mail"), "j") is None


def test_many_and_long_names_of_queues_hide_no_other(
    server: EmbeddedServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queues beyond the first, and with names of megabytes, are counted and left out; all that is shown stays."""
    monkeypatch.setattr(store_queues, "MAX_QUEUES", 5)
    put(redis)
    names = [b"n%d" % number for number in range(9)] + [bytes([65 + number]) * 5_000_000 for number in range(8)]
    redis.sadd(named("rq:queues"), *(named(b"rq:queue:") + name for name in names))
    look(server, redis)
    assert [one["name"] for one in health.queues(redis)] == ["mail", "n0", "n1", "n2", "n3"]
    told = [one["text"] for one in verdict(overview(redis, Settings()))]
    assert any(text.startswith("13 queues are left out") for text in told), told
    assert 'rq_pooled_unreadable{kind="left_out"} 13.0' in metrics(redis)
    assert "8 queues are left out" in run_command(server.url, "stats").stderr


def test_no_number_of_names_is_too_much_for_a_view(server: EmbeddedServer, redis: Redis) -> None:
    """Of more names of queues and processes than can be looked at the first are shown, and the others are counted."""
    put(redis)
    redis.sadd(named("rq:queues"), *(named(f"rq:queue:n{number}") for number in range(25_000)))
    redis.hset(named("rq_pooled:stats:app:host:1"), mapping={"kind": '"web"'})
    forged = {named(f"rq_pooled:stats:app:host:{number}"): 9e9 for number in range(10_000, 13_000)}
    redis.zadd(named("rq_pooled:stats"), {**forged, named("rq_pooled:stats:app:host:1"): time.time() + 60})
    look(server, redis)
    found = overview(redis, Settings())
    assert found["left_out"] == 25_001 - 2_000 and len(found["queues"]) == 2_000
    # A process that lives has to publish again soon, so that it is among the first.
    assert [one["pid"] for one in health.processes(redis)] == [1]
    assert found["unreadable"] == ["statistics of 1001 more processes"]
    assert "1001 more processes" in run_command(server.url, "stats").stderr


def test_a_slow_authorize_is_asked_for_a_bounded_time(
    server: EmbeddedServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many names there are, asking who may see them ends, and what was not asked about is hidden."""
    monkeypatch.setattr(views, "ASKING", 0.05)
    monkeypatch.setattr(views, "AT_LEAST", 10)
    redis.sadd(named("rq:queues"), *(named(f"rq:queue:n{number:05}") for number in range(15_000)))
    for number in range(20):
        key = named(f"rq_pooled:stats:app:host:{number + 1}")
        served = [f"of-{number}-{other}" for other in range(500)]
        redis.hset(key, mapping={"kind": '"worker"', "worker": '"w"', "queues": json.dumps(served)})
        redis.zadd(named("rq_pooled:stats"), {key: time.time() + 60})
    asked: list[Any] = []

    def authorize(action: str, queue: Any) -> bool:
        asked.append((action, queue))
        time.sleep(0.001)
        return True

    client = client_of(server, authorize)
    for path in ("", "queues/status", "failed", "workers", "schedule", "trail"):
        asked.clear()
        answer = client.get(f"/rq/{path}")
        assert answer.status_code == 200 and 1 < len(asked) < 1_000, path
        # What is left out is said: on each page, as JSON, and in the metrics.
        said = answer.get_json()["whole"] is False if answer.is_json else "This page is not whole" in answer.text
        assert said and "Nothing is wrong" not in answer.text, path
        assert len(asked) == len(set(asked)), "what was answered is not asked again"
    redis.delete(named("rq_pooled:stats"))
    if importlib.util.find_spec("prometheus_client"):
        counted = re.search(r'rq_pooled_unreadable{kind="left_out"} ([0-9.]+)', client.get("/rq/metrics").text)
        assert counted and 10_000 < float(counted[1]) < 15_000
    named_ones = [one["name"] for one in client.get("/rq/queues/status").get_json()["queues"]]
    assert named_ones == sorted(named_ones) and 0 < len(named_ones) < 1_000


def test_one_slow_answer_hides_nothing(server: EmbeddedServer, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authorize that is slow once is still asked about the few queues that most servers have."""
    monkeypatch.setattr(views, "ASKING", 2.0)
    redis.sadd(named("rq:queues"), *(named(f"rq:queue:n{number}") for number in range(100)))
    slow = [2.1]

    def authorize(action: str, queue: Any) -> bool:
        time.sleep(slow.pop() if queue is not None and slow else 0)
        return True

    answer = client_of(server, authorize).get("/rq/queues/status").get_json()
    assert len(answer["queues"]) == 100 and answer["whole"] is True


def test_a_view_of_some_queues_is_partial_where_not_all_names_are_read(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may view each queue that is looked at is not shown what is known of all together, and hears of the others."""
    monkeypatch.setattr(store_queues, "MAX_NAMES", 1_000)
    monkeypatch.setattr(store_queues, "_AT_ONCE", 1_000)
    redis.sadd(named("rq:queues"), *(named(f"rq:queue:n{number}") for number in range(25_000)))
    assert store_queues.all_shown(redis.execute_command)
    with views.viewing(lambda action, queue: True):
        assert not store_queues.all_shown(redis.execute_command) and not views.is_whole()
        assert store_queues.left_out(redis.execute_command) > 20_000
        assert len(store_queues.queue_names(redis.execute_command)) == 25_000


def test_names_that_are_escaped_alike_are_two_in_metrics(redis: Redis) -> None:
    """A line break and the text of its escape do not make one series."""
    redis.sadd(named("rq:queues"), named("rq:queue:a\nb"), named("rq:queue:a\\nb"))
    lines = [line for line in metrics(redis).splitlines() if line.startswith("rq_pooled_queue_paused{")]
    assert len(set(lines)) == 2, lines
