"""DESCRIBE: what of a job's call is kept at its enqueue, and what of any description is shown afterwards."""

from __future__ import annotations

import gc
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rq
import secret_jobs
from commands import refusal, run_command
from redis import Redis
from rq.job import JobStatus
from secret_jobs import SECRET
from support import drop_pools, running_worker, wait_until

import rq_pooled
from rq_pooled.config import Settings, describing
from rq_pooled.config.describing import shown_description
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError
from rq_pooled.health import failed_jobs
from rq_pooled.redaction import Call, is_secret, redact


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    describing.forget()
    drop_pools()


def describe_by(name: Any) -> None:
    """Have this process describe by a setting."""
    describing.use(Settings(describe=name))


def test_nothing_changes_unless_it_is_asked_for(redis: Redis) -> None:
    """Without DESCRIBE a description is RQ's, in the hash and where it is shown."""
    job = rq_pooled.Queue(connection=redis).enqueue(secret_jobs.pay, 1, SECRET)
    assert job.description == rq.Queue(connection=redis).enqueue(secret_jobs.pay, 1, SECRET).description
    assert shown_description(job.description) == job.description == f"secret_jobs.pay(1, '{SECRET}')"


@pytest.mark.parametrize("way", ["enqueue", "enqueue_in", "enqueue_many", "depends_on"])
def test_secrets_do_not_reach_the_hash(redis: Redis, way: str) -> None:
    """A secret argument stands in no field but the data, however the job is enqueued and the argument is passed."""
    describe_by("rq_pooled.redaction.redact")
    queue = rq_pooled.Queue(connection=redis)
    call = (secret_jobs.pay, 7, SECRET)
    if way == "enqueue":
        job = queue.enqueue(*call, password=SECRET, note="x")
    elif way == "enqueue_in":
        job = queue.enqueue_in(rq.queue.timedelta(hours=1), *call, password=SECRET, note="x")
    elif way == "enqueue_many":
        more = {"password": SECRET, "note": "x"}
        (job,) = queue.enqueue_many([rq_pooled.Queue.prepare_data(call[0], args=call[1:], kwargs=more)])
    else:
        job = queue.enqueue(*call, password=SECRET, note="x", depends_on=queue.enqueue(secret_jobs.pay, 1, "a"))
    fields = redis.hgetall(job.key)
    assert fields[b"description"].decode() == (
        "secret_jobs.pay(_order=7, _card_token=[redacted], password=[redacted], note='x')"
    )
    assert not [name for name, value in fields.items() if SECRET.encode() in value and name != b"data"]
    assert shown_description(fields[b"description"].decode()) == fields[b"description"].decode()


def test_what_is_no_plain_value_with_a_name_is_left_out() -> None:
    """Positional arguments of a function that is only named, containers, objects, long texts and URLs are not shown."""
    long, url = "x" * 100, "redis://:pw@h"
    call = Call("f", (1,), {"a": [1], "b": {"k": 1}, "c": object(), "d": long, "e": url, "f": None, "g": 1.5}, "")
    assert redact(call) == "f(…, a=…, b=…, c=…, d=…, e=…, f=None, g=1.5)"
    assert all(map(is_secret, ("password", "dbPasswd", "API_KEY", "apikey", "x_auth", "Authorization", "sessionToken")))
    assert not any(map(is_secret, ("author", "order", "pinned", "cards_of_a_game", "compass")))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"f('{SECRET}')", "f(…)"),
        (f"f(1, token='{SECRET}', n=3)", "f(…, token=[redacted], n=3)"),
        (f"f(token='{SECRET}', n=3)", "f(token=[redacted], n=3)"),
        (f"f(a='(', token=\"{SECRET}', n=1\")", "f(a='(', token=[redacted])"),
        (f"f(a='redis://:{SECRET}@h/0')", "f(a=…)"),
        (f"f(a={{'password': '{SECRET}'}})", "f(…)"),
        (f"f(token='{SECRET}...", "f(…)"),
        (f"f(a=1, {SECRET}", "f(…)"),
        (f"f(a=1) {SECRET}", "f(…)"),
        (f"f({'(' * 5000}{SECRET}", "f(…)"),
        (f"f(a='{SECRET}\n')", f"f(a='{SECRET}\n')"),
        ("the nightly report", "the nightly report"),
        ("f()", "f()"),
        ("p." + "m" * 300 + "(token='sk')", "p." + "m" * 300 + "(token=[redacted])"),
        ("m" * 5000 + "(token='sk')", "…"),
        (" f(token='sk')", "…"),
    ],
)
def test_what_others_wrote_is_taken_apart_with_care(text: str, shown: str) -> None:
    """Of a description by plain RQ only plain values with harmless names are shown; the rest is left out."""
    describe_by("rq_pooled.redaction.redact")
    assert shown_description(text) == shown and shown_description(shown) == shown


