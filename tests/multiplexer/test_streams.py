"""Law 1 for jobs that use Redis: they share their worker's connections, and never get each other's replies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import stream_jobs
from keys import named
from redis import Redis
from rq import Queue
from sampling import Sampler, by_role, ended, finished, of_worker, outcome, received, roles
from support import running_worker, wait_until

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.multiplexer.listener import Listener, remove_stale_folders
from rq_pooled.wire import pack_commands

pytestmark = pytest.mark.timeout(150)


class WorkerOfModule:
    """A worker that several tests share, and what they look at."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        finished([Queue("a", connection=redis).enqueue(stream_jobs.echo, "first")], redis)
        self.first = self.jobs_connection()

    def jobs_connection(self) -> list[str]:
        """Return the id of the shared connection."""
        return by_role(self.redis, "jobs")


@pytest.fixture(scope="module")
def shared_worker(_server_available: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerOfModule]:
    """A worker on a server of its own."""
    folder = tmp_path_factory.mktemp("shared")
    kind = os.environ.get("RQ_POOLED_TEST_SERVER")
    with EmbeddedServer(kind=kind) as server, running_worker(server.url, "a", log=folder / "log", concurrency=3):
        redis = server.client()
        yield WorkerOfModule(redis)
        redis.close()


# -- connections -------------------------------------------------------------------------------------------------------


