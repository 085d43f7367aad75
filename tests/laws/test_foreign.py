"""Data that others wrote: bytes that are no text, keys of other types, and sizes that nobody expects."""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import subprocess
import sys
import time
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from commands import run_command
from failures import fill
from hypothesis import given
from hypothesis import strategies as st
from keys import named
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue
from rq.job import Job
from rq.logutils import blue, colorizer, green
from rq.utils import now, utcformat
from support import running_worker, wait_until

from rq_pooled import Scheduler, health
from rq_pooled.capacity.trend import read_samples
from rq_pooled.cli import main as cli
from rq_pooled.config import Settings
from rq_pooled.deadline import within
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError
from rq_pooled.foreign import MAX_UNPACKED, label, plain, printable, unpacked_error
from rq_pooled.log_lines import keep_lines
from rq_pooled.metrics import metrics
from rq_pooled.monitoring.overview import overview
from rq_pooled.store.keys import SAMPLES
from rq_pooled.store.scripts import run_script
from rq_pooled.store.statistics import note_clients
from rq_pooled.store.unpickling import Inert, plain_meta
from rq_pooled.wire import raw, text

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command on the test's server; return its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments, "--url", server.url])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def fail_raw(redis: Redis, job_id: bytes, queue: bytes = b"default", **fields: Any) -> None:
    """Write a failed job with an id of any bytes."""
    values = {"data": b"x", "status": "failed", "origin": queue, "ended_at": utcformat(now()), **fields}
    redis.hset(named(b"rq:job:") + job_id, mapping=values)
    redis.zadd(named(b"rq:failed:") + queue, {job_id: time.time()})
    redis.sadd(named("rq:queues"), named(b"rq:queue:") + queue)


# -- names of any bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_id", [b"\xff\xfe", b"a\nb", b"\x1b]0;x\x07", b"x" * 1_000_000])
def test_failed_jobs_of_any_id_are_requeued_with_the_others(redis: Redis, run: Run, job_id: bytes) -> None:
    """An id of any bytes is listed as one short line, and requeued, with all others."""
    fill(redis, 2)
    fail_raw(redis, job_id)
    code, out, _ = run("failed")
    assert code == 0 and len(out.splitlines()) == 4 and len(out) < 6000 and out.replace("\n", "").isprintable()
    assert len(json.loads(run("failed", "--json")[1])) == 3
    assert run("requeue", "--all")[1] == "default: 3 requeued (of 3)\n"
    assert job_id in redis.lrange(named("rq:queue:default"), 0, -1)


@pytest.mark.parametrize(
    "command", [("sweep", "--bury", "--limit", "9"), ("sweep", "--purge", "--all"), ("sweep", "--ghosts")]
)
def test_sweeps_pass_names_of_any_bytes(redis: Redis, run: Run, command: tuple[str, ...]) -> None:
    """Queues, ids and dates of any bytes are swept as all others are."""
    fill(redis, 2)
    fail_raw(redis, b"\xff", ended_at=b"\xfe")
    fail_raw(redis, b"\xfd", queue=b"\xff")
    redis.zadd(named("rq:failed:default"), {b"\xfc": 1})
    code, out, err = run(*command)
    assert code == 0 and "Traceback" not in err and "changed" not in out
    left = redis.zcard(named("rq:failed:default")), redis.zcard(named(b"rq:failed:\xff"))
    assert left == ((3, 1) if "--ghosts" in command else (0, 0))


def test_single_jobs_of_any_id_are_requeued(redis: Redis, run: Run) -> None:
    """An id is taken as the shell gives it, and a key of another type is told and harms no other job."""
    fail_raw(redis, b"\xff\xfe")
    fill(redis, 1)
    redis.set(named("rq:job:odd"), "no hash")
    code, out, _ = run("requeue", text(b"\xff\xfe"), "odd", "f000000")
    assert code == 0 and out.splitlines() == [
        r"\xff\xfe requeued",
        "odd cannot be read: a key of another type",
        "f000000 requeued",
    ]
    fail_raw(redis, b"\xff\xfe")
    assert r"\xff\xfe  default" in run("failed", text(b"\xff\xfe"))[1]
    assert run("failed", "odd")[0] == 2


def test_registry_of_another_type_hides_no_other_queue(redis: Redis, run: Run) -> None:
    """A registry that is something else is named, and the failed jobs of all other queues are listed."""
    for name in "abc":
        fill(redis, 1, name, prefix=name)
    redis.delete(named("rq:failed:b"))
    redis.set(named("rq:failed:b"), "no registry")
    code, out, err = run("failed")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["a", "c"]
    assert code == 75 and err.startswith("rq-pooled: b: not read: WRONGTYPE") and len(err.splitlines()) == 1
    found = health.failed_jobs(connection=redis)
    assert sorted(job["queue"] for job in found["jobs"]) == ["a", "c"] and found["unreadable"] == ["b"]


