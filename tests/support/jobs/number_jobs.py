"""Jobs of test_numbers.py."""

from __future__ import annotations

from rq import Retry


def return_retry(interval: int) -> Retry:
    return Retry(1, interval)
