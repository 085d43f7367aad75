"""What happens to the nodes of a cluster, and to the slot, loses no job and runs none to two ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import cluster_jobs
import crash_jobs
import pytest
from cluster import Cluster, replicated
from commands import start
from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job
from support import QUICK, WorkerProcess, wait_until

import rq_pooled
from rq_pooled.config import Settings
from rq_pooled.pool import Pool
from rq_pooled.store.keys import PREFIX

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def fleet(cluster: Cluster, cluster_workers: list[WorkerProcess], tmp_path: Path) -> list[WorkerProcess]:
    """Two workers of three horses."""
    for name in ("a", "b"):
        words = ("--url", cluster.url, "--concurrency", "3", "--name", name, "--quiet", "q")
        cluster_workers.append(start(tmp_path / name, *words, **QUICK))
    client = cluster.owner(PREFIX).client()
    wait_until(lambda: client.scard(f"{PREFIX}:workers") == 6, what="workers")
    return cluster_workers


class Web:
    """A web process that enqueues jobs of known names from threads, each until the server has said that it has it."""

    def __init__(self, url: str, count: int, nap: float) -> None:
        self.pool = Pool(Settings(url=url, enqueue_deadline=5), "web")
        self.names = [f"j{number}" for number in range(count)]
        self.failures = 0
        self._left = iter(self.names)
        self._lock = threading.Lock()
        self._nap = nap
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        queue = rq_pooled.Queue("q", connection=Redis(connection_pool=self.pool))
        while True:
            with self._lock:
                name = next(self._left, None)
            if name is None:
                return
            while not self._enqueued(queue, name):
                self.failures += 1
                time.sleep(0.05)
            time.sleep(self._nap)

    def _enqueued(self, queue: rq_pooled.Queue, name: str) -> bool:
        try:
            queue.enqueue(cluster_jobs.count, name, self._nap, job_id=name)
        except RedisError:
            # It may have been done all the same; a second one would be refused.
            with Redis(connection_pool=self.pool) as client:
                try:
                    return Job.exists(name, connection=client)
                except RedisError:
                    return False
        return True

    def wait(self) -> None:
        """Wait until all are enqueued."""
        for thread in self._threads:
            thread.join(240)
            assert not thread.is_alive()
        self.pool.disconnect()


def check(client: Redis, names: list[str], fleet: list[WorkerProcess], runs: int = 1) -> None:
    """Check that each job has ended once, and that nothing is left of what only running jobs have."""

    def left() -> list[str]:
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(f"{PREFIX}:job:{name}", "status")
            return [name for name, status in zip(names, pipe.execute()) if status != b"finished"]

    try:
        wait_until(lambda: not left(), 90, "jobs that end")
    except AssertionError:
        some = {name: client.hgetall(f"{PREFIX}:job:{name}") for name in left()[:5]}
        raise AssertionError(f"{len(left())} did not end: {some}\n{[one.output()[-3000:] for one in fleet]}") from None
    assert {name: n for name in names if (n := client.xlen(f"{PREFIX}:results:{name}")) != 1} == {}
    wait_until(lambda: not client.zcard(f"{PREFIX}:wip:q"), 20, "no claims")
    assert not client.llen(f"{PREFIX}:queue:q") and not client.keys(f"{PREFIX}_pooled:claims:*")
    counted = client.hgetall(cluster_jobs.key("hash"))
    again = {name: int(n) for name, n in counted.items() if int(n) > runs}
    assert not again, again
    for one in fleet:
        output = one.output()
        # That of a job whose command was lost is its own.
        assert runs > 1 or "Traceback" not in output, output[-5000:]
        assert "could not be recorded" not in output, output[-5000:]


def more(client: Redis, count: int) -> None:
    """Wait until so many jobs have run."""
    wait_until(lambda: int(client.hlen(cluster_jobs.key("hash"))) >= count, 30, "jobs that run")


def test_the_slot_moves_while_jobs_run(cluster: Cluster, fleet: list[WorkerProcess], cluster_client: Redis) -> None:
    """The slot goes from node to node, key by key, while 1 000 jobs run and a web process enqueues: each ends once."""
    web = Web(cluster.url, 1000, 0.002)
    more(cluster_client, 50)
    took = []
    for _ in range(3):
        target = cluster.other(cluster.owner(PREFIX))
        began = time.monotonic()
        with cluster.moving(PREFIX, target) as move:
            for _ in range(20):
                move(5)
        took.append(time.monotonic() - began)
        enough = min(1000, cluster_client.hlen(cluster_jobs.key("hash")) + 30)
        more(cluster_client, enough)
    web.wait()
    # A job that uses Redis while its slot moves waits, and is not run again.
    check(cluster_client, web.names, fleet)
    print(f"moves took {took}, enqueues that had to be tried again: {web.failures}")
    assert [one.stop() for one in fleet] == [0, 0]


def test_a_master_dies(cluster: Cluster, fleet: list[WorkerProcess], cluster_client: Redis, tmp_path: Path) -> None:
    """SIGKILL of the owner: jobs run on, and their outcomes are recorded once each by the replica that takes over."""
    gate = tmp_path / "gate"
    queue = rq_pooled.Queue("q", connection=cluster_client)
    jobs = [queue.enqueue(crash_jobs.wait_for_file, str(gate), 90, job_id=f"w{number}") for number in range(4)]
    jobs += [queue.enqueue(crash_jobs.nothing, job_id=f"c{number}") for number in range(20)]
    wait_until(lambda: len(list(tmp_path.glob("gate.*.pid"))) == 4, what="running jobs")
    owner = cluster.owner(PREFIX)
    assert replicated(owner)
    owner.server.kill()
    # They end while there is no owner at all.
    gate.touch()
    began = time.monotonic()
    web = Web(cluster.url, 5, 0.0)
    web.wait()
    print(f"enqueues waited {time.monotonic() - began:.1f} s, and were tried again {web.failures} times")
    check(cluster_client, [*(job.id for job in jobs), *web.names], fleet)
    assert cluster.owner(PREFIX) is not owner
    assert [one.stop() for one in fleet] == [0, 0]


def down(cluster: Cluster) -> None:
    """End all nodes, and start them again after ten seconds."""
    for node in cluster.nodes:
        node.server.stop()
    time.sleep(10)
    for node in cluster.nodes:
        node.server.start()


def restart(cluster: Cluster) -> None:
    """Restart the owner, faster than another node could take over."""
    cluster.owner(PREFIX).server.restart()


def fail_over(cluster: Cluster) -> None:
    """Have its replica take over from the owner."""
    cluster.fail_over(PREFIX)


@pytest.mark.parametrize("trouble", [restart, fail_over, down])
def test_trouble_while_jobs_run(
    cluster: Cluster, fleet: list[WorkerProcess], cluster_client: Redis, trouble: Callable[[Cluster], None]
) -> None:
    """A node that restarts, a failover on demand and ten seconds without any node lose no job and count none twice."""
    web = Web(cluster.url, 300, 0.01)
    more(cluster_client, 50)
    trouble(cluster)
    cluster.wait_until_whole()
    web.wait()
    # A job whose command was lost on the way fails, as with one server: nobody knows whether it was done.
    names = web.names
    wait_until(lambda: not cluster_client.zcard(f"{PREFIX}:wip:q") and not cluster_client.llen(f"{PREFIX}:queue:q"), 60)
    failed = [name.decode() for name in cluster_client.zrange(f"{PREFIX}:failed:q", 0, -1)]
    for name in failed:
        text = Job.fetch(name, connection=cluster_client).latest_result().exc_string
        assert "ConnectionError" in text or "RedisUnavailable" in text or "ServerUnreachable" in text, text
    assert len(failed) <= 12
    check(cluster_client, [name for name in names if name not in failed], fleet, runs=2)
    assert [one.stop() for one in fleet] == [0, 0]
