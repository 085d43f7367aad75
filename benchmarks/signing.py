"""What a signature costs one job: where it is enqueued, and where it is verified before it is loaded."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import rq.job
from redis import Redis
from rq.job import Job
from rq.queue import Queue
from rq.serializers import DefaultSerializer

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.horse.screening import Screened, use_in_jobs
from rq_pooled.signing.attach import attach
from rq_pooled.signing.keys import parse_keys
from rq_pooled.signing.policy import Policy, use
from rq_pooled.signing.serializer import Sealed

from .common import Table, main

#: Bytes of the arguments; each is timed in turns of CALLS, and the fastest turn of each counts.
SIZES = (0, 1_000, 10_000, 100_000)
TURNS, CALLS = 1000, 10


def _fastest(functions: list[Callable[[], Any]], calls: int) -> list[float]:
    """Return the microseconds of each, measured in turn, so that both sides meet the same machine."""
    best = [float("inf")] * len(functions)
    for _ in range(TURNS):
        for index, function in enumerate(functions):
            begin = time.perf_counter()
            for _ in range(calls):
                function()
            best[index] = min(best[index], (time.perf_counter() - begin) / calls * 1e6)
    return best


def run(_server: EmbeddedServer) -> Table:
    """Measure; the server is not asked anything."""
    connection, keys = Redis(), parse_keys("k1:benchmarks-have-no-secrets", "the benchmark")
    queue, signing, nothing = Queue("bench", connection=connection), Policy(keys), Policy()
    use(signing)
    rows = []
    for size in SIZES:
        # Text that packs about as well as JSON does.
        argument = "".join(chr(97 + (index * index) % 23) for index in range(size))

        def save(signed: bool, argument: str = argument) -> dict[str, Any]:
            job = Job.create("bench.job", (argument,), connection=connection, id="x", origin="bench", timeout=180)
            if signed:
                job.serializer = Sealed(DefaultSerializer, bound=True)
                attach(job, signing)
            return job.to_dict()

        hashes = []
        for signed in (False, True):
            fields = save(signed)
            values = {name: getattr(value, "value", value) for name, value in fields.items()}
            hashes.append(
                {n.encode(): value if isinstance(value, bytes) else str(value).encode() for n, value in values.items()}
            )

        def load(policy: Policy, raw: dict[bytes, bytes]) -> Any:
            rq.job.zlib = zlib  # type: ignore[attr-defined]
            use_in_jobs(policy)
            job = Job("x", connection=connection)
            assert Screened(policy, job, queue, raw).refusal is None
            return job.args

        calls = max(1, CALLS * 1000 // (1000 + size))
        ways = [partial(save, False), partial(save, True), partial(load, nothing, hashes[0])]
        plain, signed_, loaded, verified = _fastest([*ways, partial(load, signing, hashes[1])], calls)
        signs, verifies = signed_ - plain, verified - loaded
        times = (plain, signs, loaded, verifies, signs + verifies)
        rows.append((f"{size:,}", *(f"{one:.1f}" for one in times), f"{4 + 2 * size / 1000:.0f}"))
    use(None)
    header = ["bytes of arguments", "build, µs", "+ sign", "load, µs", "+ verify", "both", "4 + 2 per kB"]
    return Table("Signatures", header, rows, f"Fastest of {TURNS} turns, one core, no server.")


if __name__ == "__main__":
    main(run)