@pytest.mark.parametrize("broken", ["key", "queue", "origin", "list", "date"])
def test_lost_jobs_are_rescued_beside_what_cannot_be_read(redis: Redis, run: Run, broken: str) -> None:
    """A key, queue or origin of any bytes, and a queue that is no list, keep no lost job from its queue."""
    lost = {"data": "x", "status": "queued", "origin": "q", "enqueued_at": "2020-01-01T00:00:00.000000Z"}
    redis.hset(named("rq:job:lost"), mapping=lost)
    redis.sadd(named("rq:queues"), named("rq:queue:q"))
    if broken == "key":
        redis.hset(named(b"rq:job:\xff"), mapping=lost)
    elif broken == "queue":
        redis.sadd(named("rq:queues"), named(b"rq:queue:\xff"))
    elif broken == "origin":
        redis.hset(named("rq:job:odd"), mapping={**lost, "origin": b"\xff"})
    elif broken == "date":
        redis.hset(named("rq:job:odd"), mapping={**lost, "enqueued_at": b"\xff"})
    else:
        redis.set(named("rq:queue:odd"), "no list")
        redis.sadd(named("rq:queues"), named("rq:queue:odd"))
        redis.hset(named("rq:job:odd"), mapping={**lost, "origin": "odd"})
    code, out, err = run("rescue", "--apply")
    assert code == 0 and "Traceback" not in err and "put back" in out
    assert b"lost" in redis.lrange(named("rq:queue:q"), 0, -1)


# -- monitoring --------------------------------------------------------------------------------------------------------


PUBLISHED = {"kind": '"worker"', "worker": '"w"', "concurrency": "2", "published_at": "1"}


def publish(redis: Redis, name: bytes, fields: dict[str, Any]) -> None:
    """Write what a process would publish."""
    redis.hset(named(b"rq_pooled:stats:") + name, mapping=fields)
    redis.zadd(named("rq_pooled:stats"), {named(b"rq_pooled:stats:") + name: time.time() + 60})


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (b"app:host:2", {**PUBLISHED, "concurrency": "no json"}),
        (b"app:host:2", {**PUBLISHED, "concurrency": '"two"'}),
        (b"app:host:2", {**PUBLISHED, "concurrency": "NaN"}),
        (b"app:host:2", {**PUBLISHED, "run_time": "[]"}),
        (b"app:host:2", {**PUBLISHED, "recent": "{}"}),
        (b"app:host:2", {**PUBLISHED, "pools": "[{}]"}),
        (b"app:host:2", {**PUBLISHED, "horses": "[[]]"}),
        (b"app:host:2", {**PUBLISHED, "memory": '["31"]'}),
        (b"app:host:2", {**PUBLISHED, "queues": "[" * 100_000}),
        (b"app:host:2", {**PUBLISHED, "worker": b'"\xff'}),
        (b"app:host:x", PUBLISHED),
        (b"short", PUBLISHED),
        (b"\xff:host:\xff", PUBLISHED),
    ],
)
def test_statistics_of_another_shape_hide_no_worker(
    redis: Redis, run: Run, name: bytes, fields: dict[str, Any]
) -> None:
    """What is no statistics is named and left out: by the liveness probe, by stats, by the page and by the metrics."""
    publish(redis, b"app:host:1", PUBLISHED)
    publish(redis, name, fields)
    assert run("check", "--worker", "w")[0] == 0
    assert run("check", "--failed-rate", "0.5")[0] == 0
    code, out, err = run("stats")
    assert code == 0 and "app:host:1" in out and err.startswith("rq-pooled: statistics that are not read: ")
    unreadable: list[str] = []
    assert [one["pid"] for one in health.processes(redis, unreadable)] == [1] and len(unreadable) == 1
    assert overview(redis, Settings())["unreadable"] == [f"statistics of {unreadable[0]}"]
    assert 'rq_pooled_unreadable{kind="process"} 1.0' in metrics(redis)


def test_statistics_in_a_key_of_another_type_are_named(redis: Redis) -> None:
    """A listed process whose key is no hash is named and left out."""
    publish(redis, b"app:host:1", PUBLISHED)
    redis.set(named("rq_pooled:stats:app:host:2"), "no hash")
    redis.zadd(named("rq_pooled:stats"), {named("rq_pooled:stats:app:host:2"): time.time() + 60})
    unreadable: list[str] = []
    assert len(health.processes(redis, unreadable)) == 1 and unreadable == ["app:host:2"]


@pytest.mark.parametrize("sample", [b"\xff", b"[]", b"{}", b"[1, 2]", b'["a", 1, 1, {}]', b"[1, 2, 3, 4]", b"[" * 9999])
def test_samples_of_another_shape_are_left_out(redis: Redis, sample: bytes) -> None:
    """What is no sample leaves the chart of all others."""
    redis.rpush(SAMPLES, "[2.0, 5, 100, {}]", sample)
    assert [one.time for one in read_samples(redis)][-1] == 2.0
    assert health.connections(redis)["connected"]


