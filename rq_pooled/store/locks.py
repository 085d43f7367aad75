"""The locks under which one process at a time works on something."""

from __future__ import annotations

from typing import NamedTuple

from ..wire import Command
from .scripts import call


class SweepLock(NamedTuple):
    """The lock of a sweep, as its scripts check and renew it; an empty owner holds none and needs none."""

    key: str
    owner: str
    ttl: int


def unlock(lock: str, token: str) -> Command:
    """Give back a lock that has this value while it is ours."""
    return call("unlock", (lock,), token)
