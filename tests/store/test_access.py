"""Least rights: under the rules of `rq-pooled acl` each role does its whole work, and is refused one step beyond."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jobs
import large_jobs
import pytest
import role_jobs
from commands import refusal, run_command
from failures import fail_jobs
from keys import named
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from rq import Callback, Repeat, Retry
from rq.command import send_stop_job_command
from rq.group import Group
from rq.job import Dependency, Job, JobStatus
from rq.suspension import resume, suspend
from sampling import finished
from signing_scene import Signing
from support import PYTHONPATH, drop_pools, running_worker, wait_until

from rq_pooled import Backoff, Queue
from rq_pooled.config import Settings
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.health import connections, failed_jobs, health, processes, queues
from rq_pooled.metrics import metrics
from rq_pooled.pool import Pool
from rq_pooled.queue.limits import limits_in_force
from rq_pooled.rq_api import RQ3
from rq_pooled.store import keys
from rq_pooled.store.access import ROLES
from rq_pooled.wire import text

pytestmark = pytest.mark.timeout(150)

PASSWORD = "s3cr3t"
#: What no role may do, each with the words that the server would take.
BEYOND: list[list[str]] = [
    ["FLUSHALL"],
    ["FLUSHDB"],
    ["CONFIG", "GET", "*"],
    ["CONFIG", "SET", "maxclients", "1"],
    ["KEYS", "other:*"],
    ["GET", "other:x"],
    ["SET", "other:x", "1"],
    ["HGETALL", "rqx:job:a"],
    ["MGET", named("rq:queues"), "other:x"],
    ["RENAME", named("rq:queue:a"), "other:x"],
    ["ACL", "LIST"],
    ["ACL", "SETUSER", "worker", "allkeys"],
    ["CLIENT", "KILL", "TYPE", "normal"],
    ["CLIENT", "PAUSE", "1000"],
    ["SCRIPT", "FLUSH"],
    ["SCRIPT", "KILL"],
    ["FUNCTION", "LIST"],
    ["FUNCTION", "LOAD", "REPLACE", "#!lua name=x\nredis.register_function('x', function() return 1 end)"],
    ["FUNCTION", "DELETE", "x"],
    ["FUNCTION", "FLUSH"],
    ["FUNCTION", "RESTORE", "x"],
    ["PUBLISH", "other", "x"],
    ["SUBSCRIBE", "other"],
    ["PSUBSCRIBE", "*"],
    ["MONITOR"],
    ["SHUTDOWN"],
    ["SAVE"],
    ["DEBUG", "SLEEP", "1"],
    ["REPLICAOF", "NO", "ONE"],
    ["MIGRATE", "127.0.0.1", "1", "x", "0", "1"],
    ["RANDOMKEY"],
    ["SLOWLOG", "GET"],
]
#: Beyond the worker, these may do less.
ALSO_BEYOND: dict[str, list[list[str]]] = {
    "worker": [],
    "jobs": [
        ["HSET", named("rq:worker:w"), "state", "idle"],
        ["DEL", named("rq_pooled:leases:q")],
        ["SET", named("rq:suspended"), "1"],
        ["PUBLISH", named("rq:pubsub:w"), "{}"],
        ["CLIENT", "LIST"],
        ["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "other:"],
        ["SCAN", "0"],
        ["DBSIZE"],
    ],
    "web": [
        ["HSET", named("rq:worker:w"), "state", "idle"],
        ["DEL", named("rq_pooled:leases:q")],
        ["DEL", named("rq_pooled:claims:t")],
        ["SET", named("rq:suspended"), "1"],
        ["PUBLISH", named("rq:pubsub:w"), "{}"],
        ["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "other:"],
        ["SCAN", "0"],
    ],
    "page": [
        ["HSET", named("rq:worker:w"), "state", "idle"],
        ["DEL", named("rq_pooled:leases:q")],
        ["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "other:"],
        ["SCAN", "0"],
    ],
    "page-view": [
        ["HSET", named("rq:job:a"), "status", "queued"],
        ["DEL", named("rq:failed:q")],
        ["LPUSH", named("rq:queue:q"), "a"],
        ["PUBLISH", named("rq:pubsub:w"), "{}"],
        ["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "other:"],
        ["SCAN", "0"],
    ],
}


class Guarded:
    """A server on which each role has a user with exactly the rights that `rq-pooled acl` prints."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.admin = server.client()
        for role in ROLES:
            words = run_command("", "acl", role, "--setuser").stdout.split()
            self.admin.execute_command(*words, f">{PASSWORD}")
        # What jobs of these tests write themselves.
        self.admin.execute_command("ACL", "SETUSER", "jobs", "~callbacks", "~runs:*")

    def url(self, role: str) -> str:
        return self.server.url.replace("//", f"//{role}:{PASSWORD}@")

    def client(self, role: str, **settings: Any) -> Redis:
        return Redis(connection_pool=Pool(Settings(url=self.url(role), **settings)))

    def refused(self) -> list[tuple[Any, ...]]:
        """Return what the server has refused to anybody."""
        return [(row["username"], row["reason"], row["object"], row["context"]) for row in self.admin.acl_log()]


