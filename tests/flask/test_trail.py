"""The trail: who did what, from the page and from commands, in the log and in a capped stream."""

from __future__ import annotations

import json
import logging
import os
import pwd
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from commands import run_command
from failures import FACTORIAL, HOSTILE, fail_jobs
from keys import named
from proxy import CutProxy
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue as StockQueue
from support import drop_pools

from rq_pooled.cli.main import cli
from rq_pooled.embedded import EmbeddedServer
from rq_pooled.errors import ConfigurationError
from rq_pooled.foreign import printable
from rq_pooled.monitoring.audit import KEPT, MAX_READ, Actor, Deed, noting, record, trail
from rq_pooled.wire import raw, text

pytest.importorskip("flask")
import page_client

ME = {"who": pwd.getpwuid(os.getuid()).pw_name, "origin": socket.gethostname(), "door": "command"}
ALICE = Actor("alice", "10.0.0.7", "page")


@pytest.fixture(autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    drop_pools()


def client_of(server: EmbeddedServer, authorize: Any = None, who: Any = lambda: "alice") -> Any:
    """A client of a page whose visitors have a name."""
    client = page_client.client_of(server, authorize or (lambda action, queue: True), who=who)
    client.environ_base["REMOTE_ADDR"] = "10.0.0.7"
    return client


def entries(redis: Redis) -> list[tuple[Any, ...]]:
    """What stands in the trail, the oldest first: who, from where, door, action, queue, count."""
    return [tuple(one[name] for name in ("who", "origin", "door", "action", "queue", "count")) for one in trail(redis)][
        ::-1
    ]


@pytest.mark.parametrize(
    ("path", "body", "action", "count", "what"),
    [
        ("queues/requeue", {"queue": "mail", "exception": "ValueError"}, "requeue", 2, "exception=ValueError"),
        ("queues/sweep", {"queue": "mail"}, "sweep", 0, ""),
        ("queues/sweep", {"queue": "mail", "policy": "bury", "older_than": "0s"}, "bury", 2, "older_than=0s"),
        ("queues/sweep", {"queue": "mail", "policy": "purge", "all": "1", "confirm": "2"}, "purge", 2, "all=1"),
        ("queues/pause", {"queue": "mail"}, "pause", None, ""),
        ("queues/limit", {"queue": "mail", "rate": "10/5s"}, "limit", None, "at most 10 starts in 5s"),
        ("queues/limit", {"queue": "mail", "clear": "1"}, "limit", None, "cleared"),
        ("jobs", {"act": "delete", "jobs": '["q-0", "none"]', "confirm": "1"}, "purge", 1, "of q-0"),
        (
            "jobs",
            {"act": "bury", "queue": "mail", "exception": "ValueError", "function": FACTORIAL},
            "bury",
            2,
            f"exception=ValueError, function={FACTORIAL}",
        ),
    ],
)
def test_each_action_of_the_page_is_written_down(
    server: EmbeddedServer,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
    path: str,
    body: dict[str, str],
    action: str,
    count: int | None,
    what: str,
) -> None:
    """Who, from where, what, which and how many stands in the trail, the log and on the page; what was refused does
    not.
    """
    caplog.set_level(logging.INFO, "rq_pooled.audit")
    fail_jobs(redis, "mail", ["ValueError: x"] * 2)
    client = client_of(server)
    assert client_of(server, lambda action, queue: action == "view").post(f"/rq/{path}", data=body).status_code == 403
    assert trail(redis) == []
    assert client.post(f"/rq/{path}", data=body).status_code == 200
    (one,) = trail(redis)
    assert abs(one.pop("time") - time.time()) < 10
    assert one == {**ALICE._asdict(), "action": action, "queue": "mail", "count": count, "what": what}
    (line,) = [line.getMessage() for line in caplog.records if line.name == "rq_pooled.audit"]
    assert (
        f"alice from 10.0.0.7, page: {action}{'' if count is None else f' {count}'} of 'mail'" in line and what in line
    )
    page = client.get("/rq/trail").text
    assert "alice" in page and "10.0.0.7" in page and f">{action}<" in page


@pytest.mark.parametrize(
    ("words", "action", "count", "what"),
    [
        (["requeue", "-q", "mail", "--exception", "ValueError"], "requeue", 2, "exceptions ValueError"),
        (["requeue", "q-0", "none"], "requeue", 1, "of q-0"),
        (["sweep", "-q", "mail", "--bury"], "bury", 2, ""),
        (["sweep", "--purge", "--all"], "purge", 2, "everything True"),
        (["limit", "mail", "--rate", "10/5s"], "limit", None, "at most 10 starts in 5s"),
        (["limit", "mail", "--clear"], "limit", None, "cleared"),
    ],
)
def test_each_command_is_written_down(
    server: EmbeddedServer, redis: Redis, words: list[str], action: str, count: int | None, what: str
) -> None:
    """A command that changes something writes down the Unix user, the host, what, which and how many; a dry run does
    not.
    """
    fail_jobs(redis, "mail", ["ValueError: x"] * 2)
    if words[0] != "limit":
        assert run_command(server.url, *words, "--dry-run").returncode == 0 and trail(redis) == []
    assert run_command(server.url, *words).returncode == 0
    (one,) = trail(redis)
    one.pop("time")
    assert one == {**ME, "action": action, "queue": "mail", "count": count, "what": what}


def test_sweeps_that_come_again_and_rescues_are_written_down(server: EmbeddedServer, redis: Redis) -> None:
    """Registering and removing a recurring sweep, and putting lost jobs back, are in the trail."""
    pytest.importorskip("rq_scheduler")
    fail_jobs(redis, "mail", ["ValueError: x"])
    job = StockQueue("mail", redis).enqueue(FACTORIAL, 3)
    redis.delete(named("rq:queue:mail"))
    redis.hset(job.key, "enqueued_at", "2020-01-01T00:00:00.000000Z")
    for words in (
        ["schedule-sweep", "--cron", "0 4 * * *", "--purge", "--older-than", "30d", "-q", "mail", "--name", "monthly"],
        ["schedule-sweep", "--remove", "monthly"],
        ["rescue", "--older-than", "1m"],
        ["rescue", "--older-than", "1m", "--apply"],
    ):
        result = run_command(server.url, *words)
        assert result.returncode == 0, result.stderr
    me = tuple(ME.values())
    assert entries(redis) == [
        (*me, "schedule-sweep", "mail", None),
        (*me, "schedule-sweep remove", "", None),
        (*me, "rescue", "mail", 1),
    ]
    assert "monthly: 0 4 * * *, purge older_than 30d" in trail(redis)[2]["what"]


def test_the_command_shows_the_trail(server: EmbeddedServer, redis: Redis) -> None:
    """`rq-pooled audit` lists the newest entries, the newest last, as lines or as JSON, as many as are wanted."""
    assert "nothing was done yet" in run_command(server.url, "audit").stdout
    for number in range(4):
        record(redis, ALICE, Deed("requeue", "mail", number, "exception=ValueError"))
    lines = run_command(server.url, "audit", "--limit", "2").stdout.splitlines()
    assert [line.partition("Z  ")[2] for line in lines] == [
        f"alice from 10.0.0.7, page: requeue {number} of 'mail' (exception=ValueError)" for number in (2, 3)
    ]
    found = json.loads(run_command(server.url, "audit", "--limit", "3", "--json").stdout)
    assert [one["count"] for one in found] == [3, 2, 1]


@pytest.mark.parametrize("spoilt", ["of another type", "full"])
def test_a_trail_that_cannot_be_written_is_said(
    server: EmbeddedServer, redis: Redis, caplog: pytest.LogCaptureFixture, spoilt: str
) -> None:
    """An action is done although its trail cannot be written, and the log, the page, the JSON and the command say
    so.
    """
    fail_jobs(redis, "mail", ["ValueError: x"] * 3)
    if spoilt == "full":
        # An id beyond which no further one exists.
        redis.xadd(named("rq_pooled:audit"), {"who": "x"}, id=f"{2**64 - 1}-{2**64 - 1}")
    else:
        redis.set(named("rq_pooled:audit"), "x")
    client = client_of(server)
    report = client.post("/rq/jobs", data={"act": "requeue", "jobs": '["q-0"]'}).get_json()
    assert report["done"] == 1 and "trail in Redis was not written" in report["trail_error"]
    body = {"queue": "mail", "policy": "bury", "exception": "ValueError", "page": "1"}
    page = client.get(client.post("/rq/queues/sweep", data=body).location)
    assert "2 jobs" in page.text and "The trail in Redis was not written" in page.text
    assert "was not written" in caplog.text and "ERROR" in caplog.text
    result = run_command(server.url, "limit", "mail", "--rate", "10/5s")
    assert result.returncode == 0 and "trail in Redis was not written" in result.stderr
    if spoilt != "full":
        assert "another type" in run_command(server.url, "audit").stderr
        assert client.get("/rq/trail").status_code == 503


def test_entries_that_others_wrote_are_only_text(server: EmbeddedServer, redis: Redis) -> None:
    """An entry of bytes, of markup, of other fields or of any length costs no page and no command its answer."""
    key = named("rq_pooled:audit")
    redis.xadd(key, {b"\xff": b"\xff\x00", "who": HOSTILE, "count": "many", "what": b"\xff" + b"a" * 100_000})
    redis.xadd(key, {"else": "x"}, id=f"{2**63}-1")
    client = client_of(server)
    page = client.get("/rq/trail")
    assert page.status_code == 200 and "<script>alert" not in page.text and len(page.text) < 20_000
    result = run_command(server.url, "audit")
    assert result.returncode == 0 and len(result.stdout) < 5_000 and "\x00" not in result.stdout
    redis.xadd(key, {"what": b"a" * (MAX_READ + 1)}, id=f"{2**63}-2")
    assert client.get("/rq/trail").status_code == 400
    assert "at most" in run_command(server.url, "audit").stderr


def test_the_trail_is_bounded(redis: Redis) -> None:
    """The stream keeps about its newest 10 000 entries, each with texts of bounded length."""
    for _ in range(12):
        record(redis, ALICE, *[Deed("requeue", "mail", 1)] * 1000)
    assert KEPT <= redis.xlen(named("rq_pooled:audit")) <= KEPT + 200
    record(redis, Actor("a" * 10**6, "b" * 10**6, "page"), Deed("requeue", "c" * 10**6, 1, "d" * 10**6))
    ((_, fields),) = redis.xrevrange(named("rq_pooled:audit"), count=1)
    assert sum(map(len, fields.values())) < 2000


def test_the_trail_of_a_queue_that_may_not_be_viewed_is_hidden(server: EmbeddedServer, redis: Redis) -> None:
    """Entries of other queues are left out for one who may not view them, however many there are."""
    record(redis, ALICE, Deed("requeue", "mail", 3))
    record(redis, ALICE, *[Deed("purge", "payroll", 41)] * 300)
    redis.sadd(named("rq:queues"), named("rq:queue:payroll"), named("rq:queue:mail"))
    page = client_of(server, lambda action, queue: queue in (None, "mail")).get("/rq/trail").text
    assert "mail" in page and "payroll" not in page and ">41<" not in page
    # Who may view each queue that there is does not thereby view one that was deleted.
    redis.srem(named("rq:queues"), named("rq:queue:payroll"))
    page = client_of(server, lambda action, queue: queue in (None, "mail")).get("/rq/trail").text
    assert "mail" in page and "payroll" not in page


def test_who_is_unknown_without_a_word_of_the_application(server: EmbeddedServer, redis: Redis) -> None:
    """Without who= the trail has the user that the web server has authenticated, and no name that a client sends."""
    fail_jobs(redis, "mail", ["ValueError: x"])
    client = client_of(server, who=None)
    client.post("/rq/queues/requeue", data={"queue": "mail"}, headers={"Remote-User": "forged"})
    client.post("/rq/queues/requeue", data={"queue": "mail"}, environ_base={"REMOTE_USER": "bob"})
    assert [one[0] for one in entries(redis)] == ["", "bob"]


def test_what_breaks_off_half_way_is_written_down(server: EmbeddedServer, redis: Redis) -> None:
    """Of an action over several queues that breaks off, what was done and where it broke off stand in the trail."""
    (job,) = fail_jobs(redis, "mail", ["ValueError: one"])
    redis.set(named("rq:failed:spoilt"), "no sorted set")
    redis.hset(named("rq:job:there"), mapping={"data": "x", "status": "failed", "origin": "spoilt"})
    body = {"act": "delete", "jobs": json.dumps([job, "there"]), "confirm": 2}
    assert client_of(server).post("/rq/jobs", json=body).status_code == 503
    assert not redis.exists(named(f"rq:job:{job}"))
    found = {one["queue"]: one for one in trail(redis)}
    assert found["mail"]["count"] == 1 and "there" not in found["mail"]["what"]
    assert found["spoilt"]["count"] is None and "broken off" in found["spoilt"]["what"]


def test_an_action_is_in_the_trail_before_it_is_done(redis: Redis) -> None:
    """While an action runs, and for ever where its process was killed, an entry says that it has begun."""
    deed = Deed("requeue", "mail", None, "exception=ValueError")
    with noting(redis, ALICE, deed) as under_way:
        (begun,) = trail(redis)
        assert (begun["queue"], begun["count"], begun["what"]) == ("mail", None, "begun; exception=ValueError")
        under_way.deeds = [deed._replace(jobs=3)]
    (ended,) = trail(redis)
    assert (ended["count"], ended["what"]) == (3, "exception=ValueError")


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (ResponseError("x"), [("a", 2, "x"), ("b", None, "broken off; x")]),
        (KeyboardInterrupt(), [("a", 2, "x"), ("b", None, "broken off; x")]),
        (ConfigurationError("x"), [("a", 2, "x")]),
    ],
)
def test_what_ends_by_an_error_says_how_far_it_got(
    redis: Redis, caplog: pytest.LogCaptureFixture, error: BaseException, left: list[tuple[Any, ...]]
) -> None:
    """What was done is told with its number and what was not as broken off; what was refused was not done."""
    caplog.set_level(logging.INFO, "rq_pooled.audit")
    a, b = Deed("purge", "a", None, "x"), Deed("purge", "b", None, "x")
    with pytest.raises(type(error)), noting(redis, ALICE, a, b) as under_way:
        under_way.deeds[0] = a._replace(jobs=2)
        raise error
    assert [(one["queue"], one["count"], one["what"]) for one in trail(redis)][::-1] == left
    assert len([line for line in caplog.records if line.name == "rq_pooled.audit"]) == len(left)


