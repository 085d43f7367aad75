"""Counts what a worker does, cheaply enough for thousands of jobs a second; published with the heartbeat."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..foreign import seconds_of
from .claim import Claim
from .keys import QUEUE

#: Upper bounds of the histograms' buckets in seconds; one more bucket holds all longer durations.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
#: The counters, in the order in which they are shown. All but ``outage_seconds`` are whole numbers.
NAMES = (
    *("claims", "finished", "failed", "retried", "lost_claims", "stale_ids", "stalls"),
    *("reconnects", "outage_seconds", "horses_replaced", "refused", "unsigned"),
)
#: The counters that are also published for the last minutes, and the number of seconds that this covers.
RECENT, WINDOW = ("finished", "failed", "retried"), 300.0
#: How RQ's handlers record that a job succeeded, even if its status does not; every outcome of theirs has this or
#: ``failed_job_count``.
_SUCCEEDED = b"\r\nsuccessful_job_count\r\n"
#: How a horse records that it did not load a job, and that it ran one without a signature.
REFUSED, UNSIGNED = b"\r\nrefused_job_count\r\n", b"\r\nunsigned_job_count\r\n"


class Histogram:
    """Counts durations by bucket, and sums all of them."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration; a negative one, from two clocks that disagree, counts as 0."""
        seconds = max(0.0, seconds)
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def as_dict(self) -> dict[str, Any]:
        """Return ``count``, ``sum`` (seconds), and ``buckets``: bound -> how many were at most that, as Prometheus."""
        return histogram(self.counts, self.sum)


def histogram(counts: Sequence[int], total: float) -> dict[str, Any]:
    """Return a histogram as a dictionary, from the count of each bucket."""
    buckets, below = {}, 0
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), counts):
        below += count
        buckets[bound] = below
    return {"count": below, "sum": round(total, 6), "buckets": buckets}


class Counters:
    """All counters of one worker process, from 0 at its start."""

    __slots__ = ("_begun", "_begun_since", "_earlier", "_not_begun", "queue_wait", "run_time", "started_at", *NAMES)

    def __init__(self) -> None:
        self.started_at = time.time()
        #: (monotonic time, values of RECENT) at each publication of the last minutes.
        self._earlier: deque[tuple[float, tuple[int, ...]]] = deque([(time.monotonic(), (0,) * len(RECENT))])
        #: Jobs that have begun.
        self.claims = 0
        #: Jobs that were counted, and turned out not to have begun.
        self._not_begun = 0
        #: Recorded outcomes: succeeded (repeats too), failed for good or stopped, and to be run again.
        self.finished = 0
        self.failed = 0
        self.retried = 0
        #: Outcomes dropped because the job was cancelled, deleted or handed on meanwhile.
        self.lost_claims = 0
        #: Ids without a job that were found in a queue.
        self.stale_ids = 0
        #: Jobs of dead or silent workers that were put back or failed.
        self.stalls = 0
        #: How often the server was lost and found again, and the seconds that it was away in all.
        self.reconnects = 0
        self.outage_seconds = 0.0
        #: Horses forked in place of others.
        self.horses_replaced = 0
        #: Jobs that were not loaded: their signature is wrong, or ALLOWED does not name what they call.
        self.refused = 0
        #: Outcomes of jobs that ran without a signature, see SIGNING.
        self.unsigned = 0
        #: Seconds from enqueue to the job's beginning, and from giving a job to a horse to its outcome.
        self.queue_wait = Histogram()
        self.run_time = Histogram()
        #: Jobs that have begun since the last call of ``rates``, by queue key.
        self._begun: dict[str, int] = {}
        self._begun_since = time.monotonic()

    def rates(self) -> dict[str, float]:
        """Return the jobs begun per minute since the last call, by queue name; queues without any are left out."""
        now = time.monotonic()
        minutes = max(1.0, now - self._begun_since) / 60
        rates = {key.removeprefix(QUEUE): round(count / minutes, 1) for key, count in self._begun.items()}
        self._begun, self._begun_since = {}, now
        return rates

    def begun(self, claim: Claim, begun_at: float | None) -> None:
        """Count a job that begins, at ``begun_at`` by the system's clock, or since it was claimed."""
        if self._not_begun:
            self._not_begun -= 1
            return
        self.claims += 1
        self._begun[claim.queue_key] = self._begun.get(claim.queue_key, 0) + 1
        when = seconds_of(claim.raw.get(b"enqueued_at"))
        if when is not None:
            self.queue_wait.add((begun_at or claim.created_at) - when)

    def not_begun(self) -> None:
        """Leave the next job uncounted, since the last one never began: a counter that falls is taken for a restart."""
        self._not_begun += 1

    def recorded(self, status: str, commands: bytes) -> None:
        """Count an outcome that the server has recorded, with the job's status after it and its packed commands."""
        if status == "finished" or _SUCCEEDED in commands:  # one that repeats is queued or scheduled again by now
            self.finished += 1
        elif status in ("queued", "scheduled"):
            self.retried += 1
        elif status != "canceled":  # deleted before it began
            self.failed += 1
            self.refused += REFUSED in commands
        self.unsigned += UNSIGNED in commands

    def fields(self) -> dict[str, Any]:
        """Return everything as a flat dictionary, the histograms as lists: the sum, then the count of each bucket."""
        values: dict[str, Any] = {name: getattr(self, name) for name in NAMES}
        values["outage_seconds"] = round(self.outage_seconds, 3)
        for name in ("queue_wait", "run_time"):
            one: Histogram = getattr(self, name)
            values[name] = [round(one.sum, 6), *one.counts]
        values["recent"] = self._recent()
        return values

    def _recent(self) -> dict[str, Any]:
        """Return ``seconds``, at most WINDOW and a heartbeat, and by how much the counters of RECENT grew in them."""
        now, current = time.monotonic(), tuple(getattr(self, name) for name in RECENT)
        earlier = self._earlier
        while len(earlier) > 1 and earlier[1][0] <= now - WINDOW:
            earlier.popleft()
        since, before = earlier[0]
        earlier.append((now, current))
        grown = {name: after - was for name, after, was in zip(RECENT, current, before)}
        return {"seconds": round(now - since, 3), **grown}


def quantile(found: dict[str, Any], share: float) -> float | None:
    """Return the bound below which ``share`` of a histogram's durations lie; None if there are none, inf past the
    last.
    """
    if not found["count"]:
        return None
    return next(float(bound) for bound, below in found["buckets"].items() if below >= share * found["count"])