@pytest.fixture
def guarded(start_server: Callable[..., EmbeddedServer]) -> Iterator[Guarded]:
    one = Guarded(start_server())
    yield one
    drop_pools()


def test_an_endless_script_is_ended_by_the_administrator(guarded: Guarded, tmp_path: Path) -> None:
    """A script of the role that only shows holds the server up until SCRIPT KILL; workers then go on by themselves."""
    admin = guarded.admin
    admin.config_set("lua-time-limit", 100)
    view = guarded.client("page-view", socket_timeout=60)
    with running_worker(guarded.url("worker"), "q", log=tmp_path / "log") as worker:
        with ThreadPoolExecutor(1) as pool:
            endless = pool.submit(view.eval, "while true do end", 0)

            def is_busy() -> bool:
                try:
                    return not admin.ping()
                except RedisError as error:
                    return "BUSY" in str(error) or "Busy" in type(error).__name__ or "script" in str(error)

            wait_until(is_busy)
            assert admin.execute_command("SCRIPT", "KILL") in (b"OK", True)
            with pytest.raises(ResponseError, match="killed"):
                endless.result(30)
        job = Queue("q", connection=guarded.client("web")).enqueue(jobs.add, 1, 2)
        wait_until(lambda: job.get_status() == JobStatus.FINISHED, 30)
        assert worker.process.poll() is None


@pytest.mark.parametrize("role", ROLES)
def test_one_step_beyond_is_refused(guarded: Guarded, role: str) -> None:
    """No role reaches another application's keys, names of keys, channels, or the server's own commands."""
    allowed = [
        words
        for words in BEYOND + ALSO_BEYOND[role]
        if guarded.admin.execute_command("ACL", "DRYRUN", role, *words) in (b"OK", "OK")
    ]
    # A worker's maintenance looks for executions by their names.
    assert allowed == []
    client = guarded.client(role)
    for script in ("return redis.call('GET', 'other:x')", "return redis.call('FLUSHALL')"):
        with pytest.raises((NoPermissionError, ResponseError), match="ermission|ACL failure|user executing"):
            client.eval(script, 0)


@pytest.mark.parametrize("role", sorted({*ROLES} - {"worker"}))
def test_no_command_of_any_server_shows_names_of_keys(guarded: Guarded, role: str) -> None:
    """Of the commands on keys that this server has, a role may use those that name the key, and none that looks for it:
    servers bring new ones, as Valkey 9.1 did with CLUSTERSCAN.
    """
    lookers = []
    for name, known in guarded.admin.command().items():
        # OBJECT's subcommands name theirs.
        names_none = not known["first_key_pos"] or "not_key" in str(known.get("key_specifications"))
        if "@keyspace" in map(text, known["acl_categories"]) and names_none and name != "object":
            words = [name, *["1"] * (abs(known["arity"]) - 1)]
            if guarded.admin.execute_command("ACL", "DRYRUN", role, *words) in (b"OK", "OK"):
                lookers.append(name)
    assert lookers == []


def test_what_is_printed_is_a_file_of_users(guarded: Guarded, tmp_path: Path) -> None:
    """A server reads the lines as its file of users, each with a password of its own, and none without one logs in."""
    printed = run_command("", "acl", "--passwords", "--name", "shop-").stdout
    (tmp_path / "users.acl").write_text(printed)
    passwords = [word[1:] for line in printed.splitlines() for word in line.split() if word.startswith(">")]
    assert len(set(passwords)) == len(ROLES) and min(map(len, passwords)) >= 32
    kind = os.environ.get("RQ_POOLED_TEST_SERVER")
    with EmbeddedServer({"aclfile": str(tmp_path / "users.acl")}, kind=kind) as one:
        client = Redis(port=one.port, username="shop-worker", password=passwords[0])
        assert client.ping()
        client.close()
    assert all(">" not in line for line in run_command("", "acl").stdout.splitlines())
    assert "resetkeys ~b:* ~b_pooled:*" in run_command("", "acl", "worker", "--prefix", "b").stdout.replace(
        "resetchannels -@all ", ""
    )
    assert set(json.loads(run_command("", "acl", "--json").stdout)) == set(ROLES)
    assert "--prefix" in refusal(run_command("", "acl", "--prefix", "a b"))