def test_jobs_that_use_redis_need_one_more_connection(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Ten horses, 400 jobs of many commands: never above 3 connections, and one is opened for all of them."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=10), Sampler(server.url) as sampler:
        wait_until(lambda: len(of_worker(redis)) == 2, what="both connections")
        before = received(redis)
        jobs = [Queue("a", connection=redis).enqueue(stream_jobs.busy) for _ in range(400)]
        finished(jobs, redis, timeout=100)
        assert received(redis) - before <= 2
        assert sampler.most == 3
        assert roles(redis) == ["command", "jobs", "listen"]
        assert redis.get("jobs") == redis.get("scripts") == b"400"
        assert redis.llen(named("rq:queue:later")) == 400


def test_what_cannot_be_shared_is_bounded_and_reused(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """WATCH and depends_on in every job take connections of their own: a bounded number, none per job."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=10), Sampler(server.url) as sampler:
        wait_until(lambda: len(of_worker(redis)) == 2, what="both connections")
        before = received(redis)
        jobs = [Queue("a", connection=redis).enqueue(stream_jobs.watching) for _ in range(200)]
        finished(jobs, redis, timeout=100)
        assert received(redis) - before <= 1 + 10 and sampler.most <= 3 + 10
        assert redis.get("watched") == b"200"
        opened = received(redis)
        finished([Queue("a", connection=redis).enqueue(stream_jobs.watching) for _ in range(10)], redis)
        assert received(redis) - opened <= 10 - by_count(roles(redis), "exclusive") + 10
        for name in of_worker(redis).values():
            assert name.rpartition(":")[2] in ("command", "listen", "jobs", "exclusive")


def by_count(found: list[str], role: str) -> int:
    """Return how often a role is among those found."""
    return found.count(role)


def test_two_workers_fit_on_a_small_server(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """With maxclients 12, two workers of ten: all 200 jobs that use Redis end well."""
    server = start_server({"maxclients": 12})
    redis = server.client()
    queue = Queue("a", connection=redis)
    with (
        running_worker(server.url, "a", log=tmp_path / "one", concurrency=10),
        running_worker(server.url, "a", log=tmp_path / "two", concurrency=10),
    ):
        jobs = [queue.enqueue(stream_jobs.busy) for _ in range(150)]
        jobs += [queue.enqueue(stream_jobs.watching) for _ in range(50)]
        finished(jobs, redis, timeout=100)
    redis.close()


@pytest.mark.parametrize("share", ["no", "yes"])
def test_a_full_server_is_waited_for(start_server: Callable[..., EmbeddedServer], tmp_path: Path, share: str) -> None:
    """A job that needs a connection while the server has none to give waits for it, and gets it in time."""
    server = start_server({"maxclients": 30})
    redis = server.client()
    settings = {"RQ_POOLED_GUARD_STOP": "1", "RQ_POOLED_JOBS_SHARE": share}
    with running_worker(server.url, "a", log=tmp_path / "log", **settings):
        queue = Queue("a", connection=redis)
        redis.ping()
        crowd = [server.client() for _ in range(30)]
        held = [client for client in crowd if _connects(client)]
        job = queue.enqueue(stream_jobs.echo, "text")
        wait_until(lambda: job.get_status() == "started")
        over = time.monotonic() + 2
        while time.monotonic() < over:
            assert job.get_status(refresh=True) == "started"
            time.sleep(0.1)
        for client in held:
            client.close()
        finished([job], redis)
    for client in crowd:
        client.close()
    redis.close()


def _connects(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except Exception:  # noqa: BLE001 - full
        return False


def test_more_connections_than_allowed_are_refused_by_name(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """The message has the bound, who holds them by job id, and the settings to change; the others are not harmed."""
    settings = {"RQ_POOLED_MAX_CONNECTIONS": "4", "RQ_POOLED_POOL_TIMEOUT": "1"}
    with running_worker(server.url, "a", log=tmp_path / "log", **settings):
        job = Queue("a", connection=redis).enqueue(stream_jobs.hold_two)
        finished([job], redis)
        said = str(outcome(job))
        assert said.startswith("PoolExhausted: no connection of its own became free")
        assert f"all 1 are in use. Held by: job {job.id} of" in said and "Raise MAX_CONNECTIONS" in said


#: Every group that may be shared, and every one that may not, by name.
SHARED = [
    *(
        [b"get", b"a"],
        [b"SET", b"a", b"1"],
        [b"Ping"],
        [b"SCAN", b"0"],
        [b"PUBLISH", b"a", b"b"],
        [b"OBJECT", b"ENCODING", b"a"],
    ),
    *(
        [b"EVAL", b"return 1", b"0"],
        [b"EVALSHA", b"0" * 40, b"0"],
        [b"script", b"load", b"return 1"],
        [b"SCRIPT", b"EXISTS", b"0" * 40],
    ),
    *(
        [b"XREAD", b"STREAMS", b"s", b"0"],
        [b"XADD", b"s", b"*", b"a", b"b"],
        [b"XINFO", b"STREAM", b"s"],
        [b"UNLINK", b"a"],
    ),
]
EXCLUSIVE = [
    *(
        [b"SELECT", b"1"],
        [b"readonly"],
        [b"READWRITE"],
        [b"ASKING"],
        [b"client", b"setname", b"my:exclusive"],
        [b"CLIENT", b"TRACKING", b"ON"],
    ),
    *(
        [b"CLIENT", b"PAUSE", b"0"],
        [b"CLIENT", b"KILL", b"ID", b"999999999"],
        [b"CLIENT", b"NO-EVICT", b"on"],
        [b"MULTI"],
    ),
    *(
        [b"WATCH", b"a"],
        [b"Subscribe", b"a"],
        [b"BLPOP", b"none", b"0.01"],
        [b"xread", b"block", b"1", b"STREAMS", b"s", b"$"],
    ),
    *(
        [b"WAIT", b"0", b"1"],
        [b"CONFIG", b"GET", b"port"],
        [b"SCRIPT", b"FLUSH"],
        [b"ECHO", b"x" * 70_000],
        [b"FUNCTION", b"LIST"],
    ),
]


def test_which_connection_carries_which_command(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """As the server's MONITOR tells: what may be shared goes over the one connection of all jobs, nothing else does."""
    server = start_server()
    redis = server.client()
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2), server.client().monitor() as monitor:
        job = Queue("a", connection=redis).enqueue(stream_jobs.send_each, [*EXCLUSIVE, *SHARED, [b"ECHO", b"the end"]])
        carried: dict[str, set[str]] = {}
        names: dict[str, str] = {}
        said = ""
        while "the end" not in said:
            heard = monitor.next_command()
            said, sender = heard["command"], f"{heard['client_address']}:{heard['client_port']}"
            if sender not in names:
                names |= {entry["addr"]: entry["name"].rpartition(":")[2] for entry in redis.client_list()}
            carried.setdefault(said[:50].lower(), set()).add(names.get(sender, ""))
        finished([job], redis)
    for words, role in [*((words, "jobs") for words in SHARED), *((words, "exclusive") for words in EXCLUSIVE)]:
        found = carried.get(b" ".join(words).decode()[:50].lower(), set())
        # What the server does not know is not in MONITOR; one that was lent may be closed before it is asked for its
        # name.
        assert (
            "jobs" not in found if role == "exclusive" else not found or ("jobs" in found and "exclusive" not in found)
        ), words[:2]
    missing = [words for words in [*SHARED, *EXCLUSIVE] if b" ".join(words).decode()[:50].lower() not in carried]
    assert len(missing) < 6, missing
    redis.close()


# -- replies -----------------------------------------------------------------------------------------------------------


def test_everything_that_redis_py_does_works(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Encodings, protocols, databases, scripts, PubSub, blocking commands and streams give what they give elsewhere."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2):
        job = Queue("a", connection=redis).enqueue(stream_jobs.everything, "key")
        ended([job], redis)
        assert outcome(job) == [
            *(True, "ü".encode(), 1, b"string", [b"\xc3\xbc", b"\xc3\xbc"], [b"a", b"b"]),
            *({"a": "1"}, True, {"a": "1"}, True, {b"a": b"1"}, True),
            *(b"hello", (b"key:list", b"x")),
            *([b"key", b"key:h", b"key:n"], True, 1),
        ]
        with Redis(host=server.host, port=server.port, db=5) as other:
            assert other.keys() == [b"key:h"]


def test_threads_and_forked_children_have_streams_of_their_own(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """Whatever runs at once in ten horses, each caller gets its own reply."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=10), Sampler(server.url) as sampler:
        jobs = [Queue("a", connection=redis).enqueue(stream_jobs.echo_many, 100, seed) for seed in range(20)]
        ended(jobs, redis)
        assert [outcome(job) for job in jobs] == [500] * 20
        assert sampler.most <= 3 + 10


def test_an_interrupted_call_gives_nobody_a_wrong_reply(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """An alarm between writing and reading harms one call: no other horse's, and no later job's reply is wrong."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=4):
        queue = Queue("a", connection=redis)
        noisy = [queue.enqueue(stream_jobs.interrupted, 2) for _ in range(2)]
        quiet = [queue.enqueue(stream_jobs.echo_many, 50, seed) for seed in range(10)]
        ended(noisy + quiet, redis)
        assert [outcome(job) for job in quiet] == [250] * 10


@pytest.mark.parametrize("share", ["yes", "no"])
def test_a_reply_that_a_job_has_left_is_not_the_next_job_s(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, share: str
) -> None:
    """A connection given back with a reply unread is not used by the next job of that horse."""
    with running_worker(server.url, "a", log=tmp_path / "log", RQ_POOLED_JOBS_SHARE=share):
        queue = Queue("a", connection=redis)
        for number in range(20):
            jobs = [queue.enqueue(stream_jobs.leave_a_reply, f"left {number}"), queue.enqueue(stream_jobs.echo, "mine")]
            ended(jobs, redis)
            assert outcome(jobs[1]) == b"mine"


@pytest.mark.parametrize("share", ["yes", "no"])
def test_a_reply_that_comes_late_is_not_the_next_job_s(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, share: str
) -> None:
    """A connection that is still owed a reply when its job ends is not used by the next one."""
    with running_worker(server.url, "a", log=tmp_path / "log", RQ_POOLED_JOBS_SHARE=share):
        queue = Queue("a", connection=redis)
        jobs = [
            queue.enqueue(stream_jobs.leave_a_wait, 1),
            *(queue.enqueue(stream_jobs.echo, "mine") for _ in range(3)),
        ]
        ended(jobs, redis)
        assert [outcome(job) for job in jobs[1:]] == [b"mine"] * 3


def test_a_lock_that_a_job_has_left_harms_no_other(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A horse whose pool a job has left locked is replaced: threads of the next job would wait for ever."""
    with running_worker(server.url, "a", log=tmp_path / "log"):
        queue = Queue("a", connection=redis)
        jobs = [queue.enqueue(stream_jobs.leave_a_lock), queue.enqueue(stream_jobs.echo_in_thread, "mine")]
        ended(jobs, redis)
        assert outcome(jobs[1]) == b"mine"


@pytest.mark.parametrize("shards", [False, True])
def test_a_subscription_keeps_its_connection(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, shards: bool
) -> None:
    """A connection that is subscribed to anything still is nobody else's: messages reach who subscribed, and no
    other.
    """
    if shards and not redis.execute_command("COMMAND", "INFO", "SSUBSCRIBE"):
        pytest.skip("no shard channels before Redis 7")
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2):
        job = Queue("a", connection=redis).enqueue(stream_jobs.change_subscriptions, shards, job_timeout=40)
        ended([job], redis)
        assert outcome(job) == [None, 1, "exclusive"] * 5 + [[b"early"] + [b"hello"] * 5]


def test_a_message_does_not_overtake_its_subscriber(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """What a job publishes right after it has subscribed reaches it, whether a connection was free for it or not."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=5):
        queue = Queue("a", connection=redis)
        jobs = [queue.enqueue(stream_jobs.hear_oneself, f"channel {i}", job_timeout=40) for i in range(20)]
        ended(jobs, redis)
        assert [outcome(job) for job in jobs] == [(1, b"hello")] * 20


def test_closed_subscriptions_cost_no_connection(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A subscription that a job closes, as with-blocks do, leaves its connection to the next one: none is opened per
    job.
    """
    with running_worker(server.url, "a", log=tmp_path / "log"):
        queue = Queue("a", connection=redis)
        ended([queue.enqueue(stream_jobs.hear_oneself, "first", job_timeout=40)], redis)
        before = received(redis)
        jobs = [queue.enqueue(stream_jobs.hear_oneself, f"channel {i}", job_timeout=40) for i in range(20)]
        ended(jobs, redis)
        assert [outcome(job) for job in jobs] == [(1, b"hello")] * 20
        assert received(redis) - before <= 1


def test_what_is_sent_behind_an_unsubscribe_is_answered(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Commands that are written together with an UNSUBSCRIBE get their replies, from the same connection."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2):
        job = Queue("a", connection=redis).enqueue(stream_jobs.unsubscribe_and_ask, job_timeout=20)
        ended([job], redis)
        assert outcome(job) == [1, 0, b"x", "end", 1, 0, 0, b"x", "end"]


@pytest.mark.parametrize("share", ["yes", "no"])
def test_a_job_may_wait_in_redis_for_longer_than_the_timeout(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, share: str
) -> None:
    """The time that a command itself waits comes on top of SOCKET_TIMEOUT; others of the worker are not held up."""
    settings = {"RQ_POOLED_SOCKET_TIMEOUT": "1", "RQ_POOLED_JOBS_SHARE": share}
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=4, **settings):
        queue = Queue("a", connection=redis)
        waiting = queue.enqueue(stream_jobs.wait_in_redis, "list", 30)
        empty = [queue.enqueue(stream_jobs.wait_in_redis, "nothing", 2, way) for way in ("call", "pipeline", "words")]
        heard = queue.enqueue(stream_jobs.wait_for_message, "news", 20)
        ended(empty, redis)
        assert [outcome(job) for job in empty] == [None, [None, None], None]
        finished([queue.enqueue(stream_jobs.busy)], redis)
        wait_until(lambda: (redis.publish("news", "good"), heard.get_status() == "finished")[1])
        assert outcome(heard) == b"good"
        redis.rpush("list", "x")
        ended([waiting], redis)
        assert outcome(waiting) == (b"list", b"x")


def test_a_late_reply_fails_its_own_call(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """While something holds the server each call ends by its own timeout, and the worker goes on afterwards."""
    server = start_server({"enable-debug-command": "yes"})
    redis = server.client()
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2, RQ_POOLED_SOCKET_TIMEOUT="1"):
        queue = Queue("a", connection=redis)
        finished([queue.enqueue(stream_jobs.echo, "first")], redis)
        late = queue.enqueue(stream_jobs.hold_server, 2.5)
        ended([late], redis)
        assert outcome(late) in ("TimeoutError", "ConnectionError")
        job = queue.enqueue(stream_jobs.echo, "text")
        finished([job], redis)
        assert outcome(job) == b"text"
    redis.close()


def test_wait_asks_about_the_writes_of_the_shared_connection(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """WAIT, which a connection of its own serves, does not report writes as replicated that are not."""
    master = start_server()
    replica = start_server({"replicaof": f"127.0.0.1 {master.port}"})
    redis = master.client()
    wait_until(lambda: redis.info("replication").get("slave0", {}).get("state") == "online", what="the replica")
    with running_worker(master.url, "a", log=tmp_path / "log"):
        queue = Queue("a", connection=redis)
        job = queue.enqueue(stream_jobs.wait_for_replica, 5000)
        finished([job], redis)
        assert outcome(job) == [1, 1, 1]
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            job = queue.enqueue(stream_jobs.wait_for_replica, 300)
            finished([job], redis)
            assert outcome(job) == [0, 0, 0]
        finally:
            os.kill(replica.pid, signal.SIGCONT)
    redis.close()


def test_wait_in_a_transaction(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A WAIT between MULTI and EXEC adds nothing to the transaction: EXEC has as many replies as were queued."""
    with running_worker(server.url, "a", log=tmp_path / "log"):
        job = Queue("a", connection=redis).enqueue(stream_jobs.wait_in_a_transaction)
        finished([job], redis)
        assert outcome(job)[4] == [b"OK", 0, b"1"]


# -- large and slow ----------------------------------------------------------------------------------------------------


def test_a_pipeline_of_any_length_works(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """300 000 commands that are all written before a reply is read go through, and the parent's memory stays small."""
    redis.set("value", b"x" * 100)
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2) as worker:
        queue = Queue("a", connection=redis)
        job = queue.enqueue(stream_jobs.long_pipeline, 300_000, "value", job_timeout=120)
        others = [queue.enqueue(stream_jobs.busy) for _ in range(20)]
        finished([*others, job], redis, timeout=100)
        assert outcome(job) == (300_000, 300_000)
        assert psutil.Process(worker.pid).memory_info().rss < 150e6


def test_long_values_both_ways(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """20 MB in one command and in one reply, in a transaction too; other jobs go on meanwhile."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=3):
        queue = Queue("a", connection=redis)
        jobs = [queue.enqueue(stream_jobs.large, 20_000_000) for _ in range(2)]
        others = [queue.enqueue(stream_jobs.busy) for _ in range(20)]
        finished(jobs + others, redis)
        assert [outcome(job) for job in jobs] == [[True, True, True]] * 2


def test_a_long_value_can_be_read_again_and_again(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A connection that was not read for a moment, because its borrower was slow, serves the next call as any other."""
    redis.set("long", b"x" * 10_000_000)
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2):
        jobs = [Queue("a", connection=redis).enqueue(stream_jobs.large_again, "long", 15) for _ in range(4)]
        finished(jobs, redis)
        assert [outcome(job) for job in jobs] == [[10_000_000] * 15] * 4


def test_a_horse_that_does_not_read_harms_itself_only(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Replies that are left unread cost their own stream; the others wait for a second at most."""
    redis.set("large", b"x" * 300_000)
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2) as worker:
        queue = Queue("a", connection=redis)
        job = queue.enqueue(stream_jobs.do_not_read, "large", str(tmp_path / "gate"))
        wait_until(lambda: redis.get("flooded") is not None, what="another connection of the same horse")
        finished([queue.enqueue(stream_jobs.busy) for _ in range(5)], redis)
        worker.wait_for("does not read its replies")
        (tmp_path / "gate").touch()
        ended([job], redis)
        assert int(str(outcome(job)).split()[-1]) < 60 * 300_000
        assert psutil.Process(worker.pid).memory_info().rss < 150e6


def test_a_horse_that_floods_does_not_starve_the_others(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Horses take turns: beside one that writes without end calls of another end in time, and memory stays small."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2) as worker:
        queue = Queue("a", connection=redis)
        flooding = queue.enqueue(stream_jobs.flood, str(tmp_path / "gate"), job_timeout=100)
        wait_until(
            lambda: int(redis.info("commandstats").get("cmdstat_echo", {}).get("calls", 0)) > 10_000, what="a flood"
        )
        quiet = queue.enqueue(stream_jobs.slowest_echo, 200)
        ended([quiet], redis)
        memory = psutil.Process(worker.pid).memory_info().rss
        (tmp_path / "gate").touch()
        ended([flooding], redis)
        assert outcome(quiet) < 2
        assert outcome(flooding) > 10_000
        assert memory < 150e6
        assert roles(redis).count("jobs") == 1


def test_what_is_cut_off_never_reaches_the_server(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A horse that is killed in the middle of a command, long or short, harms nobody else."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=3):
        queue = Queue("a", connection=redis)
        bad = [queue.enqueue(stream_jobs.die_in_the_middle, 20_000_000) for _ in range(3)]
        good = [queue.enqueue(stream_jobs.echo_many, 20, seed) for seed in range(10)]
        ended(bad + good, redis)
        assert [outcome(job) for job in good] == [100] * 10
        assert not redis.exists("torn1", "torn2")
        assert roles(redis).count("jobs") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"PING\r\n",
        b"*1\r\n$4\r\nPING",
        b"*0\r\n*1\r\n$4\r\nPING\r\n",
        b"*-1\r\n",
        b"*1\r\n$+4\r\nPING\r\n",
        b"*01\r\n$4\r\nPING\r\n",
        b"*1\r\n$1_0\r\nPINGPINGPI\r\n",
        b"*1\r\n$99999999999\r\n",
        b"*99999999999999999999999999999999999\r\n",
        b"*1\r\n:4\r\n",
        b"\0" * 100_000,
        b"*2\r\n$4\r\nPOST\r\n$1\r\n/\r\n",
        b"*2\r\n$5\r\nHost:\r\n$1\r\n/\r\n",
        b"*1\r\n$4\r\nQUIT\r\n",
        b"*2\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n",
        b"*1\r\n$5\r\nMULTI\r\n",
        b"*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nEXEC\r\n$1\r\nx\r\n",
        b"*2\r\n$5\r\nMULTI\r\n$1\r\nx\r\n*1\r\n$4\r\nEXEC\r\n",
        b"*2\r\n$4\r\nECHO\r\n$1\r\nabc",
        b"*1\r\n$0\r\n\r\n",
        b"*1\r\n$60\r\n" + b"A" * 60 + b"\r\n",
    ],
)
def test_malformed_bytes_harm_their_stream_only(shared_worker: WorkerOfModule, data: bytes) -> None:
    """Bytes that are no command, or one that ends connections, never touch what other jobs share."""
    redis = shared_worker.redis
    queue = Queue("a", connection=redis)
    job = queue.enqueue(stream_jobs.send_raw, data)
    others = [queue.enqueue(stream_jobs.echo_many, 10, 1) for _ in range(2)]
    ended([job, *others], redis)
    assert [outcome(one) for one in others] == [50, 50]
    assert isinstance(outcome(job), bytes)
    assert shared_worker.jobs_connection() == shared_worker.first


@pytest.mark.parametrize("words", [[b"MULTI"], [b"WATCH", b"watched"]], ids=["MULTI", "WATCH"])
@pytest.mark.parametrize(
    "end", [[b"EXEC", b"x"], [b"DISCARD", b"x"], [b"EXEC"], [b"UNWATCH", b"x"]], ids=lambda end: b" ".join(end).decode()
)
def test_a_failed_end_of_a_transaction_is_no_end(
    shared_worker: WorkerOfModule, words: list[bytes], end: list[bytes]
) -> None:
    """Where EXEC, DISCARD or UNWATCH is refused the next stream does not get a connection that is still in that
    state.
    """
    redis = shared_worker.redis
    queue = Queue("a", connection=redis)
    for _ in range(3):
        job = queue.enqueue(stream_jobs.send_raw, pack_commands([words, end]))
        later = [queue.enqueue(stream_jobs.wait_in_redis, "never", 0.1), queue.enqueue(stream_jobs.watching)]
        ended([job, *later], redis)
        assert outcome(later[0]) is None and outcome(later[1]) is None
    assert shared_worker.jobs_connection() == shared_worker.first


# -- the server is lost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["jobs", "command"])
def test_a_lost_connection_fails_the_calls_under_way(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, role: str
) -> None:
    """After CLIENT KILL of a connection calls that were sent raise as redis-py does, later ones work; nothing is sent
    twice.
    """
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=4):
        gate = tmp_path / "gate"
        jobs = [
            Queue("a", connection=redis).enqueue(stream_jobs.count_up, f"n{i}", 10_000, str(gate)) for i in range(4)
        ]
        wait_until(lambda: all(redis.get(f"n{i}") for i in range(4)), what="all four jobs")
        for _ in range(3):
            (victim,) = wait_until(lambda: by_role(redis, role), what=role)
            redis.client_kill_filter(_id=victim)
            wait_until(lambda: by_role(redis, role) not in ([], [victim]), what="a new one")  # noqa: B023
            before = redis.mget([f"n{i}" for i in range(4)])
            wait_until(lambda: all(a != b for a, b in zip(before, redis.mget([f"n{i}" for i in range(4)]))), 20, "more")  # noqa: B023
        gate.touch()
        finished(jobs, redis)
        assert all(set(outcome(job)) <= {"ConnectionError"} for job in jobs)


def test_a_lent_connection_that_is_killed(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """CLIENT KILL of a connection that is lent fails the call that uses it, and nothing else."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=3):
        queue = Queue("a", connection=redis)
        gate = tmp_path / "gate"
        counting = queue.enqueue(stream_jobs.count_up, "n", 10_000, str(gate))
        waiting = [queue.enqueue(stream_jobs.wait_in_redis, f"list{i}", 60) for i in range(2)]
        wait_until(lambda: len(by_role(redis, "exclusive")) == 2 and redis.get("n"), what="jobs that wait")
        victim = wait_until(
            lambda: [e["id"] for e in redis.client_list() if e["name"].endswith(":exclusive") and e["cmd"] == "blpop"],
            what="one",
        )[0]
        redis.client_kill_filter(_id=victim)
        wait_until(lambda: any(redis.hget(job.key, "status") == b"failed" for job in waiting), what="its failure")
        redis.rpush("list0", "x")
        redis.rpush("list1", "x")
        gate.touch()
        ended([counting, *waiting], redis)
        assert outcome(counting) == []
        results = [job.latest_result() for job in waiting]
        failed = [result.exc_string for result in results if result is not None and result.exc_string]
        assert len(failed) == 1 and "ConnectionError" in failed[0]
        assert [result.return_value[1] for result in results if result is not None and not result.exc_string] == [b"x"]


def test_jobs_wait_for_a_server_that_restarts(start_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """What was not sent when the server went is sent when it is back; only calls under way fail."""
    server = start_server({"appendonly": "yes", "appendfsync": "always"})
    redis = server.client()
    gate = tmp_path / "gate"
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2) as worker:
        jobs = [
            Queue("a", connection=redis).enqueue(stream_jobs.count_up, f"n{i}", 10_000, str(gate)) for i in range(2)
        ]
        wait_until(lambda: all(redis.get(f"n{i}") for i in range(2)), what="both jobs")
        server.kill()
        worker.wait_for("lost the server")
        server.start()
        worker.wait_for("the server is back")
        before = redis.mget("n0", "n1")
        wait_until(lambda: all(a != b for a, b in zip(before, redis.mget("n0", "n1"))), what="both jobs to go on")
        gate.touch()
        finished(jobs, redis)
        assert all(set(outcome(job)) <= {"ConnectionError"} for job in jobs)
    redis.close()


# -- who may come ------------------------------------------------------------------------------------------------------


def test_strangers_are_not_let_in(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """The socket is in a folder for its user only; who shows no token of a living horse is closed; nothing is left."""
    environment = {"TMPDIR": str(tmp_path)}
    with running_worker(server.url, "a", log=tmp_path / "log", **environment):
        (folder,) = tmp_path.glob("rq_pooled-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        for token in (b"", b"x" * 32 + b"\n", b"x" * 1000):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(folder / "jobs.sock"))
                stranger.sendall(token + b"*1\r\n$4\r\nPING\r\n")
                stranger.settimeout(20)
                assert stranger.recv(100) == b""
    assert not list(tmp_path.glob("rq_pooled-*"))


def test_a_folder_left_by_a_killed_worker_is_removed(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A worker that was killed leaves its folder; the next one removes it, and not one that is in use."""
    environment = {"TMPDIR": str(tmp_path)}
    with running_worker(server.url, "a", "--name", "one", log=tmp_path / "one", **environment):
        (used,) = tmp_path.glob("rq_pooled-*")
        with running_worker(server.url, "a", "--name", "two", log=tmp_path / "two", **environment) as killed:
            assert len(list(tmp_path.glob("rq_pooled-*"))) == 2
            killed.process.kill()
            killed.process.wait()
        with running_worker(server.url, "a", "--name", "three", log=tmp_path / "three", **environment):
            assert len(list(tmp_path.glob("rq_pooled-*"))) == 2 and used.exists()


def test_workers_that_start_at_once_leave_each_other_s_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that begins to listen while others look for dead workers' folders is still there afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    context = multiprocessing.get_context("fork")
    over = context.Event()

    def look() -> None:
        while not over.is_set():
            remove_stale_folders()

    others = [context.Process(target=look, daemon=True) for _ in range(2)]
    for other in others:
        other.start()
    owner = Listener.__new__(Listener)
    until = time.monotonic() + 4
    while time.monotonic() < until:
        owner._folder = None
        listener, path = owner._listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        time.sleep(0.001)  # the others look
        assert os.path.exists(path)
        listener.close()
        owner._remove_folder()
    over.set()
    for other in others:
        other.join()


def test_where_no_folder_can_be_made_an_abstract_name_serves(
    server: EmbeddedServer, redis: Redis, tmp_path: Path
) -> None:
    """A path that is too long for a socket is no reason to fail."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2, TMPDIR=str(deep)):
        finished([Queue("a", connection=redis).enqueue(stream_jobs.busy) for _ in range(10)], redis)
        assert roles(redis) == ["command", "jobs", "listen"]
    assert not list(deep.iterdir())


# -- JOBS_SHARE=no -----------------------------------------------------------------------------------------------------


def test_a_connection_per_horse_where_that_is_asked_for(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """With JOBS_SHARE=no each horse has a connection of its own that stays open between jobs."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=2, RQ_POOLED_JOBS_SHARE="no"):
        wait_until(lambda: len(of_worker(redis)) == 2, what="both connections")
        before = received(redis)
        finished([Queue("a", connection=redis).enqueue(stream_jobs.busy) for _ in range(60)], redis)
        assert received(redis) - before <= 4
        assert set(roles(redis)) == {"command", "job", "listen"}
