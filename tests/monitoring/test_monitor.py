"""The commands that show and check, and Prometheus text: what they print is what the server and the jobs say."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import stats_jobs
from click.testing import CliRunner
from commands import environment, run_command
from conftest import IN_CI
from keys import named
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.utils import now, utcformat
from rq.worker import Worker as RQWorker
from support import ROOT, running_worker, wait_until

from rq_pooled import health
from rq_pooled.cli.connections import connection_lines
from rq_pooled.cli.main import cli
from rq_pooled.cli.tables import table
from rq_pooled.cli.top import Paces, screen
from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.failed.tracebacks import exception_of
from rq_pooled.metrics import metrics
from rq_pooled.monitoring.neighbours import ask_neighbours
from rq_pooled.monitoring.overview import overview
from rq_pooled.monitoring.verdict import verdict
from rq_pooled.monitoring.workers import workers
from rq_pooled.pool import Pool

NOTHING_ENDED = dict.fromkeys(("finished", "failed", "finished_per_minute", "failed_per_minute"), 0)
FAST = {"RQ_POOLED_HEARTBEAT_INTERVAL": "0.2", "RQ_POOLED_GUARD_INTERVAL": "0.2"}


def as_json(url: str, *words: str) -> Any:
    """Return what a command prints with --json."""
    result = run_command(url, *words, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def busy(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> Iterator[Any]:
    """A worker that has run 30 jobs, 5 of them in vain, and a queue nobody works on."""
    with running_worker(server.url, "a", log=tmp_path / "log", concurrency=3, **FAST) as worker:
        queue = Queue("a", connection=redis)
        for i in range(30):
            queue.enqueue(stats_jobs.fail if i < 5 else stats_jobs.succeed, str(tmp_path))
        Queue("alone", connection=redis).enqueue(stats_jobs.succeed, str(tmp_path))

        def done() -> bool:
            workers = [one["worker"]["counters"] for one in health.processes(redis) if one["worker"]]
            return [(c["finished"], c["failed"]) for c in workers] == [(25, 5)]

        wait_until(done, 40, "30 jobs")
        yield worker


def test_stats(server: EmbeddedServer, busy: Any) -> None:
    """stats shows each process with its counters, the sums, and each queue; --json has the same numbers."""
    shown = run_command(server.url, "stats")
    assert shown.returncode == 0 and shown.stderr == ""
    (line,) = [line for line in shown.stdout.splitlines() if f":{busy.pid} " in line]
    assert line.split()[1:4] == ["worker", "2", "0/3"] and line.split()[6:9] == ["25", "5", "0"]
    assert "claims 30, finished 25, failed 5" in shown.stdout
    assert re.search(r"^alone +1 ", shown.stdout, re.MULTILINE)
    data = as_json(server.url, "stats")
    assert data["processes"][0]["worker"]["counters"]["finished"] == 25
    assert {queue["name"]: queue["length"] for queue in data["queues"]} == {"a": 0, "alone": 1}
    assert {queue["name"]: queue["failed"] for queue in data["queues"]} == {"a": 5, "alone": 0}


def test_stats_say_what_a_star_means(server: EmbeddedServer, busy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a figure is marked as old, a line below the table says what the mark means; else there is none."""
    assert "* older" not in run_command(server.url, "stats").stdout
    monkeypatch.setattr("rq_pooled.cli.tables.OLD", 0.0)
    monkeypatch.setattr("rq_pooled.cli.stats.OLD", 0.0)
    shown = CliRunner().invoke(cli, ["stats", "--url", server.url]).output
    assert "ago*" in shown and "\n* older than 0 s: what ended since is counted with the next heartbeat\n" in shown


def test_stats_of_nothing(server: EmbeddedServer, redis: Redis) -> None:
    """On an empty server it says that there is nothing, and ends with 0."""
    shown = run_command(server.url, "stats")
    assert shown.returncode == 0 and "no worker runs" in shown.stdout
    found = as_json(server.url, "stats")
    assert (found["processes"], found["queues"], found["unreadable"]) == ([], [], [])
    assert not found["throughput"]["slots"]


def test_connections(server: EmbeddedServer, redis: Redis, busy: Any) -> None:
    """connections shows processes with roles and others with address, and the numbers of CLIENT LIST."""
    redis.ping()
    with Redis.from_url(server.url, client_name="dashboard") as other:
        other.ping()
        shown = run_command(server.url, "connections").stdout
        assert re.search(rf":{busy.pid} +command 1, listen 1 +127.0.0.1 +2$", shown, re.MULTILINE)
        assert re.search(r"^dashboard +- +127.0.0.1 +1$", shown, re.MULTILINE)
        assert "(silent)" not in shown
        with Redis.from_url(server.url, client_name=named("rq_pooled:shop:web-2:4711:web")) as new:
            new.ping()
            told = run_command(server.url, "connections").stdout
            assert "shop:web-2:4711 (silent) " in told and "\n(silent): it has published no statistics" in told
        found = as_json(server.url, "connections")
        assert found["connected"] == len(redis.client_list()) + 1  # the command's own
        assert found["ours"] + sum(one["total"] for one in found["others"]) == found["connected"]


