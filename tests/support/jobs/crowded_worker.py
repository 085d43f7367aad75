"""A worker whose host has room for its first horse and for no other process."""

from __future__ import annotations

import errno
import itertools
import os

import rq_pooled

_fork, _count = os.fork, itertools.count()


def _fork_once() -> int:
    if next(_count):
        raise BlockingIOError(errno.EAGAIN, "no room for a process")
    return _fork()


os.fork = _fork_once


class Worker(rq_pooled.Worker):
    """As any other."""