def everything(queue: Queue, tmp_path: Path) -> list[Job]:
    """Enqueue a job of each kind; return those that succeed in the end."""
    first = queue.enqueue(jobs.add, 1, 2, on_success=Callback(jobs.on_success))
    failing = queue.enqueue(jobs.fail, on_failure=Callback(jobs.on_failure))
    good = [
        first,
        queue.enqueue(jobs.add, 1, 2, depends_on=Dependency([first, failing], allow_failure=True)),
        queue.enqueue(jobs.fail_unless_last, retry=Retry(1, interval=1)),
        queue.enqueue(jobs.fail_unless_last, retry=Backoff(max=1, base=0.5)),
        queue.enqueue(jobs.return_retry_once),
        queue.enqueue_in(timedelta(seconds=1), jobs.nothing),
        queue.enqueue(jobs.nothing, repeat=Repeat(times=1, interval=1)),
        queue.enqueue(jobs.meta, True),
        queue.enqueue(jobs.nothing, result_ttl=0, ttl=500) and queue.enqueue(jobs.nothing),
        queue.enqueue(large_jobs.digest, large_jobs.noise(1_500_000)),
        queue.enqueue(large_jobs.returning, 1_500_000),
        queue.enqueue(role_jobs.use_redis),
        queue.enqueue(jobs.nothing, once="order-1"),
        queue.enqueue(jobs.nothing, unique_for=60),
        *queue.enqueue_many([Queue.prepare_data(jobs.nothing), Queue.prepare_data(jobs.nothing)]),
    ]
    Group.create(queue.connection).enqueue_many(queue, [Queue.prepare_data(jobs.nothing)])
    queue.enqueue(jobs.kill_itself, 9)
    if RQ3:
        from rq import RateLimit

        good += [queue.enqueue(jobs.add, 1, n, rate_limit=RateLimit("k", 1)) for n in range(3)]
    limited = Queue("limited", connection=queue.connection, limit="1/1s", max_running=1)
    good += [limited.enqueue(jobs.nothing) for _ in range(2)]
    gone = queue.enqueue(jobs.nothing, depends_on=failing)
    gone.cancel()
    gone.delete()
    return good


def test_a_worker_and_a_web_process_do_their_work(guarded: Guarded, tmp_path: Path) -> None:
    """Jobs of every kind run, stall, stop and are swept under the worker's user, and the server has refused nothing."""
    web = guarded.client("web")
    quick = {
        "RQ_POOLED_HEARTBEAT_INTERVAL": "0.3",
        "RQ_POOLED_HEARTBEAT_TTL": "1.5",
        "RQ_POOLED_STALLED_INTERVAL": "0.5",
        "RQ_POOLED_GUARD_INTERVAL": "0.5",
        "RQ_POOLED_GUARD_WARN": "0.00001",
        "RQ_POOLED_SWEEP_REQUEUE": "ConnectionError",
        "RQ_POOLED_SWEEP_BURY_AFTER": "1",
        "RQ_POOLED_BUDGET": "20",
        "RQ_POOLED_BUDGET_NAME": "shop",
        "RQ_POOLED_JOBS_LOGIN": f"jobs:{PASSWORD}",
    }
    line = ("default", "limited", "--maintenance-interval", "1")
    queue = Queue("default", connection=web)
    with running_worker(guarded.url("worker"), *line, log=tmp_path / "a.log", concurrency=3, **quick) as dying:
        held = queue.enqueue(jobs.wait_for_file, str(tmp_path / "gate"), str(tmp_path / "gate.1.pid"))
        wait_until(lambda: held.get_status() == JobStatus.STARTED)
        dying.kill()
    (tmp_path / "gate").touch()
    good = [held, *everything(queue, tmp_path)]
    with running_worker(
        guarded.url("worker"), *line, "--name", "w", "--with-scheduler", log=tmp_path / "b.log", concurrency=3, **quick
    ) as worker:
        for job in good:
            wait_until(
                lambda job=job: job.get_status() == JobStatus.FINISHED, 60, f"{job.description} {job.get_status()}"
            )
        assert next(job for job in good if job.func_name == "role_jobs.use_redis").return_value() == "jobs"
        page = guarded.client("page")
        stopped = queue.enqueue(jobs.hang)
        wait_until(lambda: guarded.admin.hget(named(f"rq:job:{stopped.id}"), "worker_name"))
        send_stop_job_command(page, stopped.id)
        wait_until(lambda: stopped.get_status() == JobStatus.STOPPED)
        suspend(page)
        last = queue.enqueue(jobs.nothing)
        resume(page)
        wait_until(lambda: last.get_status() == JobStatus.FINISHED)
        wait_until(lambda: guarded.admin.zcard(named("rq_pooled:dead:default")), what="the sweep of maintenance")
        assert health(connection=web)["ok"] and queues(web) and processes(web)
        assert not connections(web)["refused"] or connections(web)["refused"] == ["CONFIG GET"]
        assert "rq_pooled_up 1.0" in metrics(web)
        limits_in_force(web)
        assert worker.stop() == 0
    assert guarded.refused() == []