def test_connections_reap(start_server: Callable[..., EmbeddedServer]) -> None:
    """What seems to be left behind is listed with a word on --reap, which closes it and says so."""
    server = start_server()
    left = Redis.from_url(server.url, client_name=named("rq_pooled:shop:gone:77:command"))
    left.ping()
    more = {"RQ_POOLED_HEARTBEAT_TTL": "1", "RQ_POOLED_HEARTBEAT_INTERVAL": "0.3"}
    shown = wait_until(lambda: "--reap" in (text := run_command(server.url, "connections", **more).stdout) and text)
    assert named("rq_pooled:shop:gone:77:command") in shown
    assert "Closed 1 connection left behind" in run_command(server.url, "connections", "--reap", **more).stdout
    assert not [entry for entry in server.client().client_list() if "gone" in entry["name"]]
    assert "Closed 0 connections left behind" in run_command(server.url, "connections", "--reap", **more).stdout


def test_check(server: EmbeddedServer, busy: Any) -> None:
    """check prints one line and ends with the code that Nagios knows, for each of its options."""
    url, name = server.url, busy.output().split("Worker ")[1].split(":")[0]
    for words, code, text in [
        ((), 0, r"OK - \d+ of \d+ connections \([\d.]+%\) \| connections=\d+;\d+;\d+;0;\d+"),
        (("--worker", "any"), 0, "1 worker alive, seen 0s ago"),
        (("--worker", "here"), 0, "1 worker alive"),
        (("--worker", name), 0, "1 worker alive"),
        (("--worker", "nobody"), 2, "CRITICAL - worker nobody is not alive"),
        (("--failed-rate", "0.5"), 0, r"5 of 30 jobs failed lately \(16.7%\)"),
        (("--failed-rate", "10%:50%"), 1, "WARNING - 5 of 30 jobs failed lately"),
        (("--failed-rate", "0.05:0.1"), 2, "CRITICAL - 5 of 30 jobs failed lately"),
        (("--queue-age", "1h"), 0, "2 queues in time"),
        (("--queue-age", "0:1h"), 1, "WARNING - queue alone: 1 job, the first waits for"),
        (("--queue-age", "0:1h", "--queue", "a"), 0, "queue a is empty"),
        (("--queue-age", "0:1h", "--queue", "unheard"), 0, "queue unheard is unknown, so empty"),
        (("--connection-share", "0:100%"), 1, "WARNING - "),
        (("--connection-share", "0"), 2, "CRITICAL - "),
        (("--queue", "alone"), 3, "UNKNOWN - --queue says which queue, and not what is wrong there: give --queue-age"),
        (("--failed", "1:100"), 1, "WARNING - 5 jobs failed"),
        (("--dead", "1"), 0, "0 jobs buried as dead letters"),
        (("--queue-age", "soon"), 3, "UNKNOWN - --queue-age is soon"),
        (("--failed-rate", "2"), 3, "UNKNOWN - --failed-rate is 2"),
        (("--queue-age", "2h:1h"), 3, "UNKNOWN - 2h:1h warns later than it is critical"),
        (("--bogus",), 3, "UNKNOWN - No such option"),
    ]:
        result = run_command(url, "check", *words)
        assert (result.returncode, result.stderr) == (code, ""), (words, result)
        assert re.search(text, result.stdout), (words, result.stdout)
        assert result.stdout.count("\n") == 1
    result = run_command(url, "check", "--json", "--worker", "nobody")
    assert result.returncode == 2
    report = json.loads(result.stdout)
    assert report["status"] == "CRITICAL" and [one["status"] for one in report["checks"]] == ["OK", "CRITICAL"]


def test_a_worker_that_hangs_is_not_alive(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """A stopped parent is not alive any more once its statistics have expired: what a liveness probe is for."""
    with running_worker(server.url, "a", log=tmp_path / "log", RQ_POOLED_HEARTBEAT_TTL="1", **FAST) as worker:
        assert run_command(server.url, "check", "--worker", "here").returncode == 0
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: run_command(server.url, "check", "--worker", "here").returncode == 2, 30, "its silence")
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        wait_until(lambda: run_command(server.url, "check", "--worker", "here").returncode == 0, 30, "its heartbeat")


