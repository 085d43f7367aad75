"""Statistics: what processes publish agrees with what was done and with CLIENT LIST, to the unit, and goes with
them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stats_jobs
from keys import named
from redis import Redis
from rq import Queue, Repeat, Retry
from support import ROOT, running_worker, wait_until

from rq_pooled import health
from rq_pooled.cli.tables import process_rows, table
from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.metrics import metrics
from rq_pooled.pool import Pool
from rq_pooled.process.memory import resident_of
from rq_pooled.store.claim import Claim
from rq_pooled.store.counters import BOUNDS, Counters, Histogram
from rq_pooled.store.keys import ENDED, STATS
from rq_pooled.store.scripts import load
from rq_pooled.store.statistics import publish

FAST = {"RQ_POOLED_HEARTBEAT_INTERVAL": "0.2"}


def worker_of(redis: Redis, pid: int) -> dict[str, Any]:
    """Return the statistics of the worker with this pid."""
    (found,) = [one for one in health.processes(redis) if one["pid"] == pid and one["worker"]]
    return found


def settled(redis: Redis, pid: int, outcomes: int) -> dict[str, Any]:
    """Wait until the worker has published so many outcomes, and return its part of the statistics."""

    def enough() -> Any:
        worker = worker_of(redis, pid)["worker"]
        counters = worker["counters"]
        return worker if sum(counters[name] for name in ("finished", "failed", "retried")) >= outcomes else None

    return wait_until(enough, 40, f"{outcomes} outcomes")  # type: ignore[no-any-return]


def test_counters_agree_with_the_jobs_really_run(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """Every run of every kind of job is counted once: as finished, failed or retried, in both histograms too."""
    folder, queue = str(tmp_path), Queue("a", connection=redis)
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=3, **FAST) as worker:
        queue.enqueue_many([Queue.prepare_data(stats_jobs.succeed, (folder,)) for _ in range(200)])
        parent = queue.enqueue(stats_jobs.succeed, folder)
        queue.enqueue(stats_jobs.succeed, folder, depends_on=parent)
        queue.enqueue(stats_jobs.succeed, folder, result_ttl=0)
        queue.enqueue(stats_jobs.succeed, folder, repeat=Repeat(times=3))
        for _ in range(20):
            queue.enqueue(stats_jobs.fail, folder)
        for _ in range(5):
            queue.enqueue(stats_jobs.fail, folder, retry=Retry(max=2))
        for _ in range(4):
            queue.enqueue(stats_jobs.die, folder)
        redis.rpush(named("rq:queue:a"), "ghost-1", "ghost-2")
        finished, failed, retried = 200 + 2 + 1 + 4, 20 + 5 + 4, 5 * 2
        runs = finished + failed + retried
        found = settled(redis, worker.pid, runs)
        counters = found["counters"]
        wait_until(lambda: worker_of(redis, worker.pid)["worker"]["counters"]["stale_ids"] == 2, what="both ghosts")
        assert len(list(tmp_path.glob("ran.*"))) == runs
        # A job that waited behind one that kills its horse goes back, is claimed again, and counts once.
        assert runs == counters["claims"]
        assert {name: counters[name] for name in ("finished", "failed", "retried")} == {
            "finished": finished,
            "failed": failed,
            "retried": retried,
        }
        assert counters["lost_claims"] == counters["reconnects"] == counters["stalls"] == 0
        assert found["run_time"]["count"] == runs and found["queue_wait"]["count"] == counters["claims"]
        assert found["run_time"]["buckets"]["+Inf"] == runs
        assert counters["horses_replaced"] == 4
        rows = [
            redis.hmget(key, "successful_job_count", "failed_job_count") for key in redis.smembers(named("rq:workers"))
        ]
        assert sum(int(row[0] or 0) for row in rows) == finished
        assert sum(int(row[1] or 0) for row in rows) == failed + retried


def test_memory_of_the_parent_and_of_each_horse(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """A worker publishes its memory and each horse's, as the system tells it; table and metrics show it."""
    with running_worker(server.url, "a", log=tmp_path / "log", **FAST, concurrency=2) as worker:
        wait_until(lambda: len(worker_of(redis, worker.pid)["worker"]["memory"]["horses"]) == 2)
        found = worker_of(redis, worker.pid)["worker"]
        for pid, size in zip((worker.pid, *found["horses"]), (found["memory"]["parent"], *found["memory"]["horses"])):
            (now,) = resident_of([pid])
            assert 5 < size < 2 * now and now < 2 * size
        head, row = table(process_rows(health.processes(redis)))
        size = row.split()[head.split().index("MB")]
        assert int(size) == pytest.approx(found["memory"]["parent"] + sum(found["memory"]["horses"]), rel=0.5)
        text = metrics(redis, Settings.load({"url": server.url}))
        for of in ("parent", "horses"):
            assert re.search(rf'rq_pooled_worker_memory_bytes{{.*of="{of}".*}} [1-9]\.?[0-9]*e\+07', text), text
    assert resident_of([worker.pid]) == [0.0]


