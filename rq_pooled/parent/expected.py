"""How long a job is expected to take, from those before it: by what it calls, else by its queue."""

from __future__ import annotations

from ..store.claim import Claim

#: The share that the last job has in a moving mean.
SHARE = 1 / 8
#: Functions whose means are kept, and queues.
MAX_MEANS = 1000
#: Bytes of a description that may be a function's name.
MAX_NAME = 200


class Expected:
    """Moving means of seconds."""

    def __init__(self) -> None:
        self._of_queues: dict[str, float] = {}
        self._of_functions: dict[bytes, float] = {}
        #: The mean of all jobs; None before the first one.
        self.mean: float | None = None

    def add(self, claim: Claim, seconds: float) -> None:
        """Note how long a job took."""
        self.mean = _moved(self.mean, seconds)
        queue, function = claim.queue_key, _function(claim)
        for means in (self._of_queues, self._of_functions):
            # A description of one's own may be another one for each job.
            if len(means) >= MAX_MEANS:
                means.clear()
        self._of_queues[queue] = _moved(self._of_queues.get(queue), seconds)
        self._of_functions[function] = _moved(self._of_functions.get(function), seconds)

    def of(self, claim: Claim) -> float:
        """Return the seconds that a job is expected to take; infinity where nothing is known."""
        # Large fields are read first, over the network.
        if claim.left_out:
            return float("inf")
        found = self._of_functions.get(_function(claim))
        return found if found is not None else self._of_queues.get(claim.queue_key, float("inf"))


def _moved(mean: float | None, seconds: float) -> float:
    return seconds if mean is None else mean + (seconds - mean) * SHARE


def _function(claim: Claim) -> bytes:
    """Return the name of what a job calls, as RQ describes it, else the description."""
    return claim.raw.get(b"description", b"")[:MAX_NAME].partition(b"(")[0]
