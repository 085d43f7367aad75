"""The schedule of faults: decided by the seed alone, before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

#: kind -> (weight, shortest, longest duration in seconds). A duration is how long the fault lasts, or how long it takes
#: until what was ended is started again. Leases end after stage.TTL = 3 s: there are faults on both sides of it.
KINDS: dict[str, tuple[float, float, float]] = {
    "kill worker": (3, 0.0, 3.0),
    "kill horse": (4, 0.0, 0.0),
    "freeze worker": (2, 0.2, 7.0),
    "replace worker": (2, 0.0, 2.0),
    "freeze server": (2, 0.2, 7.0),
    "crash server": (2, 0.0, 5.0),
    "restart server": (1, 0.0, 3.0),
    "demote server": (1, 0.2, 5.0),
    "cut connections": (3, 0.0, 0.0),
    "flush scripts": (2, 0.0, 0.0),
    "fill memory": (1, 0.5, 4.0),
}
#: The same on a cluster, where no node can be made a replica by hand; the slot of all keys moves.
CLUSTER_KINDS = {kind: KINDS[kind] for kind in KINDS if kind != "demote server"} | {"move slot": (4.0, 0.0, 3.0)}
#: Only one of these at a time: the server is in one state.
ON_SERVER = {"freeze server", "crash server", "restart server", "demote server", "fill memory", "move slot"}
#: These talk to the server, which has to be there.
THROUGH_SERVER = {"cut connections", "flush scripts"}
#: Seconds between two faults, and before the first.
SHORTEST_PAUSE, LONGEST_PAUSE, BEFORE = 0.2, 3.0, 2.0
#: Faults that leave the server alone come this often while it is away.
OVERLAP = 0.5


@dataclass(frozen=True)
class Fault:
    """One fault: seconds after the beginning, what, for how long, and which of the candidates (0 to 1)."""

    at: float
    kind: str
    length: float
    pick: float

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.kind:<15} for {self.length:.2f} s  pick {self.pick:.3f}"


def make(
    seed: int,
    seconds: float,
    only: frozenset[str] = frozenset(),
    table: dict[str, tuple[float, float, float]] = KINDS,
) -> list[Fault]:
    """Return the faults of ``seconds`` seconds, of the kinds in ``table``; ``only`` these if given."""
    random = Random(seed)
    kinds = [kind for kind in table if not only or kind in only]
    weights = [table[kind][0] for kind in kinds]
    faults: list[Fault] = []
    at, server_free_at = BEFORE, 0.0
    while True:
        kind = random.choices(kinds, weights)[0]
        _, low, high = table[kind]
        # Squared: short ones are more frequent, and more races happen there.
        length = low + (high - low) * random.random() ** 2
        if kind in ON_SERVER | THROUGH_SERVER or random.random() > OVERLAP:
            at = max(at, server_free_at)
        if at + length > seconds:
            return faults
        faults.append(Fault(round(at, 2), kind, round(length, 2), min(0.999, round(random.random(), 3))))
        if kind in ON_SERVER:
            server_free_at = at + length + 0.5
        at += random.uniform(SHORTEST_PAUSE, LONGEST_PAUSE)
