"""RQ's groups, cleaned in pages by its maintenance: many of them, and large ones, hold up no job and no stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from keys import named
from redis import Redis
from rq import Queue
from support import running_worker, wait_until

from rq_pooled.store.repair import clean_groups
from rq_pooled.store.scripts import run_script

GROUPS, CLEANING = named("rq:groups"), named("rq_pooled:cleaning")


def rounds(redis: Redis) -> int:
    """Clean pages until a round is complete, and return how many it took."""
    for number in range(1, 1000):
        if run_script(redis, clean_groups())[0]:
            return number
    raise AssertionError("a round has no end")


@pytest.mark.parametrize("large", [False, True], ids=["many", "large"])
def test_groups_hold_up_neither_jobs_nor_the_stop(server: Any, redis: Redis, tmp_path: Path, large: bool) -> None:
    """The horse that cleans groups begins a job, and its worker ends, long before all groups are cleaned."""
    pipeline = redis.pipeline(transaction=False)
    for number in range(1 if large else 100_000):
        pipeline.sadd(GROUPS, f"g{number}")
        pipeline.sadd(named(f"rq:group:g{number}"), *(f"j{one}" for one in range(400_000 if large else 1)))
    pipeline.execute()
    job = Queue("a", connection=redis).enqueue("math.sqrt", 4)
    with running_worker(server.url, "a", log=tmp_path / "log") as worker:
        wait_until(lambda: job.get_status(refresh=True) == "finished", 10, what="the job")
        assert redis.exists(CLEANING) and redis.exists(GROUPS), "what was cleaned was too little to hold anything up"
        assert worker.stop() == 0
    assert redis.exists(GROUPS)


def test_a_round_over_pages_ends_where_rqs_does(redis: Redis) -> None:
    """Ids whose job is gone, and groups that are empty, are removed; all else stays, and no note is left."""
    redis.hset(named("rq:job:alive"), "status", "finished")
    for number in range(300):
        redis.sadd(GROUPS, f"g{number}", f"empty{number}")
        redis.sadd(named(f"rq:group:g{number}"), f"gone{number}", *(["alive"] if number % 2 else []))
    redis.sadd(GROUPS, "large")
    redis.sadd(named("rq:group:large"), "alive", *(f"gone{number}" for number in range(5000)))
    assert rounds(redis) > 5
    assert redis.smembers(GROUPS) == {b"large", *(b"g%d" % number for number in range(1, 300, 2))}
    assert redis.smembers(named("rq:group:large")) == redis.smembers(named("rq:group:g1")) == {b"alive"}
    assert not redis.exists(CLEANING)


def test_groups_that_come_meanwhile_have_their_turn(redis: Redis) -> None:
    """A group that is emptied after its page is removed by the next round."""
    redis.sadd(GROUPS, *(f"g{number}" for number in range(500)))
    run_script(redis, clean_groups())
    redis.sadd(GROUPS, "late")
    rounds(redis)
    rounds(redis)
    assert not redis.exists(GROUPS, CLEANING)


def test_notes_of_another_type_stop_no_round(redis: Redis) -> None:
    """Where another program has written the key of the notes, groups are cleaned from the first one."""
    redis.set(CLEANING, "x")
    redis.sadd(GROUPS, "g")
    rounds(redis)
    rounds(redis)
    assert not redis.exists(GROUPS)


@pytest.mark.parametrize("name", ["a\nb", "é𝄞", "", "g:x"])
def test_groups_of_any_text_are_cleaned_in_pages(redis: Redis, name: str) -> None:
    """A large group whose name is any text goes on where its page ended."""
    redis.sadd(GROUPS, name)
    redis.sadd(named("rq:group:") + name, *(f"gone{number}" for number in range(5000)))
    assert rounds(redis) > 3 and not redis.exists(GROUPS, CLEANING, named("rq:group:") + name)


def test_a_small_group_in_a_large_table_is_cleaned_to_its_end(redis: Redis) -> None:
    """A group that has shrunk may take several pages: one round removes each id whose job is gone."""
    key = named("rq:group:shrunk")
    redis.sadd(GROUPS, "shrunk")
    redis.hset(named("rq:job:alive"), "status", "finished")
    redis.sadd(key, "alive", *(f"gone{number}" for number in range(50_000)))
    pipeline = redis.pipeline()
    pipeline.srem(key, *(f"gone{number}" for number in range(90, 50_000)))
    pipeline.execute()
    rounds(redis)
    assert redis.smembers(key) == {b"alive"} and not redis.exists(CLEANING)
