"""Workers and running jobs on the page: who runs what since when, and how a job or a worker is stopped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import claim_jobs
import pytest
from failures import HOSTILE
from keys import named
from redis import Redis
from rq import Queue
from rq.job import JobStatus
from support import drop_pools, running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.monitoring.audit import trail
from rq_pooled.monitoring.workers import hold, running, workers
from rq_pooled.store.keys import commands_channel

pytest.importorskip("flask")
from page_client import client_of

FAST = {"RQ_POOLED_HEARTBEAT_INTERVAL": "0.2"}


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


def test_a_job_and_a_worker_are_stopped(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """The page tells who runs what since when; only the right to stop the queue stops the job, and a shutdown needs it
    for each queue of the worker. Both are confirmed, and in the trail.
    """
    job = Queue("mail", redis).enqueue(claim_jobs.wait_for_file, str(tmp_path / "started"), str(tmp_path / "gate"))
    with running_worker(server.url, "mail", "other", log=tmp_path / "log", concurrency=2) as worker:
        wait_until((tmp_path / "started").exists)
        (one,) = workers(redis)
        assert (one["pid"], one["queues"], one["state"], len(one["names"])) == (
            worker.pid,
            ["mail", "other"],
            "busy",
            2,
        )
        wait_until(lambda: workers(redis)[0]["horses"])
        (now,) = running(redis)
        assert (now["id"], now["queue"], now["worker"] in one["names"]) == (job.id, "mail", True) and now["since"]
        client = client_of(server)
        page = client.get("/rq/workers").text
        assert job.id in page and str(worker.pid) in page and "wait_for_file" in page
        assert (
            re.search(
                r'data-label="Memory" class="number">\d+ MB<.*data-label="Horses">\d+:\s\d+\sMB, \d+:\s\d+\sMB<', page
            )
            and ">Restarts<" in page
        )
        assert "Stop 1 job" in client.get(f"/rq/workers?stop={job.id}").text
        assert "Shut down 1 worker" in client.get(f"/rq/workers?stop={one['names'][0]}").text
        some = client_of(server, lambda action, queue: action == "view" or (action == "stop" and queue != "mail"))
        assert "Stop …" not in some.get("/rq/workers").text and "Shut down …" not in some.get("/rq/workers").text
        for what in ({"job": job.id}, {"worker": one["names"][0]}):
            assert some.post("/rq/workers/stop", data=what).status_code == 403
        hidden = client_of(server, lambda action, queue: queue != "mail")
        assert worker.process.pid and job.id not in hidden.get("/rq/workers").text
        assert str(worker.pid) not in hidden.get("/rq/workers").text
        for what in ({"job": job.id}, {"worker": one["names"][0]}):
            assert hidden.post("/rq/workers/stop", data=what).status_code == 400
        assert trail(redis) == [] and job.get_status() == JobStatus.STARTED

        done = client.post("/rq/workers/stop", data={"job": job.id, "page": "1"})
        assert done.status_code == 303 and "told to stop" in client.get(done.location).text
        wait_until(lambda: job.get_status() == JobStatus.STOPPED)
        assert client.post("/rq/workers/stop", data={"worker": one["names"][0]}).status_code == 200
        assert worker.wait() == 0
        assert [(entry["action"], entry["queue"]) for entry in trail(redis)] == [
            ("shutdown", "other"),
            ("shutdown", "mail"),
            ("stop", "mail"),
        ]
        assert client.post("/rq/workers/stop", data={"worker": one["names"][0]}).status_code == 400


def test_one_worker_stops_claiming(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A worker that is told so finishes what runs, claims nothing while another one does, and claims again when told;
    that needs the right to stop its queues, is confirmed, and stands in the trail.
    """
    queue, gate = Queue("mail", redis), tmp_path / "gate"
    first = queue.enqueue(claim_jobs.wait_for_file, str(tmp_path / "started"), str(gate))
    # The worker knows that there are more jobs, and would claim on.
    second = queue.enqueue(claim_jobs.nothing)
    with running_worker(server.url, "mail", log=tmp_path / "log", **FAST):
        wait_until((tmp_path / "started").exists)
        name = workers(redis)[0]["names"][0]
        client = client_of(server)
        assert "Stop claiming on 1 worker" in client.get(f"/rq/workers?stop={name}&act=hold").text
        some = client_of(server, lambda action, queue: action == "view")
        assert some.post("/rq/workers/stop", data={"worker": name, "act": "hold"}).status_code == 403
        for odd in ({"worker": name, "act": "x"}, {"job": first.id, "act": "hold"}):
            assert client.post("/rq/workers/stop", data=odd).status_code == 400
        done = client.post("/rq/workers/stop", data={"worker": name, "act": "hold", "page": "1"})
        assert "claim nothing more" in client.get(done.location).text
        wait_until(lambda: workers(redis)[0]["held"])
        page = client.get("/rq/workers").text
        assert "claims nothing" in page and "Claim again" in page
        assert "1 worker was told to claim nothing" in client.get("/rq/").text
        gate.touch()
        wait_until(lambda: first.get_status() == JobStatus.FINISHED)
        wait_until(lambda: redis.hget(named(f"rq:worker:{name}"), "state") == b"suspended")
        _wait_for_beat(redis, name)
        assert second.get_status() == JobStatus.QUEUED
        with running_worker(server.url, "mail", log=tmp_path / "other", **FAST) as other:
            wait_until(lambda: second.get_status() == JobStatus.FINISHED)
            other.stop()
        third = queue.enqueue(claim_jobs.nothing)
        _wait_for_beat(redis, name)
        assert third.get_status() == JobStatus.QUEUED and workers(redis)[0]["held"]
        assert client.post("/rq/workers/stop", data={"worker": name, "act": "release"}).status_code == 200
        wait_until(lambda: third.get_status() == JobStatus.FINISHED)
        wait_until(lambda: not workers(redis)[0]["held"])
    assert [entry["action"] for entry in trail(redis)] == ["release", "hold"]


