"""Keys, modes and the allow-list as settings: what cannot protect is refused at once, and no secret is shown."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import rq
import signed_jobs
from commands import refusal, run, run_command
from keys import named
from rq import Callback
from signing_scene import K1, K2, Signing
from support import running_worker, wait_until

import rq_pooled
from rq_pooled import Queue
from rq_pooled.config.secret_files import exposure
from rq_pooled.errors import ConfigurationError
from rq_pooled.signing import policy
from rq_pooled.signing.keys import parse_keys


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("k1:", "0 characters"),
        ("k1:short", "5 characters"),
        ("a-secret-:short", "secret of key 1 has 5 characters"),
        ("a-secret-without-a-name", "key 1 has no name"),
        (f"{K1},:another-secret-without", "key 2 has no name"),
        (f"{K1},k1:another-secret-of-k1", "two keys have the name k1"),
        (" , ", "is empty"),
        ("", "is empty"),
    ],
)
def test_keys_that_cannot_protect(signing: Signing, keys: str, words: str) -> None:
    """A queue and a worker refuse keys that are empty, short or without a name, and show no secret."""
    signing.use(keys)
    with pytest.raises(ConfigurationError, match=words) as error:
        Queue("default", connection=signing.redis)
    line = refusal(run(["-m", "rq_pooled", "worker", "--burst", "--url", "{url}", "default"], signing.server.url))
    for text in (str(error.value), line):
        assert words in text and "secret-" not in text


def test_keys_from_a_file(signing: Signing, tmp_path: Path) -> None:
    """Keys stand in a file as in the variable, a line each; one that is missing or empty is refused."""
    path = tmp_path / "keys"
    path.write_text(f"{K2}\n{K1}\n")
    signing.use(None, SIGNING_KEYS_FILE=str(path))
    Queue("default", connection=signing.redis).enqueue(signed_jobs.note, "from a file")
    signing.use(f"{K1},{K2}")
    signing.work()
    assert signing.ran == ["from a file"]
    for content in (None, "", "\n"):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        signing.use(None, SIGNING_KEYS_FILE=str(path))
        with pytest.raises(ConfigurationError, match="cannot be read" if content is None else "is empty"):
            policy.current()


def test_a_file_of_keys_that_all_may_read_is_warned_of_once(signing: Signing, caplog: pytest.LogCaptureFixture) -> None:
    """Keys that every user of the host may read are used and warned of once; a folder that is closed hides them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "keys")
        # As some editors begin a file.
        path.write_text(f"{K1}\n", encoding="utf-8-sig")
        path.chmod(0o644)
        signing.use(None, SIGNING_KEYS_FILE=str(path))
        for _ in range(2):
            policy.use(None)
            keys = policy.current().keys
            assert keys is not None and keys.name == b"k1"
        (line,) = [line.getMessage() for line in caplog.records]
        assert f"the file {path} (SIGNING_KEYS_FILE) can be read by every user" in line and "0644" in line
        os.chmod(folder, 0o750)
        assert exposure(str(path), "x") == ""
        os.chmod(folder, 0o755)
        path.chmod(0o640)
        assert exposure(str(path), "x") == exposure("/nowhere", "x") == ""


@pytest.mark.parametrize("setting", ["SIGNING", "SIGNING_UNBOUND"])
def test_modes_without_keys(signing: Signing, setting: str) -> None:
    """Who asks for signatures and has no keys is refused, instead of running anything."""
    signing.use(None, **{setting: "require" if setting == "SIGNING" else "yes"})
    with pytest.raises(ConfigurationError, match="there are no keys"):
        Queue("default", connection=signing.redis)
    assert "there are no keys" in refusal(
        run(["-m", "rq_pooled", "worker", "--burst", "--url", "{url}", "default"], signing.server.url)
    )


def test_no_secret_is_shown(signing: Signing) -> None:
    """`rq-pooled settings`, reprs and errors about other settings show no key, and no option takes one."""
    shown = run_command(signing.server.url, "settings").stdout
    assert "***" in next(line for line in shown.splitlines() if line.startswith("RQ_POOLED_SIGNING_KEYS "))
    helped = run_command(signing.server.url, "worker", "--help").stdout
    assert "--signing-keys-file" in helped and "--signing-keys " not in helped
    settings = rq_pooled.config.Settings.load({"signing_keys": K1})
    for text in (shown, repr(settings), repr(policy.policy_of(settings)), repr(parse_keys(K1, ""))):
        assert K1.partition(":")[2] not in text
    with pytest.raises(ConfigurationError) as error:
        rq_pooled.config.Settings.load({"signing_keys": 5})
    assert "***" in str(error.value)