def test_the_server_is_gone() -> None:
    """Without a server the commands end with 75 and one line; check with 2, or 0 where a probe asks for that."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://user:secret@127.0.0.1:{free.getsockname()[1]}/0"
    for words in (("stats",), ("connections",), ("top",), ("stats", "--json"), ("top", "--json")):
        result = run_command(url, *words)
        assert result.returncode == 75 and result.stdout == ""
        assert result.stderr.count("\n") == 1 and "cannot connect" in result.stderr
        assert "secret" not in result.stderr
    result = run_command(url, "check")
    assert (
        result.returncode == 2 and result.stdout.startswith("CRITICAL - server away") and "secret" not in result.stdout
    )
    assert run_command(url, "check", "--worker", "here", "--away", "ok").returncode == 0
    report = health.health(timeout=1.0, connection=Redis.from_url(url))
    assert (report["ok"], report["status"]) == (False, "away") and "secret" not in json.dumps(report)
    assert "rq_pooled_up 0.0" in metrics(Redis.from_url(url), timeout=1.0)


@pytest.mark.parametrize(
    ("words", "most"),
    [((), 5), (("--timeout", "1s"), 1), (("--worker", "here", "--timeout", "1"), 1)],
)
def test_check_ends_within_one_deadline(words: tuple[str, ...], most: float) -> None:
    """At a server that accepts and says nothing the check ends within SOCKET_TIMEOUT, or its own option, in all."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=50)) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        # What the program itself needs.
        began = time.monotonic()
        run_command(url, "--version")
        own, began = time.monotonic() - began, time.monotonic()
        result = run_command(url, "check", *words)
        took = time.monotonic() - began
        assert result.returncode == 2 and result.stdout.startswith("CRITICAL - server away: "), result.stdout
        assert took < most + 2 * own + 1.5, f"{took:.1f} s, of which {own:.1f} s are the program's own"
        assert run_command(url, "check", "--away", "ok", "--timeout", "0.5").returncode == 0
    assert run_command(url, "check", "--timeout", "soon").returncode == 3


def test_restricted_users_see_what_they_may(start_server: Callable[..., EmbeddedServer]) -> None:
    """Where CONFIG, CLIENT and INFO are refused the commands say so, and show the rest."""
    server = start_server({"maxclients": 40})
    server.client().execute_command(
        "ACL", "SETUSER", "shop", "on", ">secret", "~*", "&*", "+@all", "-config", "-client", "-info"
    )
    url = f"redis://shop:secret@{server.host}:{server.port}/0"
    shown = run_command(url, "connections")
    assert shown.returncode == 0 and "Refused to this user: INFO, CONFIG GET, CLIENT LIST" in shown.stdout
    assert run_command(url, "connections", RQ_POOLED_GUARD_MAXCLIENTS="40").returncode == 0
    assert run_command(url, "check").stdout.startswith("OK - the server answers")
    asked = run_command(url, "check", "--connection-share", "0.8:0.9")
    assert asked.returncode == 3 and asked.stdout.startswith("UNKNOWN - the server answers")
    assert run_command(url, "top").returncode == 0
    assert "rq_pooled_up 1.0" in metrics(Redis.from_url(url))
    reaped = run_command(url, "connections", "--reap")
    assert reaped.returncode == 0 and "Closed 0" in reaped.stdout


def test_refusal_is_no_outage(start_server: Callable[..., EmbeddedServer]) -> None:
    """A server that refuses a command or the login is there: unknown to ``check``, also where an outage is well."""
    server = start_server()
    server.client().execute_command(
        "ACL", "SETUSER", "shop", "on", ">secret", "~*", "&*", "+@all", "-zcard", "-zrangebyscore"
    )
    at = f"{server.host}:{server.port}/0"
    for user, words in (
        ("shop:secret", ("--queue-age", "1h")),
        ("shop:secret", ("--worker", "any")),
        ("shop:wrong", ()),
    ):
        server.client().sadd(named("rq:queues"), named("rq:queue:a"))
        found = run_command(f"redis://{user}@{at}", "check", "--away", "ok", *words)
        assert found.returncode == 3 and found.stdout.startswith("UNKNOWN - the server refuses: "), found
        assert found.stdout.count("\n") == 1


def test_key_of_another_type_hides_no_queue(server: EmbeddedServer, redis: Redis) -> None:
    """Where something else stands at the keys of a queue it counts nothing, and the other queues count as ever."""
    for name in (named("rq:queue:odd"), named("rq:failed:odd"), named("rq:workers:odd")):
        redis.set(name, "x")
    redis.sadd(named("rq:queues"), named("rq:queue:odd"))
    Queue("good", connection=redis).enqueue(stats_jobs.succeed, "x")
    redis.rpush(named("rq:queue:good"), "strange")
    redis.set(named("rq:job:strange"), "x")
    good, odd = health.queues(redis)
    assert (good["name"], good["length"]) == ("good", 2) and good["oldest_age"] is not None
    assert (odd["length"], odd["oldest_age"], odd["failed"], odd["workers"]) == (0, None, 0, 0)
    assert run_command(server.url, "check", "--queue-age", "1h").returncode == 0


def test_the_oldest_job_of_a_head_counts(redis: Redis) -> None:
    """A queue is as old as the oldest of the jobs at its head, wherever among them that stands."""
    queue = Queue("q", connection=redis)
    for job_id, seconds in (("new", 10), ("old", 1000), ("middle", 100)):
        job = queue.enqueue(stats_jobs.succeed, "x", job_id=job_id)
        redis.hset(job.key, "enqueued_at", utcformat(now() - timedelta(seconds=seconds)))
    (found,) = health.queues(redis)
    assert 1000 <= found["oldest_age"] < 1050


