"""The jobs of benchmarks/streams.py: they use Redis, and measure what that takes."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import redis
from redis.utils import HIREDIS_AVAILABLE
from rq import Queue, get_current_job

SMALL, LARGE = "bench:small", "bench:large"
PIPELINE = 100

#: The client that a job would build without rq_pooled, kept for the life of its process, with its one connection.
_plain: dict[str, redis.Redis] = {}


def measure(path: str, side: str, kind: str, seconds: float, url: str) -> None:
    """Repeat one kind of call for some seconds, at the same time as the other jobs, and send what it took.

    Args:
        path: the Unix socket of the benchmark, which says when all jobs begin and when all have ended.
        side: ``ours`` or ``plain``.
        kind: ``get``, ``pipeline`` or ``large``.
        url: where ``plain`` connects to.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as benchmark:
        benchmark.connect(path)
        try:
            call = _call(_client(side, url), kind)
            benchmark.sendall(b"ready\n")
            benchmark.recv(1)
            result = _repeat(call, seconds)
        except Exception as error:  # noqa: BLE001 - the benchmark is told, and ends
            result = {"error": f"{type(error).__name__}: {error}"}
        benchmark.sendall(
            json.dumps({**result, "pid": os.getpid(), "hiredis": bool(HIREDIS_AVAILABLE)}).encode() + b"\n"
        )
        benchmark.recv(1)


def _client(side: str, url: str) -> redis.Redis:
    if side == "ours":
        from rq_pooled import get_connection

        return get_connection()
    if url not in _plain:
        _plain[url] = redis.Redis.from_url(url, protocol=2)  # as rq_pooled's: RESP3 is parsed by other code
    return _plain[url]


def _call(client: redis.Redis, kind: str) -> Callable[[], Any]:
    for _ in range(20):  # opens the connection, fills caches
        client.get(SMALL)
    if kind == "get":
        return lambda: client.get(SMALL)
    if kind == "large":
        return lambda: client.get(LARGE)

    def pipeline() -> None:
        with client.pipeline(transaction=False) as pipe:
            for _ in range(PIPELINE):
                pipe.get(SMALL)
            pipe.execute()

    pipeline()
    return pipeline


def _repeat(call: Callable[[], Any], seconds: float) -> dict[str, Any]:
    clock, taken = time.perf_counter, []
    now = begin = clock()
    while now < begin + seconds or len(taken) < 3:
        call()
        before, now = now, clock()
        taken.append(now - before)
    # The first call stands for itself: a stream whose reply was large gets a connection of its own for the next ones.
    rest = taken[1:]
    return {"number": len(rest), "rate": len(rest) / sum(rest), "median": median(rest), "first": taken[0]}


def use_redis(seconds: float) -> None:
    """Do what most real jobs do, for stock RQ and rq_pooled alike: save meta, read, write, enqueue; and take a
    while.
    """
    job = get_current_job()
    assert job is not None
    job.meta["progress"] = 1
    job.save_meta()
    job.connection.get(SMALL)
    with job.connection.pipeline() as pipe:
        pipe.incr("bench:count")
        pipe.expire("bench:count", 600)
        pipe.execute()
    Queue("bench-later", connection=job.connection).enqueue("benchmarks.jobs.nothing")
    time.sleep(seconds)
