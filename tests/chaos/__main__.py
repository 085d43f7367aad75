"""``python -m tests.chaos --minutes 5 --seed 7``, which ``make chaos MINUTES=5 SEED=7`` calls."""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
from pathlib import Path

from rq_pooled.rq_api import key_prefix

from . import plan
from .run import WORKERS, run


def main() -> int:
    """Run it; return 0 if every seed passes, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=sys.modules["tests.chaos"].__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long faults go on, per seed (default 1)")
    parser.add_argument("--seed", type=int, help="the schedule; a random one if not given")
    parser.add_argument("--seeds", type=int, default=1, help="so many seeds, from --seed on")
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"how many there are (default {WORKERS})")
    parser.add_argument(
        "--only", action="append", choices=sorted({*plan.KINDS, *plan.CLUSTER_KINDS}), help="these kinds of faults only"
    )
    parser.add_argument("--engine", type=Path, help="a directory with another copy of rq_pooled for the workers")
    parser.add_argument("--keep", action="store_true", help="keep logs and journal where all is well, too")
    parser.add_argument("--quiet", action="store_true", help="do not tell each fault")
    parser.add_argument("--cluster", action="store_true", help="on a cluster, whose slot moves besides")
    options = parser.parse_args()
    if options.cluster and not re.search(r"\{[^{}]+\}", key_prefix()):
        parser.error("--cluster needs a hash tag in RQ_KEY_PREFIX, such as RQ_KEY_PREFIX='{app}'")
    seed = random.randrange(100_000) if options.seed is None else options.seed
    say = (lambda _line: None) if options.quiet else (lambda line: print(f"  {line}", flush=True))
    failed = []
    for number in range(seed, seed + options.seeds):
        print(f"seed {number}, {options.minutes:g} minutes", flush=True)
        report = run(
            number,
            options.minutes * 60,
            options.engine,
            frozenset(options.only or ()),
            say=say,
            cluster=options.cluster,
            workers=options.workers,
        )
        print(report.text(), flush=True)
        if not report.ok:
            failed.append(number)
        elif not options.keep:
            shutil.rmtree(report.logs)
    if failed:
        print(f"failed: {', '.join(map(str, failed))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