def test_top_piped(server: EmbeddedServer, busy: Any) -> None:
    """Piped, top prints one screen without escapes and ends; --count prints several; --json a document per line."""
    shown = run_command(server.url, "top")
    assert shown.returncode == 0 and "\x1b" not in shown.stdout
    assert "finished 25, failed 5" in shown.stdout and f":{busy.pid} " in shown.stdout
    lines = run_command(server.url, "top", "--json", "--count", "2", "--interval", "0.1").stdout.splitlines()
    assert [json.loads(line)["connections"]["level"] for line in lines] == ["ok", "ok"]


def test_a_reader_that_goes_away_is_no_error(server: EmbeddedServer, busy: Any) -> None:
    """`rq-pooled top | head -1` ends without a traceback."""
    line = f"{shlex.quote(sys.executable)} -m rq_pooled top --count 5 --interval 0.2 | head -1"
    env = environment(server.url)
    shown = subprocess.run(line, shell=True, check=False, env=env, capture_output=True, text=True, timeout=40)
    assert shown.stdout.startswith("rq-pooled top") and "Traceback" not in shown.stderr


class Tmux:
    """A terminal of 80x24 that can be looked at."""

    def __init__(self, folder: Path, url: str, command: str) -> None:
        self._base = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        line = f"{shlex.quote(sys.executable)} -m rq_pooled {command}; echo ended with $?; sleep 600"
        start = ["new-session", "-d", "-x", "80", "-y", "24", line]
        subprocess.run([*self._base, *start], env=environment(url), check=True)

    def screen(self) -> list[str]:
        """Return the lines that are shown."""
        words = [*self._base, "capture-pane", "-p"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()

    def wait_for(self, text: str) -> list[str]:
        """Wait until a text is on the screen, and return its lines."""
        return wait_until(lambda: text in "\n".join(lines := self.screen()) and lines, 30, text)  # type: ignore[no-any-return]

    def type(self, *keys: str) -> None:
        """Press keys."""
        subprocess.run([*self._base, "send-keys", *keys], check=True)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size."""
        subprocess.run([*self._base, "resize-window", "-x", str(columns), "-y", str(lines)], check=True)

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run([*self._base, "kill-server"], check=True, capture_output=True)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[str, str], Tmux]]:
    """A function that runs a command in a terminal."""
    if shutil.which("tmux") is None:
        assert not IN_CI, "tmux is missing"
        pytest.skip("tmux is not installed")
    opened: list[Tmux] = []

    def open_one(url: str, command: str) -> Tmux:
        opened.append(Tmux(tmp_path, url, command))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_top_in_a_terminal(server: EmbeddedServer, redis: Redis, busy: Any, tmp_path: Path, terminal: Any) -> None:
    """In 80x24 everything that matters is on the screen, it is drawn anew in place, follows the size, and q ends it."""
    for i in range(40):
        redis.sadd(named("rq:queues"), named(f"rq:queue:many-{i:02}"))
    top = terminal(server.url, "top --interval 0.2")
    lines = top.wait_for("finished 25, failed 5")
    assert len(lines) <= 24 and all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    assert lines[0].startswith("rq-pooled top") and "connections" in lines[1]
    assert "QUEUE" in text and "PROCESS" in text and f":{busy.pid} " in text and "more" in text
    Queue("a", connection=redis).enqueue(stats_jobs.succeed, str(tmp_path))
    lines = top.wait_for("finished 26, failed 5")
    assert "\n".join(lines).count("rq-pooled top") == 1
    top.resize(60, 12)
    lines = wait_until(lambda: len(shown := top.screen()) <= 12 and "rq-pooled top" in shown[0] and shown)
    assert "connections" in lines[1]
    top.type("q")
    assert top.wait_for("ended with 0")


def test_top_that_is_ended_leaves_the_terminal_as_it_was(server: EmbeddedServer, redis: Redis) -> None:
    """SIGTERM ends top as Ctrl-C does: the cursor, the screen and the keys are the shell's again."""
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    line = [sys.executable, "-m", "rq_pooled", "top", "--interval", "0.2"]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(line, env=environment(server.url), start_new_session=True, **streams) as top:
        shown = b""

        def has(text: bytes) -> bool:
            nonlocal shown
            while select.select([ours], [], [], 0)[0]:
                shown += os.read(ours, 65536)
            return text in shown

        try:
            wait_until(lambda: has(b"rq-pooled top"), 30, "a screen")  # also on a terminal without a size, as this is
            top.terminate()
            assert top.wait(20) == 128 + signal.SIGTERM
        finally:
            top.kill()
        assert has(b"\x1b[?25h\x1b[?1049l") and b"Traceback" not in shown
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_top_while_the_server_is_gone(start_server: Callable[..., EmbeddedServer], terminal: Any) -> None:
    """A terminal shows that the server is away and for how long, and goes on when it is back; Ctrl-C ends it."""
    server = start_server()
    server.client().set("x", 1)
    top = terminal(server.url, "top --interval 0.2")
    top.wait_for("connections")
    server.kill()
    text = "\n".join(top.wait_for("The server is away for"))
    assert "Traceback" not in text and text.count("rq-pooled top") == 1
    server.start()
    top.wait_for("QUEUE" if server.client().smembers(named("rq:queues")) else "no queues")
    top.type("C-c")
    top.wait_for("ended with 130")


def test_a_screen_fits_whatever_there_is() -> None:
    """Any number of queues, processes and others fits any terminal; what does not fit is counted."""
    states = ("length", "started", "scheduled", "deferred", "failed", "dead", "workers", "rate_limited", "ready")
    queue: dict[str, Any] = {**dict.fromkeys(states, 1), "paused_for": None}
    found = {
        "time": 0.0,
        "address": "redis://x",
        "connections": {
            **dict.fromkeys(("connected", "maxclients", "ours"), 5),
            "share": 1.0,
            "level": "stop",
            "trend_per_minute": 1.5,
            "steady_growth": True,
            "minutes_left": 3.0,
            "orphans": [],
            "others": [{"name": f"o{i}", "address": "h", "total": 1} for i in range(50)],
        },
        "processes": [],
        "queues": [{"name": f"q{i}", "oldest_age": 1.0, **queue} for i in range(50)],
        "throughput": NOTHING_ENDED,
    }
    for width, height in ((80, 24), (20, 5), (200, 400), (80, 10), (1, 1)):
        lines = screen(Paces().add(found), width, height)
        assert len(lines) <= height and all(len(line) <= width for line in lines)
    assert any("more" in line for line in screen(found, 80, 24))
    assert not any("more" in line for line in screen(found, 200, 400))


def test_prometheus_text(server: EmbeddedServer, redis: Redis, busy: Any) -> None:
    """The text parses, and its numbers are those of health."""
    families = {family.name: family for family in text_string_to_metric_families(metrics(redis))}
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }

    def sum_of(name: str, **labels: str) -> float:
        return sum(v for (n, pairs), v in samples.items() if n == name and set(labels.items()) <= set(pairs))

    assert sum_of("rq_pooled_up") == 1
    assert sum_of("rq_pooled_finished_total") == 25 and sum_of("rq_pooled_failed_total") == 5
    # A job that is claimed ahead and goes back counts once, when it begins.
    assert sum_of("rq_pooled_run_seconds_count") == sum_of("rq_pooled_queue_wait_seconds_count") == 30
    assert sum_of("rq_pooled_run_seconds_bucket", le="+Inf") == 30
    assert sum_of("rq_pooled_queue", queue="alone", state="queued") == 1
    assert sum_of("rq_pooled_connections", role="command") == 1
    assert sum_of("rq_pooled_slots") == 3
    assert families["rq_pooled_finished"].type == "counter" and families["rq_pooled_run_seconds"].type == "histogram"