@pytest.mark.parametrize(
    ("words", "spoilt", "action"),
    [
        (["pause", "mail"], "rq_pooled:paused", "pause"),
        (["resume", "mail"], "rq_pooled:paused", "resume"),
        (["schedule", "cancel", "soon"], "rq:canceled:mail", "cancel"),
        (["sweep", "-q", "mail", "--requeue", "--all"], "rq:failed:mail", "requeue"),
        (["schedule-sweep", "--remove", "x"], "rq:scheduler:scheduled_jobs", "schedule-sweep remove"),
        (["schedule-sweep", "--cron", "* * * * *", "--ghosts"], "rq:scheduler:scheduled_jobs", "schedule-sweep"),
    ],
)
def test_a_command_that_breaks_off_is_written_down(
    server: EmbeddedServer, redis: Redis, words: list[str], spoilt: str, action: str
) -> None:
    """A command that the server refuses half way is in the trail, once, as broken off."""
    if words[0] == "schedule-sweep":
        pytest.importorskip("rq_scheduler")
    fail_jobs(redis, "mail", ["ValueError: x"])
    StockQueue("mail", redis).enqueue_in(timedelta(hours=1), FACTORIAL, 3, job_id="soon")
    redis.delete(named(spoilt))
    redis.set(named(spoilt), "x")
    assert run_command(server.url, *words).returncode != 0
    (one,) = trail(redis)
    assert (one["action"], one["count"] or None) == (action, None) and one["what"].startswith("broken off")