def test_no_sample_stops_the_others(redis: Redis) -> None:
    """A sample from the future and a list that never ends cost neither the chart nor the next sample, which cuts it."""
    redis.rpush(SAMPLES, "[9e15, 5, 0, {}]", *["0"] * 10_000)
    assert [one.time for one in read_samples(redis)] == [9e15]
    before = redis.llen(SAMPLES)
    run_script(redis, note_clients(3, 10, 15.0))
    assert redis.llen(SAMPLES) < 300 < before and read_samples(redis)[-1].connected == 3


def test_queues_of_any_name_are_counted(redis: Redis) -> None:
    """Queues whose names are no text are told apart and counted, in the dictionaries, as JSON and as metrics."""
    for name in (b"\xff", b"\xfe", b"a\nb"):
        fail_raw(redis, b"j" + name, queue=name)
        redis.rpush(named(b"rq:queue:") + name, b"x")
    found = {queue["name"]: queue for queue in health.queues(redis)}
    assert set(found) == {r"\xff", r"\xfe", "a\nb"}
    assert all(queue["failed"] == queue["length"] == 1 for queue in found.values())
    json.dumps(found, ensure_ascii=False).encode()
    families = {one.name: one for one in text_string_to_metric_families(metrics(redis))}
    names = {sample.labels["queue"] for sample in families["rq_pooled_queue"].samples}
    assert names == {r"\xff", r"\xfe", label("a\nb")} and label("a\nb").startswith(r"a\nb #")


def test_job_keys_of_another_type_hide_no_failed_job(redis: Redis) -> None:
    """A job or its results in a key of another type are an entry without a job, beside the others."""
    fill(redis, 1)
    for key, job_id in ((named("rq:job:hash"), "hash"), (named("rq:results:stream"), "stream")):
        fail_raw(redis, job_id.encode())
        redis.delete(key)
        redis.set(key, "another type")
    redis.zadd(named("rq:scheduled:default"), {"hash": 1, "for ever": float("inf")})
    jobs = {job["id"]: job["exists"] for job in health.failed_jobs(connection=redis)["jobs"]}
    assert jobs == {"f000000": True, "hash": False, "stream": True}
    assert [job["id"] for job in overview(redis, Settings())["upcoming"]] == ["hash"]


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_large_errors_cost_a_page_no_more_than_small_ones(redis: Redis) -> None:
    """Recorded texts that unpack to 50 MB each are told by their size, within seconds for all."""
    error = b64encode(zlib.compress(b"x" * 50_000_000))
    for number in range(10):
        fail_raw(redis, b"j%d" % number)
        redis.xadd(named(f"rq:results:j{number}"), {"type": 2, "exc_string": error})
    began = time.monotonic()
    jobs = health.failed_jobs(connection=redis)["jobs"]
    assert time.monotonic() - began < 5 and len(jobs) == 10
    assert {job["reason"] for job in jobs} == {"the recorded error is larger than 8 MB, which is not unpacked"}


def test_a_list_ends_before_its_callers_deadline(redis: Redis) -> None:
    """Inside a deadline that is near, what was read until then is returned, with where to go on."""
    ids = fill(redis, 5)
    with within(0.9, "the deadline of this test"):
        page = health.failed_jobs(connection=redis)
    assert len(page["jobs"]) == page["next_offset"] == 1 and page["total"] == len(ids)


@pytest.mark.parametrize("size", [100, 2_000_000, MAX_UNPACKED - 1000])
def test_a_long_message_hides_no_name(size: int) -> None:
    """An error keeps its beginning, where the name stands, and its end, whatever it says between."""
    packed = b64encode(zlib.compress(b"first\n" + b"y" * size + b"\nlast"))
    unpacked = unpacked_error(packed)
    assert unpacked.startswith("first\n") and unpacked.endswith("\nlast") and len(unpacked) <= 800_000


@pytest.mark.parametrize("packed", [b"", b"x", b"eJ", b"\xff", zlib.compress(b"a" * 99)[:-5], b"no error"])
def test_what_is_not_packed_is_text(packed: bytes) -> None:
    """An error that cannot be unpacked is what stands there."""
    assert unpacked_error(packed) == packed.decode(errors="replace")


def test_arguments_are_not_read_to_see_that_they_are_there(redis: Redis) -> None:
    """A list of failed jobs fetches neither arguments nor descriptions that are large."""
    for number in range(10):
        fail_raw(redis, b"j%d" % number, data="x" * 1_000_000, description="y" * 1_000_000)
    redis.zadd(named("rq:scheduled:default"), {"j1": 1})
    before = redis.info("stats")["total_net_output_bytes"]
    found = overview(redis, Settings())
    jobs = health.failed_jobs(connection=redis)["jobs"]
    assert redis.info("stats")["total_net_output_bytes"] - before < 200_000
    assert all(job["exists"] and job["description"] == "(a description of 1000000 bytes)" for job in jobs)
    assert found["upcoming"][0]["id"] == "j1"


