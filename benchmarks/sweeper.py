"""100 000 failed jobs: requeued, buried and purged, in seconds, memory, and the longest command of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from redis import Redis
from rq.job import Job
from rq.results import Result
from rq.utils import now

from rq_pooled.embedded import EmbeddedServer
from rq_pooled.store import keys

from .common import QUEUE, ROOT, Table, client, main

JOBS = 100_000
#: Microseconds that no command may take.
LONGEST = 10_000
WAYS: Sequence[tuple[str, str, str]] = (
    ("requeue, by exception", "Requeue(exceptions='ConnectionError')", "60 s"),
    ("requeue, by function and age", "Requeue(functions='tasks.*', older_than=60)", "60 s"),
    ("purge, all", "Purge(everything=True)", "30 s, 60 MB"),
    ("purge, by exception and age", "Purge(exceptions='ConnectionError', older_than=60)", "30 s, 60 MB"),
    ("purge, all but the newest 1 000", "Purge(beyond=1000)", "30 s, 60 MB"),
    ("bury, all, keep 10 000", "Bury()", ""),
    ("dry run of a purge", "Purge(exceptions='ConnectionError')", ""),
)
_TRACEBACK = (
    "Traceback (most recent call last):\n"
    + "".join(f'  File "/srv/app/part{i}.py", line {i}, in step{i}\n    return step{i + 1}(order)\n' for i in range(10))
    + "redis.exceptions.ConnectionError: Error 111 connecting to cache:6379. Connection refused.\n"
)
# A process of its own: its memory is that of a sweep, and of nothing else.
_PROGRAM = """
import json, re, resource, sys, time
from redis import Redis
from rq_pooled.failed import Sweeper
from rq_pooled.failed import Bury, Purge, Requeue
began = time.perf_counter()
(report,) = Sweeper("bench", Redis.from_url(sys.argv[1]), eval(sys.argv[2])).run(dry_run=sys.argv[3] == "dry")
seconds = time.perf_counter() - began
try:  # ru_maxrss of a new process begins with what its parent held when it started it
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 ** 2
print(json.dumps([seconds, peak, report.done]))
"""


def fill(redis: Redis) -> None:
    """Write failed jobs as RQ leaves them."""
    job = Job.create("tasks.send_mail", args=("somebody@example.org", 1), connection=redis, origin=QUEUE, id="x")
    job.timeout, job.started_at, job.ended_at, job.enqueued_at = 180, now(), now(), now()
    fields = {name: value for name, value in job.to_dict().items() if value is not None}
    fields["status"] = "failed"
    result = Result("x", Result.Type.FAILED, redis, exc_string=_TRACEBACK).serialize()
    began = time.time() - 3600
    redis.sadd(keys.QUEUES, keys.queue_key(QUEUE))
    for start in range(0, JOBS, 1000):
        with redis.pipeline(transaction=False) as pipe:
            for number in range(start, start + 1000):
                job_id = f"00000000-0000-4000-8000-{number:012d}"
                pipe.hset(keys.job_key(job_id), mapping=fields)
                pipe.expire(keys.job_key(job_id), 31_536_000)
                pipe.xadd(keys.results_key(job_id), result, id=f"{int(began * 1000) + number}-0")
                pipe.zadd(keys.registry_key("failed", QUEUE), {job_id: int(began) + 31_536_000 + number // 5000})
            pipe.execute()


def undisturbed(server: EmbeddedServer) -> bool:
    """Have the server run before everything else: SLOWLOG counts the time for which it waits for a processor, too."""
    try:
        os.sched_setscheduler(server.pid or 0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, OSError):  # not Linux, or not allowed
        return False
    return True


def run(server: EmbeddedServer) -> Table:
    """Measure."""
    first = undisturbed(server)
    rows = []
    for name, policy, target in WAYS:
        with client(server) as redis:
            fill(redis)
            redis.config_set("slowlog-log-slower-than", LONGEST // 10)
            redis.config_set("slowlog-max-len", 100_000)
            redis.slowlog_reset()
            redis.config_resetstat()
            line = [sys.executable, "-c", _PROGRAM, server.url, policy, name.split()[0]]
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
            seconds, peak, number = json.loads(done.stdout)
            slow = sorted(entry["duration"] for entry in redis.slowlog_get(100_000))
            mean = redis.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]
            times = [f"{mean / 1000:.1f}", f"{slow[-1] / 1000:.1f}" if slow else "< 1"]
            over = str(sum(duration > LONGEST for duration in slow))
            rows.append((name, str(number), f"{seconds:.1f}", f"{peak:.0f}", *times, over, target))
    header = ["what", "jobs", "seconds", "peak MB", "mean command, ms", "longest", "over 10 ms", "target"]
    note = (
        f"{JOBS} failed jobs in one registry, each with a traceback of 12 frames. Peak MB is all of the sweeping "
        "process, "
        "Python and RQ included. Commands by SLOWLOG"
        + (", the server running at real-time priority." if first else ", which counts waits for the processor, too.")
    )
    return Table("Sweeps", header, rows, note)


if __name__ == "__main__":
    main(run)
