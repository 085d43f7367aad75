"""The pages on failed jobs and dead letters: lists, groups, one job, and what is done to them."""

from __future__ import annotations

import json
import pickle
import re
import time
import zlib
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from failures import FACTORIAL, HOSTILE, fail, fail_jobs, fill, ids_in, work
from flask_app import make_app
from keys import named
from page_client import Forms
from redis import Redis
from rq import Queue as StockQueue
from support import drop_pools

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.failed.groups import failure_groups
from rq_pooled.failed.history import history
from rq_pooled.flask import page_app

SAME_SITE = {"Sec-Fetch-Site": "same-origin"}
GROUP = {"queue": "q", "exception": "ValueError", "function": FACTORIAL}


@pytest.fixture
def operator(server: EmbeddedServer, redis: Redis) -> Any:
    """A client of an application that lets everybody do everything, from a page of its own site."""
    client = make_app(server.url, lambda: "write").test_client()
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    yield client
    drop_pools()


def unbroken(page: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", page).split())


def test_failures_are_grouped_by_exception_and_function(redis: Redis, operator: Any) -> None:
    """A group tells how often, since when and until when; two functions with one exception are two groups."""
    jobs = fail(redis, "ValueError", "ValueError", "Broken", queue="q")
    redis.hset(jobs[0].key, "ended_at", f"{datetime.now(timezone.utc) - timedelta(hours=2):%Y-%m-%dT%H:%M:%S.%fZ}")
    fail_jobs(redis, "q", ["ValueError: x"])
    groups = {(one["exception"], one["function"]): one for one in failure_groups(redis)["groups"]}
    one = groups["ValueError", "retry_jobs.fail"]
    assert one["count"] == 2 and 7000 < one["last"] - one["first"] < 7400 and one["id"] == jobs[1].id
    assert groups["ValueError", FACTORIAL]["count"] == 1 and len(groups) == 3
    page = operator.get("/rq/").text
    assert "exception=ValueError&amp;function=retry_jobs.fail" in page and "2 h ago" in page
    listed = operator.get("/rq/failed?queue=q&exception=ValueError&function=retry_jobs.fail").text
    assert "1 to 2 of 2, the newest first, among the newest 4 failed jobs of this queue" in unbroken(listed)
    assert jobs[0].id in listed and "q-0" not in listed


def test_a_list_has_pages_that_miss_and_repeat_none(redis: Redis, operator: Any) -> None:
    """Pages of 50 follow each other by links, the newest first, each entry once."""
    ids = fill(redis, 120, "q")
    address, seen = "/rq/failed?queue=q", []
    for _ in range(5):
        page = operator.get(address).text
        seen += re.findall(r'name="job" value="(.*?)"', page)
        following = re.search(r'rel="next" href="(.*?)"', page)
        if following is None:
            break
        address = following[1].replace("&amp;", "&")
    assert seen == ids[::-1]
    assert "None." in operator.get("/rq/failed?dead=1").text


def test_one_job_shows_every_try_and_unpickles_nothing(redis: Redis, operator: Any) -> None:
    """A job's page has its times, its worker, each try with its traceback, its dependents, and its meta as a size."""
    job = StockQueue("q", connection=redis).enqueue(FACTORIAL, -1, meta={"a": 1})
    StockQueue("q", connection=redis).enqueue(FACTORIAL, 3, depends_on=job, job_id="child")
    work(redis, "q")
    operator.post("/rq/jobs", data={"act": "requeue", "jobs": json.dumps([job.id])})
    work(redis, "q")
    redis.hset(job.key, "meta", pickle.dumps(_Trap()))
    page = unbroken(operator.get(f"/rq/job?id={job.id}").text)
    assert page.count("Traceback (most recent call last)") == 2 and "math.factorial(-1)" in page
    assert "2 recorded tries" in page and "1 dependent child" in page and "on stock" in page and "bytes" in page
    redis.hset(job.key, "meta", '{"order": 7}')
    assert history(redis, job.id)["meta"] == '{"order": 7}'
    gone = operator.get("/rq/job?id=nope")
    assert gone.status_code == 404 and "there is no job nope" in gone.text


class _Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a meta was unpickled",))


def test_hostile_jobs_are_only_text(redis: Redis, operator: Any) -> None:
    """Names, descriptions, errors and ids that are markup stay text on every page; odd requests are 400, not 500."""
    (job_id,) = fail_jobs(redis, HOSTILE, [f"ValueError: {HOSTILE}"])
    redis.hset(named(f"rq:job:{job_id}"), mapping={"description": HOSTILE, "meta": HOSTILE, "worker_name": HOSTILE})
    redis.zadd(named(f"rq:failed:{HOSTILE}"), {b"\xff\x00": 9e9})
    client = operator
    for address in ("/rq/failed", f"/rq/job?id={job_id}", f"/rq/failed/confirm?act=delete&job={job_id}"):
        page = client.get(address)
        assert page.status_code == 200 and "<script>alert" not in page.text and "<img" not in page.text
    for odd in (
        "/rq/failed?offset=x",
        "/rq/failed?exception=x",
        "/rq/failed?dead=2",
        "/rq/failed/confirm?act=x&job=a",
    ):
        assert client.get(odd).status_code == 400
    for odd in ({"act": "requeue"}, {"act": "delete", "jobs": "[1]"}, {"act": "x", "queue": "q"}, {"queue": "q"}):
        assert client.post("/rq/jobs", data=odd).status_code == 400


def test_what_is_not_there_leads_back(redis: Redis, server: EmbeddedServer, operator: Any) -> None:
    """Where no job is ticked a page of ours leads back to the list, and from no page at all to the overview."""
    fill(redis, 120, "q")
    page = operator.get("/rq/failed?queue=q&offset=50").text
    (back,) = re.findall(r'name="back" value="(.*?)"', page)
    asked = operator.get("/rq/failed/confirm", query_string={"act": "bury", "back": back.replace("&amp;", "&")})
    assert asked.status_code == 400 and "no job is chosen" in asked.text.lower()
    assert 'href="/rq/failed?queue=q&amp;offset=50">Back to the list' in asked.text
    with page_app(lambda: "write", url=server.url).test_client() as alone:
        for client, place in ((operator, "/rq"), (alone, "")):
            nowhere = client.get(f"{place}/nowhere/<b>")
            assert nowhere.status_code == 404 and "there is no page nowhere/&lt;b&gt;" in nowhere.text.lower()
            assert f'href="{place}/">Back to the overview' in nowhere.text
    assert "rq_pooled" not in operator.get("/elsewhere").text


@pytest.mark.parametrize("job_id", ["q-0", 'a"b', "a'b <i> &amp; \u00e9"])
@pytest.mark.parametrize("dead", [False, True])
def test_the_buttons_of_one_job_do_what_they_say(redis: Redis, operator: Any, job_id: str, dead: bool) -> None:
    """Each form of a job's page, sent as a browser sends it, acts on this job, whatever its id is."""
    address, done = {"id": job_id}, []
    for number in range(1 if dead else 2):
        redis.flushdb()
        (job,) = fail(redis, "ValueError", queue="q")
        redis.rename(job.key, named("rq:job:") + job_id)
        redis.zrem(named("rq:failed:q"), job.id)
        redis.zadd(named("rq:failed:q"), {job_id: 9e9})
        if dead:
            assert operator.post("/rq/jobs", data={"act": "bury", "jobs": json.dumps([job_id])}).json["done"] == 1
        forms = Forms(operator.get("/rq/job", query_string=address).text).posted()
        assert len(forms) == (1 if dead else 2)
        action, fields = forms[number]
        answer = operator.post(action, data=fields)
        assert answer.status_code == 303, answer.text
        done.append((fields["act"], redis.zcard(named("rq:failed:q")) + dead * redis.zcard(named("rq_pooled:dead:q"))))
    assert done == [("requeue", 0)] + ([] if dead else [("bury", 0)])


@pytest.mark.parametrize("act", ["requeue", "bury", "delete"])
def test_chosen_jobs(redis: Redis, operator: Any, act: str) -> None:
    """What is chosen on the list is confirmed with its number, then done to those and no others, and told."""
    ids = fail_jobs(redis, "q", ["ValueError: x"] * 3)
    confirm = operator.get("/rq/failed/confirm", query_string=[("act", act), ("job", ids[0]), ("job", ids[2])])
    assert f"{act.capitalize()} 2 jobs?" in unbroken(confirm.text) and ids_in(redis, named("rq:failed:q")) == ids
    data = {
        name: value.replace("&#34;", '"') for name, value in re.findall(r'name="(\w+)" value="(.*?)"', confirm.text)
    }
    done = operator.post("/rq/jobs", data=data)
    assert done.status_code == 303
    words = {"requeue": "2 jobs requeued in “q”", "bury": "2 jobs moved to the dead letters of “q”"}
    assert words.get(act, "2 jobs deleted from “q”") in unbroken(operator.get(done.location).text)
    assert ids_in(redis, named("rq:failed:q")) == [ids[1]]
    assert redis.exists(named(f"rq:job:{ids[0]}")) == (act != "delete")
    assert sorted(ids_in(redis, named("rq:queue:q"))) == ([ids[0], ids[2]] if act == "requeue" else [])


def test_a_group_and_dead_letters(redis: Redis, operator: Any) -> None:
    """A group is buried, listed as dead letters, confirmed with its number, and requeued or deleted from there."""
    fail_jobs(redis, "q", ["ValueError: x"] * 3 + ["OSError: y"])
    assert operator.post("/rq/jobs", data={"act": "bury", **GROUP}).json["done"] == 3
    assert ids_in(redis, named("rq:failed:q")) == ["q-3"]
    page = operator.get("/rq/failed?dead=1").text
    assert all(f'value="q-{number}"' in page for number in range(3))
    assert operator.post("/rq/jobs", data={"act": "bury", "dead": 1, **GROUP}).status_code == 400
    asked = operator.get("/rq/failed/confirm", query_string={"act": "delete", "dead": 1, **GROUP}).text
    assert "Delete 3 dead letters?" in unbroken(asked)
    report = operator.post("/rq/jobs", data={"act": "requeue", "dead": 1, "jobs": '["q-0", "q-3", "nope"]'}).json
    assert report == {"done": 1, "gone": 2, "changed": 0, "queues": ["q"]}
    assert operator.post("/rq/jobs", data={"act": "delete", "dead": 1, "confirm": 2, **GROUP}).json["done"] == 2
    assert redis.zcard(named("rq_pooled:dead:q")) == 0 and not redis.exists(named("rq:job:q-1"))


def test_readers_see_and_change_nothing(server: EmbeddedServer, redis: Redis) -> None:
    """Who may only look has the pages without a button, and every action is 403; another site's form, too."""
    fail_jobs(redis, "q", ["ValueError: x"])
    reader = make_app(server.url, lambda: "read").test_client()
    for address in ("/rq/failed", "/rq/job?id=q-0", "/rq/failed?queue=q&exception=ValueError&function=math.factorial"):
        page = reader.get(address)
        assert page.status_code == 200 and "<button" not in page.text and "act=" not in page.text
    assert reader.post("/rq/jobs", data={"act": "delete", **GROUP}, headers=SAME_SITE).status_code == 403
    writer = make_app(server.url, lambda: "write").test_client()
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {}):
        assert writer.post("/rq/jobs", data={"act": "delete", **GROUP}, headers=headers).status_code == 403
    assert redis.zcard(named("rq:failed:q")) == 1
    drop_pools()