def test_the_page_acts_and_the_view_only_shows(guarded: Guarded) -> None:
    """The page requeues, buries and purges under its user; under the view's it shows the same, and changes nothing."""
    flask = pytest.importorskip("flask")
    from rq_pooled.flask import RQPooled

    def client_of(role: str) -> Any:
        app = flask.Flask("shop")
        app.config.update(RQ_POOLED_URL=guarded.url(role), TESTING=True)
        app.register_blueprint(RQPooled(app).blueprint(authorize=lambda: "write"), url_prefix="/rq")
        client = app.test_client()
        client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
        return client

    page, view = client_of("page"), client_of("page-view")
    fail_jobs(guarded.admin, "q", ["ValueError: one", "OSError: two", "KeyError: 3", "TypeError: four"])
    ids = {one["exception"]: one["id"] for one in failed_jobs(connection=guarded.admin)["jobs"]}
    job_id = ids["TypeError"]
    looks = ["", "queues/status", "queues/failed-jobs", "metrics", "health/redis", "redis/pool-stats", "failed"]
    looks += [f"job?id={job_id}", "failed?queue=q", "failed?queue=q&dead=1"]
    for client in (page, view):
        for path in looks:
            assert client.get(f"/rq/{path}").status_code == 200, path
    assert page.post("/rq/queues/requeue", json={"queue": "q", "exception": "ValueError"}).json["done"] == 1
    for policy, exception, confirm in (("bury", "OSError", {}), ("purge", "KeyError", {"confirm": "1"})):
        asked = {"queue": "q", "policy": policy, "exception": exception, **confirm}
        assert page.post("/rq/queues/sweep", json=asked).json["done"] == 1
    assert page.post("/rq/queues/requeue", data={"queue": "q", "exception": "x", "page": "1"}).status_code == 303
    dead = {"act": "requeue", "jobs": json.dumps([ids["OSError"]]), "dead": True}
    assert page.post("/rq/jobs", json=dead).json["done"] == 1
    assert guarded.refused() == []
    before = guarded.admin.zrange(named("rq:failed:q"), 0, -1)
    refused = view.post("/rq/queues/requeue", json={"queue": "q"})
    assert refused.status_code == 403 and "a page that acts logs in as the user page" in refused.json["error"]
    assert guarded.admin.zrange(named("rq:failed:q"), 0, -1) == before != []


@pytest.mark.parametrize("share", ["yes", "no"])
def test_jobs_have_a_login_of_their_own(guarded: Guarded, tmp_path: Path, share: str) -> None:
    """With JOBS_LOGIN jobs are another user to the server, however they connect; a wrong one ends the worker."""
    queue = Queue("default", connection=guarded.client("web"))
    tried = ALSO_BEYOND["jobs"] + [["GET", "other:x"], ["INFO"]]
    abandoned = queue.enqueue(role_jobs.use_redis, on_failure=Callback(role_jobs.call_back))
    guarded.admin.delete(queue.key)
    guarded.admin.hset(abandoned.key, "status", "started")
    guarded.admin.zadd(named("rq:wip:default"), {f"{abandoned.id}:e": 1})
    settings = {"RQ_POOLED_JOBS_SHARE": share}
    with running_worker(
        guarded.url("worker"), log=tmp_path / "log", RQ_POOLED_JOBS_LOGIN=f"jobs:{PASSWORD}", **settings
    ):
        used, tries = queue.enqueue(role_jobs.use_redis), queue.enqueue(role_jobs.try_each, tried)
        finished([used, tries], guarded.admin)
        assert used.return_value() == "jobs"
        assert tries.return_value() == ["NoPermissionError"] * (len(tried) - 1) + [""]
        wait_until(lambda: abandoned.get_status() == JobStatus.FAILED, what="maintenance")
        assert guarded.admin.exists(named("rq:job:called-back"))
        assert not guarded.admin.sismember(named("rq:workers"), "forged"), "its callback has the rights of the worker"
    line = refusal(run_command(guarded.url("worker"), "worker", RQ_POOLED_JOBS_LOGIN="jobs:wr0ng", **settings))
    assert "JOBS_LOGIN: the server refuses the login" in line and "wr0ng" not in line