def test_a_returned_retry_is_a_retry(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """A job that returns Retry counts as retried, then as finished."""
    with running_worker(server.url, "a", log=tmp_path / "log", **FAST) as worker:
        Queue("a", connection=redis).enqueue(stats_jobs.once_more, str(tmp_path))
        counters = settled(redis, worker.pid, 2)["counters"]
        assert (counters["claims"], counters["finished"], counters["retried"], counters["failed"]) == (2, 1, 1, 0)


def test_a_lost_claim_is_counted_and_is_no_outcome(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """The outcome of a job that was deleted while it ran counts as a lost claim only."""
    with running_worker(server.url, "a", log=tmp_path / "log", **FAST) as worker:
        job = Queue("a", connection=redis).enqueue(stats_jobs.wait_for, str(tmp_path), "go")
        wait_until(lambda: list(tmp_path.glob("ran.*")), what="the job")
        job.cancel()
        (tmp_path / "go").touch()
        wait_until(
            lambda: worker_of(redis, worker.pid)["worker"]["counters"]["lost_claims"] == 1, what="the lost claim"
        )
        counters = worker_of(redis, worker.pid)["worker"]["counters"]
        assert (counters["claims"], counters["finished"], counters["failed"]) == (1, 0, 0)


def test_an_outage_is_counted(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """A server that was away is one reconnect and some seconds of outage, whatever was tried meanwhile."""
    server = start_server()
    with running_worker(server.url, "a", log=tmp_path / "log", **FAST) as worker:
        server.kill()
        worker.wait_for("lost the server")
        lost = time.monotonic()
        worker.wait_for("cannot reconnect yet")
        away = time.monotonic() - lost
        server.start()
        worker.wait_for("the server is back")
        redis = server.client()
        counters = wait_until(
            lambda: [one["worker"]["counters"] for one in health.processes(redis) if one["pid"] == worker.pid]
        )[0]
        assert counters["reconnects"] == 1
        assert 0.05 < away < counters["outage_seconds"] < 30


def test_connections_agree_with_client_list(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """Per process and role, what is published, what the guard says and what CLIENT LIST says are the same numbers."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2, **FAST) as worker:
        queue = Queue("a", connection=redis)
        for _ in range(2):
            queue.enqueue(stats_jobs.hold_redis, str(tmp_path), "go")
        wait_until(lambda: len(list(tmp_path.glob("ran.*"))) == 2, what="both jobs")
        # One of them also waits in Redis, over a connection that it is lent.
        roles = {"command": 1, "listen": 1, "jobs": 1, "exclusive": 1}
        wait_until(lambda: worker_of(redis, worker.pid)["connections"] == roles, what="the statistics")
        listed = [
            entry["name"].split(":") for entry in redis.client_list() if entry["name"].startswith(named("rq_pooled:"))
        ]
        found = health.connections(redis)
        assert found["ours"] == len(listed) == 4
        assert found["connected"] == len(redis.client_list())
        assert [(process["pid"], process["roles"]) for process in found["processes"]] == [(worker.pid, roles)]
        assert all(process["alive"] for process in found["processes"]) and not found["orphans"]
        (tmp_path / "go").touch()


def test_statistics_go_with_the_worker(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """They are there as soon as the worker is, expire with its leases after a crash, and are removed at a regular
    end.
    """
    with running_worker(server.url, "a", log=tmp_path / "log") as worker:
        wait_until(lambda: health.processes(redis), 5, "the first statistics, before the first heartbeat is due")
        (key,) = [key for key in redis.keys(f"{STATS}:*") if redis.type(key) == b"hash"]
        assert 50 < redis.ttl(key) <= 60
        assert redis.ttl(STATS) > 0
        worker.stop()
        assert not redis.keys(f"{STATS}*")
    with running_worker(server.url, "a", log=tmp_path / "log2", RQ_POOLED_HEARTBEAT_TTL="1", **FAST) as worker:
        wait_until(lambda: health.processes(redis), what="statistics")
        worker.kill()
        wait_until(lambda: not health.processes(redis), 5, "the end of its statistics")
        wait_until(lambda: not redis.keys(f"{STATS}*"), 5, "the end of all keys")


WEB = """
import os, sys, time
from rq_pooled import Queue, get_connection
if sys.argv[1] == "fork" and os.fork():
    os.wait()
    sys.exit()
while not os.path.exists(sys.argv[2]):
    get_connection().ping()
    time.sleep(0.05)
"""


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_a_web_process_publishes_its_pools(redis: Redis, server: EmbeddedServer, tmp_path: Path, how: str) -> None:
    """A process that uses its pool publishes its statistics without a thread, after a fork too, and removes them."""
    env = {**os.environ, "RQ_POOLED_URL": server.url, "PYTHONPATH": str(ROOT), "RQ_POOLED_BUDGET_NAME": "shop"}
    command = [sys.executable, "-c", WEB, how, str(tmp_path / "stop")]
    with subprocess.Popen(command, env={**env, **FAST}) as process:
        try:
            (found,) = wait_until(lambda: health.processes(redis), what="its statistics")
            assert (found["kind"], found["app"], found["worker"]) == ("web", "shop", None)
            assert (found["pid"] == process.pid) is (how == "plain")
            (pool,) = found["pools"]
            assert (pool["role"], pool["max"], pool["created"], pool["in_use"]) == ("web", 10, 1, 0)
            assert found["connections"] == {"web": 1}
            listed = [entry["name"].split(":") for entry in redis.client_list() if entry["name"]]
            assert [(parts[1], int(parts[3]), parts[4]) for parts in listed] == [("shop", found["pid"], "web")]
        finally:
            (tmp_path / "stop").touch()
            assert process.wait(10) == 0
    wait_until(lambda: not redis.keys(f"{STATS}*"), 5, "the end of its statistics")


def test_publishing_never_harms_who_uses_the_pool(start_server: Callable[..., EmbeddedServer]) -> None:
    """Where the server refuses scripts, or has forgotten them, the application's commands go on."""
    server = start_server()
    admin = server.client()
    pool = Pool(Settings(url=server.url, heartbeat_interval=0.05))
    client = Redis(connection_pool=pool)
    wait_until(lambda: client.ping() and health.processes(admin), what="statistics")
    admin.script_flush()
    admin.flushall()
    wait_until(lambda: client.ping() and health.processes(admin), what="statistics again")
    admin.execute_command("ACL", "SETUSER", "default", "-eval", "-evalsha")
    admin.flushall()
    over = time.monotonic() + 0.3
    while time.monotonic() < over:
        assert client.ping()
    assert not admin.keys("*")
    pool.disconnect()


def test_a_short_user_of_a_pool_publishes_nothing(redis: Redis, server: EmbeddedServer) -> None:
    """A script that enqueues a job leaves RQ's keys only."""
    pool = Pool(Settings(url=server.url))
    Queue("a", connection=Redis(connection_pool=pool)).enqueue(stats_jobs.succeed, "x")
    pool.disconnect()
    assert not redis.keys(named("rq_pooled:*"))


def test_large_statistics_are_read_in_part(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of statistics of many megabytes the first are read, and the number of the others is told."""
    monkeypatch.setattr("rq_pooled.monitoring.processes._MAX_BYTES", 100_000)
    for number in range(1, 500):
        key = named(f"rq_pooled:stats:app:host:{number}")
        redis.hset(key, mapping={"kind": '"web"', "odd": json.dumps("x" * 2_000)})
        redis.zadd(named("rq_pooled:stats"), {key: time.time() + 60})
    # The names of others come first; it has to publish again before them.
    redis.zadd(named("rq_pooled:stats"), {named("rq_pooled:stats:app:host:499"): time.time() + 30})
    unreadable: list[str] = []
    found = health.processes(redis, unreadable)
    assert len(found) == 200 and unreadable == ["299 more processes"] and 499 in [one["pid"] for one in found]
    assert found == sorted(found, key=lambda one: str(one["name"]))


def test_silent_processes_are_forgotten(redis: Redis, server: EmbeddedServer) -> None:
    """The list of processes does not grow with those that ended without a word."""
    for command in load():
        redis.execute_command(*command)
    for i in range(10):
        redis.execute_command(*publish(f"app:host:{i}", 0.05, {"kind": "web"}))
    wait_until(lambda: not health.processes(redis))
    redis.execute_command(*publish("app:host:99", 60, {"kind": "web"}))
    assert redis.zcard(STATS) == 1
    assert [one["name"] for one in health.processes(redis)] == ["app:host:99"]


def test_histograms_are_cumulative() -> None:
    """A duration on a bound is in its bucket; one below zero is zero; the last bucket holds everything."""
    one = Histogram()
    for seconds in (-1.0, 0.005, 0.0051, 3600.0, 1e6):
        one.add(seconds)
    found = one.as_dict()
    assert found["count"] == found["buckets"]["+Inf"] == 5
    assert found["buckets"]["0.005"] == 2 and found["buckets"]["0.01"] == 3 and found["buckets"]["3600.0"] == 4
    assert len(found["buckets"]) == len(BOUNDS) + 1
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("text", [None, b"", b"yesterday", b"2026-11-21T06:54:12.123456Z"])
def test_any_enqueued_at_is_counted(text: bytes | None) -> None:
    """A job whose date cannot be read begins like any other; only its wait is unknown."""
    counters, raw = Counters(), {} if text is None else {b"enqueued_at": text}
    counters.begun(Claim("j", "e", "q", named("rq:queue:q"), "w", time.time(), raw), None)
    assert counters.claims == 1
    assert sum(counters.queue_wait.counts) == (text is not None and text.startswith(b"2026"))


def test_a_stopped_job_is_a_failure(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """A job ended by stop-job counts as failed, and its horse as replaced."""
    from rq.command import send_stop_job_command

    with running_worker(server.url, "a", log=tmp_path / "log", **FAST) as worker:
        job = Queue("a", connection=redis).enqueue(stats_jobs.wait_for, str(tmp_path), "never")
        wait_until(lambda: list(tmp_path.glob("ran.*")), what="the job")
        send_stop_job_command(redis, job.id)
        counters = settled(redis, worker.pid, 1)["counters"]
        assert (counters["failed"], counters["horses_replaced"]) == (1, 1)
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait() == 0


def test_where_info_is_refused_a_web_process_publishes_on_and_says_so_once(
    start_server: Callable[..., EmbeddedServer], caplog: pytest.LogCaptureFixture
) -> None:
    """A server that refuses INFO is not guarded by web processes; their statistics are published all the same."""
    server = start_server()
    admin = server.client()
    admin.execute_command("ACL", "SETUSER", "web", "on", ">secret", "~*", "&*", "+@all", "-info")
    pool = Pool(Settings(url=f"redis://web:secret@{server.host}:{server.port}/0", heartbeat_interval=0.05))
    client = Redis(connection_pool=pool)
    for _ in range(4):
        wait_until(lambda: client.ping() and health.processes(admin), what="statistics")
        admin.flushall()
    (said,) = [record.message for record in caplog.records if "info" in record.message]
    assert said.startswith(f"pool web {pool.address}: not guarded: ")  # the rest is the server's words
    assert said.endswith(" has no permissions to run the 'info' command")
    assert "cannot publish" not in caplog.text and "secret" not in caplog.text
    pool.disconnect()


def test_throughput_counts_each_end_once(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """What ended is told from the first job on, agrees with the jobs, and stays when the worker is gone."""
    queue = Queue("a", connection=redis)
    queue.enqueue_many([Queue.prepare_data(stats_jobs.succeed, (str(tmp_path),)) for _ in range(30)])
    for _ in range(3):
        queue.enqueue(stats_jobs.fail, str(tmp_path))
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2, **FAST):
        wait_until(lambda: queue.failed_job_registry.count == 3, 40, "3 failures")
        wait_until(lambda: health.throughput(redis)["finished"] == 30, 40, "30 ends")
    found = health.throughput(redis)
    assert (found["finished"], found["failed"]) == (30, 3) and found["finished_per_minute"] > 0
    assert found["slots"] and found["since"] == found["slots"][0]["time"]
    burst = ["rq_pooled", "worker", "--url", server.url, "--burst", "a"]
    queue.enqueue(stats_jobs.succeed, str(tmp_path))
    subprocess.run([sys.executable, "-m", *burst], check=True, timeout=60, cwd=ROOT / "tests/support/jobs")
    assert health.throughput(redis)["finished"] == 31, "a worker that ends before its first heartbeat counts, too"


def test_throughput_is_bounded_and_repeats_nothing(redis: Redis) -> None:
    """A report that is sent again adds nothing, a new process with an old name begins at 0, a long-gone one is not
    counted anew, and the list stays within an hour.
    """
    for words in load():
        redis.execute_command(*words)

    def tell(name: str, uptime: float, finished: int, failed: int = 0) -> None:
        fields = {"kind": "worker", "uptime": uptime, "finished": finished, "failed": failed}
        redis.execute_command(*publish(name, 60, fields))

    for uptime, finished, failed in ((1, 5, 1), (1, 5, 1), (2, 9, 1), (0.5, 3, 0)):
        tell("app:h:1", uptime, finished, failed)
    tell("app:h:2", 4000, 1_000_000)
    assert {name: health.throughput(redis)[name] for name in ("finished", "failed")} == {"finished": 12, "failed": 1}
    tell("app:h:2", 4001, 1_000_001)
    assert health.throughput(redis)["finished"] == 13
    redis.rpush(ENDED, *["1 2 3"] * 400, "no sample")
    tell("app:h:1", 3, 4)
    assert redis.llen(ENDED) <= 240 and redis.ttl(ENDED) > 0
    assert health.throughput(redis)["finished"] == 14, "what is too old, or no sample, is left out"
    redis.set(ENDED, "x")
    assert health.throughput(redis)["slots"] == []
    tell("app:h:1", 4, 6)
    assert health.throughput(redis)["finished"] == 2