ALERTS, DASHBOARD = ROOT / "docs" / "alerts.yml", ROOT / "docs" / "grafana.json"


def asked_by_dashboard() -> list[str]:
    """Return the expressions of docs/grafana.json."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_alerts_name_metrics_that_exist(server: EmbeddedServer, redis: Redis, busy: Any) -> None:
    """Every metric of docs/alerts.yml and docs/grafana.json is one that is really exposed."""
    web = Redis(connection_pool=Pool(Settings(url=server.url, heartbeat_interval=0.05)))
    wait_until(lambda: web.ping() and [one for one in health.processes(redis) if one["pools"]], what="a web process")
    exposed = {sample.name for family in text_string_to_metric_families(metrics(redis)) for sample in family.samples}
    text = ALERTS.read_text()
    named = set(
        re.findall(r"\brq_pooled_\w+", "\n".join(re.findall(r"expr: (?:\|\n)?((?:.+\n)(?:  {8,}.+\n)*)", text)))
    )
    named |= set(re.findall(r"\brq_pooled_\w+", "\n".join(asked_by_dashboard())))
    assert len(named) >= 20
    # Only there while connections are sampled for a while.
    assert named - exposed <= {"rq_pooled_connections_per_minute", "rq_pooled_budget", "rq_pooled_budget_held"}


def test_alerts_pass_promtool() -> None:
    """Prometheus's own tool accepts the alert file, and its unit tests of the rules."""
    promtool = shutil.which("promtool")
    if promtool is None:
        assert not IN_CI, "promtool is missing"
        pytest.skip("promtool is not installed")
    for words in (("check", "rules", str(ALERTS)), ("test", "rules", str(Path(__file__).parent / "alerts_test.yml"))):
        checked = subprocess.run([promtool, *words], check=False, capture_output=True, text=True, timeout=50)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_dashboard_passes_promtool(tmp_path: Path) -> None:
    """Prometheus's own tool can read each expression of the dashboard."""
    promtool = shutil.which("promtool")
    if promtool is None:
        assert not IN_CI, "promtool is missing"
        pytest.skip("promtool is not installed")
    exprs = [expr.replace("$__rate_interval", "1m") for expr in asked_by_dashboard()]
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(exprs)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    words = [promtool, "check", "rules", str(tmp_path / "rules.yml")]
    checked = subprocess.run(words, check=False, capture_output=True, text=True, timeout=50)
    assert checked.returncode == 0 and f"{len(rules)} rules found" in checked.stdout, checked.stdout + checked.stderr