def test_a_horse_does_not_show_the_workers_secrets(signing: Signing) -> None:
    """No secret setting is in a horse's environment or in its children's; REDIS_URL and RQ_REDIS_URL are, which jobs
    read; settings are, cores are not.
    """
    secret = {"RQ_POOLED_URL": signing.server.url, "RQ_POOLED_JOBS_LOGIN": "default:anything"}
    job = Queue("default", connection=signing.redis).enqueue(role_jobs.what_is_known)
    signing.work(REDIS_URL=signing.server.url, RQ_REDIS_URL=signing.server.url, **secret)
    known = Queue("default", connection=signing.redis).fetch_job(job.id).return_value()
    assert not {*secret, "RQ_POOLED_SIGNING_KEYS"} & set(known["names"])
    assert "REDIS_URL" in known["children"] and "RQ_POOLED_URL" not in known["children"]
    assert {"REDIS_URL", "RQ_REDIS_URL"} <= set(known["names"])
    assert known["url"] == signing.server.url and known["core"] == [0, 0]
    assert signing.redis.hget(named(f"rq:job:{known['enqueued']}"), "rq_pooled:signature")


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="this system has no /proc")
def test_a_url_in_a_file_is_in_no_environment(guarded: Guarded, tmp_path: Path) -> None:
    """A worker whose settings module reads its URL from a file, as docs/security.md has it, shows it to no job."""
    secret = tmp_path / "redis_url"
    secret.write_text(guarded.url("worker") + "\n")
    (tmp_path / "settings_of_shop.py").write_text(
        f"from pathlib import Path\nRQ_POOLED_URL = Path({str(secret)!r}).read_text().strip()\n"
    )
    queue = Queue("default", connection=guarded.client("web"))
    job = queue.enqueue(role_jobs.started_with)
    path = os.pathsep.join([PYTHONPATH, str(tmp_path)])
    done = run_command("", "worker", "--burst", "-c", "settings_of_shop", "default", PYTHONPATH=path)
    shown = queue.fetch_job(job.id).return_value()
    assert done.returncode == 0 and "PYTHONPATH" in shown and PASSWORD not in shown


#: What only a worker writes.
OF_WORKERS = {
    *(
        "WORKER",
        "WORKERS",
        "EVENTS",
        "STALLED_LOCK",
        "GHOSTS_LOCK",
        "STARTS",
        "LEASES",
        "INTERMEDIATE",
        "DUE_LOCK",
    ),
    *("SCHEDULER_LOCK", "SCHEDULER_INSTANCE", "SCHEDULER_RUNS", "CRON_SCHEDULERS", "CRON_SCHEDULER"),
}


def test_the_table_speaks_of_every_key() -> None:
    """A key is in the table of who writes it, or named here as a worker's own; a new one needs a decision."""
    names = {name for name, text in vars(keys).items() if name.isupper() and isinstance(text, str)}
    names -= {"PREFIX", "OURS", "EXECUTION_PATTERN", "SENTRY_COMMAND", "HOLD_COMMAND"}
    written = [one for role in ("web", "page", "jobs") for one in ROLES[role].writes]
    undecided = {name for name in names if not any(fnmatchcase(getattr(keys, name), one) for one in written)}
    assert undecided == OF_WORKERS


