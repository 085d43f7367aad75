"""Jobs of all kinds on a cluster, and what a worker keeps open there."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import cluster_jobs
import pytest
from cluster import Cluster
from commands import refusal, run, start
from keys import named
from redis import Redis
from rq import Callback, Retry
from rq.job import Job
from support import QUICK, WorkerProcess, running_worker, wait_until

import rq_pooled
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.store.keys import PREFIX

pytestmark = pytest.mark.timeout(180)


def roles(cluster: Cluster) -> dict[str, list[str]]:
    """Return the roles of the worker's connections to each node that has any."""
    found: dict[str, list[str]] = {}
    for node in cluster.nodes:
        names = [
            entry["name"] for entry in node.client().client_list() if entry["name"].startswith(named("rq_pooled:"))
        ]
        ours = sorted(name.rpartition(":")[2] for name in names if not name.endswith(":test"))
        if ours:
            found[node.address] = ours
    return found


@pytest.fixture
def worker(cluster: Cluster, cluster_workers: list[WorkerProcess], tmp_path: Path) -> WorkerProcess:
    """A worker of three horses that knows one node: a replica."""
    url = f"cluster://{cluster.replicas[0].address}"
    one = start(tmp_path / "log", "--url", url, "--concurrency", "3", "--name", "w", "q", **QUICK)
    cluster_workers.append(one)
    one.wait_for("connections: command")
    return one


def test_jobs_of_all_kinds(cluster: Cluster, worker: WorkerProcess, cluster_client: Redis) -> None:
    """Results, retries, dependents, due jobs, callbacks, failures and jobs that use Redis work as on one server."""
    queue = rq_pooled.Queue("q", connection=cluster_client)
    owner = cluster.owner(PREFIX)
    elsewhere = next(f"e{number}" for number in range(100) if cluster.owner(f"e{number}") is not owner)
    good, bad = Callback(cluster_jobs.on_success), Callback(cluster_jobs.on_failure)
    jobs = {
        "count": queue.enqueue(cluster_jobs.count, "a", on_success=good),
        "retried": queue.enqueue(cluster_jobs.fail_first, retry=Retry(max=2, interval=0)),
        "returned": queue.enqueue(cluster_jobs.retry_by_return),
        "failed": queue.enqueue(cluster_jobs.fail, on_failure=bad),
        "due": queue.enqueue_in(timedelta(seconds=1), cluster_jobs.count, "due"),
        "lent": queue.enqueue(cluster_jobs.wait_for_word, "word"),
        "meta": queue.enqueue(cluster_jobs.save_meta),
        "foreign": queue.enqueue(cluster_jobs.foreign, elsewhere),
    }
    jobs["dependent"] = queue.enqueue(cluster_jobs.count, "b", depends_on=[jobs["count"], jobs["retried"]])
    cluster_client.rpush(cluster_jobs.key("word"), "hello")
    expected = dict.fromkeys(jobs, "finished") | {"failed": "failed", "foreign": "failed"}

    def ends() -> dict[str, str]:
        return {name: str(job.get_status(refresh=True).value) for name, job in jobs.items()}

    try:
        wait_until(lambda: ends() == expected, 30, "jobs that end")
    except AssertionError:
        raise AssertionError(f"{ends()}\n{worker.output()}") from None
    assert [jobs[name].return_value() for name in ("count", "retried", "returned", "due", "lent", "dependent")] == [
        *(1, "second", "again", 1, "hello", 1)
    ]
    wait_until(lambda: Job.fetch("child", connection=cluster_client).is_finished, what="a job that a job enqueued")
    assert jobs["meta"].get_meta() == {"seen": 1}
    callbacks = cluster_client.lrange(cluster_jobs.key("callbacks"), 0, -1)
    assert sorted(callbacks) == [b"failure as told", b"success 1"]
    told = jobs["foreign"].latest_result().exc_string
    assert "MOVED" in told and "give it the hash tag of RQ_KEY_PREFIX" in told
    keys = {key for node in cluster.nodes for key in node.call("KEYS", "*") if node.says("role:master")}
    assert keys and all(key.startswith(PREFIX) for key in keys)
    assert worker.stop() == 0