def test_failed_jobs(redis: Redis, server: EmbeddedServer, tmp_path: Path) -> None:
    """Failed jobs come newest first, in pages that miss and repeat none, by queue and exception, ghosts marked."""
    with running_worker(server.url, "a", "b", log=tmp_path / "log", concurrency=2, **FAST):
        for name in ("a", "b"):
            for _ in range(7):
                Queue(name, connection=redis).enqueue(stats_jobs.fail, str(tmp_path))
        dead = Queue("a", connection=redis).enqueue(stats_jobs.die, str(tmp_path))
        wait_until(
            lambda: redis.zcard(named("rq:failed:a")) + redis.zcard(named("rq:failed:b")) == 15, 40, "15 failures"
        )
    redis.zadd(named("rq:failed:b"), {"ghost": 1.0})
    found = health.failed_jobs(limit=100, connection=redis)
    assert found["total"] == len(found["jobs"]) == 16 and found["next_offset"] is None
    by_id = {job["id"]: job for job in found["jobs"]}
    assert by_id["ghost"]["exists"] is False and by_id[dead.id]["exception"] == ""
    assert by_id[dead.id]["reason"].startswith("Work-horse terminated unexpectedly")
    one = next(job for job in found["jobs"] if job["exception"])
    assert one["exception"] == "LookupError" and one["reason"] == "LookupError: on purpose" and one["failed_at"] > 1e9
    assert "stats_jobs.fail" in one["description"]
    paged: list[str] = []
    offset: int | None = 0
    while offset is not None:
        page = health.failed_jobs(offset=offset, limit=3, connection=redis)
        paged += [job["id"] for job in page["jobs"]]
        offset = page["next_offset"]
    assert paged == [job["id"] for job in found["jobs"]]
    some = health.failed_jobs(queue="a", exception="LookupError", limit=5, connection=redis)
    assert len(some["jobs"]) == 5 and some["total"] == 8
    rest = health.failed_jobs("a", "LookupError", some["next_offset"], 5, redis)
    assert len(rest["jobs"]) == 2 and rest["next_offset"] is None
    assert health.failed_jobs(exception="KeyError", connection=redis)["jobs"] == []
    assert health.failed_jobs(queue="unheard", connection=redis) == {
        "total": 0,
        "offset": 0,
        "limit": 50,
        "next_offset": None,
        "unreadable": [],
        "jobs": [],
    }


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ('Traceback:\n  File "a.py", line 1, in f\n    x()\nKeyError: 1\n', "KeyError", "KeyError: 1"),
        ('Traceback:\n  File "a.py", line 1, in f\n    x()\na.b.Broken\n', "a.b.Broken", "a.b.Broken"),
        (
            'T:\n  File "a.py", line 1\n    x\n    ^\nValueError: one\n  two\nthree: 3\n',
            "ValueError",
            "ValueError: one",
        ),
        ("Job stopped by user", "", "Job stopped by user"),
        ("", "", ""),
    ],
)
def test_the_exception_of_a_traceback(text: str, name: str, reason: str) -> None:
    """The name is that of the last exception, whatever its message contains."""
    assert exception_of(text) == (name, reason)


def test_health_is_bounded_and_tells_why(start_server: Callable[..., EmbeddedServer]) -> None:
    """A frozen server is away within the time given, a full one says so, a healthy one shows who it is."""
    server = start_server({"maxclients": 12})
    client = server.client()
    client.ping()
    report = health.health(connection=client)
    assert report["ok"] and report["status"] == "healthy" and report["maxclients"] == 12 and report["latency"] < 1
    assert report["version"] == server.version
    crowd = [Redis.from_url(server.url, single_connection_client=True) for _ in range(10)]
    for one in crowd:
        one.ping()
    report = health.health(connection=client)
    assert not report["ok"] and report["status"] == "full" and "12 of 12" in report["reason"]
    for one in crowd:
        one.close()
    server.pause()
    try:
        report = health.health(timeout=0.6, connection=client)
        assert report["status"] == "away" and not report["ok"]
    finally:
        server.resume()