def test_a_huge_error_of_one_job_costs_no_list_of_the_others(redis: Redis, run: Run) -> None:
    """Results, errors and descriptions that are huge are told by their size, and are not sent."""
    huge = b"q" * 20_000_000
    fill(redis, 2)
    fail_raw(redis, b"result", description=huge)
    redis.xadd(named("rq:results:result"), {"type": 2, "exc_string": huge})
    fail_raw(redis, b"hash", exc_info=huge)
    before = redis.info("stats")["total_net_output_bytes"]
    jobs = {job["id"]: job["reason"] for job in health.failed_jobs(connection=redis)["jobs"]}
    assert re.fullmatch(r"results of 2\d{7} bytes, which are not read", jobs["result"]) and len(jobs) == 4
    code, out, _ = run("failed", "--json")
    assert code == 0 and len(json.loads(out)) == 4 and len(out) < 10_000
    assert run("sweep", "--purge", "--exception", "shop.Declined")[0] == 0
    assert run("requeue", "--all")[1] == "default: 4 requeued (of 4)\n"
    assert redis.info("stats")["total_net_output_bytes"] - before < 1_000_000


def test_an_entry_of_the_queues_without_its_prefix_hides_no_queue(redis: Redis, run: Run) -> None:
    """Two entries that mean one queue are one, on the page, in lists, in sweeps and in the metrics."""
    fill(redis, 2)
    fill(redis, 1, "other", prefix="o")
    redis.sadd(named("rq:queues"), "default", "")
    assert len(health.failed_jobs(connection=redis)["jobs"]) == 3
    assert [queue["name"] for queue in health.queues(redis)] == ["", "default", "other"]
    assert len(overview(redis, Settings())["queues"]) == 3 and "default" in metrics(redis)
    assert len(run("failed")[1].splitlines()) == 4


def test_a_large_offset_reads_no_registry(redis: Redis) -> None:
    """Of one queue any offset is a rank; over several a large one is refused, and one past the end reads nothing."""
    for name in "ab":
        redis.zadd(named(f"rq:failed:{name}"), {f"{name}-{number:05}": number for number in range(20_000)})
        redis.sadd(named("rq:queues"), named(f"rq:queue:{name}"))
    before = redis.info("stats")["total_net_output_bytes"]
    (job,) = health.failed_jobs("a", offset=19_999, limit=1, connection=redis)["jobs"]
    assert job["id"] == "a-00000"
    assert health.failed_jobs("a", offset=999_999_999, connection=redis)["jobs"] == []
    with pytest.raises(ConfigurationError, match="offset is 999999999"):
        health.failed_jobs(offset=999_999_999, connection=redis)
    assert redis.info("stats")["total_net_output_bytes"] - before < 50_000


def test_pages_over_many_queues_miss_and_repeat_none(redis: Redis) -> None:
    """Pages over more queues than a page has rows are the same order as one list of all."""
    for number in range(60):
        redis.zadd(named(f"rq:failed:q{number}"), {f"j{number}-{k}": (number * 7 + k * 13) % 50 for k in range(3)})
        redis.sadd(named("rq:queues"), named(f"rq:queue:q{number}"))
    whole = [job["id"] for job in health.failed_jobs(limit=500, connection=redis)["jobs"]]
    paged: list[str] = []
    offset: int | None = 0
    while offset is not None:
        page = health.failed_jobs(offset=offset, limit=7, connection=redis)
        paged += [job["id"] for job in page["jobs"]]
        offset = page["next_offset"]
    assert paged == whole and len(set(whole)) == 180


def test_a_page_shows_the_queues_that_matter(redis: Redis) -> None:
    """Of thousands of queues the page shows those with most to do, and counts the others."""
    from rq_pooled.flask.page import present

    redis.sadd(named("rq:queues"), *(named(f"rq:queue:q{number:05}") for number in range(2000)))
    fill(redis, 3, "q01999")
    shown = present(overview(redis, Settings()))
    assert (
        len(shown["queues"]) == 100
        and shown["queue_count"] == 2000
        and "q01999" in [one["name"] for one in shown["queues"]]
    )


