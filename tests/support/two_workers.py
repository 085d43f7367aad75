"""What the state machines share: two workers with two slots each, on an empty server, and what each knows that it
holds.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from engine import Engine, engine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from redis import Redis
from rq import Queue

from rq_pooled.store.claim import Claim

#: Worker -> its slots.
SLOTS = {"one": ("one-0", "one-1"), "two": ("two-0", "two-1")}
MAX_STALLS = 1

workers = st.sampled_from(sorted(SLOTS))
#: Whether the reply to a script comes: where not, the server has done it and the worker does not know.
answered = st.sampled_from([True, True, False])


class TwoWorkers(RuleBasedStateMachine):
    """Two workers and one queue; a machine begins with ``start`` and adds the steps."""

    engines: dict[str, Engine]
    redis: Redis

    def start(self) -> None:
        """Begin with nothing but the registered workers."""
        self.redis.flushall()
        for worker, slots in SLOTS.items():
            self.engines[worker].register(*slots)
        self.queue = Queue(connection=self.redis)
        #: What each worker knows that it holds, or held.
        self.known: dict[str, dict[str, Claim]] = defaultdict(dict)

    def free(self, worker: str) -> list[str]:
        """Return the slots that the worker thinks are free."""
        busy = {claim.worker_name for claim in self.known[worker].values()}
        return [name for name in SLOTS[worker] if name not in busy]


def run_machine(machine: type[TwoWorkers], url: str, redis: Redis, **options: Any) -> None:
    """Run 200 examples of a machine against a server."""
    rules = {"max_stalls": MAX_STALLS, "stalled_interval": 600}
    with engine(url, "one", **rules) as one, engine(url, "two", **rules) as two:
        run_state_machine_as_test(
            type("Machine", (machine,), {"engines": {"one": one, "two": two}, "redis": redis}),
            settings=settings(
                max_examples=200,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                **options,
            ),
        )