def test_arguments_are_not_read(redis: Redis, operator: Any) -> None:
    """Lists, groups and a job's page of jobs with arguments of 1 MB read no arguments, however many stand there."""
    ids = fail_jobs(redis, "q", ["ValueError: x"] * 60)
    for job_id in ids:
        redis.hset(named(f"rq:job:{job_id}"), "data", zlib.compress(b"x") + b"y" * 1_000_000)
    redis.zadd(named("rq:failed:q"), {f"old-{number}": 1000 + number for number in range(100_000)})
    began, before = time.perf_counter(), redis.info("stats")["total_net_output_bytes"]
    for address in ("/rq/failed", "/rq/failed?queue=q&offset=50000", f"/rq/job?id={ids[0]}"):
        assert operator.get(address).status_code == 200
    assert redis.info("stats")["total_net_output_bytes"] - before < 200_000
    assert time.perf_counter() - began < 3


def test_what_is_wrong_is_said_first(redis: Redis, operator: Any) -> None:
    """The first sentence names what is worst, with a link; where nothing is wrong it says that."""
    assert "Nothing is wrong" in operator.get("/rq/").text
    fail_jobs(redis, "q", ["ValueError: x"] * 2)
    assert "2 jobs failed in the last hour; most often ValueError in math.factorial" in operator.get("/rq/").text
    StockQueue("lonely", connection=redis).enqueue(FACTORIAL, 3)
    page = operator.get("/rq/").text
    assert page.index("No worker serves “lonely”, where 1 job waits") < page.index("2 jobs failed")


def test_tables_sort_by_links(redis: Redis, operator: Any) -> None:
    """A heading is a link that sorts its table; an order that is not known sorts as usual."""
    for name, number in (("a", 1), ("b", 3), ("c", 2)):
        for _ in range(number):
            StockQueue(name, connection=redis).enqueue(FACTORIAL, 3)

    def order(sort: str) -> list[str]:
        page = operator.get(f"/rq/?sort={sort}").text
        return re.findall(r'<tr><th scope="row"><a [^>]*>([abc])</a> ', page)

    assert order("queues.length") == ["b", "c", "a"] and order("queues.nonsense") == ["a", "b", "c"]
    assert "?sort=queues.failed#queues" in operator.get("/rq/").text