def test_pool_stats_asks_nobody() -> None:
    """The pools of this process are told without a server, with their sums."""
    pool = Pool(Settings(url="redis://127.0.0.1:1/0"))
    found = health.pool_stats()
    assert found["max"] >= 10 and {"max", "created", "available", "in_use", "role", "address"} <= set(found["pools"][0])
    del pool


def test_growth_towards_an_unknown_limit_is_shown(redis: Redis) -> None:
    """Where the limit is not known, steady growth is told without the time that is left."""
    found = {**health.connections(redis), "maxclients": None, "share": None, "level": "unknown"}
    found.update(connected=9, trend_per_minute=2.5, steady_growth=True, minutes_left=None)
    assert (
        connection_lines(found)[0]
        == "9 of an unknown number connections in use: unknown; +2.5 a minute, growing steadily"
    )
    nothing = {"time": 0, "address": "x", "processes": [], "queues": [], "throughput": NOTHING_ENDED}
    screenful = screen({**nothing, "connections": found}, 80, 24)
    assert screenful[1].startswith("connections  9, +2.5/min; ours")


def test_no_name_can_write_to_the_terminal() -> None:
    """Whatever a queue is called, a table has a line per row and no escapes."""
    assert table([["red\x1b[31m\nx", 1]]) == ["red\\x1b[31m\\nx  1"]


@pytest.mark.parametrize("said", [b"[null, null, null]\n", b"[" * 100_000 + b"]" * 100_000 + b"\n", b"slowly"])
def test_a_worker_that_knows_nothing_is_passed_over(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """A worker whose own server is away answers without a list of clients, and is no error of the command; nor is a job
    that answers in its place, and never ends.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "rq_pooled-x").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(tmp_path / "rq_pooled-x" / "jobs.sock"))
        door.listen()
        door.settimeout(10)

        def answer() -> None:
            with door.accept()[0] as asked:
                asked.recv(64)
                with suppress(OSError):
                    while said == b"slowly":
                        asked.sendall(b"[")
                        time.sleep(0.1)
                    asked.sendall(said)

        answering = threading.Thread(target=answer)
        answering.start()
        assert ask_neighbours(redis) is None
        answering.join(10)


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder is given to another user")
@pytest.mark.parametrize("linked", [False, True], ids=["folder", "link to one of ours"])
def test_another_user_s_folder_is_not_asked(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    """Who holds a full server's connections is asked of workers of this user alone, since all may write to /tmp."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "rq_pooled-x"
    if linked:
        (tmp_path / "ours").mkdir()
        folder.symlink_to("ours")
    else:
        folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(folder / "jobs.sock"))
        door.listen()
        os.lchown(folder, 65534, 65534)
        assert ask_neighbours(redis) is None
        assert not select.select([door], [], [], 0)[0]