@pytest.mark.parametrize("name", ["broken", "no_text", "leaving", "only_order"])
def test_a_function_that_fails_costs_no_job_and_shows_nothing(
    redis: Redis, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A describe that raises or returns no text leaves the function's name, and says so once, without the values."""
    caplog.set_level(logging.WARNING, "rq_pooled")
    describe_by(f"secret_jobs.{name}")
    queue = rq_pooled.Queue(connection=redis)
    found = [queue.enqueue(secret_jobs.pay, 7, SECRET).description for _ in range(2)]
    expected = "secret_jobs.pay of 7" if name == "only_order" else "secret_jobs.pay(…)"
    assert found == [expected] * 2 and queue.count == 2
    assert SECRET not in shown_description(f"f(1, '{SECRET}')")
    assert len(caplog.records) == (name != "only_order") and SECRET not in caplog.text


class Odd:
    """An argument whose repr cannot be written."""

    def __repr__(self) -> str:
        return "odd \ud800"


def test_no_description_costs_a_job(redis: Redis) -> None:
    """A text that cannot be written to Redis, from DESCRIBE, an argument or its repr, is written as it can be."""

    queue = rq_pooled.Queue(connection=redis)
    describe_by(lambda call: "half \udfff, byte \udcff, whole \U0001f600")
    assert queue.enqueue(len, [1]).description == "half \\udfff, byte \\xff, whole \U0001f600"
    describe_by(None)
    assert queue.enqueue(len, Odd()).description == "builtins.len(odd \\ud800)"
    assert queue.enqueue(len, [1], description="\ud800").description == "\\ud800"
    assert redis.llen(queue.key) == 3


def test_what_has_to_be_awaited_describes_nothing(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """An asynchronous DESCRIBE is refused at once, and one that returns a coroutine costs no job and no warning."""

    async def later(call: Call) -> str:
        return "later"

    with pytest.raises(ConfigurationError, match="DESCRIBE is asynchronous"):
        describe_by(later)
    describe_by(lambda call: later(call))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rq_pooled.Queue(connection=redis).enqueue(len, [1]).description == "builtins.len(…)"
        gc.collect()
    assert "DESCRIBE returned coroutine" in caplog.text


def test_a_callable_and_a_wrong_name(redis: Redis) -> None:
    """A callable serves as the setting; a name that leads to nothing is refused before anything is enqueued."""
    describe_by(lambda call: call.function.upper())
    assert rq_pooled.Queue(connection=redis).enqueue(secret_jobs.pay, 1, SECRET).description == "SECRET_JOBS.PAY"
    for name in ("nowhere.at_all", "secret_jobs.SECRET", "redact", "a b.c"):
        with pytest.raises(ConfigurationError, match="DESCRIBE"):
            describe_by(name)


@pytest.mark.parametrize("describe", ["rq_pooled.redaction.redact", "secret_jobs.only_order"])
def test_a_secret_is_shown_nowhere(server: EmbeddedServer, redis: Redis, tmp_path: Path, describe: str) -> None:
    """Worker's log, list of failures, commands and page show no secret of a job that plain RQ enqueued."""
    queue = rq.Queue("q", connection=redis)
    failing, fine = (
        queue.enqueue(secret_jobs.refuse, 1, SECRET),
        queue.enqueue(secret_jobs.pay, 1, "t", card_pin=SECRET),
    )
    with running_worker(server.url, "q", log=tmp_path / "log", RQ_POOLED_DESCRIBE=describe) as worker:
        wait_until(lambda: failing.get_status() == JobStatus.FAILED and fine.get_status() != JobStatus.QUEUED)
        worker.wait_for(fine.id)
        assert worker.stop() == 0
        assert SECRET not in worker.output() and "secret_jobs.refuse(…" in worker.output()
    describe_by(describe)
    (one,) = failed_jobs(connection=redis)["jobs"]
    assert one["description"].startswith("secret_jobs.refuse")
    for words in (["failed", failing.id], ["failed"], ["failed", failing.id, "--json"], ["rescue"]):
        printed = run_command(server.url, *words, RQ_POOLED_DESCRIBE=describe)
        shown = json.loads(printed.stdout)["description"] if "--json" in words else printed.stdout
        assert printed.returncode == 0 and SECRET not in shown, printed
    flask = pytest.importorskip("flask")
    from rq_pooled.flask import RQPooled

    describing.forget()
    app = flask.Flask("shop")
    app.config.update(RQ_POOLED_URL=server.url, RQ_POOLED_DESCRIBE=describe)
    app.register_blueprint(RQPooled(app).blueprint(authorize=lambda: True), url_prefix="/rq")
    queue.enqueue_in(rq.queue.timedelta(hours=1), secret_jobs.pay, 1, SECRET)
    page = app.test_client().get("/rq/")
    assert page.status_code == 200 and "secret_jobs.refuse" in page.text and SECRET not in page.text


def test_a_log_of_json_shows_no_arguments(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """The attributes of a failed job's record, which formatters of JSON print, show arguments only without DESCRIBE."""
    for describe, shown in (("rq_pooled.redaction.redact", False), (None, True)):
        environ = {} if describe is None else {"RQ_POOLED_DESCRIBE": describe}
        job = rq.Queue("q", connection=redis).enqueue(secret_jobs.refuse, 1, password=SECRET, description="a call")
        with running_worker(server.url, "-c", "secret_jobs", "q", log=tmp_path / str(shown), **environ) as worker:
            wait_until(lambda: job.get_status() == JobStatus.FAILED, what="the job")  # noqa: B023 - ends in this turn
            assert worker.stop() == 0
            assert '"queue": "q"' in worker.output() and (SECRET in worker.output()) == shown


def test_a_wrong_setting_ends_a_worker_at_once(server: EmbeddedServer) -> None:
    """A worker whose DESCRIBE cannot be imported starts nothing."""
    line = refusal(run_command(server.url, "worker", RQ_POOLED_DESCRIBE="nowhere.at_all"))
    assert "DESCRIBE names 'nowhere.at_all', which cannot be imported" in line