def test_connections_to_one_node(
    cluster: Cluster, worker: WorkerProcess, cluster_client: Redis, tmp_path: Path
) -> None:
    """A worker has two connections, a third one while jobs use Redis, all to the owner of its slot."""
    owner = cluster.owner(PREFIX).address
    assert roles(cluster) == {owner: ["command", "listen"]}
    gate = tmp_path / "gate"
    queue = rq_pooled.Queue("q", connection=cluster_client)
    jobs = [queue.enqueue(cluster_jobs.keep_using, str(gate)) for _ in range(3)]
    wait_until(lambda: cluster_client.get(cluster_jobs.key("started")) == b"3", what="jobs that use Redis")
    seen = [roles(cluster) for _ in range(20)]
    assert seen == [{owner: ["command", "jobs", "listen"]}] * 20
    gate.touch()
    wait_until(lambda: all(job.is_finished for job in jobs), what="jobs")
    assert worker.stop() == 0


def test_a_sleeping_worker_follows(cluster: Cluster, worker: WorkerProcess, cluster_client: Redis) -> None:
    """A worker that sleeps at empty queues notices within 2 s that the slot has moved, and runs what comes there."""
    target = cluster.other(cluster.owner(PREFIX))
    queue = rq_pooled.Queue("q", connection=cluster_client)
    before = queue.enqueue(cluster_jobs.count, "a")
    wait_until(lambda: before.is_finished, what="a job")
    cluster.move(PREFIX, target)
    moved = time.monotonic()
    job = queue.enqueue(cluster_jobs.count, "b")
    wait_until(lambda: job.is_finished, 10, "a job at the new owner")
    # Two seconds, and what a busy machine adds.
    assert time.monotonic() - moved < 5
    wait_until(lambda: roles(cluster).keys() == {target.address}, 5, "connections to the new owner")
    said = [line for line in worker.output().splitlines() if "lost the server" in line]
    assert any("MOVED" in line or "(ASK" in line or "is not served here now" in line for line in said), said
    assert worker.stop() == 0


def test_what_is_refused(cluster: Cluster) -> None:
    """A prefix without a hash tag, a database, and the URL of one node end the command in one line that says why."""
    way = ["-m", "rq_pooled", "worker", "--burst", "--url", "{url}", "q"]
    node = cluster.owner(PREFIX)
    line = refusal(run(way, f"cluster://{node.address}", RQ_KEY_PREFIX="rq"))
    assert "RQ_KEY_PREFIX is 'rq'" in line and "RQ_KEY_PREFIX='{app}'" in line
    line = refusal(run(way, f"cluster://{node.address}/1"))
    assert "a cluster has no database 1" in line and "cluster://host1:6379,host2:6379/" in line
    with EmbeddedServer(kind=os.environ.get("RQ_POOLED_TEST_SERVER"), password=False) as server:
        line = refusal(run(way, f"cluster://{server.host}:{server.port}"))
    assert "is no node of a cluster; write redis:// instead of cluster:// in URL" in line
    line = refusal(run(way, f"redis://{node.address}/0"))
    assert f"one node of a cluster, and the keys may move to another: write cluster://{node.address}/ in URL" in line
    other = cluster.other(node)
    line = refusal(run(["-m", "rq_pooled", "stats", "--url", "{url}"], f"redis://{other.address}/0"))
    assert f"one node of a cluster; write cluster://{other.address}/ in URL" in line


def test_rq_worker(cluster: Cluster, cluster_client: Redis, tmp_path: Path) -> None:
    """`rq worker` takes the owner's URL, and with RQ_POOLED_URL it follows the slot to another node."""
    owner = cluster.owner(PREFIX)
    url = f"redis://{owner.address}"
    queue = rq_pooled.Queue("q", connection=cluster_client)
    with running_worker(url, "q", log=tmp_path / "log", RQ_POOLED_URL=f"cluster://{owner.address}"):
        for _ in range(2):
            job = queue.enqueue(cluster_jobs.count, "a")
            wait_until(lambda job=job: job.is_finished, what="a job")
            cluster.move(PREFIX, cluster.other(cluster.owner(PREFIX)))


def test_every_command_finds_the_owner(cluster: Cluster, worker: WorkerProcess, cluster_client: Redis) -> None:
    """Commands take the URL as the worker does, by way of any node."""
    url = f"cluster://{cluster.replicas[1].address}"
    rq_pooled.Queue("q", connection=cluster_client).enqueue(cluster_jobs.fail)
    wait_until(lambda: "as told" in worker.output(), what="a job that fails")
    for words in (("stats",), ("connections",), ("failed",), ("check",), ("requeue", "--all")):
        ended = run(["-m", "rq_pooled", *words, "--url", url], timeout=40)
        output = ended.stdout + ended.stderr
        assert "Traceback" not in output and "MOVED" not in output and ended.returncode in (0, 1), (words, output)
    assert worker.stop() == 0
