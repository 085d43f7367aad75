"""Jobs that use Redis in every way that jobs do, and that look at what their process knows."""

from __future__ import annotations

import os
import resource
from datetime import timedelta
from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError
from rq import get_current_job
from rq.job import Job
from rq.worker_registration import REDIS_WORKER_KEYS

import rq_pooled


def use_redis() -> str:
    """Keep meta, enqueue in all ways, look at other jobs, watch; return the user that the server knows this job as."""
    job = get_current_job()
    client = rq_pooled.get_connection()
    job.meta["step"] = 1
    job.save_meta()
    job.refresh()
    queue = rq_pooled.Queue("later", connection=client)
    first = queue.enqueue("jobs.nothing")
    queue.enqueue("jobs.nothing", depends_on=first)
    queue.enqueue_in(timedelta(hours=1), "jobs.nothing")
    queue.enqueue("jobs.nothing", unique_for=60)
    Job.fetch(job.id, connection=client).latest_result()
    queue.enqueue("jobs.nothing").cancel()
    queue.enqueue("jobs.nothing").delete()
    return str(client.client_info()["user"])


def call_back(_job: Job, connection: Redis, *_error: Any) -> None:
    """A failure callback that enqueues, and then does what only a worker may, with a command as maintenance sends."""
    rq_pooled.Queue("later", connection=connection).enqueue("jobs.nothing", job_id="called-back")
    connection.sadd(REDIS_WORKER_KEYS, "forged")


def try_each(commands: list[list[Any]]) -> list[str]:
    """Return what the server says to commands of a job: the error's class, or nothing."""
    client = rq_pooled.get_connection()
    said = []
    for words in commands:
        try:
            client.execute_command(*words)
            said.append("")
        except NoPermissionError as error:
            said.append(type(error).__name__)
    return said


def what_is_known() -> dict[str, Any]:
    """Return the names of variables, the settings that a job sees, and the limit of core files."""
    settings = rq_pooled.config.Settings.load()
    return {
        "names": sorted(os.environ),
        "children": os.popen("env").read(),
        "url": settings.url,
        "core": list(resource.getrlimit(resource.RLIMIT_CORE)),
        "enqueued": rq_pooled.Queue("later").enqueue("jobs.nothing").id,
    }


def started_with() -> str:
    """Return what the system shows of this process's environment."""
    with open("/proc/self/environ", errors="replace") as file:
        return file.read()