# -- RQ's own maintenance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [b"\xff\xfe", b"a\nb:1", b":::", b"odd:1", b"date:1", b"origin:1", b"x" * 1_000_000])
def test_an_abandoned_entry_that_cannot_be_read_stops_no_maintenance(
    server: EmbeddedServer, redis: Redis, tmp_path: Path, entry: bytes
) -> None:
    """RQ's maintenance fails the abandoned jobs of all queues, whatever else stands in registries and groups."""
    redis.set(named("rq:job:odd"), "no hash")
    redis.hset(named("rq:job:date"), mapping={"data": b"x", "origin": "b", "status": "started", "created_at": b"\xff"})
    redis.hset(named("rq:job:origin"), mapping={"data": b"x", "status": "started", "origin": b"\xff"})
    redis.set(named("rq:wip:a"), "no registry")
    redis.sadd(named("rq:groups"), b"\xff", "good", "odd")
    redis.sadd(named("rq:group:good"), b"\xff", "x")
    redis.hset(named("rq:job:x"), "status", "finished")
    redis.set(named("rq:group:odd"), "no set")
    for name in "abc":
        redis.sadd(named("rq:queues"), named(f"rq:queue:{name}"))
    for name in "bc":
        job = Queue(name, connection=redis).enqueue("math.sqrt", 4, job_id=f"abandoned-{name}")
        redis.delete(named(f"rq:queue:{name}"))
        job.set_status("started")  # type: ignore[arg-type]
        redis.zadd(named(f"rq:wip:{name}"), {f"{job.id}:1": 2, entry: 1})
    with running_worker(server.url, "a", "b", "c", log=tmp_path / "log") as worker:
        for name in "bc":
            wait_until(lambda: redis.zscore(named(f"rq:failed:{name}"), f"abandoned-{name}"), what=name)  # noqa: B023
        wait_until(lambda: redis.smembers(named("rq:groups")) == {b"good"}, what="the groups that can be read")
        wait_until(lambda: redis.smembers(named("rq:group:good")) == {b"x"})
        assert "queue a cannot be cleaned (ResponseError: WRONGTYPE" in worker.output()
        assert "died during" not in worker.output() and "Traceback" not in worker.output()
        if entry == b"date:1":
            # What can be read of the job is enough to fail it.
            assert redis.zscore(named("rq:failed:b"), "date")
            assert redis.hmget(named("rq:job:date"), "status", "created_at") == [b"failed", b"\xff"]
        elif len(entry) < 100:
            assert f"dropping {printable(entry)}, which is abandoned and cannot be read" in worker.output()
    assert not redis.zcard(named("rq:wip:b")) and not redis.zcard(named("rq:wip:c"))


# -- keys of another type ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [named("rq:scheduler:scheduled_jobs"), named("rq:scheduler_lock")])
def test_a_schedule_of_another_type_is_named(server: EmbeddedServer, redis: Redis, tmp_path: Path, key: str) -> None:
    """Where rq-scheduler's schedule or lock is something else, the scheduler's line and the worker's name the key."""
    redis.rpush(key, "no schedule")
    if key == named("rq:scheduler_lock"):
        redis.zadd(named("rq:scheduler:scheduled_jobs"), {"x": 1})
    done = run_command(server.url, "scheduler")
    assert done.returncode == 75 and f"WRONGTYPE {key} is of another type" in done.stderr
    assert "Traceback" not in done.stderr
    with running_worker(server.url, "--with-scheduler", log=tmp_path / "log") as worker:
        worker.wait_for(f"cannot look at rq-scheduler's jobs: WRONGTYPE {key} is no")
        job = Queue(connection=redis).enqueue("math.sqrt", 4)
        wait_until(lambda: job.get_status(refresh=True) == "finished")


@pytest.mark.parametrize("words", [(), ("--remove", "x"), ("--cron", "* * * * *", "--ghosts")])
def test_sweeps_in_a_schedule_of_another_type_are_told_of_its_key(
    redis: Redis, run: Run, words: tuple[str, ...]
) -> None:
    """Recurring sweeps are listed, removed and registered, or the key is named that is in the way."""
    redis.set(named("rq:scheduler:scheduled_jobs"), "no schedule")
    code, _, err = run("schedule-sweep", *words)
    assert (
        code == 75 and named("WRONGTYPE rq:scheduler:scheduled_jobs is of another type") in err and err.count("\n") == 1
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda scheduler: scheduler.enqueue_in(timedelta(1), print),
        lambda scheduler: scheduler.cron("* * * * *", print),
        lambda scheduler: scheduler.schedule(datetime.now(), print, interval=5),
        lambda scheduler: scheduler.count(),
        lambda scheduler: list(scheduler.get_jobs()),
        lambda scheduler: scheduler.enqueue_jobs(),
        lambda scheduler: scheduler.cancel("x"),
        lambda scheduler: scheduler.change_execution_time(
            Job.create(print, connection=scheduler.connection), datetime.now()
        ),
        lambda scheduler: "x" in scheduler,
    ],
)
def test_a_schedule_of_another_type_is_named_to_callers(redis: Redis, call: Callable[[Scheduler], Any]) -> None:
    """Each method that reads or writes the schedule names its key, and leaves nothing behind."""
    redis.set(named("rq:scheduler:scheduled_jobs"), "no schedule")
    with pytest.raises(
        ResponseError, match=re.escape(named("WRONGTYPE rq:scheduler:scheduled_jobs is of another type"))
    ):
        call(Scheduler(connection=redis))
    assert redis.keys() == [named("rq:scheduler:scheduled_jobs").encode()]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "hello\x1b[2J",
            r"the lock rq_pooled:sweep:default (hello\x1b[2J) never ends, so no sweep has written it: delete it",
        ),
        (b"\xff", r"the lock rq_pooled:sweep:default (\xff) never ends"),
        (["no text"], "WRONGTYPE rq_pooled:sweep:default is of another type"),
    ],
)
def test_a_lock_that_no_sweep_has_written_is_named(redis: Redis, run: Run, value: Any, words: str) -> None:
    """A sweep's lock that never ends, or is of another type, is named; others say how long they last."""
    fail_raw(redis, b"x")
    if isinstance(value, list):
        redis.rpush(named("rq_pooled:sweep:default"), *value)
    else:
        redis.set(named("rq_pooled:sweep:default"), value)
    code, out, err = run("sweep", "--purge", "--all")
    assert code == 75 and named(words) in err and len((out + err).splitlines()) < 3
    if not isinstance(value, list):
        redis.expire(named("rq_pooled:sweep:default"), 20)
        shown = printable(value)
        assert (
            f"is under way ({shown}); try again when it is over, or 20 s after" in run("sweep", "--purge", "--all")[2]
        )