def test_a_full_server_is_explained_by_a_worker_of_this_host(
    start_server: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """When the server takes no connection, check and connections say so and who holds them, asked through a worker."""
    one, other = start_server({"maxclients": "12"}), start_server()
    words = (("check",), ("connections",))
    with (
        running_worker(other.url, "a", log=tmp_path / "other"),
        running_worker(one.url, "a", log=tmp_path / "log", RQ_POOLED_GUARD_STOP="1", **FAST) as worker,
    ):
        greedy: list[Redis] = []
        try:
            for _ in range(12):
                client = Redis.from_url(one.url, client_name="greedy", single_connection_client=True, retry=None)
                greedy.append(client)
        except RedisError:
            pass
        check, connections = (run_command(one.url, *asked) for asked in words)
        assert check.returncode == 2 and "server full" in check.stdout and check.stdout.count("\n") == 1
        assert re.search(r"held by: \d+ greedy \(from 127.0.0.1\); 2 .*command 1, listen 1", check.stdout), check.stdout
        assert connections.returncode == 0 and "12 of 12 (100.0%) connections in use: stop" in connections.stdout
        assert re.search(rf":{worker.pid} +command 1, listen 1", connections.stdout) and "greedy" in connections.stdout
        assert "the server is full" in connections.stderr and connections.stderr.count("\n") == 1
        worker.stop()
        for client in greedy[-2:]:
            client.ping()
        greedy += [Redis.from_url(one.url, single_connection_client=True, retry=None) for _ in range(2)]
        check, connections = (run_command(one.url, *asked) for asked in words)
        assert check.returncode == 2 and "no worker of this host could be asked" in check.stdout
        assert connections.returncode == 75
        for client in greedy:
            client.close()


def test_metrics_tell_of_schedules_budget_and_connections(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """Throughput, dead letters, the lag of schedules, each worker's connections and the budget's places are told."""
    redis.sadd(named("rq:queues"), named("rq:queue:late"))
    redis.zadd(named("rq:scheduled:late"), {"x": time.time() - 100})
    redis.zadd(named("rq_pooled:dead:late"), {"y": 9e9})
    budget = {"RQ_POOLED_BUDGET": "9", "RQ_POOLED_BUDGET_NAME": "shop"}
    with running_worker(server.url, "a", log=tmp_path / "log", **FAST, **budget):
        Queue("a", connection=redis).enqueue("math.factorial", 3)
        wait_until(lambda: health.throughput(redis)["finished"] == 1)
        text = metrics(redis, Settings(url=server.url, budget=9, budget_name="shop"))
    assert re.search(r'rq_pooled_schedule_lag_seconds{queue="late"} 1\d\d\.', text)
    assert 'rq_pooled_queue{queue="late",state="dead"} 1.0' in text and "rq_pooled_finished_per_minute 1.0" in text
    assert "rq_pooled_budget 9.0" in text and "rq_pooled_budget_held 3.0" in text
    assert re.search(r'rq_pooled_worker_connections{.*role="command".*} 1.0', text)
    assert health.queues(redis)[-1]["schedule_lag"] > 90


def test_an_overview_asks_once_for_the_queues(redis: Redis) -> None:
    """All parts of the page are of the same queues: the server is asked for their names once, and anew for the next."""
    Queue("a", connection=redis).enqueue("math.factorial", 3)
    redis.config_resetstat()
    assert len(overview(redis, Settings())["queues"]) == 1
    assert redis.info("commandstats")["cmdstat_sscan"]["calls"] == 1
    Queue("b", connection=redis).enqueue("math.factorial", 3)
    assert len(overview(redis, Settings())["queues"]) == 2


def test_a_worker_that_was_killed_serves_no_queue(server: EmbeddedServer, redis: Redis) -> None:
    """A worker counts for its queue as long as RQ's hash of it is there: after the last one nobody tidies up."""
    Queue("alone", connection=redis).enqueue("math.factorial", 3)
    redis.sadd(named("rq:workers:alone"), named("rq:worker:killed"), named("rq:worker:alive"))
    redis.hset(named("rq:worker:alive"), "state", "idle")
    assert [one["workers"] for one in health.queues(redis)] == [1]
    redis.delete(named("rq:worker:alive"))
    assert [one["workers"] for one in health.queues(redis)] == [0]


def test_a_worker_that_died_or_froze_serves_no_queue(server: EmbeddedServer, redis: Redis, tmp_path: Path) -> None:
    """One that was killed, or froze, counts no longer once its leases are over: in no view of its queue, nor in RQ's.
    Another goes on, one that thaws counts again, and a stock worker counts as long as RQ keeps it.
    """
    quick = {"RQ_POOLED_HEARTBEAT_INTERVAL": "0.3", "RQ_POOLED_HEARTBEAT_TTL": "2"}
    shared, alone = (Queue(name, connection=redis) for name in ("shared", "alone"))
    stock = named("rq:worker:stock")
    redis.hset(stock, mapping={"last_heartbeat": "2026-01-01T00:00:00.000000Z", "queues": "shared"})
    redis.sadd(named("rq:workers:shared"), stock)

    def serving(of_shared: int, of_alone: int) -> bool:
        return {one["name"]: one["workers"] for one in health.queues(redis)} == {"shared": of_shared, "alone": of_alone}

    with (
        running_worker(server.url, "shared", log=tmp_path / "kept", **quick),
        running_worker(server.url, "shared", "alone", log=tmp_path / "ends", concurrency=2, **quick) as ends,
    ):
        for queue in (shared, alone):
            queue.enqueue("math.factorial", 3)
        wait_until(lambda: all(queue.finished_job_registry.count == 1 for queue in (shared, alone)))
        assert serving(4, 2)
        ends.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: serving(2, 0), what="the frozen one to count no longer")
        ends.process.send_signal(signal.SIGCONT)
        wait_until(lambda: serving(4, 2), what="it to count again")
        ends.kill()
        alone.enqueue("math.factorial", 3)
        wait_until(lambda: serving(2, 0), what="the killed one to count no longer")
        assert len(workers(redis)) == len(RQWorker.all(connection=redis, queue=shared)) - 1 == 1
        said = [one["text"] for one in verdict(overview(redis, Settings()))]
        assert "No worker serves “alone”, where 1 job waits." in said
        assert re.search(r"^alone +1 .* 0$", run_command(server.url, "stats").stdout, re.MULTILINE)
        assert 'rq_pooled_queue{queue="alone",state="workers"} 0.0' in metrics(redis, Settings(url=server.url))
        shared.enqueue("math.factorial", 3)
        wait_until(lambda: shared.finished_job_registry.count == 2)


def test_a_large_fleet_that_was_killed_serves_no_queue(redis: Redis) -> None:
    """Of a queue with more than 50 registered workers it is told, too, when none of them is there; one is enough."""
    Queue("alone", connection=redis).enqueue("math.factorial", 3)
    redis.sadd(named("rq:workers:alone"), *(named(f"rq:worker:w-{number}") for number in range(300)))
    assert [one["workers"] for one in health.queues(redis)] == [0]
    redis.hset(named("rq:worker:w-299"), "state", "idle")
    assert [one["workers"] for one in health.queues(redis)] == [300]