def test_check_says_whether_it_is_so(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check --secure` warns of an administrator, of missing keys and of jobs without a signature; else all is well."""
    keys_of = {"RQ_POOLED_SIGNING_KEYS": "k1:0123456789abcdef", "RQ_POOLED_ALLOWED": "jobs.*"}
    well = run_command(guarded.url("worker"), "check", "--secure", **keys_of)
    assert well.returncode == 0 and "the user worker has no rights beyond" in well.stdout, well.stdout
    assert "signed with the key k1 |" in well.stdout
    for url, settings, said in (
        (
            guarded.server.url,
            keys_of,
            "default may read other applications' keys, the server's configuration, the ser",
        ),
        (guarded.url("web"), {}, "jobs are not signed"),
        (guarded.url("web"), {**keys_of, "RQ_POOLED_SIGNING": "accept-unsigned"}, "without a signature run, too"),
    ):
        asked = run_command(url, "check", "--secure", **settings)
        assert asked.returncode == 1 and asked.stdout.startswith("WARNING") and said in asked.stdout, asked.stdout


def test_check_names_the_worker_that_has_no_keys(guarded: Guarded, tmp_path: Path) -> None:
    """`check --secure` of a process that has keys warns of a worker that has none, or runs jobs without a signature."""
    keys_of = {"RQ_POOLED_SIGNING_KEYS": "k1:0123456789abcdef"}
    url = guarded.url("worker")
    for settings, code in ((keys_of, 0), ({}, 1), ({**keys_of, "RQ_POOLED_SIGNING": "accept-unsigned"}, 1)):
        with running_worker(url, "q", "--name", "w-here", log=tmp_path / str(len(settings)), **settings):
            asked = run_command(guarded.url("web"), "check", "--secure", **keys_of)
            said = "jobs without a signature are run by 1 of 1 worker: w-here" in asked.stdout
            assert (asked.returncode, said) == (code, bool(code)), asked.stdout
    # What cannot be read may be of one.
    key = named("rq_pooled:stats:app:host:1")
    guarded.admin.hset(key, mapping={"kind": '"worker"', "concurrency": '"x"'})
    guarded.admin.zadd(named("rq_pooled:stats"), {key: 9e9})
    asked = run_command(guarded.url("web"), "check", "--secure", **keys_of)
    assert asked.returncode == 1 and "not read may be of workers without keys: app:host:1" in asked.stdout
    with running_worker(url, "q", "--name", "w-open", log=tmp_path / "open"):
        asked = run_command(guarded.url("web"), "check", "--secure", **keys_of)
        assert "are run by 1 of 1 worker: w-open; statistics that are not read" in asked.stdout, asked.stdout


def test_a_page_under_the_users_of_others_says_which_user_it_needs(guarded: Guarded) -> None:
    """Mounted in a process that logs in as `web`, each act that this user may not do is 403, and names the user `page`.

    What the user may do is done, though the notice of it cannot be written.
    """
    flask = pytest.importorskip("flask")
    from rq_pooled.flask import WRITE, RQPooled

    app = flask.Flask("shop")
    app.config.update(RQ_POOLED_URL=guarded.url("web"), TESTING=True)
    app.register_blueprint(RQPooled(app).blueprint(authorize=lambda: WRITE), url_prefix="/rq")
    client = app.test_client()
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    fail_jobs(guarded.admin, "q", ["ValueError: one"])
    (job_id,) = [one["id"] for one in failed_jobs(connection=guarded.admin)["jobs"]]
    acts: list[tuple[str, dict[str, Any]]] = [
        ("queues/requeue", {"queue": "q"}),
        ("queues/sweep", {"queue": "q"}),
        ("queues/pause", {"queue": "q"}),
        ("jobs", {"act": "requeue", "jobs": json.dumps([job_id])}),
    ]
    for path, given in acts:
        answer = client.post(f"/rq/{path}", json=given)
        assert answer.status_code == 403 and "to the user web: a page that acts" in answer.json["error"], path
        shown = client.post(f"/rq/{path}", data={**given, "page": "1"})
        assert shown.status_code == 403 and "logs in as the user page" in shown.text, path
    job = Queue("q", connection=guarded.admin).enqueue_in(timedelta(hours=1), jobs.nothing)
    assert client.post("/rq/schedule/cancel", data={"job": job.id, "page": "1"}).status_code == 303
    assert job.get_status() == JobStatus.CANCELED


def test_a_command_under_the_users_of_others_says_which_user_it_needs(guarded: Guarded) -> None:
    """A command that the user may not run ends with 2, since trying again does not help, and names the user."""
    Queue("q", connection=guarded.admin).enqueue(jobs.nothing)
    done = run_command(guarded.url("web"), "pause", "q")
    assert done.returncode == 2 and "commands of rq-pooled log in as the user worker" in done.stderr
