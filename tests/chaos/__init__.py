"""Breaks a server, workers and connections in a random, repeatable order, and proves that no job is lost or counted
twice.

``python -m tests.chaos`` is the whole (docs/reliability.md tells what it does), ``python -m tests.chaos.faults`` one
named fault at a time, on stock RQ too, ``python -m tests.chaos.soak`` many jobs through one worker.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
# pytest puts them there, ``python -m`` does not.
for _folder in (TESTS, TESTS / "support", TESTS / "support" / "jobs"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