def _wait_for_beat(redis: Redis, name: str) -> None:
    before = redis.hget(named(f"rq:worker:{name}"), "last_heartbeat")
    wait_until(lambda: redis.hget(named(f"rq:worker:{name}"), "last_heartbeat") != before)


def test_the_sentry_of_idle_workers_hands_on_its_post(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Whichever of two idle workers is told to stop claiming, the other one is woken by the next job."""
    queue = Queue("mail", redis)
    with (
        running_worker(server.url, "mail", log=tmp_path / "a", **FAST),
        running_worker(server.url, "mail", log=tmp_path / "b", **FAST),
    ):
        wait_until(lambda: len(workers(redis)) == 2 and all(one["slots"] for one in workers(redis)))
        for one in workers(redis):
            name = one["names"][0]
            assert queue.enqueue(claim_jobs.nothing) and wait_until(lambda: queue.count == 0) is not None
            hold(redis, name, True, ["mail"])
            wait_until(lambda name=name: [one["names"] for one in workers(redis) if one["held"]] == [[name]])
            job = queue.enqueue(claim_jobs.nothing)
            wait_until(lambda job=job: job.get_status() == JobStatus.FINISHED, 5)
            hold(redis, name, False, ["mail"])
            wait_until(lambda: not any(one["held"] for one in workers(redis)))


def test_a_stock_worker_cannot_be_held(server: EmbeddedServer, redis: Redis) -> None:
    """A worker of RQ's own class does not know that command: it is offered a shutdown only, and the rest is refused."""
    redis.sadd(named("rq:queues"), named("rq:queue:mail"))
    redis.sadd(named("rq:workers"), named("rq:worker:stock"))
    redis.hset(named("rq:worker:stock"), mapping={"hostname": "h", "pid": "7", "queues": "mail", "state": "idle"})
    client = client_of(server)
    page = client.get("/rq/workers").text
    assert "Shut down …" in page and "Stop claiming …" not in page
    refused = client.post("/rq/workers/stop", data={"worker": "stock", "act": "hold"})
    assert refused.status_code == 400 and trail(redis) == []


def test_what_others_wrote_breaks_nothing(server: EmbeddedServer, redis: Redis) -> None:
    """Workers of another type, of bytes and markup, and claims without an execution cost the page nothing."""
    redis.sadd(named("rq:queues"), named("rq:queue:mail"))
    redis.sadd(named("rq:workers"), named("rq:worker:a"), named("rq:worker:b"), b"\xff")
    redis.set(named("rq:worker:a"), "x")
    redis.hset(named("rq:worker:b"), mapping={"hostname": HOSTILE, "pid": "x", "queues": "mail", "birth": b"\xff"})
    redis.zadd(named("rq:wip:mail"), {"gone:e": 9e9, b"\xff": 9e9, f"{HOSTILE}:e": 9e9})
    redis.hset(named(f"rq:execution:{HOSTILE}:e"), mapping={"worker_name": HOSTILE, "created_at": "1e300"})
    page = client_of(server).get("/rq/workers")
    assert page.status_code == 200 and "<script>alert" not in page.text and "gone" in page.text
    for odd in ({}, {"job": "gone"}, {"worker": "a"}, {"job": "a", "worker": "b"}):
        assert client_of(server).post("/rq/workers/stop", data=odd).status_code == 400


def test_workers_of_one_host_and_pid_are_two(server: EmbeddedServer, redis: Redis) -> None:
    """Containers of one hostname have process 1 each: their workers are told apart, and rights are asked for each."""
    for name, queue, birth in (("a", "mail", "01"), ("b", "payroll", "02"), ("b-1", "payroll", "02")):
        values = {"hostname": "worker", "pid": 1, "queues": queue, "birth": f"2026-11-28T20:00:{birth}.000000Z"}
        redis.hset(named(f"rq:worker:{name}"), mapping=values)
        redis.sadd(named("rq:workers"), named(f"rq:worker:{name}"))
    redis.sadd(named("rq:queues"), named("rq:queue:mail"), named("rq:queue:payroll"))
    assert [(one["names"], one["queues"]) for one in workers(redis)] == [(["a"], ["mail"]), (["b", "b-1"], ["payroll"])]
    told = redis.pubsub(ignore_subscribe_messages=True)
    told.psubscribe("*")
    told.get_message(timeout=5)
    of_mail = client_of(server, lambda action, queue: action == "view" or queue == "mail")
    for name in ("b", "b-1"):
        assert of_mail.post("/rq/workers/stop", data={"worker": name}).status_code == 403
    page = of_mail.get("/rq/workers").text
    assert page.count("Shut down …") == 1 and "stop=a" in page
    assert of_mail.post("/rq/workers/stop", data={"worker": "a"}).get_json()["queues"] == ["mail"]
    sent = [one["channel"] for one in iter(lambda: told.get_message(timeout=0.5), None)]
    assert sent == [commands_channel("a").encode()]


def test_a_stop_reaches_only_what_its_visitor_may_stop(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A worker that another queue's claims, job or worker hash have led to ignores a command that is not for it."""
    started, gate = tmp_path / "started", tmp_path / "gate"
    job = Queue("payroll", redis).enqueue(claim_jobs.wait_for_file, str(started), str(gate))
    redis.sadd(named("rq:queues"), named("rq:queue:mail"))
    of_mail = client_of(server, lambda action, queue: queue in (None, "mail"))
    with running_worker(server.url, "payroll", log=tmp_path / "log") as worker:
        wait_until(started.exists)
        (now,) = running(redis)
        redis.zadd(named("rq:wip:mail"), {f"{job.id}:forged": 9e9})
        redis.zadd(named(f"rq:executions:{job.id}"), {"forged": 9e9})
        redis.hset(named(f"rq:execution:{job.id}:forged"), mapping={"worker_name": now["worker"], "created_at": "1"})
        assert of_mail.post("/rq/workers/stop", data={"job": job.id}).status_code == 400
        assert job.id not in of_mail.get("/rq/workers").text
        # Now the job itself says so.
        redis.hset(job.key, "origin", "mail")
        assert of_mail.post("/rq/workers/stop", data={"job": job.id}).status_code == 200
        worker.wait_for(f"Not working on job {job.id}, command ignored")
        for (name,) in (one["names"] for one in workers(redis)):
            redis.hset(named(f"rq:worker:{name}"), "queues", "mail")
            assert of_mail.post("/rq/workers/stop", data={"worker": name}).status_code == 200
        worker.wait_for("not meant for all queues of this worker, ignored")
        redis.hset(job.key, "origin", "payroll")
        assert job.get_status() == JobStatus.STARTED
        gate.touch()
        wait_until(lambda: job.get_status() == JobStatus.FINISHED)
