"""The wake-up alone: when queues are looked at, and what a look says."""

from __future__ import annotations

from typing import Any

import pytest
from keys import named
from parts import Stable, context_of
from redis.exceptions import ResponseError

from rq_pooled.parent.events import Events
from rq_pooled.parent.promoter import Promoter
from rq_pooled.parent.refusals import Refusals
from rq_pooled.parent.wakeup import POLL_INTERVAL, Wakeup
from rq_pooled.store.claim import Limited


class Sleeper:
    """A wake-up that sleeps, with or without client tracking; others may be able to make it the sentry."""

    def __init__(self, tracking: bool = True, reachable: bool = False) -> None:
        self.context = context_of()
        self.events = Events()
        slots: Any = Stable("w")
        refusals = Refusals(self.context, self.events, burst=False)
        self.wakeup = Wakeup(self.context, self.events, refusals=refusals, slots=slots, burst=False)
        if tracking:
            self.wakeup.track()
            self.context.command.answer(b"OK", b"OK", int(reachable))
        self.wakeup.sleep()

    def look(self) -> Any:
        """Return the look that is due."""
        assert self.wakeup.due and not self.wakeup.awake
        (exchange,) = self.wakeup.exchanges()
        return exchange


def test_reading_and_registering_are_one_step() -> None:
    """With client tracking each read of a look asks for the next change of its keys, so that no push is missed."""
    words = [command[0] for command in Sleeper().look().commands]
    assert words == ["CLIENT", "EXISTS"]
    assert [command[0] for command in Sleeper(tracking=False).look().commands] == ["EXISTS"]


def test_a_look_wakes_only_for_a_job() -> None:
    """A look that finds a job wakes; one that finds none sleeps on, and what has changed since wakes."""
    for found, awake in ((1, True), (0, False)):
        sleeper = Sleeper()
        sleeper.look().on_replies([b"OK", found])
        assert sleeper.wakeup.awake == awake == (not sleeper.wakeup.asleep)
    sleeper.wakeup.on_invalidation()
    assert sleeper.wakeup.awake


def test_without_tracking_the_queues_are_looked_at_again() -> None:
    """Where the server offers no client tracking, or refuses it later, the next look comes by the clock."""
    sleeper = Sleeper(tracking=False)
    sleeper.look().on_replies([0])
    assert not sleeper.wakeup.due and sleeper.context.loop.fire() == POLL_INTERVAL and sleeper.wakeup.due
    sleeper = Sleeper()
    sleeper.look().on_replies([ResponseError("ERR unknown"), 0])
    assert sleeper.wakeup.awake
    sleeper.wakeup.sleep()
    assert [command[0] for command in sleeper.look().commands] == ["EXISTS"]


def test_a_planned_look_is_not_disturbed() -> None:
    """Until a later look that was planned nothing wakes: a claim that puts back what it may not take changes the queue
    itself.
    """
    sleeper = Sleeper()
    sleeper.wakeup.wake_later(1.0)
    sleeper.wakeup.on_invalidation()
    sleeper.look().on_replies([b"OK", 1])
    assert not sleeper.wakeup.awake and sleeper.context.loop.fire() == 1.0 and sleeper.wakeup.awake


def test_a_look_that_is_refused_is_not_repeated_at_once() -> None:
    """A look that the server refuses is made again after a second, not in the next turn."""
    sleeper = Sleeper()
    sleeper.wakeup._refusals.end()
    sleeper.look().on_replies([b"OK", ResponseError("OOM command not allowed")])
    assert not sleeper.wakeup.due and not sleeper.wakeup.awake and sleeper.context.loop.fire() == 1.0


def test_tracking_is_switched_on_for_each_connection() -> None:
    """When the server is back, tracking names the new listening connection."""
    sleeper = Sleeper()
    sleeper.context.listen.client_id = 8
    sleeper.events.server_back()
    assert sleeper.context.command.waiting[0].commands[1][:5] == ("CLIENT", "TRACKING", "ON", "REDIRECT", 8)


def test_a_queue_that_may_start_nothing_is_left_out() -> None:
    """In the place of a queue whose limit is reached stands the key that says when that changes; its end wakes."""
    sleeper = Sleeper()
    sleeper.wakeup.leave_out([Limited(named("rq:queue:default"), 5.0, "the watched key")])
    look = sleeper.look()
    assert [command[1] for command in look.commands if command[0] == "EXISTS"] == [
        named("rq:suspended"),
        "the watched key",
    ]
    look.on_replies([b"OK", 0, b"OK", 1])
    assert not sleeper.wakeup.awake and not sleeper.wakeup.asleep
    look.on_replies([b"OK", 0, b"OK", 0])
    assert sleeper.wakeup.awake


def dozing() -> Sleeper:
    """A wake-up that sleeps beside a sentry."""
    sleeper = Sleeper(reachable=True)
    sleeper.look().on_replies([0])
    sleeper.wakeup._glance()
    return sleeper