def test_a_job_whose_requeue_is_not_known_to_be_done_is_written_down(server: EmbeddedServer, redis: Redis) -> None:
    """Of jobs that are requeued by id, one whose answer is lost stands in the trail as broken off."""
    fail_jobs(redis, "mail", ["ValueError: x"] * 3)
    proxy = CutProxy(server.port)
    try:
        # Its own command: the trail's entry names all three.
        proxy.cut_on(b"\r\n$3\r\nq-2\r\n$")
        url = server.url.replace(f":{server.port}", f":{proxy.port}")
        assert run_command(url, "requeue", "q-0", "q-1", "q-2").returncode != 0
    finally:
        proxy.close()
    assert {(one["count"], one["what"]) for one in trail(redis)} == {(2, "of q-0, q-1"), (None, "broken off; of q-2")}


def test_an_entry_names_no_job_of_another_queue(
    server: EmbeddedServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of two queues that are requeued at once stand each in the entry of its own queue, before it is done too."""
    fail_jobs(redis, "mail", ["ValueError: x"], prefix="mail")
    fail_jobs(redis, "other", ["ValueError: x"], prefix="other")
    monkeypatch.setattr("rq_pooled.cli.requeue._requeue_id", lambda *_: 1 / 0)
    CliRunner().invoke(cli, ["requeue", "mail-0", "other-0", "--url", server.url])
    assert {one["queue"]: one["what"] for one in trail(redis)} == {
        "mail": "broken off; of mail-0",
        "other": "broken off; of other-0",
    }


@pytest.mark.parametrize(
    ("path", "body", "spoilt", "action"),
    [
        ("queues/pause", {"queue": "mail"}, "rq_pooled:paused", "pause"),
        ("queues/requeue", {"queue": "mail"}, "rq:failed:mail", "requeue"),
        ("schedule/cancel", {"job": "soon"}, "rq:canceled:mail", "cancel"),
    ],
)
def test_a_button_that_breaks_off_is_written_down(
    server: EmbeddedServer, redis: Redis, path: str, body: dict[str, str], spoilt: str, action: str
) -> None:
    """An action of the page that the server refuses half way is in the trail, once, as broken off."""
    fail_jobs(redis, "mail", ["ValueError: x"])
    StockQueue("mail", redis).enqueue_in(timedelta(hours=1), FACTORIAL, 3, job_id="soon")
    redis.delete(named(spoilt))
    redis.set(named(spoilt), "x")
    assert client_of(server).post(f"/rq/{path}", json=body).status_code == 503
    (one,) = trail(redis)
    assert (one["action"], one["queue"], one["count"]) == (action, "mail", None)
    assert one["what"].startswith("broken off") and one["who"] == "alice"


def test_who_may_see_an_entry_is_asked_by_the_queues_own_name(server: EmbeddedServer, redis: Redis) -> None:
    """A queue of any bytes, or of a long name, is shown escaped to who may view it, and to no one else."""
    odd = [text(b"\xff\n"), "x" * 300, "a\tb"]
    record(redis, ALICE, *(Deed("purge", name, 41) for name in odd))
    redis.sadd(named("rq:queues"), *(named(b"rq:queue:") + raw(name) for name in [*odd, "other"]))
    asked = set()

    def authorize(action: str, queue: str | None) -> bool:
        asked.add(queue)
        return queue is None or queue in odd

    page = client_of(server, authorize).get("/rq/trail").text
    assert page.count(">41<") == 3 and asked == {None, "other", *odd}
    assert "\\xff\\n" in page and "\n\xff" not in page and "x" * 250 not in page
    shown = {printable(name, 200) for name in odd}
    # Names that only look like those are other queues.
    page = client_of(server, lambda action, queue: queue is None or queue in shown).get("/rq/trail").text
    assert ">41<" not in page


def test_an_entry_whose_queue_has_too_long_a_name_is_for_who_may_view_all(server: EmbeddedServer, redis: Redis) -> None:
    """A name that is not kept whole cannot be asked about: its entry is hidden from who may not view each queue."""
    record(redis, ALICE, Deed("purge", "x" * 5000, 41))
    redis.sadd(named("rq:queues"), named("rq:queue:mail"))
    assert ">41<" in client_of(server).get("/rq/trail").text and len(trail(redis)[0]["queue"]) < 300
    assert ">41<" not in client_of(server, lambda action, queue: queue != "mail").get("/rq/trail").text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("jobs", {"act": "delete", "exception": "ValueError", "function": FACTORIAL, "confirm": 2}),
        ("queues/requeue", {}),
        ("queues/sweep", {"policy": "bury"}),
        ("queues/sweep", {"policy": "purge", "all": 1, "confirm": 2}),
    ],
)
def test_a_queue_holds_no_job_that_is_another_queues(
    server: EmbeddedServer, redis: Redis, path: str, body: dict[str, Any]
) -> None:
    """Who may act on one queue sees and changes no job of another, also where its entry still stands in the first."""
    ids = fail_jobs(redis, "mail", ["ValueError: one", "ValueError: two"])
    redis.hset(named(f"rq:job:{ids[0]}"), mapping={"origin": "hidden", "description": "f('s3cret')"})
    redis.zadd(named("rq:scheduled:mail"), {ids[0]: 9e9})
    redis.zadd(named("rq_pooled:dead:mail"), {ids[0]: 9e9})
    before = redis.dump(named(f"rq:job:{ids[0]}"))
    client = client_of(server, lambda action, queue: queue != "hidden")
    for page in ("", "queues/failed-jobs?queue=mail", "failed", "failed?queue=mail", "failed?dead=1", "schedule"):
        shown = client.get(f"/rq/{page}")
        assert shown.status_code == 200 and "s3cret" not in shown.text and ids[0] not in shown.text, page
    assert client.post(f"/rq/{path}", json={"queue": "mail", **body}).json["done"] == 1
    assert redis.dump(named(f"rq:job:{ids[0]}")) == before and not redis.exists(named("rq:queue:hidden"))


def test_variables_do_not_name_the_user(server: EmbeddedServer, redis: Redis) -> None:
    """A command is noted with the Unix user whose process it is, whatever LOGNAME and USER say."""
    fail_jobs(redis, "mail", ["ValueError: one"])
    done = run_command(server.url, "pause", "mail", LOGNAME="ceo", USER="ceo")
    assert done.returncode == 0, done.stderr
    assert [one["who"] for one in trail(redis)] == [ME["who"]]
