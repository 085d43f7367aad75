"""The command line: it teaches, it refuses bad input in one line, and its worker and demo run for real."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forked
import psutil
import pytest
from redis import Redis
from rq import Queue
from rq.cli.workers import worker as rq_worker
from support import ROOT

from rq_pooled.cli import demo, options, worker
from rq_pooled.cli import main as cli
from rq_pooled.cli.settings import settings_as_markdown
from rq_pooled.config import Settings
from rq_pooled.config.typos import misspelt
from rq_pooled.embedded import EmbeddedServer

SECRET = "s3cr#t"  # with the character that cuts a URL in two when nobody encoded it

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; return its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(list(arguments))
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def command(*arguments: str, timeout: float = 40, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m rq_pooled`` as a user would, warnings being errors, and return what came of it."""
    line = [sys.executable, "-W", "error", "-m", "rq_pooled", *arguments]
    return forked.run(line, {**os.environ, **environ}, timeout, ROOT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "nope"),
        (["worker", "--nope"], "--nope"),
        (["worker", "--concurrency", "0"], "CONCURRENCY"),
        (["worker", "--concurrency", "many"], "CONCURRENCY"),
        (["worker", "--max-connections", "2"], "MAX_CONNECTIONS"),
        (["worker", "--url", f"http://:{SECRET}@localhost"], "http"),
        (["worker", "--url", f"redis://:{SECRET}@localhost/0"], "%23"),
        (["worker", "--url", "localhost:6379"], "redis://"),
        (["worker", "--worker-class", "rq.Worker"], "rq_pooled.Worker"),
        (["worker", "--worker-class", "nowhere.Worker"], "--worker-class"),
        (["worker", "--queue-class", "rq.Nope"], "--queue-class"),
        (["worker", "--job-class", "rq.Nope"], "--job-class"),
        (["worker", "--serializer", "nowhere"], "--serializer"),
        (["worker", "--exception-handler", "nowhere.handler"], "--exception-handler"),
        (["worker", "--config", "nowhere"], "--config"),
        (["worker", "--dequeue-strategy", "fair"], "round_robin"),
        (["worker", "--verbose", "--quiet"], "--quiet"),
        (["worker", "--max-jobs", "some"], "--max-jobs"),
        (["worker", "--pid", "/nowhere/pid"], "--pid"),
        (["demo", "--jobs", "0"], "--jobs"),
        (["demo", "--concurrency", "many"], "--concurrency"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(run: Run, arguments: list[str], words: str) -> None:
    """What the user typed wrong is named on one line, without a traceback or a password, and ends in 2."""
    code, out, err = run(*arguments)
    assert code == 2
    assert err.count("\n") == 1 and err.startswith("rq-pooled: ")
    assert words in err and SECRET not in err and "s3cr" not in err
    assert out == ""


def test_wrong_environment_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad value in the environment is refused with the variable's name."""
    monkeypatch.setenv("RQ_POOLED_POOL_TIMEOUT", "soon")
    code, _, err = run("worker")
    assert code == 2 and "RQ_POOLED_POOL_TIMEOUT" in err


def test_broken_settings_module_is_one_line(run: Run, tmp_path: Path) -> None:
    """A settings module that fails while it is imported is the user's mistake, not ours: one line, 2."""
    (tmp_path / "broken_settings.py").write_text("1 / 0\n")
    code, _, err = run("worker", "--path", str(tmp_path), "--config", "broken_settings")
    assert code == 2 and "ZeroDivisionError" in err and err.count("\n") == 1


def test_unreachable_server_is_exit_code_75() -> None:
    """A server that refuses is one line naming it, without the password, and 75: trying again may help."""
    done = command("worker", "--burst", RQ_POOLED_URL="redis://:hidden@127.0.0.1:1/0", RQ_POOLED_GUARD_WAIT="0")
    assert done.returncode == 75
    assert "127.0.0.1:1" in done.stderr and "hidden" not in done.stderr and "Traceback" not in done.stderr


def test_help_teaches_with_examples(run: Run) -> None:
    """--help, -h and no argument at all show commands to copy and where settings are read from."""
    shown = [run("--help"), run("-h"), run()]
    for code, out, _ in shown:
        assert code == 0
        assert "rq-pooled worker --concurrency 10 high default" in out and "RQ_POOLED_" in out
    code, out, _ = run("--version")
    assert code == 0 and out.startswith("rq_pooled ")


def test_the_list_of_commands_is_not_cut_off(run: Run) -> None:
    """In a terminal of 80 columns each command is told in one whole line."""
    listed = run("--help")[1].split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert len(listed) == len(cli.cli.commands)
    assert not [line for line in listed if line.endswith("...") or len(line) > 80]


def test_worker_help_lists_everything_once(run: Run) -> None:
    """The worker's help has a line for each setting and for each option of rq worker, none of them twice."""
    code, out, _ = run("worker", "--help")
    assert code == 0
    first = out.index("Settings that matter first:") < out.index("--concurrency") < out.index("Horses and jobs:")
    assert first and "Further settings:" not in out.partition("Settings that matter first:")[0]
    assert out.index("--app") < out.index("Horses and jobs:") < out.index("--heartbeat-ttl")
    flags = [line.split()[0].rstrip(",") for line in out.splitlines() if line.startswith("  -")]
    assert len(flags) == len(set(flags))
    for setting in Settings.rows():
        shown = setting.name == "url" or not setting.secret
        assert (f"--{setting.name.replace('_', '-')} " in out) is shown
    for parameter in rq_worker.params:
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in out


def test_every_option_of_rq_worker_is_used() -> None:
    """A newer RQ with a further option is noticed here: each one that we accept is read by our command."""
    source = inspect.getsource(worker)
    settings = {setting.name for setting in Settings.rows()}
    for name in {parameter.name for parameter in rq_worker.params} - settings:
        assert name is not None
        assert f'options["{name}"]' in source or name.endswith("_class"), f"rq worker's {name} has no effect here"


def test_numbers_are_shown_as_people_write_them() -> None:
    """No setting is shown with an exponent."""
    shown = [options.shown(setting.default) for setting in Settings.rows()]
    assert "2592000" in shown and not [text for text in shown if "e+" in text]


def test_misspelt_variables_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is nearly a setting is pointed out; one that is not like any, or one of Kubernetes, is not."""
    for name in ("RQ_POOLED_CONCURENCY", "RQ_POOLED_SERVICE_HOST", "RQ_POOLED_PORT", "RQ_POOLED_TEST_SERVER"):
        monkeypatch.setenv(name, "7")
    code, _, err = run("settings")
    assert (code, err.count("\n")) == (0, 1) and "did you mean RQ_POOLED_CONCURRENCY?" in err
    assert misspelt({"RQ_POOLED_SOCKET_TIME_OUT": "1", "PATH": "/", "RQ_POOLED_URL": "x"})[0].endswith(
        "SOCKET_TIMEOUT?"
    )


def test_settings_document_is_current() -> None:
    """docs/settings.md is what `make docs` writes."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings_as_markdown()


def test_settings_are_shown_without_passwords(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rq-pooled settings` shows what the environment gives, and the URL without its password."""
    monkeypatch.setenv("RQ_POOLED_URL", "redis://user:hidden@example.org:6380/1")
    monkeypatch.setenv("RQ_POOLED_CONCURRENCY", "7")
    code, out, _ = run("settings")
    assert code == 0 and "hidden" not in out and "example.org:6380/1" in out
    assert [line.split()[1] for line in out.splitlines() if "CONCURRENCY" in line] == ["7"]


def test_worker_runs_jobs_of_stock_rq(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """`rq-pooled worker --burst` runs what a plain rq.Queue enqueued, from several queues, and ends with 0."""
    jobs = [Queue(name, connection=redis).enqueue("math.sqrt", 16) for name in ("high", "low")]
    pid = tmp_path / "pid"
    done = command(
        "worker", "--burst", "--concurrency", "2", "--pid", str(pid), "high", "low", RQ_POOLED_URL=server.url
    )
    assert done.returncode == 0, done.stderr
    assert [job.return_value(refresh=True) for job in jobs] == [4.0, 4.0]
    assert pid.read_text().isdigit()


def test_argument_goes_before_environment_and_module(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """A value on the command line makes a wrong one elsewhere irrelevant; the module names server and queues."""
    (tmp_path / "shop_settings.py").write_text(
        f"REDIS_URL = {server.url!r}\nQUEUES = ['from-module']\nRQ_POOLED_CONCURRENCY = 0\n"
    )
    job = Queue("from-module", connection=redis).enqueue("math.sqrt", 9)
    arguments = ["worker", "--burst", "-P", str(tmp_path), "-c", "shop_settings"]
    refused = command(*arguments)
    assert refused.returncode == 2 and "CONCURRENCY" in refused.stderr
    done = command(*arguments, "--concurrency", "1")
    assert done.returncode == 0, done.stderr
    assert job.return_value(refresh=True) == 3.0


def test_server_named_by_host_as_rq_does(redis: Redis, server: EmbeddedServer) -> None:
    """Without a URL, REDIS_HOST and REDIS_PORT name the server, as they do for rq worker."""
    job = Queue(connection=redis).enqueue("math.sqrt", 25)
    done = command("worker", "--burst", REDIS_HOST=server.host, REDIS_PORT=str(server.port))
    assert done.returncode == 0, done.stderr
    assert job.return_value(refresh=True) == 5.0


@pytest.mark.parametrize("words", [("worker", "--burst"), ("stats",), ("check",), ("limit", "q")])
def test_every_command_finds_the_server_of_redis_host(
    redis: Redis, server: EmbeddedServer, words: tuple[str, ...]
) -> None:
    """Where no URL is set, each command goes to REDIS_HOST; Kubernetes' form of REDIS_PORT is read."""
    for port in (str(server.port), f"tcp://10.0.0.1:{server.port}"):
        done = command(*words, REDIS_HOST=server.host, REDIS_PORT=port, SENTINEL="1")
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "DICT_CONFIG = {'version': 1, 'handlers': {'c': {'class': 'nope.Nope'}}}",
            "DICT_CONFIG in --config cannot be used",
        ),
        ("DICT_CONFIG = 5", "DICT_CONFIG in --config cannot be used"),
        ("QUEUES = 5", "QUEUES in --config is 5: write a list of names"),
        ("QUEUES = 'default'", "QUEUES in --config is 'default': write a list of names"),
        ("QUEUES = ['a', 5]", "write a list of names"),
        ("NAME = 5", "NAME in --config is 5: it must be a text"),
        ("SENTINEL = 5", "SENTINEL in --config cannot be used"),
        ("SENTINEL = {'INSTANCES': 5}", "SENTINEL in --config cannot be used"),
        ("SENTINEL = {'INSTANCES': [('127.0.0.1', 'x')], 'MASTER_NAME': 'm'}", "SENTINEL in --config cannot be used"),
        (
            "SENTINEL = {'INSTANCES': [('127.0.0.1', 1)], 'MASTER_NAME': 'm', 'CONNECTION_KWARGS': {'no': 1}}",
            "SENTINEL in --config cannot be used",
        ),
        ("REDIS_HOST = 'a b'", "REDIS_HOST is not the name or address of a host"),
        ("REDIS_HOST = 'h'; REDIS_PORT = 'x'", "REDIS_PORT is not a port"),
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit"),
    ],
)
def test_mistakes_in_the_settings_module(tmp_path: Path, line: str, words: str) -> None:
    """Each mistake in the module of -c is one line that names it, with 2, and nothing is half started."""
    (tmp_path / "mistaken_settings.py").write_text(line + "\n")
    done = command("worker", "--burst", "--path", str(tmp_path), "-c", "mistaken_settings")
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_demo_reports_what_happened(_server_available: None) -> None:
    """The same jobs end the same way with both workers; ours needs three connections at most, stock RQ more."""
    done = command("demo", "--jobs", "50", "--concurrency", "4", "--json", timeout=55)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    ours, stock = report.pop("rq_pooled"), report.pop("stock_rq")
    for cost in (ours, stock):
        assert (cost["finished"], cost["failed"], cost["retries"]) == (48, 2, 4)
        assert cost["seconds"] > 0 and cost["jobs_per_second"] > 0
    assert 1 <= ours["most_connections"] <= 3 and ours["connections_opened"] <= 3
    assert stock["most_connections"] >= 4 and stock["connections_opened"] >= 50
    assert report["words"] > 0
    table = demo.Report(**report, rq_pooled=demo.Cost(**ours), stock_rq=demo.Cost(**stock)).as_table()
    assert "stock RQ" in table and "not speed" in table and max(map(len, table.splitlines())) <= 80


def test_terminated_demo_leaves_nothing_behind(_server_available: None) -> None:
    """SIGTERM to the demo also ends its worker, the horses and the server."""
    play = subprocess.Popen(
        [sys.executable, "-m", "rq_pooled", "demo", "--jobs", "1000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        process, deadline = psutil.Process(play.pid), time.monotonic() + 40
        family: list[psutil.Process] = []
        while len(family) < 3 and time.monotonic() < deadline:  # the server, the worker and a horse at least
            family = process.children(recursive=True)
            time.sleep(0.05)
        assert len(family) >= 3
        play.send_signal(signal.SIGTERM)
        assert play.wait(30) == 128 + signal.SIGTERM
        _, alive = psutil.wait_procs(family, timeout=5)
        assert alive == []
    finally:
        play.kill()
        play.wait()


def test_examples_run(redis: Redis, server: EmbeddedServer) -> None:
    """The example's producer gets the results that a worker started in its folder made."""
    environ = {**os.environ, "RQ_POOLED_URL": server.url, "PYTHONPATH": str(ROOT)}
    examples = ROOT / "examples"
    producer = subprocess.Popen(
        [sys.executable, "enqueue.py"], cwd=examples, env=environ, stdout=subprocess.PIPE, text=True
    )
    worker = subprocess.run(
        [sys.executable, "-m", "rq_pooled", "worker", "--max-idle-time", "2", "--concurrency", "2"],
        check=False, cwd=examples, env=environ, capture_output=True, text=True, timeout=40,
    )  # fmt: skip
    out, _ = producer.communicate(timeout=40)
    assert worker.returncode == 0, worker.stderr
    assert producer.returncode == 0
    assert sorted(line.split()[0] for line in out.splitlines()) == sorted(path.name for path in examples.glob("*.py"))
    assert all(len(line.split()[1]) == 64 for line in out.splitlines())


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["top", "stats", "sweep --ghosts", "rescue", "check"])
def test_closed_streams_are_no_error(redis: Redis, server: EmbeddedServer, words: str, redirection: str) -> None:
    """A command whose output nobody wants does its work."""
    done = subprocess.run(
        f"{sys.executable} -m rq_pooled {words} --url {server.url} {redirection}",
        shell=True, check=False, capture_output=True, text=True, timeout=40, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(("words", "code"), [("stats", 75), ("stats --json", 75), ("--help", 75), ("check", 3)])
def test_full_disk_is_one_line(redis: Redis, server: EmbeddedServer, words: str, code: int) -> None:
    """Output that cannot be written ends a command with 75, ``check`` with 3, and no traceback."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rq_pooled", *words.split()],
            check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=40, cwd=ROOT,
            env={**os.environ, "RQ_POOLED_URL": server.url},
        )  # fmt: skip
    assert done.returncode == code and "No space left" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_what_stdout_cannot_encode_is_a_question_mark(redis: Redis, server: EmbeddedServer) -> None:
    """A queue's name in an alphabet that the terminal does not know ends no command."""
    Queue("\u043f\u043e\u0447\u0442\u0430", connection=redis).enqueue(print)
    done = command("stats", "--url", server.url, PYTHONIOENCODING="iso8859-1")
    assert (done.returncode, done.stderr) == (0, "") and "????? " in done.stdout


def test_settings_as_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """settings --json has each setting with its value, and no password."""
    monkeypatch.setenv("RQ_POOLED_URL", "redis://:s3cr3t@127.0.0.1:1/0")
    monkeypatch.setenv("RQ_POOLED_SIGNING_KEYS", "a:" + "s3cr3t" * 8)
    code, out, _ = run("settings", "--json")
    found = json.loads(out)
    assert code == 0 and "s3cr3t" not in out and len(found) == len(Settings.rows())
    assert found["RQ_POOLED_CONCURRENCY"]["value"] == 1 and found["RQ_POOLED_PRELOAD"]["value"] == []
