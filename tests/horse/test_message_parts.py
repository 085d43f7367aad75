"""The parent takes no part of an outcome that is not, exactly, the words that it tells of."""

from __future__ import annotations

import time
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.utils import now

from rq_pooled.horse.messages import check_message
from rq_pooled.horse.success import packed_head, packed_success, plain_success
from rq_pooled.process.channel import Inbox, encode_plain
from rq_pooled.wire import pack_runs

WORDS = ["PLAIN_SUCCESS", "w", "default", "then", "now", "now", 1.5, 2.5, "0.5", 9, 500, "gA=="]


def outcome(part: tuple[Any, ...]) -> tuple[Any, ...]:
    """The message of an outcome with these commands."""
    return ("outcome", "finished", (0, 0, b""), part, (0, 0, b""), False)


@pytest.mark.parametrize("words", [WORDS, ["a"], ["x\r\ny", b"\r\n", ""], ["x" * 5000], ["a"] * 500])
def test_whole_runs_are_taken(words: list[Any]) -> None:
    """One run, whatever its words hold, is taken as the horse packs it; so are several."""
    check_message(outcome((1, *pack_runs([words]))))
    check_message(outcome((2, *pack_runs([words, WORDS]))))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"$7\r\ndefault", b"$7\r\ndefaul"),
        (b"$7\r\ndefault", b"$+7\r\ndefault"),
        (b"$7\r\ndefault", b"$07\r\ndefault"),
        (b"$7\r\ndefault", b":7\r\ndefault"),
        (b"$7\r\ndefault\r\n", b"$7\r\nde\r\nult\r\n"),
        (b"$2\r\n12\r\n", b"$2\r\n11\r\n"),
        (b"$2\r\n12\r\n", b"$2\r\n13\r\n"),
        (b"$4\r\ngA==\r\n", b"$4\r\ngA=="),
        (b"$4\r\ngA==\r\n", b"$4\r\ngA==\r\n$1\r\na\r\n"),
        (b"$4\r\ngA==\r\n", b"$4\r\ngA==\r\n\r\n"),
    ],
)
def test_what_is_not_exactly_one_run_is_refused(old: bytes, new: bytes) -> None:
    """A byte or a word more or less, another length, or another sign is refused; a word may hold any bytes."""
    runs, words, data = (1, *pack_runs([WORDS]))
    changed = data.replace(old, new)
    assert changed != data
    if new in (b"$07\r\ndefault", b"$7\r\nde\r\nult\r\n"):
        check_message(outcome((runs, words, changed)))
        return
    with pytest.raises(ValueError):
        check_message(outcome((runs, words, changed)))
    for other in ((runs + 1, words), (runs, words + 1), (runs, words - 1), (0, words)):
        with pytest.raises(ValueError):
            check_message(outcome((*other, data)))


def test_a_plain_outcome_is_packed_as_the_long_way_packs_it(redis: Redis) -> None:
    """The words of a plain success are the same whether packed at once or one by one, and pass as a message."""
    job = Queue("d\N{SNOWMAN}", connection=redis).enqueue("jobs.add", 1, 2)
    for result, ttl in ((None, 500), ("x" * 50, -1), (b"\r\n", -5)):
        job.started_at, job._result = now(), result
        job.ended_at = job.last_heartbeat = now()
        for began in (time.time(), 1700000000.1234567, 5.0):
            packed = packed_success(job, began, packed_head("w\N{SNOWMAN}", job.origin), ttl)
            assert packed == pack_runs([plain_success(job, began, "w\N{SNOWMAN}", ttl)])
            (message,) = Inbox().feed(encode_plain(True, 0.5, *packed))
            assert message == ("plain", True, 0.5, *packed)
            check_message(message)


def test_a_plain_message_that_is_none_is_refused() -> None:
    """Seconds that are no time, words that are not all there, and a form that is cut short are refused."""
    words, data = pack_runs([WORDS])
    for seconds, count, body in (
        (float("nan"), words, data),
        (-1.0, words, data),
        (0.5, words + 1, data),
        (0.5, 2, b"x"),
    ):
        (message,) = Inbox().feed(encode_plain(False, seconds, count, body))
        with pytest.raises(ValueError):
            check_message(message)
    with pytest.raises(ValueError):
        Inbox().feed(b"\x80\0\0\3abc")