@pytest.mark.parametrize(
    ("sentry", "sleepers", "job", "becomes"),
    [(1, 1, 0, "asleep"), (0, 1, 0, "lost"), (1, 0, 0, "lost"), (1, 1, 1, "sentry"), (0, 1, 1, "sentry")],
)
def test_one_number_tells_all_that_a_glance_wants_to_know(sentry: int, sleepers: int, job: int, becomes: str) -> None:
    """A worker that dozes takes over where a job waits, also where the sentry is gone, and dozes anew if a key is."""
    sleeper = dozing()
    look = sleeper.look()
    (command,) = look.commands
    post = sleeper.wakeup._post
    there = {post.sentry_key: sentry, post.sleepers_key: sleepers, named("rq:queue:default"): job}
    look.on_replies([sum(there.get(key, 0) for key in command[1:])])
    state = {(False, False): "lost", (False, True): "asleep", (True, False): "sentry"}
    assert state[sleeper.wakeup.awake and sleeper.wakeup.post()[1], sleeper.wakeup.dozing] == becomes
    assert sleeper.wakeup.due == (becomes == "lost")


def test_a_worker_that_takes_over_says_so() -> None:
    """A worker that dozes and finds a job takes the post of the sentry, which would else be asked for the next job."""
    sleeper = dozing()
    look = sleeper.look()
    look.on_replies([2 * 3])
    assert not sleeper.context.command.waiting
    sleeper.wakeup._glance()
    sleeper.look().on_replies([2 * 3 + 1])
    assert list(sleeper.context.command.waiting[0].commands) == [sleeper.wakeup._post.take()]


def sentry() -> Sleeper:
    """A wake-up of the sentry, which hears of the next change."""
    sleeper = Sleeper(reachable=True)
    sleeper.look().on_replies([1])
    sleeper.look().on_replies([b"OK", 0, sleeper.wakeup._post.channel.encode(), 1])
    return sleeper


def test_what_is_registered_is_not_registered_again() -> None:
    """A sentry that has heard of no change since looks without asking for the next one, save on a cluster."""
    sleeper = sentry()
    for cluster, changed, words in (
        (False, False, ["EXISTS"]),
        (False, True, ["CLIENT", "EXISTS"]),
        (True, False, ["CLIENT", "EXISTS"]),
    ):
        sleeper.context.command.in_cluster = cluster
        if changed:
            sleeper.wakeup.on_invalidation()
            sleeper.wakeup.sleep()
        else:
            sleeper.wakeup._glance()
        look = sleeper.look()
        assert [command[0] for command in look.commands][: len(words)] == words
        look.on_replies([b"OK"] * (len(words) - 1) + [0])
        assert sleeper.wakeup.asleep


def test_a_glance_travels_with_a_promotion() -> None:
    """A worker that promotes looks in the same script, gives a sign of life now and then, and wakes for a job."""
    sleeper = sentry()
    promoter = Promoter(sleeper.context, wakeup=sleeper.wakeup)
    sent = []
    for _ in range(6):
        (exchange,) = promoter.exchanges()
        sent.append([command[0] for command in exchange.commands])
        assert exchange.commands[0][-20:].count("name") and not sleeper.wakeup.due
        told = [sleeper.wakeup._post.channel.encode(), 1] if len(exchange.commands) > 1 else []
        exchange.on_replies([[1, 0, 0, 1000, 0], *told])
        assert sleeper.wakeup.asleep
    assert sent == [["EVALSHA"], ["EVALSHA"], ["EVALSHA", "GET", "PEXPIRE"]] * 2
    (exchange,) = promoter.exchanges()
    exchange.on_replies([[1, 0, 0, 1000, 1]])
    assert sleeper.wakeup.awake
    (exchange,) = promoter.exchanges()
    keys = exchange.commands[0][3 : 3 + int(exchange.commands[0][2])]
    assert keys == (named("rq:scheduled:default"),), "a worker that is awake asks for nothing"


def test_a_sentry_that_another_has_replaced_dozes() -> None:
    """A sentry whose post names another worker, or nothing, lies down beside it."""
    for named_there, stays in ((b"rq:pubsub:w", True), (b"rq:pubsub:v", False), (None, False)):
        sleeper = Sleeper(reachable=True)
        sleeper.look().on_replies([1])
        answer = named(named_there) if named_there else None
        sleeper.look().on_replies([b"OK", 0, answer, 1])
        assert (sleeper.wakeup.post()[1], sleeper.wakeup.due) == (stays, not stays)


def test_a_worker_that_is_made_the_sentry_while_it_claims_is_the_sentry() -> None:
    """The reply to a claim that was sent before says nothing of it: no other worker would hear of jobs."""
    for told in (True, False):
        sleeper = Sleeper(reachable=True)
        sleeper.look().on_replies([0])
        sleeper.wakeup.wake()
        assert sleeper.wakeup.post()[1] is False
        if told:
            sleeper.wakeup.make_sentry(False)
        sleeper.wakeup.note_post(False)
        assert sleeper.wakeup.post()[1] is told
    sleeper.wakeup.note_post(False)
    assert sleeper.wakeup.post()[1] is False
