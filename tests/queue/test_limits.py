"""Limits of queues: kept exactly, used fully, in nobody's way, and free of charge while waiting."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import claim_jobs
import pytest
from commands import rq_pooled_command
from engine import engine, finished, key_space
from keys import named
from redis import Redis
from rq import Queue
from rq.job import JobStatus
from support import running_worker, wait_until

from rq_pooled.errors import ConfigurationError
from rq_pooled.queue.limits import Limit, clear_limit, declare_limit, limits_in_force, make_limit, set_limit
from rq_pooled.store.leases import push_back
from rq_pooled.store.scripts import scripts


class Monitor:
    """What a server is told meanwhile: (time by its clock, who, the command)."""

    _LINE = re.compile(r"(\d+\.\d+) \[\d+ ([^\]]+)\] (.*)")

    def __init__(self, url: str) -> None:
        self.lines: list[tuple[float, str, str]] = []
        self._client = Redis.from_url(url, decode_responses=True)
        self._client.ping()  # so that it is connected when it ends the monitoring
        self._monitor = Redis.from_url(url, decode_responses=True).monitor()

    @contextlib.contextmanager
    def running(self) -> Iterator[Monitor]:
        """Listen inside the block."""
        with self._monitor as monitor:
            thread = threading.Thread(target=self._read, args=(monitor.connection,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self._client.echo("the end")
                thread.join(10)
        self._client.close()

    def _read(self, connection: Any) -> None:
        while True:
            match = self._LINE.match(connection.read_response())
            if match is None:
                continue
            if match[3] == '"ECHO" "the end"':
                return
            self.lines.append((float(match[1]), match[2], match[3]))

    def starts(self, queue: str) -> list[float]:
        """When jobs of the queue were claimed, by the server's clock: its claims are counted, not our own notes."""
        return [
            at for at, _, command in list(self.lines) if command.startswith(named(f'"ZADD" "rq_pooled:leases:{queue}"'))
        ]


def wait_until_asleep(redis: Redis, keys: int) -> None:
    """Wait until the server tells workers about changes of so many keys, counted per worker, and has for a while.

    A worker registers with the last thing that it sends before it sleeps. The server may also tell about keys that a
    worker watched before and that have not changed since.
    """
    seen: list[int] = []

    def quiet() -> bool:
        seen.append(redis.info("stats")["tracking_total_items"])
        return seen[-1] >= keys and seen[-20:] == [seen[-1]] * 20

    wait_until(quiet, what=f"{keys} watched keys")


def counts_ok(starts: list[float], number: int, period: float, tolerance: float) -> bool:
    """Tell whether no window of the period holds more starts than the number."""
    return all(later - earlier >= period - tolerance for earlier, later in zip(starts, starts[number:]))


