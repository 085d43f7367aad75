"""The pools that this process has, what a forked child does with its copies, and what is said when the process ends."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pool import Pool

#: The references are weak: a pool lives as long as its user.
pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def local_pools() -> list[Pool]:
    """Return all pools that this process has, in no order."""
    return list(pools)


def _reset_after_fork() -> None:
    """Close a child's copies of sockets at once: while they stay open, the server does not notice the parent's end."""
    for pool in list(pools):
        pool.reset_in_child()


def _depart() -> None:
    """Remove what this process has on the server, if that can be done without waiting for anything."""
    for pool in list(pools):
        pool.depart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
atexit.register(_depart)