# -- RQ before 1.12 ----------------------------------------------------------------------------------------------------


def test_errors_that_stand_in_the_hash_are_found(redis: Redis, run: Run) -> None:
    """Failed jobs of RQ before 1.12, which had no results, are found by their exception, listed, and swept."""
    traceback = b'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nshop.Declined: no\n'
    fail_raw(redis, b"packed", exc_info=zlib.compress(traceback))
    fail_raw(redis, b"plain", exc_info=traceback)
    fail_raw(redis, b"other")
    assert len(run("failed", "--exception", "Declined")[1].splitlines()) == 3
    assert "shop.Declined" in run("failed", "packed")[1]
    names = {job["id"]: job["exception"] for job in health.failed_jobs(connection=redis)["jobs"]}
    assert names == {"packed": "shop.Declined", "plain": "shop.Declined", "other": ""}
    assert run("sweep", "--purge", "--exception", "shop.Declined")[1] == "default: 2 deleted (of 3)\n"


# -- pickles -----------------------------------------------------------------------------------------------------------


class Bomb:
    """Would tell, if it was unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("import sys; sys.exploded = True",))


def test_a_list_of_sweeps_unpickles_nothing(redis: Redis, run: Run) -> None:
    """Recurring sweeps are listed and removed without running what their meta names."""
    meta = pickle.dumps({"cron_string": "* * * * *", "bomb": Bomb()})
    redis.hset(
        named("rq:job:rq_pooled-sweep-x"),
        mapping={"data": b"x", "meta": meta, "origin": "q", "result": pickle.dumps(Bomb())},
    )
    redis.zadd(named("rq:scheduler:scheduled_jobs"), {"rq_pooled-sweep-x": 1e18})
    assert run("schedule-sweep")[1].startswith("x: * * * * *")
    assert run("schedule-sweep", "--remove", "x")[1] == "x: removed\n" and not redis.exists(
        named("rq:job:rq_pooled-sweep-x")
    )
    assert not hasattr(sys, "exploded")


@pytest.mark.parametrize("value", [1, "a", [1, {"b": (2, None)}], {1, 2}, b"x", 1.5, True, bytearray(b"ab")])
def test_plain_values_of_a_pickle_are_read(value: Any) -> None:
    """Meta of plain values is what it was; of all else the plain part is."""
    meta = {"interval": 5, "value": value, "when": datetime.now(), "bomb": Bomb(), "counts": Counter("aab")}
    found = plain_meta(pickle.dumps(meta, pickle.HIGHEST_PROTOCOL))
    assert (found["interval"], found["value"]) == (5, value) and type(found["when"]) is Inert
    assert not hasattr(sys, "exploded")
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(found)


@pytest.mark.parametrize(
    "bomb", [b"r\xff\xff\xff\x03.", b"p999999999\n.", b"\x8c\x01x\x96\0\0\0\x40\0\0\0\0.", b"\x96" + b"\xff" * 8]
)
def test_a_pickle_takes_no_more_than_its_size(bomb: bytes) -> None:
    """Ten bytes that number an object 2**26, or announce a buffer of 1 GB, cost no memory."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29)); " + (
        "from rq_pooled.store.unpickling import loads_inert\n"
        "try: loads_inert(bytes.fromhex(sys.argv[1]))\n"
        "except MemoryError: raise\n"
        "except Exception: pass"
    )
    command = [sys.executable, "-c", code, (b"\x80\x05}" + bomb).hex()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("around", ["{}Ns", "({}Nu", "0({}Nd", "0({}\x91", "0\x8f({}\x90"])
@pytest.mark.parametrize("key", [")" + "2\x86" * 60, ")" + "\x85" * 1_000_000])
def test_a_key_of_a_pickle_is_hashed_at_once(key: str, around: str) -> None:
    """Tuples that stand twice in the next, or a million deep, neither hold nor end the process as a key or member."""
    code = (
        "import sys; from rq_pooled.store.unpickling import loads_inert\n"
        "assert len(loads_inert(sys.stdin.buffer.read())) == 1; print('loaded', flush=True)\n"
        "import os; os._exit(0)"
    )
    data = ("\x80\x05}" + around.format(key) + ".").encode("latin-1")
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, timeout=20, check=False)
    assert done.stdout == b"loaded\n", done.stderr


def test_short_keys_of_a_pickle_stay() -> None:
    """Keys and members that are plain, and tuples of such, are what they were."""
    meta = {1: "a", (1, "b"): {(2, None), "c"}, "d": frozenset((1, (2, 3)))}
    assert plain_meta(pickle.dumps(meta, 5)) == meta