@pytest.mark.parametrize(
    "text", ["10", "10/", "/5s", "x/5s", "10/5x", "-1/5s", "0/5s", "10/0s", "10/-5s", "10/900w", "", "1.5/1s"]
)
def test_malformed_rates_are_refused_in_words(text: str) -> None:
    """A rate that cannot be read is refused with one line that shows how to write it."""
    with pytest.raises(ConfigurationError, match=r"write it as|must be 1 to") as caught:
        make_limit(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("running", [True, 0, -1, 1.5, "3"])
def test_malformed_numbers_are_refused_in_words(running: Any) -> None:
    """max_running is a whole number of at least 1."""
    with pytest.raises(ConfigurationError, match="whole number"):
        make_limit(None, running)


def test_rates_as_people_write_them() -> None:
    """Every way to write a duration works in a rate."""
    assert make_limit("10/5s") == Limit(10, 5.0, 0)
    assert make_limit(" 1000 / 1h30m ", 3) == Limit(1000, 5400.0, 3)
    assert make_limit("1/0.25") == Limit(1, 0.25, 0)


def test_code_declares_and_operators_decide(redis: Redis) -> None:
    """A declared limit holds until an operator sets one, which goes before it until cleared; then it holds again."""
    declared, operators = make_limit("10/5s"), make_limit("2/1m", 1)
    assert declare_limit(redis, "q", declared) == (declared, False)
    set_limit(redis, "q", operators)
    assert declare_limit(redis, "q", make_limit("11/5s")) == (operators, True)
    assert clear_limit(redis, "q") == (make_limit("11/5s"), False)
    assert limits_in_force(redis) == {"q": (make_limit("11/5s"), False)}
    assert clear_limit(redis, "q") is None
    assert clear_limit(redis, "q") is None
    assert key_space(redis) == {}, "nothing is left of a limit that was removed"


def test_a_limit_that_others_wrote_is_never_larger_than_ours(server: Any, redis: Redis) -> None:
    """Numbers beyond what make_limit allows are cut to it: no list of starts grows without a bound, no command
    fails.
    """
    Queue("q", redis).enqueue("math.factorial", 3, job_id="a")
    redis.hset(named("rq_pooled:limits"), "q", "operator 999999 99999999999999999 0")
    with engine(server.url) as ours:
        assert len(ours.claim("w", queues=("q",)).claims) == 1
    assert (
        redis.llen(named("rq_pooled:starts:q")) == 1 and 0 < redis.pttl(named("rq_pooled:starts:q")) <= 31622400000 + 1
    )


def test_starts_within_one_claim_are_counted(server: Any, redis: Redis) -> None:
    """One claim for many slots takes no more than the limit allows, and says when the next may start."""
    queue, behind = Queue("q", redis), Queue("behind", redis)
    for i in range(6):
        queue.enqueue("math.factorial", 3, job_id=f"q{i}")
    behind.enqueue("math.factorial", 3, job_id="behind")
    set_limit(redis, "q", make_limit("4/1m"))
    with engine(server.url) as ours:
        claimed = ours.claim(*"abcdef", queues=("q", "behind"))
    assert [claim.job_id for claim in claimed.claims] == ["q0", "q1", "q2", "q3", "behind"]
    ((key, wait, watch, _),) = claimed.limited
    assert (key, watch) == (named("rq:queue:q"), named("rq_pooled:limited:q"))
    assert wait is not None and 55 < wait <= 60
    assert queue.get_job_ids() == ["q4", "q5"]
    assert 0 < redis.pttl(named("rq_pooled:starts:q")) <= 60_001


@pytest.mark.parametrize("limit", [make_limit("1/1m"), make_limit(None, 1)])
def test_who_comes_to_wait_wakes_nobody(server: Any, redis: Redis, limit: Limit) -> None:
    """A second worker that finds the limit reached leaves the key that the first one watches untouched."""
    queue = Queue("q", redis)
    for _ in range(3):
        queue.enqueue("math.factorial", 3)
    set_limit(redis, "q", limit)
    with engine(server.url) as ours, redis.pipeline() as pipeline:
        ((_, _, watch, _),) = ours.claim("a", "b", queues=("q",)).limited
        pipeline.watch(watch, queue.key)
        ((_, _, again, _),) = ours.claim("b", queues=("q",)).limited
        pipeline.multi()
        pipeline.ping()
        assert (again, pipeline.execute()) == (watch, [True]), "EXEC fails where a watched key was touched"


def test_empty_queue_is_not_reported(server: Any, redis: Redis) -> None:
    """A queue without jobs is watched as always, whatever its limit: the next push wakes somebody."""
    set_limit(redis, "q", make_limit("1/1m"))
    Queue("q", redis).enqueue("math.factorial", 3)
    with engine(server.url) as ours:
        assert len(ours.claim("a", "b", queues=("q",)).claims) == 1
        assert ours.claim("a", queues=("q",)).limited == []


def test_running_jobs_are_counted_by_the_claims_that_stand(server: Any, redis: Redis) -> None:
    """A place is taken by a claim and freed with it: by its outcome, by putting it back, by its loss when its worker is
    dead.
    """
    queue = Queue("q", redis)
    for i in range(9):
        queue.enqueue("math.factorial", 3, job_id=f"q{i}")
    set_limit(redis, "q", make_limit(None, 2))
    with engine(server.url) as ours:
        claims = ours.claim("a", "b", "c", queues=("q",)).claims
        assert [claim.job_id for claim in claims] == ["q0", "q1"]
        assert ours.claim("c", queues=("q",)).limited == [(named("rq:queue:q"), None, named("rq_pooled:full:q"), False)]
        ours.commit(finished(claims[0]))
        assert not redis.exists(named("rq_pooled:full:q")), "who waits for a place is told"
        (third,) = ours.claim("c", "d", queues=("q",)).claims
        assert redis.exists(named("rq_pooled:full:q"))
        ours.run(push_back(ours.settings, ours.token, [third]))
        assert not redis.exists(named("rq_pooled:full:q"))
        (again,) = ours.claim("c", "d", queues=("q",)).claims
        assert again.job_id == third.job_id
        redis.zadd(named("rq:wip:q"), {again.member: time.time() - 1})  # nobody has renewed it
        assert len(ours.claim("c", "d", queues=("q",)).claims) == 1
        redis.zrem(named("rq:wip:q"), claims[1].member)  # RQ gave it up
        assert len(ours.claim("c", "d", queues=("q",)).claims) == 1


@pytest.mark.timeout(180)
def test_four_workers_keep_the_limit_and_use_it(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Four workers together never start more than M in any window T, use at least 95 % of M under load, and the queue
    behind a limited one is worked off as if there were no limit."""
    number, period, windows = 20, 3.0, 5
    queue, behind = Queue("narrow", redis), Queue("wide", redis)
    set_limit(redis, "narrow", make_limit(f"{number}/{period:g}s"))
    with contextlib.ExitStack() as stack:
        for i in range(4):
            log = tmp_path / f"log{i}"
            stack.enter_context(running_worker(server.url, "narrow", "wide", log=log, concurrency=4))
        monitor = stack.enter_context(Monitor(server.url).running())
        data = [Queue.prepare_data(claim_jobs.nothing, job_id=f"n{i}") for i in range(number * windows)]
        queue.enqueue_many(data)
        others = behind.enqueue_many([Queue.prepare_data(claim_jobs.nothing, job_id=f"w{i}") for i in range(300)])
        # Some are claimed twice: claimed ahead, and put back.
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in others), timeout=60)
        wide = monitor.starts("wide")
        wait_until(lambda: len(monitor.starts("narrow")) == len(data), timeout=100)
        starts = monitor.starts("narrow")
    assert counts_ok(starts, number, period, tolerance=0.02), starts
    ideal = (windows - 1) * period
    used = ideal / (starts[-1] - starts[0])
    print(f"used {used:.1%} of the limit")
    assert used >= 0.95, starts
    assert wide[-1] < starts[-1], "the queue behind did not wait for the limit"


def test_waiting_costs_no_commands(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Workers whose only jobs wait for a limit claim nothing, yet start on time; nor does one that waits wake the
    others."""
    queue, notes = Queue("q", redis), tmp_path / "notes"
    set_limit(redis, "q", make_limit("2/12s"))  # far more than the silence takes on a busy machine
    usual = {scripts()[name].sha1 for name in ("heartbeat", "promote", "doze")}
    with (
        running_worker(server.url, "q", "other", log=tmp_path / "a", concurrency=3),
        running_worker(server.url, "q", "other", log=tmp_path / "b", concurrency=3),
    ):
        jobs = [queue.enqueue(claim_jobs.note, str(notes), job_id=f"j{i}") for i in range(3)]
        wait_until(lambda: jobs[1].get_status() == JobStatus.FINISHED)
        wait_until(lambda: redis.exists(named("rq_pooled:limited:q")))
        wait_until_asleep(redis, 3)  # suspension, the other queue, the limit: the sentry watches these
        with Monitor(server.url).running() as monitor:
            # One that dozes learns of the limit by its first claim, up to a second later.
            watch = named('"EXISTS" "rq_pooled:limited:q"')
            knows = "both workers watch the limit"
            wait_until(lambda: len({who for _, who, said in list(monitor.lines) if said == watch}) == 2, what=knows)
            before = len(monitor.lines)
            time.sleep(3)  # this is what is measured: three seconds of waiting
        said = [command for _, who, command in monitor.lines[before:] if who != "lua" and "EVALSHA" in command]
        assert [line for line in said if not any(digest in line for digest in usual)] == []
        assert jobs[2].get_status() == JobStatus.QUEUED
        # A job of another queue is started meanwhile.
        other = Queue("other", redis).enqueue(claim_jobs.nothing)
        wait_until(lambda: other.get_status() == JobStatus.FINISHED)
        wait_until(lambda: jobs[2].get_status() == JobStatus.FINISHED, timeout=40)


def test_waiting_for_a_place_costs_no_commands_and_ends_at_once(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A worker that waits for a job of another worker to end is silent until then, and starts the next one then."""
    queue, gate = Queue("q", redis), tmp_path / "gate"
    set_limit(redis, "q", make_limit(None, 1))
    usual = {scripts()[name].sha1 for name in ("heartbeat", "promote", "doze")}
    with (
        running_worker(server.url, "q", log=tmp_path / "a") as first,
        running_worker(server.url, "q", log=tmp_path / "b") as second,
    ):
        one = queue.enqueue(claim_jobs.wait_for_file, str(tmp_path / "started"), str(gate))
        wait_until(lambda: one.get_status() == JobStatus.STARTED)
        two = queue.enqueue(claim_jobs.nothing)
        wait_until(lambda: redis.exists(named("rq_pooled:full:q")))
        wait_until_asleep(redis, 2 + 1)  # the busy one watches nothing, the other suspension and the place
        with Monitor(server.url).running() as monitor:
            time.sleep(2.5)
        said = [command for _, who, command in monitor.lines if who != "lua" and "EVALSHA" in command]
        assert [line for line in said if not any(digest in line for digest in usual)] == []
        one.refresh()
        busy, idle = (first, second) if one.id in first.output() else (second, first)
        busy.process.send_signal(15)  # it ends after this job, so that the other one has to be told
        wait_until(lambda: "arm shut down" in busy.output())
        gate.touch()
        wait_until(lambda: two.get_status() == JobStatus.FINISHED, timeout=10)
        assert two.id in idle.output()


def test_max_running_holds_for_all_workers(server: Any, redis: Redis, tmp_path: Path) -> None:
    """Three workers of four slots never run more than max_running jobs of a queue at once, and run all of them."""
    queue, notes = Queue("q", redis), tmp_path / "notes"
    set_limit(redis, "q", make_limit(None, 3))
    with contextlib.ExitStack() as stack:
        for i in range(3):
            stack.enter_context(running_worker(server.url, "q", log=tmp_path / f"log{i}", concurrency=4))
        jobs = [queue.enqueue(claim_jobs.note_start_and_end, str(notes)) for _ in range(30)]
        wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs), timeout=40)
    running, most = 0, 0
    for line in notes.read_text().splitlines():
        running += 1 if line.startswith("start") else -1
        most = max(most, running)
    assert most == 3


def test_killed_worker_leaks_no_place(server: Any, redis: Redis, tmp_path: Path) -> None:
    """The place of a worker that was killed is taken until its job is put back, and not longer."""
    queue, started, gate = Queue("q", redis), tmp_path / "started", tmp_path / "gate"
    quick = {"RQ_POOLED_HEARTBEAT_INTERVAL": "0.5", "RQ_POOLED_HEARTBEAT_TTL": "3", "RQ_POOLED_STALLED_INTERVAL": "0.5"}
    set_limit(redis, "q", make_limit(None, 1))
    with running_worker(server.url, "q", log=tmp_path / "a", **quick) as first:
        jobs = [queue.enqueue(claim_jobs.wait_for_file, str(started), str(gate)) for _ in range(2)]
        wait_until(started.exists)
        with running_worker(server.url, "q", log=tmp_path / "b", concurrency=2, **quick):
            wait_until(lambda: redis.exists(named("rq_pooled:full:q")))
            first.kill()
            wait_until(lambda: len(started.read_text().split()) == 2, timeout=30)
            assert redis.zcard(named("rq:wip:q")) == 1
            gate.touch()
            wait_until(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs), timeout=10)


def test_burst_waits_for_the_limit(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A burst is over when its queues are empty, not when a limit is reached."""
    queue = Queue("q", redis)
    set_limit(redis, "q", make_limit("2/1s"))
    jobs = [queue.enqueue(claim_jobs.nothing) for _ in range(5)]
    with running_worker(server.url, "q", "--burst", log=tmp_path / "log", concurrency=2, ready=None) as worker:
        assert worker.wait() == 0
    assert all(job.get_status() == JobStatus.FINISHED for job in jobs)


def test_changed_limit_is_heard_by_who_waits(server: Any, redis: Redis, tmp_path: Path) -> None:
    """A worker that waits an hour for a limit hears that it was raised or removed."""
    queue = Queue("q", redis)
    set_limit(redis, "q", make_limit("1/1h"))
    with running_worker(server.url, "q", log=tmp_path / "log"):
        jobs = [queue.enqueue(claim_jobs.nothing, job_id=f"j{i}") for i in range(3)]
        wait_until(lambda: jobs[0].get_status() == JobStatus.FINISHED)
        wait_until(lambda: redis.exists(named("rq_pooled:limited:q")))
        set_limit(redis, "q", make_limit("2/1h"))
        wait_until(lambda: jobs[1].get_status() == JobStatus.FINISHED, timeout=10)
        assert jobs[2].get_status() == JobStatus.QUEUED
        clear_limit(redis, "q")
        wait_until(lambda: jobs[2].get_status() == JobStatus.FINISHED, timeout=10)


def test_strategies_skip_limited_queues(server: Any, redis: Redis) -> None:
    """Round robin and random go on with the other queues."""
    with engine(server.url) as ours:
        for strategy in ("round_robin", "random"):
            redis.flushdb()
            for i in range(4):
                for name in ("a", "b"):
                    Queue(name, redis).enqueue("math.factorial", 3, job_id=f"{name}{i}")
            set_limit(redis, "a", make_limit("1/1h"))
            claimed = ours.claim(*"vwxyz", queues=("a", "b"), strategy=strategy)
            assert sorted(claim.job_id for claim in claimed.claims) == ["a0", "b0", "b1", "b2", "b3"]


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(server: Any) -> Run:
    """Run ``rq-pooled limit`` against the server."""
    return functools.partial(rq_pooled_command, "limit", url=server.url)


def test_command_shows_sets_and_clears(redis: Redis, run: Run) -> None:
    """``rq-pooled limit`` does what its help says, and finding nothing is no error."""
    result = run()
    assert (result.returncode, result.stdout) == (0, "no queue has a limit\n")
    assert run("mail", "--rate", "10/5s", "--max-running", "3").stdout == (
        "mail: at most 10 starts in 5s, at most 3 running at once (set by an operator)\n"
    )
    declare_limit(redis, "other", make_limit("1/2m"))
    assert run().stdout.splitlines()[1] == "other: at most 1 starts in 2m (declared by code)"
    assert json.loads(run("mail", "--json").stdout) == {
        "mail": {"starts": 10, "period_seconds": 5.0, "max_running": 3, "set_by": "operator"}
    }
    assert run("mail", "--clear").stdout == "mail: no limit any more\n"
    result = run("mail", "--clear")
    assert (result.returncode, result.stdout) == (0, "mail: no limit (and no queue of this name has ever been used)\n")


@pytest.mark.parametrize("junk", ["junk", "operator a b c", f"operator 1 {'9' * 400} 0", b"\xff"])
def test_what_is_no_limit_hides_none(redis: Redis, run: Run, junk: Any) -> None:
    """What stands among the limits and is none is named, removed with --clear, and gives way to what is declared."""
    redis.hset(named("rq_pooled:limits"), "aaa", junk)
    set_limit(redis, "mail", make_limit("1/2m"))
    result = run()
    assert (result.returncode, result.stdout) == (0, "mail: at most 1 starts in 2m (set by an operator)\n")
    assert result.stderr.startswith("rq-pooled: aaa: ") and result.stderr.count("\n") == 1
    assert run("aaa", "--clear").stderr == "" and not redis.hexists(named("rq_pooled:limits"), "aaa")
    redis.hset(named("rq_pooled:limits"), "aaa", junk)
    assert declare_limit(redis, "aaa", make_limit("3/1s")).limit == make_limit("3/1s")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mail", "--rate", "10/5q"], 2, "45s, 10m"),
        (["mail", "--rate", "many"], 2, "write it as 10/5s"),
        (["mail", "--max-running", "0"], 2, "at least 1"),
        (["--rate", "1/1s"], 2, "name the QUEUE"),
        (["mail", "--rate", "1/1s", "--clear"], 2, "excludes"),
    ],
)
def test_command_refuses_bad_input(run: Run, arguments: list[str], code: int, words: str) -> None:
    """Bad input is one line and exit code 2."""
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr and result.stderr.count("\n") == 1


def test_command_ends_with_75_where_the_server_is_away(run: Run) -> None:
    """A server that cannot be reached is one line and exit code 75."""
    result = run(url="redis://127.0.0.1:1/0")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (75, "", 1)