def test_accept_unsigned(signing: Signing) -> None:
    """While keys are introduced jobs of old code run, are counted and said; their results are read without keys."""
    signing.use(SIGNING="accept-unsigned")
    plain = rq.Queue("default", connection=signing.redis)
    job = plain.enqueue(signed_jobs.with_meta, "old", job_id="old", meta={"a": 1})
    plain.enqueue(signed_jobs.note, "dependent", depends_on=job, meta={"a": 1}, job_id="dependent")
    plain.enqueue(signed_jobs.fail_once, "retried", retry=rq.Retry(1), on_success=Callback(signed_jobs.on_success))
    queue = Queue("default", connection=signing.redis)
    for job_id in ("new", "forged", "stripped"):
        queue.enqueue(signed_jobs.note, job_id, job_id=job_id, meta={"a": 1})
    signing.redis.hset(named("rq:job:forged"), "success_callback_name", "os.abort")
    signing.redis.hdel(named("rq:job:stripped"), "rq_pooled:signature")
    output = signing.work()
    assert "jobs without a signature ran" in output
    assert output.count("without a signature") == 1
    assert sorted(word for word in signing.ran if "success" not in word) == ["dependent", "new", "old", "retried"]
    assert signing.refused("forged") and signing.refused("stripped")
    job.refresh()
    assert (job.return_value(), job.meta) == ("old", {"a": 1, "count": 1})
    dependent = plain.fetch_job("dependent")
    assert dependent is not None and dependent.meta == {"a": 1}


def test_what_workers_count(signing: Signing, tmp_path: Path) -> None:
    """Jobs that ran without a signature and jobs that were not loaded are told by `stats` and, where there are keys, by
    `check`."""
    signing.use(SIGNING="accept-unsigned")
    rq.Queue("default", connection=signing.redis).enqueue(signed_jobs.note, "unsigned")
    Queue("default", connection=signing.redis).enqueue(signed_jobs.note, "refused", job_id="a")
    signing.redis.hset(named("rq:job:a"), "timeout", 5)
    url = signing.server.url
    with running_worker(url, "default", log=tmp_path / "log", RQ_POOLED_HEARTBEAT_INTERVAL="0.2"):
        expected = "1 job ran without a signature, 1 was not loaded (by the workers that run now and have keys)"
        wait_until(lambda: expected in run_command(url, "check").stdout, 30)
        signing.use(None)
        assert "signature" not in run_command(url, "check").stdout
        found = json.loads(run_command(url, "stats", "--json").stdout)
    counters = [one["worker"]["counters"] for one in found["processes"] if one["worker"]]
    assert [(one["unsigned"], one["refused"]) for one in counters] == [(1, 1)]


@pytest.mark.parametrize("keys", [K1, None])
def test_allowed(signing: Signing, keys: str | None) -> None:
    """A job that calls what ALLOWED does not name is not loaded, and neither is one with such a callback."""
    signing.use(keys, ALLOWED="signed_jobs.note, signed_jobs.on_*, builtins.*")
    queue = Queue("default", connection=signing.redis)
    queue.enqueue(signed_jobs.note, "allowed", on_success=Callback(signed_jobs.on_success), job_id="a")
    queue.enqueue(signed_jobs.note, "described", description="Say a word")
    queue.enqueue("os.getpid", job_id="other")
    queue.enqueue("signed_jobs.Redis.from_url", signed_jobs.Evil(), job_id="deeper")
    queue.enqueue(signed_jobs.note, "called back", on_failure=Callback("os.abort"), job_id="callback")
    signing.work()
    assert signing.ran == ["allowed", "success of a", "described"]
    for job_id, name in (("other", "os.getpid"), ("deeper", "signed_jobs.Redis.from_url"), ("callback", "os.abort")):
        assert signing.refused(job_id).endswith(f"{name!r}, which ALLOWED does not name")


def test_what_a_star_stands_for() -> None:
    """A star stands for letters, digits and underscores of one name, and never for one of Python's own names."""
    found = policy.Policy(allowed=("shop.tasks.*", "billing.charge", "*_job", "a.on_*"))
    for name in ("shop.tasks.x", "shop.tasks._x", "shop.tasks.été", "billing.charge", "a_job", "a.on_x"):
        found.check_allowed(name)
    bad = [
        "shop.tasks",
        "shop.tasks.",
        "shop.tasks.a.b",
        "shop_tasks.x",
        "billing.charge\n",
        " billing.charge",
        "x.on_x",
    ]
    bad += [f"shop.tasks.{word}" for word in ("x\n", "\nx", "\0", "os:system", "x\uff0ey", "x y", "*", "x()", "-")]
    bad += [f"shop.tasks.{word}" for word in ("__setattr__", "__delattr__", "__class__", "__builtins__")]
    for name in (*bad, "", ".", "__import___job", "a.on_"):
        with pytest.raises(rq_pooled.errors.NotVerified):
            found.check_allowed(name)


def test_allowed_methods(signing: Signing) -> None:
    """Of a signed job that calls a method, ALLOWED names the class, too."""
    signing.use(ALLOWED="signed_jobs.Order.charge")
    queue = Queue("default", connection=signing.redis)
    queue.enqueue(signed_jobs.Order().charge, job_id="charge")
    queue.enqueue(signed_jobs.Order().cancel, job_id="cancel")
    signing.work()
    assert signing.status("charge") == "finished" and "signed_jobs.Order.cancel" in signing.refused("cancel")


def test_nothing_is_loaded_without_keys() -> None:
    """A process without keys signs nothing: its queue has RQ's own serializer, and loads no module for signatures."""
    code = (
        "import sys, redis, rq.serializers, rq_pooled; q = rq_pooled.Queue('x', connection=redis.Redis());"
        "assert q.serializer is rq.serializers.DefaultSerializer; assert 'to_dict' not in vars(q.create_job(print))"
    )
    result = run([sys.executable, "-c", code][1:])
    assert result.returncode == 0, result.stderr