@given(st.binary(max_size=60))
def test_a_damaged_pickle_is_no_meta(data: bytes) -> None:
    """Whatever stands in the place of meta is read as a dictionary, without an error."""
    assert isinstance(plain_meta(data), dict)


# -- what is shown -----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=50))
def test_what_is_shown_is_one_line_that_any_encoding_takes(data: bytes) -> None:
    """Whatever bytes a name has: text and back are the same, and what is shown is printable."""
    assert raw(text(data)) == data
    assert printable(data).isprintable() and printable(text(data)) == printable(data)
    plain(text(data)).encode()


def test_control_characters_are_named() -> None:
    """A name is shown with what it is made of, and cut where it is long."""
    assert printable("a\n\x1b[2J\x9b\u202eb") == r"a\n\x1b[2J\x9b\u202eb"
    assert printable(b"\xff\xc3\xa4") == r"\xffä"
    assert printable("x" * 300, 3) == "xxx… (300 characters)"
    assert plain({"a\udcff": ["\ud800", 1, None]}) == {r"a\xff": [r"\ud800", 1, None]}


HOSTILE = b"\x1b]0;owned\x07\x1b[2J\x1b]52;c;eA==\x07\n\r\x9b\xff"


@pytest.mark.parametrize(
    "words",
    [
        ("failed",),
        ("failed", text(HOSTILE)),
        ("requeue", text(HOSTILE)),
        ("sweep", "--ghosts", "--dry-run"),
        ("sweep", "--purge", "--all", "-q", text(HOSTILE)),
        ("rescue",),
        ("stats",),
        ("top",),
        ("check", "--queue-age", "1s"),
        ("limit",),
        ("limit", text(HOSTILE)),
        ("schedule-sweep",),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_no_command_prints_control_characters(
    redis: Redis, run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], as_json: bool
) -> None:
    """Window titles, cleared screens and clipboards that names in Redis would set are shown as text, by any command."""
    # click removes some of them where the output is no terminal.
    monkeypatch.setattr(click.utils, "should_strip_ansi", lambda *_, **__: False)
    dates = {"enqueued_at": "2020-01-01T00:00:00.000000Z", "description": HOSTILE}
    fail_raw(redis, HOSTILE, HOSTILE, exc_info=HOSTILE, **dates)
    redis.hset(named("rq:job:lost"), mapping={"data": "x", "status": "queued", "origin": HOSTILE, **dates})
    redis.hset(named(b"rq:job:old"), mapping={"data": "x", **dates})
    redis.rpush(named(b"rq:queue:") + HOSTILE, "old")
    redis.hset(named("rq_pooled:limits"), HOSTILE, HOSTILE)
    name = json.dumps(HOSTILE.decode(errors="replace"))
    publish(redis, b"app:" + HOSTILE + b":1", {**PUBLISHED, "worker": name, "queues": f"[{name}]"})
    publish(redis, HOSTILE, PUBLISHED)
    redis.hset(named("rq:job:rq_pooled-sweep-x"), mapping={"data": "x", **dates, "origin": HOSTILE})
    redis.zadd(named("rq:scheduler:scheduled_jobs"), {"rq_pooled-sweep-x": 1})
    _, out, err = run(*words, *["--json"] * as_json)
    assert (out + err).replace("\n", "").isprintable() and "Traceback" not in err
    if as_json and out:
        json.loads(out)


def test_no_name_forges_a_log_line(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Names and descriptions in a worker's log stay in their line, and what a job raised keeps the lines of its
    traceback.
    """
    name = "q\n12:00:00 forged\x1b[2J"
    redis.rpush(named("rq:queue:") + name, b"gone\nforged\xff")
    queue = Queue(name, connection=redis)
    queue.enqueue("math.factorial", -1, job_id="a", description="first\n12:00:00 forged\x1b]0;x\x07")
    with running_worker(server.url, name, "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0
    assert not any(line.startswith(("12:00:00 forged", "forged")) for line in worker.output().splitlines())
    assert set(worker.output()) & set(map(chr, range(32))) == {"\n"} and "\nValueError: " in worker.output()
    assert r"gone\nforged\xff" in worker.output() and r"first\n12:00:00 forged\x1b]0;x\x07" in worker.output()


def test_huge_names_make_no_huge_log_lines(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Ids, descriptions and errors of 1 MB are cut in a worker's log, a traceback in its middle."""
    huge = "h" * 1_000_000
    redis.rpush(named("rq:queue:q"), huge)
    queue = Queue("q", connection=redis)
    queue.enqueue("math.sqrt", 4, job_id="a", description=huge)
    queue.enqueue("jobs.fail", f"first{huge}last", job_id="b", description="b")
    with running_worker(server.url, "q", "--burst", log=tmp_path / "log", ready=None) as worker:
        assert worker.wait() == 0
    lines = worker.output().splitlines()
    assert max(map(len, lines)) < 70_000 and len(worker.output()) < 250_000
    assert (
        "characters left out]" in worker.output()
        and "last" in worker.output()
        and "(1000000 characters)" in worker.output()
    )


def test_no_text_of_a_record_reaches_a_log_as_it_is() -> None:
    """What stands in a record's text, arguments or exception is one line each, but for the lines of tracebacks."""
    log, stream = logging.getLogger("rq.queue"), io.StringIO()
    handler = logging.StreamHandler(stream)
    log.addHandler(handler)
    keep_lines()
    try:
        log.error(f"name {BAD}")
        log.error("name %s, %s", BAD, ValueError(BAD))
        log.error(BAD.encode())
        try:
            raise ValueError(BAD)
        except ValueError:
            log.exception("failed")
    finally:
        log.removeHandler(handler)
    text = stream.getvalue()
    assert text.count("forged") == 5 and not any(line.startswith("forged") for line in text.splitlines()[:3])
    assert set(text) & set(map(chr, (*range(32), 127))) == {"\n"} and "Traceback (most recent call last)" in text


ODD = ["\udcff\udcfe", "a b", "a:b", "a\nb", "\x1b[2J", "*", "%s{0}", "x" * 100_000, "é", ".", "-"]


@pytest.mark.parametrize(
    "words",
    [
        ("failed",),
        ("failed", "-q"),
        ("requeue",),
        ("requeue", "--all", "-q"),
        ("sweep", "--ghosts", "-q"),
        ("limit",),
        ("limit", "--clear"),
        ("limit", "--rate", "1/5s"),
        ("pause",),
        ("resume",),
        ("rescue", "-q"),
        ("schedule", "cancel"),
        ("schedule-sweep", "--remove"),
        ("schedule-sweep", "--cron", "* * * * *", "--ghosts", "--name"),
        ("schedule-sweep", "--cron", "* * * * *", "--ghosts", "--in-queue"),
        ("schedule-sweep", "--cron", "* * * * *", "--ghosts", "-q"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_command_takes_any_name(redis: Redis, run: Run, words: tuple[str, ...], there: bool) -> None:
    """A name of any characters, of what is there or not, ends in a line or is done, and never in a traceback."""
    for number, name in enumerate(ODD):
        if there:
            job, queue = raw(name), raw(name)
            redis.hset(named(b"rq:job:") + job, mapping={"data": b"x", "status": "scheduled", "origin": queue})
            redis.hset(named(b"rq:job:rq_pooled-sweep-") + job, mapping={"data": b"x", "status": "x", "origin": queue})
            redis.zadd(named("rq:scheduler:scheduled_jobs"), {b"rq_pooled-sweep-" + job: 9e9})
            redis.zadd(named(b"rq:scheduled:") + queue, {job: 9e9})
            redis.zadd(named(b"rq:failed:") + queue, {job: 1})
            redis.sadd(named("rq:queues"), named(b"rq:queue:") + queue)
        separate = [*words[:-1], f"{words[-1]}={name}"] if words[-1].startswith("--") and words[-1] != "--clear" else []
        code, out, err = run(*(separate or (*words, name)))
        assert code in (0, 1, 2, 75), (name[:10], number, out, err)
        assert (out + err).replace("\n", "").isprintable() and "Traceback" not in out + err, name[:10]
        if there and words == ("schedule-sweep", "--remove"):
            assert not redis.exists(named(b"rq:job:rq_pooled-sweep-") + raw(name))
        if there and words == ("schedule", "cancel"):
            assert redis.zscore(named(b"rq:scheduled:") + raw(name), raw(name)) is None


def test_colours_in_a_log_are_rqs_alone(redis: Redis) -> None:
    """Of colours only those that RQ puts around a text reach a terminal; those that others wrote are shown as text."""
    log, stream = logging.getLogger("rq.executions"), io.StringIO()
    handler = logging.StreamHandler(stream)
    log.addHandler(handler)
    keep_lines()
    job = Job("colourful", connection=redis)
    job.description = "\x1b[31mred"
    notty, colorizer.notty = colorizer.notty, False
    try:
        log.error("%s: %s", green("q\x1b[8mueue"), blue("plain"))
        log.error("%s, %s", "\x1b[32mtext\x1b[39;49;00m", job)
        log.error("\x1b[31mall of it")
        log.error("%(name)s", {"name": "\x1b[31m"})
        log.error("first\n%s", "Traceback (most recent call last):\n  \x1b[31mx")
        colorizer.notty = True
        log.error("%s", green("no terminal\x1b[31m"))
        log.error("%s, %s", "Traceback (most recent call last)\nforged", 1)
        try:
            raise ValueError("\x1b[31m")
        except ValueError:
            log.exception("failed")
    finally:
        colorizer.notty = notty
        log.removeHandler(handler)
    text = stream.getvalue()
    first, rest = text.split("\n", 1)
    assert first == "\x1b[32mq\\x1b[8mueue\x1b[39;49;00m: \x1b[34mplain\x1b[39;49;00m"
    assert "\x1b" not in rest and rest.count("\\x1b[31m") == 7 and "\nforged" not in rest
    assert "\\x1b[32mtext" in rest and "\nTraceback (most recent call last):\n  \\x1b[31mx" in rest


BAD = "a\x1b[2Jb\nforged\x07"
