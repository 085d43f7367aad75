"""What a horse's client does while an outcome is recorded."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from keys import named
from redis import Redis

from rq_pooled.horse.recorder import Recorder, make_recorder
from rq_pooled.horse.relay import Relay
from rq_pooled.horse.tape import Tape
from rq_pooled.pool import Pool


@pytest.fixture
def recorder(redis: Redis) -> Any:
    """A recorder that is live."""
    pool = Pool(client=redis)
    yield make_recorder(Redis, pool, (7, 0, 0))
    pool.disconnect()


def tape(read: Any = None) -> Tape:
    return Tape("a", "x", dict, read)


def test_only_one_thread_is_recorded(recorder: Recorder, redis: Redis) -> None:
    """A thread that a job has left behind reaches the server while the outcome of another job is recorded."""
    replies: list[Any] = []
    with recorder.record_to(tape()) as recorded:
        assert recorder.incr("counter") == 1  # recorded: what RQ's handlers write is answered so
        thread = threading.Thread(target=lambda: replies.append(recorder.incrby("counter", 7)))
        thread.start()
        thread.join()
    assert replies == [7]
    assert redis.get("counter") == b"7"
    assert len(recorded.commands) == 1


def test_the_reads_of_a_pipeline_are_asked_for_together(recorder: Recorder) -> None:
    """Many reads in one pipeline cost one question, each is guarded, and a dependent's hash only by its status."""
    asked: list[list[list[bytes]]] = []

    def read(commands: Any) -> list[tuple[bytes, Any]]:
        asked.append([list(words) for words in commands])
        return [
            (b"digest-%d" % i, b"finished" if w[0] == b"HGET" else [b"status", b"deferred"])
            for i, w in enumerate(commands)
        ]

    with recorder.record_to(tape(read)) as recorded, recorder.pipeline() as pipe:
        pipe.hget(named("rq:job:b"), "status")
        pipe.hgetall(named("rq:job:c"))
        pipe.hset(named("rq:job:b"), "x", 1)
        assert pipe.execute() == [b"finished", {b"status": b"deferred"}, 1]
    assert asked == [
        [
            [b"HGET", named(b"rq:job:b"), b"status"],
            [b"HGETALL", named(b"rq:job:c")],
            [b"HGET", named(b"rq:job:c"), b"status"],
        ]
    ]
    assert recorded.guards == [
        (b"digest-0", [b"HGET", named(b"rq:job:b"), b"status"]),
        (b"digest-2", [b"HGET", named(b"rq:job:c"), b"status"]),
    ]


def test_what_runs_after_maintenance_is_not_relayed(recorder: Recorder) -> None:
    """A relay ends with its block, whatever ends that: a job's commands are no affair of the command connection."""
    channel: Any = None  # nothing is said over it
    relay = Relay(channel, recorder)
    with pytest.raises(ValueError), relay.carry():
        assert recorder.relay is relay
        raise ValueError
    assert recorder.relay is None


def test_only_one_thread_is_relayed(recorder: Recorder, redis: Redis) -> None:
    """A thread that a job has left behind reaches the server while maintenance speaks through the parent."""
    channel: Any = None  # nothing is said over it
    relay = Relay(channel, recorder)
    replies: list[Any] = []

    def use() -> None:
        replies.append(recorder.set("mine", 1))
        with recorder.pipeline() as pipe:
            pipe.get("mine")
            replies.extend(pipe.execute())

    with relay.carry():
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert replies == [True, b"1"]


def test_what_is_written_after_the_outcome_has_left_reaches_the_server(recorder: Recorder, redis: Redis) -> None:
    """A write about the job joins its outcome until that is delivered; later nobody would send it."""
    recorder.outcome = one = tape()
    one.write([b"HSET", named(b"rq:job:a"), b"status", b"finished"])
    recorder.hset(named("rq:job:a"), "early", "1")
    assert not redis.exists(named("rq:job:a")) and [b"HSET", named(b"rq:job:a"), b"early", b"1"] in one.commands
    one.delivered = True
    recorder.hset(named("rq:job:a"), "late", "1")
    assert redis.hgetall(named("rq:job:a")) == {b"late": b"1"}
